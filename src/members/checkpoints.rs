//! Where a reader stands in the store and in the log, so that a store that lost writes is read into again.
//!
//! Invariant: nothing is written for a partition until the store was seen to hold everything before the position
//! where its reading began, and then only in the lineage in which that was seen
//! ([decision 18](../docs/decisions/0018-a-checkpoint-on-every-primary.md)). It does not know what records ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::metrics;
use nearshore_core::ports::log::{self, Log};
use nearshore_core::ports::store::{self, Lineage, Store};
use nearshore_core::user::record::{Partition, Resume};

/// How often a reader that writes nothing looks whether the store is still the one it was.
pub const STORE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// What ends a try.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The store; [`store::Remedy::Rewind`] asks for [`Checkpoints::rewind`].
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// One reader: a member of a consumer group, under the name that its checkpoints have.
pub struct Checkpoints<S> {
    store: S,
    reader: String,
    /// What was looked at, and the handle whose writes have effect only there.
    bound: Option<(Lineage, S)>,
    /// Ours.
    own: BTreeSet<Partition>,
    /// Ours, and not yet compared with the store.
    unseen: BTreeSet<Partition>,
    /// Up to where everything is done, as far as this member knows.
    reached: BTreeMap<Partition, Resume>,
    /// Done, not yet committed.
    ready: BTreeMap<Partition, Resume>,
}

impl<S: Store> Checkpoints<S> {
    /// A reader that owns nothing yet.
    pub fn new(store: S, reader: impl Into<String>) -> Self {
        Self {
            store,
            reader: reader.into(),
            bound: None,
            own: BTreeSet::new(),
            unseen: BTreeSet::new(),
            reached: BTreeMap::new(),
            ready: BTreeMap::new(),
        }
    }

    /// Partitions are ours from now on.
    pub fn assigned(&mut self, partitions: &[Partition]) {
        self.revoked(partitions);
        self.own.extend(partitions.iter().cloned());
        self.unseen.extend(partitions.iter().cloned());
    }

    /// Partitions are no longer ours.
    pub fn revoked(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.own.remove(partition);
            self.unseen.remove(partition);
            self.reached.remove(partition);
            self.ready.remove(partition);
        }
    }

    /// All that these partitions' records before the position ask for is acknowledged.
    pub fn done(&mut self, partition: &Partition, resume: Resume) {
        self.reached.insert(partition.clone(), resume);
        self.ready.insert(partition.clone(), resume);
    }

    /// The store to write to, once all that is ours was compared with it.
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
        if self.unseen.is_empty() {
            return Ok(store);
        }
        let unseen: Vec<Partition> = self.unseen.iter().cloned().collect();
        // Positions first: a predecessor that still commits raises its note before them.
        let positions = log.committed(&unseen).await?;
        let noted = store.checkpoints(&self.reader).await?;
        for found in positions {
            let held = noted.get(&found.partition);
            if found.ours && held.is_none_or(|held| *held < found.resume) {
                return Err(self.regressed().into());
            }
            self.reached.insert(found.partition, found.resume);
        }
        self.unseen.clear();
        Ok(store)
    }

    /// Looks whether the store is still the one that was looked at. Between writes, so that an idle partition's
    /// loss is noticed too.
    pub async fn check_store<L: Log>(&mut self, log: &L) -> Result<(), Error> {
        if let Some((lineage, _)) = &self.bound
            && self.store.lineage().await? != *lineage
        {
            return Err(self.regressed().into());
        }
        self.store(log).await.map(drop)
    }

    /// Commits what is done, behind its checkpoint. A partition that is no longer ours is its new owner's business.
    pub async fn commit<L: Log>(&mut self, log: &L) -> Result<(), Error> {
        if self.ready.is_empty() {
            return Ok(());
        }
        let store = self.store(log).await?;
        let done: Vec<(Partition, Resume)> = self.ready.clone().into_iter().collect();
        store.checkpoint(&self.reader, &done).await?;
        log::commit_ours(log, done).await?;
        self.ready.clear();
        Ok(())
    }

    /// After [`store::Error::Regressed`]: all that is ours is read again from where the store, as it is now, has
    /// everything before. Whoever calls it drops what it has in hand and what it remembers of the store.
    pub async fn rewind<L: Log>(&mut self, log: &mut L) -> Result<(), Error> {
        let own: Vec<Partition> = self.own.iter().cloned().collect();
        // In this order: what is read of a later lineage than the one that writes are bound to is at worst too low.
        let lineage = self.store.lineage().await?;
        let noted = self.store.checkpoints(&self.reader).await?;
        let positions = log.committed(&own).await?;
        let mut to = Vec::with_capacity(own.len());
        let mut ready = BTreeMap::new();
        let mut again = 0;
        for partition in own {
            let position = positions.iter().find(|it| it.partition == partition);
            let reached = self.reached.get(&partition).copied();
            let begun = reached.or(position.map(|it| it.resume));
            // Without a note the store has lost it all, unless nothing was ever noted.
            let beginning = match position {
                Some(it) if !it.ours => it.resume,
                _ => Resume(0),
            };
            let held = noted.get(&partition).copied().unwrap_or(beginning);
            // Never committed: reading began at the log's beginning, and a note alone commits nothing.
            let resume = begun.map_or(Resume(0), |begun| begun.min(held));
            if begun.is_some() {
                // Done and noted; perhaps not committed, and what is not read again asks for no commit.
                ready.insert(partition.clone(), resume);
            }
            again += begun.map_or(0, |begun| (begun.0 - resume.0).unsigned_abs());
            to.push((partition, resume));
        }
        log.rewind(&to).await?;
        metrics::rewound(again);
        tracing::warn!(
            reader = self.reader,
            partitions = to.len(),
            records = again,
            "the store is not the one it was; its lost writes are made again from the log"
        );
        self.ready = ready;
        self.unseen.clear();
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
