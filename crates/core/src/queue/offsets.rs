//! Tracks records in progress per partition, and computes the offsets that may be committed.
//!
//! Invariant: a commit is never past a record that began and is not done. Offsets may have gaps, and records may be
//! done in any order. It does not know what was done with a record, nor when commits are sent.
//!
//! Only records that are *not* done are stored, so one slow record costs one entry, however many after it are done.

use std::collections::{BTreeMap, BTreeSet};

use crate::user::record::{Offset, Partition, Position, Resume};

/// Records in progress of all assigned partitions.
#[derive(Clone, Debug, Default)]
pub struct InProgress {
    partitions: BTreeMap<Partition, Tracked>,
    undone: usize,
}

#[derive(Clone, Debug)]
struct Tracked {
    undone: BTreeSet<Offset>,
    /// One past the highest record that began.
    reached: Resume,
    /// Where reading began.
    started: Resume,
    /// The highest returned for a commit; `started` before the first.
    committed: Resume,
}

impl Tracked {
    fn resume(&self) -> Resume {
        match self.undone.first() {
            Some(first) => Resume(first.0),
            None => self.reached,
        }
    }
}

impl InProgress {
    /// Notes that a record was delivered. After a rewind it is in progress again.
    pub fn began(&mut self, position: &Position) {
        let offset = position.offset;
        let tracked = match self.partitions.get_mut(&position.partition) {
            Some(tracked) => tracked,
            None => self
                .partitions
                .entry(position.partition.clone())
                .or_insert(Tracked {
                    undone: BTreeSet::new(),
                    reached: Resume(offset.0),
                    started: Resume(offset.0),
                    committed: Resume(offset.0),
                }),
        };
        tracked.reached = tracked.reached.max(Resume::after(offset));
        if tracked.undone.insert(offset) {
            self.undone += 1;
        }
    }

    /// Notes that every effect of the record is acknowledged. Ignores a record that is not in progress: its partition
    /// may have been revoked.
    pub fn done(&mut self, position: &Position) {
        let Some(tracked) = self.partitions.get_mut(&position.partition) else {
            return;
        };
        if tracked.undone.remove(&position.offset) {
            self.undone -= 1;
        }
    }

    /// Where reading may resume; `None` while that is where it began. After a rewind it may be lower than the committed
    /// offset, which [`InProgress::take_commits`] never lowers.
    pub fn resume(&self, partition: &Partition) -> Option<Resume> {
        let tracked = self.partitions.get(partition)?;
        Some(tracked.resume()).filter(|resume| *resume > tracked.started)
    }

    /// Drops partitions that are no longer assigned.
    pub fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(tracked) = self.partitions.remove(partition) {
                self.undone -= tracked.undone.len();
            }
        }
    }

    /// Offsets to commit now, of the partitions that advanced since the last call.
    pub fn take_commits(&mut self) -> Vec<(Partition, Resume)> {
        let mut commits = Vec::new();
        for (partition, tracked) in &mut self.partitions {
            let resume = tracked.resume();
            if resume > tracked.committed {
                tracked.committed = resume;
                commits.push((partition.clone(), resume));
            }
        }
        commits
    }

    /// Number of records in progress.
    pub fn len(&self) -> usize {
        self.undone
    }

    /// Whether no record is in progress.
    pub fn is_empty(&self) -> bool {
        self.undone == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(partition: usize, offset: i64) -> Position {
        format!("0/t/{partition}:{offset}").parse().expect("valid")
    }

    #[test]
    fn a_slow_record_delays_the_commit_of_later_ones() {
        let mut hand = InProgress::default();
        for offset in [5, 6, 9] {
            hand.began(&at(0, offset));
        }
        hand.done(&at(0, 9));
        hand.done(&at(0, 6));
        assert_eq!(hand.resume(&at(0, 0).partition), None);
        assert_eq!(hand.take_commits(), []);
        hand.done(&at(0, 5));
        assert_eq!(hand.take_commits(), [(at(0, 0).partition, Resume(10))]);
        assert_eq!(hand.take_commits(), [], "returned once");
        assert!(hand.is_empty());
    }

    #[test]
    fn done_after_a_revoke_is_ignored() {
        let mut hand = InProgress::default();
        hand.began(&at(0, 1));
        hand.began(&at(1, 1));
        hand.revoke(&[at(0, 0).partition]);
        hand.done(&at(0, 1));
        assert_eq!((hand.len(), hand.resume(&at(0, 0).partition)), (1, None));
        assert_eq!(hand.take_commits(), []);
    }

    #[test]
    fn a_rewind_lowers_no_commit() {
        let mut hand = InProgress::default();
        for offset in 0..4 {
            hand.began(&at(0, offset));
            hand.done(&at(0, offset));
        }
        assert_eq!(hand.take_commits().len(), 1);
        hand.began(&at(0, 1));
        assert_eq!(hand.resume(&at(0, 0).partition), Some(Resume(1)));
        assert_eq!(hand.take_commits(), []);
        hand.done(&at(0, 1));
        hand.began(&at(0, 4));
        hand.done(&at(0, 4));
        assert_eq!(hand.take_commits(), [(at(0, 0).partition, Resume(5))]);
    }

    proptest! {
        #[test]
        fn a_commit_never_passes_an_undone_record(
            acts in prop::collection::vec((0usize..3, 1i64..4, any::<prop::sample::Index>(), 0u8..8), 0..200),
        ) {
            let mut hand = InProgress::default();
            let mut next = [10i64; 3];
            let mut undone: BTreeSet<(usize, i64)> = BTreeSet::new();
            let mut committed: BTreeMap<Partition, Resume> = BTreeMap::new();
            for (partition, gap, which, act) in acts {
                match act {
                    0..=3 => {
                        next[partition] += gap;
                        hand.began(&at(partition, next[partition]));
                        undone.insert((partition, next[partition]));
                    }
                    4..=6 if !undone.is_empty() => {
                        let (p, o) = *undone.iter().nth(which.index(undone.len())).expect("inside");
                        undone.remove(&(p, o));
                        hand.done(&at(p, o));
                    }
                    _ if gap == 1 => {
                        hand.revoke(&[at(partition, 0).partition]);
                        undone.retain(|(p, _)| *p != partition);
                        committed.remove(&at(partition, 0).partition);
                    }
                    _ => {}
                }
                prop_assert_eq!(hand.len(), undone.len());
                for (partition, resume) in hand.take_commits() {
                    let number = partition.number as usize;
                    let passed = undone.iter().find(|(p, o)| *p == number && *o < resume.0);
                    prop_assert_eq!(passed, None);
                    prop_assert!(resume.0 <= next[number] + 1);
                    prop_assert!(committed.insert(partition, resume) < Some(resume));
                }
            }
            for (partition, offset) in undone {
                hand.done(&at(partition, offset));
            }
            committed.extend(hand.take_commits());
            for (partition, resume) in committed {
                prop_assert_eq!(resume.0, next[partition.number as usize] + 1, "everything is committed at the end");
            }
        }
    }
}
