//! The recall document, as the serving path reads it, and the audit beside it.
//!
//! Invariant: names and SKUs are in the order in which they are shown; no PU is twice in a list, and none is without a
//! SKU; 20 PUs x 5 SKUs take at most 2 KB of JSON. It does not know how it is stored.
//!
//! In JSON the list is in columns, not rows: `names[i]`, `scores[i]`, `skus[i]` belong together. Rows would repeat the
//! keys: 20 x 5 products with names of 18 letters and ids of 8 digits take 2,320 bytes in rows and 1,862 in columns.

mod audit;
mod build;
mod candidates;
mod stored_audit;
mod texts;
mod update;
mod written;

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use strum::{IntoStaticStr, VariantNames};

use crate::user::record::Timestamp;

pub use audit::{Audit, CandidatesAudit, Dropped, Model, NameAudit, SkuAudit, Times, Why};
pub use stored_audit::{StoredAudit, StoredAuditError};
pub use texts::{ClauseAudit, TextsAudit};
pub use update::Update;
pub use written::{RejectedName, WrittenAudit, WrittenName};

pub(crate) use build::{BuiltList, Header, ListBuilder, Scored};

/// Schema number of a [`Document`]; a reader that does not know it reads the fallback key.
const SCHEMA: u32 = 1;

/// Source of a list. Only a list of an arm is an exposure: of the model or of the mixture without it.
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
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Source {
    /// The arm's terms, the model's among them.
    Model,
    /// The arm's terms without the model's.
    Mixture,
    /// Demand of the segment.
    Fallback,
}

impl Source {
    /// Whether the list is one of an arm, and so an exposure of it.
    pub fn is_exposure(self) -> bool {
        self != Self::Fallback
    }

    /// The stage of a list of this source.
    pub fn stage(self) -> Stage {
        match self {
            Self::Model => Stage::Model,
            Self::Mixture | Self::Fallback => Stage::Mixture,
        }
    }
}

/// Which of the two lists of a claim a list is: of two lists of one claim the later stage is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Made at once, without the model: 0.
    Mixture,
    /// Made with the model: 1. Lists of releases before there were stages count as such, so that their claim is
    /// finished.
    #[default]
    Model,
}

impl Stage {
    /// The number by which it is stored, 0 or 1.
    pub fn number(self) -> u8 {
        match self {
            Self::Mixture => 0,
            Self::Model => 1,
        }
    }

    /// The stage of a stored number; one that no release writes counts as [`Stage::Model`].
    pub fn of_number(number: &str) -> Self {
        match number {
            "0" => Self::Mixture,
            _ => Self::Model,
        }
    }
}

/// The recall document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Document {
    /// Id of the list in exposures and audits; see [`list_id`].
    pub list_id: String,
    /// User of the list; absent in a segment's fallback.
    pub user: Option<String>,
    /// The user's arm; empty in a segment's fallback.
    pub arm: String,
    /// Its source.
    pub source: Source,
    /// Source time of its request.
    pub at: Timestamp,
    /// The user's segment.
    pub segment: String,
    /// Whether a later generation failed and this list was kept.
    pub stale: bool,
    /// Reason why it is a fallback or stale.
    pub reason: Option<String>,
    /// Products, best first.
    pub pus: Vec<Shown>,
}

/// One product of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// PU id.
    pub pu: String,
    /// Product name.
    pub name: String,
    /// The score of its name: sum of the weighted terms, in a fallback the log of demand; four significant digits.
    pub score: f64,
    /// SKU ids, best first; at least one.
    pub skus: Vec<String>,
}

/// Reason why a text is not a recall document.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, a field missing or of the wrong type, or columns of different lengths.
    #[error("not a recall document: {0}")]
    Json(#[from] serde_json::Error),
}

/// The document as JSON. Unknown fields are ignored when read.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Wire {
    /// Version of the format.
    #[schemars(extend("const" = 1))]
    schema: u32,
    list_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    arm: String,
    source: Source,
    /// Follows from the source; written for readers that compare lists of one claim.
    #[serde(default)]
    stage: u8,
    at: Timestamp,
    segment: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    names: Vec<String>,
    /// Present only if an id differs from its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pus: Option<Vec<String>>,
    scores: Vec<f64>,
    skus: Vec<Vec<String>>,
}

