//! Builds a [`Config`] from file and environment, and collects every [`Problem`].
//!
//! Unknown keys are removed first, then each value is parsed alone, so that no problem hides another. What remains is
//! checked by `verify.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use nearshore_core::shop::naming::{Map, Naming};
use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::problem::nearest;
use super::reference::{Known, dotted};
use super::{Config, Place, Problem, env, inputs, verify};
use crate::files;

/// The place of each dotted key. An item of an array is `rules[0]`.
pub(super) type Places = BTreeMap<String, Place>;

pub(super) fn load(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, Vec<Problem>> {
    let file = path.map_or_else(|| "(no file)".to_owned(), |path| path.display().to_string());
    let text = path
        .map_or_else(|| Ok(String::new()), files::read)
        .map_err(|error| vec![unreadable(&file, error)])?;
    let base = path
        .and_then(Path::parent)
        .unwrap_or(Path::new(""))
        .to_owned();
    let (mut table, mut places) = parse(&file, &text)?;
    let known = Known::all();
    let mut problems = env::apply(environment, &known, &mut table, &mut places);
    let mut walk = Walk {
        places: &places,
        file: &file,
        root: &known,
        problems: &mut problems,
    };
    walk.unknown(&mut table, &known, "");
    walk.types(&mut table, &known, "", &[]);
    let mut found;
    let config = match Config::deserialize(Value::Table(table)) {
        Ok(mut config) => {
            config.base = base;
            config.resolve_secrets();
            config.redis.write_version = config.state.write_version;
            match naming(&config) {
                Ok(naming) => config.naming = naming,
                Err(what) => walk.add("catalog.naming", what),
            }
            let (inputs, wrong) = inputs::compile(&config);
            config.topics.inputs = inputs.into();
            found = wrong;
            config
        }
        Err(error) => {
            walk.add("", error.to_string());
            return Err(sorted(problems));
        }
    };
    // A section with a removed value is not checked: its defaults are not what was written.
    let incomplete: BTreeSet<String> = walk
        .problems
        .iter()
        .filter(|problem| !problem.what.starts_with("unknown "))
        .map(|problem| section(&problem.key).to_owned())
        .collect();
    found.extend(verify::verify(&config));
    for (key, what) in found {
        if !incomplete.contains(section(&key)) {
            walk.add(&key, what);
        }
    }
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(sorted(problems))
    }
}

/// The map that `catalog.naming` names, or what is wrong with it.
fn naming(config: &Config) -> Result<Option<Arc<Naming>>, String> {
    if config.catalog.naming.is_empty() {
        return Ok(None);
    }
    let path = config.resolve(&config.catalog.naming);
    let text = files::read(&path).map_err(|error| error.to_string())?;
    let map = Map::read(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(Arc::new(Naming::new(map))))
}

/// The problem of a file that cannot be read as a text.
fn unreadable(file: &str, error: files::Error) -> Problem {
    let (place, what, hint) = match error {
        files::Error::Encoding { damage, .. } => {
            let place = Place::At {
                file: file.into(),
                line: damage.line,
                column: damage.column,
            };
            (place, damage.to_string(), None)
        }
        files::Error::Read { source, .. } => {
            let hint = "name the file with --config".to_owned();
            let what = format!("cannot be read: {source}");
            (Place::File(file.into()), what, Some(hint))
        }
        empty @ files::Error::Empty { .. } => (Place::File(file.into()), empty.to_string(), None),
    };
    Problem {
        place,
        key: String::new(),
        what,
        hint,
    }
}

/// The first part of a dotted key.
fn section(key: &str) -> &str {
    key.split(['.', '[']).next().unwrap_or(key)
}

fn sorted(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort();
    problems.dedup();
    problems
}

/// Parses the file into values and places. After a syntax error nothing else is checked.
fn parse(file: &str, text: &str) -> Result<(Table, Places), Vec<Problem>> {
    let (spanned, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let mut places = Places::new();
        note_places(spanned.get_ref(), "", &Lines { file, text }, &mut places);
        if let Ok(table) = text.parse() {
            return Ok((table, places));
        }
    }
    let lines = Lines { file, text };
    Err(errors
        .into_iter()
        .map(|error| Problem {
            place: match error.span() {
                Some(span) => lines.place(span.start),
                None => Place::File(file.into()),
            },
            key: String::new(),
            what: format!("not valid TOML: {}", error.message().replace('\n', ", ")),
            hint: None,
        })
        .collect())
}

struct Lines<'a> {
    file: &'a str,
    text: &'a str,
}

impl Lines<'_> {
    fn place(&self, byte: usize) -> Place {
        let before = self.text.get(..byte).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        Place::At {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
        }
    }
}

fn note_places(table: &DeTable<'_>, path: &str, lines: &Lines<'_>, places: &mut Places) {
    for (key, value) in table {
        let path = dotted(path, key.get_ref());
        places.insert(path.clone(), lines.place(key.span().start));
        note_value(value, &path, lines, places);
    }
}

