//! One seeded history: members are polled by hand, in an order that the seed chooses.

use std::cell::Cell;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use nearshore::members::generate::{self, Generate, LoadedArm, Ranking, Scorer};
use nearshore::members::ingest::{self, Ingest};
use nearshore_core::list::terms::Weights;
use nearshore_core::names::scoring::{Names, ScoreRequest, ScoreResponse};
use nearshore_core::ports::log::{Delivery, Log, Outgoing};
use nearshore_core::ports::store::Store;
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::record::Timestamp;
use nearshore_engine as engine;
use nearshore_engine::Model;
use nearshore_engine::table::Table;
use nearshore_testkit::log::{Flaws, MemoryCluster, MemoryLog};
use nearshore_testkit::store::{Contents, Lost, MemoryStore};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::calls::{self, Called};
use super::check;
use super::gate::{Gate, Gated, GatedLog, Yield};

/// Users of a history; few, so that records of one user are in flight together.
pub const USERS: usize = 4;
/// SKUs of its catalogue: two per product.
pub const SKUS: usize = 12;
/// Window of the state; small, so that it overflows.
pub const WINDOW: usize = 6;
/// Timestamp at which a history starts.
const START: i64 = 1_750_000_000_000;
/// Steps after which a history must be at rest.
const STEPS_MAX: usize = 60_000;

thread_local! {
    /// The clock of the history; each member reads it with its own skew.
    static CLOCK: Cell<i64> = const { Cell::new(START) };
}

fn clock() -> Timestamp {
    Timestamp(CLOCK.get())
}

/// What a history runs on.
pub struct Doubles<S> {
    pub log: Flaws,
    pub store: S,
    pub ns: String,
    /// The same store, if it may lose its last writes.
    pub losing: Option<MemoryStore>,
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// The part of a member.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// Fills the namespace with this index.
    Ingest(usize),
    Generate,
}

struct Member {
    part: Part,
    running: Running,
    /// Not polled before this step: a process that is stopped and wakes after its partitions have moved.
    asleep_until: usize,
}

pub struct History<S> {
    pub rng: ChaCha8Rng,
    pub gate: Gate,
    pub cluster: MemoryCluster,
    pub store: S,
    /// The namespace that is checked.
    pub ns: String,
    /// All namespaces that are filled: one or two.
    pub namespaces: Vec<String>,
    pub topics: Topics,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    members: Vec<Member>,
    /// Number of crashes, stops and rebalances.
    pub disturbances: u64,
    losing: Option<MemoryStore>,
    /// Contents of the store some steps ago.
    before: Option<Contents>,
}

/// Runs one history until it is at rest and checks the facts; `Err` says which one is wrong.
pub fn run<S: Store>(seed: u64, doubles: Doubles<S>) -> Result<(), String> {
    run_erasing(seed, doubles, None)
}

/// The same, with an erase of the first user at this step.
pub fn run_erasing<S: Store>(
    seed: u64,
    doubles: Doubles<S>,
    erase_at: Option<usize>,
) -> Result<(), String> {
    let mut history = History::new(seed, doubles);
    let records = history.rng.random_range(10..40);
    let mut produced = 0;
    let mut step = 0;
    while produced < records || step < 400 {
        step += 1;
        if produced < records && history.rng.random_bool(0.15) {
            history.produce();
            produced += 1;
        }
        if erase_at == Some(step) {
            history.erase();
        }
        history.disturb(step);
        history.lose();
        history.advance(step)?;
    }
    history.rest(step)?;
    for ns in history.namespaces.clone() {
        history.ns = ns;
        check::all(&history)?;
    }
    Ok(())
}

