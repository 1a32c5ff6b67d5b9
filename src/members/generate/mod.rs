//! The generate role: requests of the three lanes become lists in the store and updates on `recall-updates`.
//!
//! Invariant: the offset of a request may be committed only when its list without the model is published and its update
//! sent, and the model has answered or was refused (decision 42); or when the request is covered, refused or failed for
//! good. Between two calls nothing is in memory that the log could not deliver again. A request may be served twice;
//! claim number and stage decide which list is stored.
//!
//! What is remembered has one owner each: `Queue` has the requests in hand, `Scoring` the arms and their costs,
//! `ModelRun` the question that the models are answering, `Publisher` what is not sent yet; `Claims` remembers nothing.
//! [`Generate::turn`] joins them.

mod arm_texts;
mod asks;
mod backpressure;
mod claims;
mod cost;
mod count;
mod free;
mod in_flight;
mod model_run;
mod new_texts;
mod outbox;
mod publisher;
mod queue;
mod ranking;
mod requeue;
mod scorer;
mod scoring;
mod user_texts;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

pub use backpressure::BACKPRESSURE_EVERY;
pub use cost::UserCost;
pub use free::{ArmScorer, FreeScorer, Writer};
pub use in_flight::ERASE_CHECK_EVERY;
pub use new_texts::NewTexts;
pub use ranking::{Ranking, Renewed};
pub use scorer::Scorer;
pub use user_texts::TextParts;
pub(crate) use user_texts::{BoundTexts, KNOWN_MIN};

use claims::{Claims, by_namespace};
use count::count_running;
use model_run::ModelRun;
use publisher::Publisher;
use queue::{DecodedBatch, Queue};
use scoring::{FinishedJob, Job, Scoring};

use crate::members::checkpoints::Checkpoints;
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::list::prompt::{Arm, Template};
use nearshore_core::ports::log::{self, Batch, Delivery, Log};
use nearshore_core::ports::store::{self, Store};
use nearshore_core::queue::asking::Ask;
use nearshore_core::queue::lanes::{Lanes, Policy, Work};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::rules::Needs;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Partition, Timestamp};
use nearshore_core::user::trigger::Lane;
use nearshore_engine::Info;
use nearshore_kafka::KafkaSettings;

/// Consumer group of the three lanes, whatever the namespace.
pub(crate) fn group(kafka: &KafkaSettings) -> String {
    kafka.group("generate")
}

/// How long a turn may claim further batches. The log is read between turns only.
const TURN_MAX: Duration = Duration::from_millis(500);

/// After how long the request of a user of whom a stored value cannot be used is tried again.
const UNREADABLE_RETRY: Duration = Duration::from_secs(10);

/// Name of the member's checkpoints in the store.
const READER: &str = "nearshore:generate";

/// One arm with its model, ready to be used.
pub struct LoadedArm<A> {
    /// Its configuration.
    pub arm: Arm,
    /// What it ranks by at first.
    pub ranking: Arc<Ranking>,
    /// What it is to rank by instead, once there is something.
    pub renewed: Renewed,
    /// Makes vectors of texts that the artefact does not have; of the same encoder.
    pub new_texts: Option<NewTexts>,
    /// Its prompt template.
    pub template: Template,
    /// Name and revision of its model.
    pub info: Info,
    /// Hash of its model's tokenizer.
    pub tokenizer: String,
    /// Counts tokens as its model does.
    pub count: Arc<dyn Fn(&str) -> usize + Send + Sync>,
    /// Its model.
    pub engine: A,
}

