//! Checks `[text]`: its files and limits, and that no arm weighs what no matcher reads.
//!
//! Invariant: a configuration that was accepted has a matcher and a table that can be read. Whether the matcher is of
//! this catalogue is for `nearshore check` and for the processes that read the catalogue.

use super::Config;
use crate::files;
use nearshore_core::list::terms::Weights;
use nearshore_core::names::matcher::Model;
use nearshore_core::names::meaning::NeedTable;

type Found = Vec<(String, String)>;

/// Advice for a matcher that is not there.
const FIT: &str = "make it with `nearshore match --labels FILE --fit FILE`";

/// The matcher of `[text]`, or why it cannot be used.
pub(crate) fn matcher(config: &Config) -> Result<Model, String> {
    let path = config.resolve(&config.text.matcher);
    let text = files::read_filled(&path, FIT).map_err(|error| format!("{error}; {FIT}"))?;
    let model = Model::read(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    match model.encoder {
        None => Ok(model),
        Some(_) => Err(format!(
            "{} was fitted with an encoder, which is not asked here; fit it without --encoder",
            path.display()
        )),
    }
}

/// The need terms of `[text]`, or why they cannot be used.
pub(crate) fn needs(config: &Config) -> Result<NeedTable, String> {
    if config.text.terms.is_empty() {
        return Ok(NeedTable::default());
    }
    let path = config.resolve(&config.text.terms);
    let text = files::read(&path).map_err(|error| error.to_string())?;
    NeedTable::read(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// What is wrong with `[text]`.
pub(super) fn verify(config: &Config, found: &mut Found) {
    let text = &config.text;
    let is_on = !text.matcher.is_empty();
    let mut wrong = |key: &str, what: String| found.push((key.to_owned(), what));
    if is_on && let Err(what) = matcher(config) {
        wrong("text.matcher", what);
    }
    if let Err(what) = needs(config) {
        wrong("text.terms", what);
    }
    if !is_on && (!text.terms.is_empty() || !text.profile_fields.is_empty()) {
        let what =
            format!("is empty, so no text is read; {FIT}, or leave terms and profile_fields out");
        wrong("text.matcher", what);
    }
    if text.users_min < 2 {
        let what = "must be at least 2: what one user typed is shared with nobody";
        wrong("text.users_min", what.to_owned());
    }
    if text.cache_texts == 0 {
        wrong("text.cache_texts", "must be at least 1".to_owned());
    }
    if text.half_life.is_zero() {
        wrong("text.half_life", "must be longer than 0s".to_owned());
    }
    for (nth, path) in text.profile_fields.iter().enumerate() {
        if path.trim().is_empty() {
            wrong(
                &format!("text.profile_fields[{nth}]"),
                "is empty; give a field".to_owned(),
            );
        }
    }
    for (nth, arm) in config.arms.iter().enumerate() {
        let weights = Weights::beside_artefact(&arm.weights);
        if !is_on && weights.is_ok_and(|weights| weights.use_matcher()) {
            let what = "meant needs a matcher of texts: name its file in text.matcher";
            wrong(&format!("arms[{nth}].weights"), what.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is wrong with a configuration, by key.
    fn wrong(toml: &str) -> Vec<(String, String)> {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |file: &str, text: &str| {
            std::fs::write(folder.path().join(file), text).expect("written");
        };
        write("other.json", "{}");
        write("terms.jsonl", "{\"term\":\"a\"}\n");
        let config: Config = toml::from_str(toml).expect("a configuration");
        let config = Config {
            base: folder.path().to_owned(),
            ..config
        };
        let mut found = Found::new();
        verify(&config, &mut found);
        found
    }

    #[test]
    fn without_the_section_nothing_is_wrong_and_each_fault_names_its_key() {
        assert_eq!(wrong(""), []);
        for (toml, key, says) in [
            (
                "matcher = \"none.json\"",
                "text.matcher",
                "none.json cannot be read",
            ),
            (
                "matcher = \"other.json\"",
                "text.matcher",
                "not a model of `nearshore match --fit`",
            ),
            (
                "profile_fields = [\"notes\"]",
                "text.matcher",
                "is empty, so no text is read",
            ),
            ("users_min = 1", "text.users_min", "must be at least 2"),
            ("cache_texts = 0", "text.cache_texts", "at least 1"),
            ("half_life = \"0s\"", "text.half_life", "longer than 0s"),
        ] {
            let found = wrong(&format!("[text]\n{toml}\n"));
            assert_eq!(found.len(), 1, "{toml}: {found:?}");
            assert!(found[0].0 == key && found[0].1.contains(says), "{found:?}");
        }
        let found = wrong("[text]\nterms = \"terms.jsonl\"\nprofile_fields = [\" \"]\n");
        let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            ["text.terms", "text.matcher", "text.profile_fields[0]"]
        );
        assert!(
            found[0]
                .1
                .contains("terms.jsonl: line 1: \"a\" has no products"),
            "{found:?}"
        );
    }

    #[test]
    fn a_weight_of_what_no_matcher_reads_is_refused() {
        let arm = json!({"id": "a", "epoch": 1, "template": "t", "model": "m", "weights": {"meant": 1.0}});
        let config = Config {
            arms: vec![serde_json::from_value(arm).expect("an arm")],
            ..Config::default()
        };
        let mut found = Found::new();
        verify(&config, &mut found);
        assert_eq!(found[0].0, "arms[0].weights");
    }
}
