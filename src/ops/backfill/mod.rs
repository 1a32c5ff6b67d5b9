//! Fills a namespace from the log in stages: make a plan, place the group, fold profiles, fold events, sweep.
//!
//! Invariant: each stage may be interrupted anywhere and started again, and several processes may fold at once; the
//! process that moves the plan to the sweep does the sweep. Live traffic goes first: while a generate process says that
//! live is behind its objective, a backfill folds nothing.

mod estimate;
mod fold;
mod plan;

pub use estimate::{Estimate, EstimateInput, Estimated, estimate};
pub use fold::{Group, KafkaGroup, OffsetRanges, Watch, catch_up};
pub(crate) use plan::place;
pub use plan::{BackfillOrder, PlanStore, Progress};

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::map::open_tail;
use crate::members::clock::wall_clock;
use crate::members::ingest::{self, Ingest, Now, Tally};
use crate::members::loops::wait_ready;
use crate::members::snapshot::SnapshotLoader;
use crate::ops::sweep::{ListRequester, Purpose, demand_read_delay};
use crate::run::{Roles, loader_settings, stamped_by_broker};
use nearshore_core::map::ReadAs;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Namespaces;
use nearshore_core::queue::replay::{Goal, Plan, Stage};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_kafka::{KafkaLog, Producer};
use nearshore_redis::RedisStore;

/// How often progress is reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often totals are saved in the plan.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// How often Redis is asked whether live is behind.
const LIVE_CHECK_EVERY: Duration = Duration::from_secs(1);
/// Seconds over which the rate is smoothed.
const RATE_WINDOW: f64 = 10.0;

/// How a backfill ended.
#[derive(Clone, Debug, PartialEq)]
pub struct BackfillOutcome {
    /// The plan at the end of this process.
    pub plan: Plan,
    /// Whether the plan was done before, so that this process had nothing to do.
    pub was_done: bool,
    /// Whether another process does the sweep.
    pub left_to_another: bool,
    /// False if the process was asked to stop; the next start resumes.
    pub finished: bool,
}

/// Fills a namespace from the log, or resumes filling it; calls `report` about once a second.
pub async fn backfill(
    config: Arc<Config>,
    order: &BackfillOrder,
    cancel: CancellationToken,
    mut report: impl FnMut(&Progress) + Send,
) -> anyhow::Result<BackfillOutcome> {
    let store = RedisStore::new(config.redis.clone()).context("redis.url")?;
    store
        .ready()
        .await
        .context("redis; see `nearshore check`")?;
    store.check_layout().await.context("redis")?;
    let (mut plans, new) = PlanStore::open(&config, store.clone(), order).await?;
    let mut outcome = BackfillOutcome {
        plan: plans.plan().clone(),
        was_done: !new && plans.plan().stage == Stage::Done,
        left_to_another: false,
        finished: true,
    };
    if outcome.was_done {
        return Ok(outcome);
    }
    // A process that starts at the sweep takes it over: the process that began it has ended.
    let mut sweeps = plans.plan().stage == Stage::Sweep;
    let mut catalogue = CatalogueTask::start(&config, &store, &cancel).await?;
    if plans.plan().stage == Stage::Placing {
        place(&config, &plans.plan().starts).await?;
        plans.enter(Stage::Profiles).await?;
    }
    let topics = &config.topics;
    for (stage, next, read_as) in [
        (Stage::Profiles, Stage::Events, ReadAs::Profiles),
        (Stage::Events, Stage::Sweep, ReadAs::Events),
    ] {
        if plans.plan().stage > stage {
            continue;
        }
        for topic in topics.read_as(read_as) {
            let mut meter = Meter::new(&config, &store, (stage, &topic), &mut plans, &mut report);
            let folded = fold(
                &config,
                &store,
                &catalogue.snapshot,
                &topic,
                &mut meter,
                &cancel,
            )
            .await;
            meter.save().await?;
            outcome.finished = folded?;
            if !outcome.finished {
                outcome.plan = plans.plan().clone();
                return Ok(outcome);
            }
        }
        let entered = plans.enter(next).await?;
        sweeps |= entered && next == Stage::Sweep;
    }
    catalogue.close().await;
    outcome.left_to_another = !sweeps && plans.plan().stage == Stage::Sweep;
    if sweeps {
        outcome.finished = sweep(&config, &store, &mut plans, &mut report, &cancel).await?;
    }
    outcome.plan = plans.plan().clone();
    Ok(outcome)
}

