//! Checks the modes of arms, and those whose model writes, here or elsewhere: what goes together, and the files that they
//! name.
//!
//! Invariant: an arm with an endpoint, a matcher or settings of decoding has the mode `free`. Whether a server answers,
//! and whether a model has room for prompt and text, is for `nearshore check`.

use std::path::Path;

use super::Config;
use crate::files;
use nearshore_core::list::prompt::{Arm, Endpoint, Template};
use nearshore_core::list::terms::HEAD;
use nearshore_core::shop::arms::delay_of;

type Found = Vec<(String, String)>;

/// What is wrong with arms of the mode `free`, or with keys that only they have.
pub(super) fn verify(config: &Config, found: &mut Found) {
    for (nth, arm) in config.arms.iter().enumerate() {
        let at = |key: &str| format!("arms[{nth}].{key}");
        let adapter = arm.adapter.as_ref().filter(|_| arm.endpoint.is_none());
        let file = adapter.map(|folder| config.resolve(folder).join("adapter_config.json"));
        if let Some(what) = file.and_then(|file| unreadable(&file)) {
            found.push((at("adapter"), what));
        }
        let mut wrong = |key: &str, what: &str| found.push((at(key), what.to_owned()));
        if !["constrained", "free", HEAD].contains(&arm.mode.as_str()) {
            let what = "is not a mode; write \"constrained\", \"head\" or \"free\"";
            wrong("mode", &format!("{:?} {what}", arm.mode));
        }
        if arm.mode == HEAD && arm.artefact.is_none() {
            wrong(
                "mode",
                "\"head\" needs artefact: the folder that `nearshore align --head` wrote",
            );
        }
        if arm.is_free() {
            free(config, (nth, arm), found);
            match &arm.endpoint {
                Some(endpoint) => elsewhere(config, (nth, arm, endpoint), found),
                None => here((nth, arm), found),
            }
            continue;
        }
        if arm.endpoint.is_some() {
            wrong(
                "endpoint",
                "is only for mode = \"free\": a server writes text, and cannot be searched",
            );
        }
        if arm.matcher.is_some() {
            wrong("matcher", "is only for mode = \"free\"");
        }
        if arm.decoding.is_some() {
            wrong(
                "decoding",
                "is only for mode = \"free\": other arms write no text",
            );
        }
    }
}

/// What is wrong with any arm of the mode `free`.
fn free(config: &Config, (nth, arm): (usize, &Arm), found: &mut Found) {
    let at = |key: &str| format!("arms[{nth}].{key}");
    let matcher = arm.matcher.as_ref().map(|file| config.resolve(file));
    if let Some(what) = matcher.and_then(|path| unreadable(&path)) {
        found.push((at("matcher"), what));
    }
    if arm.matcher.is_none() {
        let what =
            "is missing: names are matched by a model of `nearshore match --fit`; name its file";
        found.push((at("matcher"), what.into()));
    }
    if arm.calibration.is_some() {
        let what = "has no effect on a model that writes, which gives no scores; leave it out";
        found.push((at("calibration"), what.into()));
    }
}

/// What is wrong with an arm whose model writes here.
fn here((nth, arm): (usize, &Arm), found: &mut Found) {
    let at = |key: &str| format!("arms[{nth}].{key}");
    for (key, what) in arm.decoding.unwrap_or_default().problems() {
        found.push((at(&format!("decoding.{key}")), what));
    }
    if delay_of(&arm.model).is_some() {
        let what =
            "is a table of scores, which writes no text; name a model's file, or add endpoint";
        found.push((at("model"), what.into()));
    }
}

/// What is wrong with an arm whose model writes elsewhere.
fn elsewhere(config: &Config, (nth, arm, endpoint): (usize, &Arm, &Endpoint), found: &mut Found) {
    let at = |key: &str| format!("arms[{nth}].{key}");
    for (key, what) in endpoint.problems() {
        found.push((at(&format!("endpoint.{key}")), what));
    }
    let named = [
        ("endpoint.api_key_file", &endpoint.api_key_file),
        ("endpoint.ca_file", &endpoint.ca_file),
    ];
    for (key, file) in named {
        let path = file.as_ref().map(|file| config.resolve(file));
        if let Some(what) = path.and_then(|path| unreadable(&path)) {
            found.push((at(key), what));
        }
    }
    if arm.decoding.is_some() {
        let what = "is for a model that runs here; max_tokens, temperature and seed of a server are in endpoint";
        found.push((at("decoding"), what.into()));
    }
    if arm.sha256.is_some() {
        let what = "has no effect on a model elsewhere, whose files are not here; leave it out";
        found.push((at("sha256"), what.into()));
    }
    if arm.adapter.is_some() {
        let what = "is merged into a model that is loaded here; name the adapter's model at the server instead";
        found.push((at("adapter"), what.into()));
    }
    // A template that cannot be read or parsed is told by its own check.
    let template = files::read(&config.resolve(&arm.template)).ok();
    let template = template.and_then(|text| Template::load(&text, &arm.template).ok());
    if template.is_some_and(|template| template.begins_answer()) {
        let what = "has text after ---assistant---, which a server's chat does not take; move it before that line";
        found.push((at("template"), what.into()));
    }
}

