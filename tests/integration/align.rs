//! Promise: `nearshore align` learns from a log, writes the same artefact each time, and nothing broken is served.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nearshore_core::text::vectors::Vectors;
use serde_json::{Value, json};

use crate::evaluate::Slice;
use crate::harness::variable;

fn nearshore(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(args)
        .output()
        .expect("the binary starts")
}

fn align(files: &[PathBuf; 3], out: &Path, more: &[&str]) -> Output {
    let [events, profiles, catalog] = files.each_ref().map(|path| path.to_str().expect("a path"));
    let out = out.to_str().expect("a path");
    let mut args = vec!["align", "--json", "--samples", "300", "--out", out];
    args.extend([
        "--events",
        events,
        "--profiles",
        profiles,
        "--catalog",
        catalog,
    ]);
    args.extend(more);
    nearshore(&args)
}

fn report(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The files of an artefact's folder with their content, sorted.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn an_artefact_is_a_function_of_the_log_and_its_weights_help() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let found = report(&align(&files, &one, &[]));
    assert_eq!(found, report(&align(&files, &two, &[])));
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    assert_eq!(content(&one.join(&name)), content(&two.join(&name)));
    assert_ne!(
        found["artefact"],
        report(&align(&files, &two, &["--seed", "2"]))["artefact"]
    );
    let most = &found["buckets"]["20"];
    let gain = most["nats"]["low"].as_f64().expect("a number");
    assert!(gain > 0.0, "{most}");
    assert!(
        most["weights"]["repeat"].as_f64().expect("it helps") > 0.0,
        "{most}"
    );
    for (bucket, fit) in found["buckets"].as_object().expect("buckets") {
        for (term, fitted) in fit["fitted"].as_object().expect("terms") {
            let told = fitted["low"].as_f64() > Some(0.0) || fitted["high"].as_f64() < Some(0.0);
            let used = fit["weights"].get(term).is_some();
            assert!(
                told || !used || term == "demand",
                "{bucket} {term}: {fitted}"
            );
        }
    }
}

#[test]
fn with_an_encoder_an_artefact_has_vectors_of_names_and_of_values_that_several_share() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let profiles = std::fs::read_to_string(&files[1]).expect("profiles");
    let first: Value = serde_json::from_str(profiles.lines().next().expect("one")).expect("JSON");
    let secret = json!({"key": first["key"], "value": {"age": "45-54", "diary": "saw a heron"}});
    std::fs::write(&files[1], format!("{profiles}{secret}\n")).expect("written");
    let encoder = variable("NEARSHORE_TEST_ENCODER");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let found = report(&align(&files, &one, &["--encoder", &encoder]));
    assert_eq!(
        found,
        report(&align(&files, &two, &["--encoder", &encoder]))
    );
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    assert_eq!(content(&one.join(&name)), content(&two.join(&name)));
    for (bucket, fit) in found["buckets"].as_object().expect("buckets") {
        let fitted = fit["fitted"].as_object().expect("terms");
        let has = ["text", "typical"].map(|term| fitted.contains_key(term));
        assert_eq!(has, [!fitted.is_empty(); 2], "{bucket}");
    }
    let bytes = std::fs::read(one.join(&name).join("vectors.nstv")).expect("vectors");
    let vectors = Vectors::decode(&bytes).expect("just written");
    assert_eq!(vectors.width(), 384);
    let tables = std::fs::read(one.join(&name).join("tables.json")).expect("tables");
    let tables: Value = serde_json::from_slice(&tables).expect("JSON");
    for product in tables["products"].as_array().expect("products") {
        let product = product.as_str().expect("an id");
        assert!(vectors.get(product).is_some(), "{product}");
    }
    assert!(vectors.get("age 45-54").is_some());
    assert!(vectors.get("diary saw a heron").is_none(), "of one person");
    let without = report(&align(&files, &two, &[]));
    assert_ne!(found["artefact"], without["artefact"]);
    let path = two.join(format!(
        "artefact-{}",
        without["artefact"].as_str().expect("a hash")
    ));
    assert!(!path.join("vectors.nstv").exists());
}

