//! Decides which users teach, which tune and which test: by a hash of the seed and the id.
//!
//! Invariant: a user's part depends on nothing but seed, id and shares, so no user moves because others come or go.

use std::hash::Hasher;

use fnv::FnvHasher;

use super::bootstrap::splitmix;

/// What a user is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Counts and tables are made from these users' purchases.
    Train,
    /// Weights are fitted to these users' later purchases.
    Tune,
    /// Results are measured on these users, who are used for nothing else.
    Test,
}

/// Shares of the parts, as fractions of 1. What is left is [`Part::Train`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    /// Share of users for [`Part::Tune`].
    pub tune: f64,
    /// Share of users for [`Part::Test`].
    pub test: f64,
}

/// A number in [0, 1) that depends on `seed` and `id` only.
pub fn uniform(seed: u64, id: &str) -> f64 {
    (hash(seed, id) >> 11) as f64 / (1u64 << 53) as f64
}

/// The part of user `id`.
pub fn part(seed: u64, id: &str, shares: Shares) -> Part {
    let at = uniform(seed, id);
    if at < shares.test {
        Part::Test
    } else if at < shares.test + shares.tune {
        Part::Tune
    } else {
        Part::Train
    }
}

/// The fold of user `id`, from 0 to below `folds`. With no folds all users are in fold 0.
pub fn fold(seed: u64, id: &str, folds: usize) -> usize {
    ((uniform(seed, id) * folds as f64) as usize).min(folds.saturating_sub(1))
}

fn hash(seed: u64, id: &str) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(id.as_bytes());
    // FNV alone spreads short ids badly over the high bits.
    splitmix(splitmix(hasher.finish()) ^ splitmix(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_users_are_as_asked() {
        let shares = Shares {
            tune: 0.2,
            test: 0.3,
        };
        let ids: Vec<String> = (0..20_000).map(|id| id.to_string()).collect();
        let share = |wanted| {
            ids.iter()
                .filter(|id| part(7, id, shares) == wanted)
                .count() as f64
                / ids.len() as f64
        };
        assert!((share(Part::Test) - 0.3).abs() < 0.015);
        assert!((share(Part::Tune) - 0.2).abs() < 0.015);
        assert!((share(Part::Train) - 0.5).abs() < 0.015);
    }

    #[test]
    fn folds_are_of_equal_size_and_depend_on_the_seed() {
        let ids: Vec<String> = (0..20_000).map(|id| format!("user-{id}")).collect();
        for k in 0..5 {
            let size =
                ids.iter().filter(|id| fold(1, id, 5) == k).count() as f64 / ids.len() as f64;
            assert!((size - 0.2).abs() < 0.015, "fold {k} has {size}");
        }
        assert!(ids.iter().any(|id| fold(1, id, 5) != fold(2, id, 5)));
        assert_eq!(fold(1, "a", 0), 0);
    }

    #[test]
    fn a_users_part_is_fixed() {
        let shares = Shares {
            tune: 0.2,
            test: 0.2,
        };
        let parts: Vec<Part> = ["1", "2", "900", "user"]
            .iter()
            .map(|id| part(42, id, shares))
            .collect();
        assert_eq!(
            parts,
            ["1", "2", "900", "user"]
                .iter()
                .map(|id| part(42, id, shares))
                .collect::<Vec<_>>()
        );
    }
}
