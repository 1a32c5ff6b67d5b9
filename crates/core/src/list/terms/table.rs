//! `table`: how much likelier the model names a product after the user's products, by the table that it made once.
//!
//! The mean over the newest products that the user viewed, clicked, put into the cart or bought, each counting once, as
//! those of `text`. A product is compared with the user's *other* products: the model repeats what it just read, and
//! whether something is bought again is said by `repeat`. Without products, or with none in the table, it says nothing.

use super::{Need, ScoreTerm, TermInput};
use crate::names::scoring::Values;

pub(super) struct Table;

impl ScoreTerm for Table {
    fn name(&self) -> &'static str {
        super::TABLE
    }

    fn need(&self) -> Need {
        Need::Table
    }

    fn values(&self, input: &TermInput<'_>) -> Option<Values> {
        let own = input.own_texts.iter().filter_map(|own| own.pu);
        let values = input.learned?.table()?.values(own)?;
        Some(Values::Dense(values))
    }
}
