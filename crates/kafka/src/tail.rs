//! Reads a whole topic without a group: [`tail`].
//!
//! Decides when all existing records are read: when each partition has reached the end offset it had at start.
//! Offsets may be missing (compaction, transaction markers), at the end too, so librdkafka's end-of-partition event
//! counts like an offset. Invariant: `Ready` comes once, after every record that existed at start; records of a
//! partition come in offset order. Partitions added later are found within a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Message, TopicPartitionList};
use tokio::sync::mpsc;

use super::admin::{Admin, Extent};
use super::health::{Health, Watch};
use super::login::Login;
use super::producer::{permanent, refused};
use super::{KafkaSettings, native};
use nearshore_core::ports::log::Error;
use nearshore_core::user::record::{Offset, Partition, Record, Resume};

/// Records passed on at once.
const CHUNK: usize = 256;
/// Capacity of the channel in chunks: one is being used, one waits, two bridge a pause of either side.
const CHUNKS: usize = 4;
/// How often new partitions are searched for.
const PARTITIONS_EVERY: Duration = Duration::from_secs(60);
/// How long a topic may be unknown before it is missing: for a moment after its creation not all brokers know it.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two questions for an unknown topic.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(250);

/// What a tail returns.
#[derive(Clone, Debug, PartialEq)]
pub enum Tailed {
    /// A record.
    Record(Record),
    /// All records that existed at start have been returned.
    Ready,
}

/// A topic being read; ends when dropped.
pub struct Tail {
    chunks: mpsc::Receiver<Result<Vec<Tailed>, Error>>,
    rest: std::vec::IntoIter<Tailed>,
    health: Health,
    stop: Arc<AtomicBool>,
}

impl Tail {
    /// Waits for the next record or `Ready`. Cancel-safe. After an error the tail returns nothing more.
    pub async fn next(&mut self) -> Result<Tailed, Error> {
        loop {
            if let Some(next) = self.rest.next() {
                return Ok(next);
            }
            match self.chunks.recv().await {
                Some(chunk) => self.rest = chunk?.into_iter(),
                None => return Err(Error::Stopped("the tail has ended".into())),
            }
        }
    }