impl<S: Store> History<S> {
    fn new(seed: u64, doubles: Doubles<S>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let cluster = MemoryCluster::flawed(seed, doubles.log);
        cluster.set_batch_max(rng.random_range(1..10));
        CLOCK.set(START);
        cluster.set_time(clock());
        let topics = Topics::default();
        for topic in topics.all() {
            cluster.create_topic(&topic, rng.random_range(1..4));
        }
        // Every fourth history fills a second namespace, as a backfill does: an erase concerns both.
        let beside = (seed % 4 == 3).then(|| format!("{}-b", doubles.ns));
        let namespaces = std::iter::once(doubles.ns.clone()).chain(beside).collect();
        let mut history = Self {
            rng,
            namespaces,
            gate: Gate::new(seed),
            cluster,
            store: doubles.store,
            ns: doubles.ns,
            topics,
            snapshot: Arc::new(ArcSwap::from_pointee(check::snapshot())),
            members: Vec::new(),
            disturbances: 0,
            losing: doubles.losing,
            before: None,
        };
        // As ingest does when it starts: of a namespace that no store knows, no update is deleted.
        for ns in &history.namespaces {
            check::now(history.store.enroll(ns, Some("{}"))).expect("the store answers");
        }
        let mut parts = vec![
            Part::Ingest(0),
            Part::Generate,
            Part::Ingest(0),
            Part::Generate,
        ];
        parts.extend(vec![Part::Ingest(1); history.namespaces.len() - 1]);
        for part in parts {
            let member = history.start(part);
            history.members.push(member);
        }
        history
    }

    /// All consumer groups.
    pub fn groups(&self) -> Vec<String> {
        let ingest = (0..self.namespaces.len()).map(group);
        ingest.chain(["generate".to_owned()]).collect()
    }

    fn start(&mut self, part: Part) -> Member {
        let running: Running = match part {
            Part::Generate => self.start_generate(),
            Part::Ingest(index) => self.start_ingest(index),
        };
        Member {
            part,
            running,
            asleep_until: 0,
        }
    }

    fn gated<'a>(
        &self,
        group: &str,
        topics: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> (GatedLog<MemoryLog>, Gated<S>) {
        let topics: Vec<&str> = topics.into_iter().map(|topic| &**topic).collect();
        let log = GatedLog {
            inner: self.cluster.join(group, &topics),
            gate: self.gate.clone(),
        };
        (
            log,
            Gated {
                inner: self.store.clone(),
                gate: self.gate.clone(),
            },
        )
    }

    fn start_ingest(&mut self, index: usize) -> Running {
        let (log, store) = self.gated(
            &group(index),
            [&self.topics.user_events, &self.topics.profile_changes],
        );
        let settings = ingest::IngestSettings {
            ns: self.namespaces[index].clone(),
            group: group(index),
            topics: self.topics.clone(),
            limits: Default::default(),
            policy: check::policy(),
            ignore: Default::default(),
            window: WINDOW,
            units_max: 20,
            clock,
            // Fewer than the users, so that states are evicted and loaded again.
            cache_users: NonZeroUsize::new(2).expect("two"),
            triggers: true,
            hits_sample: 1.0,
            now: nearshore::members::ingest::Now::Unchecked,
            complete_since: std::collections::BTreeMap::new(),
        };
        Box::pin(ingest_member(
            Ingest::new(log, store, self.snapshot.clone(), settings),
            self.gate.clone(),
        ))
    }

    fn start_generate(&mut self) -> Running {
        let lanes = self.topics.lanes();
        let (log, store) = self.gated("generate", &lanes);
        let settings = generate::GenerateSettings {
            group: "nearshore-generate".into(),
            topics: self.topics.clone(),
            lanes: nearshore_core::queue::lanes::Policy {
                batch_max: 3,
                // So long that no request gets the fallback: each must get a list by the model.
                max_wait: Duration::from_secs(30 * 86_400),
                requeue_after: Duration::from_secs(if self.rng.random_bool(0.5) { 1 } else { 60 }),
                ..Default::default()
            },
            arm_seed: "sim".into(),
            selection: Default::default(),
            needs: Default::default(),
            texts: None,
            audits_kept: 1.0,
            candidates: 0.5,
            clock,
        };
        let (arm, template) = check::arm();
        let engine = Slow {
            table: Arc::new(Mutex::new(Table::default())),
            gate: self.gate.clone(),
        };
        let loaded = LoadedArm {
            ranking: Ranking {
                weights: Weights::by_hand(&arm.weights).expect("weights"),
                ..Default::default()
            }
            .into(),
            renewed: Default::default(),
            new_texts: None,
            arm,
            template,
            info: Default::default(),
            tokenizer: "words".into(),
            count: Arc::new(str::len),
            engine,
        };
        let member = Generate::new(log, store, self.snapshot.clone(), vec![loaded], settings);
        // The wall clock is up to an hour off, either way.
        let skew = self.rng.random_range(-3_600_000..=3_600_000);
        Box::pin(generate_member(member, self.gate.clone(), skew))
    }

