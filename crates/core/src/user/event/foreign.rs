//! Recognises records of well-known trackers that nobody mapped: [`looks_like`].
//!
//! Decides only what a refused record is called: `missing_field` for a whole topic of Segment would send somebody to
//! look for a missing field.

use serde_json::{Map, Value};

use crate::user::record::Record;

/// What a record looks like, and the section of docs/mapping.md that maps it; `None` if it looks like nothing known.
pub(super) fn looks_like(record: &Record) -> Option<(&'static str, &'static str)> {
    let ce = |(name, _): &(String, bytes::Bytes)| name == "ce_specversion";
    if record.headers.iter().any(ce) {
        return Some(("a CloudEvent with its attributes in headers", "cloudevents"));
    }
    let value: Value = serde_json::from_slice(record.value.as_deref()?).ok()?;
    of_fields(value.as_object()?)
}

fn of_fields(fields: &Map<String, Value>) -> Option<(&'static str, &'static str)> {
    let has = |name: &str| fields.contains_key(name);
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    if has("specversion") && has("type") && has("source") {
        return Some(("a CloudEvent", "cloudevents"));
    }
    if has("event_name") && (has("user_pseudo_id") || has("event_timestamp")) {
        return Some(("an event of a GA4 export", "ga4"));
    }
    if has("event_id") && has("collector_tstamp") {
        return Some(("an enriched event of Snowplow", "snowplow"));
    }
    let who = has("userId") || has("anonymousId");
    let sent = has("messageId") || has("originalTimestamp") || has("sentAt") || has("receivedAt");
    if who && sent {
        match text("type") {
            "track" => return Some(("a Segment track", "segment")),
            "identify" | "page" | "screen" | "group" | "alias" => {
                return Some(("a call of Segment that is no track", "segment"));
            }
            _ => {}
        }
    }
    let row = |name: &str| matches!(fields.get(name), Some(Value::Object(_) | Value::Null));
    let change = matches!(text("op"), "c" | "r" | "u" | "d") && (row("before") || row("after"));
    let inner = fields.get("payload").and_then(Value::as_object);
    if change || (has("schema") && inner.is_some_and(|inner| inner.contains_key("op"))) {
        return Some(("a change event of Debezium", "debezium"));
    }
    None
}
