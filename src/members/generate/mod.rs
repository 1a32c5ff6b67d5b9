//! The generate role: log -> lanes -> take -> engine -> list -> store -> log.
//!
//! Invariant: a request's offset becomes committable only when its list is published and told, or
//! when it is covered, refused or failed for good. Between two calls nothing is in memory that the
//! lanes' topics could not bring back. Work in hand may be done twice; claims decide.

mod backpressure;
mod cost;
mod count;
mod in_flight;
mod make;
mod outbox;
mod publisher;
mod queue;
mod requeue;
mod scorer;
mod serve;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use count::count_running;
pub use in_flight::InFlight;
pub use scorer::Scorer;

pub use backpressure::BACKPRESSURE_EVERY;
pub use cost::UserCost;
use cost::UserCosts;
use publisher::Publisher;
use queue::{Decoded, Queue};

use crate::members::checkpoints::Checkpoints;
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::list::compose::{
    ClaimedUser, FinishedList, ListContext, PreparedRequest, prepare,
};
use nearshore_core::list::document::Model;
use nearshore_core::list::prompt::{Arm, Template};
use nearshore_core::names::scoring::{Calibration, Names, ScoreRequest};
use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::{Claimed, Peek, Store};
use nearshore_core::queue::claims::{Need, need};
use nearshore_core::queue::lanes::{Lanes, Policy, Work};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::shop::rules::Needs;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::record::{Partition, Timestamp};
use nearshore_core::user::trigger::Request;
use nearshore_engine::Info;

/// Consumer group of the three lanes, whatever the namespace.
pub const GROUP: &str = "nearshore-generate";

/// Time of the model in one turn, if it is quick enough for more than one batch of it.
const TURN_MAX: Duration = Duration::from_millis(500);

/// The name of its checkpoints.
const READER: &str = "nearshore:generate";

/// One arm, ready to be used.
pub struct Loaded<A> {
    /// Its configuration.
    pub arm: Arm,
    /// Its template.
    pub template: Template,
    /// Its model's name and revision.
    pub info: Info,
    /// Its calibration prompts.
    pub calibration: Option<Arc<Calibration>>,
    /// Counts tokens as its model does.
    pub count: Arc<dyn Fn(&str) -> usize + Send + Sync>,
    /// The way to its model.
    pub engine: A,
}

/// What the role needs to know; from configuration.
#[derive(Clone, Debug)]
pub struct GenerateSettings {
    /// Topic names.
    pub topics: Topics,
    /// How lanes share the engine.
    pub lanes: Policy,
    /// Seed of the arms' hash.
    pub arm_seed: String,
    /// How SKUs are chosen.
    pub selection: nearshore_core::list::select::Policy,
    /// What is not needed again yet.
    pub needs: Needs,
    /// The clock, only to wait and to measure.
    pub clock: fn() -> Timestamp,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Lists published.
    pub published: u64,
    /// Requests skipped because a list covers them.
    pub covered: u64,
    /// Takes made.
    pub claims: u64,
}

/// One member of the generate group.
pub struct Generate<L, S, A> {
    log: L,
    store: S,
    snapshot: Arc<ArcSwap<Snapshot>>,
    arms: Vec<Loaded<A>>,
    /// The arms' configurations, in the same order, for the hash.
    shares: Vec<Arm>,
    settings: GenerateSettings,
    queue: Queue,
    checkpoints: Checkpoints<S>,
    /// Version of the names that the engines know.
    names: Option<u64>,
    /// What a user costs the model: to say how many seconds of work are queued.
    costs: UserCosts,
    in_flight: InFlight<S>,
    publisher: Publisher,
}

/// A claimed user on the way to a list.
struct Job<'a> {
    work: &'a Work,
    /// Serving snapshot with the demand of the user's namespace.
    snapshot: Arc<Snapshot>,
    /// Place of the user's arm.
    arm: usize,
    claimed: Claimed,
    prepared: PreparedRequest,
    /// When the user was claimed, by the clock.
    claimed_at: Timestamp,
}

/// A job with its finished list, of the model or a fallback.
struct FinishedJob<'a> {
    job: Job<'a>,
    arm: &'a Arm,
    list: FinishedList,
    /// Time of the model for the batch; zero for a fallback.
    generated: Duration,
}

