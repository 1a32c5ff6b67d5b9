//! `repeat`: how likely a product that the user bought is bought again now, relative to its demand.
//!
//! The user's age of a purchase is set against the product's usual interval, so that what was bought yesterday and is
//! bought once a month says less than what is due.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Repeat;

impl ScoreTerm for Repeat {
    fn name(&self) -> &'static str {
        "repeat"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let values = input.learned?.repeat(input.own, input.at)?;
        Some(Values::Sparse(values))
    }
}
