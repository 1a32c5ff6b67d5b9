//! Item to item: how much likelier a product is for those who bought another one, counted from the shop's log.
//!
//! Two values per pair, both shrunk where counts are few: `lift`, ln(found together / expected together), and `cosine`.
//! Invariant: a pair that fewer than `users_min` users made is not kept, and a product says nothing about itself: that
//! is the repeat term's. It does not know times: the caller decides which purchases belong together.

use serde::{Deserialize, Serialize};

use super::log::{self, Purchases};

/// What was bought together, or one after the other, by one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Number of the user: pairs are counted by distinct users.
    pub user: u32,
    /// Distinct products that are seen.
    pub context: Vec<u32>,
    /// Distinct products that go with them.
    pub targets: Vec<u32>,
}

/// Groups of what each user bought in one period, before `now`: 7 days for weeks.
pub(crate) fn by_period(log: &Purchases, now: i64, period_ms: i64) -> Vec<Group> {
    let mut groups = Vec::new();
    for (user, lines) in log.users.iter().enumerate() {
        let pairs = log::by_period(lines.before(now), period_ms);
        for period in pairs.chunk_by(|a, b| a.0 == b.0) {
            let products: Vec<u32> = period.iter().map(|pair| pair.1).collect();
            groups.push(Group {
                user: user as u32,
                context: products.clone(),
                targets: products,
            });
        }
    }
    groups
}

/// How strongly little data is shrunk, and what is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NeighbourOptions {
    /// Pseudo-count of the lift.
    pub lift_pseudo: f64,
    /// Pseudo-count of the cosine, in groups.
    pub cosine_pseudo: f64,
    /// Most neighbours that a row keeps.
    pub row_max: usize,
    /// Fewest users that must have made a pair.
    pub users_min: u32,
}

impl Default for NeighbourOptions {
    fn default() -> Self {
        Self {
            lift_pseudo: 5.0,
            cosine_pseudo: 10.0,
            row_max: 200,
            users_min: 3,
        }
    }
}

/// A neighbour in a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Number of the product.
    pub product: u32,
    /// Shrunk ln(found / expected).
    pub lift: f32,
    /// Shrunk cosine, from 0 to 1.
    pub cosine: f32,
}

/// The neighbours of one product.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Row {
    neighbours: Vec<Neighbour>,
    /// Lift of all products that the row does not keep.
    lift_rest: f32,
}

/// Neighbours of every product. The default knows no product.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NeighbourTable {
    rows: Vec<Row>,
}

impl NeighbourTable {
    /// Counts `groups` of `products` products.
    pub fn fit(products: usize, groups: &[Group], options: NeighbourOptions) -> Self {
        let totals = Totals::of(products, groups);
        let mut counter = Counter::new(products);
        let rows = (0..products as u32)
            .map(|of| counter.count(of, groups, &totals).row(of, &totals, options))
            .collect();
        Self { rows }
    }

    /// How many products the table knows.
    pub fn products(&self) -> usize {
        self.rows.len()
    }

    /// The kept neighbours of `product`, best first.
    pub fn row(&self, product: u32) -> &[Neighbour] {
        self.rows
            .get(product as usize)
            .map_or(&[], |row| &row.neighbours)
    }

