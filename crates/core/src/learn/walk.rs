//! Item to item by a random walk of two steps: from a product to a user who bought it, and to what else they bought.
//!
//! It reaches further than a week's purchases do: whatever a user ever bought goes together. Invariant: a pair that fewer
//! than `users_min` users made is not kept, sums are of whole numbers, so the order of users changes no bit, and a
//! product says nothing about itself. Source: Christoffel et al., "Blockbusters and Wallflowers" (RecSys 2015), RP3beta.

use serde::{Deserialize, Serialize};

use super::log::Purchases;

/// How the walk goes, and what is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WalkOptions {
    /// Power of each step's probability: below 1, users and products with much of everything count for more.
    pub step: f64,
    /// Power of the number of a product's users by which its value is divided.
    pub penalty: f64,
    /// Most products that a row keeps.
    pub row_max: usize,
    /// Fewest users that must have made a pair.
    pub users_min: u32,
}

impl Default for WalkOptions {
    fn default() -> Self {
        Self {
            step: 0.8,
            penalty: 0.4,
            row_max: 200,
            users_min: 3,
        }
    }
}

/// Where the walk from each product ends. The default knows no product.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WalkTable {
    /// Per product, others with their values, by number.
    rows: Vec<Vec<(u32, f32)>>,
}

/// A whole weight of 1.
const ONE: f64 = (1u64 << 40) as f64;

impl WalkTable {
    /// Walks over what was bought before `until`.
    pub fn fit(purchases: &Purchases, until: i64, options: WalkOptions) -> Self {
        let products = purchases.products;
        let bought = purchases
            .users
            .iter()
            .map(|user| user.targets(i64::MIN, until));
        let bought: Vec<Vec<u32>> = bought.collect();
        let mut users: Vec<Vec<u32>> = vec![Vec::new(); products];
        for (user, own) in (0..).zip(&bought) {
            own.iter()
                .for_each(|product| users[*product as usize].push(user));
        }
        let weight = |own: &Vec<u32>| (libm::pow(own.len() as f64, -options.step) * ONE) as u64;
        let weights: Vec<u64> = bought.iter().map(weight).collect();
        let mut sums = vec![(0u64, 0u32); products];
        let rows = (0..products).map(|of| {
            sums.fill((0, 0));
            for user in &users[of] {
                for product in &bought[*user as usize] {
                    let (sum, pairs) = &mut sums[*product as usize];
                    *sum += weights[*user as usize];
                    *pairs += 1;
                }
            }
            let first = libm::pow(users[of].len() as f64, -options.step);
            let kept = sums.iter().enumerate().filter(|(product, (_, pairs))| {
                *product != of && *pairs >= options.users_min.max(1)
            });
            let mut row: Vec<(u32, f32)> = kept
                .map(|(product, (sum, _))| {
                    let penalty = libm::pow(users[product].len() as f64, -options.penalty);
                    (product as u32, (*sum as f64 / ONE * first * penalty) as f32)
                })
                .collect();
            row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            row.truncate(options.row_max);
            row.sort_unstable_by_key(|(product, _)| *product);
            row
        });
        Self {
            rows: rows.collect(),
        }
    }

    /// How many products the table knows.
    pub fn products(&self) -> usize {
        self.rows.len()
    }

    /// Per product ln(1 + its value / the mean value), summed over the walks from `visible`, pairs of product and weight.
    /// `out` is overwritten; it is 0 everywhere if nothing is visible.
    pub fn values(&self, visible: &[(u32, f32)], out: &mut Vec<f32>) {
        out.clear();
        out.resize(self.rows.len(), 0.0);
        for (of, weight) in visible {
            for (product, value) in self.rows.get(*of as usize).into_iter().flatten() {
                if let Some(sum) = out.get_mut(*product as usize) {
                    *sum += weight * value;
                }
            }
        }
        let mean = out.iter().sum::<f32>() / out.len().max(1) as f32;
        if mean > 0.0 {
            out.iter_mut()
                .for_each(|value| *value = (*value / mean).ln_1p());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::log::{Line, UserLog};

    const OPTIONS: WalkOptions = WalkOptions {
        step: 1.0,
        penalty: 0.0,
        row_max: 200,
        users_min: 2,
    };

    fn purchases(users: &[Vec<u32>]) -> Purchases {
        let users = (0..).zip(users).map(|(id, own): (u32, _)| UserLog {
            id: id.to_string().into(),
            lines: own
                .iter()
                .map(|product| Line {
                    at: 1,
                    product: *product,
                })
                .collect(),
        });
        Purchases::new(6, users)
    }

    #[test]
    fn a_walk_ends_at_what_the_users_of_a_product_bought_besides() {
        let users = [vec![0, 1], vec![0, 1, 2], vec![0, 2, 3], vec![4, 5]];
        let table = WalkTable::fit(&purchases(&users), 2, OPTIONS);
        let third = 1.0 / 3.0;
        // From 0: each of three users with the same chance, then each of their products.
        let expected = [(1, third * (0.5 + third)), (2, third * (third + third))];
        assert_eq!(
            table.rows[0].len(),
            2,
            "3 and 0 were bought by one user: {table:?}"
        );
        for ((product, value), (to, chance)) in table.rows[0].iter().zip(expected) {
            assert_eq!(*product, to);
            assert!((f64::from(*value) - chance).abs() < 1e-6, "{table:?}");
        }
        assert!(table.rows[4].is_empty());
    }

    #[test]
    fn values_are_0_where_nothing_is_known_and_else_rise_with_the_walk() {
        let users = [vec![0, 1], vec![0, 1], vec![0, 2], vec![0, 2], vec![1, 0]];
        let table = WalkTable::fit(&purchases(&users), 2, OPTIONS);
        let mut out = vec![1.0];
        table.values(&[], &mut out);
        assert_eq!(out, [0.0; 6]);
        table.values(&[(0, 1.0), (77, 1.0)], &mut out);
        assert!(out[1] > out[2] && out[2] > 0.0 && out[3] == 0.0, "{out:?}");
    }

    proptest! {
        #[test]
        fn later_purchases_and_the_order_of_users_change_nothing(
            users in proptest::collection::vec(proptest::collection::vec(0u32..6, 0..6), 0..8),
        ) {
            let log = purchases(&users);
            let table = WalkTable::fit(&log, 2, WalkOptions { users_min: 1, ..WalkOptions::default() });
            let mut later = log.clone();
            later.users.iter_mut().for_each(|user| user.lines.push(Line { at: 2, product: 0 }));
            later.users.reverse();
            let again = WalkTable::fit(&later, 2, WalkOptions { users_min: 1, ..WalkOptions::default() });
            prop_assert_eq!(table, again);
        }
    }
}
