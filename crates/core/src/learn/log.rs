//! Purchases of users as plain numbers, and what of them is visible before a cut or a target after it.
//!
//! Invariant: a [`Purchases`] is a function of the set of its lines: users are sorted by id, lines by time and product.
//! What is visible at a cut does not depend on anything at or after the cut. It does not know SKUs, units or profiles.

use std::sync::Arc;

/// Milliseconds of a day.
pub(crate) const DAY_MS: i64 = 86_400_000;

/// One purchase of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Time of the purchase in milliseconds.
    pub at: i64,
    /// Number of the product.
    pub product: u32,
}

/// All purchases of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserLog {
    /// Id of the user.
    pub id: Arc<str>,
    /// The purchases, by time, then product.
    pub lines: Vec<Line>,
}

/// All purchases of all users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purchases {
    /// How many products there are; every line's product is below it.
    pub products: usize,
    /// The users, by id.
    pub users: Vec<UserLog>,
}

impl Purchases {
    /// Sorts users and lines. Lines of products that do not exist are left out, and users of the same id become one.
    pub fn new(products: usize, users: impl IntoIterator<Item = UserLog>) -> Self {
        let mut users: Vec<UserLog> = users.into_iter().collect();
        users.sort_by(|a, b| a.id.cmp(&b.id));
        users.dedup_by(|next, kept| {
            let same = next.id == kept.id;
            if same {
                kept.lines.append(&mut next.lines);
            }
            same
        });
        for user in &mut users {
            user.lines.retain(|line| (line.product as usize) < products);
            user.lines.sort_unstable();
        }
        Self { products, users }
    }
}

impl UserLog {
    /// Purchases before `cut`.
    pub fn before(&self, cut: i64) -> &[Line] {
        &self.lines[..self.lines.partition_point(|line| line.at < cut)]
    }

    /// Distinct products bought from `from` until before `to`, ascending.
    pub fn targets(&self, from: i64, to: i64) -> Vec<u32> {
        let start = self.before(from).len();
        let end = self.before(to).len().max(start);
        let mut products: Vec<u32> = self.lines[start..end]
            .iter()
            .map(|line| line.product)
            .collect();
        products.sort_unstable();
        products.dedup();
        products
    }

    /// The last purchases before `cut` that together hold at most `distinct` products.
    pub fn visible(&self, cut: i64, distinct: usize) -> &[Line] {
        last_distinct(self.before(cut), distinct)
    }
}

/// The longest end of `lines` that holds at most `distinct` products.
pub(crate) fn last_distinct(lines: &[Line], distinct: usize) -> &[Line] {
    let mut seen: Vec<u32> = Vec::new();
    let mut start = lines.len();
    while let Some(line) = start.checked_sub(1).and_then(|at| lines.get(at)) {
        if !seen.contains(&line.product) {
            if seen.len() == distinct {
                break;
            }
            seen.push(line.product);
        }
        start -= 1;
    }
    &lines[start..]
}

/// A product that a user bought before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Owned {
    /// Number of the product.
    pub product: u32,
    /// Days since the last purchase.
    pub days: f32,
    /// How many purchases are known.
    pub count: u32,
}

/// The products in `lines` with their last time and count, as seen at `now`, by product.
pub fn owned(lines: &[Line], now: i64) -> Vec<Owned> {
    let mut sorted: Vec<Line> = lines.to_vec();
    sorted.sort_unstable_by_key(|line| (line.product, line.at));
    let groups = sorted.chunk_by(|a, b| a.product == b.product);
    groups
        .map(|group| {
            let last = group[group.len() - 1];
            let days = (now.saturating_sub(last.at).max(0) as f64 / DAY_MS as f64) as f32;
            Owned {
                product: last.product,
                days,
                count: u32::try_from(group.len()).unwrap_or(u32::MAX),
            }
        })
        .collect()
}