    /// ln of the weighted mean of exp(lift) from each of `visible`, pairs of product and weight, to every product: a
    /// product that one of them explains well is not held back by the others. `out` is overwritten; it is 0 everywhere
    /// if nothing is visible.
    pub fn lift(&self, visible: &[(u32, f32)], out: &mut Vec<f32>) {
        out.clear();
        out.resize(self.rows.len(), 0.0);
        let known = || {
            visible
                .iter()
                .filter_map(|&(of, weight)| Some((of, weight, self.rows.get(of as usize)?)))
        };
        let total: f32 = known().map(|(_, weight, _)| weight).sum();
        if total <= 0.0 {
            return;
        }
        let rest: f32 = known()
            .map(|(_, weight, row)| weight * row.lift_rest.exp())
            .sum();
        for (_, weight, row) in known() {
            for neighbour in &row.neighbours {
                out[neighbour.product as usize] +=
                    weight * (neighbour.lift.exp() - row.lift_rest.exp());
            }
        }
        // A sum of differences may end a rounding error below the smallest ratio there is.
        let log_mean = |sum: f32, of: f32| (sum / of).max(1e-6).ln();
        let own: Vec<(u32, f32)> = known()
            .map(|(of, weight, row)| {
                let sum = out[of as usize] + rest - weight * row.lift_rest.exp();
                // Without itself: the mean over the other visible products.
                let others = total - weight;
                (
                    of,
                    if others > total * 1e-6 {
                        log_mean(sum, others)
                    } else {
                        0.0
                    },
                )
            })
            .collect();
        out.iter_mut()
            .for_each(|value| *value = log_mean(*value + rest, total));
        own.into_iter()
            .for_each(|(of, value)| out[of as usize] = value);
    }

    /// ln(1 + Σ weight · cosine / `scale`) from `visible` to every product. `out` is overwritten.
    pub fn cosine(&self, visible: &[(u32, f32)], scale: f32, out: &mut Vec<f32>) {
        out.clear();
        out.resize(self.rows.len(), 0.0);
        for &(of, weight) in visible {
            for neighbour in self.row(of) {
                out[neighbour.product as usize] += weight * neighbour.cosine;
            }
        }
        out.iter_mut()
            .for_each(|value| *value = (*value / scale).ln_1p());
    }
}

/// Sums over all groups.
struct Totals {
    /// Groups in whose context each product is.
    with: Vec<Vec<u32>>,
    /// Groups among whose targets each product is.
    targets: Vec<f64>,
    /// All targets of all groups.
    all: f64,
}

impl Totals {
    fn of(products: usize, groups: &[Group]) -> Self {
        let mut totals = Self {
            with: vec![Vec::new(); products],
            targets: vec![0.0; products],
            all: 0.0,
        };
        for (index, group) in groups.iter().enumerate() {
            group
                .context
                .iter()
                .for_each(|&product| totals.with[product as usize].push(index as u32));
            group
                .targets
                .iter()
                .for_each(|&product| totals.targets[product as usize] += 1.0);
            totals.all += group.targets.len() as f64;
        }
        totals
    }

    /// Share of `product` among the targets of all groups.
    fn share(&self, product: usize) -> f64 {
        if self.all > 0.0 {
            self.targets[product] / self.all
        } else {
            0.0
        }
    }
}

/// Counts of one row, reused for the next.
struct Counter {
    /// Groups with the row's product that have each product as a target.
    together: Vec<f64>,
    /// Distinct users of them.
    users: Vec<u32>,
    /// The user that was counted last for each product, plus one.
    last: Vec<u32>,
    /// Targets of all groups with the row's product.
    targets: f64,
}

impl Counter {
    fn new(products: usize) -> Self {
        Self {
            together: vec![0.0; products],
            users: vec![0; products],
            last: vec![0; products],
            targets: 0.0,
        }
    }

    fn count(&mut self, of: u32, groups: &[Group], totals: &Totals) -> &Self {
        self.together.fill(0.0);
        self.users.fill(0);
        self.last.fill(0);
        self.targets = 0.0;
        let mut with: Vec<&Group> = totals.with[of as usize]
            .iter()
            .map(|&index| &groups[index as usize])
            .collect();
        with.sort_by_key(|group| group.user);
        for group in with {
            // Without the product itself, so that a product that is always bought again does not look like a poor
            // neighbour of all others.
            for &target in group.targets.iter().filter(|&&target| target != of) {
                let product = target as usize;
                self.together[product] += 1.0;
                self.targets += 1.0;
                if self.last[product] != group.user + 1 {
                    self.last[product] = group.user + 1;
                    self.users[product] += 1;
                }
            }
        }
        self
    }

