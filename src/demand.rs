//! How often each PU is bought, per segment, decayed in time: popularity baseline and prior.
//!
//! Invariant: sums of integer cells, so that adding commutes; decay and the mapping SKU -> PU happen here, at read.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How counts become demand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// After this long a purchase counts half.
    #[serde(with = "humantime_serde")]
    pub half_life: Duration,
    /// Buckets older than this are not read, and expire in the store.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// A segment's demand is mixed with everyone's by this many pseudo-purchases.
    pub smoothing: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            half_life: Duration::from_secs(28 * 86_400),
            keep: Duration::from_secs(365 * 86_400),
            smoothing: 100.0,
        }
    }
}
