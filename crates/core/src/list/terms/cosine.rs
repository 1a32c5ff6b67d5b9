//! `cosine`: the similarity of a product's buyers to the buyers of what the user bought, by the shop's log.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Cosine;

impl ScoreTerm for Cosine {
    fn name(&self) -> &'static str {
        "cosine"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let values = input.learned?.cosine(input.own)?;
        Some(Values::Dense(values))
    }
}
