//! Decodes the values of a row by the Kafka Connect schema that Debezium sends with it.
//!
//! Invariant: a value that its schema names and that cannot be decoded becomes `{"undecoded": …}`, which no rule takes
//! for a value; it is never left as a text or a number that means something else. Decoding needs no more nesting than
//! the record's own limit, and lengthens a record by a bounded number of values. It does not know what a row is for.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::civil::Date;
use jiff::{SignedDuration, Span, Timestamp};
use serde_json::{Map, Number, Value};

use super::fields::depth;

/// What Debezium writes for a column that did not change and that the database did not send.
pub(crate) const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// The one field of a value that could not be decoded.
const UNDECODED: &str = "undecoded";

/// Most values of a record that are decoded; further ones are left undecoded.
const DECODED_MAX: usize = 10_000;

/// Largest scale of a decimal that is decoded: its text has as many digits.
const SCALE_MAX: i64 = 60;

/// Whether a value stands for one that the database did not send.
pub(crate) fn is_unavailable(value: &Value) -> bool {
    value.as_str() == Some(UNAVAILABLE)
}

/// Whether a value is one that could not be decoded.
pub(crate) fn is_undecoded(value: &Value) -> bool {
    let fields = value.as_object();
    fields.is_some_and(|fields| fields.len() == 1 && fields.contains_key(UNDECODED))
}

/// The schema of a field of a struct.
pub(super) fn field_schema<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let mut fields = schema.get("fields")?.as_array()?.iter();
    fields.find(|field| field.get("field").and_then(Value::as_str) == Some(name))
}

/// Decodes the columns of a row. `schema`: of the row, if it was sent; `max_depth`: most nesting of the whole row.
pub(super) fn decode_row(row: &mut Map<String, Value>, schema: Option<&Value>, max_depth: usize) {
    let mut decoder = Decoder { left: DECODED_MAX };
    for (name, value) in row {
        if stands_for_unavailable(value) {
            *value = UNAVAILABLE.into();
        } else if let Some(schema) = schema.and_then(|schema| field_schema(schema, name)) {
            decoder.decode(value, schema, max_depth.saturating_sub(1));
        }
    }
}

/// The placeholder in the forms of texts, bytes and arrays.
fn stands_for_unavailable(value: &Value) -> bool {
    match value {
        Value::String(text) => text == UNAVAILABLE || *text == BASE64_STANDARD.encode(UNAVAILABLE),
        Value::Array(values) => matches!(&values[..], [only] if is_unavailable(only)),
        _ => false,
    }
}

/// Decodes at most `left` further values.
struct Decoder {
    left: usize,
}

impl Decoder {
    /// Decodes one value in place. `room`: levels of nesting that are left for it.
    fn decode(&mut self, value: &mut Value, schema: &Value, room: usize) {
        if value.is_null() {
            return;
        }
        let of = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
        let decoded = match of("name") {
            "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" => date(value),
            "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
                instant(value, 1_000)
            }
            "io.debezium.time.MicroTimestamp" => instant(value, 1_000_000),
            "io.debezium.time.NanoTimestamp" => instant(value, 1_000_000_000),
            "org.apache.kafka.connect.data.Decimal" => {
                let scale = schema.pointer("/parameters/scale");
                decimal(value, scale.and_then(integer))
            }
            "io.debezium.data.VariableScaleDecimal" => {
                let scale = value.get("scale").and_then(integer);
                value
                    .get("value")
                    .and_then(|unscaled| decimal(unscaled, scale))
            }
            "io.debezium.data.Json" => json(value, room),
            "io.debezium.data.EnumSet" => value.as_str().map(members),
            _ => return self.decode_inner(value, schema, of("type"), room),
        };
        self.left = self.left.saturating_sub(1);
        match decoded.filter(|_| self.left > 0) {
            Some(decoded) => *value = decoded,
            None => undecoded(value),
        }
    }

    /// Decodes a value whose schema has no name that says how: bytes, or what is inside.
    fn decode_inner(&mut self, value: &mut Value, schema: &Value, kind: &str, room: usize) {
        let room = room.saturating_sub(1);
        match (kind, &mut *value) {
            ("bytes", _) => undecoded(value),
            ("struct", Value::Object(fields)) => {
                for (name, inner) in fields {
                    if let Some(schema) = field_schema(schema, name) {
                        self.decode(inner, schema, room);
                    }
                }
            }
            ("array", Value::Array(values)) => {
                if let Some(items) = schema.get("items") {
                    values
                        .iter_mut()
                        .for_each(|inner| self.decode(inner, items, room));
                }
                // One mark for all of them: of many short values the marks would be most of the profile.
                if values.iter().any(is_undecoded) {
                    undecoded(value);
                }
            }
            ("map", Value::Object(fields)) => {
                if let Some(values) = schema.get("values") {
                    fields
                        .values_mut()
                        .for_each(|inner| self.decode(inner, values, room));
                }
                if fields.values().any(is_undecoded) {
                    undecoded(value);
                }
            }
            _ => {}
        }
    }
}

