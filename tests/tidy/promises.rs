//! Checks that the tests, scripts and pages which `docs/promises.md` names exist: a promise whose test was renamed or
//! removed has no test.
//!
//! The page writes a test as `path/of/file.rs::name`, between backticks.

use std::path::Path;

/// Paths of this repository between backticks, each with the name of a test if it has one.
fn named(page: &str) -> Vec<(String, Option<String>)> {
    let spans = page.split('`').skip(1).step_by(2);
    let of_repository = |span: &&str| {
        ["src/", "crates/", "tests/", "scripts/", "docs/"]
            .iter()
            .any(|folder| span.starts_with(folder))
    };
    spans
        .filter(of_repository)
        .map(|span| {
            // Arguments follow after a blank.
            let span = span.split(' ').next().unwrap_or(span);
            match span.split_once("::") {
                Some((file, test)) => (file.to_owned(), Some(test.to_owned())),
                None => (span.to_owned(), None),
            }
        })
        .collect()
}

fn missing(root: &Path, (file, test): &(String, Option<String>)) -> Option<String> {
    let Ok(text) = std::fs::read_to_string(root.join(file)) else {
        return (!root.join(file).is_dir()).then(|| format!("{file} does not exist"));
    };
    let test = test.as_ref()?;
    let at = text.find(&format!("fn {test}("));
    let Some(at) = at else {
        return Some(format!("{file} has no test {test}"));
    };
    // Its attributes are on the lines before it, also inside a `proptest!`.
    let before = &text[..at];
    let marked = before.rfind("#[").is_some_and(|mark| {
        before[mark..].matches('\n').count() <= 2 && before[mark..].contains("test")
    });
    (!marked).then(|| format!("{file}: {test} is not a test"))
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/promises.md")).expect("docs/promises.md");
    let named = named(&page);
    assert!(
        named.len() > 30,
        "only {} names found in docs/promises.md",
        named.len()
    );
    let wrong: Vec<String> = named.iter().filter_map(|it| missing(root, it)).collect();
    assert!(wrong.is_empty(), "docs/promises.md: {}", wrong.join("\n"));
}

#[test]
fn a_missing_test_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = "`tests/tidy/promises.rs::named` `tests/tidy/promises.rs::missing_test` `tests/missing.rs` \
                `tests/tidy/promises.rs::a_missing_test_is_found` `scripts/test --exec x`";
    let wrong: Vec<String> = named(page)
        .iter()
        .filter_map(|it| missing(root, it))
        .collect();
    assert_eq!(
        wrong,
        [
            "tests/tidy/promises.rs: named is not a test",
            "tests/tidy/promises.rs has no test missing_test",
            "tests/missing.rs does not exist",
        ]
    );
}
