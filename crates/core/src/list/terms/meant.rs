//! `meant`: what the user's searches and free texts name: the probability of each product, halved with the age of a search.
//!
//! It says nothing of a product that is denied ("no cough"), and nothing to a user without texts. It is no diagnosis.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Meant;

impl ScoreTerm for Meant {
    fn name(&self) -> &'static str {
        "meant"
    }

    fn need(&self) -> Need {
        Need::Matcher
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        (!input.meant.is_empty()).then(|| Values::Sparse(input.meant.into()))
    }
}
