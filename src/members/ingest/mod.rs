//! The ingest role: folds records of users into their states, and writes counts, requests and list updates.
//!
//! Invariant: a batch's offsets become committable only when its states, counts, requests, list updates and dead
//! letters are acknowledged. [`Ingest::handle`] may be called again with the same batches after any error, because
//! every effect is fenced. The role decides nothing about users or products: [`nearshore_core::user::plan`] does.

mod aside;
mod counts;
mod decode;
mod earned;
mod effects;
mod fences;
mod fold_users;
mod history;
mod lists;
mod states;
mod stopped;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::map::Mapper;
use crate::members::checkpoints::Checkpoints;
use crate::members::dlq::DeadLetterWriter;
use crate::members::error::Error;
use aside::SetAside;
use counts::CountChains;
use decode::{Decoded, decode};
use earned::EarnedCounts;
use effects::Effects;
use fold_users::FoldUsers;
use history::History;
use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::Store;
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event;
use nearshore_core::user::record::{Partition, Resume, Timestamp};
use nearshore_core::user::trigger::Policy;
use nearshore_kafka::KafkaSettings;
use states::States;
use stopped::StoppedPartitions;

/// The consumer group that fills a namespace.
pub(crate) fn group(kafka: &KafkaSettings, ns: &str) -> String {
    kafka.group(&format!("ingest-{ns}"))
}

/// What the role needs to know, from configuration.
#[derive(Clone, Debug)]
pub struct IngestSettings {
    /// Namespace that it fills.
    pub ns: String,
    /// Consumer group, as dead letters name it.
    pub group: String,
    /// Topic names.
    pub topics: Topics,
    /// Limits of decoding.
    pub limits: event::Limits,
    /// When to request a list.
    pub policy: Policy,
    /// Types of events that are counted and passed, neither folded nor rejected.
    pub ignore: BTreeSet<String>,
    /// Events kept per user.
    pub window: usize,
    /// States kept in memory.
    pub cache_users: NonZeroUsize,
    /// Most units that one purchase adds to demand.
    pub units_max: u32,
    /// The clock, only to tell history from live records when lists are requested.
    pub clock: fn() -> Timestamp,
    /// Whether lists are requested; false while a backfill catches up.
    pub triggers: bool,
    /// Share of the users whose purchases are compared with their lists, 0 to 1.
    pub hits_sample: f64,
    /// What bounds record times.
    pub now: Now,
    /// Time from which the events of a partition are complete, where the log no longer had all of them.
    pub complete_since: BTreeMap<Partition, Timestamp>,
}

/// The `now` that no record's time may be far ahead of.
#[derive(Clone, Copy, Debug)]
pub enum Now {
    /// None: the broker stamps records, so no record can be ahead of it.
    Unchecked,
    /// The clock's, on a live topic whose producers stamp records.
    Clock(fn() -> Timestamp),
    /// The time of a backfill's creation, so that a member that continues it rejects the same records.
    Fixed(Timestamp),
}

/// Counts of the records handled. `folded + duplicate + dead + ignored` is their number; a record of a mapped topic
/// counts as all that it became.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Folded, or passed because the user was erased later.
    pub folded: u64,
    /// At or below a fence.
    pub duplicate: u64,
    /// Written to `dlq`.
    pub dead: u64,
    /// Events of a type in `events.ignore`, and records of mapped topics that became nothing.
    pub ignored: u64,
    /// Requests sent.
    pub requests: u64,
}

impl Tally {
    /// Number of records handled.
    pub fn records(&self) -> u64 {
        self.folded + self.duplicate + self.dead + self.ignored
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.folded += other.folded;
        self.duplicate += other.duplicate;
        self.dead += other.dead;
        self.ignored += other.ignored;
        self.requests += other.requests;
    }
}

/// One member of the ingest group: its parts, each the owner of one remembered thing.
pub struct Ingest<L, S> {
    log: L,
    /// The handle whose writes have effect only in the lineage that `checkpoints` verified.
    store: S,
    settings: IngestSettings,
    snapshot: Arc<ArcSwap<Snapshot>>,
    states: States,
    counts: CountChains,
    earned: EarnedCounts,
    dead_letters: DeadLetterWriter,
    checkpoints: Checkpoints<S>,
    stopped: StoppedPartitions,
    history: History,
    mapper: Mapper,
    /// Number of rewinds so far.
    rewound: u64,
}

impl<L: Log, S: Store> Ingest<L, S> {
    /// Creates a member that has no partition yet.
    pub fn new(
        log: L,
        store: S,
        snapshot: Arc<ArcSwap<Snapshot>>,
        settings: IngestSettings,
    ) -> Self {
        Self {
            log,
            checkpoints: Checkpoints::new(store.clone(), settings.ns.clone()),
            store,
            states: States::new(settings.cache_users),
            mapper: Mapper::new(&settings.topics),
            settings,
            snapshot,
            counts: CountChains::default(),
            earned: EarnedCounts::default(),
            dead_letters: DeadLetterWriter::default(),
            stopped: StoppedPartitions::default(),
            history: History::default(),
            rewound: 0,
        }
    }

    /// The log, to wait for deliveries.
    pub fn log(&mut self) -> &mut L {
        &mut self.log
    }

    /// Ends the member and returns its log, to be closed.
    pub fn into_log(self) -> L {
        self.log
    }

