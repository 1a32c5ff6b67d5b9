//! Reads whole topics without a group, mapped: [`open_tail`].
//!
//! Invariant: [`Read::Ready`] comes once, when every topic has been read to the end that it had at start. It is
//! cancel-safe: a record that was read stays here until what became of it has been returned.

use std::collections::{BTreeMap, VecDeque};

use futures::FutureExt;
use nearshore_core::ports::log::Error;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::{Limits, Reject};
use nearshore_core::user::record::{Position, Record, Resume};
use nearshore_kafka::{Admin, KafkaSettings, Tail, Tailed, tail};

use super::Mapper;

/// Most records that are mapped at once.
const AT_ONCE: usize = 256;

/// What a tail returns.
#[derive(Debug)]
pub(crate) enum Read {
    /// One record of the topic as records of our contract: itself, or what it was mapped to.
    Records(Position, Vec<Record>),
    /// A record that its mapping refuses.
    Refused(Position, Reject),
    /// All records that existed at start have been returned.
    Ready,
}

/// Topics being read; ends when dropped.
pub struct MappedTail {
    tails: Vec<Tail>,
    /// Tails that have not reached the end that they had at start.
    behind: usize,
    mapper: Mapper,
    limits: Limits,
    /// Records that were read and not mapped yet, all of one topic.
    raw: Vec<Record>,
    /// What `raw` is followed by, from the same tail.
    ready_after: bool,
    mapped: VecDeque<Read>,
    topics: Topics,
}

/// Reads these topics from their beginning without end.
pub(crate) async fn open_tail(
    kafka: &KafkaSettings,
    names: &[std::sync::Arc<str>],
    topics: &Topics,
    limits: Limits,
) -> Result<MappedTail, Error> {
    let mut tails = Vec::with_capacity(names.len());
    for name in names {
        tails.push(tail(kafka, name, &BTreeMap::new()).await?);
    }
    Ok(MappedTail::of(tails, topics, limits))
}

/// Reads these topics from their present ends without end.
pub(crate) async fn open_live_tail(
    kafka: &KafkaSettings,
    names: &[std::sync::Arc<str>],
    topics: &Topics,
    limits: Limits,
) -> Result<MappedTail, Error> {
    let admin = Admin::new(kafka)?;
    let mut tails = Vec::with_capacity(names.len());
    for name in names {
        let extents = admin.extents(name).await?.into_iter();
        let ends = extents.map(|extent| (extent.partition, Resume(extent.end.0)));
        tails.push(tail(kafka, name, &ends.collect()).await?);
    }
    Ok(MappedTail::of(tails, topics, limits))
}

impl From<Tail> for MappedTail {
    fn from(tail: Tail) -> Self {
        Self::of(vec![tail], &Topics::default(), Limits::default())
    }
}

impl MappedTail {
    fn of(tails: Vec<Tail>, topics: &Topics, limits: Limits) -> Self {
        Self {
            behind: tails.len(),
            tails,
            mapper: Mapper::new(topics),
            limits,
            raw: Vec::new(),
            ready_after: false,
            mapped: VecDeque::new(),
            topics: topics.clone(),
        }
    }

    /// Waits for the next record or `Ready`. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Read, Error> {
        loop {
            if let Some(next) = self.mapped.pop_front() {
                return Ok(next);
            }
            if self.raw.is_empty() && !self.ready_after {
                self.read().await?;
            }
            self.map().await?;
        }
    }

    /// Reads one record into `raw`, or as many as are there if a program maps them.
    async fn read(&mut self) -> Result<(), Error> {
        let (nth, first) = match &mut self.tails[..] {
            [only] => (0, only.next().await?),
            many => {
                let each = many.iter_mut().map(|tail| tail.next().boxed());
                let (next, nth, _) = futures::future::select_all(each).await;
                (nth, next?)
            }
        };
        let Tailed::Record(first) = first else {
            self.ready_after = true;
            return Ok(());
        };
        let input = self.topics.inputs.get(&first.position.partition.topic);
        let by_program = input.is_some_and(|input| input.program().is_some());
        self.raw.push(first);
        while by_program && self.raw.len() < AT_ONCE {
            match self.tails[nth].next().now_or_never() {
                None => break,
                Some(Ok(Tailed::Record(record))) => self.raw.push(record),
                Some(Ok(Tailed::Ready)) => {
                    self.ready_after = true;
                    break;
                }
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Maps what is in `raw`.
    async fn map(&mut self) -> Result<(), Error> {
        let topic = self
            .raw
            .first()
            .map(|first| first.position.partition.topic.clone());
        let outcomes = match topic {
            None => None,
            Some(topic) => self
                .mapper
                .records(&topic, &self.raw, &self.limits)
                .await
                .map_err(|error| Error::Refused {
                    what: format!("map {topic}"),
                    reason: error.to_string(),
                })?,
        };
        let raw = std::mem::take(&mut self.raw);
        match outcomes {
            None => {
                let same = |record: Record| Read::Records(record.position.clone(), vec![record]);
                self.mapped.extend(raw.into_iter().map(same));
            }
            Some(outcomes) => {
                let each = raw.into_iter().zip(outcomes);
                let each = each.map(|(record, outcome)| match outcome {
                    Ok(records) => Read::Records(record.position, records),
                    Err(reject) => Read::Refused(record.position, reject),
                });
                self.mapped.extend(each);
            }
        }
        if std::mem::take(&mut self.ready_after) {
            self.behind -= 1;
            if self.behind == 0 {
                self.mapped.push_back(Read::Ready);
            }
        }
        Ok(())
    }
}
