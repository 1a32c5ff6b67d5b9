//! The generate role: requests of the three lanes become lists in the store and updates on `recall-updates`.
//!
//! Invariant: the offset of a request may be committed only when its list is published and its update sent, or when
//! the request is covered, refused or failed for good. Between two calls nothing is in memory that the log could not
//! deliver again. A request may be served twice; the claim number decides which list is stored.
//!
//! What is remembered has one owner each: `Queue` has the requests in hand, `Scoring` the arms and their costs,
//! `Publisher` what is not sent yet; `Claims` remembers nothing. [`Generate::turn`] joins them.

mod arm_texts;
mod backpressure;
mod claims;
mod cost;
mod count;
mod in_flight;
mod new_texts;
mod outbox;
mod publisher;
mod queue;
mod requeue;
mod scorer;
mod scoring;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

pub use backpressure::BACKPRESSURE_EVERY;
pub use cost::UserCost;
pub use in_flight::InFlight;
pub use new_texts::NewTexts;
pub use scorer::Scorer;

use claims::{Claims, by_namespace};
use count::count_running;
use publisher::Publisher;
use queue::{DecodedBatch, Queue};
use scoring::{Job, Scoring, TimedResponse};

use crate::members::checkpoints::Checkpoints;
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::list::prompt::{Arm, Calibrations, Template};
use nearshore_core::list::terms::Weights;
use nearshore_core::list::terms::artefact::Artefact;
use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::{self, Store};
use nearshore_core::queue::lanes::{Lanes, Policy, Work};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::rules::Needs;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::record::{Partition, Timestamp};
use nearshore_engine::Info;
use nearshore_kafka::KafkaSettings;

/// Consumer group of the three lanes, whatever the namespace.
pub(crate) fn group(kafka: &KafkaSettings) -> String {
    kafka.group("generate")
}

/// Time of the model in one turn, if it is quick enough for more than one batch of it.
const TURN_MAX: Duration = Duration::from_millis(500);

/// After how long the request of a user of whom a stored value cannot be used is tried again.
const UNREADABLE_RETRY: Duration = Duration::from_secs(10);

/// Name of the member's checkpoints in the store.
const READER: &str = "nearshore:generate";

/// One arm with its model, ready to be used.
pub struct LoadedArm<A> {
    /// Its configuration.
    pub arm: Arm,
    /// Weights of its score terms.
    pub weights: Weights,
    /// What `nearshore align` learned for it.
    pub artefact: Option<Arc<Artefact>>,
    /// Makes vectors of texts that the artefact does not have; of the same encoder.
    pub new_texts: Option<NewTexts>,
    /// Its prompt template.
    pub template: Template,
    /// Name and revision of its model.
    pub info: Info,
    /// Its calibration prompts, by visible history.
    pub calibrations: Calibrations,
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
    /// The clock, only to wait and to measure.
    pub clock: fn() -> Timestamp,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Lists published.
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
    publisher: Publisher,
}

/// A batch after its claims.
#[derive(Default)]
struct ClaimedBatch<'a> {
    jobs: Vec<Job<'a>>,
    /// How many requests the stored list has seen already.
    covered: u64,
}

