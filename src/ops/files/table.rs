//! Reads CSV: the first line names the columns, every other line is a row.
//!
//! Invariant: a cell is text, but in columns that are numbers by the contract; an empty cell is absent. A row with
//! another number of cells than the header is a reject.

use std::io::BufReader;
use std::path::Path;

use indicatif::ProgressBar;
use nearshore_core::user::event::Reject;
use serde_json::{Map, Value};

use super::{Error, Rows, Topic, row};

/// Reads a CSV file.
pub(super) fn read(path: &Path, bar: &ProgressBar, rows: &mut Rows) -> Result<(), Error> {
    let input = BufReader::with_capacity(1 << 16, bar.wrap_read(super::open(path)?));
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let header = reader
        .byte_headers()
        .map_err(|error| unreadable(path, error))?;
    let columns = columns(path, rows.topic, header)?;
    let mut cells = csv::ByteRecord::new();
    loop {
        match reader.read_byte_record(&mut cells) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let line = cells.position().map_or(0, csv::Position::line);
                rows.add(line, fields(rows.topic, &columns, &cells));
            }
            Err(error) => return Err(unreadable(path, error)),
        }
    }
}

/// The names of the header, checked.
fn columns(path: &Path, topic: Topic, header: &csv::ByteRecord) -> Result<Vec<String>, Error> {
    let error = |what: String| Error::Columns {
        path: path.into(),
        what,
    };
    let names = header.iter().map(|name| std::str::from_utf8(name));
    let names: Result<Vec<&str>, _> = names.collect();
    let names =
        names.map_err(|_| error("the header is not UTF-8; save the file as UTF-8".into()))?;
    let names: Vec<String> = names.iter().map(|name| name.trim().to_owned()).collect();
    if names.len() == 1 && names[0].contains([';', '\t']) {
        return Err(error(
            "the header is one column; separate the columns by commas".into(),
        ));
    }
    check(topic, &names).map_err(error)?;
    Ok(names)
}

/// Checks that the columns of a table are those of plain rows, or of exported records. Returns what is wrong.
pub(super) fn check(topic: Topic, names: &[String]) -> Result<(), String> {
    let has = |name: &str| names.iter().any(|column| column == name);
    if let Some(twice) = names
        .iter()
        .enumerate()
        .find(|(nth, name)| names[..*nth].contains(name))
    {
        return Err(format!("two columns are named {:?}; rename one", twice.1));
    }
    if has("key") && (has("value") || has("payload")) {
        return Ok(());
    }
    let aliases = |name: &str| match name {
        "timestamp" => has("timestamp") || has("ts"),
        "user" | "sku" => has(name) || has("key"),
        other => has(other),
    };
    match topic.needed_columns().iter().find(|name| !aliases(name)) {
        None => Ok(()),
        Some(name) => Err(format!(
            "there is no column {name:?}, only {}; a file of {} needs the columns {}, or key, timestamp and value",
            names.join(", "),
            topic.name(),
            topic.needed_columns().join(", ")
        )),
    }
}

fn fields(
    topic: Topic,
    columns: &[String],
    cells: &csv::ByteRecord,
) -> Result<Map<String, Value>, Reject> {
    if cells.len() != columns.len() {
        let what = format!(
            "the row has {} cells, the header {}",
            cells.len(),
            columns.len()
        );
        return Err(Reject::MalformedJson(what));
    }
    let mut fields = Map::new();
    for (column, cell) in columns.iter().zip(cells) {
        let text = std::str::from_utf8(cell).map_err(|error| Reject::NotUtf8 {
            at: error.valid_up_to(),
            len: cell.len(),
        })?;
        if text.is_empty() {
            continue;
        }
        let value = Value::String(text.to_owned());
        let value = match row::is_number(topic, column) {
            true => row::number(value),
            false => value,
        };
        fields.insert(column.clone(), value);
    }
    // An empty value of an exported record is a tombstone.
    if columns.iter().any(|name| name == "key")
        && let Some(name) = columns
            .iter()
            .find(|name| *name == "value" || *name == "payload")
    {
        fields.entry(name.clone()).or_insert(Value::Null);
        fields.entry("key").or_insert(Value::Null);
    }
    Ok(fields)
}

fn unreadable(path: &Path, error: csv::Error) -> Error {
    let source = match error.into_kind() {
        csv::ErrorKind::Io(source) => source,
        other => std::io::Error::other(format!("{other:?}")),
    };
    Error::Io {
        path: path.into(),
        source,
    }
}