fn unreadable(path: &Path) -> Option<String> {
    let error = std::fs::metadata(path).err()?;
    Some(format!("{} cannot be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What is wrong with one arm, whose template is there.
    fn wrong(arm: Value) -> Vec<String> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("here")).expect("made");
        for (file, text) in [
            ("t.j2", "Write."),
            ("begins.j2", "Write.\n---assistant---\nNext:"),
            ("match.json", "{}"),
            ("here/adapter_config.json", "{}"),
        ] {
            std::fs::write(folder.path().join(file), text).expect("written");
        }
        let mut whole = json!({"id": "a", "epoch": 1, "template": "t.j2", "model": "m"});
        let keys = arm.as_object().expect("keys").clone();
        whole.as_object_mut().expect("keys").extend(keys);
        let config = Config {
            arms: vec![serde_json::from_value(whole).expect("an arm")],
            base: folder.path().to_owned(),
            ..Config::default()
        };
        let mut found = Found::new();
        verify(&config, &mut found);
        found.into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn an_arm_has_an_endpoint_only_if_it_is_free() {
        let endpoint = json!({"url": "http://models:8000/v1"});
        let free = json!({"mode": "free", "endpoint": endpoint, "matcher": "match.json"});
        assert_eq!(wrong(free.clone()), [""; 0]);
        assert_eq!(wrong(json!({})), [""; 0]);
        assert_eq!(wrong(json!({"endpoint": endpoint})), ["arms[0].endpoint"]);
        assert_eq!(wrong(json!({"matcher": "match.json"})), ["arms[0].matcher"]);
        assert_eq!(wrong(json!({"adapter": "here"})), [""; 0]);
        assert_eq!(wrong(json!({"adapter": "absent"})), ["arms[0].adapter"]);
        assert_eq!(wrong(json!({"mode": "write"})), ["arms[0].mode"]);
        let with = |key: &str, value: Value| {
            let mut arm = free.clone();
            arm[key] = value;
            wrong(arm)
        };
        assert_eq!(with("matcher", json!("absent.json")), ["arms[0].matcher"]);
        assert_eq!(with("matcher", Value::Null), ["arms[0].matcher"]);
        assert_eq!(
            with("calibration", json!("c.json")),
            ["arms[0].calibration"]
        );
        let hash = json!("0".repeat(64));
        assert_eq!(with("sha256", hash), ["arms[0].sha256"]);
        assert_eq!(with("adapter", json!("here")), ["arms[0].adapter"]);
        assert_eq!(with("template", json!("begins.j2")), ["arms[0].template"]);
        assert_eq!(
            with("decoding", json!({"max_tokens": 9})),
            ["arms[0].decoding"]
        );
        let wrong = json!({"url": "models", "concurrency": 0, "api_key_file": "absent"});
        let keys = ["url", "concurrency", "api_key_file"];
        let keys = keys.map(|key| format!("arms[0].endpoint.{key}"));
        assert_eq!(with("endpoint", wrong), keys);
    }

    #[test]
    fn a_free_arm_without_an_endpoint_writes_by_its_own_file() {
        let free = json!({"mode": "free", "matcher": "match.json"});
        assert_eq!(wrong(free.clone()), [""; 0]);
        assert_eq!(wrong(json!({"mode": "free"})), ["arms[0].matcher"]);
        let with = |key: &str, value: Value| {
            let mut arm = free.clone();
            arm[key] = value;
            wrong(arm)
        };
        let sampled = json!({"max_tokens": 128, "temperature": 0.7, "top_p": 0.9, "seed": 4});
        assert_eq!(with("decoding", sampled), [""; 0]);
        let wrong_keys = json!({"max_tokens": 0, "temperature": 3.0, "top_p": 2.0});
        let keys = ["max_tokens", "temperature", "top_p"];
        let keys = keys.map(|key| format!("arms[0].decoding.{key}"));
        assert_eq!(with("decoding", wrong_keys), keys);
        assert_eq!(
            with("decoding", json!({"top_p": 0.9})),
            ["arms[0].decoding.top_p"]
        );
        assert_eq!(with("model", json!("table:10ms")), ["arms[0].model"]);
        assert_eq!(
            with("calibration", json!("c.json")),
            ["arms[0].calibration"]
        );
        // The start of an answer and a known file are for a model that runs here.
        assert_eq!(with("template", json!("begins.j2")), [""; 0]);
        assert_eq!(with("sha256", json!("0".repeat(64))), [""; 0]);
        let decoding = json!({"decoding": {"max_tokens": 9}});
        assert_eq!(wrong(decoding), ["arms[0].decoding"]);
    }
}
