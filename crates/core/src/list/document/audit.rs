//! The audit of a list: how it was made, in enough detail to explain it and to weigh its exposures.
//!
//! Invariant: it reads its own JSON and ignores unknown fields; it has the hash of the prompt, never the prompt. Of a
//! person it has the list, and what a model wrote for it, cut short. It does not know where it is stored.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

use super::texts::TextsAudit;
use super::written::WrittenAudit;
use crate::learn::off_policy::Weighing;
use crate::user::record::{Fences, Position, Timestamp};

/// The audit beside a [`super::Document`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Audit {
    /// Id of the list.
    pub list_id: String,
    /// Claim number that it was made from.
    pub claim: u64,
    /// Seen offsets: the fences of the state that it was made from.
    #[serde(with = "text")]
    #[schemars(with = "crate::schema::FencesText")]
    pub seen: Fences,
    /// Id of the arm.
    pub arm: String,
    /// Epoch of the arm.
    pub epoch: u64,
    /// Hash of the arm's artefact, by whose weights and tables it was ranked; empty without one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub artefact: String,
    /// Model, if one was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// Whether the model was asked, and why not: `asked`, `waits` (the list is shown until the model's is there) or
    /// `no_weight` (the arm gives the model no part for as much visible history).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub asked: String,
    /// SHA-256 of the template.
    pub template: String,
    /// SHA-256 of the calibration prompts whose mean was subtracted before the model's term; `none` if nothing was.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub calibration: String,
    /// SHA-256 of the prompt; empty if the model was not asked.
    pub prompt: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Positions of the events in the prompt.
    #[serde(with = "texts")]
    #[schemars(with = "Vec<crate::schema::PositionText>")]
    pub events: Vec<Position>,
    /// Number of event lines cut by the token budget.
    pub events_cut: u32,
    /// Rules that fired, including those of the need filter.
    pub rules: Vec<String>,
    /// Rules that could not be decided: they fired because a profile field is unknown, or the field has a value that
    /// cannot be compared.
    pub rules_unknown: Vec<String>,
    /// Segment.
    pub segment: String,
    /// [`crate::shop::demand::Demand::version`].
    pub demand: String,
    /// Version of the catalogue in the process that made the list.
    pub catalogue: u64,
    /// The policy by which SKUs were chosen, if the names have their candidates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selection: Option<Weighing>,
    /// Names of the list, in its order.
    pub names: Vec<NameAudit>,
    /// Names that were scored and left out, best first.
    pub dropped: Vec<Dropped>,
    /// What the model wrote, of an arm of the mode `free`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<WrittenAudit>,
    /// What the user's searches and free texts were read as, if any were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub texts: Option<TextsAudit>,
    /// Times of the list's making.
    pub times: Times,
}

impl Audit {
    /// The audit as JSON, with all digits, as updates have it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an audit has only strings and finite numbers")
    }
}

/// The model, as described by the engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Model {
    /// File or folder.
    pub name: String,
    /// Hash of weights' header and tokenizer.
    pub revision: String,
    /// `f32`, `bf16`, ...
    pub dtype: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
}

/// One name of the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NameAudit {
    /// PU id.
    pub pu: String,
    /// Score: sum of the weighted terms, in nats.
    pub score: f32,
    /// Share of each term in the score, in nats: its weight times its value. They add up to the score.
    pub terms: BTreeMap<String, f32>,
    /// SKUs shown of it.
    pub skus: Vec<SkuAudit>,
    /// SKUs that could have been shown, for a share of users; the store never has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<CandidatesAudit>,
}

/// The SKUs that a name could have shown, in the order of their shares. The columns have the same length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CandidatesAudit {
    /// SKU ids.
    pub skus: Vec<String>,
    /// The probability that the user takes each, of all candidates.
    pub share: Vec<f64>,
    /// The probability that each is the best one by counts.
    pub best: Vec<f64>,
    /// Groups of SKUs that are not listed: how many, and the sum of their shares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<(u32, f64)>,
}

/// One SKU of the list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SkuAudit {
    /// SKU id.
    pub sku: String,
    /// Propensity: the probability, over seeds, that the name shows the SKU in this place. Absent in a fallback, which
    /// does not explore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ee: Option<f64>,
}

/// A name that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Dropped {
    /// PU id.
    pub pu: String,
    /// Its score.
    pub score: f32,
    /// Reason.
    pub why: Why,
}

/// Reason why a name was left out. Its text is the same in JSON and in metrics.
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
pub enum Why {
    /// Its score is below theta.
    Theta,
    /// A rule or the need filter forbids it, or all its SKUs in stock.
    Forbidden,
    /// Sold out, deleted or blocked.
    NoStock,
    /// It was in the list already.
    Repeated,
    /// The catalogue lacks its index: the response is of a later catalogue.
    Unknown,
}

/// Times that make up the age of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Times {
    /// Record time of the request's source.
    pub source: Timestamp,
    /// Time at which it was due.
    pub due: Timestamp,
    /// From due to claimed, seconds.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub queued: Duration,
    /// From claimed to scored, seconds.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub generated: Duration,
    /// From scored to written to the store, seconds.
    #[serde(with = "seconds")]
    #[schemars(with = "f64")]
    pub published: Duration,
}

mod seconds {
    //! Serialises a duration as seconds with milliseconds.
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(duration.as_millis() as f64 / 1000.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(d)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}

mod text {
    //! Serialises fences as text.
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::user::record::Fences;

    pub(super) fn serialize<S: Serializer>(fences: &Fences, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(fences)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Fences, D::Error> {
        String::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

mod texts {
    //! Serialises positions as `incarnation/topic/partition:offset`.
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::user::record::Position;

    pub(super) fn serialize<S: Serializer>(all: &[Position], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(all.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Position>, D::Error> {
        let texts = Vec::<String>::deserialize(d)?;
        let parsed = texts.iter().map(|text| text.parse());
        parsed
            .collect::<Result<_, _>>()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_survives_a_round_trip_through_json() {
        let audit = Audit {
            list_id: "0123456789abcdef".into(),
            claim: 3,
            seen: "0/user-events/1:7".parse().expect("fences"),
            model: Some(Model::default()),
            events: vec!["0/user-events/1:5".parse().expect("a position")],
            selection: Some(Weighing {
                gamma: 2.0,
                explore: 0.1,
                epsilon: 0.02,
            }),
            names: vec![NameAudit {
                pu: "MILK".into(),
                score: -1.5,
                terms: [("model".to_owned(), -2.5)].into(),
                skus: vec![SkuAudit {
                    sku: "m1".into(),
                    ee: Some(0.75),
                }],
                candidates: Some(CandidatesAudit {
                    skus: vec!["m1".into(), "m2".into()],
                    share: vec![0.6, 0.3],
                    best: vec![0.2, 0.8],
                    others: vec![(3, 0.1)],
                }),
            }],
            dropped: vec![Dropped {
                pu: "WINE".into(),
                score: -0.5,
                why: Why::NoStock,
            }],
            times: Times {
                queued: Duration::from_millis(1_250),
                ..Times::default()
            },
            ..Audit::default()
        };
        let text = serde_json::to_string(&audit).expect("json");
        assert!(
            text.contains(r#""seen":"0/user-events/1:7""#) && text.contains(r#""queued":1.25"#)
        );
        assert!(text.contains(&format!(r#""why":"{}""#, <&str>::from(Why::NoStock))));
        assert_eq!(serde_json::from_str::<Audit>(&text).expect("valid"), audit);
        assert_eq!(
            serde_json::from_str::<Audit>(r#"{"later": 1}"#).expect("valid"),
            Audit::default()
        );
    }
}
