//! Records that the broker deleted before they were read: [`Place`].
//!
//! With `auto.offset.reset=earliest` a consumer that is behind the retention continues at the first record that is
//! left. librdkafka's log says where the consumer was, and not what is missing. There are two signs: the partition's
//! first offset, which librdkafka asks for with its statistics, and a jump in the offsets of its messages. Compaction
//! and transactions cause jumps too. So a jump counts as a loss as far as the log begins behind the jump's start,
//! which is known a moment later. Invariant: no record is reported as lost twice, and none that was delivered.

use std::ops::Range;
use std::time::{Duration, Instant};

use nearshore_core::user::record::{Offset, Resume};

/// How long a jump may wait for the log's first offset: two of librdkafka's statistics and a slow answer.
const KNOWN: Duration = Duration::from_secs(8);
/// Largest number of jumps kept.
const JUMPS_MAX: usize = 16;

/// How far a partition was delivered, and the jumps that may be losses.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The next expected offset; `None` as long as the group's position is unknown.
    next: Option<i64>,
    /// The first offset that was delivered while the group's position was unknown.
    first: Option<i64>,
    /// Jumps that may turn out to be losses, and since when each is known.
    jumps: Vec<(Range<i64>, Instant)>,
}

impl Place {
    /// A place from which reading continues at `at`.
    pub(super) fn at(at: Resume) -> Self {
        Self {
            next: Some(at.0),
            ..Self::default()
        }
    }

    /// Counts a delivered record.
    #[inline]
    pub(super) fn read(&mut self, offset: Offset, now: impl FnOnce() -> Instant) {
        match self.next {
            Some(next) if offset.0 > next => self.jumped(next..offset.0, now()),
            Some(_) => {}
            None => self.first = Some(offset.0),
        }
        self.next = Some(offset.0 + 1);
    }

    /// Keeps a jump. A compacted log has many: the longest are kept.
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

    /// The lost offsets, now that the log is known to begin at `begin`; `began` is the group's position when the
    /// partition was assigned, if there is one and it is known.
    pub(super) fn lost(
        &mut self,
        begin: Offset,
        began: Option<Resume>,
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
            let deleted = begin.0.min(over.end);
            if deleted > over.start {
                lost.push(over.start..deleted);
                over.start = deleted;
            }
            over.start < over.end && now.duration_since(*since) < KNOWN
        });
        // No later record was delivered yet, and these are deleted already.
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
        let lost = place.lost(Offset(begin), began.map(Resume), Instant::now());
        lost.into_iter()
            .map(|range| (range.start, range.end))
            .collect()
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
    fn records_deleted_before_the_first_read_are_lost() {
        let mut place = Place::default();
        assert_eq!(lost(&mut place, 40, None), NONE, "a new group");
        assert_eq!(lost(&mut place, 40, Some(10)), [(10, 40)]);
        read(&mut place, 40);
        assert_eq!(lost(&mut place, 41, Some(10)), NONE);
        assert_eq!(lost(&mut place, 50, Some(10)), [(41, 50)]);
    }

    #[test]
    fn records_before_the_first_delivered_one_are_lost_if_the_group_was_before_them() {
        let mut place = Place::default();
        read(&mut place, 40);
        read(&mut place, 41);
        assert_eq!(lost(&mut place, 40, Some(10)), [(10, 40)]);
        assert_eq!(lost(&mut place, 40, Some(10)), NONE, "once");
    }

    #[test]
    fn a_jump_of_compaction_is_dropped_before_retention_reaches_it() {
        let mut place = Place::at(Resume(0));
        let start = Instant::now();
        place.read(Offset(7), || start);
        assert_eq!(place.lost(Offset(0), None, start + KNOWN), []);
        assert_eq!(place.lost(Offset(6), None, start + KNOWN), []);
    }

    proptest! {
        /// A log without compaction, deleted from its front and read from some position, in any order.
        #[test]
        fn every_record_is_either_read_or_lost_exactly_once(
            began in 0i64..50,
            steps in proptest::collection::vec((0i64..9, 0i64..9, any::<bool>()), 1..40),
        ) {
            let mut place = Place::default();
            let (mut begin, mut at) = (0i64, began);
            let (mut delivered, mut missing) = (Vec::new(), Vec::new());
            for (deletes, reads, known) in steps {
                begin += deletes;
                for _ in 0..reads {
                    at = at.max(begin);
                    read(&mut place, at);
                    delivered.push(at);
                    at += 1;
                }
                let began = known.then_some(began);
                missing.extend(lost(&mut place, begin, began).into_iter().flat_map(|(from, to)| from..to));
            }
            missing.extend(lost(&mut place, begin, Some(began)).into_iter().flat_map(|(from, to)| from..to));
            let at = at.max(begin);
            let mut all = [delivered, missing].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (began..at).collect::<Vec<_>>());
        }
    }
}
