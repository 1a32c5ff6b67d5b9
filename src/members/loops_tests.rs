//! Tests of the loops, on a log and a store in memory: what is committed at the end of a process while dead letters are
//! refused, and what is read and published beside a slow or a quick model, or one that is elsewhere.

mod free;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::loops::{COMMIT_EVERY, dlq_gate, generate_loop, ingest_loop};
use crate::http::Ready;
use crate::members::generate::{self, Generate, LoadedArm, Ranking, Scorer};
use crate::members::ingest::{self, Ingest, Now};
use nearshore_core::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use nearshore_core::list::terms::Weights;
use nearshore_core::names::scoring::{Names, ScoreRequest, ScoreResponse};
use nearshore_core::ports::log::{Committed, Delivery, Error, Log, Outgoing};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::demand::Demand;
use nearshore_core::shop::rules::Table;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::record::{Offset, Partition, Resume, Timestamp};
use nearshore_engine as engine;
use nearshore_engine::Model;
use nearshore_testkit::log::{MemoryCluster, MemoryLog};
use nearshore_testkit::store::MemoryStore;

/// A log in memory which counts the records that are read, and refuses all records that are written while `refuses`.
struct RefusingLog {
    inner: MemoryLog,
    read: Arc<AtomicUsize>,
    refuses: Arc<AtomicBool>,
    /// Notified of each refused write.
    refused: Arc<Notify>,
}

impl Log for RefusingLog {
    async fn next(&mut self) -> Result<Delivery, Error> {
        let delivery = self.inner.next().await?;
        if let Delivery::Batch(batch) = &delivery {
            self.read.fetch_add(batch.records.len(), Ordering::SeqCst);
        }
        Ok(delivery)
    }

    async fn notice(&mut self) -> Result<Delivery, Error> {
        self.inner.notice().await
    }

    async fn commit(&self, done: &[(Partition, Resume)]) -> Result<(), Error> {
        self.inner.commit(done).await
    }

    async fn committed(&self, of: &[Partition]) -> Result<Vec<Committed>, Error> {
        self.inner.committed(of).await
    }

    async fn rewind(&mut self, to: &[(Partition, Resume)]) -> Result<(), Error> {
        self.inner.rewind(to).await
    }

    async fn end(&self, partition: &Partition) -> Result<Offset, Error> {
        self.inner.end(partition).await
    }

    async fn send(&self, records: Vec<Outgoing>) -> Result<(), Error> {
        if !self.refuses.load(Ordering::SeqCst) {
            return self.inner.send(records).await;
        }
        self.refused.notify_one();
        Err(Error::Timeout {
            topic: "dlq".into(),
            limit: Duration::ZERO,
        })
    }

    async fn close(self) {
        self.inner.close().await;
    }
}

fn snapshot() -> Snapshot {
    snapshot_of(&["PRODUCT"])
}

/// A shop of these products, each with one SKU; that of the first is `s`.
fn snapshot_of(names: &[&str]) -> Snapshot {
    let mut catalogue = Catalogue::default();
    for (nth, name) in names.iter().enumerate() {
        let id = if nth == 0 {
            "s".to_owned()
        } else {
            format!("s{nth}")
        };
        let sku = json!({
            "sku": id, "pu_id": name, "pu": name, "category": "all", "title": "a product", "stock": 5, "price": null,
            "attributes": {},
        });
        let sku = serde_json::from_value(sku).expect("a SKU");
        catalogue.apply(id.as_str().into(), Some(sku));
    }
    let catalogue = Arc::new(catalogue);
    let rules = Arc::new(Table::compile(&[], &[], &catalogue));
    let none = std::iter::empty();
    let demand = Demand::build(none, &catalogue, &Default::default(), Timestamp(0));
    let parts = SnapshotParts {
        catalogue,
        rules,
        demand: Arc::new(demand),
        merchant: Arc::default(),
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: 4,
        selection: &Default::default(),
    };
    serving_snapshot(parts, fallbacks)
}

