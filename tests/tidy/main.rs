//! Keeps the walls of the house, so that memory need not: reads the sources and fails with file and line.
//!
//! It reads text, not types: comments and strings are blanked first, then words are looked for. What it
//! decides from: the three groups of `src/lib.rs`.

mod promises;
mod scan;
mod walls;

use std::path::{Path, PathBuf};

use scan::Source;
use walls::{findings, header, layers, purity};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    for entry in entries {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_walls_stand() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lib = std::fs::read_to_string(root.join("src/lib.rs")).expect("lib.rs");
    let layers = layers(&lib);
    let mut paths = Vec::new();
    for folder in ["src", "tests", "benches"].map(|folder| root.join(folder)) {
        if folder.is_dir() {
            sources(&folder, &mut paths);
        }
    }
    paths.sort();
    assert!(
        paths.len() > 30 && layers.len() > 15,
        "{} files, {layers:?}",
        paths.len()
    );
    let mut lines = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("readable");
        let name = path
            .strip_prefix(root)
            .expect("it is inside")
            .display()
            .to_string();
        for finding in findings(&Source::new(&name, &text), &layers) {
            lines.push(format!("{name}:{}: {}", finding.line, finding.what));
        }
    }
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

const LIB: &str = "// pure: values\npub mod fold;\npub mod lanes;\n// edges: outside\npub mod config;\npub mod log;\npub mod store;\n// roles: wiring\npub mod ingest;\n";

fn check(path: &str, text: &str, expected: &[(usize, &str)]) {
    let text = format!("//! It decides.\n{text}");
    let found = findings(&Source::new(path, &text), &layers(LIB));
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
fn a_wall_is_not_crossed() {
    check(
        "src/fold.rs",
        "use crate::lanes::Lane;\n/// [`crate::store`]\nfn f() { \"crate::store\"; }",
        &[],
    );
    check(
        "src/fold.rs",
        "use crate::store::Error;",
        &[(2, "fold (Pure) names store (Edge)")],
    );
    check(
        "src/fold.rs",
        "\nuse crate::{lanes::{Lane, config}, ingest};",
        &[(3, "names ingest (Role)")],
    );
    check("src/fold.rs", "use super::store;", &[(2, "names store")]);
    check(
        "src/fold/deep.rs",
        "use super::store;\nuse super::super::log::Log;",
        &[(3, "names log")],
    );
    check(
        "src/store/redis/users.rs",
        "use crate::log::Log;",
        &[(2, "store (Edge) names log (Edge)")],
    );
    check(
        "src/store/mod.rs",
        "use crate::config::Config;\nuse crate::store::keys;",
        &[],
    );
    check("src/config/mod.rs", "pub kafka: crate::log::Settings,", &[]);
    check(
        "src/log/mod.rs",
        "fn f() { crate::ingest::run() }",
        &[(2, "names ingest (Role)")],
    );
    check("src/ingest.rs", "use crate::{log, store, fold};", &[]);
    check(
        "src/fold.rs",
        "#[cfg(test)]\nmod tests {\n use crate::store::MemoryStore;\n}\n",
        &[],
    );
}

#[test]
fn only_the_owner_names_a_crate() {
    check("src/log/poll.rs", "use rdkafka::ClientConfig;", &[]);
    check(
        "src/ingest.rs",
        "use rdkafka::ClientConfig;",
        &[(2, "only log names rdkafka")],
    );
    check("src/config/mod.rs", "fn f(c: &C) { c.redis.url; }", &[]);
    check(
        "src/log/mod.rs",
        "use redis::Cmd;",
        &[(2, "only store names redis")],
    );
    check(
        "src/ingest.rs",
        "\nlet t: candle_core::Tensor;",
        &[(3, "only engine names candle_core")],
    );
}

#[test]
fn pure_code_names_nothing_outside() {
    for word in [
        "async fn f() {}",
        "use std::fs;",
        "let t = Instant::now;",
        "std::env::var(n)",
        "tokio::spawn(x)",
        "tracing::info!()",
        "metrics::counter!()",
        "use std::collections::HashMap;",
        "let s: HashSet<u8>;",
        "jiff::Timestamp::now()",
    ] {
        let source = Source::new("src/fold.rs", word);
        assert!(!purity(&source, &layers(LIB)).is_empty(), "{word}");
        assert!(
            purity(&Source::new("src/log/a.rs", word), &layers(LIB)).is_empty(),
            "{word}"
        );
    }
    check(
        "src/fold.rs",
        "// lookup only: never iterated\nlet m: HashMap<u8, u8>;\nlet asynchronous = 1; // no async\n",
        &[],
    );
}

#[test]
fn what_grows_too_large_is_told() {
    let lines = |count: usize| "    x();\n".repeat(count);
    check(
        "src/log/a.rs",
        &format!("fn long() {{\n{}}}\n", lines(68)),
        &[],
    );
    check(
        "src/log/a.rs",
        &format!("fn long() {{\n{}}}\n", lines(69)),
        &[(2, "long has 71 lines")],
    );
    check("src/log/a.rs", &"\n".repeat(600), &[(601, "601 lines")]);
    check(
        "src/log/a.rs",
        "fn f(&mut self, a: Map<A, B>, b: (C, D), c: [u8; 4], d: impl Fn(A, B) -> C) -> [u8; 2];",
        &[],
    );
    check(
        "src/log/a.rs",
        "fn f<T: Fn(A)>(a: A, b: B, c: C, d: D, e: E) {}",
        &[],
    );
    check(
        "src/log/a.rs",
        "\nfn f(a: A, b: B, c: C, d: D, e: E) {}",
        &[(3, "f has 5 parameters")],
    );
}

#[test]
fn unfinished_and_careless_words_are_told() {
    check("src/log/a.rs", "fn f() {\n todo!() }", &[(3, "todo!")]);
    check("src/log/a.rs", "fn f() { x.unwrap() }", &[(2, ".unwrap()")]);
    check(
        "src/log/a.rs",
        "fn f() { x.unwrap_or(1); \"todo!\"; 'a'; b'\"'; r#\"dbg!\"#; }",
        &[],
    );
    check(
        "src/log/a.rs",
        "#[cfg(test)]\nmod tests {\n fn f() { x.unwrap() }\n}",
        &[],
    );
    check("src/log/tests.rs", "fn f() { x.unwrap() }", &[]);
    check("tests/a.rs", "#[ignore]\nfn f() {}", &[(2, "#[ignore]")]);
    check("tests/a.rs", "#[ignore = \"needs a GPU\"]\nfn f() {}", &[]);
    check(
        "src/log/a.rs",
        "fn f<'a>(x: &'a str) { dbg!(x) }",
        &[(2, "dbg!")],
    );
}

#[test]
fn a_log_line_that_names_somebody_is_told() {
    let told = [(2, "a log line names a user")];
    check(
        "src/ingest/a.rs",
        "fn f() { tracing::warn!(%user, \"late\"); }",
        &told,
    );
    check(
        "src/ingest/a.rs",
        "fn f() { tracing::info!(\n\"of {user}\"); }",
        &told,
    );
    check(
        "src/ingest/a.rs",
        "fn f() { tracing::error!(id = key, \"late\"); }",
        &[(2, "a log line names a key")],
    );
    check(
        "src/ingest/a.rs",
        "fn f() { tracing::info!(users = 3, \"the user is {users}\"); tracing::debug!(user); }",
        &[],
    );
}

#[test]
fn a_module_without_a_header_is_told() {
    let source = Source::new("src/log/a.rs", "use std::fmt;\n");
    assert_eq!(header(&source).len(), 1);
}
