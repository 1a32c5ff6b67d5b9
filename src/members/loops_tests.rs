//! What the loops do at the end of a process, on a log in memory that refuses its dead letters until then, and beside a
//! slow model.

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
use crate::members::generate::{self, Generate, Loaded, Scorer};
use crate::members::ingest::{self, Ingest, Now};
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

/// Takes no record while `shut`, and tells when it was asked; counts what was read.
struct Shut {
    inner: MemoryLog,
    read: Arc<AtomicUsize>,
    shut: Arc<AtomicBool>,
    asked: Arc<Notify>,
}

impl Log for Shut {
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
        if !self.shut.load(Ordering::SeqCst) {
            return self.inner.send(records).await;
        }
        self.asked.notify_one();
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
    let mut catalogue = Catalogue::default();
    let sku = json!({
        "sku": "s", "pu_id": "P", "pu": "PRODUCT", "category": "all", "title": "a product", "stock": 5, "price": null,
        "attributes": {},
    });
    let sku = serde_json::from_value(sku).expect("a SKU");
    catalogue.apply("s".into(), Some(sku));
    let catalogue = Arc::new(catalogue);
    let rules = Arc::new(Table::compile(&[], &[], &catalogue));
    let none = std::iter::empty();
    let demand = Demand::build(none, &catalogue, &Default::default(), Timestamp(0));
    Snapshot::new(
        (catalogue, rules, Arc::new(demand)),
        &[],
        (4, &Default::default()),
    )
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
        window: 9,
        cache_users: NonZeroUsize::MIN,
        triggers,
        now: Now::Unchecked,
        complete_since: BTreeMap::new(),
    }
}

/// A batch that is given up at the end is read again: nothing behind it is folded and committed meanwhile.
#[tokio::test]
async fn what_is_given_up_at_the_end_is_not_passed_over() {
    for seed in 0..30 {
        let (topics, cluster) = (Topics::default(), MemoryCluster::new(seed));
        for topic in [&topics.user_events, &topics.profile_changes, &topics.dlq] {
            cluster.create_topic(topic, 1);
        }
        cluster.produce(event(&topics, "no JSON"));
        let (shut, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(Notify::new()));
        let log = Shut {
            inner: cluster.join("g", &[&topics.user_events, &topics.profile_changes]),
            read: Arc::default(),
            shut: shut.clone(),
            asked: asked.clone(),
        };
        let settings = ingest_settings(&topics, false);
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot()));
        let member = Ingest::new(log, MemoryStore::default(), snapshot, settings);
        let cancel = CancellationToken::new();
        let (_ready, is_ready) = tokio::sync::watch::channel(true);
        let gate = dlq_gate(&Ready::default(), "dlq");
        let running = tokio::spawn(ingest_loop(member, (is_ready, gate), cancel.clone()));
        asked.notified().await;
        // All is well again, the next record is there, and so is the end.
        cluster.produce(event(
            &topics,
            r#"{"type": "view", "sku": "s", "ts": 1750000000000}"#,
        ));
        shut.store(false, Ordering::SeqCst);
        cancel.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await;
        ended
            .expect("in time")
            .expect("no panic")
            .expect("in order");
        let buried = cluster.records(&topics.dlq).len();
        let passed = cluster.committed("g").values().any(|at| at.0 > 0);
        assert!(buried == 1 || !passed, "seed {seed}: passed over");
    }
}

/// A model that is slower than everything that the loop does now and then; while it makes its first list, more are asked for.
struct Late {
    table: Mutex<engine::table::Table>,
    cluster: MemoryCluster,
    lane: Arc<str>,
    read: Arc<AtomicUsize>,
    /// Batches that it answers at once before it is slow.
    quick: usize,
    /// Requests read when each batch began.
    seen: Arc<Mutex<Vec<usize>>>,
}

const FIRST: usize = 4;
const LATER: usize = 20;

impl Scorer for Late {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.table.lock().expect("no panic").set_names(names)
    }

    async fn generate(&self, asks: Vec<ScoreRequest>) -> Result<Vec<ScoreResponse>, engine::Error> {
        let batches = {
            let mut seen = self.seen.lock().expect("no panic");
            seen.push(self.read.load(Ordering::SeqCst));
            seen.len()
        };
        if batches <= self.quick {
            return self.table.lock().expect("no panic").generate(&asks);
        }
        if batches == self.quick + 1 {
            let one = self.cluster.records(&self.lane).remove(0);
            let text = String::from_utf8(one.value.expect("a request").to_vec()).expect("JSON");
            for nth in 0..LATER {
                self.cluster.produce(Outgoing {
                    topic: self.lane.clone(),
                    key: Some(format!("later-{nth}").into()),
                    value: Some(text.replace("first-0", &format!("later-{nth}")).into()),
                    headers: Vec::new(),
                    time: Some(one.time),
                });
            }
        }
        tokio::time::sleep(COMMIT_EVERY * 4).await;
        self.table.lock().expect("no panic").generate(&asks)
    }
}

