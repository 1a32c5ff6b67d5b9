//! `assortment`: the log share of a product among the SKUs of the catalogue, which is what is known on day one.

use std::sync::Arc;

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Assortment;

impl ScoreTerm for Assortment {
    fn name(&self) -> &'static str {
        "assortment"
    }

    fn need(&self) -> Need {
        Need::Snapshot
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        Some(Values::Shared(Arc::clone(&input.snapshot.assortment)))
    }
}
