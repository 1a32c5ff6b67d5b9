//! Tests whether users are spread over arms as their shares say: [`test`].
//!
//! Decides when an experiment's groups are not what was configured (sample ratio mismatch): then something chose users by
//! more than the hash, and arms must not be compared. Invariant: the result depends on counts and shares alone. It does
//! not know why users are missing.

use schemars::JsonSchema;
use serde::Serialize;

/// A p value under this is a mismatch. Small, because the test is repeated with every look, and chance alone gives one
/// in twenty a value under 0.05. Source: Fabijan et al. 2019, "Diagnosing Sample Ratio Mismatch in Online Controlled
/// Experiments", doi:10.1145/3292500.3330722, which uses 0.0005.
pub const MISMATCH_BELOW: f64 = 0.001;

/// Pearson's chi-square test of counts against shares.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ShareTest {
    /// Sum of (observed - expected)² / expected.
    pub chi_square: f64,
    /// Degrees of freedom: arms with a share, less one.
    pub freedom: u32,
    /// Probability of a chi-square at least as large, if the shares are right.
    pub p: f64,
}

impl ShareTest {
    /// Whether the counts do not fit the shares.
    pub fn is_mismatch(&self) -> bool {
        self.p < MISMATCH_BELOW
    }
}

/// Compares the number of users of each arm with its share. Arms without a share are left out. `None` if fewer than two
/// arms are left, or no user.
pub fn test(arms: &[(u64, u32)]) -> Option<ShareTest> {
    let with_share = || arms.iter().filter(|(_, share)| *share > 0);
    let users: u64 = with_share().map(|(users, _)| users).sum();
    let shares: u64 = with_share().map(|(_, share)| u64::from(*share)).sum();
    let freedom = u32::try_from(with_share().count()).ok()?.checked_sub(1)?;
    if freedom == 0 || users == 0 {
        return None;
    }
    let part = |(observed, share): &(u64, u32)| {
        let expected = users as f64 * f64::from(*share) / shares as f64;
        (*observed as f64 - expected).powi(2) / expected
    };
    let chi_square = with_share().map(part).sum();
    Some(ShareTest {
        chi_square,
        freedom,
        p: upper_tail(chi_square, freedom),
    })
}

/// Probability that a chi-square variable of whole degrees of freedom exceeds `x`: Q(freedom / 2, x / 2), the upper
/// incomplete gamma function, from Q(1, y) = e^-y or Q(1/2, y) = erfc √y by the recurrence
/// Q(a + 1, y) = Q(a, y) + y^a e^-y / Γ(a + 1). All terms are positive, so nothing cancels. Source: Abramowitz and
/// Stegun 1964, 6.5.22, 26.4.4 and 26.4.5.
fn upper_tail(x: f64, freedom: u32) -> f64 {
    let y = x.max(0.0) / 2.0;
    if y == 0.0 {
        return 1.0;
    }
    let (mut a, mut q) = match freedom % 2 {
        0 => (1.0, (-y).exp()),
        _ => (0.5, libm::erfc(y.sqrt())),
    };
    while a < f64::from(freedom) / 2.0 {
        q += (a * y.ln() - y - libm::lgamma(a + 1.0)).exp();
        a += 1.0;
    }
    q.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_tail_equals_published_values() {
        // Critical values of tables: Abramowitz and Stegun 26.8, rounded to five digits.
        for (freedom, p, x) in [
            (1, 0.05, 3.84146),
            (1, 0.001, 10.8276),
            (2, 0.05, 5.99146),
            (3, 0.01, 11.3449),
            (4, 0.95, 0.710721),
            (5, 0.005, 16.7496),
            (9, 0.5, 8.34283),
            (10, 0.001, 29.5883),
            (30, 0.05, 43.7730),
            (100, 0.05, 124.342),
        ] {
            let found = upper_tail(x, freedom);
            assert!((found / p - 1.0).abs() < 2e-4, "{freedom} {x}: {found}");
        }
        assert_eq!(upper_tail(0.0, 3), 1.0);
        assert_eq!(upper_tail(1e6, 3), 0.0);
    }

    #[test]
    fn users_by_their_shares_fit_and_lost_users_are_a_mismatch() {
        let fits = test(&[(7_512, 3), (2_488, 1)]).expect("two arms");
        assert!(!fits.is_mismatch() && fits.freedom == 1, "{fits:?}");
        assert!((fits.chi_square - 0.0768).abs() < 1e-9, "{fits:?}");
        let exact = test(&[(600, 3), (200, 1), (200, 1)]).expect("three arms");
        assert_eq!((exact.chi_square, exact.freedom, exact.p), (0.0, 2, 1.0));
        let lost = test(&[(7_500, 3), (2_200, 1)]).expect("two arms");
        assert!(lost.is_mismatch(), "{lost:?}");
    }

    #[test]
    fn an_arm_without_share_is_left_out_and_one_arm_is_not_tested() {
        let two = test(&[(500, 1), (500, 1)]);
        assert_eq!(test(&[(500, 1), (77, 0), (500, 1)]), two);
        assert_eq!(test(&[(500, 1), (77, 0)]), None);
        assert_eq!(test(&[(0, 1), (0, 1)]), None);
        assert_eq!(test(&[]), None);
    }

    #[test]
    fn one_in_a_thousand_of_fair_experiments_is_called_a_mismatch() {
        use rand::{Rng, SeedableRng};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut mismatches = 0;
        for _ in 0..4_000 {
            let first = (0..400).filter(|_| random.random_bool(0.5)).count() as u64;
            let found = test(&[(first, 1), (400 - first, 1)]).expect("two arms");
            mismatches += u32::from(found.is_mismatch());
        }
        assert!((1..=10).contains(&mismatches), "{mismatches} of 4000");
    }
}