impl From<Document> for Wire {
    fn from(document: Document) -> Self {
        let ids_are_names = document.pus.iter().all(|shown| shown.pu == shown.name);
        let ids = document.pus.iter().map(|shown| shown.pu.clone());
        Self {
            schema: SCHEMA,
            pus: (!ids_are_names).then(|| ids.collect()),
            names: document
                .pus
                .iter()
                .map(|shown| shown.name.clone())
                .collect(),
            scores: document
                .pus
                .iter()
                .map(|shown| four_digits(shown.score))
                .collect(),
            skus: document.pus.into_iter().map(|shown| shown.skus).collect(),
            list_id: document.list_id,
            user: document.user,
            arm: document.arm,
            source: document.source,
            stage: document.source.stage().number(),
            at: document.at,
            segment: document.segment,
            stale: document.stale,
            reason: document.reason,
        }
    }
}

impl TryFrom<Wire> for Document {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        if wire.schema != SCHEMA {
            return Err(format!("schema {} is not {SCHEMA}", wire.schema));
        }
        let pus = wire.pus.unwrap_or_else(|| wire.names.clone());
        let lengths = [
            pus.len(),
            wire.names.len(),
            wire.scores.len(),
            wire.skus.len(),
        ];
        if lengths.iter().any(|length| *length != lengths[0]) {
            return Err(format!("columns of different lengths: {lengths:?}"));
        }
        let names = pus.into_iter().zip(wire.names);
        let rest = wire.scores.into_iter().zip(wire.skus);
        Ok(Self {
            pus: names
                .zip(rest)
                .map(|((pu, name), (score, skus))| Shown {
                    pu,
                    name,
                    score,
                    skus,
                })
                .collect(),
            list_id: wire.list_id,
            user: wire.user,
            arm: wire.arm,
            source: wire.source,
            at: wire.at,
            segment: wire.segment,
            stale: wire.stale,
            reason: wire.reason,
        })
    }
}

impl Document {
    /// The document as JSON, as it is stored and served.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a document has only strings and finite numbers")
    }

    /// Reads a stored document.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Ok(serde_json::from_str(text)?)
    }

    /// Removes every SKU for which `forbids(pu id, sku id)`, and every PU without a SKU left. Returns whether any was
    /// removed; if the list is [empty](Self::is_empty) afterwards, the caller uses a fallback.
    pub fn strip(&mut self, forbids: impl Fn(&str, &str) -> bool) -> bool {
        let before = self.len();
        for shown in &mut self.pus {
            let pu = &shown.pu;
            shown.skus.retain(|sku| !forbids(pu, sku));
        }
        self.pus.retain(|shown| !shown.skus.is_empty());
        self.len() != before
    }

    /// Number of SKUs in the list.
    pub fn len(&self) -> usize {
        self.pus.iter().map(|shown| shown.skus.len()).sum()
    }

    /// Whether the list has no products.
    pub fn is_empty(&self) -> bool {
        self.pus.is_empty()
    }

    /// Whether no PU and no SKU is in it twice.
    pub fn distinct(&self) -> bool {
        let pus: BTreeSet<_> = self.pus.iter().map(|shown| &shown.pu).collect();
        let skus: BTreeSet<_> = self.pus.iter().flat_map(|shown| &shown.skus).collect();
        pus.len() == self.pus.len() && skus.len() == self.len()
    }
}

/// Whether two lists differ for a reader: in products, order or source.
pub fn changed(old: &Document, new: &Document) -> bool {
    let shown = |document: &Document| -> Vec<_> {
        let pus = document.pus.iter();
        pus.map(|shown| (shown.pu.clone(), shown.skus.clone()))
            .collect()
    };
    old.source != new.source || shown(old) != shown(new)
}

