//! `reach`, `reach_ever`: how many users buy a product at all, beside how often it is bought.
//!
//! Demand counts buyers a week, so a product that few buy often leads it. What a user buys within a window is told by how
//! many bought it at least once in eight weeks, or ever: the logarithm of the ratio of the two shares.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

/// Over eight weeks.
pub(super) struct Reach;

/// Over all of the log.
pub(super) struct ReachEver;

impl ScoreTerm for Reach {
    fn name(&self) -> &'static str {
        "reach"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        input.learned?.column(self.name()).map(Values::Shared)
    }
}

impl ScoreTerm for ReachEver {
    fn name(&self) -> &'static str {
        "reach_ever"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        input.learned?.column(self.name()).map(Values::Shared)
    }
}
