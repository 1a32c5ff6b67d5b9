//! `neighbours`: how much more often a product is bought by buyers of what the user bought (lift), by the shop's log.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Neighbours;

impl ScoreTerm for Neighbours {
    fn name(&self) -> &'static str {
        "neighbours"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let values = input.learned?.lift(input.own)?;
        Some(Values::Dense(values))
    }
}
