//! Reads single places of the log without a group: the oldest record of each partition, whether records are left
//! between two offsets, and the keys of an offset range.
//!
//! Invariant: reading here changes no group's position. Offsets may be missing (compaction, transaction markers), so
//! only librdkafka's end-of-partition event proves that no record is left. Blocking work runs on a blocking thread,
//! and ends after `ack_timeout` without progress.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, TopicPartitionList};

use super::health::{Health, Watch};
use super::login::Login;
use super::producer::refused;
use super::{Admin, Extent, KafkaSettings};
use nearshore_core::ports::log::Error;
use nearshore_core::user::record::{Partition, Resume, Timestamp};

/// Whether reading of a partition continues.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    Done,
}

/// Count of the keys in an offset range of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Records read.
    pub records: u64,
    /// Different keys among them.
    pub distinct: u64,
    /// Whether the range was read to its end.
    pub whole: bool,
}

/// Extent of each partition of a topic, with the time of its oldest record; empty if there is no such topic.
pub async fn oldest(
    settings: &KafkaSettings,
    topic: &str,
) -> Result<Vec<(Extent, Option<Timestamp>)>, Error> {
    let extents = Admin::new(settings)?.extents(topic).await?;
    let from: BTreeMap<Partition, Resume> = extents
        .iter()
        .filter(|extent| extent.begin < extent.end)
        .map(|extent| (extent.partition.clone(), Resume(extent.begin.0)))
        .collect();
    let times = times(settings, from).await?;
    let time = |extent: &Extent| times.get(&extent.partition).copied();
    Ok(extents
        .into_iter()
        .map(|extent| (extent.clone(), time(&extent)))
        .collect())
}

/// Time of the first record at or after each of these offsets (of one topic); a partition without one is left out.
pub async fn times(
    settings: &KafkaSettings,
    from: BTreeMap<Partition, Resume>,
) -> Result<BTreeMap<Partition, Timestamp>, Error> {
    let partitions: Vec<Partition> = from.keys().cloned().collect();
    let visit = |times: &mut BTreeMap<i32, Timestamp>, message: &BorrowedMessage<'_>| {
        let time = Timestamp(message.timestamp().to_millis().unwrap_or(0));
        times.insert(message.partition(), time);
        Next::Done
    };
    let times = read(settings, from, visit).await?;
    let time = |partition: Partition| {
        let time = *times.get(&partition.number)?;
        Some((partition, time))
    };
    Ok(partitions.into_iter().filter_map(time).collect())
}

/// Those of `ranges` (partitions of one topic, from one offset to another) in which no record is left.
pub async fn empty(
    settings: &KafkaSettings,
    ranges: BTreeMap<Partition, (Resume, Resume)>,
) -> Result<BTreeSet<Partition>, Error> {
    let from = ranges
        .iter()
        .map(|(p, (from, _))| (p.clone(), *from))
        .collect();
    let ends: BTreeMap<i32, i64> = ranges.iter().map(|(p, (_, to))| (p.number, to.0)).collect();
    let full = read(settings, from, move |full: &mut BTreeSet<i32>, message| {
        if ends
            .get(&message.partition())
            .is_some_and(|end| message.offset() < *end)
        {
            full.insert(message.partition());
        }
        Next::Done
    })
    .await?;
    let empty = ranges.into_keys().filter(|p| !full.contains(&p.number));
    Ok(empty.collect())
}

/// Counts the different keys of a partition between two offsets, reading at most `records_max` records.
pub async fn keys(
    settings: &KafkaSettings,
    partition: Partition,
    from: Resume,
    to: Resume,
    records_max: u64,
) -> Result<Keys, Error> {
    if from >= to {
        let none = Keys {
            whole: true,
            ..Keys::default()
        };
        return Ok(none);
    }
    #[derive(Default)]
    struct Found {
        keys: BTreeSet<Vec<u8>>,
        records: u64,
        cut: bool,
    }
    let start = BTreeMap::from([(partition, from)]);
    let found = read(settings, start, move |found: &mut Found, message| {
        if message.offset() >= to.0 {
            return Next::Done;
        }
        found.records += 1;
        found
            .keys
            .insert(message.key().unwrap_or_default().to_vec());
        found.cut = found.records >= records_max && message.offset() + 1 < to.0;
        if found.records >= records_max || message.offset() + 1 >= to.0 {
            Next::Done
        } else {
            Next::Continue
        }
    })
    .await?;
    Ok(Keys {
        records: found.records,
        distinct: found.keys.len() as u64,
        whole: !found.cut,
    })
}

/// Reads partitions of one topic from these offsets, each until `visit` is done with it or its end is reached.
async fn read<T: Default + Send + 'static>(
    settings: &KafkaSettings,
    from: BTreeMap<Partition, Resume>,
    mut visit: impl FnMut(&mut T, &BorrowedMessage<'_>) -> Next + Send + 'static,
) -> Result<T, Error> {
    if from.is_empty() {
        return Ok(T::default());
    }
    let settings = settings.clone();
    let work = move || {
        let client = assigned(&settings, &from)?;
        let mut open: BTreeSet<i32> = from.keys().map(|partition| partition.number).collect();
        let mut found = T::default();
        let mut last_progress = Instant::now();
        while !open.is_empty() {
            match client.poll(Duration::from_millis(100)) {
                None if last_progress.elapsed() < settings.ack_timeout => continue,
                None => {
                    let topic = from
                        .keys()
                        .next()
                        .map_or(String::new(), |p| p.topic.to_string());
                    return Err(Error::Timeout {
                        topic,
                        limit: settings.ack_timeout,
                    });
                }
                Some(Ok(message)) if open.contains(&message.partition()) => {
                    if visit(&mut found, &message) == Next::Done {
                        open.remove(&message.partition());
                    }
                }
                Some(Ok(_)) => continue,
                Some(Err(KafkaError::PartitionEOF(number))) => drop(open.remove(&number)),
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    return Err(Error::Stopped(code.to_string()));
                }
                Some(Err(error)) => {
                    tracing::warn!(target: "kafka", "{error}; the client tries again");
                    continue;
                }
            }
            last_progress = Instant::now();
        }
        Ok(found)
    };
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|error| Err(Error::Stopped(error.to_string())))
}

/// A consumer without a group, assigned to these positions.
fn assigned(
    settings: &KafkaSettings,
    from: &BTreeMap<Partition, Resume>,
) -> Result<BaseConsumer<Watch>, Error> {
    let mut config = settings.consuming(&settings.group("probe"))?;
    config.set("enable.partition.eof", "true");
    config.set("statistics.interval.ms", "0");
    let client: BaseConsumer<Watch> = config
        .create_with_context(Watch::new(settings, Health::default()))
        .map_err(|error| refused("probe", &error))?;
    let mut list = TopicPartitionList::new();
    for (partition, at) in from {
        list.add_partition_offset(
            &partition.topic,
            partition.number,
            rdkafka::Offset::Offset(at.0),
        )
        .map_err(|error| refused("probe", &error))?;
    }
    client
        .incremental_assign(&list)
        .map_err(|error| refused("probe", &error))?;
    Login::new(settings).ready(client.client(), &client.context().health);
    Ok(client)
}
