//! `head`: what a head makes of the frozen model's hidden state at the end of the user's prompt.
//!
//! Its values are made by the engine, which has the hidden state: `ScoreRequest::head`. So the term says nothing where
//! lists are made without the model. See [`names::head`](crate::names::head).

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Head;

impl ScoreTerm for Head {
    fn name(&self) -> &'static str {
        super::HEAD
    }

    fn need(&self) -> Need {
        Need::Head
    }

    fn values(&self, _: &TermInput<'_>) -> Option<Values> {
        None
    }
}
