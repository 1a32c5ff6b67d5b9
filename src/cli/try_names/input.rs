//! Reads the files of `nearshore try`: names, prompts, demand and further terms.
//!
//! Invariant: a name is what it would be in the catalogue: in its normal form, of the same greatest length, and one
//! product however often it is written. A number is what the configuration or the engine accepts.

use std::collections::BTreeMap;
use std::path::Path;

use nearshore_core::list::prompt::written;
use nearshore_core::names::scoring::ScoreRequest;
use nearshore_core::text::normalise;
use nearshore_core::user::event::Limits;

use super::Error;
use crate::files;

/// A prompt, and the names that came true after it, if they are known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prompt {
    /// The prompt.
    pub prompt: nearshore_core::names::scoring::Prompt,
    /// Names that came true; empty if unknown.
    pub truth: Vec<String>,
}

impl Prompt {
    /// The request for the best `n` names.
    pub(super) fn request(&self, n: usize) -> ScoreRequest {
        ScoreRequest {
            prompt: self.prompt.clone(),
            n,
            ..ScoreRequest::default()
        }
    }
}

/// Reads names, one per line, each once; lines that repeat a name are counted on standard error.
pub(super) fn names(path: &Path) -> Result<Vec<String>, Error> {
    let text = files::read_filled(path, WANTED_NAMES)?;
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    let (mut names, mut repeated) = (Vec::new(), Vec::new());
    for (nth, line) in numbered(&text) {
        let name = normalise(line);
        let limit = Limits::default().max_text;
        if name.len() > limit {
            let found = name.len();
            return Err(wrong(
                path,
                nth,
                format!("the name has {found} bytes, more than {limit}"),
            ));
        }
        if name.is_empty() {
            continue;
        }
        match lines.get(&*name) {
            Some(first) => repeated.push((nth, *first)),
            None => {
                lines.insert(name.clone().into_owned(), nth);
                names.push(name.into_owned());
            }
        }
    }
    if names.is_empty() {
        let path = path.display().to_string();
        let wanted = WANTED_NAMES;
        return Err(files::Error::Empty { path, wanted }.into());
    }
    if let Some((nth, first)) = repeated.first() {
        note!(
            "{}: {} lines repeat a name (line {nth} that of line {first}); each of the {} names is scored once",
            path.display(),
            repeated.len(),
            names.len()
        );
    }
    Ok(names)
}

const WANTED_NAMES: &str = "give one name per line";

/// The least share of a name, in place of 0: a term may lower a name's score, but never make it undefined.
const SHARE_MIN: f64 = 1e-30;

/// Reads the demand of names: the natural logarithm of the share of each, in their order. The masses of a name that
/// occurs twice are added, as the purchases of one product are.
pub(super) fn log_demand(path: &Path, names: &[String]) -> Result<Vec<f32>, Error> {
    let mut mass = vec![0f64; names.len()];
    for (nth, pu, value) in values(path, names)? {
        if value < 0.0 {
            let what = format!("the mass {value} is negative: give a number of at least 0");
            return Err(wrong(path, nth, what));
        }
        mass[pu as usize] += f64::from(value);
        if mass[pu as usize] > f64::from(f32::MAX) {
            return Err(wrong(
                path,
                nth,
                "the masses of the name add up to infinity".into(),
            ));
        }
    }
    if mass.iter().all(|mass| *mass == 0.0) {
        return Err(wrong(path, 1, "no name has a mass above 0".into()));
    }
    let total: f64 = mass.iter().sum();
    let log = |mass: f64| (mass / total).max(SHARE_MIN).ln() as f32;
    Ok(mass.into_iter().map(log).collect())
}

/// Reads log-weights of names, each at most once.
pub(super) fn log_weights(path: &Path, names: &[String]) -> Result<Vec<(u32, f32)>, Error> {
    let mut first = BTreeMap::new();
    let mut weights = Vec::new();
    for (nth, pu, value) in values(path, names)? {
        if let Some(before) = first.insert(pu, nth) {
            let what = format!("the name already has a log-weight on line {before}; give one");
            return Err(wrong(path, nth, what));
        }
        weights.push((pu, value));
    }
    Ok(weights)
}

