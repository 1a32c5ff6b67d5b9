//! The contract of [`Log`], run against Kafka, the embedded cluster and memory.
//!
//! One function per promise. A [`Witness`] takes every delivery and fails on the first that breaks the contract: a
//! batch of a partition that is not assigned, an offset that does not rise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nearshore_core::ports::log::{Delivery, Error, Log, Outgoing};
use nearshore_core::user::record::{Partition, Position, Record, Resume, Timestamp};
use nearshore_kafka::{Admin, Embedded, KafkaLog, KafkaSettings, NewTopic, Producer};
use nearshore_testkit::log::MemoryCluster;

pub use crate::harness::LIMIT;
use crate::harness::{fresh, variable};

/// A log under test, with its topics and producer.
pub trait Rig {
    type Member: Log;
    async fn topic(&self, partitions: i32) -> String;
    async fn send(&self, records: Vec<Outgoing>);
    fn join_all(&self, group: &str, topics: &[&str]) -> Self::Member;

    fn join(&self, group: &str, topic: &str) -> Self::Member {
        self.join_all(group, &[topic])
    }
}

pub struct Kafka {
    pub settings: KafkaSettings,
    producer: Producer,
    _embedded: Option<Embedded>,
}

impl Kafka {
    /// The real broker, with classic groups.
    pub fn real() -> Self {
        let settings = KafkaSettings {
            session_timeout: Duration::from_secs(6),
            ..KafkaSettings::of(variable("NEARSHORE_TEST_KAFKA"))
        };
        Self {
            producer: Producer::new(&settings).expect("valid settings"),
            settings,
            _embedded: None,
        }
    }

    /// The real broker, with groups of KIP-848.
    pub fn next_generation() -> Self {
        let mut kafka = Self::real();
        let consumer = &mut kafka.settings.consumer;
        consumer.insert("group.protocol".into(), "consumer".into());
        kafka
    }

    /// The mock cluster of librdkafka.
    pub fn embedded() -> Self {
        let cluster = Embedded::start(&[]).expect("the mock cluster starts");
        let settings = cluster.settings();
        Self {
            producer: Producer::new(&settings).expect("valid settings"),
            settings,
            _embedded: Some(cluster),
        }
    }

    pub async fn topic_with(&self, partitions: i32, config: &[(&str, &str)]) -> String {
        let name = fresh("log");
        if let Some(cluster) = &self._embedded {
            cluster
                .create(&name, partitions)
                .expect("the topic is created");
            return name;
        }
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let topic = NewTopic {
            name: name.clone(),
            partitions,
            config: config.iter().map(pair).collect(),
        };
        let admin = Admin::new(&self.settings).expect("valid settings");
        assert_eq!(
            admin.ensure(&[topic]).await.expect("the topic is created"),
            std::slice::from_ref(&name)
        );
        name
    }
}

impl Rig for Kafka {
    type Member = KafkaLog;

    async fn topic(&self, partitions: i32) -> String {
        self.topic_with(partitions, &[]).await
    }

    async fn send(&self, records: Vec<Outgoing>) {
        self.producer
            .send(records)
            .await
            .expect("the records are written");
    }

    fn join_all(&self, group: &str, topics: &[&str]) -> KafkaLog {
        KafkaLog::join(&self.settings, group, topics).expect("valid settings")
    }
}

pub struct Memory(pub MemoryCluster);

impl Rig for Memory {
    type Member = nearshore_testkit::log::MemoryLog;

    async fn topic(&self, partitions: i32) -> String {
        let name = fresh("log");
        self.0
            .create_topic(&name, usize::try_from(partitions).expect("a small number"));
        name
    }

    async fn send(&self, records: Vec<Outgoing>) {
        for record in records {
            self.0.produce(record);
        }
    }

    fn join_all(&self, group: &str, topics: &[&str]) -> Self::Member {
        self.0.join(group, topics)
    }
}

/// Timestamp of the first record: a broker refuses records from its far future.
pub const TIME: i64 = 1_700_000_000_000;

/// Records whose values are the numbers `from..to`.
pub fn numbered(topic: &str, from: i64, to: i64) -> Vec<Outgoing> {
    (from..to)
        .map(|n| Outgoing {
            topic: topic.into(),
            key: Some(format!("user-{}", n % 37).into()),
            value: Some(n.to_string().into()),
            headers: Vec::new(),
            time: Some(Timestamp(TIME + n)),
        })
        .collect()
}

