//! Giving way: how backfill leaves the model to live, here and in every other worker.
//!
//! Decides nothing about a user. While live is behind its objective in any worker, backfill has no share in all of
//! them; a signal in the store says so and passes by itself, so a worker that dies holds nobody back for long.
//! Nor does it fill the memory: half of the room is the most it has, the rest stays in the log. And a batch takes no more backfill users than the model serves within [`SLICE`]: a live user who becomes due
//! waits for the batch that runs.

use std::time::Duration;

use super::{Generate, Scorer};
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;
use nearshore_core::user::record::Timestamp;

/// How often it is told and asked.
pub const BACKPRESSURE_EVERY: Duration = Duration::from_secs(2);

/// How long the signal lasts: a few turns, so that one slow answer does not flicker.
const SIGNAL_TTL: Duration = Duration::from_secs(10);

/// Share of the objective that backfill users may take of one batch.
const SLICE: u32 = 20;

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// Reads as much of backfill as lies ready for the model, and leaves the rest in the log: live has a topic of its
    /// own, and must not wait for room behind a sweep of a million users.
    pub(super) fn apply_backpressure(&mut self) {
        let holds = !self.lanes.wants_backfill();
        if holds != self.holds {
            self.holds = holds;
            let backfill = &self.settings.topics.regen_backfill;
            let held = if holds {
                std::slice::from_ref(backfill)
            } else {
                &[]
            };
            self.log.pause(held);
        }
    }

    /// Tells the others if live is behind here, and heeds whoever tells it. After an error nothing changes.
    pub async fn update_backpressure(&mut self, now: Timestamp) -> Result<(), Error> {
        self.costs.tell(&self.store, (&self.shares, now)).await?;
        let own = self.lanes.live_behind(now);
        if own {
            self.store.say_live_behind(SIGNAL_TTL).await?;
        }
        let behind = own || self.store.live_behind().await?;
        if behind != self.lanes.is_backfill_paused() {
            let objective = self.settings.lanes.objective;
            match behind {
                true => tracing::warn!(
                    here = own,
                    ?objective,
                    "live is behind its objective: backfill has no share"
                ),
                false => {
                    tracing::info!("live is within its objective: backfill has its share again")
                }
            }
        }
        self.lanes.pause_backfill(behind);
        metrics::backfill_paused(behind);
        let slice = self.settings.lanes.objective / SLICE;
        let each = self.seconds_per_user();
        let most = if each.is_zero() {
            usize::MAX
        } else {
            (slice.as_secs_f64() / each.as_secs_f64()).max(1.0) as usize // saturates
        };
        self.lanes.limit_backfill(most);
        Ok(())
    }
}