impl FinishedJob<'_> {
    fn ns(&self) -> &str {
        &self.job.work.request.ns
    }
}

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// A member that has nothing in hand. `arms` must not be empty.
    pub fn new(
        log: L,
        store: S,
        snapshot: Arc<ArcSwap<Snapshot>>,
        (arms, settings): (Vec<Loaded<A>>, GenerateSettings),
    ) -> Self {
        Self {
            log,
            checkpoints: Checkpoints::new(store.clone(), READER),
            in_flight: InFlight::new(store.clone()),
            store,
            snapshot,
            costs: UserCosts::new(arms.len()),
            shares: arms.iter().map(|loaded| loaded.arm.clone()).collect(),
            arms,
            queue: Queue::new(settings.topics.clone(), settings.lanes.clone()),
            publisher: Publisher::new(settings.topics.clone(), settings.clock),
            settings,
            names: None,
        }
    }

    /// The log, to wait for deliveries.
    pub fn log(&mut self) -> &mut L {
        &mut self.log
    }

    /// Ends the member and hands its log back, to be closed.
    pub fn into_log(self) -> L {
        self.log
    }

    /// The lanes, to know how long to wait and what to measure.
    pub fn lanes(&self) -> &Lanes {
        self.queue.lanes()
    }

    /// Whether batches were cut and are not done: there is no reason to wait then.
    pub fn is_midway(&self) -> bool {
        !self.queue.batches().is_empty()
    }

    /// Lists on their way, to be looked after during a turn.
    pub fn in_flight(&self) -> InFlight<S> {
        self.in_flight.clone()
    }

    /// What a user costs the model, smoothed over batches; zero before the first.
    pub fn seconds_per_user(&self) -> Duration {
        self.costs.each()
    }

    /// Tells the engines the names and has each answer once, so that the first user does not wait for cold caches.
    pub async fn warm(&mut self) {
        self.sync_names().await;
        for loaded in &self.arms {
            let ask = ScoreRequest {
                prompt: "warm".into(),
                n: 1,
                // The first user should not wait for these either.
                calibration: loaded.calibration.clone(),
                ..ScoreRequest::default()
            };
            if let Err(error) = loaded.engine.generate(vec![ask]).await {
                metrics::engine_error(&error);
                tracing::warn!(arm = loaded.arm.id, %error, "the model does not answer yet");
            }
        }
    }

    /// Partitions are ours from now on.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        self.checkpoints.assigned(partitions);
    }

    /// Partitions are no longer ours: what is in hand of them is the new owner's.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        self.queue.revoke(partitions);
        self.publisher.revoke(partitions);
        self.checkpoints.revoked(partitions);
    }

    /// Takes requests in. A record that is no request goes to `dlq`. After an error call it again with the same batch.
    pub async fn receive(&mut self, batch: &Batch, now: Timestamp) -> Result<(), Error> {
        let decoded = Decoded::new(batch);
        self.publisher
            .write_dead_letters(&self.log, &batch.partition, &decoded.rejects)
            .await?;
        self.queue.add(&mut self.log, batch, decoded, now);
        Ok(())
    }

    /// Shares the model between backfill and live, here and in all workers. After an error nothing changes.
    pub async fn update_backpressure(&mut self, now: Timestamp) -> Result<(), Error> {
        self.costs.tell(&self.store, (&self.shares, now)).await?;
        let seconds_per_user = self.seconds_per_user();
        self.queue
            .update_backpressure(&self.store, seconds_per_user, now)
            .await
    }

    /// Serves what is due. After an error call it again: what was cut is kept.
    pub async fn turn(&mut self, now: Timestamp) -> Result<Turn, Error> {
        self.publisher.settle(&self.log, &self.store).await?;
        self.queue.requeue(&self.log, now).await?;
        if !self.queue.cut(&mut self.log, &self.costs, now) {
            return Ok(Turn::default());
        }
        self.store = self.checkpoints.store(&self.log).await?;
        self.sync_names().await;
        count_running(self.queue.batches().iter().flatten());
        let served = self.serve(self.queue.batches()).await;
        count_running([]);
        let (turn, batches) = served?;
        self.queue.finish(batches);
        Ok(turn)
    }

    /// Commits what is done.
    pub async fn commit(&mut self) -> Result<(), Error> {
        for (partition, resume) in self.queue.take_commits() {
            self.checkpoints.done(&partition, resume);
        }
        Ok(self.checkpoints.commit(&self.log).await?)
    }

    /// Looks whether the store is still the one that was written to.
    pub async fn check_store(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.check_store(&self.log).await?)
    }

    /// After an error that [`Error::rewinds`]: requests whose lists the store lost are read again, and so is
    /// everything in hand.
    pub async fn rewind(&mut self) -> Result<(), Error> {
        self.queue.clear();
        Ok(self.checkpoints.rewind(&mut self.log).await?)
    }

    /// Tells the engines the catalogue's names when they changed. A failure leaves the old ones:
    /// indices are stable, so that an answer over old names is still right.
    pub async fn sync_names(&mut self) {
        let snapshot = self.snapshot.load_full();
        let version = snapshot.catalogue.names_version();
        if self.names == Some(version) {
            return;
        }
        let names = Arc::new(Names {
            version,
            names: snapshot.catalogue.names(),
        });
        for loaded in &self.arms {
            if let Err(error) = loaded.engine.set_names(names.clone()).await {
                metrics::engine_error(&error);
                tracing::error!(arm = loaded.arm.id, %error, "the engine keeps the old names");
                return;
            }
        }
        self.names = Some(version);
    }

    fn need(&self, work: &Work, peek: &Peek) -> Need {
        let status = peek.status();
        need(
            &work.request,
            &work.sources,
            (&status, self.arms[self.arm(&work.request)].arm.epoch),
        )
    }

    /// Place of the user's arm; without any share the first one serves all.
    fn arm(&self, request: &Request) -> usize {
        let arms = arms_for(&request.ns, &self.shares);
        let arm = arm_of(&request.user.0, &self.settings.arm_seed, &arms);
        arm.and_then(|arm| self.shares.iter().position(|known| known.id == arm.id))
            .unwrap_or(0)
    }

    fn context(&self, arm: usize) -> ListContext<'_> {
        let loaded = &self.arms[arm];
        let Info {
            name,
            revision,
            dtype,
            device,
        } = loaded.info.clone();
        ListContext {
            arm: &loaded.arm,
            template: &loaded.template,
            model: Model {
                name,
                revision,
                dtype,
                device,
            },
            calibration: loaded.calibration.clone(),
            count: &*loaded.count,
            needs: &self.settings.needs,
            selection: &self.settings.selection,
        }
    }

    fn job<'a>(&self, work: &'a Work, claimed: Claimed, snapshot: &Arc<Snapshot>) -> Job<'a> {
        let arm = self.arm(&work.request);
        let subject = ClaimedUser {
            request: &work.request,
            state: &claimed.state,
            claim: claimed.claim,
        };
        let prepared = prepare(&subject, snapshot, &self.context(arm));
        Job {
            work,
            snapshot: Arc::clone(snapshot),
            arm,
            prepared,
            claimed,
            claimed_at: (self.settings.clock)(),
        }
    }
}
