//! Reads the time of a row: milliseconds, or a date with a time as exports and tables write it.
//!
//! Invariant: a time without a zone is UTC, whatever the machine's zone is, so a file gives the same result everywhere.

use jiff::civil;
use jiff::tz::TimeZone;
use nearshore_core::user::event::Reject;
use nearshore_core::user::record::Timestamp;
use serde_json::Value;

/// The time of a cell.
pub(super) fn of(value: &Value) -> Result<Timestamp, Reject> {
    let millis = match value {
        Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
        Value::String(text) => parse(text.trim()),
        _ => None,
    };
    millis.map(Timestamp).ok_or(Reject::WrongType {
        field: "timestamp",
        found: match value {
            Value::String(_) => "a text of another form",
            other => super::row::what(other),
        },
        wanted: "milliseconds since 1970 or a time such as 2026-01-31T17:30:00Z",
    })
}

fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
}

fn parse(text: &str) -> Option<i64> {
    if let Ok(millis) = text.parse::<i64>() {
        return Some(millis);
    }
    if let Ok(number) = text.parse::<f64>() {
        return whole(number);
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time.as_millisecond());
    }
    let civil: civil::DateTime = text.parse().ok()?;
    let zoned = civil.to_zoned(TimeZone::UTC).ok()?;
    Some(zoned.timestamp().as_millisecond())
}
