//! Promise: `nearshore tune` trains an arm's model on the cases of the log, goes on after a kill to the same adapter,
//! which the arm then loads, and what cannot be trained is refused.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::eventually;
use crate::head::{Shop, refused, report};
use crate::process::LIMIT;

/// A model of a few thousand random numbers.
const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/crates/engine/tests/fixtures/models/llama.gguf"
);

fn shop() -> Shop {
    let shop = Shop::new();
    shop.arm_of(
        MODEL,
        "prompt_tokens = 48\nweights = { demand = 1.0, model = 1.0 }",
    );
    shop
}

fn words<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = [
        "--no-erases",
        "--json",
        "--arm",
        "a",
        "--users",
        "24",
        "--visible",
        "3",
        "--steps",
        "12",
        "--batch",
        "2",
        "--checkpoint-every",
        "3",
        "--lora-rank",
        "2",
        "--rate",
        "0.01",
        "--out",
        out,
    ];
    [&words, more].concat()
}

fn bytes(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("adapter_model.safetensors")).expect("an adapter")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_training_goes_on_to_the_same_adapter_and_the_arm_loads_it() {
    let shop = shop();
    let [one, two] = ["one", "two"].map(|name| shop.path(name));
    let [one_text, two_text] = [&one, &two].map(|path| path.display().to_string());
    let found = report(&shop.run(&["tune"], &words(&one_text, &[])));
    assert!(
        found["cases"].as_u64() > Some(4) && found["tune_cases"].as_u64() > Some(0),
        "{found}"
    );
    assert!(
        found["after"].as_f64() <= found["before"].as_f64(),
        "{found}"
    );
    assert!(found["steps"].as_u64() > Some(0), "{found}");

    let mut child = Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(shop.words(&["tune"], &words(&two_text, &[])))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts");
    eventually(LIMIT, || async {
        let is_there = two.join("checkpoint.safetensors").exists();
        is_there.then_some(()).ok_or("no checkpoint".to_owned())
    })
    .await;
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    let again = shop.run(&["tune"], &words(&two_text, &[]));
    assert!(
        refused(&again).contains("resume from it, or give another folder"),
        "{again:?}"
    );
    let resumed = report(&shop.run(&["tune"], &words(&two_text, &["--resume"])));
    assert_eq!(resumed["after"], found["after"]);
    assert_eq!(bytes(&one), bytes(&two));

    let arm = format!(
        "prompt_tokens = 48\nweights = {{ demand = 1.0, model = 1.0 }}\nadapter = \"{one_text}\""
    );
    shop.arm_of(MODEL, &arm);
    let (code, text) = shop.check();
    assert_eq!(code, 0, "{text}");
    // A second arm with the same model, and both beside one copy of its weights.
    let second = "[[arms]]\nid = \"b\"\nepoch = 2\ntemplate = \"t.j2\"";
    let both = format!(
        "{arm}\n{second}\nmodel = \"{MODEL}\"\n{arm}\n[engine]\nshare_adapted = true\nprompts_mb_max = 8"
    );
    shop.arm_of(MODEL, &both.replacen(&one_text, &two_text, 1));
    let (code, text) = shop.check();
    assert_eq!(code, 0, "{text}");
    shop.arm_of(MODEL, &arm);
    let adapted = shop.run(&["tune"], &words(&two_text, &[]));
    assert!(
        refused(&adapted).contains("leave out its adapter"),
        "{adapted:?}"
    );
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let shop = shop();
    let out = shop.path("out").display().to_string();
    for (more, says) in [
        (&["--arm", "b"][..], "there is no such arm"),
        (&["--first-layer", "99"], "layer"),
        (
            &["--full", "--resume", "--lora-rank", "3"],
            "cannot be used with",
        ),
    ] {
        let words = words(&out, &[]);
        let words: Vec<&str> = match more[0] {
            "--arm" => words
                .iter()
                .map(|word| if *word == "a" { "b" } else { *word })
                .collect(),
            "--full" => ["--no-erases", "--arm", "a", "--out", &out]
                .into_iter()
                .chain(more.iter().copied())
                .collect(),
            _ => words.into_iter().chain(more.iter().copied()).collect(),
        };
        let output = shop.run(&["tune"], &words);
        assert!(refused(&output).contains(says), "{more:?}: {output:?}");
    }
    shop.arm_of("table:0s", "weights = { demand = 1.0, model = 1.0 }");
    let table = shop.run(&["tune"], &words(&out, &[]));
    assert!(refused(&table).contains("cannot be trained"), "{table:?}");
    assert!(!shop.path("out").exists(), "nothing is written");
}
