//! `walk`: where a random walk ends that begins at what the user bought: what its buyers ever bought, by the shop's log.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Walk;

impl ScoreTerm for Walk {
    fn name(&self) -> &'static str {
        "walk"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let values = input.learned?.walk(input.own)?;
        Some(Values::Dense(values))
    }
}