/// Distinct pairs of period and product in `lines`, ascending. `period_ms` is the length of a period: 7 days for weeks.
pub(crate) fn by_period(lines: &[Line], period_ms: i64) -> Vec<(i64, u32)> {
    let mut pairs: Vec<(i64, u32)> = lines
        .iter()
        .map(|line| (line.at.div_euclid(period_ms.max(1)), line.product))
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// How many users bought each product, a user counting once per period, with weights that halve every `half_life_days`
/// before `now`. Without a half-life all periods weigh the same.
pub fn demand(log: &Purchases, now: i64, period_ms: i64, half_life_days: Option<f64>) -> Vec<f64> {
    let mut sums = vec![0.0; log.products];
    for user in &log.users {
        for (period, product) in by_period(user.before(now), period_ms) {
            // The end of the period, or now: a bucket's age in production is counted from its end as well.
            let end = (period + 1).saturating_mul(period_ms).min(now);
            let days = (now - end) as f64 / DAY_MS as f64;
            sums[product as usize] += half_life_days.map_or(1.0, |half| (-days / half).exp2());
        }
    }
    sums
}

/// The natural logarithm of each share of `counts`, each raised by `pseudo`: finite for a product without a count.
pub fn log_shares(counts: &[f64], pseudo: f64) -> Vec<f32> {
    let total: f64 = counts.iter().map(|count| count + pseudo).sum();
    counts
        .iter()
        .map(|count| ((count + pseudo) / total).ln() as f32)
        .collect()
}

/// Of each product ln(share of buyers in a long period / share of buyers in a short one): over 0 for what many buy
/// seldom, below 0 for what few buy often. Demand counts buyers a week, but what a new user buys within a window is told
/// by how many bought it at least once in such a window. A property of the product, which changes slowly; neutral (0)
/// for a product without a purchase.
pub fn reach(log: &Purchases, now: i64, long_ms: i64, short_ms: i64) -> Vec<f32> {
    let counts = [long_ms, short_ms].map(|period| demand(log, now, period, None));
    let totals = counts.each_ref().map(|counts| counts.iter().sum::<f64>());
    if totals[0] == 0.0 {
        return vec![0.0; log.products];
    }
    let shrink = totals[0] / totals[1];
    (0..log.products)
        .map(|product| {
            // Two purchases at the mean ratio are added to both, so that one purchase says little.
            let (long, short) = (counts[0][product] + 2.0 * shrink, counts[1][product] + 2.0);
            ((long / totals[0]) / (short / totals[1])).ln() as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(id: &str, lines: &[(i64, u32)]) -> UserLog {
        UserLog {
            id: id.into(),
            lines: lines
                .iter()
                .map(|&(at, product)| Line { at, product })
                .collect(),
        }
    }

    #[test]
    fn users_of_one_id_become_one_and_unknown_products_are_left_out() {
        let log = Purchases::new(
            3,
            [
                user("b", &[(5, 2)]),
                user("a", &[(1, 0)]),
                user("b", &[(2, 1), (3, 9)]),
            ],
        );
        assert_eq!(
            log.users,
            vec![user("a", &[(1, 0)]), user("b", &[(2, 1), (5, 2)])]
        );
    }

    #[test]
    fn visible_is_the_last_lines_of_at_most_m_products() {
        let log = user("a", &[(1, 0), (2, 1), (3, 2), (4, 1), (5, 1), (9, 7)]);
        assert_eq!(log.visible(6, 0), &[]);
        assert_eq!(log.visible(6, 1).len(), 2);
        assert_eq!(log.visible(6, 2).len(), 4);
        assert_eq!(log.visible(6, 100).len(), 5);
    }

    #[test]
    fn targets_are_distinct_products_from_the_cut_until_before_the_end() {
        let log = user("a", &[(1, 0), (2, 3), (3, 2), (4, 3), (5, 1)]);
        assert_eq!(log.targets(2, 5), vec![2, 3]);
        assert_eq!(log.targets(5, 2), Vec::<u32>::new());
    }

    #[test]
    fn owned_has_the_last_time_and_the_count() {
        let log = user("a", &[(0, 4), (DAY_MS, 4), (DAY_MS, 1)]);
        let expected = vec![
            Owned {
                product: 1,
                days: 2.0,
                count: 1,
            },
            Owned {
                product: 4,
                days: 2.0,
                count: 2,
            },
        ];
        assert_eq!(owned(&log.lines, 3 * DAY_MS), expected);
    }

    #[test]
    fn demand_counts_a_user_once_per_period_and_halves_with_age() {
        let week = 7 * DAY_MS;
        let log = Purchases::new(
            2,
            [
                user("a", &[(0, 0), (DAY_MS, 0), (week, 1)]),
                user("b", &[(week, 1)]),
            ],
        );
        assert_eq!(demand(&log, 2 * week, week, None), vec![1.0, 2.0]);
        assert_eq!(demand(&log, 2 * week, week, Some(7.0)), vec![0.5, 2.0]);
    }

    #[test]
    fn reach_is_over_0_for_what_many_buy_once_and_neutral_without_purchases() {
        let week = 7 * DAY_MS;
        let often = |id: &str| user(id, &(0..8).map(|k| (k * week, 0)).collect::<Vec<_>>());
        let log = Purchases::new(
            3,
            [
                often("a"),
                often("b"),
                user("c", &[(0, 1)]),
                user("d", &[(0, 1)]),
            ],
        );
        let found = reach(&log, 8 * week, 8 * week, week);
        assert!(
            found[1] > 0.3 && found[0] < -0.3 && found[2].abs() < 1e-6,
            "{found:?}"
        );
        assert_eq!(reach(&Purchases::new(2, []), 0, 8 * week, week), [0.0, 0.0]);
    }

    proptest! {
        #[test]
        fn what_comes_after_the_cut_changes_nothing_before_it(
            mut lines in proptest::collection::vec((0i64..40, 0u32..6), 0..30), cut in 0i64..40, m in 0usize..6,
            after in proptest::collection::vec((0i64..40, 0u32..6), 0..30),
        ) {
            let one = Purchases::new(6, [user("a", &lines)]);
            lines.retain(|line| line.0 < cut);
            lines.extend(after.iter().filter(|line| line.0 >= cut));
            let other = Purchases::new(6, [user("a", &lines)]);
            prop_assert_eq!(one.users[0].visible(cut, m), other.users[0].visible(cut, m));
        }

        #[test]
        fn the_order_of_users_and_lines_changes_nothing(
            lines in proptest::collection::vec((0i64..40, 0u32..6, 0u8..4), 0..30).prop_shuffle(), seed in any::<u64>(),
        ) {
            let log = |lines: &[(i64, u32, u8)]| {
                Purchases::new(6, lines.iter().map(|&(at, product, id)| user(&id.to_string(), &[(at, product)])))
            };
            let mut other = lines.clone();
            let len = other.len().max(1);
            other.rotate_left(seed as usize % len);
            other.reverse();
            prop_assert_eq!(log(&lines), log(&other));
        }
    }
}
