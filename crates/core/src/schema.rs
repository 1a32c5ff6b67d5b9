//! JSON Schemas of values whose written form the types do not show: durations in words, positions as text.
//!
//! Invariant: a pattern here refuses nothing that the reader of the value accepts. It does not know which field has
//! which form; the field says it.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A duration in words, such as `30s`, `5min` or `7days 12h`.
pub struct DurationText;

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration in words: numbers with units, such as 500ms, 30s, 5min, 12h, 7days or 1h 30m.",
            "pattern": r"^\s*(0\s*|(\d+(\.\d+)?\s*[A-Za-zµ]+\s*)+)$",
        })
    }
}

/// Where a record stands: `incarnation/topic/partition:offset`.
pub(crate) struct PositionText;

impl JsonSchema for PositionText {
    fn schema_name() -> Cow<'static, str> {
        "Position".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Where a record stands: incarnation/topic/partition:offset.",
            "pattern": r"^\d+/[A-Za-z0-9._-]+/-?\d+:-?\d+$",
        })
    }
}

/// The highest position per partition, sorted, with commas between them; empty if there is none.
pub(crate) struct FencesText;

impl JsonSchema for FencesText {
    fn schema_name() -> Cow<'static, str> {
        "SeenOffsets".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "The highest position per partition, with commas between them.",
        })
    }
}
