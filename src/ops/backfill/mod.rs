//! A replay as a process: plan, place, fold profiles, fold events, sweep.
//!
//! Invariant: each stage may be broken off anywhere and entered again, and several processes may fold side by
//! side; the one that moves the plan to the sweep does the sweep. It gives way to live: while a generate
//! process says that live is behind its objective, nothing is folded.

mod estimate;
mod fold;
mod plan;

pub use estimate::{Estimate, Figure, Given, estimate};
pub use fold::{Group, KafkaGroup, Stretches, Watch, catch_up};
pub(crate) use plan::place;
pub use plan::{Book, Order, Progress};

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::members::ingest::{self, Ingest, Now, Tally};
use crate::members::loops::wait_ready;
use crate::members::snapshot::SnapshotLoader;
use crate::ops::sweep::{Asker, Why, put_off};
use crate::run::{Roles, loader_settings, stamped_by_broker};
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Namespaces;
use nearshore_core::queue::replay::{Goal, Plan, Stage};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_kafka::{KafkaLog, Producer};
use nearshore_redis::RedisStore;

/// How often progress is told, and written down.
const TELL_EVERY: Duration = Duration::from_secs(1);
const WRITE_EVERY: Duration = Duration::from_secs(5);
/// How often it is asked whether live is behind.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Over which time the rate is reckoned.
const RATE_OVER: f64 = 10.0;

/// How a replay ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The plan as it stands.
    pub plan: Plan,
    /// Whether it was done before, and nothing was to be done.
    pub was_done: bool,
    /// Whether another process does the sweep.
    pub left_to_another: bool,
    /// False: it was asked to stop, and goes on when started again.
    pub finished: bool,
}

/// Fills a namespace from the log, or goes on filling it; `tell` is told how far it is about once a second.
pub async fn backfill(
    config: Arc<Config>,
    order: &Order,
    (cancel, mut tell): (CancellationToken, impl FnMut(&Progress) + Send),
) -> anyhow::Result<Outcome> {
    let store = RedisStore::new(config.redis.clone()).context("redis.url")?;
    store
        .ready()
        .await
        .context("redis; see `nearshore check`")?;
    store.check_layout().await.context("redis")?;
    let (mut book, new) = Book::open(&config, store.clone(), order).await?;
    let mut outcome = Outcome {
        plan: book.plan().clone(),
        was_done: !new && book.plan().stage == Stage::Done,
        left_to_another: false,
        finished: true,
    };
    if outcome.was_done {
        return Ok(outcome);
    }
    // A process that starts at the sweep takes it over: whoever began it is gone.
    let mut sweeps = book.plan().stage == Stage::Sweep;
    let mut snapshot = Shelf::open(&config, &store, &cancel).await?;
    if book.plan().stage == Stage::Placing {
        place(&config, &book.plan().starts).await?;
        book.enter(Stage::Profiles).await?;
    }
    let topics = [
        (
            Stage::Profiles,
            Stage::Events,
            config.topics.profile_changes.clone(),
        ),
        (
            Stage::Events,
            Stage::Sweep,
            config.topics.user_events.clone(),
        ),
    ];
    for (stage, next, topic) in topics {
        if book.plan().stage > stage {
            continue;
        }
        let mut meter = Meter::new(&config, &store, (stage, &mut book, &mut tell));
        let folded = fold(
            &config,
            (&store, &snapshot.snapshot),
            (&topic, &mut meter),
            &cancel,
        )
        .await;
        meter.write().await?;
        outcome.finished = folded?;
        if !outcome.finished {
            outcome.plan = book.plan().clone();
            return Ok(outcome);
        }
        let moved = book.enter(next).await?;
        sweeps |= moved && next == Stage::Sweep;
    }
    snapshot.close().await;
    outcome.left_to_another = !sweeps && book.plan().stage == Stage::Sweep;
    if sweeps {
        outcome.finished = sweep(&config, &store, (&mut book, &mut tell), &cancel).await?;
    }
    outcome.plan = book.plan().clone();
    Ok(outcome)
}

