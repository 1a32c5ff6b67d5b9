//! Promise: `nearshore align --head` learns from hidden states what the mixture lacks, goes on after a kill, gives
//! noise no weight, and what does not fit is refused.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::evaluate::Slice;

fn nearshore(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(args)
        .output()
        .expect("the binary starts")
}

/// A shop whose arm has a table for a model: its hidden states are noise.
pub struct Shop {
    folder: tempfile::TempDir,
    files: [PathBuf; 3],
}

impl Shop {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Slice::read().json_lines(folder.path());
        let shop = Self { folder, files };
        shop.template("I bought:{% for event in events %} {{ event.name }}{% endfor %}");
        shop.arm("");
        shop
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn template(&self, text: &str) {
        std::fs::write(self.path("t.j2"), text).expect("written");
    }

    /// Writes the configuration, with more keys of the arm.
    fn arm(&self, more: &str) {
        self.arm_of("table:0s", more);
    }

    /// The same with another model.
    pub fn arm_of(&self, model: &str, more: &str) {
        let text = format!(
            "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"{model}\"\n{more}\n"
        );
        std::fs::write(self.path("nearshore.toml"), text).expect("written");
    }

    /// The words of a command on the shop's log.
    pub fn words(&self, command: &[&str], more: &[&str]) -> Vec<String> {
        let text = |path: &Path| path.to_str().expect("a path").to_owned();
        let [events, profiles, catalog] = self.files.each_ref().map(|path| text(path));
        let config = text(&self.path("nearshore.toml"));
        let files = [
            "--config",
            &config,
            "--events",
            &events,
            "--profiles",
            &profiles,
            "--catalog",
            &catalog,
        ];
        let words = [command, &files, more].concat();
        words.into_iter().map(String::from).collect()
    }

    pub fn run(&self, command: &[&str], more: &[&str]) -> Output {
        let words = self.words(command, more);
        nearshore(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn align(&self, out: &str, more: &[&str]) -> Output {
        let out = self.path(out);
        let out = out.to_str().expect("a path");
        let head = [
            "align",
            "--json",
            "--no-erases",
            "--samples",
            "300",
            "--arm",
            "a",
            "--head",
            "--out",
            out,
        ];
        self.run(&head, more)
    }

    pub fn check(&self) -> (i32, String) {
        let config = self.path("nearshore.toml");
        let output = nearshore(&[
            "check",
            "--offline",
            "--config",
            config.to_str().expect("a path"),
        ]);
        let code = output.status.code().expect("it ends");
        (code, String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

pub fn report(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

pub fn refused(output: &Output) -> String {
    assert!(matches!(output.status.code(), Some(1 | 2)), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn a_head_on_noise_has_no_weight_and_a_killed_run_goes_on_to_the_same_artefact() {
    let shop = Shop::new();
    let few = ["--head-users", "240", "--head-visible", "1,3"];
    let found = report(&shop.align("one", &few));
    let head = &found["head"];
    let buckets = head["buckets"].as_object().expect("buckets");
    assert_eq!(buckets.keys().collect::<Vec<_>>(), ["1", "3"]);
    for (bucket, fit) in buckets {
        assert!(
            fit["reason"].as_str().is_some_and(|why| !why.is_empty()),
            "{bucket}: {fit}"
        );
    }
    let weights = found["buckets"].as_object().expect("buckets").values();
    for fit in weights {
        assert!(fit["weights"].get("head").is_none(), "{fit}");
    }
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    let written = std::fs::read(shop.path("one").join(&name).join("head.nshd")).expect("a head");
    let (all, kept) = (number(&head["computed"]), number(&head["kept"]));
    assert!(all > 100, "{head}");
    // As a kill leaves it: the last row is not whole.
    let cache = shop.path("one").join("hidden-a.nshs");
    let bytes = std::fs::read(&cache).expect("hidden states");
    std::fs::write(shop.path("cut"), &bytes[..bytes.len() * 2 / 3]).expect("written");
    let path = shop.path("cut");
    let path = path.to_str().expect("a path");
    let output = shop.align("two", &[&few[..], &["--head-cache", path]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let again = report(&output);
    assert!(
        said.contains("were no whole rows and are cut off"),
        "{said}"
    );
    assert_eq!(again["artefact"], found["artefact"]);
    let computed = number(&again["head"]["computed"]);
    assert!((1..all / 2).contains(&computed), "{computed} of {all}");
    assert_eq!(computed + number(&again["head"]["kept"]), all + kept);
    assert_eq!(
        std::fs::read(path).expect("hidden states").len(),
        bytes.len()
    );
    let same = std::fs::read(shop.path("two").join(&name).join("head.nshd")).expect("a head");
    assert!(same == written, "the same head from the same log");
    // Of another template nothing is mixed in, and nothing is written.
    shop.template("My basket:{% for event in events %} {{ event.name }}{% endfor %}");
    let why = refused(&shop.align("three", &[&few[..], &["--head-cache", path]].concat()));
    assert!(
        why.contains("hidden states of the template") && why.contains("--head-cache"),
        "{why}"
    );
    assert!(!shop.path("three").exists());
}

#[test]
fn a_head_is_served_as_a_term_and_one_that_does_not_fit_is_refused() {
    let shop = Shop::new();
    let found = report(&shop.align("out", &["--head-users", "240", "--head-visible", "3"]));
    let artefact = format!(
        "artefact = \"out/artefact-{}\"",
        found["artefact"].as_str().expect("a hash")
    );
    // The gate gave it no weight, so an arm of this mode would be the mixture under another name.
    shop.arm(&format!("{artefact}\nmode = \"head\""));
    let (code, said) = shop.check();
    assert!(
        code == 1 && said.contains("the artefact's head has no weight"),
        "{said}"
    );
    shop.arm("mode = \"head\"");
    let (code, said) = shop.check();
    assert!(code != 0 && said.contains("needs artefact"), "{said}");
    // By hand it has one.
    let by_hand = format!(
        "{artefact}\nmode = \"head\"\nweights = {{ demand = 1.0, model = 1.0, head = 0.5 }}"
    );
    shop.arm(&by_hand);
    let (code, said) = shop.check();
    assert!(code == 0 && said.contains("learned from"), "{said}");
    let order = [
        "--json",
        "--visible",
        "3",
        "--no-align",
        "--no-curve",
        "--cold",
        "0",
        "--model-users",
        "30",
    ];
    let result = report(&shop.run(&["evaluate"], &order));
    assert_eq!(result["illegal"], 0);
    let routes = result["cells"][0]["routes"].as_array().expect("routes");
    let recall = |name: &str| {
        let route = routes.iter().find(|route| route["route"] == name);
        let route = route.unwrap_or_else(|| panic!("no route {name}"));
        route["recall"][1]["mean"].as_f64().expect("a number")
    };
    let [with, without, alone] = ["arm a", "arm a without head", "head of arm a"].map(recall);
    // Noise alone ranks worse than demand, and as a part of the list it changes little.
    assert!(
        alone < without && (with - without).abs() < 0.1,
        "{with}, {without}, {alone}"
    );
    shop.template("My basket:{% for event in events %} {{ event.name }}{% endfor %}");
    let (code, said) = shop.check();
    assert!(
        code == 1 && said.contains("head was trained with the template"),
        "{said}"
    );
    let why = refused(&shop.run(&["evaluate"], &order));
    assert!(why.contains("head was trained with the template"), "{why}");
}
