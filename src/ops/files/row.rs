//! Makes a record of one row: the row of an export with `key` and `value`, or a plain row of columns.
//!
//! Invariant: the value's bytes are JSON that the decoders of production read, and nothing is corrected on the way: a
//! wrong value stays wrong, so that it gets the code that it would get in a topic.

use bytes::Bytes;
use nearshore_core::user::event::Reject;
use nearshore_core::user::record::{Position, Record, Timestamp};
use serde_json::{Map, Value};

use super::{Topic, time};

/// Time of a profile or a SKU whose row has none, 2000-01-01: it was always so.
pub(crate) const ALWAYS: Timestamp = Timestamp(946_684_800_000);

/// Columns of a SKU's value; all others are its attributes.
const SKU_COLUMNS: [&str; 7] = [
    "pu",
    "pu_id",
    "category",
    "title",
    "stock",
    "price",
    "attributes",
];

/// What a column of an attribute may begin with.
const ATTRIBUTE: &str = "attributes.";

/// Makes the record of a row.
pub(super) fn record(
    topic: Topic,
    mut fields: Map<String, Value>,
    position: Position,
) -> Result<Record, Reject> {
    let found = match topic {
        // A mapping may read the time, too.
        Topic::Rows if !fields.contains_key("key") => take_time(&mut fields.clone()),
        _ => take_time(&mut fields),
    };
    let time = match found {
        Some(value) => time::of(&value)?,
        None if topic == Topic::Events => return Err(Reject::MissingField("timestamp")),
        None => ALWAYS,
    };
    let (key, value) = match take_enveloped(&mut fields) {
        Some((key, value)) => (key, value),
        None => {
            let column = topic.key_column();
            let key = match topic {
                Topic::Rows => None,
                _ => fields.remove(column).or_else(|| fields.remove("key")),
            };
            (key, Some(Bytes::from(plain(topic, fields))))
        }
    };
    Ok(Record {
        position,
        time,
        key: key.and_then(|key| text(&key)).map(Bytes::from),
        value,
        headers: Vec::new(),
    })
}

/// Takes the record's time: `timestamp`, or `ts` as kcat writes it.
fn take_time(fields: &mut Map<String, Value>) -> Option<Value> {
    let found = fields.remove("timestamp").filter(|value| !value.is_null());
    found.or_else(|| fields.remove("ts").filter(|value| !value.is_null()))
}

/// Takes key and value of an exported record: `{"key", "value"}`, or kcat's `{"key", "payload"}`. A null value is a
/// tombstone, a text is the value as it was sent.
fn take_enveloped(fields: &mut Map<String, Value>) -> Option<(Option<Value>, Option<Bytes>)> {
    if !fields.contains_key("key") {
        return None;
    }
    let value = fields
        .remove("value")
        .or_else(|| fields.remove("payload"))?;
    let bytes = match value {
        Value::Null => None,
        Value::String(text) => Some(Bytes::from(text)),
        other => Some(Bytes::from(other.to_string())),
    };
    Some((fields.remove("key"), bytes))
}

/// The value of a plain row: its columns without those that are null. Columns of a SKU that the contract does not name
/// are attributes, and so are those that begin with `attributes.`.
fn plain(topic: Topic, mut fields: Map<String, Value>) -> String {
    fields.retain(|_, value| !value.is_null());
    if matches!(topic, Topic::Catalog | Topic::Titles) {
        let is_attribute = |name: &str| !SKU_COLUMNS.contains(&name) && !name.starts_with("__");
        let names: Vec<String> = fields
            .keys()
            .filter(|name| is_attribute(name))
            .cloned()
            .collect();
        let mut attributes = Map::new();
        for name in names {
            let value = fields.remove(&name).unwrap_or(Value::Null);
            let name = name.strip_prefix(ATTRIBUTE).unwrap_or(&name).to_owned();
            attributes.insert(name, value);
        }
        if !attributes.is_empty() {
            let own = fields
                .entry("attributes")
                .or_insert(Value::Object(Map::new()));
            // Attributes that are no object stay as they are, and the decoder refuses them.
            if let Value::Object(own) = own {
                own.extend(attributes);
            }
        }
    }
    Value::Object(fields).to_string()
}

/// A key as text: an id may be a number in a file.
fn text(key: &Value) -> Option<String> {
    match key {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The type of a value in words.
pub(super) fn what(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The value of a cell whose column has numbers, where the format has only text, or numbers of another type: a text
/// that is a number becomes one, and a number without a fraction becomes a whole one.
pub(super) fn number(value: Value) -> Value {
    let value = match value {
        Value::String(text) => match serde_json::from_str(text.trim()) {
            Ok(Value::Number(number)) => Value::Number(number),
            Ok(_) | Err(_) => return Value::String(text),
        },
        other => other,
    };
    // Tables with an empty cell store whole numbers as 2.0.
    match value.as_f64() {
        Some(n) if value.is_f64() && n.fract() == 0.0 && n.abs() < 9e15 => Value::from(n as i64),
        _ => value,
    }
}

/// Whether a column of a plain row has numbers.
pub(super) fn is_number(topic: Topic, column: &str) -> bool {
    match topic {
        Topic::Events => matches!(column, "qty" | "price" | "position"),
        Topic::Catalog | Topic::Titles => matches!(column, "stock" | "price"),
        Topic::Profiles | Topic::Rows => false,
    }
}
