//! Brings a shop's history from files into the topics, each record with its own time.
//!
//! Every row is made a record and decoded as ingest would before anything is written; a row that cannot be used is
//! told with file and line. Invariant: a record has its time in a header, too, so that a topic on which the broker sets
//! times cannot make it younger, and records of an erased user stay older than the erase
//! ([`nearshore_core::user::record::TIME_HEADER`]). It does not remember what was imported.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use indicatif::ProgressBar;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::map::Mapper;
use crate::ops::files::{self, Decoding, Logs, Rejects, Row, Topic};
use crate::ops::topics;
use nearshore_core::map::ReadAs;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::user::event::Reject;
use nearshore_core::user::record::{Record, TIME_HEADER, Timestamp};
use nearshore_kafka::Producer;

/// Rows that are decoded, and records that are sent, at once.
const AT_ONCE: usize = 1000;

/// Files, and what their rows are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    /// Files, in the order in which they are written, each with the shape of its rows.
    pub(crate) files: Vec<(Topic, PathBuf)>,
    /// The topic whose mapping makes records of rows of the shape [`Topic::Rows`].
    pub(crate) mapped: Option<Arc<str>>,
    /// Line of the only file up to which all was written before; 0 = none.
    pub(crate) after: u64,
    /// Whether rows that cannot be used are left out.
    pub(crate) leave_out: bool,
    /// Whether nothing is written.
    pub(crate) dry_run: bool,
}

/// What became of the rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Imported {
    /// Rows read.
    pub(crate) rows: u64,
    /// Records by topic.
    pub(crate) topics: BTreeMap<Arc<str>, u64>,
    /// Time of the oldest record, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oldest: Option<Timestamp>,
    /// Time of the newest record, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) newest: Option<Timestamp>,
    /// Rows that cannot be used, by code.
    pub(crate) rejects: BTreeMap<&'static str, u64>,
    /// The first of them, with file and line.
    pub(crate) first_rejects: Vec<String>,
    /// Whether the records are on the topics.
    pub(crate) written: bool,
}

/// Why not all is written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: {written} records are written, all of its lines up to {line} among them: {source:#}"
)]
pub(crate) struct Stopped {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its last line whose records were acknowledged.
    pub(crate) line: u64,
    /// Records that were acknowledged, of all files.
    pub(crate) written: u64,
    /// The cause.
    source: anyhow::Error,
}

/// Checks all rows, and writes them if none is wrong or wrong ones are left out.
pub(crate) async fn import(
    config: &Config,
    order: &Order,
    bar: &ProgressBar,
) -> anyhow::Result<Imported> {
    let mut checked = pass(config, order, None, bar).await?;
    let is_fine = checked.rejects.is_empty() || order.leave_out;
    if order.dry_run || !is_fine {
        return Ok(checked);
    }
    let producer = Producer::new(&config.kafka)?;
    bar.set_position(0);
    pass(config, order, Some(&producer), bar).await?;
    checked.written = true;
    Ok(checked)
}

async fn pass(
    config: &Config,
    order: &Order,
    producer: Option<&Producer>,
    bar: &ProgressBar,
) -> anyhow::Result<Imported> {
    let mut found = Imported::default();
    let mut rows = RowsTo {
        decoding: topics::decoding(config),
        mapper: Mapper::new(&config.topics),
        mapped: order.mapped.clone(),
        rejects: Rejects::default(),
    };
    let mut written = 0;
    for (topic, path) in &order.files {
        let mut batches = read(path.clone(), *topic, bar.clone());
        let mut line = order.after;
        while let Some(batch) = batches.recv().await {
            let mut batch = batch?;
            batch.retain(|row| row.line > order.after);
            let Some(last) = batch.last().map(|row| row.line) else {
                continue;
            };
            found.rows += batch.len() as u64;
            let records = rows.records(*topic, path, batch).await?;
            found.count(&records);
            let many = records.len() as u64;
            if let Some(producer) = producer {
                producer.send(records).await.map_err(|source| Stopped {
                    path: path.clone(),
                    line,
                    written,
                    source: source.into(),
                })?;
            }
            written += many;
            line = last;
        }
    }
    found.rejects = rows.rejects.codes;
    found.first_rejects = rows.rejects.first;
    Ok(found)
}