fn ready_to_answer<A>(topics: &Topics, engine: A) -> (Vec<Loaded<A>>, generate::GenerateSettings) {
    let arm = json!({"id": "table", "epoch": 1, "template": "t.j2", "model": "none", "names": 3});
    let loaded = Loaded {
        arm: serde_json::from_value(arm).expect("an arm"),
        template: nearshore_core::list::prompt::Template::load("Next:", "t.j2")
            .expect("a template"),
        info: Default::default(),
        calibration: None,
        count: Arc::new(str::len),
        engine,
    };
    let settings = generate::GenerateSettings {
        topics: topics.clone(),
        lanes: nearshore_core::queue::lanes::Policy {
            batch_max: 1,
            ..Default::default()
        },
        arm_seed: "seed".into(),
        selection: Default::default(),
        needs: Default::default(),
        clock: crate::members::clock::wall_clock,
    };
    (vec![loaded], settings)
}

/// Waits until it is so, for twenty seconds at most.
async fn until(is_so: impl Fn() -> bool) {
    let asked = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, asked).await.expect("in time");
}

/// What stands when each of the first users has asked for a list.
struct Asked {
    topics: Topics,
    cluster: MemoryCluster,
    store: MemoryStore,
    snapshot: Arc<ArcSwap<Snapshot>>,
    lane: Arc<str>,
    cancel: CancellationToken,
    ready: Ready,
}

impl Asked {
    async fn new() -> Self {
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
            Arc::new(ArcSwap::from_pointee(snapshot())),
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
        let ingest = ingest_loop(member, (is_ready, dlq_gate(&ready, "i")), cancel.clone());
        tokio::spawn(ingest);
        let lane = topics
            .lanes()
            .into_iter()
            .find(|lane| lane.contains("urgent"))
            .expect("a lane");
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

    /// Starts a member with this model; it counts what it reads.
    fn serve<A: Scorer + 'static>(&self, engine: A, read: &Arc<AtomicUsize>) {
        let lanes = self.topics.lanes();
        let log = Shut {
            inner: self
                .cluster
                .join("r", &lanes.each_ref().map(|lane| &**lane)),
            read: read.clone(),
            shut: Arc::default(),
            asked: Arc::default(),
        };
        let (arms, settings) = ready_to_answer(&self.topics, engine);
        let (store, snapshot) = (self.store.clone(), self.snapshot.clone());
        let member = Generate::new(log, store, snapshot, arms, settings);
        let gate = dlq_gate(&self.ready, "g");
        tokio::spawn(generate_loop(member, gate, self.cancel.clone()));
    }
}

/// Requests are read after each batch of the model, however long it took: an urgent one must not wait for the whole lane.
#[tokio::test]
async fn a_slow_model_keeps_nobody_from_being_read() {
    assert_eq!(read_by_batch(0, 2).await, [FIRST, FIRST + LATER]);
}

/// A turn of many batches, of a model that was quick, ends when it is quick no more: with the batch that was taken meanwhile.
#[tokio::test]
async fn a_model_that_becomes_slow_keeps_nobody_from_being_read() {
    assert_eq!(
        read_by_batch(1, 4).await,
        [FIRST, FIRST, FIRST, FIRST + LATER]
    );
}

/// Requests read when each of so many batches began.
async fn read_by_batch(quick: usize, batches: usize) -> Vec<usize> {
    let asked = Asked::new().await;
    let (read, seen) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let engine = Late {
        table: Mutex::default(),
        cluster: asked.cluster.clone(),
        lane: asked.lane.clone(),
        read: read.clone(),
        quick,
        seen: seen.clone(),
    };
    asked.serve(engine, &read);
    until(|| seen.lock().expect("no panic").len() >= batches).await;
    asked.cancel.cancel();
    seen.lock().expect("no panic").clone()
}

/// A model that goes on with its last batch only when all lists before it have been told.
struct Quick {
    table: Mutex<engine::table::Table>,
    cluster: MemoryCluster,
    updates: Arc<str>,
    /// Lists told when each batch began.
    told: Arc<Mutex<Vec<usize>>>,
}

impl Scorer for Quick {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.table.lock().expect("no panic").set_names(names)
    }

    async fn generate(&self, asks: Vec<ScoreRequest>) -> Result<Vec<ScoreResponse>, engine::Error> {
        let lists = || self.cluster.records(&self.updates).len();
        let before = {
            let mut told = self.told.lock().expect("no panic");
            told.push(lists());
            told.len() - 1
        };
        if before + 1 == FIRST {
            until(|| lists() == before).await;
        }
        self.table.lock().expect("no panic").generate(&asks)
    }
}

/// Once a model is known to be quick, lists are published while it answers the next batch: it waits for neither Redis nor Kafka.
#[tokio::test]
async fn lists_are_published_while_a_quick_model_answers_the_next_batch() {
    let asked = Asked::new().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let updates = asked.topics.recall_updates.clone();
    let engine = Quick {
        table: Mutex::default(),
        cluster: asked.cluster.clone(),
        updates: updates.clone(),
        told: told.clone(),
    };
    asked.serve(engine, &Arc::default());
    until(|| asked.cluster.records(&updates).len() == FIRST).await;
    // The first batch is a turn of its own, for nothing is known of the model; of the second turn each batch begins before
    // the list of the one before it is told, and the last saw it told meanwhile.
    assert_eq!(*told.lock().expect("no panic"), [0, 1, 1, 2]);
    asked.cancel.cancel();
}