/// Records and checks every delivery of one member.
#[derive(Default)]
pub struct Witness {
    /// Assigned partitions, with the last offset since their assignment.
    pub owned: BTreeMap<Partition, Option<i64>>,
    /// Partitions that were revoked.
    pub revoked: BTreeSet<Partition>,
    /// Whether an assignment came.
    pub assigned: bool,
    /// Every position delivered, with its value.
    pub seen: BTreeMap<Position, Option<Bytes>>,
    /// Records in the order of their delivery.
    pub records: Vec<Record>,
}

impl Witness {
    /// Records one delivery; panics if it breaks the contract.
    pub fn see(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Assigned(partitions) => {
                self.assigned = true;
                for partition in partitions {
                    let old = self.owned.insert(partition.clone(), None);
                    assert_eq!(old, None, "{partition} was assigned twice");
                }
            }
            Delivery::Revoked { partitions, .. } => {
                for partition in partitions {
                    let old = self.owned.remove(&partition);
                    assert!(old.is_some(), "{partition} was revoked but not assigned");
                    self.revoked.insert(partition);
                }
            }
            Delivery::Batch(batch) => {
                assert!(!batch.records.is_empty(), "an empty batch");
                let last = self.owned.get_mut(&batch.partition);
                let last = last.unwrap_or_else(|| panic!("{} is not assigned", batch.partition));
                for record in &batch.records {
                    assert_eq!(record.position.partition, batch.partition);
                    let offset = record.position.offset.0;
                    assert!(Some(offset) > *last, "{} after {last:?}", record.position);
                    assert!(record.position.offset < batch.end, "beyond the end");
                    *last = Some(offset);
                    self.seen
                        .insert(record.position.clone(), record.value.clone());
                }
                self.records.extend(batch.records);
            }
        }
    }

    /// What would be committed for each assigned partition.
    pub fn resumes(&self) -> Vec<(Partition, Resume)> {
        let done = |(partition, last): (&Partition, &Option<i64>)| {
            Some((partition.clone(), Resume((*last)? + 1)))
        };
        self.owned.iter().filter_map(done).collect()
    }

    /// Values of all delivered records, as numbers.
    pub fn values(&self) -> BTreeSet<i64> {
        let value = |value: &Option<Bytes>| {
            let text = std::str::from_utf8(value.as_deref()?).ok()?;
            text.parse().ok()
        };
        self.seen.values().filter_map(value).collect()
    }
}

/// Reads a member until the witness has seen enough.
pub async fn watch<L: Log>(log: &mut L, witness: &mut Witness, enough: impl Fn(&Witness) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !enough(witness) {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(next) = tokio::time::timeout(left, log.next()).await else {
            panic!("not within {LIMIT:?}; {} records seen", witness.seen.len());
        };
        witness.see(next.expect("the member reads"));
    }
}

/// Reads a member for this long; the number of records that came.
pub async fn quiet<L: Log>(log: &mut L, witness: &mut Witness, time: Duration) -> usize {
    let before = witness.records.len();
    let deadline = tokio::time::Instant::now() + time;
    while let Ok(next) = tokio::time::timeout_at(deadline, log.next()).await {
        witness.see(next.expect("the member reads"));
    }
    witness.records.len() - before
}

