//! Which users of a batch may start and which may continue: memory for keys and values, rows of a pass.
//!
//! Decides in the order of arrival. Invariant: the oldest user always continues, however large its request is, so that
//! no user starves; apart from that, memory in use stays within the limit. It knows neither prompts nor models.

use std::ops::Range;

/// A limit on bytes for keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// The most bytes.
    pub limit: usize,
    /// Bytes in use.
    pub used: usize,
}

impl Budget {
    /// Whether a user that needs `bytes` may start while `running` users run.
    pub(crate) fn admits(&self, bytes: usize, running: usize) -> bool {
        running == 0 || self.used.saturating_add(bytes) <= self.limit
    }

    /// Per running user, oldest first: whether it gets the bytes that it needs next.
    pub(crate) fn grants(&self, needs: &[usize]) -> Vec<bool> {
        let mut used = self.used;
        let mut grant = |(nth, bytes): (usize, &usize)| {
            let granted = nth == 0 || used.saturating_add(*bytes) <= self.limit;
            used = used.saturating_add(if granted { *bytes } else { 0 });
            granted
        };
        needs.iter().enumerate().map(&mut grant).collect()
    }
}

/// Groups users, in order, into passes of at most `rows_max` rows; a pass with more rows has one user. `rows`: rows per
/// user.
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
        fn the_oldest_user_always_continues_and_others_only_within_the_limit(
            needs in prop::collection::vec(0usize..100, 1..20),
            used in 0usize..200,
            limit in 0usize..300,
        ) {
            let granted = Budget { limit, used }.grants(&needs);
            prop_assert_eq!(granted.len(), needs.len());
            let mut used = used;
            for (nth, (need, granted)) in needs.iter().zip(granted).enumerate() {
                if granted {
                    used += need;
                    prop_assert!(nth == 0 || used <= limit);
                } else {
                    prop_assert!(nth > 0 && used + need > limit);
                }
            }
        }

        #[test]
        fn passes_have_every_user_once_in_order_and_are_as_full_as_possible(
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
    fn a_new_user_waits_for_memory_unless_none_runs() {
        let budget = Budget { limit: 10, used: 6 };
        assert!(budget.admits(4, 3) && !budget.admits(5, 3) && budget.admits(500, 0));
    }
}