/// A batch after its model answered: its jobs and, in the same places, their score responses.
type ScoredBatch<'a> = (Vec<Job<'a>>, Vec<Option<TimedResponse>>);

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
        let requeued = self.queue.postpone(user, due);
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
        // A list of a shop that sells nothing would be empty, and hide a better one from clients. A batch that an error
        // left in hand goes on: the loop calls again at once as long as there is one.
        if !self.is_midway() && !self.snapshot.load().sells() {
            return Ok(Turn::default());
        }
        self.queue.hold_history(&self.store).await?;
        let costs = self.scoring.costs();
        if !self.queue.cut(&mut self.log, costs, now) {
            return Ok(Turn::default());
        }
        self.store = self.checkpoints.store(&self.log).await?;
        self.scoring.sync_names().await;
        count_running(self.queue.batches().iter().flatten());
        let served = self.serve().await;
        count_running([]);
        let (turn, batches) = served?;
        self.queue.finish(batches);
        Ok(turn)
    }

    /// Serves batch after batch and says how many. While the model scores one, the batch before it is finished and
    /// published and the next one is claimed, so that a quick model does not wait for Redis and Kafka (decision 29).
    /// After [`TURN_MAX`] no more batches are claimed.
    async fn serve(&self) -> Result<(Turn, usize), Error> {
        let (mut turn, mut served) = (Turn::default(), 0);
        let start = (self.clock)();
        let mut batches = self.queue.batches().iter();
        let (mut scored, mut next) = (None, self.claim(batches.next()).await?);
        while let Some(claimed) = next.take() {
            served += 1;
            turn.covered += claimed.covered;
            turn.claims += claimed.jobs.len() as u64;
            let score = self.scoring.score(&claimed.jobs);
            let is_over = (self.clock)().since(start) >= TURN_MAX;
            let beside = async {
                let published = self.publish(scored.take()).await?;
                let follows = if is_over { None } else { batches.next() };
                Ok::<_, Error>((published, self.claim(follows).await?))
            };
            // Both are waited for: an error beside the model does not cancel what the model has begun.
            let (responses, beside) = futures::join!(score, beside);
            let (published, follows) = beside?;
            turn.published += published;
            scored = Some((claimed.jobs, responses));
            next = follows;
        }
        turn.published += self.publish(scored).await?;
        Ok((turn, served))
    }

    /// Claims a batch, namespace by namespace. All namespaces are scored in one call of the model: with a call each,
    /// live users would wait for the call of a backfill.
    async fn claim<'a>(
        &'a self,
        batch: Option<&'a Vec<Work>>,
    ) -> Result<Option<ClaimedBatch<'a>>, Error> {
        let Some(batch) = batch else { return Ok(None) };
        let (log, store) = (&self.log, &self.store);
        let mut all = ClaimedBatch::default();
        for (ns, works) in by_namespace(batch) {
            let claimed = self.claims.claim(store, &self.scoring, ns, works).await?;
            all.covered += claimed.covered.len() as u64;
            self.publisher
                .send_again(log, store, ns, claimed.covered)
                .await?;
            if claimed.vacant.is_empty() || self.is_registered(ns).await? {
                self.publisher
                    .delete(log, store, ns, claimed.vacant)
                    .await?;
            } else {
                // The users' lists may be those of another installation: its topic is not to be touched.
                metrics::unknown_namespace(claimed.vacant.len());
                tracing::warn!(
                    ns,
                    requests = claimed.vacant.len(),
                    "requests of a namespace that this Redis does not have were passed"
                );
            }
            all.jobs.extend(claimed.jobs);
        }
        Ok(Some(all))
    }

    async fn is_registered(&self, ns: &str) -> Result<bool, Error> {
        Ok(self.store.namespaces().await?.contains_key(ns))
    }

    /// Finishes the lists of a batch and publishes them.
    async fn publish<'a>(&'a self, scored: Option<ScoredBatch<'a>>) -> Result<u64, Error> {
        let Some((jobs, responses)) = scored else {
            return Ok(0);
        };
        let finished = self.scoring.finish(jobs, responses);
        self.publisher
            .publish(&self.log, &self.store, &finished)
            .await
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
            claims: Claims,
            publisher: Publisher::new(
                settings.group.clone(),
                settings.topics.clone(),
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

    /// Whether batches were cut and are not served: there is no reason to wait then.
    pub fn is_midway(&self) -> bool {
        !self.queue.batches().is_empty()
    }

    /// The lists that are being made, to be watched during a turn.
    pub fn in_flight(&self) -> InFlight<S> {
        self.scoring.in_flight().clone()
    }

    /// Model time per user, smoothed over batches; zero before the first.
    pub fn seconds_per_user(&self) -> Duration {
        self.scoring.costs().each()
    }

    /// Hands the names to the engines and asks each model once, so that the first user does not wait for cold caches.
    pub async fn warm(&mut self) {
        self.scoring.warm().await;
    }

    /// Partitions are assigned to this member from now on.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        self.checkpoints.assigned(partitions);
    }

    /// Partitions are revoked: their new owner serves what is in hand of them.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        self.queue.revoke(partitions);
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
        Ok(self.checkpoints.rewind(&mut self.log).await?)
    }
}
