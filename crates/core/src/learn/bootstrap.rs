//! Intervals by resampling users: of a mean, and of the mean difference between two rankings of the same cases.
//!
//! Invariant: all cases of a user are drawn together, so many cases of one user do not look like many users. Seed and
//! values decide the result, whatever the order in which they come.

use std::collections::BTreeMap;

use schemars::JsonSchema;

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize, JsonSchema)]
pub struct Interval {
    /// The mean over all cases.
    pub mean: f64,
    /// The 2.5th percentile over resamples.
    pub low: f64,
    /// The 97.5th percentile over resamples.
    pub high: f64,
    /// How many users were drawn from.
    pub users: usize,
    /// How many cases they have.
    pub cases: usize,
}

impl Interval {
    /// Whether all of the interval is above 0.
    pub fn above_zero(&self) -> bool {
        self.low > 0.0
    }
}

/// How to resample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// Seed of the draws.
    pub seed: u64,
    /// How many resamples to draw.
    pub resamples: usize,
}

impl Default for Resampling {
    fn default() -> Self {
        Self {
            seed: 1,
            resamples: 2_000,
        }
    }
}

/// The interval of the mean of `values`, pairs of user and value. Without values, all is 0.
pub fn mean<K: Ord>(values: impl IntoIterator<Item = (K, f64)>, how: Resampling) -> Interval {
    let mut by_user: BTreeMap<K, Vec<f64>> = BTreeMap::new();
    for (user, value) in values {
        by_user.entry(user).or_default().push(value);
    }
    let sums: Vec<(f64, f64)> = by_user
        .into_values()
        .map(|mut values| {
            // Sums of floats depend on their order.
            values.sort_by(f64::total_cmp);
            (values.iter().sum(), values.len() as f64)
        })
        .collect();
    let cases: f64 = sums.iter().map(|(_, n)| n).sum();
    if sums.is_empty() {
        return Interval {
            mean: 0.0,
            low: 0.0,
            high: 0.0,
            users: 0,
            cases: 0,
        };
    }
    let mean = sums.iter().map(|(sum, _)| sum).sum::<f64>() / cases;
    let mut random = Random::new(how.seed);
    let mut means: Vec<f64> = (0..how.resamples.max(1))
        .map(|_| resampled(&sums, &mut random))
        .collect();
    means.sort_by(f64::total_cmp);
    let (low, high) = (quantile(&means, 0.025), quantile(&means, 0.975));
    Interval {
        mean,
        low,
        high,
        users: sums.len(),
        cases: cases as usize,
    }
}

/// The interval of the mean of `a - b` over cases that were measured by both: triples of user, `a` and `b`.
pub fn paired<K: Ord>(cases: impl IntoIterator<Item = (K, f64, f64)>, how: Resampling) -> Interval {
    mean(cases.into_iter().map(|(user, a, b)| (user, a - b)), how)
}

/// The mean over as many users as there are, drawn with replacement.
fn resampled(sums: &[(f64, f64)], random: &mut Random) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for _ in 0..sums.len() {
        let drawn = sums[random.below(sums.len())];
        sum += drawn.0;
        n += drawn.1;
    }
    sum / n
}

/// The quantile `q` of ascending values, linear between neighbours. Without values 0.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// One step of SplitMix64: a mixing function whose outputs for 0, 1, 2 … pass as random.
pub(crate) fn splitmix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A small generator of random numbers, the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(splitmix(seed))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        splitmix(self.0)
    }

    /// A number in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number from 0 to below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A draw from the standard normal distribution.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOW: Resampling = Resampling {
        seed: 3,
        resamples: 400,
    };

    #[test]
    fn the_interval_of_a_mean_covers_the_truth_nineteen_times_of_twenty() {
        let mut random = Random::new(5);
        let trials = 300;
        let covered = (0..trials)
            .filter(|_| {
                // Three cases a user, which share the user's level: taken as independent they would cover far less.
                let values: Vec<(usize, f64)> = (0..60)
                    .flat_map(|user| {
                        let level = random.normal();
                        [0, 1, 2].map(|_| (user, 0.3 + level + 0.1 * random.normal()))
                    })
                    .collect();
                let found = mean(values, HOW);
                found.low <= 0.3 && 0.3 <= found.high
            })
            .count();
        let share = covered as f64 / f64::from(trials);
        assert!((0.90..=0.98).contains(&share), "covers {share}");
    }

    #[test]
    fn order_changes_nothing_and_the_seed_does() {
        let mut random = Random::new(9);
        let values: Vec<(u32, f64)> = (0..100).map(|case| (case % 30, random.normal())).collect();
        let reversed: Vec<(u32, f64)> = values.iter().rev().copied().collect();
        assert_eq!(mean(values.clone(), HOW), mean(reversed, HOW));
        assert_ne!(
            mean(values.clone(), HOW),
            mean(values, Resampling { seed: 4, ..HOW })
        );
    }

    #[test]
    fn equal_rankings_differ_by_nothing_and_no_values_give_zero() {
        let same = paired((0..20).map(|user| (user, 0.4, 0.4)), HOW);
        assert_eq!(
            (same.mean, same.low, same.high, same.users),
            (0.0, 0.0, 0.0, 20)
        );
        assert!(!same.above_zero());
        assert_eq!(mean(Vec::<(u8, f64)>::new(), HOW).cases, 0);
    }

    #[test]
    fn quantiles_are_linear_between_neighbours() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.25), 1.5);
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[4.0], 0.9), 4.0);
    }
}
