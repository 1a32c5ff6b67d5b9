//! Applies environment variables `NEARSHORE__SECTION__KEY`, which override the file.
//!
//! Invariant: an unknown `NEARSHORE__*` variable is a problem, never ignored. A value has the type of its key: text is
//! used as it is, anything else is parsed as TOML; nothing is interpolated.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::problem::nearest;
use super::reference::Known;
use super::{Place, Problem};

const PREFIX: &str = "NEARSHORE__";

/// Writes the values of the variables into `table`, and their origins into `places`.
pub(super) fn apply(
    env: impl IntoIterator<Item = (String, String)>,
    known: &Known,
    table: &mut Table,
    places: &mut BTreeMap<String, Place>,
) -> Vec<Problem> {
    let variables: BTreeMap<_, _> = env
        .into_iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    let settable = known.settable("");
    let mut problems = Vec::new();
    for (name, text) in variables {
        let path = name[PREFIX.len()..].to_lowercase().replace("__", ".");
        match settable.contains(&path).then(|| known.at(&path)).flatten() {
            None => problems.push(unknown(name, &settable)),
            Some(known) => match typed(&text, known) {
                Ok(value) => {
                    put(table, &path, value);
                    places.insert(path, Place::Variable(name));
                }
                Err(what) => problems.push(Problem {
                    place: Place::Variable(name),
                    key: path,
                    what,
                    hint: None,
                }),
            },
        }
    }
    problems
}

/// The name of the variable that sets a key.
fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.to_uppercase().replace('.', "__"))
}

fn unknown(name: String, settable: &[String]) -> Problem {
    let written = name[PREFIX.len()..].to_lowercase().replace("__", ".");
    let near = nearest(&written, settable.iter().map(String::as_str));
    Problem {
        hint: near.map(|path| format!("did you mean {}?", variable(path))),
        place: Place::Variable(name),
        key: String::new(),
        what: "unknown variable".into(),
    }
}

fn typed(text: &str, known: &Known) -> Result<Value, String> {
    if matches!(known, Known::Leaf(Value::String(_))) {
        return Ok(Value::String(text.to_owned()));
    }
    let parsed = format!("value = {text}").parse::<Table>();
    let value = parsed.ok().filter(|table| table.len() == 1);
    value
        .and_then(|mut table| table.remove("value"))
        .ok_or_else(|| {
            format!(
                "{text:?} is not a TOML value; write one such as {}",
                example(known)
            )
        })
}

fn example(known: &Known) -> String {
    match known {
        Known::Leaf(value) => value.to_string(),
        Known::Free => "{ name = \"value\" }".into(),
        Known::Table(_) | Known::Many(_) => "[{ id = \"a\" }]".into(),
    }
}

/// Sets the value at a dotted path. A value in the place of a table is replaced: the variable wins.
fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((head, rest)) => {
            let child = table
                .entry(head)
                .or_insert_with(|| Value::Table(Table::new()));
            if !child.is_table() {
                *child = Value::Table(Table::new());
            }
            if let Value::Table(child) = child {
                put(child, rest, value);
            }
        }
    }
}
