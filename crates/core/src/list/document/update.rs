//! A list as it is written to `recall-updates`.
//!
//! Invariant: document and audit are the bytes that the store was given. It does not know topics.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{Audit, Document, Error};
use crate::user::record::Fences;

/// A list as written to `recall-updates`.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Claim number that it was made from.
    pub claim: u64,
    /// Epoch of its arm.
    pub epoch: u64,
    /// Its seen offsets.
    pub seen: Fences,
    /// The list.
    pub doc: Document,
    /// Its audit.
    pub audit: Audit,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct UpdateWire<D, A> {
    /// Claim number of the list.
    claim: u64,
    /// Epoch of its arm.
    epoch: u64,
    /// Its seen offsets.
    #[schemars(with = "crate::schema::FencesText")]
    seen: String,
    /// The list.
    doc: D,
    /// How it came about.
    audit: A,
}

impl JsonSchema for Update {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RecallUpdate".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        UpdateWire::<Document, Audit>::json_schema(generator)
    }
}

impl Update {
    /// The value of the record. Document and audit are JSON already and are embedded unchanged.
    pub fn json((claim, epoch): (u64, u64), seen: &Fences, (doc, audit): (&str, &str)) -> String {
        let raw = |text: &str| {
            let null = || serde_json::value::RawValue::NULL.to_owned();
            serde_json::value::RawValue::from_string(text.to_owned()).unwrap_or_else(|_| null())
        };
        let wire = UpdateWire {
            claim,
            epoch,
            seen: seen.to_string(),
            doc: raw(doc),
            audit: raw(audit),
        };
        serde_json::to_string(&wire).expect("numbers, a string and two texts of JSON")
    }

    /// Parses a record's value.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let wire: UpdateWire<serde_json::Value, serde_json::Value> = serde_json::from_slice(bytes)?;
        Ok(Self {
            claim: wire.claim,
            epoch: wire.epoch,
            seen: wire
                .seen
                .parse()
                .map_err(|e: crate::user::record::PositionError| serde::de::Error::custom(e))
                .map_err(Error::Json)?,
            doc: serde_json::from_value(wire.doc)?,
            audit: serde_json::from_value(wire.audit)?,
        })
    }
}
