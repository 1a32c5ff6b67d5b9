//! Who of a batch may begin, and who may go on: memory for keys and values, rows of a pass.
//!
//! Decides in the order of arrival. Invariant: the oldest always goes on, however large it is, so that
//! nobody starves; otherwise what is in use stays within the limit. It knows neither users nor models.

use std::ops::Range;

/// Bytes for keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// At most so many.
    pub limit: usize,
    /// In use.
    pub used: usize,
}

impl Budget {
    /// Whether a newcomer that begins with `bytes` may begin beside `running` others.
    pub(crate) fn admits(&self, bytes: usize, running: usize) -> bool {
        running == 0 || self.used.saturating_add(bytes) <= self.limit
    }

    /// Which of those that run, oldest first, may have the bytes that they want next.
    pub(crate) fn grants(&self, wants: &[usize]) -> Vec<bool> {
        let mut used = self.used;
        let mut grant = |(nth, bytes): (usize, &usize)| {
            let granted = nth == 0 || used.saturating_add(*bytes) <= self.limit;
            used = used.saturating_add(if granted { *bytes } else { 0 });
            granted
        };
        wants.iter().enumerate().map(&mut grant).collect()
    }
}

/// Cuts the rows that users want, one after the other, into passes of at most `rows_max` rows, unless
/// one user alone has more.
pub(crate) fn passes(rows: &[usize], rows_max: usize) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut filled = 0;
    for (user, rows) in rows.iter().enumerate() {
        match passes.last_mut() {
            Some(pass) if filled + rows <= rows_max => pass.end = user + 1,
            _ => {
                passes.push(user..user + 1);
                filled = 0;
            }
        }
        filled += rows;
    }
    passes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_oldest_always_goes_on_and_the_rest_only_within_the_limit(
            wants in prop::collection::vec(0usize..100, 1..20),
            used in 0usize..200,
            limit in 0usize..300,
        ) {
            let granted = Budget { limit, used }.grants(&wants);
            prop_assert_eq!(granted.len(), wants.len());
            let mut used = used;
            for (nth, (want, granted)) in wants.iter().zip(granted).enumerate() {
                if granted {
                    used += want;
                    prop_assert!(nth == 0 || used <= limit);
                } else {
                    prop_assert!(nth > 0 && used + want > limit);
                }
            }
        }

        #[test]
        fn passes_hold_every_user_once_in_order_and_are_cut_no_earlier_than_needed(
            rows in prop::collection::vec(0usize..60, 0..30), rows_max in 1usize..80,
        ) {
            let passes = passes(&rows, rows_max);
            let all: Vec<usize> = passes.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..rows.len()).collect::<Vec<_>>());
            let of = |pass: &Range<usize>| rows[pass.clone()].iter().sum::<usize>();
            for pass in &passes {
                prop_assert!(of(pass) <= rows_max || pass.len() == 1);
            }
            for pair in passes.windows(2) {
                prop_assert!(of(&pair[0]) + rows[pair[1].start] > rows_max);
            }
        }
    }

    #[test]
    fn a_newcomer_waits_for_room_unless_nobody_runs() {
        let budget = Budget { limit: 10, used: 6 };
        assert!(budget.admits(4, 3) && !budget.admits(5, 3) && budget.admits(500, 0));
    }
}
