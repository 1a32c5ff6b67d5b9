//! The reward that a place is expected to earn: a simple model for the doubly robust estimate, fitted to the log itself.
//!
//! The rate of a place and of a bin of shares, shrunk towards the rate of the place, and that towards the rate of all.
//! Invariant: the rate that is used for a user is fitted to users of the other fold, so that no reward predicts itself. A
//! bad model costs precision only: the estimate is unbiased with any.

/// Bins of shares: each from its bound up to the next.
const BOUNDS: [f64; 8] = [0.0, 0.01, 0.03, 0.08, 0.15, 0.3, 0.5, 0.75];

/// Number of bins.
pub(super) const BINS: usize = BOUNDS.len();

/// Number of folds.
pub(super) const FOLDS: usize = 2;

/// Exposures that the rate above weighs as.
const PRIOR: f64 = 50.0;

/// The bin of a share.
pub(super) fn bin(share: f64) -> usize {
    BOUNDS.partition_point(|bound| *bound <= share).max(1) - 1
}

/// Rewards and exposures of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cell {
    rewards: f64,
    exposures: f64,
}

impl Cell {
    fn add(&mut self, other: Self) {
        self.rewards += other.rewards;
        self.exposures += other.exposures;
    }

    fn rate(self, prior: f64) -> f64 {
        (self.rewards + PRIOR * prior) / (self.exposures + PRIOR)
    }
}

/// Rewards and exposures by fold, place and bin.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    cells: Vec<[[Cell; BINS]; FOLDS]>,
}

impl Rates {
    /// Counts a place that was shown to a user of a fold, by the share of an exposure that has had its time.
    pub(super) fn add(
        &mut self,
        (fold, place, bin): (usize, usize, usize),
        reward: f64,
        counts: f64,
    ) {
        if self.cells.len() <= place {
            self.cells.resize(place + 1, Default::default());
        }
        self.cells[place][fold][bin].add(Cell {
            rewards: reward,
            exposures: counts,
        });
    }

    /// For each fold, place and bin the rate by the other folds.
    pub(super) fn fitted(&self) -> [Vec<[f64; BINS]>; FOLDS] {
        std::array::from_fn(|fold| self.of_others(fold))
    }

    fn of_others(&self, fold: usize) -> Vec<[f64; BINS]> {
        let cell = |place: usize, bin: usize| {
            let mut sum = Cell::default();
            let others = (0..FOLDS).filter(|other| *other != fold);
            others.for_each(|other| sum.add(self.cells[place][other][bin]));
            sum
        };
        let of_place = |place: usize| {
            let mut sum = Cell::default();
            (0..BINS).for_each(|bin| sum.add(cell(place, bin)));
            sum
        };
        let mut all = Cell::default();
        (0..self.cells.len()).for_each(|place| all.add(of_place(place)));
        let overall = match all.exposures > 0.0 {
            true => all.rewards / all.exposures,
            false => 0.0,
        };
        let rates = |place: usize| {
            let rate = of_place(place).rate(overall);
            std::array::from_fn(|bin| cell(place, bin).rate(rate))
        };
        (0..self.cells.len()).map(rates).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_other_fold_shrunk_towards_its_place_and_all() {
        let mut rates = Rates::default();
        rates.add((0, 0, 2), 30.0, 100.0);
        rates.add((0, 1, 2), 0.0, 100.0);
        rates.add((1, 0, 0), 500.0, 500.0);
        let fitted = rates.fitted();
        let place = (30.0 + 50.0 * 0.15) / 150.0;
        let wanted = (30.0 + 50.0 * place) / 150.0;
        assert!((fitted[1][0][2] - wanted).abs() < 1e-12);
        assert!((fitted[1][0][7] - place).abs() < 1e-12);
        assert!(fitted[0][0][0] > 0.9);
    }

    #[test]
    fn a_share_is_in_the_bin_whose_bounds_it_is_between() {
        let bins = [0.0, 0.0099, 0.01, 0.3, 0.74, 1.0].map(bin);
        assert_eq!(bins, [0, 0, 1, 5, 6, 7]);
    }
}
