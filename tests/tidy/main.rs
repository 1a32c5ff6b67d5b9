//! Checks rules that neither the compiler nor clippy can check; a failure names file and line.
//!
//! It reads text, not types: comments and strings are blanked first, then words are searched. Crates separate the
//! layers, clippy checks functions, parameters and calls (`Cargo.toml`, `clippy.toml`). Here are module heads, log
//! lines that name users, file lengths, import circles, `pub` items that only their own crate uses, and promises that
//! name tests.

#![allow(unreachable_pub)] // Nothing can import a test binary.

mod crates;
mod promises;
mod scan;
mod walls;

use std::path::{Path, PathBuf};

use scan::Source;
use walls::{circles, findings, header, unused};

fn paths(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the folder exists");
    for entry in entries {
        let path = entry.expect("the file is readable").path();
        if path.is_dir() {
            paths(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "crates"] {
        paths(&root.join(folder), &mut found);
    }
    found.sort();
    assert!(found.len() > 250, "{} files", found.len());
    let source = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("the file is readable");
        let name = path
            .strip_prefix(root)
            .expect("the file is in the repository");
        Source::new(&name.display().to_string(), &text)
    };
    found.iter().map(source).collect()
}

#[test]
fn every_file_obeys_the_rules() {
    let mut lines = Vec::new();
    for source in sources() {
        for finding in findings(&source) {
            lines.push(format!(
                "{}:{}: {}",
                source.path, finding.line, finding.what
            ));
        }
    }
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

/// Compares the findings in a file with this text with lines and parts of messages.
#[test]
fn no_import_circle_joins_two_folders() {
    let found = circles(&sources());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_is_pub_is_used_by_another_crate() {
    let found = unused(&sources());
    let lines: Vec<String> = found
        .iter()
        .map(|(path, finding)| format!("{path}:{}: {}", finding.line, finding.what))
        .collect();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

fn check(path: &str, text: &str, expected: &[(usize, &str)]) {
    let text = format!("//! It decides.\n{text}");
    let found = findings(&Source::new(path, &text));
    let found: Vec<_> = found.iter().map(|f| (f.line, f.what.as_str())).collect();
    assert_eq!(found.len(), expected.len(), "{path}: {found:?}");
    for ((line, what), (expected_line, part)) in found.iter().zip(expected) {
        assert!(
            line == expected_line && what.contains(part),
            "{path}: {found:?}"
        );
    }
}

#[test]
fn a_member_that_imports_another_is_found() {
    check(
        "src/members/generate/mod.rs",
        "use crate::members::ingest::Error;",
        &[(2, "generate imports ingest")],
    );
    check(
        "src/members/ingest/mod.rs",
        "use crate::members::ingest::records;",
        &[],
    );
    check(
        "src/members/loops.rs",
        "use crate::members::ingest::Ingest;",
        &[],
    );
}

#[test]
fn an_import_circle_is_found_with_its_files() {
    let files = [
        ("crates/core/src/a/one.rs", "use crate::b::{two::X, three};"),
        ("crates/core/src/b/two.rs", "fn f() { crate::a::one::y() }"),
        (
            "crates/core/src/b/three.rs",
            "use super::two::X; // crate::a::one",
        ),
        ("crates/core/src/lib.rs", "pub mod a;"),
        // The same module names in another crate.
        ("crates/engine/src/b/two.rs", "use crate::a::one::X;"),
    ];
    let sources = files.map(|(path, text)| Source::new(path, text));
    let found = circles(&sources);
    let [one] = &found[..] else {
        panic!("{found:?}")
    };
    assert!(
        one.contains("a/one.rs") && one.contains("b/two.rs"),
        "{one}"
    );
    let same = [
        ("src/a/one.rs", "use super::two;"),
        ("src/a/two.rs", "use super::one;"),
    ];
    assert!(circles(&same.map(|(path, text)| Source::new(path, text))).is_empty());
}

#[test]
fn a_pub_item_that_only_its_crate_names_is_found() {
    let files = [
        (
            "crates/core/src/a.rs",
            "pub fn used() {}\npub async fn lost() {}\npub(crate) fn own() {}",
        ),
        ("crates/core/src/b.rs", "fn f() { lost() }"),
        ("src/lib.rs", "fn f() { used() } // lost"),
    ];
    let found = unused(&files.map(|(path, text)| Source::new(path, text)));
    let found: Vec<_> = found
        .iter()
        .map(|(path, f)| (path.as_str(), f.line))
        .collect();
    assert_eq!(found, [("crates/core/src/a.rs", 2)]);
}

#[test]
fn a_long_file_is_found() {
    check("crates/kafka/src/a.rs", &"\n".repeat(599), &[]);
    check(
        "crates/kafka/src/a.rs",
        &"\n".repeat(600),
        &[(601, "601 lines")],
    );
}

#[test]
fn a_log_line_that_names_a_user_is_found() {
    let named = [(2, "a log line names a user")];
    check(
        "src/members/ingest/a.rs",
        "fn f() { tracing::warn!(%user, \"late\"); }",
        &named,
    );
    check(
        "src/members/ingest/a.rs",
        "fn f() { tracing::info!(\n\"of {user}\"); }",
        &named,
    );
    check(
        "src/members/ingest/a.rs",
        "fn f() { tracing::error!(id = key, \"late\"); }",
        &[(2, "a log line names a key")],
    );
    check(
        "src/members/ingest/a.rs",
        "fn f() { tracing::info!(users = 3, \"the user is {users}\"); tracing::debug!(user); }",
        &[],
    );
}

#[test]
fn a_module_without_a_head_is_found() {
    let source = Source::new("crates/kafka/src/a.rs", "use std::fmt;\n");
    assert_eq!(header(&source).len(), 1);
}
