//! The cost per user: seconds of model time, measured batch by batch: [`UserCosts`].
//!
//! It is written to the store, so that the time of a backfill can be estimated before it is started.
//!
//! Invariant: a cost is the time spent divided by the users served, and both decay alike, so that a full batch counts
//! for more than a batch of a single user. It decides nothing.

use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::members::error::Error;
use nearshore_core::list::prompt::Arm;
use nearshore_core::ports::store::Store;
use nearshore_core::user::record::Timestamp;

/// How often the costs are written to the store.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// Weight of the newest batch.
const NEW: f64 = 0.1;

/// The cost per user of an arm's model, as it was measured last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserCost {
    /// Seconds of model time per user.
    pub seconds: f64,
    /// Users in a batch, on average.
    pub batch: f64,
    /// The arm's model.
    pub model: String,
    /// When it was written, by the worker's clock.
    pub at: Timestamp,
}

/// Seconds and users of the batches so far, decayed: each new batch has the weight [`NEW`].
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    seconds: f64,
    users: f64,
}

impl Spent {
    fn and(self, busy: Duration, users: usize) -> Self {
        let (seconds, users) = (busy.as_secs_f64(), users as f64);
        if self.users == 0.0 {
            return Self { seconds, users };
        }
        let mixed = |old: f64, new: f64| old * (1.0 - NEW) + new * NEW;
        Self {
            seconds: mixed(self.seconds, seconds),
            users: mixed(self.users, users),
        }
    }

    fn each(self) -> f64 {
        self.seconds / self.users.max(1.0)
    }
}

/// The costs per user of all arms together, and of each arm. It owns what was measured.
pub(super) struct UserCosts {
    all: ArcSwap<Spent>,
    arms: Vec<ArcSwap<Spent>>,
    /// When the costs were last written to the store.
    written: Timestamp,
}

impl UserCosts {
    /// Costs of so many arms, of which nothing is known.
    pub(super) fn new(arms: usize) -> Self {
        Self {
            all: ArcSwap::default(),
            arms: (0..arms).map(|_| ArcSwap::default()).collect(),
            written: Timestamp(0),
        }
    }

    /// Notes that an arm's model served so many users in this time.
    pub(super) fn note(&self, arm: usize, busy: Duration, users: usize) {
        for spent in [&self.all, &self.arms[arm]] {
            spent.store(spent.load().and(busy, users).into());
        }
    }

    /// Model time per user over all arms; zero before the first batch.
    pub(super) fn each(&self) -> Duration {
        Duration::from_secs_f64(self.all.load().each())
    }

    /// Model time per user of one arm; zero before its first batch.
    pub(super) fn of_arm(&self, arm: usize) -> Duration {
        Duration::from_secs_f64(self.arms[arm].load().each())
    }

    /// Writes the cost of each arm to the store, at most every [`WRITE_EVERY`].
    pub(super) async fn write<S: Store>(
        &mut self,
        store: &S,
        arms: &[Arm],
        now: Timestamp,
    ) -> Result<(), Error> {
        if now.since(self.written) < WRITE_EVERY {
            return Ok(());
        }
        for (arm, spent) in arms.iter().zip(&self.arms) {
            let spent = **spent.load();
            if spent.users > 0.0 {
                let cost = UserCost {
                    seconds: spent.each(),
                    batch: spent.users,
                    model: arm.model.clone(),
                    at: now,
                };
                let note = serde_json::to_string(&cost).expect("finite numbers and text");
                store.set_cost(&arm.id, &note).await?;
            }
        }
        self.written = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_batch_counts_for_more_than_a_single_user() {
        let costs = UserCosts::new(2);
        assert_eq!(costs.each(), Duration::ZERO);
        // 50 ms whatever the batch: ten of 16 users, ten of one.
        for users in [16, 1] {
            for _ in 0..10 {
                costs.note(0, Duration::from_millis(50), users);
            }
        }
        let each = costs.each().as_secs_f64();
        assert!((0.05 / 8.5..0.05 / 5.0).contains(&each), "{each}");
        assert_eq!(costs.of_arm(0), costs.each());
        assert_eq!(costs.of_arm(1), Duration::ZERO);
    }
}
