//! Requests of the three lanes become one per user, cut into a batch.
//!
//! Invariant: first in, first out within a lane; every request taken in is handed out in a batch or
//! merged into one that is, with all its positions. The only pure code that is handed the clock's time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How lanes share the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Share of batches' places, relative.
    pub urgent: u32,
    /// Share of the live lane.
    pub live: u32,
    /// Share of the backfill lane; drops to none while live is behind its objective.
    pub backfill: u32,
    /// Most requests held unserved in memory; intake stops there and lag grows in Kafka only.
    pub unserved_max: usize,
    /// Most users in a batch.
    pub batch_max: usize,
    /// A live or urgent request older than this gets the fallback instead, counted.
    #[serde(with = "humantime_serde")]
    pub max_wait: Duration,
    /// Age at which the live lane is behind its objective.
    #[serde(with = "humantime_serde")]
    pub objective: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            urgent: 70,
            live: 20,
            backfill: 10,
            unserved_max: 10_000,
            batch_max: 16,
            max_wait: Duration::from_secs(300),
            objective: Duration::from_secs(60),
        }
    }
}