async fn records_come_whole_and_in_order<R: Rig>(rig: R) {
    let topic = rig.topic(1).await;
    let mut sent = numbered(&topic, 0, 2_000);
    sent[3].value = None;
    sent[4].value = Some(Bytes::new());
    sent[5].key = None;
    sent[6].key = Some(Bytes::from_static(b"\xff\xfe\x00"));
    sent[7].headers = vec![
        ("a".into(), Bytes::from_static(b"1")),
        ("b".into(), Bytes::from_static(b"\xff")),
        ("a".into(), Bytes::new()),
    ];
    sent[8].time = Some(Timestamp(946_684_800_000));
    rig.send(sent.clone()).await;
    let (mut log, mut witness) = (rig.join(&fresh("g"), &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.records.len() >= 2_000).await;
    for (record, sent) in witness.records.iter().zip(&sent) {
        assert_eq!(record.key, sent.key);
        assert_eq!(record.value, sent.value);
        assert_eq!(record.headers, sent.headers);
        assert_eq!(Some(record.time), sent.time);
    }
    log.close().await;
}

async fn reading_resumes_where_it_was_committed<R: Rig>(rig: R) {
    let (topic, group) = (rig.topic(3).await, fresh("g"));
    rig.send(numbered(&topic, 0, 300)).await;
    let mut first = Witness::default();
    let mut log = rig.join(&group, &topic);
    watch(&mut log, &mut first, |it| it.seen.len() == 300).await;
    // Two partitions are committed at their end, the third in its middle.
    let mut done = first.resumes();
    let half = done[2].1.0 / 2;
    done[2].1 = Resume(half);
    log.commit(&done).await.expect("the partition is assigned");
    log.close().await;

    let expected: BTreeSet<Position> = first
        .seen
        .into_keys()
        .filter(|it| it.partition == done[2].0 && it.offset.0 >= half)
        .collect();
    for _ in 0..2 {
        // Nothing is committed here, so the second member gets the same records.
        let (mut log, mut again) = (rig.join(&group, &topic), Witness::default());
        watch(&mut log, &mut again, |it| it.seen.len() >= expected.len()).await;
        quiet(&mut log, &mut again, Duration::from_millis(200)).await;
        assert_eq!(again.seen.into_keys().collect::<BTreeSet<_>>(), expected);
        log.close().await;
    }
}

async fn a_rebalance_loses_nothing_and_fences_the_old_owner<R: Rig>(rig: R) {
    let (topic, group) = (rig.topic(6).await, fresh("g"));
    rig.send(numbered(&topic, 0, 1_000)).await;
    let (mut old, mut seen_by_old) = (rig.join(&group, &topic), Witness::default());
    watch(&mut old, &mut seen_by_old, |it| it.values().len() == 1_000).await;
    let before = seen_by_old.resumes();

    let (mut new, mut seen_by_new) = (rig.join(&group, &topic), Witness::default());
    // Both read. The old owner committed nothing, so records of partitions that move are delivered again.
    let deadline = Instant::now() + LIMIT;
    while seen_by_new.owned.is_empty() || seen_by_old.revoked.is_empty() {
        assert!(Instant::now() < deadline, "no partition moved");
        quiet(&mut old, &mut seen_by_old, Duration::from_millis(50)).await;
        quiet(&mut new, &mut seen_by_new, Duration::from_millis(50)).await;
    }
    let moved = seen_by_old.revoked.clone();
    assert!(!moved.is_empty());
    let refused = old
        .commit(&before)
        .await
        .expect_err("some partitions have moved");
    assert!(
        matches!(&refused, Error::NotAssigned { partition } if moved.contains(partition)),
        "{refused}"
    );
    old.commit(&seen_by_old.resumes())
        .await
        .expect("the others are still assigned");

    rig.send(numbered(&topic, 1_000, 2_000)).await;
    let all = |a: &Witness, b: &Witness| {
        let both: BTreeSet<i64> = a.values().union(&b.values()).copied().collect();
        both == (0..2_000).collect()
    };
    while !all(&seen_by_old, &seen_by_new) {
        assert!(Instant::now() < deadline, "records are missing");
        quiet(&mut old, &mut seen_by_old, Duration::from_millis(20)).await;
        quiet(&mut new, &mut seen_by_new, Duration::from_millis(20)).await;
    }
    for partition in &moved {
        let again = seen_by_new
            .seen
            .keys()
            .filter(|it| it.partition == *partition);
        assert!(again.count() > 0, "{partition} was not delivered again");
    }
    old.close().await;
    new.close().await;
}

async fn a_rewind_drops_what_is_buffered_and_reads_again<R: Rig>(rig: R) {
    let (topic, group) = (rig.topic(2).await, fresh("g"));
    rig.send(numbered(&topic, 0, 2_000)).await;
    let (mut log, mut first) = (rig.join(&group, &topic), Witness::default());
    watch(&mut log, &mut first, |it| {
        it.owned.len() == 2 && it.owned.values().all(Option::is_some)
    })
    .await;
    log.commit(&first.resumes())
        .await
        .expect("the partition is assigned");
    let of: Vec<Partition> = first.owned.keys().cloned().collect();
    let unassigned = Partition {
        number: 77,
        ..of[0].clone()
    };
    // One below its committed offset, and one that is not assigned.
    let to = [(of[0].clone(), Resume(3)), (unassigned, Resume(1))];
    log.rewind(&to).await.expect("the member rewinds");
    let mut again = Witness {
        owned: first.owned.clone(),
        ..Witness::default()
    };
    again.owned.insert(of[0].clone(), Some(2));
    let all = |it: &Witness| {
        let both: BTreeSet<i64> = it.values().union(&first.values()).copied().collect();
        both.len() == 2_000
    };
    watch(&mut log, &mut again, all).await;
    quiet(&mut log, &mut again, Duration::from_millis(200)).await;
    let offsets: Vec<i64> = again
        .seen
        .keys()
        .filter(|it| it.partition == of[0])
        .map(|it| it.offset.0)
        .collect();
    let whole: Vec<i64> = (3..3 + offsets.len() as i64).collect();
    assert_eq!(offsets, whole, "no gap from the offset of the rewind");
    let known = log.committed(&of).await.expect("Kafka answers");
    assert!(known.iter().all(|it| it.ours), "{known:?}");
    assert_eq!(known.len(), 2);
    // A commit below the committed offset is allowed.
    log.commit(&[(of[0].clone(), Resume(4))])
        .await
        .expect("the partition is assigned");
    let known = log.committed(&of[..1]).await.expect("Kafka answers");
    assert_eq!(known[0].resume, Resume(4));
    log.close().await;
}

async fn a_dropped_next_loses_nothing<R: Rig>(rig: R) {
    let topic = rig.topic(2).await;
    let (mut log, mut witness) = (rig.join(&fresh("g"), &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.assigned).await;
    let (mut sent, deadline) = (0, Instant::now() + LIMIT);
    while witness.seen.len() < 500 {
        assert!(Instant::now() < deadline, "records are missing");
        if sent < 500 {
            rig.send(numbered(&topic, sent, sent + 50)).await;
            sent += 50;
        }
        for _ in 0..20 {
            let soon = tokio::time::timeout(Duration::from_micros(50), log.next());
            if let Ok(next) = soon.await {
                witness.see(next.expect("the member reads"));
            }
        }
    }
    assert_eq!(witness.values(), (0..500).collect());
    log.close().await;
}

async fn a_paused_topic_waits_and_others_are_delivered<R: Rig>(rig: R) {
    let (slow, fast) = (rig.topic(2).await, rig.topic(2).await);
    // More than a member buffers of what is not read.
    rig.send(numbered(&slow, 0, 20_000)).await;
    let mut log = rig.join_all(&fresh("g"), &[&slow, &fast]);
    let mut witness = Witness::default();
    watch(&mut log, &mut witness, |it| it.records.len() >= 100).await;
    log.pause(&[slow.as_str().into()]);
    quiet(&mut log, &mut witness, Duration::from_millis(500)).await;
    let before = witness.records.len();
    assert!(before < 20_000, "all of it came before the pause");
    rig.send(numbered(&fast, 50_000, 50_300)).await;
    watch(&mut log, &mut witness, |it| {
        it.records.len() >= before + 300
    })
    .await;
    let came = &witness.records[before..];
    assert!(
        came.iter().all(|it| *it.position.partition.topic == *fast),
        "a record of the paused topic came"
    );
    assert_eq!(
        quiet(&mut log, &mut witness, Duration::from_millis(300)).await,
        0
    );
    // It continues where it stopped; the witness checks the order of offsets.
    log.pause(&[]);
    rig.send(numbered(&fast, 50_300, 50_400)).await;
    watch(&mut log, &mut witness, |it| it.seen.len() >= 20_400).await;
    let all: BTreeSet<i64> = (0..20_000).chain(50_000..50_400).collect();
    assert_eq!(witness.values(), all);
    assert_eq!(witness.records.len(), 20_400, "each record once");
    log.close().await;
}

macro_rules! contract {
    ($($promise:ident),+) => {
        mod memory {
            use super::{Memory, MemoryCluster};
            $(#[tokio::test] async fn $promise() {
                super::$promise(Memory(MemoryCluster::new(11))).await;
            })+
        }
        mod kafka {
            use super::Kafka;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $promise() {
                super::$promise(Kafka::real()).await;
            })+
        }
        mod kip848 {
            use super::Kafka;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $promise() {
                super::$promise(Kafka::next_generation()).await;
            })+
        }
        mod embedded {
            use super::Kafka;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $promise() {
                super::$promise(Kafka::embedded()).await;
            })+
        }
    };
}

contract!(
    records_come_whole_and_in_order,
    reading_resumes_where_it_was_committed,
    a_rebalance_loses_nothing_and_fences_the_old_owner,
    a_rewind_drops_what_is_buffered_and_reads_again,
    a_paused_topic_waits_and_others_are_delivered,
    a_dropped_next_loses_nothing
);