    /// Partitions that stopped with an alarm.
    pub fn stopped(&self) -> impl Iterator<Item = &Partition> {
        self.stopped.partitions()
    }

    /// Takes over partitions that the group assigned.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        self.counts.forget(partitions);
        self.checkpoints.assigned(partitions);
        self.stopped.release(partitions);
    }

    /// Gives up partitions. What is handled and not committed, the new owner reads again and finds folded.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        self.counts.forget(partitions);
        self.checkpoints.revoked(partitions);
        self.dead_letters.forget(partitions);
        self.states.drop_folded_from(partitions);
        self.stopped.release(partitions);
    }

    /// Stops a partition with an alarm: its offsets stay before this batch until [`Ingest::resume_stopped`].
    pub fn stop(&mut self, batch: &Batch, why: &Error) {
        self.stopped.stop(batch, why);
    }

    /// Reads the stopped partitions again from where they stopped: their cause may be mended.
    pub async fn resume_stopped(&mut self) -> Result<(), Error> {
        let to = self.stopped.places();
        if to.is_empty() {
            return Ok(());
        }
        self.log.rewind(&to).await?;
        self.stopped.resume();
        Ok(())
    }

    /// Why each stopped partition stopped, for people; `None` if none is.
    pub fn stopped_why(&self) -> Option<String> {
        self.stopped.why()
    }

    /// Folds batches, at most one per partition. After an error call it again with the same batches.
    ///
    /// A user of whom a stored value cannot be used is set aside, so that no other user waits for it.
    pub async fn handle(&mut self, batches: &[Batch]) -> Result<Tally, Error> {
        let mut aside = SetAside::default();
        loop {
            match self.handle_without(batches, &mut aside).await {
                Err(error) => aside.add(error)?,
                done => return done,
            }
        }
    }

    async fn handle_without(
        &mut self,
        batches: &[Batch],
        aside: &mut SetAside,
    ) -> Result<Tally, Error> {
        let batches = self.stopped.running(batches);
        self.store = self.checkpoints.store(&self.log).await?;
        let (log, store, settings) = (&self.log, &self.store, &self.settings);
        let (topics, ns) = (&settings.topics, &settings.ns);

        let mapped = self.mapper.map(&batches, &settings.limits).await?;
        let mut decoded = decode(settings, &batches, mapped);
        aside.discard_erased(store, ns, &decoded).await?;
        aside.reject(&mut decoded, topics, &batches);
        let Decoded {
            users,
            rejects,
            ignored,
        } = decoded;
        let mut effects = Effects::new(rejects.len(), ignored);
        self.dead_letters
            .write_rejects(log, &topics.dlq, &settings.group, &rejects)
            .await?;

        let history_before = self.history.before(settings);
        if let Some(ttl) = self.history.signal(&users, history_before) {
            store.signal_history(ns, ttl).await?;
        }
        let fold = FoldUsers {
            history_before,
            log,
            store,
            settings,
            snapshot: &self.snapshot.load_full(),
            batches: &batches,
            states: &mut self.states,
            effects: &mut effects,
            earned: &mut self.earned,
        };
        fold.run(users).await?;

        // None needs another's result, and they wait for different servers.
        let counted = effects.take_counted();
        let (counted, published, ()) = futures::join!(
            self.counts.add(store, ns, counted),
            effects.publish(log, store, topics, ns),
            self.earned.count(store, ns),
        );
        counted?;
        published?;
        store.flush().await?;
        effects.count_records();
        self.mark_done(&batches);
        Ok(effects.tally())
    }

    /// Makes the ends of these batches committable. Call it when all their effects are acknowledged.
    fn mark_done(&mut self, batches: &[&Batch]) {
        self.dead_letters
            .forget(batches.iter().map(|batch| &batch.partition));
        for batch in batches {
            self.stopped.handled(&batch.partition);
            if let Some(last) = batch.records.last() {
                let resume = Resume::after(last.position.offset);
                self.checkpoints.done(&batch.partition, resume);
            }
        }
    }

    /// Moves the next commit of a partition to `at`. Call it when no record before `at` is left to be handled.
    pub fn pass(&mut self, partition: &Partition, at: Resume) {
        self.checkpoints.done(partition, at);
    }

    /// Commits what is handled. A revoked partition is left to its new owner.
    pub async fn commit(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.commit(&self.log).await?)
    }

    /// Why the stored checkpoints cannot be used, for people; `None` if they can.
    pub fn unusable_checkpoints(&self) -> Option<&str> {
        self.checkpoints.unusable()
    }

    /// Fails with an error that [`Error::rewinds`] if the store lost writes since it was last verified.
    pub async fn check_store(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.check_store(&self.log).await?)
    }

    /// Rewinds the log to what the store still has. Call it after an error that [`Error::rewinds`], and drop the
    /// batches in hand: they are delivered again.
    pub async fn rewind(&mut self) -> Result<(), Error> {
        self.states.clear();
        self.counts.clear();
        self.dead_letters = DeadLetterWriter::default();
        self.checkpoints.rewind(&mut self.log).await?;
        // They too are delivered again, perhaps from before the place where they stopped.
        self.stopped.clear();
        self.rewound += 1;
        Ok(())
    }

    /// Number of rewinds so far.
    pub fn rewound(&self) -> u64 {
        self.rewound
    }

    /// Drops cached states that were not needed since the last call but one.
    pub fn drop_unused_states(&mut self) {
        self.states.drop_unused();
    }
}
