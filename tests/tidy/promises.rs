//! Checks that the tests, scripts and pages which `docs/promises.md` and `docs/threat-model.md` name exist: a promise
//! whose test was renamed or removed has no test.
//!
//! The pages write a test as `path/of/file.rs::name`, between backticks.

use std::path::Path;

/// Paths of this repository between backticks, each with the name of a test if it has one.
fn named(page: &str) -> Vec<(String, Option<String>)> {
    let spans = page.split('`').skip(1).step_by(2);
    let of_repository = |span: &&str| {
        [
            "src/", "crates/", "tests/", "scripts/", "docs/", "deploy/", ".ci/",
        ]
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

/// What is wrong with the names on a page that has at least so many.
fn wrong_names(root: &Path, page: &str, least: usize) -> Vec<String> {
    let text = std::fs::read_to_string(root.join(page)).expect("the page exists");
    let named = named(&text);
    assert!(
        named.len() >= least,
        "only {} names found in {page}",
        named.len()
    );
    let wrong = named.iter().filter_map(|it| missing(root, it));
    wrong.map(|what| format!("{page}: {what}")).collect()
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let wrong = wrong_names(root, "docs/promises.md", 100);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let wrong = wrong_names(root, "docs/threat-model.md", 100);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Rows of a page's tables of claims: those whose head ends with `tests`, or has it before the figures.
fn claims(page: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        let cells: Vec<String> = line
            .trim()
            .trim_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect();
        if !line.starts_with('|') {
            inside = false;
        } else if cells.iter().any(|cell| cell == "tests") {
            inside = true;
        } else if inside && !line.starts_with("| ---") {
            rows.push(cells);
        }
    }
    rows
}

#[test]
fn every_claim_of_the_threat_model_names_what_checks_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/threat-model.md")).expect("the page exists");
    let rows = claims(&page);
    assert!(rows.len() > 35, "only {} claims found", rows.len());
    for row in rows {
        let [claim, _, tests] = &row[..] else {
            panic!("not claim, mechanism and tests: {row:?}")
        };
        assert!(
            !named(tests).is_empty(),
            "no test and no script after: {claim}"
        );
    }
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
