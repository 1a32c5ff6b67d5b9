//! `merchant`: what the shop itself wants more or less of, from its configuration. Its weight is 1 and is never fitted.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Merchant;

impl ScoreTerm for Merchant {
    fn name(&self) -> &'static str {
        "merchant"
    }

    fn need(&self) -> Need {
        Need::Policy
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let boosts = input.snapshot.merchant.boosts(input.at);
        (!boosts.is_empty()).then_some(Values::Sparse(boosts))
    }
}
