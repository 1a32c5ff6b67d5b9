//! Tests the report: exit codes, text, JSON and advice.

use super::*;

fn report(items: Vec<Item>, refused: bool) -> Report {
    Report { items, refused }
}

#[test]
fn the_worst_result_decides_the_exit_code() {
    let fine = vec![Item::ok("a", "b"), Item::warn("a", "b")];
    assert_eq!(report(fine, false).exit_code(), 0);
    assert_eq!(report(vec![Item::fail("a", "b")], false).exit_code(), 1);
    assert_eq!(report(vec![Item::fail("a", "b")], true).exit_code(), 2);
}

#[test]
fn a_report_is_printed_as_lines_and_as_json() {
    let items = vec![
        Item::ok("config", "nearshore.toml"),
        Item::warn("topic user-events", "timestamps are CreateTime").advise("set LogAppendTime"),
    ];
    let report = report(items, false);
    let lines = [
        "[ok]   config             nearshore.toml",
        "[warn] topic user-events  timestamps are CreateTime",
        "       -> set LogAppendTime",
        "",
    ];
    assert_eq!(report.text(), lines.join("\n"));
    let json: serde_json::Value = serde_json::from_str(&report.json()).expect("JSON");
    assert_eq!(json["ok"], true);
    assert_eq!(json["items"][1]["mark"], "warn");
    assert_eq!(json["items"][1]["advice"], "set LogAppendTime");
}

#[tokio::test]
async fn an_offline_check_asks_no_server_and_warns_of_weak_settings() {
    let mut config = Config::default();
    config.kafka.brokers = "nobody.invalid:1".into();
    config.http.listen = ([0, 0, 0, 0], 9464).into();
    let report = check(&config, Path::new("nearshore.toml"), true).await;
    let marks: Vec<_> = report
        .items
        .iter()
        .map(|item| (item.mark, item.item.as_str()))
        .collect();
    let expected = [
        (Mark::Ok, "config"),
        (Mark::Ok, "rules"),
        (Mark::Warn, "http"),
        (Mark::Warn, "redis replication"),
        (Mark::Warn, "arms"),
    ];
    assert_eq!(marks, expected);
    assert_eq!(report.exit_code(), 0);
}

/// Nothing listens on port 1, so connections are refused at once.
#[tokio::test]
async fn a_server_that_does_not_answer_fails_with_advice_and_hides_no_other_failure() {
    let mut config = Config::default();
    config.kafka.brokers = "127.0.0.1:1".into();
    config.kafka.ack_timeout = Duration::from_millis(500);
    config.redis.url = "redis://127.0.0.1:1".into();
    config.redis.connect_max = Duration::from_millis(500);
    let report = check(&config, Path::new("nearshore.toml"), false).await;
    let failed: Vec<_> = report
        .items
        .iter()
        .filter(|item| item.mark == Mark::Fail)
        .collect();
    let names: Vec<_> = failed.iter().map(|item| item.item.as_str()).collect();
    assert_eq!(names, ["kafka", "redis answers"], "{}", report.text());
    assert!(
        failed.iter().all(|item| item.advice.is_some()),
        "{}",
        report.text()
    );
    assert_eq!(report.exit_code(), 1);
}

#[test]
fn a_rule_that_cannot_compare_stored_values_is_warned_of_with_its_field() {
    let rules = serde_json::from_value(serde_json::json!([
        {"id": "pregnancy", "when": {"field": "health.pregnant", "equals": true}, "forbid": {"pus": ["WINE"]}},
        {"id": "adults", "when": {"field": "age", "below": 18}, "required": true, "forbid": {"pus": ["WINE"]}},
    ]))
    .expect("rules");
    let config = Config {
        rules,
        ..Config::default()
    };
    let profiles = |all: serde_json::Value| serde_json::from_value(all).expect("profiles");
    let fine: Vec<_> =
        profiles(serde_json::json!([{"age": 40}, {"health": "{\"pregnant\": false}"}]));
    let items = rules::judge(&config, &fine);
    assert_eq!((items.len(), items[0].mark), (1, Mark::Ok));
    let bad: Vec<_> =
        profiles(serde_json::json!([{"health": "unknown", "age": "old"}, {"health": 3}, {}]));
    let items = rules::judge(&config, &bad);
    let found: Vec<_> = items
        .iter()
        .map(|item| (item.mark, item.found.as_str()))
        .collect();
    let off = "rule \"pregnancy\" cannot compare the value of health.pregnant in 2 of 3 stored profiles; the rule is off for these users";
    let closed = "rule \"adults\" cannot compare the value of age in 1 of 3 stored profiles; it is required, so it forbids for these users";
    assert_eq!(found, [(Mark::Warn, off), (Mark::Warn, closed)]);
}