    /// Id of a user: tombstones are shared by all namespaces, so each history has its own users.
    pub fn user(&self, nth: usize) -> String {
        format!("{}-u{nth}", self.namespaces[0])
    }

    /// Erases the first user, as of now.
    fn erase(&mut self) {
        self.cluster.produce(Outgoing {
            topic: self.topics.profile_changes.clone(),
            key: Some(Bytes::from(self.user(0))),
            value: None,
            headers: Vec::new(),
            time: Some(clock()),
        });
    }

    /// One random record of one random user.
    fn produce(&mut self) {
        let nth = self.rng.random_range(0..USERS);
        let user = self.user(nth);
        let sku = format!("s{}", self.rng.random_range(0..SKUS));
        let kind = ["purchase", "view", "cart"][self.rng.random_range(0..3)];
        let (topic, value) = match self.rng.random_range(0..20) {
            0 => (&self.topics.profile_changes, None),
            1..=3 => {
                // Never the same twice: an unchanged profile requests no list.
                let age = self.rng.random_range(10..30);
                (
                    &self.topics.profile_changes,
                    Some(json!({ "age": age, "visit": clock().0 }).to_string()),
                )
            }
            4 => (&self.topics.user_events, Some("{".to_string())),
            _ => {
                let event = json!({ "type": kind, "sku": sku, "qty": 2 });
                (&self.topics.user_events, Some(event.to_string()))
            }
        };
        // CreateTime: timestamps are not in the order of the log.
        let time = clock().0 + self.rng.random_range(-20_000..1_000);
        self.cluster.produce(Outgoing {
            topic: topic.clone(),
            key: Some(Bytes::from(user)),
            value: value.map(Bytes::from),
            headers: Vec::new(),
            time: Some(Timestamp(time)),
        });
    }

    /// Sometimes: a crash, a stop, a rebalance, or a delayed write.
    fn disturb(&mut self, step: usize) {
        match self.rng.random_range(0..120) {
            0 => {
                let at = self.rng.random_range(0..self.members.len());
                let part = self.members[at].part;
                // Dropping it between two polls is a crash at this step.
                self.members[at] = self.start(part);
                self.disturbances += 1;
            }
            1 => {
                let at = self.rng.random_range(0..self.members.len());
                self.members[at].asleep_until = step + self.rng.random_range(10..120);
                let group = match self.members[at].part {
                    Part::Generate => "generate".to_owned(),
                    Part::Ingest(index) => group(index),
                };
                self.cluster.rebalance(&group);
                self.disturbances += 1;
            }
            2 => {
                self.cluster.rebalance(if self.rng.random_bool(0.5) {
                    "generate"
                } else {
                    "ingest"
                });
                self.disturbances += 1;
            }
            3..=8 => {
                if let Some(late) = self.gate.late() {
                    calls::execute(late);
                }
            }
            _ => {}
        }
    }

    /// Sometimes the store, or one primary, returns to what it contained some steps ago.
    fn lose(&mut self) {
        let Some(store) = self.losing.clone() else {
            return;
        };
        match self.rng.random_range(0..100) {
            0..4 => self.before = Some(store.snapshot()),
            4 => {
                let Some(before) = &self.before else { return };
                store.fall_back(before, Lost::of(self.rng.random_range(0..3)));
                self.gate.journal(|it| it.losses.push(it.published.len()));
            }
            _ => {}
        }
    }

    /// Advances the clock and polls one member, chosen by the seed.
    fn advance(&mut self, step: usize) -> Result<(), String> {
        CLOCK.set(CLOCK.get() + self.rng.random_range(0..500));
        self.cluster.set_time(clock());
        let at = self.rng.random_range(0..self.members.len());
        let member = &mut self.members[at];
        if member.asleep_until > step {
            return Ok(());
        }
        let called = Arc::new(Called::default());
        let waker = Waker::from(called.clone());
        let polled = member
            .running
            .as_mut()
            .poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            return Err("a member ended by itself".into());
        }
        called.answer();
        Ok(())
    }

    /// Ends all faults, executes delayed writes, and polls until nothing is left to do.
    fn rest(&mut self, mut step: usize) -> Result<(), String> {
        while let Some(late) = self.gate.late() {
            calls::execute(late);
        }
        self.gate.calm();
        let groups = self.groups();
        for group in &groups {
            self.cluster.rebalance(group);
        }
        let mut quiet = 0;
        let end = step + STEPS_MAX;
        while quiet < 600 {
            step += 1;
            if step > end {
                let status = |group: &String| {
                    let (lag, committed) = (self.cluster.lag(group), self.cluster.committed(group));
                    (group.clone(), lag, committed)
                };
                let lags: Vec<_> = groups.iter().map(status).collect();
                return Err(format!("no rest after {STEPS_MAX} steps: {lags:?}"));
            }
            // Stopped members wake, and all due times pass.
            for member in &mut self.members {
                member.asleep_until = 0;
            }
            CLOCK.set(CLOCK.get() + 2_000);
            self.advance(step)?;
            let busy = groups.iter().any(|group| self.cluster.lag(group) > 0);
            let executing = calls::delayed_are_executing();
            quiet = if busy || executing { 0 } else { quiet + 1 };
        }
        Ok(())
    }
}

