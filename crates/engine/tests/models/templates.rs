//! The chat template that a folder means, and models that should have one.

use std::path::Path;

use nearshore_engine::inspect;
use nearshore_engine::search::constrained::Constrained;
use serde_json::{Value, json};

use crate::files::{REFERENCE, fixture_json, write_folder};

/// A template that says where it is from.
fn from(place: &str) -> String {
    format!("[{place}]{{{{ messages[0].content }}}}")
}

/// Writes a model's folder with this value of `chat_template` in its tokenizer's configuration, and more files.
fn folder(chat_template: &Value, files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write_folder(folder.path(), &fixture_json("folders.json")["cases"][0], 1);
    let config = match chat_template {
        Value::Null => json!({ "eos_token": "</s>" }),
        value => json!({ "eos_token": "</s>", "chat_template": value }),
    };
    write(folder.path(), "tokenizer_config.json", &config.to_string());
    for (name, text) in files {
        write(folder.path(), name, text);
    }
    folder
}

fn write(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("created");
    std::fs::write(file, text).expect("written");
}

fn error(folder: &Path) -> String {
    let loaded = Constrained::load(folder, REFERENCE);
    let error = loaded.err().expect("refused").to_string();
    let inspected = inspect(folder).expect_err("refused").to_string();
    assert_eq!(inspected, error);
    error
}

#[test]
fn the_template_is_read_from_where_transformers_reads_it() {
    let config = Value::from(from("config"));
    let named = json!([
        { "name": "tool_use", "template": from("tools") },
        { "name": "default", "template": from("list") },
    ]);
    let by_name = json!({ "default": from("by name"), "rag": from("rag") });
    let jinja = ("chat_template.jinja", from("jinja"));
    let json = (
        "chat_template.json",
        json!({ "chat_template": from("json") }).to_string(),
    );
    let extra = ("additional_chat_templates/tool_use.jinja", from("extra"));
    /// Files beside the configuration, by name.
    type Files<'a> = &'a [&'a (&'a str, String)];
    let cases: [(&Value, Files, &str); 9] = [
        (&config, &[], "[config]hi"),
        (&named, &[], "[list]hi"),
        (&by_name, &[], "[by name]hi"),
        (&config, &[&jinja, &json], "[jinja]hi"),
        (&named, &[&jinja], "[jinja]hi"),
        (&config, &[&jinja, &extra], "[jinja]hi"),
        (&config, &[&json], "[config]hi"),
        (&Value::Null, &[&json], "[json]hi"),
        (&Value::Null, &[], "hi"),
    ];
    for (config, files, expected) in cases {
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        let folder = folder(config, &files);
        let model = Constrained::load(folder.path(), REFERENCE).expect(expected);
        let chat = model.text().render_chat(&"hi".into()).expect("chat");
        assert_eq!(chat, expected, "{files:?}");
    }
}

#[test]
fn templates_among_which_none_is_meant_are_refused_by_their_names() {
    type Files = &'static [(&'static str, &'static str)];
    let cases: [(Value, Files, &str); 8] = [
        (
            json!([{ "name": "chatml", "template": from("x") }, { "name": "rag", "template": from("x") }]),
            &[],
            "none is called \"default\"; there are \"chatml\", \"rag\"",
        ),
        (json!({ "chatml": from("x") }), &[], "there are \"chatml\""),
        (json!([]), &[], "there are none"),
        (json!(["text"]), &[], "name and template"),
        (
            json!(7),
            &[],
            "key chat_template: neither a text nor a list",
        ),
        (
            Value::from(from("config")),
            &[("additional_chat_templates/tool_use.jinja", "x")],
            "there are \"tool_use\"",
        ),
        (
            Value::Null,
            &[(
                "chat_template.json",
                "{\"chat_template\": [{\"name\": \"a\", \"template\": \"b\"}]}",
            )],
            "chat_template.json: chat templates: none is called",
        ),
        (
            Value::Null,
            &[("chat_template.json", "{")],
            "chat_template.json",
        ),
    ];
    for (config, files, expected) in cases {
        let error = error(folder(&config, files).path());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_template_that_loses_the_prompt_is_refused() {
    for template in [
        "",
        "{{ bos_token }}<|user|>",
        "{% if tools %}{{ messages[0].content }}{% endif %}",
    ] {
        let error = error(folder(&template.into(), &[]).path());
        assert!(error.contains("without the message's text"), "{error}");
        assert!(
            error.contains("tokenizer_config.json: chat template"),
            "{error}"
        );
    }
    let error = error(
        folder(
            &Value::Null,
            &[("chat_template.jinja", "{{ messages[0].name }}")],
        )
        .path(),
    );
    assert!(error.contains("without the message's text"), "{error}");
}

#[test]
fn a_model_of_chats_without_a_template_is_warned_of() {
    let warnings = |folder: &Path| {
        let inspected = inspect(folder).expect("fine").warnings;
        let model = Constrained::load(folder, REFERENCE).expect("loads");
        assert_eq!(model.loading().warnings, inspected);
        inspected
    };
    let base = folder(&Value::Null, &[]);
    assert_eq!(warnings(base.path()), Vec::<String>::new());
    let named = base.path().join("Tiny-1B-Instruct");
    write_folder(
        &named_folder(&named),
        &fixture_json("folders.json")["cases"][0],
        1,
    );
    write(&named, "tokenizer_config.json", "{\"eos_token\": \"</s>\"}");
    let found = warnings(&named);
    assert!(
        found.len() == 1 && found[0].contains("\"instruct\""),
        "{found:?}"
    );
    let template = from("x");
    write(&named, "chat_template.jinja", &template);
    assert_eq!(warnings(&named), Vec::<String>::new());
    let by_token = folder(&Value::Null, &[]);
    let file = by_token.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&file).expect("there");
    let text = text.replace("\"milk\"", "\"<|im_start|>\"");
    std::fs::write(&file, text).expect("written");
    let found = warnings(by_token.path());
    assert!(
        found.len() == 1 && found[0].contains("<|im_start|>"),
        "{found:?}"
    );
}

fn named_folder(path: &Path) -> std::path::PathBuf {
    std::fs::create_dir_all(path).expect("created");
    path.to_owned()
}