/// What the role needs to know; from configuration.
#[derive(Clone, Debug)]
pub struct GenerateSettings {
    /// Consumer group, as dead letters name it.
    pub group: String,
    /// Topic names.
    pub topics: Topics,
    /// How lanes share the engine.
    pub lanes: Policy,
    /// Seed of the hash from users to arms.
    pub arm_seed: String,
    /// How SKUs are chosen.
    pub selection: nearshore_core::list::select::Policy,
    /// Which products a user does not need again yet.
    pub needs: Needs,
    /// How the searches and free texts of users are read; `None` reads none.
    pub texts: Option<Arc<TextParts>>,
    /// Share of the users whose audits are stored.
    pub audits_kept: f64,
    /// Share of the users whose updates tell the SKUs that could have been shown.
    pub candidates: f64,
    /// The clock, only to wait and to measure.
    pub clock: fn() -> Timestamp,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Lists published, with the model and without it.
    pub published: u64,
    /// Requests skipped because the stored list has seen them.
    pub covered: u64,
    /// Users claimed.
    pub claims: u64,
}

/// One member of the generate group.
pub struct Generate<L, S, A> {
    log: L,
    /// Writes only in the lineage that the checkpoints were compared with.
    store: S,
    snapshot: Arc<ArcSwap<Snapshot>>,
    clock: fn() -> Timestamp,
    checkpoints: Checkpoints<S>,
    queue: Queue,
    claims: Claims,
    scoring: Scoring<S, A>,
    /// The question that the models are answering.
    run: Option<ModelRun>,
    /// The question before it, while its lists are not published.
    answered: Option<ModelRun>,
    publisher: Publisher,
}

/// A batch after its claims.
#[derive(Default)]
struct ClaimedBatch {
    jobs: Vec<Job>,
    /// Requests whose stored list is the one without the model.
    asks: Vec<Ask>,
    /// How many requests the stored list has seen already.
    covered: u64,
}