/// Consumer group of the namespace with this index.
fn group(index: usize) -> String {
    if index == 0 {
        "ingest".into()
    } else {
        format!("ingest-{index}")
    }
}

async fn ingest_member<L: Log, S: Store>(mut member: Ingest<L, S>, gate: Gate) {
    loop {
        let delivery = match futures::FutureExt::now_or_never(member.log().next()) {
            Some(Ok(delivery)) => delivery,
            Some(Err(_)) => return,
            None => {
                // The run loop commits by a timer, also when nothing comes in.
                if gate.coin(0.1) {
                    commit(&mut member).await;
                }
                Yield::default().await;
                continue;
            }
        };
        match delivery {
            Delivery::Assigned(partitions) => member.assigned(&partitions),
            Delivery::Revoked { partitions, lost } => {
                if !lost {
                    commit(&mut member).await;
                }
                member.revoked(&partitions);
            }
            Delivery::Batch(batch) => loop {
                match member.handle(std::slice::from_ref(&batch)).await {
                    Ok(tally) => {
                        assert_eq!(
                            tally.records(),
                            batch.records.len() as u64,
                            "a record is in no count"
                        );
                        break;
                    }
                    Err(error) if error.rewinds() => {
                        while member.rewind().await.is_err() {}
                        break;
                    }
                    Err(error) if error.retry() => Yield::default().await,
                    Err(error) => panic!("{error}"),
                }
            },
        }
        if gate.coin(0.5) {
            commit(&mut member).await;
        }
    }
}

/// Commits and then checks the store, as the member loop does on its timer.
async fn commit<L: Log, S: Store>(member: &mut Ingest<L, S>) {
    for outcome in [member.commit().await, member.check_store().await] {
        if outcome.is_err_and(|error| error.rewinds()) {
            while member.rewind().await.is_err() {}
        }
    }
}

async fn generate_member<L: Log, S: Store, A: Scorer>(
    mut member: Generate<L, S, A>,
    gate: Gate,
    skew: i64,
) {
    loop {
        let now = Timestamp(clock().0 + skew);
        while let Some(delivery) = futures::FutureExt::now_or_never(member.log().next()) {
            match delivery {
                Ok(Delivery::Batch(batch)) => while member.receive(&batch, now).await.is_err() {},
                Ok(Delivery::Revoked { partitions, .. }) => member.revoked(&partitions),
                Ok(Delivery::Assigned(partitions)) => member.assigned(&partitions),
                Err(_) => return,
            }
        }
        let mut outcomes = vec![member.turn(now).await.map(drop)];
        if gate.coin(0.5) {
            outcomes.push(member.commit().await);
            outcomes.push(member.check_store().await);
        }
        for error in outcomes.into_iter().filter_map(Result::err) {
            if error.rewinds() {
                while member.rewind().await.is_err() {}
            } else {
                assert!(error.retry(), "{error}");
            }
        }
        Yield::default().await;
    }
}

/// A table of scores that answers after some steps.
struct Slow {
    table: Arc<Mutex<Table>>,
    gate: Gate,
}

impl Scorer for Slow {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.table.lock().expect("one thread").set_names(names)
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        for _ in 0..5 {
            if self.gate.coin(0.3) && !self.gate.is_calm() {
                Yield::default().await;
            }
        }
        self.table.lock().expect("one thread").score(&requests)
    }
}

/// Least time between two requests of a user.
pub fn quiet_period() -> Duration {
    Duration::from_secs(5)
}
