//! What became of a list that a model wrote freely: names, and entries that are none with their reasons.
//!
//! Values only: [`crate::names::free`] makes them, audits and metrics tell them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

/// Why an entry is no name of the list. Its text is the same in JSON and in metrics.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    IntoStaticStr,
    VariantNames,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Reject {
    /// It has no letter and no digit.
    Empty,
    /// Its text or its product is in the list already.
    Repeat,
    /// No product is likely enough.
    Theta,
    /// The product may not be offered to this user, or is not in stock.
    NotPermitted,
    /// It is longer than any name.
    TooLong,
}

/// An entry that became a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// What was written.
    pub text: String,
    /// Its product, by index into the names.
    pub pu: u32,
    /// The probability that the product is meant.
    pub probability: f64,
}

/// An entry that did not.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// What was written.
    pub text: String,
    /// Why it is no name.
    pub why: Reject,
    /// The likeliest product with its probability, if one is likely at all.
    pub nearest: Option<(u32, f64)>,
}

/// What became of a written list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// Names, in the order in which they were written.
    pub accepted: Vec<Accepted>,
    /// The other entries, in their order.
    pub rejected: Vec<Rejected>,
    /// Lines that were no entries.
    pub chatter: usize,
    /// Whether the text was cut off.
    pub is_cut: bool,
}

impl Written {
    /// Number of rejected entries of each reason.
    pub fn reasons(&self) -> BTreeMap<Reject, usize> {
        let mut reasons = BTreeMap::new();
        for rejected in &self.rejected {
            *reasons.entry(rejected.why).or_default() += 1;
        }
        reasons
    }
}