/// Reads lines of a name, a tab and a number: line, PU index and value.
fn values(path: &Path, names: &[String]) -> Result<Vec<(usize, u32, f32)>, Error> {
    let text = files::read_filled(path, "give lines of name<TAB>number")?;
    let indices: BTreeMap<&str, u32> = names.iter().map(String::as_str).zip(0..).collect();
    let mut values = Vec::new();
    for (nth, line) in numbered(&text) {
        let error = |what: &str| wrong(path, nth, what.into());
        // The last tab: a name may have blanks of any kind.
        let (name, value) = (line.trim_end().rsplit_once('\t'))
            .ok_or_else(|| error("want name<TAB>number: there is no tab"))?;
        let value: f32 = (value.trim().parse())
            .map_err(|_| error("want name<TAB>number: the number cannot be read"))?;
        if !value.is_finite() {
            return Err(error("want name<TAB>number: the number is not finite"));
        }
        let pu = (indices.get(&*normalise(name)))
            .ok_or_else(|| error("the name is not in the file of --names"))?;
        values.push((nth, *pu, value));
    }
    Ok(values)
}

/// Reads prompts: a line that starts with `{` is a JSON object, any other line is a prompt itself.
pub(super) fn prompts(path: &Path) -> Result<Vec<Prompt>, Error> {
    let text = files::read_filled(path, "give one prompt per line")?;
    let mut prompts = Vec::new();
    for (nth, line) in numbered(&text) {
        let error = |what: String| wrong(path, nth, what);
        if !line.trim_start().starts_with('{') {
            prompts.push(Prompt {
                prompt: written(line.to_owned(), None).map_err(error)?,
                truth: Vec::new(),
            });
            continue;
        }
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| error(e.to_string()))?;
        let prompt = value.get("prompt").and_then(|prompt| prompt.as_str());
        let prompt = prompt.ok_or_else(|| error("the object has no text \"prompt\"".into()))?;
        if prompt.trim().is_empty() {
            return Err(error("the prompt is empty".into()));
        }
        let assistant = match value.get("assistant") {
            None => None,
            Some(serde_json::Value::String(text)) => Some(text.clone()),
            Some(_) => return Err(error("\"assistant\" is no text".into())),
        };
        prompts.push(Prompt {
            prompt: written(prompt.to_owned(), assistant).map_err(error)?,
            truth: truth(&value)
                .ok_or_else(|| error("\"truth\" is not an array of names".into()))?,
        });
    }
    Ok(prompts)
}

/// The names that came true; none if they are not given, and `None` if they are not an array of texts.
fn truth(value: &serde_json::Value) -> Option<Vec<String>> {
    let Some(given) = value.get("truth").filter(|given| !given.is_null()) else {
        return Some(Vec::new());
    };
    let name = |name: &serde_json::Value| Some(normalise(name.as_str()?).into_owned());
    given.as_array()?.iter().map(name).collect()
}

/// The lines of a text that are not blank, with their numbers from 1.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(nth, line)| (nth + 1, line));
    lines.filter(|(_, line)| !line.trim().is_empty())
}

