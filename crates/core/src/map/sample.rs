//! Samples of records kept beside a mapping: [`Sample`].
//!
//! A line is a JSON object with `key`, `value` and `headers` of a record, and with `expect` what it becomes: a list of
//! records, or the code of the refusal. Invariant: a sample is judged by the decoders of production.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Input, Outcome, ReadAs};
use crate::user::event::{Limits, decode_sku, decode_user};
use crate::user::record::{Offset, Partition, Position, Record, Timestamp};

/// A record of a sample file, and what is expected of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The record.
    pub record: Record,
    /// What it must become, if that is written.
    pub expect: Option<Value>,
}

/// Time of samples without one: 2026-01-01.
const TIME: i64 = 1_767_225_600_000;

impl Sample {
    /// Reads a line of a sample file. A line that has no `value` is the value itself.
    pub fn read(line: &str, topic: &str, nth: usize) -> Result<Self, String> {
        let read: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let mut fields = match read {
            Value::Object(fields) if has_value(&fields) => fields,
            other => Map::from_iter([("value".to_owned(), other)]),
        };
        let mut take = |name: &str| fields.remove(name).filter(|value| !value.is_null());
        let bytes = |value: Value| match value {
            Value::String(text) => Bytes::from(text),
            other => Bytes::from(other.to_string()),
        };
        let headers = match take("headers") {
            Some(Value::Object(headers)) => headers
                .into_iter()
                .map(|(name, value)| (name, bytes(value)))
                .collect(),
            // As kcat prints them: names and values by turns.
            Some(Value::Array(all)) => all
                .chunks(2)
                .filter_map(|pair| {
                    Some((
                        pair.first()?.as_str()?.to_owned(),
                        bytes(pair.get(1)?.clone()),
                    ))
                })
                .collect(),
            _ => Vec::new(),
        };
        let time = take("timestamp").or_else(|| take("ts"));
        Ok(Self {
            record: Record {
                position: Position {
                    partition: Partition {
                        incarnation: 0,
                        topic: topic.into(),
                        number: 0,
                    },
                    offset: Offset(nth as i64),
                },
                time: Timestamp(time.and_then(|time| time.as_i64()).unwrap_or(TIME)),
                key: take("key").map(bytes),
                value: take("value").or_else(|| take("payload")).map(bytes),
                headers,
            },
            expect: take("expect"),
        })
    }
}

fn has_value(fields: &Map<String, Value>) -> bool {
    let known = [
        "key",
        "value",
        "payload",
        "headers",
        "timestamp",
        "ts",
        "expect",
        "topic",
        "partition",
        "offset",
    ];
    let has = fields.contains_key("value") || fields.contains_key("payload");
    has && fields
        .keys()
        .all(|name| known.contains(&name.as_str()) || name == "tstype" || name == "broker")
}

/// What a sample became, as `expect` is written: records, or the code of the refusal with its text.
pub fn became(input: &Input, outcome: &Outcome, limits: &Limits) -> (Value, Option<String>) {
    let refused = |reject: &crate::user::event::Reject| {
        (Value::from(reject.code()), Some(reject.to_string()))
    };
    let records = match outcome {
        Ok(records) => records,
        Err(reject) => return refused(reject),
    };
    for record in records {
        let decoded = match input.read_as {
            ReadAs::Catalog => decode_sku(record, limits).map(drop),
            read_as => {
                let source = read_as.source().expect("users' records have a source");
                decode_user(record, source, limits).map(drop)
            }
        };
        if let Err(reject) = decoded {
            return refused(&reject);
        }
    }
    let shown = |bytes: &Option<Bytes>| match bytes {
        None => Value::Null,
        Some(bytes) => String::from_utf8_lossy(bytes).into(),
    };
    let records = records.iter().map(|record| {
        let value = record.value.as_deref();
        let value: Value = value
            .and_then(|bytes| serde_json::from_slice(bytes).ok())
            .unwrap_or_default();
        json!({"key": shown(&record.key), "value": value})
    });
    (records.collect(), None)
}