    /// Health of its client.
    pub fn health(&self) -> Health {
        self.health.clone()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Extent of each partition of a topic, which may just have been created.
async fn known(settings: &KafkaSettings, topic: &str) -> Result<Vec<Extent>, Error> {
    let admin = Admin::new(settings)?;
    let deadline = Instant::now() + KNOWN_WITHIN;
    loop {
        let extents = admin.extents(topic).await?;
        if !extents.is_empty() {
            return Ok(extents);
        }
        if Instant::now() > deadline {
            return Err(Error::Refused {
                what: format!("read {topic}"),
                reason: "there is no such topic; create it, or correct its name in [topics]".into(),
            });
        }
        tokio::time::sleep(UNKNOWN_PAUSE).await;
    }
}

/// Reads `topic` without end, from the positions `from`; a partition without one is read from the beginning.
pub async fn tail(
    settings: &KafkaSettings,
    topic: &str,
    from: &BTreeMap<Partition, Resume>,
) -> Result<Tail, Error> {
    let extents = known(settings, topic).await?;
    let health = Health::default();
    let mut config = settings.consuming(&settings.group("tail"))?;
    config.set("enable.partition.eof", "true");
    let client: BaseConsumer<Watch> = config
        .create_with_context(Watch::new(settings, health.clone()))
        .map_err(|error| refused("tail", &error))?;
    let (out, chunks) = mpsc::channel(CHUNKS);
    let stop = Arc::new(AtomicBool::new(false));
    let mut reader = Reader {
        client,
        health: health.clone(),
        settings: settings.clone(),
        topic: topic.into(),
        known: BTreeMap::new(),
        behind: BTreeSet::new(),
        chunk: Vec::new(),
        out,
        stop: stop.clone(),
    };
    reader.start(extents, from)?;
    std::thread::Builder::new()
        .name("log-tail".into())
        .spawn(move || {
            if let Err(error) = reader.run() {
                let _ = reader.out.blocking_send(Err(error));
            }
        })
        .map_err(|error| Error::Stopped(error.to_string()))?;
    Ok(Tail {
        chunks,
        rest: Vec::new().into_iter(),
        health,
        stop,
    })
}

/// The receiving side was dropped.
struct Closed;

struct Reader {
    client: BaseConsumer<Watch>,
    health: Health,
    settings: KafkaSettings,
    topic: String,
    /// Partitions being read, with the end offset that each had at start.
    known: BTreeMap<i32, (Partition, i64)>,
    /// Partitions that have not reached that end.
    behind: BTreeSet<i32>,
    chunk: Vec<Tailed>,
    out: mpsc::Sender<Result<Vec<Tailed>, Error>>,
    stop: Arc<AtomicBool>,
}

impl Reader {
    fn start(
        &mut self,
        extents: Vec<Extent>,
        from: &BTreeMap<Partition, Resume>,
    ) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        for extent in extents {
            let number = extent.partition.number;
            let resume = from.get(&extent.partition);
            let offset = resume.map_or(rdkafka::Offset::Beginning, |at| {
                rdkafka::Offset::Offset(at.0)
            });
            list.add_partition_offset(&self.topic, number, offset)
                .map_err(|error| refused("tail", &error))?;
            let at = resume.map_or(extent.begin.0, |at| at.0);
            if at < extent.end.0 {
                self.behind.insert(number);
            }
            self.known.insert(number, (extent.partition, extent.end.0));
        }
        self.client
            .incremental_assign(&list)
            .map_err(|error| refused("tail", &error))
    }

    fn run(&mut self) -> Result<(), Error> {
        let mut ready = false;
        let mut checked = Instant::now();
        let login = Login::new(&self.settings);
        while !self.stop.load(Ordering::Relaxed) {
            self.health.count_poll();
            login.renew(self.client.client(), &self.health);
            // Collected records are passed on before the thread sleeps.
            if !self.turn(Duration::ZERO)? {
                if self.flush().is_err() {
                    return Ok(());
                }
                self.turn(Duration::from_millis(100))?;
            }
            if !ready && self.behind.is_empty() {
                ready = true;
                self.chunk.push(Tailed::Ready);
            }
            if self.chunk.len() >= CHUNK && self.flush().is_err() {
                return Ok(());
            }
            if checked.elapsed() >= PARTITIONS_EVERY {
                checked = Instant::now();
                self.add_partitions();
            }
        }
        Ok(())
    }

    /// Polls once; false if nothing came.
    fn turn(&mut self, limit: Duration) -> Result<bool, Error> {
        match self.client.poll(limit) {
            None => return Ok(false),
            Some(Ok(message)) => {
                if let Some((partition, end)) = self.known.get(&message.partition()) {
                    self.chunk
                        .push(Tailed::Record(native::copy(&message, partition)));
                    if message.offset() + 1 >= *end {
                        self.behind.remove(&message.partition());
                    }
                }
            }
            Some(Err(KafkaError::PartitionEOF(number))) => {
                self.behind.remove(&number);
            }
            Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                return Err(Error::Stopped(code.to_string()));
            }
            Some(Err(error)) => {
                tracing::warn!(target: "kafka", "{}: {error}; the client tries again", self.topic);
                if error.rdkafka_error_code().is_some_and(permanent) {
                    self.health.set_refusal(error.to_string());
                }
            }
        }
        Ok(true)
    }

    fn flush(&mut self) -> Result<(), Closed> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.out.blocking_send(Ok(chunk)).map_err(|_| Closed)
    }

    /// Adds partitions that were created since, from their beginning.
    fn add_partitions(&mut self) {
        let found = self
            .client
            .fetch_metadata(Some(&self.topic), self.settings.ack_timeout);
        let count = match &found {
            Ok(found) => found
                .topics()
                .first()
                .map_or(0, |topic| topic.partitions().len()),
            Err(_) => return, // The next attempt is in a minute.
        };
        let known = i32::try_from(self.known.len()).unwrap_or(i32::MAX);
        let new = (known..i32::try_from(count).unwrap_or(i32::MAX)).map(|number| Extent {
            partition: self.settings.partition(&self.topic, number),
            begin: Offset(0),
            end: Offset(0),
        });
        let new: Vec<Extent> = new.collect();
        if new.is_empty() {
            return;
        }
        if let Err(error) = self.start(new, &BTreeMap::new()) {
            tracing::error!(
                target: "kafka",
                "new partitions of {} cannot be read: {error}; the next attempt is in a minute", self.topic
            );
        }
    }
}
