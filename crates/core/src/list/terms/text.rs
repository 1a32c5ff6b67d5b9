//! `text`, `typical`: what the vectors of names say, without any log.
//!
//! `text` is how similar a name is to the user's texts, less how similar it is to all names. `typical` is the latter
//! alone: a name that is near to many is what the shop mostly sells. They are two terms, so that each has a weight of its
//! own: what is said to everyone often helps more, and must not pass for knowledge of the user.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

/// Similarity to the user's texts.
pub(super) struct Text;

/// Similarity to all names.
pub(super) struct Typical;

impl ScoreTerm for Text {
    fn name(&self) -> &'static str {
        super::TEXT
    }

    fn need(&self) -> Need {
        Need::Vectors
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let values = input.texts?.similar(input.own_texts)?;
        Some(Values::Dense(values))
    }
}

impl ScoreTerm for Typical {
    fn name(&self) -> &'static str {
        "typical"
    }

    fn need(&self) -> Need {
        Need::Vectors
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        Some(Values::Shared(input.texts?.typical()))
    }
}
