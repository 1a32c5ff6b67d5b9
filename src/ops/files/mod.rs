//! Reads logs that people exported to files: JSON lines, CSV and Parquet, in the shape of the topics.
//!
//! Decides how a row becomes a record: key, time, value and a position made from file and row. Invariant: equal rows
//! give equal records in every format, and a row that cannot be used is a reject with file and line, never an end of
//! the reading; only a file that is not what its ending says is an error. It does not know what a record says: the
//! decoders of production decide that ([`nearshore_core::user::event`]).

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use nearshore_core::map::ReadAs;
use nearshore_core::user::event::Reject;
use nearshore_core::user::record::{Offset, Partition, Position, Record};
use serde_json::{Map, Value};

use crate::files;

mod logs;
mod parquet;
mod row;
mod table;
mod time;

pub(crate) use logs::{Decoding, Logs, LogsSource, Rejects, Share};
pub(crate) use row::ALWAYS;

/// The topic whose shape the rows of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Topic {
    /// `user-events`.
    Events,
    /// `profile-changes`.
    Profiles,
    /// `catalog`.
    Catalog,
    /// `catalog`, where a map gives SKUs their products.
    Titles,
    /// A topic of the shop's own: what a row means is left to a mapping.
    Rows,
}

impl Topic {
    /// The column of a plain row that is the record's key.
    fn key_column(self) -> &'static str {
        match self {
            Self::Events | Self::Profiles => "user",
            Self::Catalog | Self::Titles => "sku",
            Self::Rows => "key",
        }
    }

    /// The columns that a table of plain rows must have.
    fn needed_columns(self) -> &'static [&'static str] {
        match self {
            Self::Events => &["user", "type", "timestamp"],
            Self::Profiles => &["user"],
            Self::Catalog => &["sku", "pu", "stock"],
            Self::Titles => &["sku", "title", "stock"],
            Self::Rows => &[],
        }
    }

    /// The topic's default name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Events => "user-events",
            Self::Profiles => "profile-changes",
            Self::Catalog | Self::Titles => "catalog",
            Self::Rows => "rows",
        }
    }

    /// What records of this topic are read as.
    pub(crate) fn read_as(self) -> ReadAs {
        match self {
            Self::Events | Self::Rows => ReadAs::Events,
            Self::Profiles => ReadAs::Profiles,
            Self::Catalog | Self::Titles => ReadAs::Catalog,
        }
    }
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Its name does not say what it is.
    #[error(
        "{path} ends in none of .jsonl, .ndjson, .csv, .parquet; rename it, or convert it to one of them"
    )]
    Ending {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be opened or read.
    #[error("{path} cannot be read: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is not text.
    #[error(transparent)]
    Text(#[from] files::Error),
    /// A column is missing, twice there, or of a type that is not read.
    #[error("{path}: {what}")]
    Columns {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// It is not Parquet, or damaged.
    #[error(
        "{path}: not a readable Parquet file: {what}; write it again, compressed by snappy or not at all, as pandas' to_parquet does"
    )]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        what: String,
    },
}

/// One row of a file.
#[derive(Debug)]
pub(crate) struct Row {
    /// Line of a text file, row of a Parquet file; from 1.
    pub(crate) line: u64,
    /// The record, or why there is none.
    pub(crate) record: Result<Record, Reject>,
}

/// Reads a file row by row. `number` is the number of the file among those of its topic, which becomes the partition.
pub(crate) fn read(
    path: &Path,
    (topic, number): (Topic, i32),
    bar: &ProgressBar,
    each: &mut dyn FnMut(Row),
) -> Result<(), Error> {
    let mut rows = Rows {
        topic,
        partition: Partition {
            incarnation: 0,
            topic: topic.name().into(),
            number,
        },
        next: 0,
        each,
    };
    let ending = path.extension().and_then(|ending| ending.to_str());
    match ending.map(str::to_ascii_lowercase).as_deref() {
        Some("jsonl" | "ndjson") => json_lines(path, bar, &mut rows),
        Some("csv") => table::read(path, bar, &mut rows),
        Some("parquet") => parquet::read(path, bar, &mut rows),
        _ => Err(Error::Ending { path: path.into() }),
    }
}

/// Gives each row of a file its position.
struct Rows<'a> {
    topic: Topic,
    partition: Partition,
    next: i64,
    each: &'a mut dyn FnMut(Row),
}

impl Rows<'_> {
    /// Passes on one row; `fields` are what the file says, or why the row cannot be read.
    fn add(&mut self, line: u64, fields: Result<Map<String, Value>, Reject>) {
        let position = Position {
            partition: self.partition.clone(),
            offset: Offset(self.next),
        };
        self.next += 1;
        let record = fields.and_then(|fields| row::record(self.topic, fields, position));
        (self.each)(Row { line, record });
    }
}

fn open(path: &Path) -> Result<File, Error> {
    let not_file = || std::io::Error::other("it is a folder");
    let opened = File::open(path).and_then(|file| match file.metadata()?.is_dir() {
        true => Err(not_file()),
        false => Ok(file),
    });
    opened.map_err(|source| Error::Io {
        path: path.into(),
        source,
    })
}

fn json_lines(path: &Path, bar: &ProgressBar, rows: &mut Rows) -> Result<(), Error> {
    let reader = BufReader::with_capacity(1 << 16, bar.wrap_read(open(path)?));
    for line in files::lines(reader, path) {
        let (nth, line) = line?;
        if line.trim().is_empty() {
            continue;
        }
        let fields = match serde_json::from_str(&line) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(other) => Err(Reject::NotAnObject {
                found: row::what(&other),
            }),
            Err(error) => Err(Reject::MalformedJson(error.to_string())),
        };
        rows.add(nth as u64, fields);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