#[test]
fn a_rule_or_a_segment_whose_field_no_profile_has_is_warned_of() {
    let config = Config {
        rules: serde_json::from_value(serde_json::json!([
            {"id": "pregnancy", "when": {"field": "heatlh.pregnant", "equals": true}, "forbid": {"pus": ["WINE"]}},
            {"id": "adults", "when": {"field": "age", "below": 18}, "forbid": {"pus": ["WINE"]}},
        ]))
        .expect("rules"),
        segments: serde_json::from_value(serde_json::json!([
            {"id": "old", "when": [{"field": "age", "at_least": 65}, {"field": "Region", "equals": "n"}]},
        ]))
        .expect("segments"),
        ..Config::default()
    };
    let profiles: Vec<_> = serde_json::from_value(serde_json::json!([
        {"age": 40, "health": {"pregnant": true}}, {"region": "n", "age": null},
    ]))
    .expect("profiles");
    let items = rules::judge(&config, &profiles);
    let found: Vec<_> = items.iter().map(|item| item.found.as_str()).collect();
    let rule = "rule \"pregnancy\" asks for heatlh.pregnant, which none of 2 stored profiles has";
    let segment = "segment \"old\" asks for Region, which none of 2 stored profiles has";
    assert_eq!(found, [rule, segment]);
    let advice = items[0].advice.as_deref().unwrap_or_default();
    assert!(advice.contains("age, health, region"), "{advice}");
}

/// Writes a model without weights worth the name: its headers are what is checked.
fn checked(file: &str, content: &[u8]) -> Vec<(Mark, String, Option<String>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(file);
    std::fs::write(&path, content).expect("written");
    let mut config = Config::default();
    let arm = serde_json::json!({ "id": "a", "epoch": 1, "template": "t.j2", "model": path,
        "weights": { "model": 1.0 } });
    config.arms = vec![serde_json::from_value(arm).expect("an arm")];
    let items = model::files(&config).into_iter();
    let of_model = items.filter(|item| item.item.starts_with("model "));
    of_model
        .map(|item| (item.mark, item.found, item.advice))
        .collect()
}

#[test]
fn a_file_that_is_no_model_fails_by_what_it_is() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7\n";
    let found = checked("m.gguf", pointer);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].0 == Mark::Fail && found[0].1.contains("Git LFS") && found[0].2.is_some(),
        "{found:?}"
    );
}

#[test]
fn a_chat_model_without_a_template_is_a_warning() {
    let whole = include_bytes!("../../../crates/engine/tests/fixtures/models/qwen2.gguf");
    let found = checked("m.gguf", whole);
    assert!(found.len() == 1 && found[0].0 == Mark::Ok, "{found:?}");
    let key = b"tokenizer.chat_template";
    let at = whole.windows(key.len()).position(|some| some == key);
    let mut without = whole.to_vec();
    // A key of another name.
    without[at.expect("it has a template") + key.len() - 1] = b'X';
    let found = checked("m.gguf", &without);
    assert_eq!(
        found.iter().map(|item| item.0).collect::<Vec<_>>(),
        [Mark::Ok, Mark::Warn],
        "{found:?}"
    );
    assert!(found[1].1.starts_with("no chat template"), "{found:?}");
    let advice = found[1].2.as_deref().unwrap_or_default();
    assert!(
        advice.starts_with("add the chat_template.jinja"),
        "{advice}"
    );
}

#[test]
fn a_model_of_another_hash_fails_by_arm_and_hash() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.gguf");
    std::fs::write(&path, "abc").expect("written");
    let right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let checked = |sha256: &str, weight: f64| {
        let arm = serde_json::json!({ "id": "a", "epoch": 1, "template": "t.j2", "model": path, "sha256": sha256,
            "weights": { "model": weight, "demand": 1.0 } });
        let config = Config {
            arms: vec![serde_json::from_value(arm).expect("an arm")],
            ..Config::default()
        };
        let mut items = model::files(&config).into_iter();
        let item = items.find(|item| item.item == "arm a: sha256");
        item.expect("it is checked")
    };
    let same = checked(right, 1.0);
    assert_eq!(
        (same.mark, same.found.as_str()),
        (Mark::Ok, "1 file, 0.0 MB, as configured")
    );
    let wrong = checked(&right.replace('b', "c"), 1.0);
    assert_eq!(wrong.mark, Mark::Fail);
    assert!(wrong.found.contains(right), "{}", wrong.found);
    assert!(
        wrong
            .advice
            .is_some_and(|advice| advice.starts_with("Fetch the model again"))
    );
    let unused = checked(&right.replace('b', "c"), 0.0);
    assert!(
        unused.mark == Mark::Ok && unused.found.starts_with("not compared"),
        "{}",
        unused.found
    );
}

/// A template is tried when it is loaded, by the configuration and by every process.
#[test]
fn a_prompt_template_that_does_not_end_is_refused() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    for source in [endless.to_owned(), format!("a\n---assistant---\n{endless}")] {
        let loaded = nearshore_core::list::prompt::Template::load(&source, "endless.j2");
        let Err(error) = loaded else {
            panic!("{source} is accepted");
        };
        let error = format!("{:#}", anyhow::Error::new(error));
        assert!(
            error.contains("endless.j2") && error.contains("fuel"),
            "{error}"
        );
    }
}