fn event(topics: &Topics, value: &'static str) -> Outgoing {
    Outgoing {
        topic: topics.user_events.clone(),
        key: Some("u".into()),
        value: Some(value.into()),
        headers: Vec::new(),
        time: Some(Timestamp(1_750_000_000_000)),
    }
}

fn ingest_settings(topics: &Topics, triggers: bool) -> ingest::IngestSettings {
    ingest::IngestSettings {
        ns: "n".into(),
        group: "g".into(),
        topics: topics.clone(),
        limits: Default::default(),
        policy: Default::default(),
        ignore: Default::default(),
        window: 9,
        units_max: 20,
        clock: || Timestamp(1_750_000_000_000),
        cache_users: NonZeroUsize::MIN,
        triggers,
        hits_sample: 0.0,
        now: Now::Unchecked,
        complete_since: BTreeMap::new(),
    }
}

/// A batch whose dead letter is still refused at the end of the process is read again by the next member: no offset
/// behind it is committed.
#[tokio::test]
async fn a_batch_given_up_at_the_end_is_not_committed() {
    for seed in 0..30 {
        let (topics, cluster) = (Topics::default(), MemoryCluster::new(seed));
        for topic in [&topics.user_events, &topics.profile_changes, &topics.dlq] {
            cluster.create_topic(topic, 1);
        }
        cluster.produce(event(&topics, "no JSON"));
        let (refuses, refused) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
        let log = RefusingLog {
            inner: cluster.join("g", &[&topics.user_events, &topics.profile_changes]),
            read: Arc::default(),
            refuses: refuses.clone(),
            refused: refused.clone(),
        };
        let settings = ingest_settings(&topics, false);
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot()));
        let member = Ingest::new(log, MemoryStore::default(), snapshot, settings);
        let cancel = CancellationToken::new();
        let (_ready, is_ready) = tokio::sync::watch::channel(true);
        let ready = Ready::default();
        let gates = (dlq_gate(&ready, "dlq"), ready.gate("partitions"));
        let running = tokio::spawn(ingest_loop(member, is_ready, gates, cancel.clone()));
        refused.notified().await;
        // Writes succeed again, there is a next record, and the process is told to end.
        cluster.produce(event(
            &topics,
            r#"{"type": "view", "sku": "s", "ts": 1750000000000}"#,
        ));
        refuses.store(false, Ordering::SeqCst);
        cancel.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await;
        ended
            .expect("the loop ends in time")
            .expect("no panic")
            .expect("the loop ends without an error");
        let dead_letters = cluster.records(&topics.dlq).len();
        let is_committed = cluster.committed("g").values().any(|resume| resume.0 > 0);
        assert!(
            dead_letters == 1 || !is_committed,
            "seed {seed}: committed without its dead letter"
        );
    }
}

/// A model that is slower than all timers of the loop. When it begins its first slow batch, [`LATER`] more requests are
/// written.
struct SlowModel {
    table: Mutex<engine::table::Table>,
    cluster: MemoryCluster,
    lane: Arc<str>,
    read: Arc<AtomicUsize>,
    /// How many batches it answers at once before it is slow.
    quick: usize,
    /// How many requests were read when each batch began.
    read_at: Arc<Mutex<Vec<usize>>>,
}

/// Requests that are written before a member starts.
const FIRST: usize = 4;

/// Requests that are written while a slow model works.
const LATER: usize = 20;

