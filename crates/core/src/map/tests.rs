//! Tests of mappings: the recipes with their samples, framings, and what is refused when a mapping is compiled.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::user::event::{decode_event, decode_sku};

const RECIPES: [(&str, &str, &str); 5] = [
    (
        "segment",
        include_str!("../../../../config/recipes/segment.toml"),
        include_str!("../../../../config/recipes/segment.jsonl"),
    ),
    (
        "ga4",
        include_str!("../../../../config/recipes/ga4.toml"),
        include_str!("../../../../config/recipes/ga4.jsonl"),
    ),
    (
        "snowplow",
        include_str!("../../../../config/recipes/snowplow.toml"),
        include_str!("../../../../config/recipes/snowplow.jsonl"),
    ),
    (
        "debezium",
        include_str!("../../../../config/recipes/debezium.toml"),
        include_str!("../../../../config/recipes/debezium.jsonl"),
    ),
    (
        "cloudevents",
        include_str!("../../../../config/recipes/cloudevents.toml"),
        include_str!("../../../../config/recipes/cloudevents.jsonl"),
    ),
];

#[derive(Deserialize)]
struct File {
    inputs: Vec<InputSettings>,
}

fn input(toml: &str) -> Input {
    let file: File = toml::from_str(toml).expect("valid TOML");
    compile(&file.inputs[0], None).expect("it compiles")
}

fn samples(text: &str) -> impl Iterator<Item = (&str, Sample)> {
    let lines = text.lines().enumerate();
    lines.map(|(nth, line)| (line, Sample::read(line, "t", nth).expect("a sample")))
}

#[test]
fn every_sample_of_a_recipe_becomes_what_is_expected() {
    for (name, toml, lines) in RECIPES {
        let input = input(toml);
        for (line, sample) in samples(lines) {
            let outcome = input.apply(&sample.record, &Limits::default());
            let (became, why) = became(&input, &outcome, &Limits::default());
            assert_eq!(
                Some(&became),
                sample.expect.as_ref(),
                "{name}: {line}\n{why:?}"
            );
        }
    }
}

#[test]
fn without_a_mapping_the_records_of_trackers_are_named() {
    for (name, _, lines) in RECIPES {
        let mut named = 0;
        for (line, sample) in samples(lines) {
            let of_event = decode_event(&sample.record, &Limits::default());
            let of_sku = decode_sku(&sample.record, &Limits::default());
            for reject in of_event.err().into_iter().chain(of_sku.err()) {
                assert_ne!(reject.code(), "panic", "{line}");
                if let Reject::Foreign { see, .. } = &reject {
                    assert_eq!(*see, name, "{line}");
                    assert!(reject.to_string().contains(name), "{reject}");
                    named += 1;
                }
            }
        }
        assert!(named >= 3, "{name}: {named}");
    }
}