/// The serving snapshot that folding needs, and the task that keeps it up to date.
struct CatalogueTask {
    snapshot: Arc<ArcSwap<Snapshot>>,
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl CatalogueTask {
    async fn start(
        config: &Config,
        store: &RedisStore,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let roles = Roles {
            ingest: true,
            generate: false,
        };
        let settings = crate::members::snapshot::LoaderSettings {
            // The backfill changes its counts with every record, and makes no list by them.
            demand_every: Duration::from_secs(3600),
            ..loader_settings(config, roles)
        };
        let (loader, mut ready) = SnapshotLoader::new(store.clone(), settings);
        let snapshot = loader.snapshot();
        let names = config.topics.read_as(ReadAs::Catalog);
        let tail = open_tail(&config.kafka, &names, &config.topics, config.limits()).await;
        let tail = tail.with_context(|| format!("topics {}", names.join(", ")))?;
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
    store: &RedisStore,
    snapshot: &Arc<ArcSwap<Snapshot>>,
    topic: &str,
    meter: &mut impl PlanWatch,
    cancel: &CancellationToken,
) -> anyhow::Result<bool> {
    let (plan, ns) = (meter.plan().clone(), config.namespace.clone());
    let mut goal = plan.goal(topic);
    let group = KafkaGroup::new(config, topic)?;
    let name = ingest::group(&config.kafka, &ns);
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
        ignore: config.events.ignored(),
        window: config.state.window,
        units_max: config.demand.units_max,
        clock: wall_clock,
        cache_users: NonZeroUsize::new(config.state.cache_users).unwrap_or(NonZeroUsize::MIN),
        triggers: false,
        hits_sample: 0.0,
        now,
        complete_since: plan.complete_since.clone(),
    };
    let mut member = Ingest::new(log, store.clone(), snapshot.clone(), settings);
    let reached = catch_up(&mut member, &mut goal, (&group, meter), cancel).await;
    let log = member.into_log();
    let lost = log.health().lost();
    log.close().await;
    meter.lost(lost).await?;
    reached
}

/// Requests the lists of all users whose list trails their state; false if it was cancelled before the end.
async fn sweep(
    config: &Config,
    store: &RedisStore,
    plans: &mut PlanStore<RedisStore>,
    report: &mut (impl FnMut(&Progress) + Send),
    cancel: &CancellationToken,
) -> anyhow::Result<bool> {
    let producer = Producer::new(&config.kafka)?;
    // Every worker reads the counts that were just folded before it makes the first of these lists. A list made with
    // earlier demand could not be reproduced.
    let delay = demand_read_delay(config.demand.every);
    let mut requester = ListRequester::new(store, &producer, config).delayed_by(delay);
    let mut reported_at = Instant::now();
    loop {
        if cancel.is_cancelled() {
            return Ok(false);
        }
        let cursor = plans.plan().cursor.clone();
        let (counts, next) = match requester.page(&Purpose::Sweep, cursor.clone()).await {
            Ok(page) => page,
            // The primaries changed during the scan. The requester remembers whose lists it has requested.
            Err(error) if cursor.is_some() => {
                tracing::warn!(%error, "sweep: reading a page failed; starting over from the first page");
                plans.change(|plan| plan.cursor = None).await?;
                tokio::time::sleep(LIVE_CHECK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let stage = if next.is_some() {
            Stage::Sweep
        } else {
            Stage::Done
        };
        plans
            .change(|plan| {
                plan.totals.users += counts.seen;
                plan.totals.requested += counts.requested;
                plan.cursor = next.clone();
                plan.stage = stage;
            })
            .await?;
        if reported_at.elapsed() >= REPORT_EVERY || stage == Stage::Done {
            reported_at = Instant::now();
            report(&progress_of_sweep(plans.plan()));
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
        time_left: None,
        users: plan.totals.users,
        lists: plan.totals.requested,
        waiting: false,
    }
}

/// A [`Watch`] that knows the plan.
trait PlanWatch: Watch {
    fn plan(&self) -> &Plan;
    /// Notes that the broker deleted this many records before they were read.
    async fn lost(&mut self, records: u64) -> anyhow::Result<()>;
}

/// Counts what was folded, reports and saves it, and slows folding down.
struct Meter<'a, T> {
    store: RedisStore,
    /// Most records per second; 0 = no limit.
    limit: f64,
    stage: Stage,
    plans: &'a mut PlanStore<RedisStore>,
    report: &'a mut T,
    started: Instant,
    /// Records of this process, for the limit.
    records: u64,
    /// Counts that are not yet saved in the plan.
    unsaved: Tally,
    /// Milliseconds of folding that are not yet saved in the plan.
    unsaved_ms: u64,
    /// Start of the fold under way; waiting is not part of it.
    fold_start: Instant,
    /// Records of this stage when this process began.
    all: u64,
    /// Records per second, smoothed.
    rate: f64,
    /// When the rate was last updated, and how many records were left then.
    rate_sample: (Instant, u64),
    reported_at: Instant,
    saved_at: Instant,
    live_checked_at: Option<Instant>,
    /// Whether it waits for live.
    waiting: bool,
}

impl<'a, T: FnMut(&Progress) + Send> Meter<'a, T> {
    fn new(
        config: &Config,
        store: &RedisStore,
        (stage, topic): (Stage, &str),
        plans: &'a mut PlanStore<RedisStore>,
        report: &'a mut T,
    ) -> Self {
        let now = Instant::now();
        let all = plans.plan().goal(topic).left();
        Self {
            store: store.clone(),
            limit: config.backfill.records_per_second as f64,
            stage,
            plans,
            report,
            started: now,
            records: 0,
            unsaved: Tally::default(),
            unsaved_ms: 0,
            fold_start: now,
            all,
            rate: 0.0,
            rate_sample: (now, all),
            reported_at: now,
            saved_at: now,
            live_checked_at: None,
            waiting: false,
        }
    }

    /// Adds the unsaved counts to the plan.
    async fn save(&mut self) -> anyhow::Result<()> {
        let (unsaved, ms) = (
            std::mem::take(&mut self.unsaved),
            std::mem::take(&mut self.unsaved_ms),
        );
        self.saved_at = Instant::now();
        let add = |plan: &mut Plan| {
            plan.totals.folded += unsaved.folded;
            plan.totals.skipped += unsaved.duplicate;
            plan.totals.dead += unsaved.dead;
            plan.totals.ignored += unsaved.ignored;
            plan.totals.fold_ms += ms;
        };
        self.plans.change(add).await
    }

    /// Waits while live is behind its objective, then as long as the limit of records per second requires.
    async fn throttle(&mut self, goal: &Goal) -> anyhow::Result<()> {
        let due = self
            .live_checked_at
            .is_none_or(|checked| checked.elapsed() >= LIVE_CHECK_EVERY);
        if due {
            self.live_checked_at = Some(Instant::now());
            while self.store.live_behind().await? {
                if !std::mem::replace(&mut self.waiting, true) {
                    tracing::warn!(
                        "live is behind its objective; the backfill waits until it is within it again"
                    );
                    self.report(goal);
                }
                tokio::time::sleep(LIVE_CHECK_EVERY).await;
            }
            if std::mem::take(&mut self.waiting) {
                tracing::info!("live is within its objective; the backfill continues");
            }
        }
        if self.limit > 0.0 {
            let due = Duration::from_secs_f64(self.records as f64 / self.limit);
            tokio::time::sleep(due.saturating_sub(self.started.elapsed())).await;
        }
        Ok(())
    }

    fn report(&mut self, goal: &Goal) {
        let left = goal.left();
        let (since, left_before) = self.rate_sample;
        let seconds = since.elapsed().as_secs_f64();
        let rate_now = left_before.saturating_sub(left) as f64 / seconds.max(0.001);
        let weight = (seconds / RATE_WINDOW).min(1.0);
        self.rate = if self.rate == 0.0 {
            rate_now
        } else {
            self.rate * (1.0 - weight) + rate_now * weight
        };
        self.rate_sample = (Instant::now(), left);
        self.reported_at = Instant::now();
        let seconds_left = (self.rate > 0.0).then(|| left as f64 / self.rate);
        let totals = self.plans.plan().totals;
        (self.report)(&Progress {
            stage: self.stage,
            done: self.all.saturating_sub(left),
            all: self.all,
            rate: self.rate,
            time_left: seconds_left.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            users: totals.users,
            lists: totals.requested,
            waiting: self.waiting,
        });
    }
}

impl<T: FnMut(&Progress) + Send> PlanWatch for Meter<'_, T> {
    fn plan(&self) -> &Plan {
        self.plans.plan()
    }

    async fn lost(&mut self, records: u64) -> anyhow::Result<()> {
        match records {
            0 => Ok(()),
            _ => self.plans.change(|plan| plan.totals.lost += records).await,
        }
    }
}

impl<T: FnMut(&Progress) + Send> Watch for Meter<'_, T> {
    async fn folded(&mut self, goal: &Goal, tally: Tally) -> anyhow::Result<()> {
        self.unsaved += tally;
        self.records += tally.records();
        self.unsaved_ms += u64::try_from(self.fold_start.elapsed().as_millis()).unwrap_or(0);
        if self.reported_at.elapsed() >= REPORT_EVERY {
            self.report(goal);
        }
        if self.saved_at.elapsed() >= SAVE_EVERY {
            self.save().await?;
        }
        self.throttle(goal).await?;
        self.fold_start = Instant::now();
        Ok(())
    }
}
