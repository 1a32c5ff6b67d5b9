//! `weeks`: how many weeks of buyers a product has, beside how many of its SKUs they bought.
//!
//! Demand counts a user once per SKU and week, and a product is the sum of its SKUs: one whose buyers take six sorts at
//! once (cards, yoghurt) counts six times. This is the logarithm of the ratio that puts it right.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Weeks;

impl ScoreTerm for Weeks {
    fn name(&self) -> &'static str {
        "weeks"
    }

    fn need(&self) -> Need {
        Need::Artefact
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        input.learned?.column(self.name()).map(Values::Shared)
    }
}
