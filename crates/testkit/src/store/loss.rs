//! How the double loses writes: it returns to earlier contents, as a whole or on one of its primaries.
//!
//! Invariant: the contents of a primary afterwards are those of one earlier moment, no mixture, as after a failover
//! to a replica that was behind. The test decides when that happens.

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use super::{Inner, MemoryStore, Space};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Error, Lineage};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Partition, Resume};

/// Number of primaries over which the double's keys are spread, for losses and checkpoints.
pub(super) const PRIMARIES: usize = 2;

/// Contents of a store at one moment.
#[derive(Clone, Debug)]
pub struct Contents(Inner);

/// Which primaries lose their last writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// All primaries.
    All,
    /// One primary, by its number modulo [`PRIMARIES`].
    Primary(usize),
}

impl Lost {
    /// All primaries for 0, else one of them.
    pub fn of(number: usize) -> Self {
        match number {
            0 => Self::All,
            nth => Self::Primary(nth),
        }
    }

    fn affects(self, nth: usize) -> bool {
        match self {
            Self::All => true,
            Self::Primary(lost) => lost % PRIMARIES == nth % PRIMARIES,
        }
    }
}

/// Checkpoints which claim that all records are written.
pub(super) fn everything() -> BTreeMap<Partition, Resume> {
    let topics = Topics::default().all().into_iter();
    let partitions = topics.flat_map(|topic| (0..64).map(move |number| (topic.clone(), number)));
    let partition = |(topic, number)| Partition {
        incarnation: 0,
        topic,
        number,
    };
    let end = |of| (partition(of), Resume(i64::MAX));
    partitions.map(end).collect()
}

fn primary_of(user: &UserId) -> usize {
    keys::hash(&user.0) as usize
}

impl MemoryStore {
    /// Its present contents.
    pub fn snapshot(&self) -> Contents {
        Contents(self.lock().clone())
    }

    /// Loses everything written since `to`, and starts a new lineage.
    pub fn fall_back(&self, to: &Contents, lost: Lost) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.losses += 1;
        let names: Vec<String> = inner.spaces.keys().cloned().collect();
        for name in names {
            let before = to.0.spaces.get(&name).cloned().unwrap_or_default();
            let space = inner.spaces.entry(name).or_default();
            fall_back(space, before, lost);
        }
        restore(&mut inner.erased, &to.0.erased, |user| {
            lost.affects(primary_of(user))
        });
        restore(&mut inner.sets, &to.0.sets, |set| {
            lost.affects(usize::from(*set))
        });
        if self.flaws.stray_checkpoint {
            return;
        }
        for (nth, checkpoints) in inner.checkpoints.iter_mut().enumerate() {
            if lost.affects(nth) {
                checkpoints.clone_from(&to.0.checkpoints[nth]);
            }
        }
    }

    /// Locks for a conditional write; [`Error::Regressed`] if this handle is of another lineage.
    pub(super) fn writable(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = self.lock();
        let present = inner.lineage();
        match &self.lineage {
            Some(lineage) if *lineage != present && !self.flaws.blind_lineage => {
                Err(Error::Regressed {
                    addr: "memory".into(),
                })
            }
            _ => Ok(inner),
        }
    }
}

fn fall_back(space: &mut Space, before: Space, lost: Lost) {
    restore(&mut space.users, &before.users, |user| {
        lost.affects(primary_of(user))
    });
    restore(&mut space.shards, &before.shards, |shard| {
        lost.affects(usize::from(*shard))
    });
}

/// Restores the values of the affected keys.
fn restore<K: Ord + Clone, V: Clone>(
    now: &mut BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    affected: impl Fn(&K) -> bool,
) {
    now.retain(|key, _| !affected(key));
    let old = before.iter().filter(|(key, _)| affected(key));
    now.extend(old.map(|(key, value)| (key.clone(), value.clone())));
}

impl Inner {
    pub(super) fn lineage(&self) -> Lineage {
        Lineage(self.losses.to_string().into())
    }

    pub(super) fn raise(&mut self, reader: &str, done: &[(Partition, Resume)]) {
        for checkpoints in &mut self.checkpoints {
            let positions = checkpoints.entry(reader.into()).or_default();
            for (partition, resume) in done {
                let stored = positions.entry(partition.clone()).or_insert(*resume);
                *stored = (*stored).max(*resume);
            }
        }
    }

    pub(super) fn least(&self, reader: &str) -> BTreeMap<Partition, Resume> {
        let mut primaries = self.checkpoints.iter().map(|primary| primary.get(reader));
        let first = primaries.next().flatten().cloned().unwrap_or_default();
        primaries.fold(first, |least, primary| {
            let both = least.into_iter().filter_map(|(partition, at)| {
                let other = primary?.get(&partition)?;
                Some((partition, at.min(*other)))
            });
            both.collect()
        })
    }
}