impl Scorer for SlowModel {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.table.lock().expect("no panic").set_names(names)
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        let batches = {
            let mut read_at = self.read_at.lock().expect("no panic");
            read_at.push(self.read.load(Ordering::SeqCst));
            read_at.len()
        };
        if batches <= self.quick {
            return self.table.lock().expect("no panic").score(&requests);
        }
        if batches == self.quick + 1 {
            let first = self.cluster.records(&self.lane).remove(0);
            let text = String::from_utf8(first.value.expect("a request").to_vec()).expect("JSON");
            for nth in 0..LATER {
                self.cluster.produce(Outgoing {
                    topic: self.lane.clone(),
                    key: Some(format!("later-{nth}").into()),
                    value: Some(text.replace("first-0", &format!("later-{nth}")).into()),
                    headers: Vec::new(),
                    time: Some(first.time),
                });
            }
        }
        tokio::time::sleep(COMMIT_EVERY * 4).await;
        self.table.lock().expect("no panic").score(&requests)
    }
}

/// One arm with this model, and settings with batches of one user.
fn arms_and_settings<A>(
    topics: &Topics,
    (engine, terms): (A, &[(&str, f64)]),
) -> (Vec<LoadedArm<A>>, generate::GenerateSettings) {
    let arm = json!({"id": "table", "epoch": 1, "template": "t.j2", "model": "none", "names": 3});
    let terms = terms
        .iter()
        .map(|(term, weight)| ((*term).to_owned(), *weight));
    let terms = terms.collect();
    let loaded = LoadedArm {
        arm: serde_json::from_value(arm).expect("an arm"),
        ranking: Ranking {
            weights: Weights::by_hand(&terms).expect("weights"),
            ..Default::default()
        }
        .into(),
        renewed: Default::default(),
        new_texts: None,
        template: nearshore_core::list::prompt::Template::load("Next:", "t.j2")
            .expect("a template"),
        info: Default::default(),
        tokenizer: "words".into(),
        count: Arc::new(str::len),
        engine,
    };
    let settings = generate::GenerateSettings {
        group: "nearshore-generate".into(),
        topics: topics.clone(),
        lanes: nearshore_core::queue::lanes::Policy {
            batch_max: 1,
            ..Default::default()
        },
        arm_seed: "seed".into(),
        selection: Default::default(),
        needs: Default::default(),
        texts: None,
        audits_kept: 1.0,
        candidates: 1.0,
        clock: crate::members::clock::wall_clock,
    };
    (vec![loaded], settings)
}

/// Waits until the condition holds, for twenty seconds at most.
async fn until(holds: impl Fn() -> bool) {
    let polled = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, polled)
        .await
        .expect("the condition holds in time");
}

/// A log and a store in which [`FIRST`] users have a request each, on the urgent lane.
struct Requested {
    topics: Topics,
    cluster: MemoryCluster,
    store: MemoryStore,
    snapshot: Arc<ArcSwap<Snapshot>>,
    lane: Arc<str>,
    cancel: CancellationToken,
    ready: Ready,
}

impl Requested {
    async fn new() -> Self {
        Self::of(snapshot()).await
    }

