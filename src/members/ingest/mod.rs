//! The ingest role: log -> event -> fold -> trigger -> store -> log.
//!
//! Invariant: a batch's offsets become committable only when its states, counts, requests and dead
//! letters are acknowledged. [`Ingest::handle`] may be called again with the same batches after any
//! error: every effect is fenced. It decides nothing about users or products ([`nearshore_core::user::plan`] does).

mod records;
mod states;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use arc_swap::ArcSwap;
use lru::LruCache;

use crate::members::checkpoints::Checkpoints;
use crate::members::dlq::DeadLetterWriter;
use crate::members::dlq::write_rejects;
use crate::members::error::Error;
use crate::members::outbox::publish_updates;
use crate::members::records::request_record;
use crate::metrics::{self, EventOutcome, EventType, Stage};
use nearshore_core::list::document::{Document, Update};
use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::{Added, Store, Stored};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{self, Accepted, Change, Reject, UserId};
use nearshore_core::user::fold::Step;
use nearshore_core::user::plan::{Counted, Edit, Plan, StoredList};
use nearshore_core::user::record::{Offset, Partition, Record, Resume, Timestamp};
use nearshore_core::user::state::Held;
use records::{count_records, deltas, stage};

use nearshore_core::user::trigger::{Policy, Request};

/// What the role needs to know; from configuration.
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
    /// When to ask for a list.
    pub policy: Policy,
    /// Events kept per user.
    pub window: usize,
    /// States kept in memory.
    pub cache_users: NonZeroUsize,
    /// False while a backfill catches up.
    pub triggers: bool,
    /// What bounds record times.
    pub now: Now,
    /// Time from which the events of a partition are complete, where the log no longer had all of them.
    pub complete_since: BTreeMap<Partition, Timestamp>,
}

/// The `now` that no record's time may be far ahead of.
#[derive(Clone, Copy, Debug)]
pub enum Now {
    /// The broker stamps records: nothing can be ahead of it.
    Unchecked,
    /// The clock's, on a live topic whose producers stamp records.
    Clock(fn() -> Timestamp),
    /// That of a backfill's creation, so that whoever goes on with it refuses the same records.
    Fixed(Timestamp),
}

impl Now {
    fn read(self) -> Option<Timestamp> {
        match self {
            Self::Unchecked => None,
            Self::Clock(clock) => Some(clock()),
            Self::Fixed(now) => Some(now),
        }
    }
}

/// What became of the records handled: `folded + duplicate + dead` is all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Folded, or passed because the user was erased later.
    pub folded: u64,
    /// At or below a fence.
    pub duplicate: u64,
    /// In `dlq`.
    pub dead: u64,
    /// Requests sent.
    pub requests: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.folded += other.folded;
        self.duplicate += other.duplicate;
        self.dead += other.dead;
        self.requests += other.requests;
    }
}

/// Fences of the counts, by partition and shard.
type Chains = BTreeMap<Partition, BTreeMap<u8, Offset>>;

/// One member of the ingest group.
pub struct Ingest<L, S> {
    log: L,
    store: S,
    settings: IngestSettings,
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// States as last stored by this member; a stale one costs a reload, never a wrong write.
    cache: LruCache<UserId, (u32, Held)>,
    /// Age of the cache: what was put there two ages ago and not needed since is dropped.
    age: u32,
    /// As last seen.
    chains: Chains,
    /// Handled, not yet committed, and whether the store still is the one it was.
    checkpoints: Checkpoints<S>,
    /// Dead letters of batches in hand that need not be written again.
    dead_letters: DeadLetterWriter,
    /// Stopped with an alarm: nothing of them is handled until they are assigned anew.
    stopped: BTreeSet<Partition>,
    /// How often the store's lost writes were read again.
    rewound: u64,
}

/// Records that cannot be decoded, with the reason.
type Rejects<'a> = Vec<(&'a Record, Reject)>;

/// Effects on the log that wait for the states to be stored.
#[derive(Default)]
struct After {
    requests: Vec<Request>,
    erased: Vec<UserId>,
    stripped: Vec<(UserId, Box<StoredList>)>,
    counted: BTreeMap<Partition, Vec<Counted>>,
    tally: Tally,
    /// Records by topic, kind and outcome, for metrics.
    seen: BTreeMap<(Arc<str>, EventType, EventOutcome), u64>,
}

impl<L: Log, S: Store> Ingest<L, S> {
    /// A member that has nothing in hand.
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
            cache: LruCache::new(settings.cache_users),
            age: 0,
            settings,
            snapshot,
            chains: BTreeMap::new(),
            dead_letters: DeadLetterWriter::default(),
            rewound: 0,
            stopped: BTreeSet::new(),
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

    /// Partitions that stopped with an alarm.
    pub fn stopped(&self) -> &BTreeSet<Partition> {
        &self.stopped
    }

