//! Records that the broker deleted before they were read: [`Place`].
//!
//! With `auto.offset.reset=earliest` a consumer that is behind the retention goes on at what is left: librdkafka's log says
//! where it stood and not what is missing. The traces are the partition's first offset, which librdkafka asks for with its
//! statistics, and a jump in what it hands out; but compaction and transactions make jumps, too. So: a jump is a loss as
//! far as the log begins behind its start, which is known a moment later. Invariant: no record is told as lost twice, and
//! none that was handed out.

use std::ops::Range;
use std::time::{Duration, Instant};

use nearshore_core::user::record::{Offset, Resume};

/// How long a jump may wait for the log's first offset: two of librdkafka's statistics and a slow answer.
const KNOWN: Duration = Duration::from_secs(8);
/// Jumps that are remembered.
const JUMPS_MAX: usize = 16;

/// How far a partition was handed out without a word about what is missing.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The next record that is accounted for; `None` where it is unknown where the group stood.
    next: Option<i64>,
    /// The first that was handed out while that was unknown.
    first: Option<i64>,
    /// Jumps that may yet prove to be losses, since when.
    jumps: Vec<(Range<i64>, Instant)>,
}

impl Place {
    /// Reading goes on at `at`.
    pub fn at(at: Resume) -> Self {
        Self {
            next: Some(at.0),
            ..Self::default()
        }
    }

    /// A record is handed out.
    #[inline]
    pub fn read(&mut self, offset: Offset, now: impl FnOnce() -> Instant) {
        match self.next {
            Some(next) if offset.0 > next => self.jumped(next..offset.0, now()),
            Some(_) => {}
            None => self.first = Some(offset.0),
        }
        self.next = Some(offset.0 + 1);
    }

    /// A compacted log is full of jumps: the longest are kept.
    fn jumped(&mut self, over: Range<i64>, now: Instant) {
        let length = |(range, _): &(Range<i64>, Instant)| range.end - range.start;
        self.jumps.push((over, now));
        if self.jumps.len() > JUMPS_MAX
            && let Some(shortest) =
                (0..self.jumps.len()).min_by_key(|nth| length(&self.jumps[*nth]))
        {
            self.jumps.swap_remove(shortest);
        }
    }

    /// What is lost, now that the log is known to begin at `begin`; `began` is where the group stood when the partition
    /// became ours, if it did and that is known.
    pub fn lost(
        &mut self,
        (begin, began): (Offset, Option<Resume>),
        now: Instant,
    ) -> Vec<Range<i64>> {
        if let Some(began) = began {
            match self.first.take() {
                Some(first) if first > began.0 => self.jumped(began.0..first, now),
                Some(_) => {}
                None => {
                    self.next.get_or_insert(began.0);
                }
            }
        }
        let mut lost = Vec::new();
        self.jumps.retain_mut(|(over, since)| {
            let gone = begin.0.min(over.end);
            if gone > over.start {
                lost.push(over.start..gone);
                over.start = gone;
            }
            over.start < over.end && now.duration_since(*since) < KNOWN
        });
        // Nothing was handed out beyond these, so they never will be.
        if let Some(next) = self.next.filter(|next| *next < begin.0) {
            lost.push(next..begin.0);
            self.next = Some(begin.0);
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: [(i64, i64); 0] = [];

    fn lost(place: &mut Place, begin: i64, began: Option<i64>) -> Vec<(i64, i64)> {
        let lost = place.lost((Offset(begin), began.map(Resume)), Instant::now());
        lost.into_iter().map(|it| (it.start, it.end)).collect()
    }

    fn read(place: &mut Place, offset: i64) {
        place.read(Offset(offset), Instant::now);
    }

    #[test]
    fn a_jump_is_a_loss_only_as_far_as_the_log_begins_behind_it() {
        let mut place = Place::at(Resume(5));
        read(&mut place, 5);
        read(&mut place, 9);
        assert_eq!(lost(&mut place, 3, None), NONE, "compaction, or too early");
        assert_eq!(lost(&mut place, 9, None), [(6, 9)]);
        assert_eq!(lost(&mut place, 9, None), NONE, "once");
    }

    #[test]
    fn what_is_deleted_before_anything_is_read_is_lost() {
        let mut place = Place::default();
        assert_eq!(lost(&mut place, 40, None), NONE, "a group that is new");
        assert_eq!(lost(&mut place, 40, Some(10)), [(10, 40)]);
        read(&mut place, 40);
        assert_eq!(lost(&mut place, 41, Some(10)), NONE);
        assert_eq!(lost(&mut place, 50, Some(10)), [(41, 50)]);
    }

    #[test]
    fn where_the_group_stood_may_be_known_after_the_first_record() {
        let mut place = Place::default();
        read(&mut place, 40);
        read(&mut place, 41);
        assert_eq!(lost(&mut place, 40, Some(10)), [(10, 40)]);
        assert_eq!(lost(&mut place, 40, Some(10)), NONE, "once");
    }

    #[test]
    fn a_jump_of_compaction_is_forgotten_before_retention_comes_to_it() {
        let mut place = Place::at(Resume(0));
        let start = Instant::now();
        place.read(Offset(7), || start);
        assert_eq!(place.lost((Offset(0), None), start + KNOWN), []);
        assert_eq!(place.lost((Offset(6), None), start + KNOWN), []);
    }

    proptest! {
        /// A log of 200 records without compaction, deleted from its front and read from a place, in any order.
        #[test]
        fn what_was_read_and_what_is_lost_are_all_there_was(
            began in 0i64..50,
            steps in proptest::collection::vec((0i64..9, 0i64..9, any::<bool>()), 1..40),
        ) {
            let mut place = Place::default();
            let (mut begin, mut at) = (0i64, began);
            let (mut handed, mut gone) = (Vec::new(), Vec::new());
            for (deletes, reads, known) in steps {
                begin += deletes;
                for _ in 0..reads {
                    at = at.max(begin);
                    read(&mut place, at);
                    handed.push(at);
                    at += 1;
                }
                let began = known.then_some(began);
                gone.extend(lost(&mut place, begin, began).into_iter().flat_map(|(from, to)| from..to));
            }
            gone.extend(lost(&mut place, begin, Some(began)).into_iter().flat_map(|(from, to)| from..to));
            let at = at.max(begin);
            let mut all = [handed, gone].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (began..at).collect::<Vec<_>>());
        }
    }
}