/// Reads a file in a thread, some rows at a time.
fn read(
    path: PathBuf,
    topic: Topic,
    bar: ProgressBar,
) -> mpsc::Receiver<Result<Vec<Row>, files::Error>> {
    let (sender, receiver) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        let mut batch = Vec::with_capacity(AT_ONCE);
        let read = files::read(&path, (topic, 0), &bar, &mut |row| {
            batch.push(row);
            if batch.len() == AT_ONCE {
                // Nobody receives after an error: the rest of the file is read in vain.
                let _unheard = sender.blocking_send(Ok(std::mem::take(&mut batch)));
            }
        });
        let last = read.map(|()| batch);
        let _unheard = sender.blocking_send(last);
    });
    receiver
}

/// Makes records of rows.
struct RowsTo {
    decoding: Decoding,
    mapper: Mapper,
    mapped: Option<Arc<str>>,
    rejects: Rejects,
}

impl RowsTo {
    /// The records of rows that can be used; the others are counted.
    async fn records(
        &mut self,
        topic: Topic,
        path: &Path,
        rows: Vec<Row>,
    ) -> anyhow::Result<Vec<Outgoing>> {
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let place = || format!("{}:{}", path.display(), row.line);
            let became = match row.record {
                Ok(record) => self.became(topic, record).await?,
                Err(reject) => Err(reject),
            };
            match became {
                Ok((name, records)) => {
                    all.extend(records.into_iter().map(|record| outgoing(&name, record)));
                }
                Err(reject) => self.rejects.add(place, &reject),
            }
        }
        Ok(all)
    }

    /// What a record becomes, and the topic for it, if the decoders take all of it.
    async fn became(
        &mut self,
        topic: Topic,
        mut record: Record,
    ) -> anyhow::Result<Result<(Arc<str>, Vec<Record>), Reject>> {
        let topics = self.decoding.topics.clone();
        let input = self
            .mapped
            .as_deref()
            .and_then(|name| topics.inputs.get(name));
        let (read_as, records) = match input {
            None => (topic.read_as(), vec![record]),
            Some(input) => {
                if input.read_as == ReadAs::Events && record.time == files::ALWAYS {
                    return Ok(Err(Reject::MissingField("timestamp")));
                }
                record.position.partition.topic = input.topic.clone();
                let records = [record];
                let outcome = self
                    .mapper
                    .records(&input.topic, &records, &self.decoding.limits);
                let outcome = outcome.await?.into_iter().flatten().next();
                match outcome.unwrap_or(Ok(Vec::new())) {
                    Ok(records) => (input.read_as, records),
                    Err(reject) => return Ok(Err(reject)),
                }
            }
        };
        let as_topic = match read_as {
            ReadAs::Events => Topic::Events,
            ReadAs::Profiles => Topic::Profiles,
            ReadAs::Catalog if self.decoding.naming.is_some() => Topic::Titles,
            ReadAs::Catalog => Topic::Catalog,
        };
        let decoded = Logs::default().decode(as_topic, &records, &self.decoding);
        Ok(decoded.map(|()| (topics.own(read_as).clone(), records)))
    }
}

fn outgoing(topic: &Arc<str>, record: Record) -> Outgoing {
    let mut headers = record.headers;
    headers.retain(|(name, _)| name != TIME_HEADER);
    headers.push((
        TIME_HEADER.to_owned(),
        Bytes::from(record.time.0.to_string()),
    ));
    Outgoing {
        topic: topic.clone(),
        key: record.key,
        value: record.value,
        headers,
        time: Some(record.time),
    }
}

impl Imported {
    fn count(&mut self, records: &[Outgoing]) {
        for record in records {
            *self.topics.entry(record.topic.clone()).or_default() += 1;
            let time = record.time.filter(|time| *time != files::ALWAYS);
            self.oldest = self.oldest.into_iter().chain(time).min();
            self.newest = self.newest.into_iter().chain(time).max();
        }
    }
}
