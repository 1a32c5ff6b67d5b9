//! Checkpoints in the store beside positions in the log, to notice and repair lost writes: [`Checkpoints`].
//!
//! Invariant: nothing is written for a partition until the store was verified to hold everything before the position
//! where its reading began, and then only in the lineage in which that was verified
//! ([decision 18](../docs/decisions/0018-a-checkpoint-on-every-primary.md)). It does not know what records mean.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::metrics;
use nearshore_core::ports::log::{self, Log};
use nearshore_core::ports::store::{self, Lineage, Store};
use nearshore_core::user::record::{Partition, Resume};

/// How often a reader that writes nothing checks that the store lost no writes.
pub const STORE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The store failed. [`store::Remedy::Rewind`] asks for [`Checkpoints::rewind`].
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The checkpoints and positions of one reader, a member of a consumer group.
pub struct Checkpoints<S> {
    store: S,
    /// Name under which the checkpoints are stored.
    reader: String,
    /// The lineage that was verified, and the handle whose writes have effect only in it.
    bound: Option<(Lineage, S)>,
    /// Partitions assigned to this member.
    assigned: BTreeSet<Partition>,
    /// Assigned partitions whose positions were not yet compared with the store.
    unverified: BTreeSet<Partition>,
    /// Position before which all is done, as far as this member knows.
    reached: BTreeMap<Partition, Resume>,
    /// Positions that are done and not yet committed.
    uncommitted: BTreeMap<Partition, Resume>,
    /// Why the stored checkpoints could not be used when they were read or written last.
    unusable: Option<String>,
}

impl<S: Store> Checkpoints<S> {
    /// Creates a reader that has no partition yet. `reader` names its checkpoints in the store.
    pub fn new(store: S, reader: impl Into<String>) -> Self {
        Self {
            store,
            reader: reader.into(),
            bound: None,
            assigned: BTreeSet::new(),
            unverified: BTreeSet::new(),
            reached: BTreeMap::new(),
            uncommitted: BTreeMap::new(),
            unusable: None,
        }
    }

    /// Why the stored checkpoints cannot be used; `None` if they can, as far as is known. Nothing is committed meanwhile.
    pub fn unusable(&self) -> Option<&str> {
        self.unusable.as_deref()
    }

    /// Remembers whether the stored checkpoints could be used.
    fn note<T>(&mut self, outcome: Result<T, store::Error>) -> Result<T, store::Error> {
        self.unusable = match &outcome {
            Err(error @ store::Error::Corrupt { .. }) => Some(error.to_string()),
            _ => None,
        };
        outcome
    }

