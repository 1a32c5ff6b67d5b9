//! Reads topics for the checker, by bare rdkafka: every record of every partition, from begin to end.
//!
//! It decides which records are good, as docs/contract.md defines them. Invariant: it uses no code of the product.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Map, Value};

/// Longest time to read a topic; only a hang exceeds it.
const LIMIT: Duration = Duration::from_secs(600);
/// Longest answer of a broker.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Topic, partition and offset of a record, ordered as positions are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub String, pub i32, pub i64);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0/{}/{}:{}", self.0, self.1, self.2)
    }
}

/// Parses `incarnation/topic/partition:offset` of incarnation 0.
pub fn place(text: &str) -> Option<Place> {
    let (left, offset) = text.rsplit_once(':')?;
    let (topic, partition) = left.strip_prefix("0/")?.rsplit_once('/')?;
    Some(Place(
        topic.into(),
        partition.parse().ok()?,
        offset.parse().ok()?,
    ))
}

/// One record.
pub struct Entry {
    pub place: Place,
    pub time: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: BTreeMap<String, String>,
}

impl Entry {
    pub fn key_text(&self) -> String {
        let key = self.key.as_deref().unwrap_or_default();
        String::from_utf8_lossy(key).into_owned()
    }
}

/// A reader of one cluster.
pub struct Reader {
    brokers: String,
}

impl Reader {
    pub fn new(brokers: &str) -> Self {
        Self {
            brokers: brokers.into(),
        }
    }

    fn consumer(&self, group: &str) -> anyhow::Result<BaseConsumer> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .create();
        consumer.context("a consumer")
    }

    /// Begin and end of each partition.
    fn extents(&self, consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<(i64, i64)>> {
        let known = consumer.fetch_metadata(Some(topic), ANSWER_MAX)?;
        let many = known.topics().first().map_or(0, |it| it.partitions().len());
        ensure!(many > 0, "{topic} has no partitions");
        (0..i32::try_from(many)?)
            .map(|nth| Ok(consumer.fetch_watermarks(topic, nth, ANSWER_MAX)?))
            .collect()
    }

    /// All records of a topic, by partition and offset.
    pub fn all(&self, topic: &str) -> anyhow::Result<Vec<Entry>> {
        let consumer = self.consumer("chaos-checker")?;
        let extents = self.extents(&consumer, topic)?;
        let mut list = TopicPartitionList::new();
        let mut left = 0;
        for (nth, (begin, end)) in extents.iter().enumerate() {
            if end > begin {
                list.add_partition_offset(topic, i32::try_from(nth)?, Offset::Beginning)?;
                left += 1;
            }
        }
        let mut entries = Vec::new();
        if left == 0 {
            return Ok(entries);
        }
        consumer.assign(&list)?;
        let start = Instant::now();
        while left > 0 {
            ensure!(
                start.elapsed() < LIMIT,
                "{topic} was not read within {LIMIT:?}"
            );
            let Some(message) = consumer.poll(Duration::from_millis(200)) else {
                continue;
            };
            let message = message?;
            let nth = usize::try_from(message.partition())?;
            let end = extents[nth].1;
            if message.offset() + 1 == end {
                left -= 1;
            }
            if message.offset() < end {
                entries.push(entry(&message));
            }
        }
        entries.sort_by(|a, b| a.place.cmp(&b.place));
        Ok(entries)
    }

    /// Lag of a group per partition of these topics: end minus committed offset.
    pub fn lag(
        &self,
        group: &str,
        topics: &[&str],
    ) -> anyhow::Result<BTreeMap<(String, i32), i64>> {
        let consumer = self.consumer(group)?;
        let mut list = TopicPartitionList::new();
        let mut ends = BTreeMap::new();
        for topic in topics {
            for (nth, (begin, end)) in self.extents(&consumer, topic)?.into_iter().enumerate() {
                let nth = i32::try_from(nth)?;
                list.add_partition(topic, nth);
                ends.insert(((*topic).to_owned(), nth), (begin, end));
            }
        }
        let committed = consumer.committed_offsets(list, ANSWER_MAX)?;
        let mut lag = BTreeMap::new();
        for element in committed.elements() {
            let at = (element.topic().to_owned(), element.partition());
            let (begin, end) = ends[&at];
            let done = match element.offset() {
                Offset::Offset(done) => done,
                _ => begin,
            };
            lag.insert(at, end - done);
        }
        Ok(lag)
    }
}

fn entry<M: Message>(message: &M) -> Entry {
    let mut headers = BTreeMap::new();
    for header in message.headers().iter().flat_map(|all| all.iter()) {
        // Of repeated headers the last counts.
        let value = String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned();
        headers.insert(header.key.to_owned(), value);
    }
    Entry {
        place: Place(
            message.topic().into(),
            message.partition(),
            message.offset(),
        ),
        time: message.timestamp().to_millis().unwrap_or_default(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers,
    }
}

/// An event as docs/contract.md defines it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub kind: String,
    /// `sku`, `pu` or `query`, and which.
    pub item: (&'static str, String),
    pub qty: u64,
    pub price: Option<f64>,
}

fn object(value: Option<&[u8]>) -> Result<Map<String, Value>, &'static str> {
    let bytes = value.ok_or("null_value")?;
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("not_an_object"),
        Err(_) => Err("malformed_json"),
    }
}

/// The user id of a record, or its reject code.
pub fn user_of(entry: &Entry) -> Result<String, &'static str> {
    let key = entry.key.as_deref().ok_or("no_key")?;
    if key.is_empty() {
        return Err("empty_key");
    }
    String::from_utf8(key.to_vec()).map_err(|_| "key_not_utf8")
}

/// The event of a record, or the reject code with which it must be in `dlq`.
pub fn event_of(entry: &Entry) -> Result<Event, &'static str> {
    let fields = object(entry.value.as_deref())?;
    let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
    let kind = text("type").ok_or("missing_field")?;
    let item = match kind.as_str() {
        "search" => ("query", text("query").ok_or("missing_field")?),
        "impression" | "view" | "click" | "cart" | "purchase" => match (text("sku"), text("pu")) {
            (Some(sku), _) => ("sku", sku),
            (None, Some(pu)) => ("pu", pu),
            (None, None) => return Err("missing_field"),
        },
        _ => return Err("unknown_type"),
    };
    let qty = match fields.get("qty") {
        None | Some(Value::Null) => 1,
        Some(qty) => qty.as_u64().ok_or("negative_quantity")?,
    };
    Ok(Event {
        kind,
        item,
        qty,
        price: fields.get("price").and_then(Value::as_f64),
    })
}

/// The profile of a record, `None` for an erase, or its reject code.
pub fn profile_of(entry: &Entry) -> Result<Option<Map<String, Value>>, &'static str> {
    match &entry.value {
        None => Ok(None),
        Some(value) => object(Some(value)).map(Some),
    }
}