fn note_value(value: &Spanned<DeValue<'_>>, path: &str, lines: &Lines<'_>, places: &mut Places) {
    match value.get_ref() {
        DeValue::Table(table) => note_places(table, path, lines, places),
        DeValue::Array(items) => {
            for (nth, item) in items.iter().enumerate() {
                let path = format!("{path}[{nth}]");
                places.insert(path.clone(), lines.place(item.span().start));
                note_value(item, &path, lines, places);
            }
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}

struct Walk<'a> {
    places: &'a Places,
    file: &'a str,
    root: &'a Known,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    /// Removes unknown keys from `table`.
    fn unknown(&mut self, table: &mut Table, known: &Known, path: &str) {
        if *known == Known::Free {
            return;
        }
        table.retain(|key, value| {
            let path = dotted(path, key);
            let Some(known_child) = known.child(key) else {
                let hint = self.suggest(key, known);
                self.problems.push(Problem {
                    place: self.place(&path),
                    key: path,
                    what: "unknown key".into(),
                    hint,
                });
                return false;
            };
            match value {
                Value::Table(child) => self.unknown(child, known_child, &path),
                Value::Array(items) if matches!(known_child, Known::Many(_)) => {
                    for (nth, item) in items.iter_mut().enumerate() {
                        if let Value::Table(item) = item {
                            self.unknown(item, known_child, &format!("{path}[{nth}]"));
                        }
                    }
                }
                _ => {}
            }
            true
        });
    }

    /// Suggests a similar key of the same table, or the table that this key belongs to.
    fn suggest(&self, key: &str, known: &Known) -> Option<String> {
        if let Some(near) = nearest(key, known.keys()) {
            return Some(format!("did you mean {near}?"));
        }
        let elsewhere = self.root.settable("");
        let owner = elsewhere
            .iter()
            .find(|path| path.rsplit('.').next() == Some(key))?;
        Some(format!("did you mean {owner}?"))
    }

    /// Removes from `table` each value that [`Config`] does not accept; each value is parsed alone.
    fn types(&mut self, table: &mut Table, known: &Known, path: &str, above: &[String]) {
        table.retain(|key, value| {
            let path = dotted(path, key);
            let mut trail = above.to_vec();
            trail.push(key.to_owned());
            let known = known.child(key);
            match (value, known) {
                (Value::Table(child), Some(known @ Known::Table(_))) => {
                    self.types(child, known, &path, &trail);
                    true
                }
                // Without one item the indices of the others would be wrong: the whole array is removed.
                (Value::Array(items), Some(Known::Many(_))) => {
                    let each = items.iter().enumerate().map(|(nth, item)| {
                        let alone = Value::Array(vec![item.clone()]);
                        self.fits(alone, &trail, &format!("{path}[{nth}]"))
                    });
                    each.filter(|fits| !fits).count() == 0
                }
                (value, _) => self.fits(value.clone(), &trail, &path),
            }
        });
    }

    fn fits(&mut self, value: Value, trail: &[String], path: &str) -> bool {
        let alone = trail.iter().rev().fold(value, |value, key| {
            Value::Table(Table::from_iter([(key.clone(), value)]))
        });
        match Config::deserialize(alone) {
            Ok(_) => true,
            Err(error) => {
                self.add(path, error.message().trim().replace('\n', ", "));
                false
            }
        }
    }

    fn add(&mut self, key: &str, what: String) {
        let hints = [
            (
                "expected a duration",
                "write a duration such as \"30s\" or \"5m\"",
            ),
            (
                "socket address",
                "write address and port such as \"127.0.0.1:9464\"",
            ),
        ];
        let hint = hints.iter().find(|(sign, _)| what.contains(sign));
        let what = what
            .replace("expected usize", "expected a whole number of at least 0")
            .replace("expected u64", "expected a whole number of at least 0")
            .replace("expected u32", "expected a whole number of at least 0")
            .replace("expected f64", "expected a number")
            .replace("expected a sequence", "expected an array")
            .replace("expected a map", "expected a table");
        self.problems.push(Problem {
            place: self.place(key),
            key: key.to_owned(),
            what,
            hint: hint.map(|(_, hint)| (*hint).to_owned()),
        });
    }

    /// The place of a key, or else of the nearest table around it.
    fn place(&self, key: &str) -> Place {
        let mut path = key;
        loop {
            if let Some(place) = self.places.get(path) {
                return place.clone();
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Place::File(self.file.to_owned()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_products_is_read_with_the_configuration_or_named_as_a_problem() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("nearshore.toml");
        std::fs::write(&path, "[catalog]\nnaming = \"map.jsonl\"\n").expect("written");
        let problem = || {
            let problems = load(Some(&path), []).expect_err("refused");
            let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
            texts
                .join("\n")
                .replace(&format!("{}/", folder.path().display()), "")
        };
        let missing = problem();
        assert!(
            missing.contains("catalog.naming: map.jsonl cannot be read: No such file"),
            "{missing}"
        );
        let map = folder.path().join("map.jsonl");
        std::fs::write(&map, "{}\n").expect("written");
        let wrong = problem();
        assert!(
            wrong.contains("catalog.naming: map.jsonl: line 1: not the first line of a map"),
            "{wrong}"
        );
        std::fs::write(&map, Map::default().write()).expect("written");
        assert!(load(Some(&path), []).expect("loaded").naming.is_some());
    }
}
