//! Tells generate that this member folds history: [`History`].
//!
//! A record is history if it is older than `trigger.history_after` when it is folded: a first deployment, a reset
//! position, an outage. Its users ask once, in the backfill lane, and generate leaves that lane alone as long as the
//! signal says that more may come. Invariant: the signal is written before the requests that wait for its end. It
//! expires by itself, so a member that dies delays them for seconds only.

use std::time::Duration;

use super::IngestSettings;
use super::fold_users::Users;
use nearshore_core::user::record::Timestamp;

/// How long the signal lasts: longer than the slowest usual batch.
const SIGNAL_TTL: Duration = Duration::from_secs(15);

/// How often it is written again while history goes on.
const SIGNAL_EVERY: Duration = Duration::from_secs(3);

/// When this member last signalled that it folds history.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The clock's time of it.
    signalled_at: Timestamp,
    /// The clock's time now.
    now: Timestamp,
}

impl History {
    /// The time before which records are history now.
    pub(super) fn before(&mut self, settings: &IngestSettings) -> Timestamp {
        self.now = (settings.clock)();
        self.now.before(settings.policy.history_after)
    }

    /// How long to signal that history is folded; `None` if these users have none, or the last signal is recent.
    pub(super) fn signal(&mut self, users: &Users, history_before: Timestamp) -> Option<Duration> {
        if self.now.since(self.signalled_at) < SIGNAL_EVERY {
            return None;
        }
        let mut records = users.values().flatten();
        records.find(|record| record.time < history_before)?;
        self.signalled_at = self.now;
        Some(SIGNAL_TTL)
    }
}
