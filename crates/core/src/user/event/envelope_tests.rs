//! Cases of envelopes, of rows that are marked as deleted, and of columns that were not sent.

use serde_json::json;

use super::tests::{check, event, profile, record, sku};
use super::*;

#[test]
fn a_change_event_is_unwrapped_with_and_without_its_schema() {
    let row = Change::Profile(Profile(
        json!({"age": 40})
            .as_object()
            .expect("object")
            .clone()
            .into_iter()
            .collect(),
    ));
    for (text, wanted) in [
        (
            r#"{"op":"u","before":null,"after":{"age":40}}"#,
            row.clone(),
        ),
        (r#"{"op":"r","after":{"age":40}}"#, row.clone()),
        (
            r#"{"schema":{},"payload":{"op":"c","after":{"age":40}}}"#,
            row,
        ),
        (
            r#"{"op":"d","before":{"age":40},"after":null}"#,
            Change::Erase,
        ),
        (r#"{"op":"d","before":{"age":40}}"#, Change::Erase),
        (r#"{"op":"u","after":null}"#, Change::Erase),
        (r#"{"schema":null,"payload":null}"#, Change::Erase),
    ] {
        assert_eq!(
            profile(text, Format::Debezium).expect(text),
            wanted,
            "{text}"
        );
    }
    check(profile("{}", Format::Debezium), "missing_field", "after");
    check(
        profile(r#"{"after":3}"#, Format::Debezium),
        "wrong_type",
        "after",
    );
    check(profile("3", Format::Debezium), "not_an_object", "a number");
}

/// A profile as JSON.
fn fields(text: &str, format: Format) -> Value {
    match profile(text, format).expect(text) {
        Change::Profile(profile) => serde_json::to_value(profile).expect("JSON"),
        other => panic!("{other:?} is no profile"),
    }
}

#[test]
fn a_row_is_decoded_as_the_schema_of_its_envelope_says() {
    let columns = json!([
        {"field": "id", "type": "int64"},
        {"field": "born", "type": "int32", "name": "io.debezium.time.Date"},
        {"field": "health", "type": "string", "name": "io.debezium.data.Json"},
        {"field": "smoker", "type": "int16"},
        {"field": "income", "type": "bytes", "name": "org.apache.kafka.connect.data.Decimal",
         "parameters": {"scale": "2"}},
    ]);
    let row = json!({"id": 7, "born": 13_573, "health": "{\"pregnant\": true}", "smoker": 1, "income": "AfQ="});
    let expected = json!({"id": 7, "born": "2007-03-01", "health": {"pregnant": true}, "smoker": 1, "income": 5.0});
    let struct_of = |name: &str| json!({"field": name, "type": "struct", "fields": columns});
    let envelope = json!({
        "schema": {"type": "struct", "fields": [struct_of("before"), struct_of("after")]},
        "payload": {"op": "u", "before": null, "after": row},
    });
    assert_eq!(fields(&envelope.to_string(), Format::Debezium), expected);
    let mut flat_row = row.clone();
    flat_row["__deleted"] = json!("false");
    let flat = json!({"schema": struct_of("row"), "payload": flat_row});
    assert_eq!(fields(&flat.to_string(), Format::Debezium), expected);
    let bare = json!({"op": "u", "after": row});
    assert_eq!(
        fields(&bare.to_string(), Format::Debezium),
        row,
        "without a schema nothing is known"
    );
}

#[test]
fn an_unavailable_column_is_what_it_was_before_if_that_was_sent() {
    let sent = r#"{"op":"u","before":{"bio":"x","age":3},"after":{"bio":"__debezium_unavailable_value","age":4}}"#;
    assert_eq!(
        fields(sent, Format::Debezium),
        json!({"bio": "x", "age": 4})
    );
    let unsent = r#"{"op":"u","before":null,"after":{"bio":["__debezium_unavailable_value"]}}"#;
    let placeholder = json!({"bio": "__debezium_unavailable_value"});
    assert_eq!(fields(unsent, Format::Debezium), placeholder);
    let plain = r#"{"bio":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="}"#;
    assert_eq!(fields(plain, Format::Plain), placeholder);
    check(
        sku(r#"{"pu":"__debezium_unavailable_value","stock":1}"#),
        "wrong_type",
        "pu",
    );
    check(
        sku(r#"{"pu":"P","category":"__debezium_unavailable_value","stock":1}"#),
        "wrong_type",
        "category",
    );
    let untitled = sku(r#"{"pu":"P","title":"__debezium_unavailable_value","stock":1}"#);
    assert_eq!(untitled.expect("valid").title, "P");
}

#[test]
fn a_row_that_is_marked_as_deleted_erases_its_user_and_ends_its_sku() {
    for row in [
        r#"{"id":"x","__deleted":"true","__op":"d"}"#,
        r#"{"id":"x","__deleted":"true"}"#,
        r#"{"id":"x","__deleted":true}"#,
        r#"{"id":"x","__op":"d"}"#,
        r#"{"id":"x","__op":"d","__deleted":null}"#,
        r#"{"pu":"P","stock":3,"__deleted":"true"}"#,
    ] {
        for format in [Format::Plain, Format::Debezium] {
            assert_eq!(profile(row, format), Ok(Change::Erase), "{row}");
        }
        let wrapped = format!(r#"{{"schema":null,"payload":{row}}}"#);
        assert_eq!(
            profile(&wrapped, Format::Debezium),
            Ok(Change::Erase),
            "{row}"
        );
        let record = record(Some(b"s"), Some(row.as_bytes()));
        let gone = decode_sku(&record, &Limits::default());
        assert_eq!(gone, Ok(("s".into(), None)), "{row}");
        check(event(row), "enveloped", "deleted");
    }
}

#[test]
fn a_row_that_is_not_deleted_is_kept_without_its_marks() {
    for row in [
        r#"{"age":3,"__deleted":"false","__op":"u"}"#,
        r#"{"age":3,"__deleted":false,"__op":"c"}"#,
        r#"{"age":3,"__op":"r"}"#,
    ] {
        for format in [Format::Plain, Format::Debezium] {
            assert_eq!(fields(row, format), json!({"age": 3}), "{row}");
        }
    }
    let live = r#"{"type":"view","sku":"a","__deleted":"false","__op":"c"}"#;
    assert!(event(live).is_ok(), "{live}");
    assert!(sku(r#"{"pu":"P","stock":3,"__deleted":"false"}"#).is_ok());
}

#[test]
fn a_field_that_only_looks_like_a_delete_erases_nobody() {
    for row in [
        r#"{"deleted":true,"op":"d","action":"delete"}"#,
        r#"{"_deleted":"true","is_deleted":1,"status":"deleted"}"#,
        r#"{"op":"d","note":"x"}"#,
        r#"{"health":{"__deleted":"true"}}"#,
        r#"{"schema":"public","after":"work"}"#,
        r#"{"payload":{"kg":3}}"#,
    ] {
        assert!(
            matches!(profile(row, Format::Plain), Ok(Change::Profile(_))),
            "{row}"
        );
    }
    // A mark that says neither yes nor no is not guessed.
    for row in [
        r#"{"id":"x","__deleted":1}"#,
        r#"{"id":"x","__deleted":"yes"}"#,
        r#"{"id":"x","__deleted":""}"#,
        r#"{"id":"x","__deleted":"false","__op":"d"}"#,
    ] {
        check(profile(row, Format::Plain), "wrong_type", "__deleted");
        check(sku(row), "wrong_type", "__deleted");
        check(event(row), "wrong_type", "__deleted");
    }
}

#[test]
fn an_envelope_in_plain_format_is_refused_as_enveloped() {
    for envelope in [
        r#"{"op":"d","before":{"id":1},"after":null}"#,
        r#"{"op":"d","before":{"id":1}}"#,
        r#"{"op":"d","after":null}"#,
        r#"{"op":"c","after":{"id":1}}"#,
        r#"{"payload":{"op":"d","before":{"id":1},"after":null}}"#,
        r#"{"schema":{},"payload":{"id":"x","__deleted":"true"}}"#,
        r#"{"database":"shop","table":"users","type":"delete","ts":1,"data":{"id":1}}"#,
        r#"{"database":"shop","table":"users","type":"DELETE","isDdl":false,"data":[{"id":1}]}"#,
        r#"{"table":"S.USERS","op_type":"D","before":{"ID":1}}"#,
        r#"{"data":{"id":1},"metadata":{"operation":"delete","record-type":"data"}}"#,
    ] {
        check(
            profile(envelope, Format::Plain),
            "enveloped",
            "change event",
        );
        check(sku(envelope), "enveloped", "the row alone");
    }
}
