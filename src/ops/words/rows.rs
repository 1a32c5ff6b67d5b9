//! Reads rows with named fields from JSON lines and CSV.
//!
//! Invariant: equal rows give equal fields in both formats: an empty cell is absent, as null is. It does not know which
//! fields matter.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde_json::{Map, Value};

use super::Problem;
use crate::files;

/// A row with its place.
#[derive(Debug)]
pub(super) struct Row<'a> {
    path: &'a Path,
    line: usize,
    fields: Map<String, Value>,
}

impl Row<'_> {
    /// A problem of this row.
    pub(super) fn problem(&self, what: impl Into<String>) -> Problem {
        problem(self.path, self.line, what)
    }

    /// A field's text; a number is its digits. `None` if it is absent, null or empty.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(self.problem(format!("{name:?} is neither a text nor a number"))),
        }
    }

    /// A field's text, which must be there.
    pub(super) fn needed(&self, name: &str) -> Result<String, Problem> {
        let text = self.text(name)?;
        text.ok_or_else(|| self.problem(format!("{name:?} is missing")))
    }

    /// All fields with texts, but those named; with the fields of an object `attributes`.
    pub(super) fn others(&self, but: &[&str]) -> Vec<(String, String)> {
        let attributes = self.fields.get("attributes").and_then(Value::as_object);
        let all = self.fields.iter().chain(attributes.into_iter().flatten());
        let texts = all.filter(|(name, _)| !but.contains(&name.as_str()));
        let texts = texts.filter_map(|(name, value)| {
            let name = name.strip_prefix("attributes.").unwrap_or(name);
            Some((name.to_owned(), value.as_str()?.to_owned()))
        });
        texts.collect()
    }
}

fn problem(path: &Path, line: usize, what: impl Into<String>) -> Problem {
    Problem::Row {
        path: path.display().to_string(),
        line,
        what: what.into(),
    }
}

/// Reads a file; `each` may refuse a row.
pub(super) fn read<'a>(
    path: &'a Path,
    each: &mut dyn FnMut(Row<'a>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending.map(str::to_ascii_lowercase).as_deref() {
        Some("jsonl" | "ndjson") => json_lines(path, each),
        Some("csv") => csv_rows(path, each),
        _ => Err(Problem::Ending(path.into())),
    }
}

fn json_lines<'a>(
    path: &'a Path,
    each: &mut dyn FnMut(Row<'a>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let opened = File::open(path).map_err(|source| files::Error::Read {
        path: path.display().to_string(),
        source,
    })?;
    for line in files::lines(BufReader::with_capacity(1 << 16, opened), path) {
        let (line, text) = line?;
        if text.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(&text) {
            Ok(Value::Object(fields)) => each(Row {
                path,
                line,
                fields: flat(fields),
            })?,
            Ok(_) => return Err(problem(path, line, "not a JSON object")),
            Err(error) => return Err(problem(path, line, error.to_string())),
        }
    }
    Ok(())
}

/// The fields of an exported record: those of its value, and its key as `sku`.
fn flat(mut fields: Map<String, Value>) -> Map<String, Value> {
    let Some(Value::Object(_)) = fields.get("value") else {
        return fields;
    };
    let (key, value) = (fields.remove("key"), fields.remove("value"));
    let Some(Value::Object(mut value)) = value else {
        return fields;
    };
    if let Some(key) = key {
        value.insert("sku".into(), key);
    }
    value
}

fn csv_rows<'a>(
    path: &'a Path,
    each: &mut dyn FnMut(Row<'a>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let text = files::read(path)?;
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let wrong = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        problem(path, usize::try_from(line).unwrap_or(0), error.to_string())
    };
    let names: Vec<String> = reader
        .headers()
        .map_err(wrong)?
        .iter()
        .map(|name| name.trim().to_owned())
        .collect();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let line = record.position().map_or(0, csv::Position::line);
        let cells = names
            .iter()
            .zip(&record)
            .filter(|(_, cell)| !cell.is_empty());
        let fields = cells.map(|(name, cell)| (name.clone(), Value::from(cell)));
        each(Row {
            path,
            line: usize::try_from(line).unwrap_or(0),
            fields: fields.collect(),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Texts = Vec<(usize, Option<String>)>;

    fn texts(name: &str, content: &str) -> Result<Texts, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        let mut found = Vec::new();
        read(&path, &mut |row| {
            found.push((row.line, row.text("text")?));
            Ok(())
        })
        .map_err(|e| e.to_string().replace(&path.display().to_string(), "F"))?;
        Ok(found)
    }

    #[test]
    fn both_formats_give_the_same_rows() {
        let json = texts(
            "a.jsonl",
            "{\"text\":\"tea\"}\n\n{\"text\":null}\n{\"text\":7}\n",
        );
        let expected = [(1, Some("tea")), (3, None), (4, Some("7"))];
        let owned = |(line, text): (usize, Option<&str>)| (line, text.map(str::to_owned));
        assert_eq!(json.expect("read"), expected.map(owned));
        let csv = texts("a.csv", "text,pu\ntea,A\n\"\",B\n7,\n");
        let expected = [(2, Some("tea")), (3, None), (4, Some("7"))];
        assert_eq!(csv.expect("read"), expected.map(owned));
        let record = texts("a.jsonl", "{\"key\":\"1\",\"value\":{\"text\":\"tea\"}}");
        assert_eq!(record.expect("read"), [(1, Some("tea".to_owned()))]);
    }

    #[test]
    fn a_row_that_cannot_be_read_is_named() {
        for (name, content, expected) in [
            (
                "a.jsonl",
                "{\"text\":\"tea\"}\n[]",
                "F:2: not a JSON object",
            ),
            ("a.jsonl", "{", "F:1: EOF"),
            ("a.jsonl", "{\"text\":[]}", "F:1: \"text\" is neither"),
            ("a.csv", "text,pu\na\n", "F:2: CSV error"),
            ("a.txt", "", "F ends in none of .jsonl"),
        ] {
            let error = texts(name, content).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
