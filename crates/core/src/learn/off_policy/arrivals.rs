//! How much of what an exposure will earn has come by a given time after it.
//!
//! A list that was shown yesterday has earned less than it will. Counting it as one whole exposure would make young lists
//! look bad; leaving young lists out would waste them. So an exposure counts by the share of rewards that come within
//! the time that it has had, [`Arrivals::shares`], and what it earned so far counts in full: both have the same
//! expectation.
//!
//! Invariant: the share rises with time, is 1 from the window on, and depends on no order. It assumes that delays do not
//! depend on what was shown, nor on when.
//!
//! Source: the mean cumulative function of Nelson 1988 ("Graphical analysis of system repair data", Journal of Quality
//! Technology 20): at each delay, rewards divided by the exposures that have been observed for as long. The end of the log
//! is the only thing that ends an observation, and is known for each exposure, so it is unbiased, also with several
//! rewards an exposure.

/// Fewest exposures that must be as old as the window: with fewer, the end of the curve is a guess.
pub(super) const OLD_MIN: usize = 100;

/// When exposures end and rewards came: what the shares follow from, for any number of times that each exposure counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Arrivals {
    /// Exposures by the time that each has had, ascending.
    by_age: Vec<usize>,
    /// For each reward, by delay: its exposure, and the place in `by_age` of the first exposure that is as old.
    rewards: Vec<(usize, usize)>,
    /// For each exposure, how many of the rewards came within the time that it has had.
    within: Vec<usize>,
}

impl Arrivals {
    /// From the time that each exposure has had, and rewards as exposure and delay, all within the window.
    pub(super) fn new(elapsed: &[i64], rewards: &[(usize, i64)], window: i64) -> Self {
        let mut by_age: Vec<usize> = (0..elapsed.len()).collect();
        by_age.sort_by_key(|at| (elapsed[*at], *at));
        let mut rewards = rewards.to_vec();
        rewards.sort_by_key(|(exposure, delay)| (*delay, *exposure));
        let within = elapsed.iter().map(|had| match *had >= window {
            true => rewards.len(),
            false => rewards.partition_point(|(_, delay)| delay <= had),
        });
        Self {
            within: within.collect(),
            rewards: rewards
                .iter()
                .map(|(exposure, delay)| {
                    let older = by_age.partition_point(|at| elapsed[*at] < *delay);
                    (*exposure, older)
                })
                .collect(),
            by_age,
        }
    }

    /// As how much of an exposure each one counts, if each is there so many times.
    pub(super) fn shares(&self, times: &[f64]) -> Vec<f64> {
        // From each place in the order of ages on, how many exposures there are.
        let mut observed = vec![0.0; self.by_age.len() + 1];
        for (place, exposure) in self.by_age.iter().enumerate().rev() {
            observed[place] = observed[place + 1] + times[*exposure];
        }
        let mut mean = Vec::with_capacity(self.rewards.len() + 1);
        let mut sum = 0.0;
        mean.push(sum);
        for (exposure, older) in &self.rewards {
            if observed[*older] > 0.0 {
                sum += times[*exposure] / observed[*older];
            }
            mean.push(sum);
        }
        let share = |within: &usize| match sum > 0.0 {
            true => mean[*within] / sum,
            false => 1.0,
        };
        self.within.iter().map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_rewards_per_exposure_that_was_old_enough() {
        // Ten exposures, five of which have had 4 of 10 days; two rewards on day 2, one on day 6.
        let elapsed = [4, 20, 4, 20, 4, 20, 4, 20, 4, 20];
        let rewards = [(1, 6), (0, 2), (3, 2)];
        let arrivals = Arrivals::new(&elapsed, &rewards, 10);
        let close = |found: Vec<f64>, wanted: [f64; 2]| {
            let far = |(nth, it): (usize, &f64)| (it - wanted[nth % 2]).abs() > 1e-12;
            assert!(!found.iter().enumerate().any(far), "{found:?}");
        };
        close(arrivals.shares(&[1.0; 10]), [0.2 / 0.4, 1.0]);
        // Without the exposure of the first reward, and with that of the last one twice.
        let mut times = [1.0; 10];
        (times[0], times[1]) = (0.0, 2.0);
        close(arrivals.shares(&times), [0.1 / (0.1 + 2.0 / 6.0), 1.0]);
    }

    #[test]
    fn without_rewards_every_exposure_counts_as_one() {
        assert_eq!(Arrivals::new(&[1, 2], &[], 10).shares(&[1.0; 2]), [1.0; 2]);
    }
}
