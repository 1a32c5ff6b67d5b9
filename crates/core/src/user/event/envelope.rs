//! Reads the envelopes of change events: the user in a key, the row in a value, and what says that a row was deleted.
//!
//! Invariant: only marks that a tool reserves for it delete a row: a user is never erased because of a field of a
//! profile. A value that is clearly an envelope is refused where a plain value is expected, and a mark that says neither
//! yes nor no is refused too, because either guess would be wrong for somebody
//! (`docs/decisions/0033-which-values-delete.md`).

use serde_json::{Map, Value};

use super::connect::{decode_row, field_schema};
use super::fields::{Fields, Found};
use super::reject::Reject;

/// Says that a row was deleted: added by Debezium's ExtractNewRecordState.
const DELETED: &str = "__deleted";
/// The operation of a row, added by the same.
const OPERATION: &str = "__op";

/// Reads the user id from a key of Kafka Connect: an object `{"id": 7}`, perhaps under `payload`. A plain text key is
/// returned as it is.
pub(crate) fn key_in_envelope(key: String) -> Result<String, Reject> {
    let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(&key) else {
        return Ok(key);
    };
    let inner = match fields.remove("payload") {
        Some(Value::Object(payload)) => payload,
        Some(single) => Map::from_iter([("payload".to_owned(), single)]),
        None => fields,
    };
    let mut values = inner.into_iter().map(|(_, value)| value);
    match (values.next(), values.next()) {
        (Some(Value::String(id)), None) if id.is_empty() => Err(Reject::EmptyKey),
        (Some(Value::String(id)), None) => Ok(id),
        (Some(Value::Number(id)), None) if !id.is_f64() => Ok(id.to_string()),
        (Some(other), None) => Err(wrong_type(
            "the key's field",
            &other,
            "a string or an integer",
        )),
        (Some(_), Some(_)) => Err(Reject::WrongType {
            field: "the key",
            found: "an object of several fields",
            wanted: "one field, the user id",
        }),
        (None, _) => Err(Reject::EmptyKey),
    }
}

/// The fields of a plain value without the marks of a change event; `None` if they say that it was deleted. Refuses an
/// envelope: stored, it would spoil every prompt, and its deletes would not erase users.
pub(super) fn plain_row(
    mut fields: Map<String, Value>,
    advice: &'static str,
    max_depth: usize,
) -> Result<Option<Map<String, Value>>, Reject> {
    if let Some(fields) = envelope(&fields) {
        return Err(Reject::Enveloped { fields, advice });
    }
    if is_deleted(&fields)? {
        return Ok(None);
    }
    decode_row(&mut fields, None, max_depth);
    Ok(Some(unmarked(fields)))
}

/// The row after the change that a Debezium envelope describes, decoded by its schema; `None` if it was deleted.
pub(crate) fn row_after(
    value: Value,
    max_depth: usize,
) -> Result<Option<Map<String, Value>>, Reject> {
    let (unwrapped, schema) = match value {
        Value::Object(mut fields) if fields.contains_key("payload") => {
            let payload = fields.remove("payload").unwrap_or(Value::Null);
            (payload, fields.remove("schema"))
        }
        other => (other, None),
    };
    let mut change = match unwrapped {
        Value::Null => return Ok(None),
        Value::Object(fields) => fields,
        other => {
            return Err(Reject::NotAnObject {
                found: Found::from(&other).what(),
            });
        }
    };
    if change.get("op").and_then(Value::as_str) == Some("d") {
        return Ok(None);
    }
    let of = |name| {
        schema
            .as_ref()
            .and_then(|schema| field_schema(schema, name))
    };
    match change.remove("after") {
        // A row without its envelope, by ExtractNewRecordState.
        None if change.contains_key(DELETED) || change.contains_key(OPERATION) => {
            if is_deleted(&change)? {
                return Ok(None);
            }
            decode_row(&mut change, schema.as_ref(), max_depth);
            Ok(Some(unmarked(change)))
        }
        None => Err(Reject::MissingField("after")),
        Some(Value::Null) => Ok(None),
        Some(Value::Object(mut row)) => {
            decode_row(&mut row, of("after"), max_depth);
            if let Some(Value::Object(mut before)) = change.remove("before") {
                decode_row(&mut before, of("before"), max_depth);
                fill_unavailable(&mut row, before);
            }
            Ok(Some(row))
        }
        Some(other) => Err(wrong_type("after", &other, "an object")),
    }
}

/// A column whose value was not sent did not change, so it is what it was before, if that was sent.
fn fill_unavailable(row: &mut Map<String, Value>, mut before: Map<String, Value>) {
    for (name, value) in row {
        if super::is_unavailable(value)
            && let Some(known) = before.remove(name)
        {
            *value = known;
        }
    }
}

/// Whether the marks of a change event say that the row was deleted.
pub(super) fn is_deleted(fields: &impl Fields) -> Result<bool, Reject> {
    let by_operation = matches!(fields.field(OPERATION), Some(Found::Text(op)) if op == "d");
    let said = match fields.field(DELETED) {
        None | Some(Found::Null) => return Ok(by_operation),
        Some(Found::Bool(said)) => said,
        Some(Found::Text(text)) if text == "true" => true,
        Some(Found::Text(text)) if text == "false" => false,
        Some(other) => {
            return Err(Reject::WrongType {
                field: DELETED,
                found: other.what(),
                wanted: "true or false",
            });
        }
    };
    if by_operation && !said {
        return Err(Reject::WrongType {
            field: DELETED,
            found: "false beside `__op` \"d\"",
            wanted: "true",
        });
    }
    Ok(said)
}

fn unmarked(mut fields: Map<String, Value>) -> Map<String, Value> {
    fields.remove(DELETED);
    fields.remove(OPERATION);
    fields
}

/// The fields by which a value is clearly the envelope of a change event.
fn envelope(fields: &Map<String, Value>) -> Option<&'static str> {
    let has = |name: &str| fields.contains_key(name);
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    let row = |name: &str| matches!(fields.get(name), Some(Value::Object(_) | Value::Null));
    let is_one = |found: &str, of: &[&str]| of.iter().any(|one| found.eq_ignore_ascii_case(one));
    if has("schema") && has("payload") {
        return Some("schema, payload");
    }
    let known_op = matches!(text("op"), "c" | "r" | "u" | "d" | "t");
    let both = has("op") && has("before") && has("after");
    if both || (known_op && (row("before") || row("after"))) {
        return Some("op, before, after");
    }
    if let Some(Value::Object(payload)) = fields.get("payload")
        && envelope(payload).is_some()
    {
        return Some("payload");
    }
    // Maxwell and Canal.
    let changes = ["insert", "update", "delete", "bootstrap-insert"];
    if has("database") && has("table") && has("data") && is_one(text("type"), &changes) {
        return Some("database, table, type, data");
    }
    // Oracle GoldenGate.
    let row_sent = row("before") || row("after");
    if has("table") && row_sent && is_one(text("op_type"), &["I", "U", "D", "T"]) {
        return Some("table, op_type, before, after");
    }
    // AWS DMS.
    let metadata = fields.get("metadata").and_then(Value::as_object);
    let operation = metadata.is_some_and(|metadata| metadata.contains_key("operation"));
    (operation && row("data")).then_some("data, metadata")
}

fn wrong_type(field: &'static str, found: &Value, wanted: &'static str) -> Reject {
    Reject::WrongType {
        field,
        found: Found::from(found).what(),
        wanted,
    }
}
