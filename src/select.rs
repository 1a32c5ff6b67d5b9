//! EE(pu, sku): the probability that a SKU is the best of its PU, given counts, prior and seed.
//!
//! Invariant: the propensities of a PU's in-stock SKUs sum to 1; the same seed gives the same choice.

use serde::{Deserialize, Serialize};

/// How SKUs are chosen under a PU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Keep SKUs whose probability of being the best is at least this.
    pub epsilon: f64,
    /// Most SKUs kept per PU.
    pub top_k: usize,
    /// Monte Carlo draws per PU.
    pub draws: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            epsilon: 0.02,
            top_k: 5,
            draws: 256,
        }
    }
}
