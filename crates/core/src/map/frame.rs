//! Takes a record's value out of its frame: [`Framing`].
//!
//! Invariant: a frame that is not the configured one is refused by name and never read as something else. What a removal
//! is, a null or a deleted row, is said here, so that no mapping has to.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ReadAs;
use crate::user::event::{Limits, Reject, change_row, parsable};
use crate::user::record::Record;

/// How the values of a topic are framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// A JSON value.
    #[default]
    Json,
    /// A zero byte, four bytes with the id of a schema, then JSON, as a schema registry's serialiser writes it.
    ConfluentJson,
    /// A CloudEvent: its attributes in headers and its data in the value, or all of it in the value.
    Cloudevents,
    /// A change event of Debezium: the row after the change is mapped, and a deleted row removes.
    Debezium,
}

/// A value without its frame.
#[derive(Debug, PartialEq)]
pub(super) enum Framed<'a> {
    /// JSON, as text.
    Text(Cow<'a, str>),
    /// JSON.
    Value(Value),
    /// What the key names is gone; with the row as it was, if it was sent.
    Removed(Option<Value>),
    /// There is nothing to be mapped.
    Nothing,
}

/// Bytes before the JSON of a schema registry's serialiser.
const REGISTRY_FRAME: usize = 5;

impl Framing {
    /// Takes the value of a record out of its frame.
    pub(super) fn read<'a>(
        self,
        record: &'a Record,
        read_as: ReadAs,
        limits: &Limits,
    ) -> Result<Framed<'a>, Reject> {
        let Some(bytes) = record.value.as_deref() else {
            return match read_as.has_tombstones() {
                true => Ok(Framed::Removed(None)),
                false if self == Self::Debezium => Ok(Framed::Nothing),
                false => Err(Reject::NullValue),
            };
        };
        match self {
            Self::Json => Ok(Framed::Text(parsable(bytes, limits)?.into())),
            Self::ConfluentJson => match unframed(bytes) {
                Some(json) => Ok(Framed::Text(parsable(json, limits)?.into())),
                None => Err(Reject::BadFrame(
                    "it does not begin with a zero byte and the id of a schema".into(),
                )),
            },
            Self::Cloudevents => cloud_event(record, bytes, limits),
            Self::Debezium => row(bytes, read_as, limits),
        }
    }

    /// A record's key as text; `None` if it has none.
    pub(super) fn key(self, record: &Record) -> Result<Option<Cow<'_, str>>, Reject> {
        let Some(mut bytes) = record.key.as_deref() else {
            return Ok(None);
        };
        if self == Self::ConfluentJson
            && let Some(json) = unframed(bytes)
        {
            bytes = json;
        }
        let text = std::str::from_utf8(bytes).map_err(|e| Reject::KeyNotUtf8 {
            at: e.valid_up_to(),
            len: bytes.len(),
        })?;
        Ok(Some(text.into()))
    }
}

fn unframed(bytes: &[u8]) -> Option<&[u8]> {
    (bytes.first() == Some(&0)).then(|| bytes.get(REGISTRY_FRAME..))?
}

/// The content type of a record, without its parameters.
fn content_type(record: &Record) -> Option<String> {
    let header = |(name, _): &&(String, bytes::Bytes)| name.eq_ignore_ascii_case("content-type");
    let (_, value) = record.headers.iter().rfind(header)?;
    let text = std::str::from_utf8(value).ok()?;
    let kind = text.split(';').next().unwrap_or_default().trim();
    Some(kind.to_ascii_lowercase())
}

fn cloud_event<'a>(
    record: &'a Record,
    bytes: &'a [u8],
    limits: &Limits,
) -> Result<Framed<'a>, Reject> {
    let kind = content_type(record).unwrap_or_default();
    if kind.starts_with("application/cloudevents-batch") {
        let what = "it is a batch of CloudEvents; send each as a record of its own";
        return Err(Reject::BadFrame(what.into()));
    }
    let text = parsable(bytes, limits)?;
    if kind.starts_with("application/cloudevents") {
        return Ok(Framed::Text(text.into()));
    }
    let attributes = record
        .headers
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("ce_")?, value)));
    let mut event: Map<String, Value> = attributes
        .map(|(name, value)| (name.to_owned(), String::from_utf8_lossy(value).into()))
        .collect();
    if event.contains_key("specversion") {
        let data = serde_json::from_str(text).map_err(|e| Reject::MalformedJson(e.to_string()))?;
        event.insert("data".to_owned(), data);
        return Ok(Framed::Value(Value::Object(event)));
    }
    // Some senders leave the content type out.
    let is_event = matches!(serde_json::from_str(text), Ok(Value::Object(event)) if event.contains_key("specversion"));
    match is_event {
        true => Ok(Framed::Text(text.into())),
        false => Err(Reject::BadFrame(
            "it is no CloudEvent: it has neither headers ce_... nor the field specversion".into(),
        )),
    }
}

fn row<'a>(bytes: &'a [u8], read_as: ReadAs, limits: &Limits) -> Result<Framed<'a>, Reject> {
    let text = parsable(bytes, limits)?;
    let value: Value =
        serde_json::from_str(text).map_err(|e| Reject::MalformedJson(e.to_string()))?;
    let change = match value.get("payload") {
        Some(payload) => payload,
        None => &value,
    };
    match change.get("op").and_then(Value::as_str) {
        // A message that the application wrote into the log, and no row.
        Some("m") => return Ok(Framed::Nothing),
        Some("t") => {
            let what = "the whole table was truncated: remove each row, or its key, by records";
            return Err(Reject::BadFrame(what.into()));
        }
        _ => {}
    }
    let before = change.get("before").filter(|row| row.is_object()).cloned();
    match change_row(value, limits.max_depth)? {
        Some(row) => Ok(Framed::Value(Value::Object(row))),
        None if read_as.has_tombstones() => Ok(Framed::Removed(before)),
        None => Err(Reject::Enveloped {
            fields: "op, before, after",
            advice: "it says that the row was deleted; events are never taken back",
        }),
    }
}
