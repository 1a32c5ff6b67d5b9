//! Rules, segments and the need filter: `(profile, table) -> permitted PUs, ids of the rules that fired`.
//!
//! Invariant: rules fail closed. A `required` rule whose field is unknown forbids its products, and those whose
//! attributes cannot be compared; a fired rule forbids every SKU that the table does not know. A field with a value
//! that cannot be compared never goes unnoticed: [`Verdict::unreadable`] names the rule. The model never decides what
//! is permitted. A table does not know stock: [`Verdict::permitted`] takes the catalogue.

mod condition;
mod fields;
mod needs;
mod table;
mod unmatched;
mod validate;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::text::normalise;

pub(crate) use condition::texts_at;
pub use fields::ProfileFields;
pub use table::{Table, Verdict};
pub use unmatched::{Unmatched, UnmatchedKind, unmatched, unmatched_blocks, unmatched_merchant};
pub use validate::{unreachable, validate};

/// Id of the segment of all users that no other segment matches.
pub(crate) const DEFAULT_SEGMENT: &str = "default";

/// One rule: when the profile satisfies the condition, the matched products are forbidden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Stable id, recorded in audits.
    pub id: String,
    /// Condition on the profile; with `required`, an unknown field counts as satisfied.
    pub when: Condition,
    /// The forbidden products.
    pub forbid: Matcher,
    /// Whether the rule fires when the field is unknown. Null and a value that cannot be compared are unknown too. It
    /// also forbids products whose attribute has a value that cannot be compared.
    #[serde(default)]
    pub required: bool,
}

/// A condition on one profile field. Exactly one comparison must be given; `at_least` with `below` is one, a range.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Profile field; dots descend into objects: `health.pregnant`.
    pub field: String,
    /// Equal to this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
    /// Equal to one of these values; an array field contains one of them.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "in")]
    pub any_of: Option<Vec<Value>>,
    /// Number below this; with `birth_date`, the age at the request's source time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// Number at least this; with `birth_date`, the age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
    /// Whether the field is an ISO date of birth, compared as age in completed years (UTC).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub birth_date: bool,
}

/// Selects products. All given parts must match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Matcher {
    /// PU ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pus: Vec<String>,
    /// Categories of the SKU or its PU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// SKU attribute name to matching values; an array attribute matches by any of its values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Vec<Value>>,
}

/// One segment. A user is in the first segment whose conditions hold, else in `default`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Name, as in keys and metrics.
    pub id: String,
    /// Conditions, which must all hold.
    pub when: Vec<Condition>,
}

impl Rule {
    /// The same rule with its names in their normal form, as those of the catalogue and of profiles are.
    fn normalised(&self) -> Self {
        let names = |names: &[String]| names.iter().map(|name| normal(name)).collect();
        let forbid = &self.forbid;
        let attributes = forbid.attributes.iter();
        Self {
            id: self.id.clone(),
            when: self.when.normalised(),
            forbid: Matcher {
                pus: names(&forbid.pus),
                categories: names(&forbid.categories),
                attributes: attributes
                    .map(|(name, values)| (normal(name), values.clone()))
                    .collect(),
            },
            required: self.required,
        }
    }
}

impl Segment {
    /// The same segment with the fields of its conditions in their normal form.
    fn normalised(&self) -> Self {
        Self {
            id: self.id.clone(),
            when: self.when.iter().map(Condition::normalised).collect(),
        }
    }
}

impl Condition {
    fn normalised(&self) -> Self {
        Self {
            field: normal(&self.field),
            ..self.clone()
        }
    }
}

fn normal(text: &str) -> String {
    normalise(text).into_owned()
}

/// The need filter: how long a bought product is not offered again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Needs {
    /// Category to the time within which a bought product of it is not offered again; none by default.
    #[serde(with = "periods", skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, crate::schema::DurationText>")]
    pub not_again_within: BTreeMap<String, Duration>,
}

mod periods {
    //! Serialises the durations of a map in words (`20d`).
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