fn wrong(path: &Path, line: usize, what: String) -> Error {
    Error::Line {
        path: path.display().to_string(),
        line,
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a file of these bytes; an error calls it F.
    fn with<T>(bytes: &[u8], read: impl FnOnce(&Path) -> Result<T, Error>) -> Result<T, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        let named = file.path().display().to_string();
        read(file.path()).map_err(|error| error.to_string().replace(&named, "F"))
    }

    fn names_of(lines: &str) -> Vec<String> {
        with(lines.as_bytes(), names).expect("names")
    }

    #[test]
    fn names_are_those_of_a_catalogue_each_once() {
        let lines = "\u{feff}ASPARAGUS\r\nMEAT  SNACKS\r\nMEAT SNACKS\r\nCaf\u{e9}\r\nCafe\u{301}\r\n\r\nASPARAGUS\r\n";
        assert_eq!(names_of(lines), ["ASPARAGUS", "MEAT SNACKS", "Caf\u{e9}"]);
        let long = format!("TEA\n{}\n", "x".repeat(513));
        let error = with(long.as_bytes(), names).expect_err("too long");
        assert_eq!(error, "F:2: the name has 513 bytes, more than 512");
    }

    #[test]
    fn a_file_without_lines_is_refused() {
        for bytes in [&b""[..], b"\r\n \r\n", b"\xef\xbb\xbf\n"] {
            let said = "F is empty; give one name per line";
            assert_eq!(with(bytes, names).expect_err("no names"), said);
            assert!(with(bytes, prompts).is_err());
            assert!(with(bytes, |path| log_demand(path, &["TEA".into()])).is_err());
            assert!(with(bytes, |path| log_weights(path, &["TEA".into()])).is_err());
        }
        // Characters that cannot be seen are no name.
        assert!(with("\u{200b}\n".as_bytes(), names).is_err());
    }

    #[test]
    fn demand_is_finite_not_negative_and_added_up_per_product() {
        let names = names_of("MEAT SNACKS\nTEA\n");
        let read = |text: &str| with(text.as_bytes(), |path| log_demand(path, &names));
        let logs = read("MEAT  SNACKS\t1.5\r\n\r\nMEAT SNACKS\t1.5\r\nTEA\t1\r\n");
        assert_eq!(logs, Ok(vec![0.75f32.ln(), 0.25f32.ln()]));
        let logs = read("MEAT SNACKS\t3\nTEA\t0\n").expect("a share of 0 has a logarithm, too");
        assert!(
            logs[0] == 0.0 && logs[1].is_finite() && logs[1] < -60.0,
            "{logs:?}"
        );
        for (text, error) in [
            (
                "TEA\t1\nTEA\t-1\n",
                "F:2: the mass -1 is negative: give a number of at least 0",
            ),
            (
                "TEA\tNaN\n",
                "F:1: want name<TAB>number: the number is not finite",
            ),
            (
                "TEA\tinf\n",
                "F:1: want name<TAB>number: the number is not finite",
            ),
            (
                "TEA\t1e39\n",
                "F:1: want name<TAB>number: the number is not finite",
            ),
            (
                "TEA\t3e38\nTEA\t3e38\n",
                "F:2: the masses of the name add up to infinity",
            ),
            (
                "TEA\tmuch\n",
                "F:1: want name<TAB>number: the number cannot be read",
            ),
            ("TEA 1\n", "F:1: want name<TAB>number: there is no tab"),
            ("COFFEE\t1\n", "F:1: the name is not in the file of --names"),
            ("TEA\t0\n", "F:1: no name has a mass above 0"),
        ] {
            assert_eq!(read(text), Err(error.to_owned()));
        }
    }

    #[test]
    fn a_log_weight_is_finite_and_given_once() {
        let names = names_of("MEAT SNACKS\nTEA\n");
        let read = |text: &str| with(text.as_bytes(), |path| log_weights(path, &names));
        assert_eq!(
            read("TEA\t-2\nMEAT\u{a0}SNACKS\t1\n"),
            Ok(vec![(1, -2.0), (0, 1.0)])
        );
        for (text, error) in [
            (
                "TEA\t-inf\n",
                "F:1: want name<TAB>number: the number is not finite",
            ),
            (
                "TEA\t1\nTEA \t1\n",
                "F:2: the name already has a log-weight on line 1; give one",
            ),
        ] {
            assert_eq!(read(text), Err(error.to_owned()));
        }
    }

    #[test]
    fn prompts_are_lines_or_json_and_an_error_names_the_line() {
        let read = |text: &str| with(text.as_bytes(), prompts);
        let text = "\u{feff}one\r\n\r\n {\"prompt\": \"two\\nlines\", \"truth\": [\"a \"]}\r\n";
        let found = read(text).expect("valid");
        let texts: Vec<&str> = found
            .iter()
            .map(|prompt| prompt.prompt.user.as_str())
            .collect();
        assert_eq!(texts, ["one", "two\nlines"]);
        assert_eq!(
            (found[0].truth.len(), &found[1].truth[..]),
            (0, &["a".to_owned()][..])
        );
        for (text, error) in [
            (
                "one\n{\"prompt\": 3}\n",
                "F:2: the object has no text \"prompt\"",
            ),
            ("{\"prompt\": \" \"}\n", "F:1: the prompt is empty"),
            (
                "{\"prompt\": \"a\", \"truth\": [1]}\n",
                "F:1: \"truth\" is not an array of names",
            ),
        ] {
            assert_eq!(read(text).expect_err("refused"), error);
        }
        assert!(read("{\n").is_err());
    }

    #[test]
    fn the_answers_beginning_is_given_apart_and_a_marker_in_a_prompt_is_refused() {
        let read = |text: &str| with(text.as_bytes(), prompts);
        let found = read("{\"prompt\": \"a\", \"assistant\": \"b:\"}\n").expect("valid");
        let prompt = &found[0].prompt;
        assert_eq!(
            (prompt.user.as_str(), prompt.assistant.as_str()),
            ("a", "b:")
        );
        let user = "{\"prompt\": \"---assistant---\", \"assistant\": \"\"}";
        let found = read(user).expect("a user's words");
        assert_eq!(found[0].prompt.user, "---assistant---");
        for joined in [
            "one\n{\"prompt\": \"a\\n---assistant---\\nb\"}",
            "one\n---assistant---\ntwo",
        ] {
            let error = read(joined).expect_err("joined");
            assert!(
                error.starts_with("F:2: the prompt has a line ---assistant---"),
                "{error}"
            );
        }
        assert!(read("{\"prompt\": \"a\", \"assistant\": 1}").is_err());
    }
}
