//! `docs/promises.md` names tests; a promise whose test was renamed or removed is a promise without one.
//!
//! A test is written `path/of/file.rs::name` in the page; a script or page between backticks must be there, too.

use std::path::Path;

/// What stands between backticks and looks like a file of ours, with the test's name if it has one.
fn named(page: &str) -> Vec<(String, Option<String>)> {
    let spans = page.split('`').skip(1).step_by(2);
    let ours = |span: &&str| {
        ["src/", "crates/", "tests/", "scripts/", "docs/"]
            .iter()
            .any(|folder| span.starts_with(folder))
    };
    spans
        .filter(ours)
        .map(|span| {
            // What follows a blank are arguments.
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
        return (!root.join(file).is_dir()).then(|| format!("{file} is not there"));
    };
    let test = test.as_ref()?;
    let at = text.find(&format!("fn {test}("));
    let Some(at) = at else {
        return Some(format!("{file} has no test {test}"));
    };
    // Within the attributes before it, or inside a `proptest!`.
    let before = &text[..at];
    let marked = before.rfind("#[").is_some_and(|mark| {
        before[mark..].matches('\n').count() <= 2 && before[mark..].contains("test")
    });
    (!marked).then(|| format!("{file}: {test} is no test"))
}

#[test]
fn every_promise_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/promises.md")).expect("docs/promises.md");
    let named = named(&page);
    assert!(
        named.len() > 30,
        "only {} names found: is the page read right?",
        named.len()
    );
    let wrong: Vec<String> = named.iter().filter_map(|it| missing(root, it)).collect();
    assert!(wrong.is_empty(), "docs/promises.md: {}", wrong.join("\n"));
}

#[test]
fn a_test_that_is_not_there_is_told() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = "`tests/tidy/promises.rs::named` `tests/tidy/promises.rs::gone` `tests/gone.rs` \
                `tests/tidy/promises.rs::a_test_that_is_not_there_is_told` `scripts/test --exec x`";
    let wrong: Vec<String> = named(page)
        .iter()
        .filter_map(|it| missing(root, it))
        .collect();
    assert_eq!(
        wrong,
        [
            "tests/tidy/promises.rs: named is no test",
            "tests/tidy/promises.rs has no test gone",
            "tests/gone.rs is not there",
        ]
    );
}
