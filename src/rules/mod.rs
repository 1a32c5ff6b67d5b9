//! Who may not be offered what: `(profile, table) -> permitted PUs, ids of the rules that fired`; and segments.
//!
//! Invariant: fails closed: a `required` rule whose field is unknown forbids its products. Never left to the model.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One rule: *when* the profile satisfies the condition, products that match are forbidden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Stable id, recorded on lists.
    pub id: String,
    /// Condition on the profile; with `required`, an unknown field counts as satisfied.
    pub when: Condition,
    /// Which products are forbidden then; all of the given matchers must hold.
    pub forbid: Matcher,
    /// Whether an unknown profile field forbids.
    #[serde(default)]
    pub required: bool,
}

/// A condition on one profile field. Exactly one comparison must be given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Profile field, dots descend: `health.pregnant`.
    pub field: String,
    /// Equal to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
    /// One of; or, for an array field, contains one of.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "in")]
    pub any_of: Option<Vec<Value>>,
    /// Number (or age reckoned from a birth date field at the request's source time) below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// Number at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Whether the field is an ISO date of birth, to be turned into an age in years.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub birth_date: bool,
}

/// Which products. All given parts must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matcher {
    /// PU ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pus: Vec<String>,
    /// Categories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// SKU attribute name to admissible values.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub attributes: std::collections::BTreeMap<String, Vec<Value>>,
}

/// One segment: the first whose condition holds; `default` matches all that no other does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Name, as in keys and metrics.
    pub id: String,
    /// Conditions that must all hold.
    pub when: Vec<Condition>,
}
