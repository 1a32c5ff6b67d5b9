//! Maps records of a shop's own topics where they are read: [`Mapper`], [`MappedTail`].
//!
//! Decides nothing about a record: pointers are [`nearshore_core::map`], programs run in processes of their own
//! (`child.rs`). Invariant: each source record has one result, all records that it became or the reason why it became
//! none, and a program that never ends, dies or answers without end costs only the record that it was given. It does not
//! know what the records are for.

use std::collections::BTreeMap;
use std::sync::Arc;

use nearshore_core::map::Input;
pub(crate) use nearshore_core::map::Outcome;
use nearshore_core::ports::log::Batch;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::{Limits, Reject};
use nearshore_core::user::record::Record;

mod child;
mod jq;
mod tail;
mod worker;

pub(crate) use jq::check;
pub use tail::MappedTail;
pub(crate) use tail::{Read, open_live_tail, open_tail};
pub(crate) use worker::serve;

use child::{Child, Failed};

/// Why records could not be mapped now: the process of a program does not start. The same call may succeed later.
#[derive(Debug, thiserror::Error)]
#[error(
    "the process that runs the program of [[inputs]] for topic {topic} does not start: {source}"
)]
pub struct Error {
    topic: Arc<str>,
    source: std::io::Error,
}

/// What the records of a batch became; `None` for a batch of a topic without a mapping.
pub(crate) type MappedBatch = Option<Vec<Outcome>>;

/// Maps records by the mapping of their topic. It owns the processes of programs and starts them when they are needed.
pub(crate) struct Mapper {
    topics: Topics,
    children: BTreeMap<Arc<str>, Child>,
}

impl Mapper {
    /// A mapper by the mapped topics of these.
    pub(crate) fn new(topics: &Topics) -> Self {
        Self {
            topics: topics.clone(),
            children: BTreeMap::new(),
        }
    }

    /// Maps each batch. After an error, or if it is dropped, call it again with the same batches.
    pub(crate) async fn map(
        &mut self,
        batches: &[&Batch],
        limits: &Limits,
    ) -> Result<Vec<MappedBatch>, Error> {
        let mut all = Vec::with_capacity(batches.len());
        for batch in batches {
            let topic = &batch.partition.topic;
            all.push(self.records(topic, &batch.records, limits).await?);
        }
        Ok(all)
    }

    /// Maps records of one topic; `None` if it has no mapping.
    pub(crate) async fn records(
        &mut self,
        topic: &str,
        records: &[Record],
        limits: &Limits,
    ) -> Result<MappedBatch, Error> {
        let inputs = self.topics.inputs.clone();
        let Some(input) = inputs.get(topic) else {
            return Ok(None);
        };
        match input.program() {
            None => {
                let each = records.iter().map(|record| input.apply(record, limits));
                Ok(Some(each.collect()))
            }
            Some(text) => {
                let child = self.children.entry(input.topic.clone());
                let child = child.or_insert_with(|| Child::new(text.clone()));
                by_program(child, input, records, limits).await.map(Some)
            }
        }
    }
}

async fn by_program(
    child: &mut Child,
    input: &Input,
    records: &[Record],
    limits: &Limits,
) -> Result<Vec<Outcome>, Error> {
    let asked: Vec<Result<Option<String>, Reject>> = records
        .iter()
        .map(|record| input.question(record, limits))
        .collect();
    let questions: Vec<&str> = asked
        .iter()
        .filter_map(|asked| asked.as_ref().ok()?.as_deref())
        .collect();
    let answers = child.ask(&questions).await;
    let mut answers = answers
        .map_err(|source| Error {
            topic: input.topic.clone(),
            source,
        })?
        .into_iter();
    let each = records.iter().zip(asked).map(|(record, asked)| {
        if asked?.is_none() {
            return Ok(Vec::new());
        }
        match answers.next().expect("an answer for each question") {
            Ok(made) => input.answers(record, &made),
            Err(Failed(why)) => Err(Reject::ProgramFailed(why)),
        }
    });
    Ok(each.collect())
}
