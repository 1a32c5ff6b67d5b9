//! Promise: `NEARSHORE_MAX_ISA` caps the vector instructions of a process, and the lists stay.

use serde_json::Value;

use crate::harness::variable;

/// The precision and the names that `nearshore try` gives a prompt under a cap.
fn tried(folder: &std::path::Path, cap: &str) -> (String, Vec<String>) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(["try", "--json", "--top", "3", "--model"])
        .arg(variable("NEARSHORE_TEST_MODEL"))
        .arg("--names")
        .arg(folder.join("names"))
        .arg("--prompts")
        .arg(folder.join("prompts"))
        .env("NEARSHORE_MAX_ISA", cap)
        .output()
        .expect("the binary starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{cap}: {error}");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let [answer, totals] = &lines[..] else {
        panic!("an answer and the totals: {text}");
    };
    let names = answer["names"].as_array().expect("names").iter();
    let names = names.map(|name| name["name"].as_str().expect("a name").to_owned());
    let precision = totals["totals"]["precision"]
        .as_str()
        .expect("a precision")
        .to_owned();
    (precision, names.collect())
}

#[test]
fn a_process_uses_no_better_instructions_than_it_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
    write("names", "MILK\nBREAD\nCHEESE\nDOG FOOD\nCAT LITTER\n").expect("written");
    write("prompts", "My dog is hungry. I buy\n").expect("written");
    let (plain, first) = tried(folder.path(), "plain");
    let (avx2, second) = tried(folder.path(), "avx2");
    let (_, third) = tried(folder.path(), "avx512");
    // AVX2 multiplies integers of 16 bits, plain instructions have floats of 32 bits only.
    assert_eq!((&*plain, &*avx2), ("bf16 weights, f32 products", "int16"));
    assert_eq!((&first, &second), (&second, &third));
    let refused = std::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .arg("config")
        .env("NEARSHORE_MAX_ISA", "avx1024")
        .output()
        .expect("the binary starts");
    assert_eq!(refused.status.code(), Some(2));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        error.contains("set one of plain, avx2, avxvnni, avx512"),
        "{error}"
    );
}
