//! How backfill makes room for live requests, in this worker and in all others: [`Backpressure`].
//!
//! Invariant: live requests never wait behind backfill. While live is behind its objective in any worker, backfill has
//! no share in all of them; a signal in the store says so and expires by itself, so that a worker that dies stops
//! backfill for seconds only. Backfill fills at most half of the memory for requests; the rest of it stays in the log.
//! A batch has no more backfill users than the model serves within a [`SLICE`] of the objective, for a live user who
//! becomes due waits until that batch is done. It decides nothing about a user.

use std::sync::Arc;
use std::time::Duration;

use crate::members::error::Error;
use crate::metrics;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;
use nearshore_core::queue::lanes::Lanes;

/// How often the signal is written and read.
pub const BACKPRESSURE_EVERY: Duration = Duration::from_secs(2);

/// How long the signal lasts: several times [`BACKPRESSURE_EVERY`], so that one slow answer does not end it.
const SIGNAL_TTL: Duration = Duration::from_secs(10);

/// Backfill users may use the model for the objective divided by this in one batch.
const SLICE: u32 = 20;

/// Backpressure of the backfill lane, towards the log and between workers.
pub(super) struct Backpressure {
    /// Topic of the backfill lane.
    backfill: Arc<str>,
    /// The oldest live request may be due for so long.
    objective: Duration,
    /// Whether the log was asked to pause the topic.
    is_topic_paused: bool,
}

impl Backpressure {
    /// Backpressure of a log which delivers all topics.
    pub(super) fn new(backfill: Arc<str>, objective: Duration) -> Self {
        Self {
            backfill,
            objective,
            is_topic_paused: false,
        }
    }

    /// Pauses or resumes the topic of backfill, by what is in memory of it. Live has a topic of its own, so that it
    /// does not wait for memory behind a sweep of a million users.
    pub(super) fn apply<L: Log>(&mut self, lanes: &mut Lanes, log: &mut L) {
        let pause = !lanes.wants_backfill();
        if pause == self.is_topic_paused {
            return;
        }
        self.is_topic_paused = pause;
        let topics = std::slice::from_ref(&self.backfill);
        log.pause(if pause { topics } else { &[] });
    }

    /// Writes the signal if live is behind `here`, and follows it whichever worker wrote it. After an error the lanes
    /// share as before.
    pub(super) async fn update<S: Store>(
        &self,
        lanes: &mut Lanes,
        store: &S,
        here: bool,
    ) -> Result<(), Error> {
        if here {
            store.signal_live_behind(SIGNAL_TTL).await?;
        }
        let behind = here || store.live_behind().await?;
        if behind != lanes.is_backfill_paused() {
            let objective = self.objective;
            match behind {
                true => tracing::warn!(
                    here,
                    ?objective,
                    "live requests wait longer than lanes.objective; backfill has no share until they are served"
                ),
                false => tracing::info!(
                    ?objective,
                    "live requests are within lanes.objective again; backfill has its share again"
                ),
            }
        }
        lanes.pause_backfill(behind);
        metrics::backfill_paused(behind);
        Ok(())
    }

    /// Most backfill users that the model is asked about at once.
    pub(super) fn users_max(&self, seconds_per_user: Duration) -> usize {
        backfill_users_max(self.objective, seconds_per_user)
    }
}

/// Most backfill users of one batch; no limit before the cost per user is known.
fn backfill_users_max(objective: Duration, seconds_per_user: Duration) -> usize {
    if seconds_per_user.is_zero() {
        return usize::MAX;
    }
    let slice = objective / SLICE;
    (slice.as_secs_f64() / seconds_per_user.as_secs_f64()).max(1.0) as usize // saturates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_as_much_backfill_as_the_model_serves_in_a_slice_of_the_objective() {
        for (millis_per_user, users) in [(0, usize::MAX), (1, 3_000), (1_000, 3), (60_000, 1)] {
            let cost = Duration::from_millis(millis_per_user);
            let max = backfill_users_max(Duration::from_secs(60), cost);
            assert_eq!(max, users, "{cost:?} a user");
        }
    }
}