/// Replaces a value by the mark that it could not be decoded, without its content.
fn undecoded(value: &mut Value) {
    let what = super::fields::Found::from(&*value).what();
    *value = Value::Object(Map::from_iter([(UNDECODED.to_owned(), what.into())]));
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// Days since 1970 as an ISO date. A text is a date already.
fn date(value: &Value) -> Option<Value> {
    if value.is_string() {
        return Some(value.clone());
    }
    let days = Span::new().try_days(value.as_i64()?).ok()?;
    let date = Date::constant(1970, 1, 1).checked_add(days).ok()?;
    Some(date.to_string().into())
}

/// Time since 1970 in this many parts of a second as RFC 3339 text. A text is a time already.
fn instant(value: &Value, per_second: i64) -> Option<Value> {
    if value.is_string() {
        return Some(value.clone());
    }
    let parts = value.as_i64()?;
    let nanos = parts.rem_euclid(per_second) * (1_000_000_000 / per_second);
    let since = SignedDuration::new(parts.div_euclid(per_second), nanos as i32);
    Some(Timestamp::from_duration(since).ok()?.to_string().into())
}

/// A decimal from base64 of its unscaled value, big-endian in two's complement. A number is a decimal already, and so
/// is a text where no scale is given.
fn decimal(value: &Value, scale: Option<i64>) -> Option<Value> {
    let text = match (value, scale) {
        (Value::Number(_), _) => return Some(value.clone()),
        (Value::String(text), _) => text,
        _ => return None,
    };
    let scale = scale.filter(|scale| scale.abs() <= SCALE_MAX)?;
    let bytes = BASE64_STANDARD.decode(text).ok()?;
    if bytes.is_empty() || bytes.len() > 16 {
        return None;
    }
    let sign = if bytes[0] & 0x80 == 0 { 0 } else { 0xff };
    let mut wide = [sign; 16];
    wide[16 - bytes.len()..].copy_from_slice(&bytes);
    Some(written(i128::from_be_bytes(wide), scale))
}

/// A decimal as a number where a JSON number has all of its digits, else as text.
fn written(unscaled: i128, scale: i64) -> Value {
    let digits = unscaled.unsigned_abs().to_string();
    let sign = if unscaled < 0 { "-" } else { "" };
    let places = scale.max(0) as usize;
    let zeros = if unscaled == 0 {
        0
    } else {
        (-scale).max(0) as usize
    };
    let whole = format!("{digits:0>width$}{}", "0".repeat(zeros), width = places + 1);
    let (whole, fraction) = whole.split_at(whole.len() - places);
    let text = match fraction {
        "" => format!("{sign}{whole}"),
        fraction => format!("{sign}{whole}.{fraction}"),
    };
    let exact = digits.len() <= 15 && zeros <= 15;
    let number = if fraction.is_empty() {
        text.parse::<i64>().ok().map(Number::from)
    } else {
        text.parse().ok().and_then(Number::from_f64)
    };
    match number.filter(|_| exact) {
        Some(number) => Value::Number(number),
        None => Value::String(text),
    }
}

/// A JSON column, which is sent as text.
fn json(value: &Value, room: usize) -> Option<Value> {
    let text = value.as_str()?;
    if depth(text) > room.min(127) {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// The members of a set, which are sent with commas between them.
fn members(text: &str) -> Value {
    let members = text.split(',').filter(|member| !member.is_empty());
    members.map(Value::from).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(schema: Value, value: Value, expected: Value) {
        let mut schema = schema;
        schema["field"] = json!("x");
        let mut row = Map::from_iter([("x".to_owned(), value.clone())]);
        decode_row(&mut row, Some(&json!({ "fields": [schema] })), 32);
        assert_eq!(row["x"], expected, "{value} by {schema}");
    }

    fn named(kind: &str, name: &str) -> Value {
        json!({"type": kind, "optional": true, "name": name, "version": 1})
    }

    #[test]
    fn dates_are_decoded_from_days() {
        let of = |name: &str| named("int32", name);
        let days = "io.debezium.time.Date";
        for (name, value, expected) in [
            (days, json!(13_573), json!("2007-03-01")),
            (
                "org.apache.kafka.connect.data.Date",
                json!(-1),
                json!("1969-12-31"),
            ),
            (days, json!("2007-03-01"), json!("2007-03-01")),
            (days, json!(null), json!(null)),
            (days, json!(i64::MAX), json!({"undecoded": "a number"})),
            (days, json!(1.5), json!({"undecoded": "a fraction"})),
            ("io.debezium.time.Year", json!(2007), json!(2007)),
        ] {
            check(of(name), value, expected);
        }
    }

    #[test]
    fn times_are_decoded_from_each_part_of_a_second() {
        let noon = "2007-03-01T12:00:00Z";
        let last = "1969-12-31T23:59:59.999";
        for (name, value, expected) in [
            ("Timestamp", json!(1_172_750_400_000_i64), noon.to_owned()),
            ("Timestamp", json!(-1), format!("{last}Z")),
            (
                "MicroTimestamp",
                json!(1_172_750_400_000_000_i64),
                noon.to_owned(),
            ),
            ("MicroTimestamp", json!(-1), format!("{last}999Z")),
            ("NanoTimestamp", json!(-1), format!("{last}999999Z")),
            ("ZonedTimestamp", json!(noon), noon.to_owned()),
        ] {
            let schema = named("int64", &format!("io.debezium.time.{name}"));
            check(schema, value, json!(expected));
        }
        let connect = named("int64", "org.apache.kafka.connect.data.Timestamp");
        check(connect.clone(), json!(1_172_750_400_000_i64), json!(noon));
        check(connect, json!(i64::MIN), json!({"undecoded": "a number"}));
    }

    #[test]
    fn decimals_are_decoded_from_bytes_and_kept_where_they_are_numbers() {
        let of = |scale: &str| {
            let mut schema = named("bytes", "org.apache.kafka.connect.data.Decimal");
            schema["parameters"] = json!({ "scale": scale });
            schema
        };
        for (scale, value, expected) in [
            ("2", json!("AfQ="), json!(5.0)),
            ("2", json!("/gw="), json!(-5.0)),
            ("0", json!("AfQ="), json!(500)),
            ("3", json!("AQ=="), json!(0.001)),
            ("-2", json!("AQ=="), json!(100)),
            ("2", json!("AA=="), json!(0.0)),
            ("2", json!(12.5), json!(12.5)),
            ("2", json!("//8="), json!(-0.01)),
            ("2", json!("DeC2s6dkAAA="), json!("10000000000000000.00")),
            ("2", json!("12.50"), json!({"undecoded": "a string"})),
            ("2", json!(""), json!({"undecoded": "a string"})),
            ("x", json!("AQ=="), json!({"undecoded": "a string"})),
            ("1000000", json!("AQ=="), json!({"undecoded": "a string"})),
        ] {
            check(of(scale), value, expected);
        }
        let variable = named("struct", "io.debezium.data.VariableScaleDecimal");
        check(
            variable.clone(),
            json!({"scale": 1, "value": "ew=="}),
            json!(12.3),
        );
        check(
            variable,
            json!({"scale": 1}),
            json!({"undecoded": "an object"}),
        );
    }

    #[test]
    fn json_in_text_sets_and_what_is_inside_are_decoded() {
        let inner = named("string", "io.debezium.data.Json");
        check(
            inner.clone(),
            json!(r#"{"pregnant": true}"#),
            json!({"pregnant": true}),
        );
        check(
            inner.clone(),
            json!("{broken"),
            json!({"undecoded": "a string"}),
        );
        let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
        check(inner.clone(), json!(deep), json!({"undecoded": "a string"}));
        let set = named("string", "io.debezium.data.EnumSet");
        check(set.clone(), json!("nuts,milk"), json!(["nuts", "milk"]));
        check(set, json!(""), json!([]));
        check(
            named("string", "io.debezium.data.Enum"),
            json!("gold"),
            json!("gold"),
        );
        let mut nested = inner;
        nested["field"] = json!("h");
        let nested = json!({"type": "struct", "fields": [nested]});
        check(
            nested,
            json!({"h": "[1]", "i": 2}),
            json!({"h": [1], "i": 2}),
        );
        let dates = json!({"type": "array", "items": named("int32", "io.debezium.time.Date")});
        check(
            dates.clone(),
            json!([0, 1]),
            json!(["1970-01-01", "1970-01-02"]),
        );
        check(dates, json!([0, "x", {}]), json!({"undecoded": "an array"}));
        let map = json!({"type": "map", "values": named("int32", "io.debezium.time.Date")});
        check(map, json!({"a": 0}), json!({"a": "1970-01-01"}));
        check(
            json!({"type": "bytes"}),
            json!("AQ=="),
            json!({"undecoded": "a string"}),
        );
        check(json!({"type": "int16"}), json!(1), json!(1));
    }

    #[test]
    fn the_unavailable_value_is_recognised_as_text_bytes_and_array() {
        let bytes = json!({"type": "bytes"});
        let encoded = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
        for value in [json!(UNAVAILABLE), json!(encoded), json!([UNAVAILABLE])] {
            check(bytes.clone(), value, json!(UNAVAILABLE));
        }
    }

    #[test]
    fn a_record_of_very_many_values_is_decoded_up_to_a_limit() {
        let dates = json!({"type": "array", "items": named("int32", "io.debezium.time.Date")});
        check(
            dates,
            json!(vec![0; 20_000]),
            json!({"undecoded": "an array"}),
        );
    }
}
