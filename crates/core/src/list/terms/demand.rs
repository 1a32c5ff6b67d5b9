//! `demand`: the log share of a product among the buyers of the user's segment.

use super::{DEMAND, Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Demand;

impl ScoreTerm for Demand {
    fn name(&self) -> &'static str {
        DEMAND
    }

    fn need(&self) -> Need {
        Need::Snapshot
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let shares = input.snapshot.demand.log_shares(input.segment);
        Some(Values::Shared(shares))
    }
}
