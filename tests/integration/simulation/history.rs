//! One seeded history: members that are polled by hand, in an order that the seed chooses.

use std::cell::Cell;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use nearshore::members::generate::{self, Generate, Loaded, Scorer};
use nearshore::members::ingest::{self, Ingest};
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

use super::check;
use super::gate::{Gate, Gated, GatedLog, Yield};

/// Users of a history; few, so that records of one user meet.
pub const USERS: usize = 4;
/// SKUs of its shop: two per PU.
pub const SKUS: usize = 12;
/// Window of the state; small, so that it overflows.
pub const WINDOW: usize = 6;
/// The first record's time.
const START: i64 = 1_750_000_000_000;
/// Steps of a run after which it must have come to rest.
const STEPS_MAX: usize = 60_000;

thread_local! {
    /// Late calls on their way to a real store.
    static LANDING: std::cell::RefCell<Vec<tokio::task::JoinHandle<()>>> = const { std::cell::RefCell::new(Vec::new()) };
    /// The run's clock; each member sees it moved by its own skew.
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
    /// A handle to the same store, where it is one that may lose its last writes.
    pub losing: Option<MemoryStore>,
}

type Running = Pin<Box<dyn Future<Output = ()>>>;

/// What a member does.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// Fills the namespace of this place.
    Ingest(usize),
    Generate,
}

struct Member {
    part: Part,
    running: Running,
    /// Not polled before this step: a process that was stopped and wakes up as a zombie.
    asleep_until: usize,
}

pub struct History<S> {
    pub rng: ChaCha8Rng,
    pub gate: Gate,
    pub cluster: MemoryCluster,
    pub store: S,
    /// The namespace that is looked at.
    pub ns: String,
    /// All that are filled: one, or two beside each other.
    pub spaces: Vec<String>,
    pub topics: Topics,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    members: Vec<Member>,
    /// Crashes, zombies and rebalances.
    pub upheavals: u64,
    losing: Option<MemoryStore>,
    /// What the store held a while ago.
    before: Option<Contents>,
}

/// Runs one history to its rest and checks the facts; the complaint if one is not as it must be.
pub fn run<S: Store>(seed: u64, doubles: Doubles<S>) -> Result<(), String> {
    run_erasing(seed, doubles, None)
}

/// The same, and at that step the first user is erased.
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
        history.upset(step);
        history.lose();
        history.advance(step)?;
    }
    history.rest(step)?;
    for ns in history.spaces.clone() {
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
        // Every fourth history fills a second namespace, as a backfill does: erases are for both.
        let beside = (seed % 4 == 3).then(|| format!("{}-b", doubles.ns));
        let spaces = std::iter::once(doubles.ns.clone()).chain(beside).collect();
        let mut history = Self {
            rng,
            spaces,
            gate: Gate::new(seed),
            cluster,
            store: doubles.store,
            ns: doubles.ns,
            topics,
            snapshot: Arc::new(ArcSwap::from_pointee(check::snapshot())),
            members: Vec::new(),
            upheavals: 0,
            losing: doubles.losing,
            before: None,
        };
        let mut parts = vec![
            Part::Ingest(0),
            Part::Generate,
            Part::Ingest(0),
            Part::Generate,
        ];
        parts.extend(vec![Part::Ingest(1); history.spaces.len() - 1]);
        for part in parts {
            let member = history.start(part);
            history.members.push(member);
        }
        history
    }

    /// Consumer groups, by which everything is read.
    pub fn groups(&self) -> Vec<String> {
        let ingest = (0..self.spaces.len()).map(group);
        ingest.chain(["generate".to_owned()]).collect()
    }

    fn start(&mut self, part: Part) -> Member {
        let running: Running = match part {
            Part::Generate => self.start_generate(),
            Part::Ingest(place) => self.start_ingest(place),
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

    fn start_ingest(&mut self, place: usize) -> Running {
        let (log, store) = self.gated(
            &group(place),
            [&self.topics.user_events, &self.topics.profile_changes],
        );
        let settings = ingest::IngestSettings {
            ns: self.spaces[place].clone(),
            group: group(place),
            topics: self.topics.clone(),
            limits: Default::default(),
            policy: check::policy(),
            window: WINDOW,
            // Smaller than the users, so that states are dropped and loaded again.
            cache_users: NonZeroUsize::new(2).expect("two"),
            triggers: true,
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
            topics: self.topics.clone(),
            lanes: nearshore_core::queue::lanes::Policy {
                batch_max: 3,
                // A request that waited too long gets the fallback and is counted; here each must get its list.
                max_wait: Duration::from_secs(30 * 86_400),
                requeue_after: Duration::from_secs(if self.rng.random_bool(0.5) { 1 } else { 60 }),
                ..Default::default()
            },
            arm_seed: "sim".into(),
            selection: nearshore_core::list::select::Policy {
                draws: 8,
                ..Default::default()
            },
            needs: Default::default(),
            clock,
        };
        let (arm, template) = check::arm();
        let engine = Slow {
            table: Arc::new(Mutex::new(Table::default())),
            gate: self.gate.clone(),
        };
        let loaded = Loaded {
            arm,
            template,
            info: Default::default(),
            calibration: None,
            count: Arc::new(str::len),
            engine,
        };
        let member = Generate::new(log, store, self.snapshot.clone(), vec![loaded], settings);
        // A wall clock up to an hour off, either way.
        let skew = self.rng.random_range(-3_600_000..=3_600_000);
        Box::pin(generate_member(member, self.gate.clone(), skew))
    }

    /// A user's id: tombstones stand outside the namespaces, so each history has users of its own.
    pub fn user(&self, nth: usize) -> String {
        format!("{}-u{nth}", self.spaces[0])
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
                // Never the same twice: a profile sent again unchanged asks for nothing.
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
        // CreateTime: not in the order of the log.
        let time = clock().0 + self.rng.random_range(-20_000..1_000);
        self.cluster.produce(Outgoing {
            topic: topic.clone(),
            key: Some(Bytes::from(user)),
            value: value.map(Bytes::from),
            headers: Vec::new(),
            time: Some(Timestamp(time)),
        });
    }

    /// Now and then: a crash, a zombie, a rebalance, a late write.
    fn upset(&mut self, step: usize) {
        match self.rng.random_range(0..120) {
            0 => {
                let at = self.rng.random_range(0..self.members.len());
                let part = self.members[at].part;
                // Dropped between two polls: a crash at this step.
                self.members[at] = self.start(part);
                self.upheavals += 1;
            }
            1 => {
                let at = self.rng.random_range(0..self.members.len());
                self.members[at].asleep_until = step + self.rng.random_range(10..120);
                let group = match self.members[at].part {
                    Part::Generate => "generate".to_owned(),
                    Part::Ingest(place) => group(place),
                };
                self.cluster.rebalance(&group);
                self.upheavals += 1;
            }
            2 => {
                self.cluster.rebalance(if self.rng.random_bool(0.5) {
                    "generate"
                } else {
                    "ingest"
                });
                self.upheavals += 1;
            }
            3..=8 => {
                if let Some(late) = self.gate.late() {
                    to_the_end(late);
                }
            }
            _ => {}
        }
    }

    /// Now and then the store, or one primary, falls back to what it held a while ago.
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

    /// Moves time and polls one member, chosen by the seed.
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

    /// No more faults: late writes land, everybody works until nothing is left to do.
    fn rest(&mut self, mut step: usize) -> Result<(), String> {
        while let Some(late) = self.gate.late() {
            to_the_end(late);
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
                let stand = |group: &String| {
                    let (lag, committed) = (self.cluster.lag(group), self.cluster.committed(group));
                    (group.clone(), lag, committed)
                };
                let lags: Vec<_> = groups.iter().map(stand).collect();
                return Err(format!("no rest after {STEPS_MAX} steps: {lags:?}"));
            }
            // Whoever slept wakes up; dues pass.
            for member in &mut self.members {
                member.asleep_until = 0;
            }
            CLOCK.set(CLOCK.get() + 2_000);
            self.advance(step)?;
            let busy = groups.iter().any(|group| self.cluster.lag(group) > 0);
            let landing = LANDING.with_borrow_mut(|landing| {
                landing.retain(|call| !call.is_finished());
                !landing.is_empty()
            });
            quiet = if busy || landing { 0 } else { quiet + 1 };
        }
        Ok(())
    }
}

