//! The repeat hazard: how much likelier an owner of a product buys it in the coming window than anyone does.
//!
//! A value is ln(rate of buying among owners of this age and count / rate among all users). The rate is a product's own,
//! shrunk to what products of its demand have, times a factor of age and count that all products share; age is the time
//! since the last purchase in units of the product's usual interval. Invariant: 0 where nothing is known, and finite.
//! It does not know how purchases were cut into what is visible: the caller makes the cases.

use serde::{Deserialize, Serialize};

use super::log::{self, DAY_MS, Owned, Purchases};

/// Upper bounds of the bins of age, in usual intervals; the last bin is open.
const AGES: [f64; 9] = [0.125, 0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 8.0, f64::INFINITY];
/// Lower bounds of the bins of count.
const COUNTS: [u32; 6] = [1, 2, 3, 5, 9, 17];
/// Rounds of the alternating fit; its steps are below a thousandth after ten.
const ROUNDS: usize = 12;
/// No rate is above this: the factors of age and product are not additive near certainty.
const RATE_MAX: f64 = 0.97;

/// What one user bought before a cut, and after it.
#[derive(Clone, Debug, PartialEq)]
pub struct RepeatCase {
    /// Products bought before the cut, as far as they are visible.
    pub owned: Vec<Owned>,
    /// Distinct products bought in the window after it, ascending.
    pub targets: Vec<u32>,
}

/// Cases of all users of `log` at each of `cuts`, their history cut to each of `visible` distinct products, and what they
/// bought in the `window_ms` after. Users who then bought nothing are left out.
pub fn cases(log: &Purchases, cuts: &[i64], window_ms: i64, visible: &[usize]) -> Vec<RepeatCase> {
    let mut cases = Vec::new();
    for &cut in cuts {
        for user in &log.users {
            let targets = user.targets(cut, cut.saturating_add(window_ms));
            if targets.is_empty() {
                continue;
            }
            let of = |&distinct: &usize| RepeatCase {
                owned: log::owned(user.visible(cut, distinct), cut),
                targets: targets.clone(),
            };
            cases.extend(visible.iter().map(of));
        }
    }
    cases
}

/// How strongly little data is shrunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepeatOptions {
    /// Gaps that weigh as much as the median of all products' gaps.
    pub interval_gaps: f64,
    /// Cases of owners that weigh as much as products of the same demand.
    pub propensity_cases: f64,
    /// Cases that weigh as much as a factor of 1 in a bin of age and count.
    pub bin_cases: f64,
}

impl Default for RepeatOptions {
    fn default() -> Self {
        Self {
            interval_gaps: 10.0,
            propensity_cases: 20.0,
            bin_cases: 20.0,
        }
    }
}

/// The fitted hazard. The default knows nothing and gives 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RepeatTable {
    /// Usual interval of each product in days.
    interval: Vec<f32>,
    /// ln(rate of owners / rate of all) of each product.
    propensity: Vec<f32>,
    /// ln of the rate of all of each product.
    base: Vec<f32>,
    /// ln factor by bin of age, then bin of count.
    factors: Vec<[f32; COUNTS.len()]>,
}

impl RepeatTable {
    /// Fits from `cases` of `intervals.len()` products; see [`intervals`].
    pub fn fit(intervals: &[f64], cases: &[RepeatCase], options: RepeatOptions) -> Self {
        let products = intervals.len();
        let mut bought = vec![0.0; products];
        for case in cases {
            case.targets
                .iter()
                .for_each(|&target| bought[target as usize] += 1.0);
        }
        let base: Vec<f64> = bought
            .iter()
            .map(|n| (n + 0.5) / (cases.len() as f64 + 1.0))
            .collect();
        let observed = Observed::of(intervals, cases);
        let mut factors = vec![[1.0; COUNTS.len()]; AGES.len()];
        let mut rates = base.clone();
        for _ in 0..ROUNDS {
            rates = observed.rates(&base, &factors, options.propensity_cases);
            factors = observed.factors(&rates, options.bin_cases);
        }
        let ln = |x: f64| x.ln() as f32;
        Self {
            interval: intervals.iter().map(|&days| days as f32).collect(),
            propensity: rates
                .iter()
                .zip(&base)
                .map(|(rate, base)| ln(rate / base))
                .collect(),
            base: base.iter().map(|&base| ln(base)).collect(),
            factors: factors.iter().map(|row| row.map(ln)).collect(),
        }
    }