/// The shop that folding judges by: kept up to date beside it.
struct Shelf {
    snapshot: Arc<ArcSwap<Snapshot>>,
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Shelf {
    async fn open(
        config: &Config,
        store: &RedisStore,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let roles = Roles {
            ingest: true,
            generate: false,
        };
        let settings = crate::members::snapshot::LoaderSettings {
            // Its own counts move with every record; a first fallback may be a few hours old.
            demand_every: Duration::from_secs(3600),
            ..loader_settings(config, roles)
        };
        let (loader, mut ready) = SnapshotLoader::new(store.clone(), settings);
        let snapshot = loader.snapshot();
        let topic = &config.topics.catalog;
        let tail = nearshore_kafka::tail(&config.kafka, topic, &BTreeMap::new()).await;
        let tail = tail.with_context(|| format!("topic {topic}"))?;
        let mut tasks = JoinSet::new();
        let stop = cancel.child_token();
        let stopped = stop.clone();
        tasks.spawn(async move { loader.run(tail, stopped).await.context("catalogue") });
        wait_ready(&mut ready, cancel).await;
        Ok(Self {
            snapshot,
            tasks,
            stop,
        })
    }

    async fn close(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Folds one topic to the plan's end; false if it was cancelled before.
async fn fold(
    config: &Config,
    (store, snapshot): (&RedisStore, &Arc<ArcSwap<Snapshot>>),
    (topic, meter): (&str, &mut impl Meters),
    cancel: &CancellationToken,
) -> anyhow::Result<bool> {
    let (plan, ns) = (meter.plan().clone(), config.namespace.clone());
    let mut goal = plan.goal(topic);
    let others = KafkaGroup::new(config, topic)?;
    let name = ingest::group(&ns);
    let log = KafkaLog::join(&config.kafka, &name, &[topic]).context("kafka")?;
    let now = match stamped_by_broker(config).await {
        true => Now::Unchecked,
        false => Now::Fixed(plan.created_at),
    };
    let settings = ingest::IngestSettings {
        ns,
        group: name,
        topics: config.topics.clone(),
        limits: config.limits(),
        policy: config.trigger.clone(),
        window: config.state.window,
        cache_users: NonZeroUsize::new(config.state.cache_users).unwrap_or(NonZeroUsize::MIN),
        triggers: false,
        now,
        complete_since: plan.complete_since.clone(),
    };
    let mut member = Ingest::new(log, store.clone(), snapshot.clone(), settings);
    let reached = catch_up(&mut member, &mut goal, (&others, meter), cancel).await;
    let log = member.into_log();
    let lost = log.health().lost();
    log.close().await;
    meter.lost(lost).await?;
    reached
}

/// Asks for the lists of all users whose list trails; false if it was cancelled before the end.
async fn sweep(
    config: &Config,
    store: &RedisStore,
    (book, tell): (&mut Book<RedisStore>, &mut (impl FnMut(&Progress) + Send)),
    cancel: &CancellationToken,
) -> anyhow::Result<bool> {
    let producer = Producer::new(&config.kafka)?;
    // Every worker has read the counts that were just folded before it makes the first of these lists: demand of a
    // moment before would make lists that nobody can make again.
    let put_off = put_off(config.demand.every);
    let mut asker = Asker::new(store, &producer, config).put_off(put_off);
    let mut told = Instant::now();
    loop {
        if cancel.is_cancelled() {
            return Ok(false);
        }
        let cursor = book.plan().cursor.clone();
        let (asked, next) = match asker.page(&Why::Sweep, cursor.clone()).await {
            Ok(page) => page,
            // Primaries changed while it swept: whoever was asked for already is known here.
            Err(error) if cursor.is_some() => {
                tracing::warn!(%error, "the sweep starts over");
                book.change(|plan| plan.cursor = None).await?;
                tokio::time::sleep(ASK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let stage = if next.is_some() {
            Stage::Sweep
        } else {
            Stage::Done
        };
        book.change(|plan| {
            plan.totals.users += asked.seen;
            plan.totals.requested += asked.requested;
            plan.cursor = next.clone();
            plan.stage = stage;
        })
        .await?;
        if told.elapsed() >= TELL_EVERY || stage == Stage::Done {
            told = Instant::now();
            tell(&progress_of_sweep(book.plan()));
        }
        if stage == Stage::Done {
            return Ok(true);
        }
    }
}

fn progress_of_sweep(plan: &Plan) -> Progress {
    Progress {
        stage: plan.stage,
        done: plan.totals.users,
        all: 0,
        rate: 0.0,
        left: None,
        users: plan.totals.users,
        lists: plan.totals.requested,
        held: false,
    }
}

/// A watch that knows the plan.
trait Meters: Watch {
    fn plan(&self) -> &Plan;
    /// So many records were deleted before they were read.
    async fn lost(&mut self, records: u64) -> anyhow::Result<()>;
}

/// Counts, tells, writes down, and brakes.
struct Meter<'a, T> {
    store: RedisStore,
    /// Most records per second; 0 = no limit.
    limit: f64,
    stage: Stage,
    book: &'a mut Book<RedisStore>,
    tell: &'a mut T,
    started: Instant,
    /// Records of this process, for the limit.
    records: u64,
    /// Not written down yet.
    fresh: Tally,
    fold_ms: u64,
    /// Since when it folds, unbraked.
    going: Instant,
    all: u64,
    rate: f64,
    mark: (Instant, u64),
    told: Instant,
    written: Instant,
    asked: Option<Instant>,
    held: bool,
}

impl<'a, T: FnMut(&Progress) + Send> Meter<'a, T> {
    fn new(
        config: &Config,
        store: &RedisStore,
        (stage, book, tell): (Stage, &'a mut Book<RedisStore>, &'a mut T),
    ) -> Self {
        let topic = match stage {
            Stage::Profiles => &config.topics.profile_changes,
            Stage::Placing | Stage::Events | Stage::Sweep | Stage::Done => {
                &config.topics.user_events
            }
        };
        let now = Instant::now();
        let all = book.plan().goal(topic).left();
        Self {
            store: store.clone(),
            limit: config.backfill.records_per_second as f64,
            stage,
            book,
            tell,
            started: now,
            records: 0,
            fresh: Tally::default(),
            fold_ms: 0,
            going: now,
            all,
            rate: 0.0,
            mark: (now, all),
            told: now,
            written: now,
            asked: None,
            held: false,
        }
    }

    /// Writes down what was done since.
    async fn write(&mut self) -> anyhow::Result<()> {
        let (fresh, ms) = (
            std::mem::take(&mut self.fresh),
            std::mem::take(&mut self.fold_ms),
        );
        self.written = Instant::now();
        let add = |plan: &mut Plan| {
            plan.totals.folded += fresh.folded;
            plan.totals.skipped += fresh.duplicate;
            plan.totals.dead += fresh.dead;
            plan.totals.fold_ms += ms;
        };
        self.book.change(add).await
    }

    /// Waits as long as live is behind, and as the limit wants.
    async fn brake(&mut self, goal: &Goal) -> anyhow::Result<()> {
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
            self.asked = Some(Instant::now());
            while self.store.live_behind().await? {
                if !std::mem::replace(&mut self.held, true) {
                    tracing::warn!("live is behind its objective: the backfill waits");
                    self.tell(goal);
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            if std::mem::take(&mut self.held) {
                tracing::info!("live is within its objective: the backfill goes on");
            }
        }
        if self.limit > 0.0 {
            let due = Duration::from_secs_f64(self.records as f64 / self.limit);
            tokio::time::sleep(due.saturating_sub(self.started.elapsed())).await;
        }
        Ok(())
    }

    fn tell(&mut self, goal: &Goal) {
        let left = goal.left();
        let (since, before) = self.mark;
        let seconds = since.elapsed().as_secs_f64();
        let lately = before.saturating_sub(left) as f64 / seconds.max(0.001);
        let weight = (seconds / RATE_OVER).min(1.0);
        self.rate = if self.rate == 0.0 {
            lately
        } else {
            self.rate * (1.0 - weight) + lately * weight
        };
        self.mark = (Instant::now(), left);
        self.told = Instant::now();
        let time = (self.rate > 0.0).then(|| left as f64 / self.rate);
        let totals = self.book.plan().totals;
        (self.tell)(&Progress {
            stage: self.stage,
            done: self.all.saturating_sub(left),
            all: self.all,
            rate: self.rate,
            left: time.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            users: totals.users,
            lists: totals.requested,
            held: self.held,
        });
    }
}

impl<T: FnMut(&Progress) + Send> Meters for Meter<'_, T> {
    fn plan(&self) -> &Plan {
        self.book.plan()
    }

    async fn lost(&mut self, records: u64) -> anyhow::Result<()> {
        match records {
            0 => Ok(()),
            _ => self.book.change(|plan| plan.totals.lost += records).await,
        }
    }
}

impl<T: FnMut(&Progress) + Send> Watch for Meter<'_, T> {
    async fn folded(&mut self, goal: &Goal, tally: Tally) -> anyhow::Result<()> {
        self.fresh += tally;
        self.records += tally.folded + tally.duplicate + tally.dead;
        self.fold_ms += u64::try_from(self.going.elapsed().as_millis()).unwrap_or(0);
        if self.told.elapsed() >= TELL_EVERY {
            self.tell(goal);
        }
        if self.written.elapsed() >= WRITE_EVERY {
            self.write().await?;
        }
        self.brake(goal).await?;
        self.going = Instant::now();
        Ok(())
    }
}
