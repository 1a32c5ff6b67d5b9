//! What the audit of a list keeps of what a model wrote freely: names with their products, and rejects by reason.
//!
//! Invariant: it is bounded, whatever was written: [`REJECTED_MAX`] rejects, and [`CHARS_MAX`] characters of each text.
//! Counts by reason are of all rejects. It does not know scores: the names of the list have them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::four_digits;
use crate::names::written::{Reject, Rejected, Written};
use crate::shop::catalogue::Catalogue;

/// Rejects that are kept with their text.
const REJECTED_MAX: usize = 20;

/// Characters that are kept of a text.
const CHARS_MAX: usize = 64;

/// What was written for a list. A model may repeat words of its prompt, so texts are a user's, as the list is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WrittenAudit {
    /// Entries that became names, in the order in which they were written; the rest of the list is the mixture's.
    pub names: Vec<WrittenName>,
    /// Number of rejected entries, by reason.
    pub reasons: BTreeMap<Reject, u32>,
    /// The first rejected entries.
    pub rejected: Vec<RejectedName>,
    /// Lines that were no entries.
    pub chatter: u32,
    /// Whether the text was cut off.
    pub is_cut: bool,
}

/// An entry that became a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WrittenName {
    /// The text.
    pub text: String,
    /// PU id.
    pub pu: String,
    /// The probability that the product is meant.
    pub probability: f64,
}

/// An entry that is no name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RejectedName {
    /// The text.
    pub text: String,
    /// Why it is none.
    pub why: Reject,
    /// PU id and probability of the likeliest product, if there is one.
    pub nearest: Option<(String, f64)>,
}

impl WrittenAudit {
    /// The audit of what was written, with the products of a catalogue.
    pub(crate) fn of(written: &Written, catalogue: &Catalogue) -> Self {
        let id = |pu: u32| {
            let known = catalogue.pus().get(pu as usize);
            known.map_or_else(|| format!("#{pu}"), |pu| pu.id.to_string())
        };
        let text = |text: &str| text.chars().take(CHARS_MAX).collect();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let name = |name: &crate::names::written::Accepted| WrittenName {
            text: text(&name.text),
            pu: id(name.pu),
            probability: four_digits(name.probability),
        };
        let reject = |rejected: &Rejected| RejectedName {
            text: text(&rejected.text),
            why: rejected.why,
            nearest: rejected
                .nearest
                .map(|(pu, probability)| (id(pu), four_digits(probability))),
        };
        let reasons = written.reasons().into_iter();
        Self {
            names: written.accepted.iter().map(name).collect(),
            reasons: reasons.map(|(why, n)| (why, count(n))).collect(),
            rejected: written
                .rejected
                .iter()
                .take(REJECTED_MAX)
                .map(reject)
                .collect(),
            chatter: count(written.chatter),
            is_cut: written.is_cut,
        }
    }
}