    /// Takes over partitions that the group assigned.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        self.revoked(partitions);
        self.assigned.extend(partitions.iter().cloned());
        self.unverified.extend(partitions.iter().cloned());
    }

    /// Gives up partitions.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.assigned.remove(partition);
            self.unverified.remove(partition);
            self.reached.remove(partition);
            self.uncommitted.remove(partition);
        }
    }

    /// Makes a position committable. Call it when all effects of the partition's records before it are acknowledged.
    pub fn done(&mut self, partition: &Partition, resume: Resume) {
        self.reached.insert(partition.clone(), resume);
        self.uncommitted.insert(partition.clone(), resume);
    }

    /// Returns the store to write to, after all assigned partitions were verified against it.
    ///
    /// Fails with [`store::Error::Regressed`] if a checkpoint is missing or below its committed position: then writes
    /// are lost.
    pub async fn store<L: Log>(&mut self, log: &L) -> Result<S, Error> {
        let store = match &self.bound {
            Some((_, store)) => store.clone(),
            None => {
                let lineage = self.store.lineage().await?;
                let store = self.store.under(&lineage);
                self.bound = Some((lineage, store.clone()));
                store
            }
        };
        if self.unverified.is_empty() {
            return Ok(store);
        }
        let unverified: Vec<Partition> = self.unverified.iter().cloned().collect();
        // Positions first: a former owner that still commits raises its checkpoint before its position.
        let positions = log.committed(&unverified).await?;
        let checkpoints = store.checkpoints(&self.reader).await;
        let checkpoints = self.note(checkpoints)?;
        for position in positions {
            let checkpoint = checkpoints.get(&position.partition);
            if position.ours && checkpoint.is_none_or(|checkpoint| *checkpoint < position.resume) {
                return Err(self.regressed().into());
            }
            self.reached.insert(position.partition, position.resume);
        }
        self.unverified.clear();
        Ok(store)
    }

    /// Fails with [`store::Error::Regressed`] if the store is not the one that was verified. Called between writes, so
    /// that a loss is noticed on idle partitions, too.
    pub async fn check_store<L: Log>(&mut self, log: &L) -> Result<(), Error> {
        if let Some((lineage, _)) = &self.bound
            && self.store.lineage().await? != *lineage
        {
            return Err(self.regressed().into());
        }
        self.store(log).await.map(drop)
    }

    /// Writes the checkpoints of what is done, then commits it. A revoked partition is left to its new owner.
    pub async fn commit<L: Log>(&mut self, log: &L) -> Result<(), Error> {
        if self.uncommitted.is_empty() {
            return Ok(());
        }
        let store = self.store(log).await?;
        let done: Vec<(Partition, Resume)> = self.uncommitted.clone().into_iter().collect();
        let stored = store.checkpoint(&self.reader, &done).await;
        self.note(stored)?;
        log::commit_ours(log, done).await?;
        self.uncommitted.clear();
        Ok(())
    }

    /// Rewinds all assigned partitions to positions before which the store, as it is now, has everything. Call it after
    /// [`store::Error::Regressed`], and drop the records in hand and everything remembered of the store.
    pub async fn rewind<L: Log>(&mut self, log: &mut L) -> Result<(), Error> {
        let assigned: Vec<Partition> = self.assigned.iter().cloned().collect();
        // Lineage first: checkpoints of a later lineage than the one that writes are bound to are at worst too low.
        let lineage = self.store.lineage().await?;
        let checkpoints = self.store.checkpoints(&self.reader).await;
        let checkpoints = self.note(checkpoints)?;
        let positions = log.committed(&assigned).await?;
        let mut to = Vec::with_capacity(assigned.len());
        let mut uncommitted = BTreeMap::new();
        let mut records = 0;
        for partition in assigned {
            let position = positions.iter().find(|it| it.partition == partition);
            let reached = self.reached.get(&partition).copied();
            let reached = reached.or(position.map(|it| it.resume));
            // Without a checkpoint the store has lost everything, unless this group never wrote one.
            let beginning = match position {
                Some(it) if !it.ours => it.resume,
                _ => Resume(0),
            };
            let checkpoint = checkpoints.get(&partition).copied().unwrap_or(beginning);
            // Nothing was ever committed: reading began at the log's beginning, and a checkpoint alone commits nothing.
            let resume = reached.map_or(Resume(0), |reached| reached.min(checkpoint));
            if reached.is_some() {
                // Done and in the checkpoint, but perhaps not committed; no record before it will ask for a commit.
                uncommitted.insert(partition.clone(), resume);
            }
            records += reached.map_or(0, |reached| (reached.0 - resume.0).unsigned_abs());
            to.push((partition, resume));
        }
        log.rewind(&to).await?;
        metrics::rewound(records);
        tracing::warn!(
            reader = self.reader,
            partitions = to.len(),
            records,
            "Redis failed over or restarted and may have lost writes; records are read again from the log"
        );
        self.uncommitted = uncommitted;
        self.unverified.clear();
        self.reached = to.into_iter().collect();
        let store = self.store.under(&lineage);
        self.bound = Some((lineage, store));
        Ok(())
    }

    fn regressed(&self) -> store::Error {
        store::Error::Regressed {
            addr: self.reader.clone(),
        }
    }
}