    /// Partitions are ours from now on.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.stopped.remove(partition);
            self.chains.remove(partition);
        }
        self.checkpoints.assigned(partitions);
        metrics::stopped(self.stopped.len());
    }

    /// Partitions are no longer ours. What is handled is committed by the new owner's reading on.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.chains.remove(partition);
            self.stopped.remove(partition);
        }
        self.checkpoints.revoked(partitions);
        self.dead_letters.forget(partitions);
        self.drop_states(partitions);
        metrics::stopped(self.stopped.len());
    }

    /// Stops a partition: its offsets stay where they are, and an alarm says why.
    pub fn stop(&mut self, partition: &Partition, why: &Error) {
        tracing::error!(%partition, error = %why, "partition stopped; it goes on after the cause is mended and the member restarted");
        self.stopped.insert(partition.clone());
        metrics::stopped(self.stopped.len());
    }

    /// Folds batches, at most one per partition. After an error call it again with the same ones.
    pub async fn handle(&mut self, batches: &[Batch]) -> Result<Tally, Error> {
        let batches: Vec<&Batch> = batches
            .iter()
            .filter(|b| !self.stopped.contains(&b.partition))
            .collect();
        self.store = self.checkpoints.store(&self.log).await?;
        let (users, rejects) = self.decode(&batches);
        let mut after = After {
            tally: Tally {
                dead: rejects.len() as u64,
                ..Tally::default()
            },
            ..After::default()
        };
        self.write_rejects(&rejects).await?;
        self.fold_users(users, &batches, &mut after).await?;
        // Neither needs the other, and they wait for different servers.
        let (mut chains, counted) = (
            std::mem::take(&mut self.chains),
            std::mem::take(&mut after.counted),
        );
        let (counted, told) =
            futures::join!(self.count(&mut chains, counted), self.tell(&mut after));
        self.chains = chains;
        counted?;
        told?;
        self.store.flush().await?;
        count_records(&after.seen);
        self.dead_letters
            .forget(batches.iter().map(|batch| &batch.partition));
        for batch in batches {
            if let Some(last) = batch.records.last() {
                let resume = Resume::after(last.position.offset);
                self.checkpoints.done(&batch.partition, resume);
            }
        }
        Ok(after.tally)
    }

    /// Nothing is left of a partition before `at`: the next commit goes there.
    pub fn pass(&mut self, partition: &Partition, at: Resume) {
        self.checkpoints.done(partition, at);
    }

    /// Commits what is handled. A partition that is no longer ours is its new owner's business.
    pub async fn commit(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.commit(&self.log).await?)
    }

    /// Looks whether the store is still the one that was written to.
    pub async fn check_store(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.check_store(&self.log).await?)
    }

    /// After an error that [`Error::rewinds`]: what the store lost is read again. Batches in hand come again, too.
    pub async fn rewind(&mut self) -> Result<(), Error> {
        self.cache.clear();
        self.chains.clear();
        self.dead_letters = DeadLetterWriter::default();
        self.checkpoints.rewind(&mut self.log).await?;
        self.rewound += 1;
        Ok(())
    }

    /// How often that was done.
    pub fn rewound(&self) -> u64 {
        self.rewound
    }

    fn decode<'a>(&self, batches: &[&'a Batch]) -> (BTreeMap<UserId, Vec<Accepted>>, Rejects<'a>) {
        let IngestSettings {
            topics,
            limits,
            now,
            ..
        } = &self.settings;
        let limits = event::Limits {
            now: now.read(),
            ..*limits
        };
        let mut users: BTreeMap<UserId, Vec<Accepted>> = BTreeMap::new();
        let mut rejects = Vec::new();
        for record in batches.iter().flat_map(|batch| &batch.records) {
            match event::decode_user(
                record,
                topics.source(&record.position.partition.topic),
                &limits,
            ) {
                Ok(accepted) => users
                    .entry(accepted.user.clone())
                    .or_default()
                    .push(accepted),
                Err(reject) => rejects.push((record, reject)),
            }
        }
        (users, rejects)
    }

    async fn write_rejects(&mut self, rejects: &[(&Record, Reject)]) -> Result<(), Error> {
        let IngestSettings { topics, group, .. } = &self.settings;
        let dead: Vec<(&Record, Stage, &Reject)> = rejects
            .iter()
            .map(|(record, reject)| (*record, stage(topics, record), reject))
            .collect();
        write_rejects(
            &mut self.dead_letters,
            &self.log,
            (&topics.dlq, group),
            &dead,
        )
        .await
    }

    /// A fence at or above the log's end is no duplicate: the log is another one than was folded. A batch
    /// may be older than another owner's writes, so the end is asked for before an alarm.
    async fn below_end(&self, held: &Held, batches: &[&Batch]) -> Result<(), Error> {
        for batch in batches {
            let Some(fence) = held
                .state
                .fences
                .get(&batch.partition)
                .filter(|fence| *fence >= batch.end)
            else {
                continue;
            };
            let end = self.log.end(&batch.partition).await?;
            if fence >= end {
                let partition = batch.partition.clone();
                return Err(Error::FenceAboveEnd {
                    partition,
                    fence,
                    end,
                });
            }
        }
        Ok(())
    }

    /// Takes over a plan that is stored: its effects on counts and log come next.
    fn keep(&mut self, user: UserId, plan: Plan, after: &mut After) {
        for (step, kind) in plan.steps.iter().zip(&plan.kinds) {
            let outcome: EventOutcome = (*step).into();
            let place = kind.map_or(&self.settings.topics.profile_changes, |_| {
                &self.settings.topics.user_events
            });
            let (kind, record) = match (kind, step) {
                (Some(kind), _) => ((*kind).into(), outcome),
                (None, Step::Erased) => (EventType::Erase, outcome),
                (None, _) => (EventType::Profile, outcome),
            };
            *after.seen.entry((place.clone(), kind, record)).or_default() += 1;
            match step {
                Step::Duplicate => after.tally.duplicate += 1,
                Step::Folded | Step::ProfileChanged | Step::Erased | Step::Passed => {
                    after.tally.folded += 1;
                }
            }
        }
        if let Edit::First(..) = plan.edit {
            metrics::first_fallbacks(1);
        }
        metrics::unknown_skus(plan.unknown);
        after.requests.extend(plan.requests);
        if plan.erased {
            after.erased.push(user.clone());
        }
        if let Edit::Strip(list) = plan.edit {
            after.stripped.push((user.clone(), list));
        }
        for counted in plan.counted {
            after
                .counted
                .entry(counted.position.partition.clone())
                .or_default()
                .push(counted);
        }
        self.cache.put(user, (self.age, plan.held));
    }

    /// Stored lists of users whose profile may change: what it newly forbids goes in the same step.
    async fn lists(
        &self,
        todo: &BTreeMap<UserId, Vec<Accepted>>,
    ) -> Result<BTreeMap<UserId, StoredList>, Error> {
        let users: Vec<UserId> = todo
            .iter()
            .filter(|(_, records)| {
                records
                    .iter()
                    .any(|r| matches!(r.change, Change::Profile(_)))
            })
            .map(|(user, _)| user.clone())
            .collect();
        if users.is_empty() {
            return Ok(BTreeMap::new());
        }
        let peeks = self.store.peek(&self.settings.ns, &users).await?;
        let listed = users.into_iter().zip(peeks).filter_map(|(user, peek)| {
            let Stored {
                doc,
                claim,
                seen,
                epoch,
                audit,
                ..
            } = peek.list?;
            let doc = Document::parse(&doc).ok()?;
            Some((
                user,
                StoredList {
                    claim,
                    epoch,
                    seen,
                    doc,
                    audit,
                },
            ))
        });
        Ok(listed.collect())
    }

    /// Adds to the counts, all partitions in one go; cuts again from the stored fence until every chain fits.
    async fn count(
        &self,
        chains: &mut Chains,
        mut counted: BTreeMap<Partition, Vec<Counted>>,
    ) -> Result<(), Error> {
        let ns = &self.settings.ns;
        for (partition, events) in &mut counted {
            events.sort_by_key(|event| event.position.offset);
            if !chains.contains_key(partition) {
                let fences = self.store.count_fences(ns, partition).await?;
                chains.insert(partition.clone(), fences);
            }
        }
        loop {
            let mut all = Vec::new();
            for (partition, events) in &counted {
                let chain = chains.entry(partition.clone()).or_default();
                all.extend(deltas(partition, events, chain));
            }
            if all.is_empty() {
                return Ok(());
            }
            let outcomes = self.store.add(ns, &all).await?;
            for (delta, outcome) in all.into_iter().zip(outcomes) {
                let fence = match outcome {
                    Added::Stored => Some(delta.last),
                    Added::Fence(fence) => fence,
                };
                let chain = chains.entry(delta.partition).or_default();
                match fence {
                    Some(fence) => chain.insert(delta.shard, fence),
                    None => chain.remove(&delta.shard),
                };
            }
        }
    }

    async fn tell(&self, after: &mut After) -> Result<(), Error> {
        let IngestSettings { topics, ns, .. } = &self.settings;
        let mut out = Vec::new();
        for request in after.requests.drain(..) {
            metrics::requests(request.reason, 1);
            after.tally.requests += 1;
            out.push(request_record(topics, &request));
        }
        if !out.is_empty() {
            self.log.send(out).await?;
        }
        let mut told = Vec::new();
        for user in &after.erased {
            metrics::erases(1);
            told.push((user.clone(), None));
        }
        for (user, list) in &after.stripped {
            let doc = list.doc.to_json();
            let value = Update::json((list.claim, list.epoch), &list.seen, (&doc, &list.audit));
            told.push((user.clone(), Some(value)));
        }
        publish_updates(&self.log, &self.store, (topics, ns), told).await
    }
}
