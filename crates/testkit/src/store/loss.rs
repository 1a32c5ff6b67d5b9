//! How the double loses writes: it falls back to what it held before, as a whole or on one of its primaries.
//!
//! Invariant: what a primary holds afterwards is what it held at one moment before, no mixture, as after a
//! failover to a replica that was behind. It does not decide when.

use std::collections::BTreeMap;
use std::sync::MutexGuard;

use super::{Inner, MemoryStore, Space};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Error, Lineage};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Partition, Resume};

/// Primaries that the double's keys are spread over, for losses and checkpoints.
pub(super) const PRIMARIES: usize = 2;

/// What a store held at one moment.
#[derive(Clone, Debug)]
pub struct Contents(Inner);

/// Whose last writes are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// All primaries'.
    All,
    /// One primary's, by its number modulo how many there are.
    Primary(usize),
}

impl Lost {
    /// 0: all; else one of them.
    pub fn of(chance: usize) -> Self {
        match chance {
            0 => Self::All,
            nth => Self::Primary(nth),
        }
    }

    fn has(self, nth: usize) -> bool {
        match self {
            Self::All => true,
            Self::Primary(of) => of % PRIMARIES == nth % PRIMARIES,
        }
    }
}

/// Notes of a reader that is always told that all is written.
pub(super) fn everything() -> BTreeMap<Partition, Resume> {
    let topics = Topics::default().all().into_iter();
    let partitions = topics.flat_map(|topic| (0..64).map(move |number| (topic.clone(), number)));
    let partition = |(topic, number)| Partition {
        incarnation: 0,
        topic,
        number,
    };
    let note = |of| (partition(of), Resume(i64::MAX));
    partitions.map(note).collect()
}

fn home(user: &UserId) -> usize {
    keys::hash(&user.0) as usize
}

impl MemoryStore {
    /// What it holds now.
    pub fn snapshot(&self) -> Contents {
        Contents(self.lock().clone())
    }

    /// Loses everything written since; the lineage is another one from now on.
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
        swap(&mut inner.erased, &to.0.erased, |user| lost.has(home(user)));
        swap(&mut inner.sets, &to.0.sets, |set| {
            lost.has(usize::from(*set))
        });
        if self.flaws.stray_checkpoint {
            return;
        }
        for (nth, checkpoints) in inner.checkpoints.iter_mut().enumerate() {
            if lost.has(nth) {
                checkpoints.clone_from(&to.0.checkpoints[nth]);
            }
        }
    }

    /// The lock for a conditional write: only where this handle's lineage rules.
    pub(super) fn writable(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = self.lock();
        let ruling = inner.lineage();
        match &self.lineage {
            Some(lineage) if *lineage != ruling && !self.flaws.blind_lineage => {
                Err(Error::Regressed {
                    addr: "memory".into(),
                })
            }
            _ => Ok(inner),
        }
    }
}

fn fall_back(space: &mut Space, before: Space, lost: Lost) {
    swap(&mut space.users, &before.users, |user| lost.has(home(user)));
    swap(&mut space.shards, &before.shards, |shard| {
        lost.has(usize::from(*shard))
    });
}

/// Makes these keys what they were.
fn swap<K: Ord + Clone, V: Clone>(
    now: &mut BTreeMap<K, V>,
    before: &BTreeMap<K, V>,
    theirs: impl Fn(&K) -> bool,
) {
    now.retain(|key, _| !theirs(key));
    let old = before.iter().filter(|(key, _)| theirs(key));
    now.extend(old.map(|(key, value)| (key.clone(), value.clone())));
}

impl Inner {
    pub(super) fn lineage(&self) -> Lineage {
        Lineage(self.losses.to_string().into())
    }

    pub(super) fn raise(&mut self, reader: &str, done: &[(Partition, Resume)]) {
        for checkpoints in &mut self.checkpoints {
            let noted = checkpoints.entry(reader.into()).or_default();
            for (partition, resume) in done {
                let held = noted.entry(partition.clone()).or_insert(*resume);
                *held = (*held).max(*resume);
            }
        }
    }

    pub(super) fn least(&self, reader: &str) -> BTreeMap<Partition, Resume> {
        let mut all = self.checkpoints.iter().map(|of| of.get(reader));
        let first = all.next().flatten().cloned().unwrap_or_default();
        all.fold(first, |least, of| {
            let both = least.into_iter().filter_map(|(partition, at)| {
                let other = of?.get(&partition)?;
                Some((partition, at.min(*other)))
            });
            both.collect()
        })
    }
}