/// What the batches of a turn came to.
#[derive(Default)]
struct Served {
    turn: Turn,
    /// How many batches were served.
    batches: usize,
    /// Those of their requests that wait for the model now.
    asks: Vec<Ask>,
}

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// Serves what is due. After an error call it again: what was cut stays in hand.
    ///
    /// The request of a user of whom a stored value cannot be used is requeued, so that no other user waits for it.
    pub async fn turn(&mut self, now: Timestamp) -> Result<Turn, Error> {
        let error = match self.turn_of_all(now).await {
            Err(error) => error,
            done => return done,
        };
        let Error::Store(store::Error::Corrupt {
            user: Some(user), ..
        }) = &error
        else {
            return Err(error);
        };
        let due = now.after(UNREADABLE_RETRY);
        let of_run = self.answered.as_mut().map(|run| run.take(user));
        let of_run = of_run.unwrap_or_default();
        let requeued = self.queue.postpone((user, of_run), due);
        if !self.publisher.forget(user) && !requeued {
            return Err(error);
        }
        if let Error::Store(cause) = &error {
            metrics::store_error(cause);
        }
        tracing::warn!(
            %error,
            "a stored value of one user cannot be used; the user's request is tried again in {UNREADABLE_RETRY:?}"
        );
        Ok(Turn::default())
    }

    async fn turn_of_all(&mut self, now: Timestamp) -> Result<Turn, Error> {
        self.publisher.settle(&self.log, &self.store).await?;
        self.queue.requeue(&self.log, now).await?;
        // The model has its next question before lists are made without it: it works beside them.
        self.ask_next(now).await?;
        let mut turn = Turn::default();
        // A list of a shop that sells nothing would be empty, and hide a better one from clients. A batch that an error
        // left in hand goes on: the loop calls again at once as long as there is one.
        if !self.queue.batches().is_empty() || self.snapshot.load().sells() {
            self.queue.hold_history(&self.store).await?;
            if self.queue.cut(&mut self.log, now) {
                self.store = self.checkpoints.store(&self.log).await?;
                self.scoring.sync_names().await;
                let served = self.serve().await?;
                turn = served.turn;
                self.queue.finish(served.batches, served.asks);
            }
        }
        turn.published += self.advance_model(now).await?;
        Ok(turn)
    }

    /// Serves batch after batch without the model. While the lists of one are published the next one is claimed, so
    /// that two round trips of Redis overlap. After [`TURN_MAX`] no more batches are claimed.
    async fn serve(&self) -> Result<Served, Error> {
        let mut served = Served::default();
        let start = (self.clock)();
        let mut batches = self.queue.batches().iter();
        let mut next = self.claim(batches.next()).await?;
        while let Some(claimed) = next.take() {
            served.batches += 1;
            served.turn.covered += claimed.covered;
            served.turn.claims += claimed.jobs.len() as u64;
            served.asks.extend(claimed.asks);
            let finished = self.scoring.mixture(claimed.jobs);
            let is_over = (self.clock)().since(start) >= TURN_MAX;
            let follows = if is_over { None } else { batches.next() };
            let (published, follows) = futures::join!(
                self.publisher.publish(&self.log, &self.store, &finished),
                self.claim(follows)
            );
            served.turn.published += published?;
            served
                .asks
                .extend(finished.into_iter().filter_map(|it| self.ask_of(it)));
            next = follows?;
        }
        Ok(served)
    }

    /// What is to be asked of the model after a list without it is published; `None` where the arm gives it no part.
    fn ask_of(&self, finished: FinishedJob) -> Option<Ask> {
        // Where the rules leave nothing, the model finds nothing either.
        let may_offer = !finished.list?.document.is_empty();
        let job = finished.job;
        (may_offer && job.prepared.asks_model).then(|| Ask {
            claim: job.claimed.claim,
            gain: self.scoring.gain(job.arm, Some(job.prepared.visible)),
            work: job.work,
        })
    }

    /// Claims a batch, namespace by namespace.
    async fn claim(&self, batch: Option<&Vec<Work>>) -> Result<Option<ClaimedBatch>, Error> {
        let Some(batch) = batch else { return Ok(None) };
        let (log, store) = (&self.log, &self.store);
        let mut all = ClaimedBatch::default();
        for (ns, works) in by_namespace(batch) {
            let claimed = self.claims.claim(store, &self.scoring, ns, works).await?;
            all.covered += claimed.covered.len() as u64;
            self.publisher
                .send_again(log, store, ns, claimed.covered)
                .await?;
            self.delete(ns, claimed.vacant).await?;
            all.jobs.extend(claimed.jobs);
            all.asks.extend(claimed.asks);
        }
        Ok(Some(all))
    }

    /// Deletes the updates of users of whom nothing is stored.
    async fn delete(&self, ns: &str, vacant: Vec<UserId>) -> Result<(), Error> {
        if vacant.is_empty() || self.is_registered(ns).await? {
            return self
                .publisher
                .delete(&self.log, &self.store, ns, vacant)
                .await;
        }
        // The users' lists may be those of another installation: its topic is not to be touched.
        metrics::unknown_namespace(vacant.len());
        tracing::warn!(
            ns,
            requests = vacant.len(),
            "requests of a namespace that this Redis does not have were passed"
        );
        Ok(())
    }

    async fn is_registered(&self, ns: &str) -> Result<bool, Error> {
        Ok(self.store.namespaces().await?.contains_key(ns))
    }

    /// A member with nothing in hand. `arms` must not be empty.
    pub fn new(
        log: L,
        store: S,
        snapshot: Arc<ArcSwap<Snapshot>>,
        arms: Vec<LoadedArm<A>>,
        settings: GenerateSettings,
    ) -> Self {
        Self {
            log,
            clock: settings.clock,
            checkpoints: Checkpoints::new(store.clone(), READER),
            queue: Queue::new(settings.topics.clone(), settings.lanes.clone()),
            run: None,
            answered: None,
            claims: Claims,
            publisher: Publisher::new(
                (settings.group.clone(), settings.topics.clone()),
                settings.audits_kept,
                settings.clock,
            ),
            scoring: Scoring::new(store.clone(), snapshot.clone(), arms, settings),
            snapshot,
            store,
        }
    }

    /// Time until a user can be served: zero if one can, `None` if no user waits for time alone.
    pub fn next_due(&self, now: Timestamp) -> Option<Duration> {
        self.queue
            .lanes()
            .next_due(now)
            .filter(|_| self.snapshot.load().sells())
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

    /// Whether batches were cut and are not served, or the model is free and users wait for it: there is no reason to
    /// wait then.
    pub fn is_midway(&self) -> bool {
        let model_is_free = self.run.is_none() && !self.queue.asking().is_empty();
        !self.queue.batches().is_empty() || model_is_free || self.answered.is_some()
    }

    /// Waits for the log, or until the model has answered: `None`. While there is no room for requests, only
    /// assignments and revokes are delivered: work of revoked partitions must not be kept. May be given up and called
    /// again.
    pub async fn wait(&mut self) -> Result<Option<Delivery>, log::Error> {
        let is_full = self.lanes().room() == 0;
        let Self { log, run, .. } = self;
        let delivery = async {
            match is_full {
                true => log.notice().await,
                false => log.next().await,
            }
        };
        let answered = async {
            match run {
                Some(run) => run.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            delivery = delivery => Ok(Some(delivery?)),
            () = answered => Ok(None),
        }
    }

    /// Stops what the model does for users who were erased since they were claimed. It only saves work: whether a list
    /// is published is decided by the `erased_at` in the store.
    pub async fn cancel_erased(&self) {
        if self.run.is_some() {
            self.scoring.cancel_erased().await;
        }
    }

    /// Number of users of a lane who wait for the model.
    pub fn waiting_for_model(&self, lane: Lane) -> usize {
        self.queue.asking().waiting(lane)
    }

    /// Model time per user, smoothed over batches; zero before the first.
    pub fn seconds_per_user(&self) -> Duration {
        self.scoring.costs().each()
    }

    /// Hands the names to the engines, and asks each model once beside the first lists.
    pub async fn warm(&mut self) {
        self.scoring.sync_names().await;
        self.run = Some(self.scoring.warm());
    }

    /// Partitions are assigned to this member from now on.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        self.checkpoints.assigned(partitions);
    }

    /// Partitions are revoked: their new owner serves what is in hand of them.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        self.queue.revoke(partitions);
        for run in self.run.iter_mut().chain(&mut self.answered) {
            run.revoke(partitions);
        }
        self.publisher.revoke(partitions);
        self.checkpoints.revoked(partitions);
    }

    /// Reads a batch of a lane into the queue. A record that is no request goes to `dlq`. After an error call it again
    /// with the same batch.
    pub async fn receive(&mut self, batch: &Batch, now: Timestamp) -> Result<(), Error> {
        let decoded = DecodedBatch::new(batch);
        self.publisher
            .write_dead_letters(&self.log, &batch.partition, &decoded.rejects)
            .await?;
        self.queue.add(&mut self.log, batch, decoded, now);
        Ok(())
    }

    /// Shares the model between backfill and live, here and in all workers. After an error nothing changes.
    pub async fn update_backpressure(&mut self, now: Timestamp) -> Result<(), Error> {
        self.scoring.write_costs(&self.store, now).await?;
        let seconds_per_user = self.seconds_per_user();
        self.queue
            .update_backpressure(&self.store, seconds_per_user, now)
            .await
    }

    /// Commits the offsets that are done.
    pub async fn commit(&mut self) -> Result<(), Error> {
        for (partition, resume) in self.queue.take_commits() {
            self.checkpoints.done(&partition, resume);
        }
        Ok(self.checkpoints.commit(&self.log).await?)
    }

    /// Why the stored checkpoints cannot be used, for people; `None` if they can.
    pub fn unusable_checkpoints(&self) -> Option<&str> {
        self.checkpoints.unusable()
    }

    /// Checks whether the store is still the one that was written to.
    pub async fn check_store(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.check_store(&self.log).await?)
    }

    /// Rewinds after an error that [`Error::rewinds`]: requests whose lists the store lost are read again, and so is
    /// everything in hand.
    pub async fn rewind(&mut self) -> Result<(), Error> {
        self.queue.clear();
        (self.run, self.answered) = (None, None);
        count_running([]);
        Ok(self.checkpoints.rewind(&mut self.log).await?)
    }
}