    /// The log-weight of a product that was bought `count` times, the last time `days` ago. 0 for a product that the
    /// table does not know.
    pub fn value(&self, product: u32, days: f32, count: u32) -> f32 {
        let product = product as usize;
        let (Some(&interval), Some(&propensity), Some(&base)) = (
            self.interval.get(product),
            self.propensity.get(product),
            self.base.get(product),
        ) else {
            return 0.0;
        };
        let (age, times) = bins(f64::from(days) / f64::from(interval), count);
        let factor = self.factors.get(age).map_or(0.0, |row| row[times]);
        (propensity + factor).min(RATE_MAX.ln() as f32 - base)
    }

    /// Usual interval of `product` in days, if it is known.
    pub fn interval(&self, product: u32) -> Option<f32> {
        self.interval.get(product as usize).copied()
    }

    /// How many products the table knows.
    pub fn products(&self) -> usize {
        self.interval.len()
    }
}

/// The usual interval of each product in days: the median gap between days on which a user bought it, shrunk in the
/// logarithm to the median of all products.
pub(crate) fn intervals(log: &Purchases, now: i64, options: RepeatOptions) -> Vec<f64> {
    let mut gaps: Vec<Vec<f64>> = vec![Vec::new(); log.products];
    for user in &log.users {
        let mut days: Vec<(u32, i64)> = user
            .before(now)
            .iter()
            .map(|line| (line.product, line.at.div_euclid(DAY_MS)))
            .collect();
        days.sort_unstable();
        days.dedup();
        for pair in days.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            gaps[pair[0].0 as usize].push((pair[1].1 - pair[0].1) as f64);
        }
    }
    let mut all: Vec<f64> = gaps.iter().flatten().copied().collect();
    let overall = median(&mut all).unwrap_or(28.0).ln();
    let shrink = options.interval_gaps.max(f64::MIN_POSITIVE);
    gaps.iter_mut()
        .map(|gaps| {
            let n = gaps.len() as f64;
            let own = median(gaps).map_or(overall, f64::ln);
            ((n * own + shrink * overall) / (n + shrink)).exp()
        })
        .collect()
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values {
        [] => None,
        _ if values.len() % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Bins of an age in usual intervals and of a count.
fn bins(age: f64, count: u32) -> (usize, usize) {
    let age = AGES
        .iter()
        .position(|&bound| age < bound)
        .unwrap_or(AGES.len() - 1);
    (
        age,
        COUNTS
            .iter()
            .rposition(|&bound| count >= bound)
            .unwrap_or(0),
    )
}

/// Cases of owners per product, age and count, and how many of them bought again.
struct Observed {
    cells: Vec<[[Cell; COUNTS.len()]; AGES.len()]>,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    cases: f64,
    hits: f64,
}

impl Observed {
    fn of(intervals: &[f64], cases: &[RepeatCase]) -> Self {
        let mut cells = vec![[[Cell::default(); COUNTS.len()]; AGES.len()]; intervals.len()];
        for case in cases {
            for owned in &case.owned {
                let product = owned.product as usize;
                let (age, times) = bins(f64::from(owned.days) / intervals[product], owned.count);
                let cell = &mut cells[product][age][times];
                cell.cases += 1.0;
                cell.hits +=
                    f64::from(u8::from(case.targets.binary_search(&owned.product).is_ok()));
            }
        }
        Self { cells }
    }

    /// Rate of each product's owners at a factor of 1: its hits per weighted case, shrunk by `pseudo` cases to the rate
    /// that products of its base have.
    fn rates(&self, base: &[f64], factors: &[[f64; COUNTS.len()]], pseudo: f64) -> Vec<f64> {
        let sums: Vec<Cell> = self
            .cells
            .iter()
            .map(|cells| weighted(cells, factors))
            .collect();
        let prior = power_law(base, &sums);
        let shrunk = sums.iter().zip(base).map(|(sum, &base)| {
            let prior = prior(base);
            ((sum.hits + pseudo * prior) / (sum.cases + pseudo)).clamp(1e-9, RATE_MAX)
        });
        shrunk.collect()
    }

    /// Factor of each bin: hits per hit expected from the products' rates, shrunk by `pseudo` cases to 1.
    fn factors(&self, rates: &[f64], pseudo: f64) -> Vec<[f64; COUNTS.len()]> {
        let mut sums = [[Cell::default(); COUNTS.len()]; AGES.len()];
        for (cells, &rate) in self.cells.iter().zip(rates) {
            for (sums, cells) in sums.iter_mut().zip(cells) {
                for (sum, cell) in sums.iter_mut().zip(cells) {
                    sum.cases += cell.cases * rate;
                    sum.hits += cell.hits;
                }
            }
        }
        let all: Cell = sums.iter().flatten().fold(Cell::default(), |a, b| Cell {
            cases: a.cases + b.cases,
            hits: a.hits + b.hits,
        });
        // A bin with few cases is like all bins; in units of hits, so that the strength does not depend on the rates.
        let pseudo = if all.cases > 0.0 {
            pseudo * all.hits / all.cases.max(all.hits)
        } else {
            1.0
        }
        .max(1e-9);
        sums.map(|row| row.map(|cell| (cell.hits + pseudo) / (cell.cases + pseudo)))
            .to_vec()
    }
}

fn weighted(cells: &[[Cell; COUNTS.len()]; AGES.len()], factors: &[[f64; COUNTS.len()]]) -> Cell {
    let mut sum = Cell::default();
    for (cells, factors) in cells.iter().zip(factors) {
        for (cell, factor) in cells.iter().zip(factors) {
            sum.cases += cell.cases * factor;
            sum.hits += cell.hits;
        }
    }
    sum
}

/// Rate of owners as a power of the rate of all: a Poisson regression of hits on ln base, by Newton's method.
fn power_law(base: &[f64], sums: &[Cell]) -> impl Fn(f64) -> f64 {
    let (hits, cases) = sums.iter().fold((0.5, 1.0), |(hits, cases), sum| {
        (hits + sum.hits, cases + sum.cases)
    });
    let centre = sums
        .iter()
        .zip(base)
        .map(|(sum, base)| sum.cases * base.ln())
        .sum::<f64>()
        / cases;
    let (mut level, mut slope): (f64, f64) = ((hits / cases).ln(), 0.0);
    for _ in 0..20 {
        // A ridge of one case keeps it solvable where all products have one base.
        let (mut g0, mut g1, mut h00, mut h01, mut h11) = (0.0, -slope, 1e-9, 0.0, 1.0);
        for (sum, base) in sums.iter().zip(base) {
            let x = base.ln() - centre;
            let expected = sum.cases * (level + slope * x).min(0.0).exp();
            g0 += sum.hits - expected;
            g1 += (sum.hits - expected) * x;
            h00 += expected;
            h01 += expected * x;
            h11 += expected * x * x;
        }
        let determinant = h00 * h11 - h01 * h01;
        if determinant <= 1e-12 {
            break;
        }
        level += ((h11 * g0 - h01 * g1) / determinant).clamp(-1.0, 1.0);
        slope = (slope + ((h00 * g1 - h01 * g0) / determinant).clamp(-0.5, 0.5)).clamp(0.0, 1.0);
    }
    // Owners buy no less than anyone, as far as the trend goes; what a product's own cases say is kept.
    move |base: f64| (level + slope * (base.ln() - centre)).exp().min(RATE_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::learn::bootstrap::Random;
    use crate::learn::log::{Line, UserLog};

    fn owned(product: u32, days: f32, count: u32) -> Owned {
        Owned {
            product,
            days,
            count,
        }
    }

    /// Product 0 comes again with 80 % when due and 20 % when fresh, product 1 always with 5 %; product 2 has no owner.
    fn cases() -> Vec<RepeatCase> {
        let mut random = Random::new(1);
        (0..4_000)
            .map(|case| {
                let days = if case % 2 == 0 { 20.0 } else { 2.0 };
                let mut targets = Vec::new();
                if random.uniform() < if days > 10.0 { 0.8 } else { 0.2 } {
                    targets.push(0);
                }
                if random.uniform() < 0.05 {
                    targets.push(1);
                }
                RepeatCase {
                    owned: vec![owned(0, days, 1), owned(1, 20.0, 1)],
                    targets,
                }
            })
            .chain((0..4_000).map(|_| RepeatCase {
                owned: vec![],
                targets: vec![2],
            }))
            .collect()
    }

    #[test]
    fn a_product_is_worth_more_when_it_is_due() {
        let table = RepeatTable::fit(&[16.0, 16.0, 16.0], &cases(), RepeatOptions::default());
        let (due, fresh) = (table.value(0, 20.0, 1), table.value(0, 2.0, 1));
        // Half of all users own it: 0.25 of all cases have it as a target.
        assert!((due - (0.8f32 / 0.25).ln()).abs() < 0.15, "due {due}");
        assert!((fresh - (0.2f32 / 0.25).ln()).abs() < 0.15, "fresh {fresh}");
        assert!(table.value(1, 20.0, 1) < due);
    }

    #[test]
    fn cases_have_the_last_products_and_what_came_after() {
        let lines = [(1, 0), (2, 1), (5, 2), (9, 1)]
            .map(|(at, product)| Line { at, product })
            .to_vec();
        let log = Purchases::new(
            3,
            [UserLog {
                id: "a".into(),
                lines,
            }],
        );
        let found = super::cases(&log, &[3, 10], 4, &[0, 1]);
        assert_eq!(found.len(), 2);
        assert!(found[0].owned.is_empty() && found[1].owned[0].product == 1);
        assert_eq!(found[1].targets, [2]);
    }

    #[test]
    fn an_unknown_product_has_the_value_0() {
        let table = RepeatTable::fit(&[16.0; 3], &cases(), RepeatOptions::default());
        assert_eq!(table.value(3, 1.0, 1), 0.0);
        assert_eq!(RepeatTable::default().value(0, 1.0, 1), 0.0);
    }

    #[test]
    fn intervals_are_medians_shrunk_to_the_median_of_all() {
        let lines = |product, gap: i64, n: i64| {
            (0..n).map(move |k| Line {
                at: k * gap * DAY_MS,
                product,
            })
        };
        let user = UserLog {
            id: "a".into(),
            lines: lines(0, 10, 101).chain(lines(1, 30, 2)).collect(),
        };
        let log = Purchases::new(3, [user]);
        let found = intervals(
            &log,
            2_000 * DAY_MS,
            RepeatOptions {
                interval_gaps: 1.0,
                ..RepeatOptions::default()
            },
        );
        assert!((found[0] - 10.0).abs() < 1e-9);
        assert!((found[1] - 300f64.sqrt()).abs() < 1e-9);
        assert!((found[2] - 10.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn values_are_finite_for_any_cases(
            owners in proptest::collection::vec((0u32..4, 0f32..500.0, 1u32..40, any::<bool>()), 0..30),
            days in 0f32..1000.0, count in 0u32..100,
        ) {
            let cases: Vec<RepeatCase> = owners
                .iter()
                .map(|&(product, days, count, again)| RepeatCase {
                    owned: vec![owned(product, days, count)],
                    targets: if again { vec![product] } else { vec![] },
                })
                .collect();
            let table = RepeatTable::fit(&[1.0, 7.0, 30.0, 90.0], &cases, RepeatOptions::default());
            for product in 0..4 {
                prop_assert!(table.value(product, days, count).is_finite());
            }
        }
    }
}
