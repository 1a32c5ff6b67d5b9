//! Laws and cases of the decoders.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOON: i64 = 1_700_000_000_000;

pub(super) fn record(key: Option<&[u8]>, value: Option<&[u8]>) -> Record {
    Record {
        position: "0/t/0:1".parse().expect("valid"),
        time: Timestamp(NOON),
        key: key.map(Bytes::copy_from_slice),
        value: value.map(Bytes::copy_from_slice),
        headers: Vec::new(),
    }
}

pub(super) fn event(text: &str) -> Result<Event, Reject> {
    let accepted = decode_event(
        &record(Some(b"u"), Some(text.as_bytes())),
        &Limits::default(),
    )?;
    match accepted.change {
        Change::Event(event) => Ok(event),
        other => panic!("{other:?} is no event"),
    }
}

pub(super) fn profile(text: &str, format: Format) -> Result<Change, Reject> {
    let record = record(Some(b"u"), Some(text.as_bytes()));
    decode_profile(&record, format, &Limits::default()).map(|accepted| accepted.change)
}

pub(super) fn sku(text: &str) -> Result<Sku, Reject> {
    let (id, sku) = decode_sku(
        &record(Some(b"s"), Some(text.as_bytes())),
        &Limits::default(),
    )?;
    let sku = sku.expect("not null");
    assert_eq!(id, sku.sku);
    Ok(sku)
}

/// Asserts the code, and that the error text contains `says`.
pub(super) fn check<T: std::fmt::Debug>(result: Result<T, Reject>, code: &str, says: &str) {
    let reject = result.expect_err(code);
    assert_eq!(reject.code(), code, "{reject}");
    assert!(
        reject.to_string().contains(says),
        "{reject} does not say {says}"
    );
    assert!(Reject::ALL_CODES.contains(&code), "{code}");
}