/// The id of a list: 16 hex digits of the SHA-256 of namespace, user, claim number, stage and `erased_at`. A list made
/// again from the same claim in the same stage has the same id.
pub fn list_id(ns: &str, user: &str, (claim, stage): (u64, Stage), erased_at: Timestamp) -> String {
    let mut hash = Sha256::new();
    let (claim, stage) = (claim.to_string(), stage.number().to_string());
    for part in [ns, user, &claim, &stage, &erased_at.0.to_string()] {
        // Each part with its length, so that different parts never give the same bytes.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

/// Rounds a score to four significant digits: readers need no more, and 17 digits would exceed 2 KB. Infinity and NaN
/// become the nearest finite number, NaN the least.
pub(crate) fn four_digits(score: f64) -> f64 {
    if !score.is_finite() {
        return if score > 0.0 { f64::MAX } else { f64::MIN };
    }
    format!("{score:.3e}").parse().unwrap_or(score)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(pu: &str, skus: &[&str]) -> Shown {
        Shown {
            pu: pu.into(),
            name: pu.into(),
            score: -2.345,
            skus: skus.iter().map(|sku| (*sku).to_owned()).collect(),
        }
    }

    fn document(pus: Vec<Shown>) -> Document {
        Document {
            list_id: list_id("live", "2375", (17, Stage::Model), Timestamp(0)),
            user: Some("2375".into()),
            arm: "basket-135m".into(),
            source: Source::Model,
            at: Timestamp(1_763_000_000_000),
            segment: "families".into(),
            stale: false,
            reason: None,
            pus,
        }
    }

    fn full(name: impl Fn(usize) -> String, first: usize) -> Document {
        let pus = (0..20).map(|n| Shown {
            pu: name(n),
            name: name(n),
            score: -2.345_678_901 - n as f64,
            skus: (0..5)
                .map(|sku| (first + 97 * n + sku).to_string())
                .collect(),
        });
        document(pus.collect())
    }

    #[test]
    fn twenty_names_with_five_skus_each_take_at_most_two_kilobytes() {
        let names = [
            "FLUID MILK WHITE ONLY",
            "YOGURT NOT MULTI-PACKS",
            "SFT DRNK 2 LITER BTL CARB INCL",
            "BANANAS",
            "ADULT ANALGESICS",
            "APPLES RED DELICIOUS (BULK&BAG",
        ];
        // Of a real grocer: names of 18 letters on average and 30 at most, ids of 6 to 8 digits.
        for (what, document) in [
            (
                "ids of 8 digits",
                full(|n| format!("{n:02}{}", names[n % 6]), 10_456_000),
            ),
            (
                "names of 30 letters",
                full(|n| format!("{n:030}"), 1_045_600),
            ),
        ] {
            let text = document.to_json();
            assert!(text.len() <= 2048, "{what}: {}", text.len());
        }
    }

    #[test]
    fn the_json_is_as_in_the_contract() {
        let mut list = document(vec![shown("MILK", &["m1", "m2"]), shown("BREAD", &["b1"])]);
        let head = r#"{"schema":1,"list_id":"LIST","user":"2375","arm":"basket-135m","source":"model","stage":1,"at":1763000000000,"segment":"families","#;
        let head = head.replace("LIST", &list.list_id);
        let columns =
            r#""names":["MILK","BREAD"],"scores":[-2.345,-2.345],"skus":[["m1","m2"],["b1"]]}"#;
        assert_eq!(list.to_json(), format!("{head}{columns}"));
        list.pus[0].pu = "17".into();
        (list.stale, list.source, list.reason) =
            (true, Source::Fallback, Some("model failed".into()));
        let text = list.to_json();
        assert!(
            text.contains(r#""source":"fallback""#)
                && text.contains(r#""stale":true,"reason":"model failed""#)
        );
        assert!(text.contains(r#""pus":["17","BREAD"]"#));
        assert_eq!(Document::parse(&text).expect("valid"), list);
    }

    #[test]
    fn a_damaged_document_is_refused_and_an_unknown_field_is_ignored() {
        let good = document(vec![shown("MILK", &["m1"])]).to_json();
        assert!(Document::parse(&good.replacen('{', r#"{"new":1,"#, 1)).is_ok());
        for (from, to, expected) in [
            (r#""schema":1"#, r#""schema":2"#, "schema 2 is not 1"),
            (
                r#""scores":[-2.345]"#,
                r#""scores":[]"#,
                "columns of different lengths",
            ),
            (
                r#""source":"model""#,
                r#""source":"magic""#,
                "unknown variant",
            ),
            (r#"}"#, "", "EOF"),
        ] {
            let error = Document::parse(&good.replacen(from, to, 1))
                .expect_err(to)
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_list_is_unchanged_if_only_scores_and_times_differ() {
        let old = document(vec![shown("MILK", &["m1", "m2"]), shown("BREAD", &["b1"])]);
        let mut new = Document {
            at: Timestamp(5),
            list_id: "x".into(),
            ..old.clone()
        };
        new.pus[0].score = -1.0;
        assert!(!changed(&old, &new));
        new.pus[0].skus.swap(0, 1);
        assert!(changed(&old, &new));
        new = Document {
            source: Source::Fallback,
            ..old.clone()
        };
        assert!(changed(&old, &new));
    }

    #[test]
    fn an_id_depends_on_each_of_its_parts() {
        let ids: BTreeSet<_> = [
            ("a", "bc", (1, Stage::Mixture), 0),
            ("ab", "c", (1, Stage::Mixture), 0),
            ("a", "bc", (2, Stage::Mixture), 0),
            ("a", "bc", (1, Stage::Model), 0),
            ("a", "bc", (1, Stage::Mixture), 1),
        ]
        .map(|(ns, user, claim, erased_at)| list_id(ns, user, claim, Timestamp(erased_at)))
        .into();
        assert_eq!(ids.len(), 5);
        assert!(ids.iter().all(|id| id.len() == 16));
        assert_eq!(
            list_id("live", "2375", (17, Stage::Model), Timestamp(0)),
            "af1dfd9e7e7bd0af"
        );
    }

    #[test]
    fn scores_have_four_digits_and_are_always_json() {
        for (score, text) in [
            (-2.34549, "-2.345"),
            (-0.000123456, "-0.0001235"),
            (-12345.6, "-12350.0"),
            (0.0, "0.0"),
        ] {
            assert_eq!(
                serde_json::to_string(&four_digits(score)).expect("json"),
                text
            );
        }
        for score in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let list = document(vec![Shown {
                score,
                ..shown("MILK", &["m1"])
            }]);
            assert!(Document::parse(&list.to_json()).is_ok());
        }
    }

    fn lists() -> impl Strategy<Value = Document> {
        let skus = prop::collection::btree_set("[a-z]{1,3}", 1..5);
        let one = ("\\PC{1,8}", "[A-Z]{1,5}", -50.0f64..0.0, skus);
        prop::collection::vec(one, 0..8).prop_map(|pus| {
            let pus = pus.into_iter().map(|(pu, name, score, skus)| Shown {
                pu,
                name,
                score: four_digits(score),
                skus: skus.into_iter().collect(),
            });
            document(pus.collect())
        })
    }

    proptest! {
        #[test]
        fn a_document_survives_a_round_trip_through_json(list in lists()) {
            prop_assert_eq!(Document::parse(&list.to_json()).expect("valid"), list);
        }

        #[test]
        fn stripping_removes_the_forbidden_skus_and_no_others(list in lists(), out in "[a-z]{1,2}") {
            let forbids = |pu: &str, sku: &str| sku.contains(&out[..1]) || pu.contains(&out);
            let mut stripped = list.clone();
            let changed = stripped.strip(forbids);
            prop_assert!(stripped.pus.iter().all(|shown| !shown.skus.is_empty()));
            prop_assert!(stripped.pus.iter().all(|shown| shown.skus.iter().all(|sku| !forbids(&shown.pu, sku))));
            let allowed: usize = list.pus.iter()
                .map(|shown| shown.skus.iter().filter(|sku| !forbids(&shown.pu, sku)).count()).sum();
            prop_assert_eq!(stripped.len(), allowed);
            prop_assert_eq!(changed, allowed != list.len());
            let again = stripped.clone();
            prop_assert!(!stripped.strip(forbids));
            prop_assert_eq!(stripped, again);
        }
    }
}
