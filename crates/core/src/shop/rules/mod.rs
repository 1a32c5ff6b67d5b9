//! Who may not be offered what: `(profile, table) -> permitted PUs, ids of the rules that fired`; segments; needs.
//!
//! Invariant: fails closed: a `required` rule whose field is unknown forbids its products, and so does a
//! fired rule with a SKU that the table has not seen. Never left to the model. It does not know stock:
//! [`Verdict::permitted`] is handed the catalogue.

mod condition;
mod needs;
mod table;
mod validate;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use table::{Table, Verdict};
pub use validate::validate;

/// The segment of all that no other matches.
pub(crate) const DEFAULT_SEGMENT: &str = "default";

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
    /// Whether an unknown profile field forbids. Unknown is also null, and a value that cannot be compared.
    #[serde(default)]
    pub required: bool,
}

/// A condition on one profile field. Exactly one comparison must be given; `at_least` with `below` is one, a range.
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
    /// Whether the field is an ISO date of birth, to be turned into an age in completed years (UTC).
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
    /// Categories, of the SKU or of its PU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// SKU attribute name to admissible values; an array attribute matches by any of its values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Vec<Value>>,
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

/// The need filter: what a user just bought and does not need again yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Needs {
    /// Category to the time within which a bought product of it is not offered again; none by default.
    #[serde(with = "periods", skip_serializing_if = "BTreeMap::is_empty")]
    pub not_again_within: BTreeMap<String, Duration>,
}

mod periods {
    //! Durations in words (`20d`), as values of a map.
    use std::collections::BTreeMap;
    use std::time::Duration;

    use humantime_serde::Serde;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Map<T> = BTreeMap<String, T>;

    pub(super) fn serialize<S: Serializer>(map: &Map<Duration>, s: S) -> Result<S::Ok, S::Error> {
        let words: Map<Serde<Duration>> = map
            .iter()
            .map(|(category, within)| (category.clone(), (*within).into()))
            .collect();
        words.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Map<Duration>, D::Error> {
        let words = Map::<Serde<Duration>>::deserialize(d)?;
        Ok(words
            .into_iter()
            .map(|(category, within)| (category, within.into_inner()))
            .collect())
    }
}