#[test]
fn what_our_own_records_lack_is_still_told_by_its_field() {
    for (value, code) in [
        (r#"{"type":"view"}"#, "missing_field"),
        (r#"{"type":"track","sku":"a"}"#, "unknown_type"),
        (r#"{"userId":"u","type":"view"}"#, "missing_field"),
    ] {
        let sample = Sample::read(value, "user-events", 0).expect("a sample");
        let record = Record {
            key: Some("u".into()),
            ..sample.record
        };
        let reject = decode_event(&record, &Limits::default()).expect_err("refused");
        assert_eq!(reject.code(), code, "{value}");
    }
}

#[test]
fn all_that_a_record_becomes_has_its_position_and_its_time() {
    let input = input(RECIPES[0].1);
    let (_, mut sample) = samples(RECIPES[0].2).nth(1).expect("an order");
    sample.record.headers = vec![(TIME_HEADER.into(), "7".into()), ("x".into(), "y".into())];
    let made = input
        .apply(&sample.record, &Limits::default())
        .expect("mapped");
    assert_eq!(made.len(), 2);
    for piece in made {
        assert_eq!(piece.position, sample.record.position);
        assert_eq!((piece.time, piece.occurred().0), (sample.record.time, 7));
        assert_eq!(piece.headers.len(), 1, "headers of the shop are not ours");
    }
}

#[test]
fn a_schema_registry_s_frame_is_taken_off_and_its_lack_refused() {
    let toml = "[[inputs]]\ntopic = \"t\"\nread_as = \"profiles\"\nframing = \"confluent-json\"\nwhole = \"/traits\"\n\
                fields = { vip = \"/vip\" }";
    let input = input(toml);
    let record = |value: &'static [u8]| {
        let (_, sample) = samples("{\"value\":{}}").next().expect("one");
        Record {
            key: Some(Bytes::from_static(b"\0\0\0\0\x07u-1")),
            value: Some(Bytes::from_static(value)),
            ..sample.record
        }
    };
    let framed = record(b"\0\0\0\0\x07{\"traits\":{\"age\":7},\"vip\":true}");
    let made = input.apply(&framed, &Limits::default()).expect("mapped");
    assert_eq!(made[0].key.as_deref(), Some(&b"u-1"[..]));
    assert_eq!(
        made[0].value.as_deref(),
        Some(&br#"{"age":7,"vip":true}"#[..])
    );
    for bare in [&b"{\"traits\":{}}"[..], b"\0\0\0"] {
        let refused = input.apply(&record(bare), &Limits::default());
        assert_eq!(refused.expect_err("refused").code(), "bad_frame");
    }
    let gone = Record {
        value: None,
        ..framed
    };
    let made = input.apply(&gone, &Limits::default()).expect("an erase");
    assert_eq!(
        (made[0].key.as_deref(), &made[0].value),
        (Some(&b"u-1"[..]), &None)
    );
}

#[test]
fn a_mapping_that_cannot_make_records_is_refused_by_key() {
    let check = |lines: &str, key: &str, part: &str| {
        let text = format!("[[inputs]]\ntopic = \"t\"\n{lines}");
        let file: File = toml::from_str(&text).expect("valid TOML");
        let wrong = compile(&file.inputs[0], None).expect_err(lines);
        assert!(
            wrong
                .iter()
                .any(|(at, what)| *at == key && what.contains(part)),
            "{lines}: {wrong:?}"
        );
    };
    check("read_as = \"events\"", "fields", "type is missing");
    check(
        "read_as = \"catalog\"\nfields = { pu = \"/a\" }",
        "fields",
        "stock is missing",
    );
    check("read_as = \"profiles\"", "fields", "whole");
    check(
        "read_as = \"events\"\nfields = { type = \"/t\", price_usd = \"/p\" }",
        "fields",
        "price_usd",
    );
    check(
        "read_as = \"events\"\nfields = { type = \"/t\" }\ntypes = { a = \"buy\" }",
        "types",
        "buy",
    );
    check(
        "read_as = \"events\"\nset = { type = \"buy\" }",
        "set",
        "buy",
    );
    check(
        "read_as = \"events\"\nfields = { type = \"/t\", sku = \"@/id\" }",
        "each",
        "@/id",
    );
    check(
        "read_as = \"catalog\"\nwhole = \"/a\"\nfields = { pu = \"/a\", stock = \"/b\" }",
        "whole",
        "profile",
    );
    let toml = "[[inputs]]\ntopic = \"t\"\nread_as = \"events\"\nprogram = \"a.jq\"\nkey = \"/a\"";
    let file: File = toml::from_str(toml).expect("valid TOML");
    let wrong = compile(&file.inputs[0], Some(".".into())).expect_err("both");
    assert_eq!(wrong[0].0, "program");
}

#[test]
fn a_program_is_asked_with_everything_and_its_answers_are_checked() {
    let input = Input {
        topic: "t".into(),
        read_as: ReadAs::Catalog,
        framing: Framing::Debezium,
        how: How::Program(".".into()),
    };
    let line = r#"{"key":"{\"id\":7}","value":{"op":"d","before":{"id":7}},"headers":{"a":"b"},"timestamp":5}"#;
    let sample = Sample::read(line, "t", 0).expect("a sample");
    let question = input
        .question(&sample.record, &Limits::default())
        .expect("asked")
        .expect("something");
    let question: Value = serde_json::from_str(&question).expect("JSON");
    let expected = json!({
        "key": "{\"id\":7}", "value": null, "headers": {"a": "b"}, "time": 5, "topic": "t", "removed": {"id": 7}
    });
    assert_eq!(question, expected);
    let answers = |answers: Value| {
        let answers = answers.as_array().expect("a list").clone();
        let made = input.answers(&sample.record, &answers);
        made.map(|made| {
            made.into_iter()
                .map(|it| (it.key, it.value))
                .collect::<Vec<_>>()
        })
    };
    let own = sample.record.key.clone();
    assert_eq!(
        answers(json!([{"value": null}, {"key": 8, "value": {"pu": "x"}}])),
        Ok(vec![
            (own, None),
            (Some("8".into()), Some("{\"pu\":\"x\"}".into()))
        ])
    );
    for bad in [
        json!([7]),
        json!([{"key": "a"}]),
        json!([{"value": {}, "k": 1}]),
        json!([{"key": [], "value": 1}]),
    ] {
        assert_eq!(answers(bad).expect_err("refused").code(), "program_failed");
    }
}

#[test]
fn equal_inputs_are_equal_and_found_by_topic() {
    let inputs: Inputs = RECIPES.iter().map(|(_, toml, _)| input(toml)).collect();
    assert_eq!(inputs, inputs.clone());
    let topics: BTreeMap<&str, ReadAs> = inputs.iter().map(|it| (&*it.topic, it.read_as)).collect();
    assert_eq!(topics["segment"], ReadAs::Events);
    assert!(inputs.get("shop.public.products").is_some() && inputs.get("user-events").is_none());
}
