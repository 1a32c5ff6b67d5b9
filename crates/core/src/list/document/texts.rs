//! What the audit of a list keeps of the user's texts: what each clause was read as, never its words.
//!
//! Invariant: no text of a user is in it: a clause is named by the position of its search or by the field of the
//! profile. It does not know how texts are read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::meaning::Subject;

/// How the user's texts were read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TextsAudit {
    /// Hash of the matcher's model and the table of need terms.
    pub reader: String,
    /// All clauses; those of the newest text first.
    pub clauses: Vec<ClauseAudit>,
}

/// A part of a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ClauseAudit {
    /// Position of the search, or `profile:` and the path of the field.
    pub source: String,
    /// Whether it is said not to be so, or not to be wanted: then it is no interest.
    pub negated: bool,
    /// The person that it is about.
    pub subject: Subject,
    /// For how many days, if that is said.
    pub days: Option<u32>,
    /// The need term that is meant.
    pub need: Option<String>,
    /// Ids of the products whose name is meant.
    pub pus: Vec<String>,
    /// Probability of that; 0 if nothing is meant.
    pub probability: f64,
}

impl ClauseAudit {
    /// Whether it means anything.
    pub fn is_matched(&self) -> bool {
        self.need.is_some() || !self.pus.is_empty()
    }
}

impl TextsAudit {
    /// The clauses of one text.
    pub(crate) fn of(&self, source: &str) -> impl Iterator<Item = &ClauseAudit> {
        let clauses = self.clauses.iter();
        clauses.filter(move |clause| clause.source == source)
    }
}
