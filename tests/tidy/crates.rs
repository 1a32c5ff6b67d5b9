//! What the library crates may depend on, read from their manifests.
//!
//! `deny.toml` says who may use a library; here it is said what a crate must not know, so that a new dependency of ours
//! is a decision.

use std::path::Path;

/// Each library crate, and the beginnings of what it must not depend on.
const WALLS: [(&str, &[&str]); 5] = [
    (
        "core",
        &[
            "tokio",
            "rdkafka",
            "redis",
            "candle",
            "hyper",
            "tracing",
            "metrics",
            "nearshore-",
        ],
    ),
    (
        "engine",
        &[
            "rdkafka",
            "redis",
            "hyper",
            "nearshore-kafka",
            "nearshore-redis",
            "nearshore-remote",
        ],
    ),
    (
        "kafka",
        &[
            "redis",
            "candle",
            "hyper",
            "nearshore-engine",
            "nearshore-redis",
            "nearshore-remote",
        ],
    ),
    (
        "redis",
        &[
            "rdkafka",
            "candle",
            "hyper",
            "nearshore-engine",
            "nearshore-kafka",
            "nearshore-remote",
        ],
    ),
    (
        "remote",
        &[
            "rdkafka",
            "redis",
            "candle",
            "tracing",
            "metrics",
            "nearshore-engine",
            "nearshore-kafka",
            "nearshore-redis",
        ],
    ),
];

/// Dependencies of a manifest that are shipped and that begin with one of `forbidden`.
fn forbidden(manifest: &str, forbidden: &[&str]) -> Vec<String> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            line.clone_into(&mut section);
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        let is_named = forbidden.iter().any(|begin| name.starts_with(begin));
        if section.ends_with("dependencies]") && !section.contains("dev-") && is_named {
            found.push(name.to_owned());
        }
    }
    found
}

#[test]
fn no_crate_depends_on_what_it_must_not_know() {
    for (name, walls) in WALLS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("crates")
            .join(name);
        let manifest = std::fs::read_to_string(path.join("Cargo.toml")).expect("a manifest");
        assert_eq!(forbidden(&manifest, walls), [""; 0], "crates/{name}");
    }
}

#[test]
fn a_forbidden_dependency_is_found_and_one_of_tests_is_not() {
    let manifest = "[package]\nname = \"redis\"\n[dependencies]\nserde = \"1\"\nredis.workspace = true\n\
                    rdkafka = { version = \"1\" }\n[dev-dependencies]\ncandle-core = \"1\"\n";
    assert_eq!(
        forbidden(manifest, &["redis", "rdkafka", "candle"]),
        ["redis", "rdkafka"]
    );
}