    fn row(&self, of: u32, totals: &Totals, options: NeighbourOptions) -> Row {
        let share_others = 1.0 - totals.share(of as usize);
        let expected = |product: usize| {
            if share_others > 0.0 {
                self.targets * totals.share(product) / share_others
            } else {
                0.0
            }
        };
        let k = options.lift_pseudo.max(1e-9);
        let contexts = totals.with[of as usize].len() as f64;
        let mut kept: Vec<(f64, Neighbour)> = Vec::new();
        for (product, &found) in self.together.iter().enumerate() {
            if self.users[product] < options.users_min.max(1) || product == of as usize {
                continue;
            }
            let lift = ((found + k) / (expected(product) + k)).ln();
            let (a, b) = (
                contexts + options.cosine_pseudo,
                totals.targets[product] + options.cosine_pseudo,
            );
            let neighbour = Neighbour {
                product: product as u32,
                lift: lift as f32,
                cosine: (found / (a * b).sqrt()) as f32,
            };
            // What matters most: a difference from 1 that many counts support.
            kept.push((lift.abs() * (expected(product) + k).sqrt(), neighbour));
        }
        kept.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.product.cmp(&b.1.product)));
        kept.truncate(options.row_max);
        let mut neighbours: Vec<Neighbour> =
            kept.into_iter().map(|(_, neighbour)| neighbour).collect();
        neighbours.sort_by(|a, b| b.lift.total_cmp(&a.lift).then(a.product.cmp(&b.product)));
        let (mut found, mut likely) = (self.targets, self.targets);
        for neighbour in &neighbours {
            found -= self.together[neighbour.product as usize];
            likely -= expected(neighbour.product as usize);
        }
        let lift_rest = ((found.max(0.0) + k) / (likely.max(0.0) + k)).ln() as f32;
        Row {
            neighbours,
            lift_rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const OPTIONS: NeighbourOptions = NeighbourOptions {
        lift_pseudo: 2.0,
        cosine_pseudo: 1.0,
        row_max: 200,
        users_min: 2,
    };

    fn groups() -> impl Strategy<Value = Vec<Group>> {
        let set = || {
            proptest::collection::btree_set(0u32..6, 0..5).prop_map(|set| set.into_iter().collect())
        };
        let group = (0u32..4, set(), set()).prop_map(|(user, context, targets)| Group {
            user,
            context,
            targets,
        });
        proptest::collection::vec(group, 0..12)
    }

    /// Lift and cosine of one pair by their definitions.
    fn brute(groups: &[Group], of: u32, to: u32) -> Option<(f64, f64)> {
        let with: Vec<&Group> = groups
            .iter()
            .filter(|group| group.context.contains(&of))
            .collect();
        let pairs: Vec<&&Group> = with
            .iter()
            .filter(|group| group.targets.contains(&to))
            .collect();
        let users: BTreeSet<u32> = pairs.iter().map(|group| group.user).collect();
        if of == to || users.len() < 2 {
            return None;
        }
        let targets = |groups: &[&Group], wanted: &dyn Fn(u32) -> bool| {
            groups
                .iter()
                .flat_map(|group| &group.targets)
                .filter(|&&product| wanted(product))
                .count() as f64
        };
        let all: Vec<&Group> = groups.iter().collect();
        let share =
            targets(&all, &|product| product == to) / targets(&all, &|product| product != of);
        let expected = targets(&with, &|product| product != of) * share;
        let found = pairs.len() as f64;
        let cosine = found
            / ((with.len() as f64 + 1.0) * (targets(&all, &|product| product == to) + 1.0)).sqrt();
        Some((((found + 2.0) / (expected + 2.0)).ln(), cosine))
    }

    proptest! {
        #[test]
        fn the_table_is_that_of_brute_force(groups in groups()) {
            let table = NeighbourTable::fit(6, &groups, OPTIONS);
            for of in 0..6 {
                for to in 0..6 {
                    let found = table.row(of).iter().find(|neighbour| neighbour.product == to);
                    let expected = brute(&groups, of, to);
                    prop_assert_eq!(found.is_some(), expected.is_some());
                    if let (Some(found), Some((lift, cosine))) = (found, expected) {
                        prop_assert!((f64::from(found.lift) - lift).abs() < 1e-5);
                        prop_assert!((f64::from(found.cosine) - cosine).abs() < 1e-5);
                    }
                }
            }
        }

        #[test]
        fn the_order_of_groups_changes_nothing(groups in groups()) {
            let reversed: Vec<Group> = groups.iter().rev().cloned().collect();
            prop_assert_eq!(NeighbourTable::fit(6, &groups, OPTIONS), NeighbourTable::fit(6, &reversed, OPTIONS));
        }

        #[test]
        fn the_mean_lift_leaves_a_visible_product_out_of_its_own(groups in groups(), m in 1usize..5) {
            let table = NeighbourTable::fit(6, &groups, NeighbourOptions { row_max: 2, ..OPTIONS });
            let visible: Vec<(u32, f32)> = (0..m as u32).map(|product| (product, 1.0 + product as f32)).collect();
            let mut out = vec![7.0; 3];
            table.lift(&visible, &mut out);
            for to in 0..6u32 {
                let (mut sum, mut total) = (0.0, 0.0);
                for &(of, weight) in visible.iter().filter(|(of, _)| *of != to) {
                    let found = table.row(of).iter().find(|neighbour| neighbour.product == to);
                    sum += weight * found.map_or(table.rows[of as usize].lift_rest, |neighbour| neighbour.lift).exp();
                    total += weight;
                }
                let expected = if total > 0.0 { (sum / total).ln() } else { 0.0 };
                prop_assert!((out[to as usize] - expected).abs() < 1e-4, "{} {}", out[to as usize], expected);
            }
        }
    }

    #[test]
    fn groups_are_what_is_bought_in_one_period() {
        let lines = [(1, 0), (1, 1), (8, 2), (9, 0)]
            .map(|(at, product)| log::Line { at, product })
            .to_vec();
        let log = Purchases::new(
            3,
            [log::UserLog {
                id: "a".into(),
                lines,
            }],
        );
        let group = |context: &[u32], targets: &[u32]| Group {
            user: 0,
            context: context.into(),
            targets: targets.into(),
        };
        assert_eq!(
            by_period(&log, 9, 7),
            [group(&[0, 1], &[0, 1]), group(&[2], &[2])]
        );
    }

    #[test]
    fn nothing_visible_is_neutral_and_unknown_products_are_left_out() {
        let groups = [Group {
            user: 0,
            context: vec![0],
            targets: vec![1],
        }];
        let table = NeighbourTable::fit(
            2,
            &groups,
            NeighbourOptions {
                users_min: 1,
                ..OPTIONS
            },
        );
        let mut out = Vec::new();
        table.lift(&[], &mut out);
        assert_eq!(out, [0.0, 0.0]);
        table.lift(&[(9, 1.0)], &mut out);
        assert_eq!(out, [0.0, 0.0]);
        table.cosine(&[(9, 1.0)], 0.1, &mut out);
        assert_eq!(out, [0.0, 0.0]);
    }

    #[test]
    fn users_who_alternate_are_each_counted_once() {
        let groups: Vec<Group> = (0..9)
            .map(|at| Group {
                user: at % 2,
                context: vec![0],
                targets: vec![1],
            })
            .collect();
        let kept = |users_min| {
            NeighbourTable::fit(
                2,
                &groups,
                NeighbourOptions {
                    users_min,
                    ..OPTIONS
                },
            )
            .row(0)
            .len()
        };
        assert_eq!((kept(2), kept(3)), (1, 0));
    }

    #[test]
    fn a_pair_of_one_user_is_not_kept() {
        let groups: Vec<Group> = (0..9)
            .map(|_| Group {
                user: 4,
                context: vec![0],
                targets: vec![1],
            })
            .collect();
        assert_eq!(NeighbourTable::fit(2, &groups, OPTIONS).row(0), &[]);
    }
}