#[test]
fn a_broken_artefact_is_refused_with_its_file_and_what_to_do() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let found = report(&align(&files, folder.path(), &[]));
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    std::fs::write(folder.path().join("t.j2"), "{{ segment }}").expect("written");
    let config = folder.path().join("nearshore.toml");
    let text = format!(
        "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"none.gguf\"\nartefact = \"{name}\"\n"
    );
    std::fs::write(&config, &text).expect("written");
    let check = || {
        let output = nearshore(&[
            "check",
            "--offline",
            "--config",
            config.to_str().expect("a path"),
        ]);
        let code = output.status.code().expect("it ends");
        (code, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = check();
    // The model is not there, and not needed: no weight is its.
    assert!(code == 0 && said.contains("learned from"), "{said}");
    let tables = folder.path().join(&name).join("tables.json");
    let whole = std::fs::read(&tables).expect("tables");
    std::fs::write(&tables, &whole[..whole.len() / 2]).expect("written");
    let (code, said) = check();
    assert!(
        code == 1 && said.contains("tables.json is not the file"),
        "{said}"
    );
    std::fs::remove_dir_all(folder.path().join(&name)).expect("removed");
    let (code, said) = check();
    assert!(code == 1 && said.contains("artefact.json"), "{said}");
    std::fs::write(&config, text + "weights = { demand = 1.0 }\n").expect("written");
    let (code, said) = check();
    assert!(
        code == 2 || said.contains("remove `weights` or `artefact`"),
        "{said}"
    );
}

#[test]
fn too_small_a_log_is_told_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let files = [
        file(
            "e.csv",
            "user,timestamp,type,sku\nu,1700000000000,purchase,1\nu,1710000000000,purchase,1\n",
        ),
        file("p.csv", "user,age\nu,30\n"),
        file("c.csv", "sku,pu,stock\n1,TEA,4\n2,MILK,4\n"),
    ];
    let out = folder.path().join("out");
    for (more, says) in [
        (&[][..], "weights cannot be fitted; use demand alone"),
        (&["--window", "3650days"], "shorter than one window"),
    ] {
        let output = align(&files, &out, more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(says) && !error.contains("panicked"),
            "{error}"
        );
    }
    assert!(!out.exists());
}

#[test]
fn a_model_is_asked_and_has_a_weight_only_where_it_helps() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    write(
        "t.j2",
        "Bought: {% for e in events %}{{ e.name }}, {% endfor %}",
    );
    // A model whose scores depend on nothing but the prompt's and the name's hash.
    let arm = "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"table:0ms\"\n";
    let config = write("nearshore.toml", arm);
    let asked = ["--config", &config, "--arm", "a", "--model-users", "60"];
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let found = report(&align(&files, &one, &asked));
    assert_eq!(found, report(&align(&files, &two, &asked)));
    let fits = found["model"].as_object().expect("buckets");
    assert_eq!(fits.len(), 6);
    for (bucket, fit) in fits {
        let weights = &found["buckets"][bucket]["weights"];
        assert!(fit["samples"].as_u64() <= Some(60), "{bucket}: {fit}");
        assert_ne!(fit["reason"], "", "{bucket}: {fit}");
        assert!(weights.get("model").is_none(), "{bucket}: {weights}");
    }
    let least = fits["3"]["samples"].as_u64();
    assert!(least > Some(30), "{least:?} cases with three products");
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    assert!(!one.join(&name).join("references.json").exists());

    let unknown = align(&files, &one, &["--config", &config, "--arm", "b"]);
    let error = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_ne!(unknown.status.code(), Some(0));
    assert!(
        error.contains("--arm \"b\" is not one of [[arms]]"),
        "{error}"
    );
}