/// The consumer group of a namespace's place.
fn group(place: usize) -> String {
    if place == 0 {
        "ingest".into()
    } else {
        format!("ingest-{place}")
    }
}

/// Tells a yield, which wakes within its own poll, from a call that waits for a real store.
#[derive(Default)]
struct Called {
    woken: Mutex<bool>,
    told: Condvar,
}

/// How long a step waits for a real answer: more only for one that hangs on a member that is not polled. Steps
/// are counted and move the clock, so a slow machine must not turn its time into ours.
const ANSWER_MAX: Duration = Duration::from_millis(10);

impl Called {
    fn answer(&self) {
        let woken = self.woken.lock().expect("nobody panics with it");
        drop(
            self.told
                .wait_timeout_while(woken, ANSWER_MAX, |woken| !*woken),
        );
    }
}

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().expect("nobody panics with it") = true;
        self.told.notify_one();
    }
}

/// Lets a call that nobody waits for happen now. On a real store it may have to wait for a connection that a
/// member holds who is not being polled, so there it lands by itself, soon.
fn to_the_end(mut call: Pin<Box<dyn Future<Output = ()> + Send>>) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        LANDING.with_borrow_mut(|landing| landing.push(runtime.spawn(call)));
        return;
    }
    let mut context = Context::from_waker(Waker::noop());
    while call.as_mut().poll(&mut context).is_pending() {
        std::thread::yield_now();
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
                        let told = tally.folded + tally.duplicate + tally.dead;
                        assert_eq!(
                            told,
                            batch.records.len() as u64,
                            "a record without an account"
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

/// As the run loop does it: by a timer, and with it a look at the store.
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

/// The table double, after a while.
struct Slow {
    table: Arc<Mutex<Table>>,
    gate: Gate,
}

impl Scorer for Slow {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.table.lock().expect("one thread").set_names(names)
    }

    async fn generate(&self, asks: Vec<ScoreRequest>) -> Result<Vec<ScoreResponse>, engine::Error> {
        for _ in 0..5 {
            if self.gate.coin(0.3) && !self.gate.is_calm() {
                Yield::default().await;
            }
        }
        self.table.lock().expect("one thread").score(&asks)
    }
}

/// What a run must not exceed, for one user: see [`check::all`].
pub fn quiet_period() -> Duration {
    Duration::from_secs(5)
}