    /// The same in a shop of its own.
    async fn of(snapshot: Snapshot) -> Self {
        let (topics, cluster) = (Topics::default(), MemoryCluster::new(1));
        for topic in topics.all() {
            cluster.create_topic(&topic, 1);
        }
        for nth in 0..FIRST {
            cluster.produce(Outgoing {
                key: Some(format!("first-{nth}").into()),
                ..event(&topics, r#"{"type": "purchase", "sku": "s", "qty": 1}"#)
            });
        }
        let (store, snapshot) = (
            MemoryStore::default(),
            Arc::new(ArcSwap::from_pointee(snapshot)),
        );
        let (cancel, ready) = (CancellationToken::new(), Ready::default());
        let (_ready, is_ready) = tokio::sync::watch::channel(true);
        let log = cluster.join("g", &[&topics.user_events, &topics.profile_changes]);
        let member = Ingest::new(
            log,
            store.clone(),
            snapshot.clone(),
            ingest_settings(&topics, true),
        );
        let ingest = ingest_loop(
            member,
            is_ready,
            (dlq_gate(&ready, "i"), ready.gate("partitions")),
            cancel.clone(),
        );
        tokio::spawn(ingest);
        let lane = topics
            .lanes()
            .into_iter()
            .find(|lane| lane.contains("urgent"))
            .expect("an urgent lane");
        until(|| cluster.records(&lane).len() >= FIRST).await;
        Self {
            topics,
            cluster,
            store,
            snapshot,
            lane,
            cancel,
            ready,
        }
    }

    /// Starts a generate member with this model; `read` counts the requests that it reads.
    fn serve<A: Scorer>(&self, engine: A, read: &Arc<AtomicUsize>) {
        self.serve_by((engine, &[("model", 1.0)]), read);
    }

    /// The same with weights of its terms.
    fn serve_by<A: Scorer>(&self, engine: (A, &[(&str, f64)]), read: &Arc<AtomicUsize>) {
        let lanes = self.topics.lanes();
        let log = RefusingLog {
            inner: self
                .cluster
                .join("r", &lanes.each_ref().map(|lane| &**lane)),
            read: read.clone(),
            refuses: Arc::default(),
            refused: Arc::default(),
        };
        let (arms, settings) = arms_and_settings(&self.topics, engine);
        let (store, snapshot) = (self.store.clone(), self.snapshot.clone());
        let member = Generate::new(log, store, snapshot, arms, settings);
        let gates = (dlq_gate(&self.ready, "g"), self.ready.gate("values"));
        tokio::spawn(generate_loop(member, gates, self.cancel.clone()));
    }
}

/// Requests are read while a slow model works, so that nobody waits for it to be read.
#[tokio::test]
async fn requests_are_read_while_a_slow_model_works() {
    assert_eq!(read_by_batch(0, 2).await, [FIRST, FIRST + LATER]);
}

/// How many requests were read when each of so many batches began.
async fn read_by_batch(quick: usize, batches: usize) -> Vec<usize> {
    let requested = Requested::new().await;
    let (read, read_at) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let engine = SlowModel {
        table: Mutex::default(),
        cluster: requested.cluster.clone(),
        lane: requested.lane.clone(),
        read: read.clone(),
        quick,
        read_at: read_at.clone(),
    };
    requested.serve(engine, &read);
    until(|| read_at.lock().expect("no panic").len() >= batches).await;
    requested.cancel.cancel();
    read_at.lock().expect("no panic").clone()
}

/// A quick model which answers its last batch only when the updates of all lists before it are sent, those without the
/// model included.
struct QuickModel {
    table: Mutex<engine::table::Table>,
    cluster: MemoryCluster,
    updates: Arc<str>,
    /// How many updates were sent when each batch began.
    sent_at: Arc<Mutex<Vec<usize>>>,
}

impl Scorer for QuickModel {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.table.lock().expect("no panic").set_names(names)
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        let sent = || self.cluster.records(&self.updates).len();
        let before = {
            let mut sent_at = self.sent_at.lock().expect("no panic");
            sent_at.push(sent());
            sent_at.len() - 1
        };
        if before + 1 == FIRST {
            until(|| sent() == FIRST + before).await;
        }
        self.table.lock().expect("no panic").score(&requests)
    }
}

/// All lists without the model are published before it is asked, and a batch of the model does not wait until the lists
/// of the one before it are.
#[tokio::test]
async fn lists_are_published_while_a_quick_model_answers_the_next_batch() {
    let requested = Requested::new().await;
    let sent_at = Arc::new(Mutex::new(Vec::new()));
    let updates = requested.topics.recall_updates.clone();
    let engine = QuickModel {
        table: Mutex::default(),
        cluster: requested.cluster.clone(),
        updates: updates.clone(),
        sent_at: sent_at.clone(),
    };
    requested.serve(engine, &Arc::default());
    until(|| requested.cluster.records(&updates).len() == 2 * FIRST).await;
    assert_eq!(
        *sent_at.lock().expect("no panic"),
        [FIRST, FIRST, FIRST + 1, FIRST + 2]
    );
    requested.cancel.cancel();
}