#[test]
fn an_event_is_decoded_and_unknown_fields_are_ignored() {
    let found = event(
        r#"{"type":"purchase","sku":"A1","pu":"x","qty":2,"price":3.5,
            "ts":"2023-11-14T22:13:20Z","context":{"page":[1]},"new":null}"#,
    );
    assert_eq!(
        found.expect("valid"),
        Event {
            kind: Kind::Purchase,
            item: Item::Sku("A1".into()),
            qty: 2,
            price: Some(3.5),
            ts: Some(Timestamp(NOON)),
            shown_in: None,
        }
    );
    let bare =
        event(r#"{"type":"view","pu":"  Vitamin \t C ","ts":1700000000000}"#).expect("valid");
    assert_eq!(bare.item, Item::Pu("Vitamin C".into()));
    assert_eq!((bare.qty, bare.price), (1, None));
    assert_eq!(bare.ts, Some(Timestamp(NOON)));
    let search = event(r#"{"type":"search","query":" cough\nsyrup ","sku":"A1"}"#).expect("valid");
    assert_eq!(search.item, Item::Query("cough syrup".into()));
}

#[test]
fn an_event_may_say_in_which_list_and_place_its_product_was_shown() {
    let shown_in = |fields: &str| {
        let text = format!(r#"{{"type":"impression","sku":"a"{fields}}}"#);
        event(&text).expect("valid").shown_in
    };
    let whole = shown_in(r#","list_id":"af1dfd9e7e7bd0af","position":3"#).expect("a list");
    assert_eq!(whole.list_id, "af1dfd9e7e7bd0af");
    assert_eq!(whole.position, Some(3));
    let no_place = shown_in(r#","list_id":"x","position":null"#).expect("a list");
    assert_eq!(no_place.position, None);
    for none in [
        "",
        r#","position":3"#,
        r#","list_id":"""#,
        r#","list_id":null"#,
    ] {
        assert_eq!(shown_in(none), None);
    }
}

/// Refused events, with their code and a part of the error text.
const REFUSED: &[(&str, &str, &str)] = &[
    ("", "malformed_json", "not JSON"),
    ("{", "malformed_json", "EOF"),
    ("NaN", "malformed_json", "not JSON"),
    ("[1]", "not_an_object", "an array"),
    ("null", "not_an_object", "null"),
    ("{}", "missing_field", "type"),
    (r#"{"type":7}"#, "wrong_type", "type is a number"),
    (r#"{"type":"wish","sku":"a"}"#, "unknown_type", "wish"),
    (r#"{"type":"view"}"#, "missing_field", "sku or pu"),
    (
        r#"{"type":"view","query":"x"}"#,
        "missing_field",
        "sku or pu",
    ),
    (r#"{"type":"search","sku":"x"}"#, "missing_field", "query"),
    (r#"{"type":"search","query":" "}"#, "missing_field", "query"),
    (r#"{"type":"view","sku":""}"#, "missing_field", "sku or pu"),
    (
        r#"{"type":"view","sku":12}"#,
        "wrong_type",
        "sku is a number",
    ),
    (
        r#"{"type":"view","sku":"a","qty":-1}"#,
        "negative_quantity",
        "-1",
    ),
    (
        r#"{"type":"view","sku":"a","qty":-0.5}"#,
        "negative_quantity",
        "-0.5",
    ),
    (
        r#"{"type":"view","sku":"a","qty":1.5}"#,
        "wrong_type",
        "a fraction",
    ),
    (
        r#"{"type":"view","sku":"a","qty":"1"}"#,
        "wrong_type",
        "a string",
    ),
    (
        r#"{"type":"view","sku":"a","qty":5000000000}"#,
        "bad_number",
        "qty",
    ),
    (
        r#"{"type":"view","sku":"a","price":-0.01}"#,
        "bad_number",
        "-0.01",
    ),
    (
        r#"{"type":"view","sku":"a","price":"1"}"#,
        "wrong_type",
        "price",
    ),
    (
        r#"{"type":"view","sku":"a","price":1e999}"#,
        "malformed_json",
        "out of range",
    ),
    (
        r#"{"type":"view","sku":"a","list_id":7}"#,
        "wrong_type",
        "list_id is a number",
    ),
    (
        r#"{"type":"view","sku":"a","position":"1"}"#,
        "wrong_type",
        "position is a string",
    ),
    (
        r#"{"type":"view","sku":"a","position":1.5}"#,
        "wrong_type",
        "position is a fraction",
    ),
    (
        r#"{"type":"view","sku":"a","position":0}"#,
        "bad_number",
        "position is 0",
    ),
    (
        r#"{"type":"view","sku":"a","ts":"noon"}"#,
        "wrong_type",
        "RFC 3339",
    ),
    (
        r#"{"type":"view","sku":"a","ts":1.5}"#,
        "wrong_type",
        "a fraction",
    ),
    (
        r#"{"type":"view","sku":"a","ts":[]}"#,
        "wrong_type",
        "an array",
    ),
];

#[test]
fn a_wrong_event_is_refused_with_its_code() {
    for (text, code, says) in REFUSED {
        check(event(text), code, says);
    }
}

#[test]
fn values_beyond_the_limits_are_refused_before_parsing() {
    let limits = Limits::default();
    let deep = format!("{}{}", r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    check(event(&deep), "too_deep", "32");
    let brackets = r#"{"type":"view","sku":"[\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}"#;
    assert!(
        event(brackets).is_ok(),
        "brackets inside a string are not nesting"
    );
    check(event(&" ".repeat(2 << 20)), "too_large", "2097152");
    let long = format!(r#"{{"type":"view","sku":"{}"}}"#, "x".repeat(513));
    check(event(&long), "too_long", "513");
    let query = format!(r#"{{"type":"search","query":"{}"}}"#, "ü".repeat(400));
    assert_eq!(
        event(&query).expect("truncated").item,
        Item::Query("ü".repeat(256))
    );
    let decode = |key, value| decode_event(&record(key, value), &limits);
    check(decode(Some(b"u"), None), "null_value", "null");
    check(
        decode(Some(b"u"), Some(b"\xff\xfe")),
        "not_utf8",
        "byte 0 of 2",
    );
    check(
        decode(Some(b"u"), Some(b"\0\0\0\0\x01{}")),
        "framed_payload",
        "`topics.profile_format`",
    );
    check(decode(None, Some(b"{}")), "no_key", "no key");
    check(decode(Some(b""), Some(b"{}")), "empty_key", "empty");
    check(
        decode(Some(b"a\xff"), Some(b"{}")),
        "key_not_utf8",
        "byte 1 of 2",
    );
    check(
        decode(Some(b"\0\0\0\0\x01u"), Some(b"{}")),
        "framed_payload",
        "key",
    );
    check(
        decode(Some(&[b'k'; 600]), Some(b"{}")),
        "too_long",
        "the key",
    );
}

#[test]
fn a_time_outside_2000_to_2100_or_too_far_ahead_is_refused() {
    let live = Limits {
        now: Some(Timestamp(NOON)),
        ..Limits::default()
    };
    let at = |ms, limits: &Limits| {
        let mut record = record(Some(b"u"), Some(br#"{"type":"view","sku":"a"}"#));
        record.time = Timestamp(ms);
        decode_event(&record, limits)
    };
    for bad in [
        -1,
        0,
        YEAR_2000 - 1,
        YEAR_2101,
        253_370_764_800_000,
        i64::MAX,
        i64::MIN,
    ] {
        check(at(bad, &live), "time_out_of_range", &bad.to_string());
    }
    for good in [YEAR_2000, YEAR_2101 - 1] {
        assert!(at(good, &Limits::default()).is_ok(), "{good}");
    }
    assert!(at(NOON + 300_000, &live).is_ok());
    check(at(NOON + 300_001, &live), "time_ahead", "300s");
}

#[test]
fn a_plain_profile_is_the_whole_object_and_null_erases() {
    let found = profile(r#"{"b":{"z":1,"a":2},"a":"x"}"#, Format::Plain).expect("valid");
    let Change::Profile(found) = found else {
        panic!("{found:?}")
    };
    assert_eq!(
        serde_json::to_string(&found).expect("writes"),
        r#"{"a":"x","b":{"a":2,"z":1}}"#
    );
    for format in [Format::Plain, Format::Debezium] {
        let erase = decode_profile(&record(Some(b"u"), None), format, &Limits::default());
        assert_eq!(erase.expect("valid").change, Change::Erase);
    }
    check(profile("[]", Format::Plain), "not_an_object", "an array");
    let envelope = r#"{"op":"d","before":{},"after":null}"#;
    check(profile(envelope, Format::Plain), "enveloped", "debezium");
    let wrapped = r#"{"schema":{},"payload":{}}"#;
    check(
        profile(wrapped, Format::Plain),
        "enveloped",
        "schema, payload",
    );
}

#[test]
fn the_user_of_a_change_event_is_the_only_field_of_its_key() {
    let user = |key: &str| {
        let record = record(Some(key.as_bytes()), None);
        decode_profile(&record, Format::Debezium, &Limits::default()).map(|a| a.user.to_string())
    };
    for (key, wanted) in [
        ("u7", "u7"),
        ("7", "7"),
        (r#"{"id":7}"#, "7"),
        (r#"{"id":"u7"}"#, "u7"),
        (r#"{"schema":{},"payload":{"id":7}}"#, "7"),
        (r#"{"schema":{},"payload":7}"#, "7"),
    ] {
        assert_eq!(user(key).expect(key), wanted, "{key}");
    }
    check(user(r#"{"a":1,"b":2}"#), "wrong_type", "several fields");
    check(user(r#"{"id":null}"#), "wrong_type", "null");
    check(user("{}"), "empty_key", "empty");
    check(user(r#"{"id":""}"#), "empty_key", "empty");
}

#[test]
fn missing_fields_of_a_sku_default_to_its_name() {
    let bare = sku(r#"{"pu":"Cafe\u0301  au lait","stock":0}"#).expect("valid");
    assert_eq!(bare.pu, "Café au lait");
    assert_eq!(
        (bare.pu_id.as_str(), bare.title.as_str()),
        ("Café au lait", "Café au lait")
    );
    assert_eq!((bare.stock, bare.price, bare.category), (0, None, None));
    let full = r#"{"pu":"P","pu_id":"7","category":"C","title":"T","stock":-2,"price":1,"attributes":{"rx":true}}"#;
    let full = sku(full).expect("valid");
    assert_eq!(
        (full.pu_id.as_str(), full.category.as_deref()),
        ("7", Some("C"))
    );
    assert_eq!((full.stock, full.price), (-2, Some(1.0)));
    assert_eq!(full.attributes["rx"], json!(true));
    let deleted = decode_sku(&record(Some(b"s"), None), &Limits::default());
    assert_eq!(deleted, Ok(("s".into(), None)));
    for (text, code, says) in [
        (r#"{"stock":1}"#, "missing_field", "pu"),
        (r#"{"pu":" ","stock":1}"#, "missing_field", "pu"),
        (r#"{"pu":"x"}"#, "missing_field", "stock"),
        (
            r#"{"pu":"x","stock":1.5}"#,
            "wrong_type",
            "stock is a fraction",
        ),
        (
            r#"{"pu":"x","stock":1,"attributes":[]}"#,
            "wrong_type",
            "attributes",
        ),
        (r#"{"pu":"x","stock":1,"price":-1}"#, "bad_number", "price"),
    ] {
        check(sku(text), code, says);
    }
}

#[test]
fn limits_with_an_unknown_key_are_refused() {
    let limits: Limits = toml::from_str("max_ahead = '1m'").expect("valid");
    assert_eq!(limits.max_ahead, Duration::from_secs(60));
    assert!(toml::from_str::<Limits>("now = 3").is_err());
}

/// JSON with the fields of the decoders.
fn plausible_json() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("type"),
        Just("sku"),
        Just("qty"),
        Just("ts"),
        Just("price"),
        Just("view"),
        Just("query"),
        Just("search"),
        Just("payload"),
        Just("after"),
        Just("op"),
        Just("stock"),
        Just("pu"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 6, move |inner| {
        prop::collection::vec((word.clone(), inner), 0..6)
            .prop_map(|fields| fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    })
    .prop_map(|value| value.to_string())
}

/// Objects that no serialiser writes: repeated names, numbers out of range, wrong escapes, truncated texts.
fn malformed_objects() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "type",
        "sku",
        "pu",
        "query",
        "qty",
        "price",
        "ts",
        "context",
        "t\\u0079pe",
    ]);
    let value = prop::sample::select(vec![
        "\"view\"",
        "\"search\"",
        "\"sk\\u0075\"",
        "\"\\ud800\"",
        "\"\\x\"",
        "1",
        "-1",
        "2.5",
        "1e999",
        "-0.0",
        "null",
        "true",
        "[1,[{\"a\":1e999}]]",
        "{\"type\":\"view\",\"a\":[\"\\ud800\"]}",
        "18446744073709551616",
        "01",
        "",
        "{\"a\":{\"b\":[]}}",
        "\"2026-01-01T00:00:00Z\"",
    ]);
    let fields = prop::collection::vec((name, value), 0..6);
    (
        fields,
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
        .prop_map(|(fields, cut)| {
            let fields: Vec<String> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
            let mut text = format!("{{{}}}", fields.join(", "));
            if let Some(cut) = cut {
                text.truncate(cut.index(text.len() + 1));
            }
            text
        })
}

/// Decodes an event from a parsed tree.
fn event_of_tree(text: &str, limits: &Limits) -> Result<Event, Reject> {
    match value(text.as_bytes(), limits)? {
        Value::Object(fields) => super::event(&fields, limits),
        other => Err(Reject::NotAnObject {
            found: Found::from(&other).what(),
        }),
    }
}

#[test]
fn a_name_with_characters_that_cannot_be_seen_is_the_name_without_them() {
    let clean =
        sku(r#"{"pu":"ASPARAGUS","category":"PRODUCE","stock":1,"attributes":{"grade":"1"}}"#);
    let dirty = sku(
        "{\"pu\":\"\u{feff}ASPARAGUS\",\"category\":\"PRO\u{200b}DUCE \",\"stock\":1,\"attributes\":{\"\u{feff}grade\":\"1\"}}",
    );
    assert_eq!(dirty, clean);
    let viewed = event("{\"type\":\"view\",\"pu\":\"ASPARAGUS\u{2060}\"}").expect("valid");
    assert_eq!(viewed.item, Item::Pu("ASPARAGUS".into()));
    let search = event("{\"type\":\"search\",\"query\":\"\u{feff}white  asparagus\"}");
    assert_eq!(
        search.expect("valid").item,
        Item::Query("white asparagus".into())
    );
    check(
        sku("{\"pu\":\"\u{feff}\u{200d}\",\"stock\":1}"),
        "missing_field",
        "pu",
    );
}

#[test]
fn a_sku_id_that_looks_like_another_is_refused_and_a_user_id_stays_as_it_is() {
    for id in [
        "\u{feff}1029743",
        "1029743 ",
        " 1029743",
        "10297\u{200b}43",
        "a  b",
        "e\u{301}",
    ] {
        let text = serde_json::json!({"type": "view", "sku": id}).to_string();
        check(event(&text), "unseen_character", "sku has U+");
        let value = r#"{"pu":"TEA","stock":1}"#.as_bytes();
        for value in [Some(value), None] {
            let record = record(Some(id.as_bytes()), value);
            check(
                decode_sku(&record, &Limits::default()),
                "unseen_character",
                "the key has U+",
            );
        }
    }
    let user = "\u{feff}2375 ";
    let record = record(Some(user.as_bytes()), None);
    let erase = decode_profile(&record, Format::Plain, &Limits::default()).expect("valid");
    assert_eq!((&*erase.user.0, erase.change), (user, Change::Erase));
}

#[test]
fn fields_of_a_profile_have_normal_names_at_every_depth_and_the_one_written_so_wins() {
    let text = "{\"\u{feff}age\":17,\"health\":{\"preg\u{200b}nant\":true},\"list\":[{\"a \":1}],\
        \"city\":\"Bonn \",\"city \":\"Ulm\"}";
    let expected =
        json!({"age": 17, "health": {"pregnant": true}, "list": [{"a": 1}], "city": "Bonn "});
    let expected = Change::Profile(serde_json::from_value(expected).expect("a profile"));
    assert_eq!(profile(text, Format::Plain), Ok(expected));
}

proptest! {
    #[test]
    fn decoding_without_a_tree_equals_decoding_from_a_tree(text in prop_oneof![malformed_objects(), plausible_json(), "[\\[{}\":1a\\]]{0,20}"]) {
        let limits = Limits::default();
        let record = record(Some(b"u"), Some(text.as_bytes()));
        let found = decode_event(&record, &limits).map(|found| found.change);
        prop_assert_eq!(found, event_of_tree(&text, &limits).map(Change::Event));
    }

    #[test]
    fn any_bytes_are_accepted_or_refused_by_a_listed_code(
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..6)),
        value in prop::option::of(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            plausible_json().prop_map(String::into_bytes),
        ]),
        time in any::<i64>(),
    ) {
        let mut record = record(key.as_deref(), value.as_deref());
        let limits = Limits { now: Some(Timestamp(NOON)), ..Limits::default() };
        for time in [time, NOON] {
            record.time = Timestamp(time);
            let sources = [Source::Events, Source::Profiles(Format::Plain), Source::Profiles(Format::Debezium)];
            let users = sources.map(|source| decode_user(&record, source, &limits).err());
            for reject in users.into_iter().chain([decode_sku(&record, &limits).err()]).flatten() {
                prop_assert!(Reject::ALL_CODES.contains(&reject.code()));
            }
        }
    }

    #[test]
    fn a_normalised_name_is_normal(name in "\\PC{0,12}|[ \\ta-cé\u{301}\u{0}]{0,12}") {
        let once = normalise(&name);
        prop_assert_eq!(normalise(&once), once.clone());
        prop_assert!(!once.contains("  ") && once.trim() == once);
    }
}
