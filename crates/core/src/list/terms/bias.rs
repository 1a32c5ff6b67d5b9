//! `bias`: what the other terms miss of a product for everyone, as fitted by `nearshore align`.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Bias;

impl ScoreTerm for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let bias = input.learned?.column(self.name())?;
        Some(Values::Shared(bias))
    }
}
