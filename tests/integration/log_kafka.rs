//! What only a real broker shows: stalls, rebalances, gaps in offsets, large records, positions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nearshore_core::ports::log::{Delivery, Error, Log, Outgoing};
use nearshore_core::user::record::{Offset, Record, Resume, Timestamp};
use nearshore_kafka::{Admin, Embedded, KafkaLog, NewTopic, Producer, Tailed, tail};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::harness::{eventually, fresh};
use crate::log::{Kafka, LIMIT, Rig, TIME, Witness, numbered, quiet, watch};

/// Records of 200 bytes.
fn many(topic: &str, count: i64) -> Vec<Outgoing> {
    let mut records = numbered(topic, 0, count);
    for (n, record) in records.iter_mut().enumerate() {
        record.value = Some(format!("{n:0200}").into());
    }
    records
}

/// Bytes that do not compress.
pub fn noise(size: usize) -> Bytes {
    let mut state = 88_172_645_463_325_252_u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(byte).collect()
}

/// The real broker, with a short poll interval and a small prefetch.
fn short_poll_interval() -> Kafka {
    let mut kafka = Kafka::real();
    let consumer = &mut kafka.settings.consumer;
    consumer.insert("max.poll.interval.ms".into(), "6000".into());
    // Small, so that few records fill it.
    consumer.insert("queued.max.messages.kbytes".into(), "1024".into());
    kafka
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_reads_nothing_for_longer_than_the_poll_interval_stays_in_the_group() {
    let kafka = short_poll_interval();
    let topic = kafka.topic(4).await;
    kafka.send(many(&topic, 60_000)).await;
    let (mut log, mut witness) = (kafka.join(&fresh("g"), &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.records.len() > 1_000).await;
    let polls = log.health().polls();
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(
        log.health().polls() > polls + 10,
        "the background polling stopped"
    );
    log.commit(&witness.resumes())
        .await
        .expect("it is still a member");
    // Read slowly, then at full speed: pauses begin and end, and each record comes once.
    for _ in 0..6 {
        let more = witness.records.len() + 4_000;
        watch(&mut log, &mut witness, |it| it.records.len() >= more).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    watch(&mut log, &mut witness, |it| it.records.len() >= 60_000).await;
    assert_eq!(
        quiet(&mut log, &mut witness, Duration::from_millis(500)).await,
        0
    );
    assert_eq!(witness.seen.len(), 60_000);
    assert!(witness.revoked.is_empty());
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_member_loses_partitions_and_reads_them_when_they_return() {
    let kafka = short_poll_interval();
    let (topic, group) = (kafka.topic(4).await, fresh("g"));
    kafka.send(many(&topic, 40_000)).await;
    let (mut stalled, mut witness) = (kafka.join(&group, &topic), Witness::default());
    watch(&mut stalled, &mut witness, |it| it.records.len() > 1_000).await;
    tokio::time::sleep(Duration::from_secs(1)).await; // Its buffer is full by now, or will be.
    let (mut other, mut other_witness) = (kafka.join(&group, &topic), Witness::default());
    watch(&mut other, &mut other_witness, |it| it.seen.len() > 1_000).await;
    let moved: BTreeSet<_> = other_witness.owned.keys().cloned().collect();
    // The notice is delivered before the batches that were buffered.
    witness.see(stalled.next().await.expect("the member reads"));
    assert_eq!(witness.revoked, moved);
    other.close().await;
    let back = |it: &Witness| {
        moved
            .iter()
            .all(|of| it.owned.get(of).is_some_and(Option::is_some))
    };
    watch(&mut stalled, &mut witness, |it| {
        back(it) && it.seen.len() == 40_000
    })
    .await;
    stalled.close().await;
}

/// When a consumer of bare rdkafka gets each of `count` records of the topic.
fn plain(kafka: &Kafka, topic: &str, count: usize) -> std::thread::JoinHandle<Vec<Instant>> {
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &kafka.settings.brokers)
        .set("group.id", fresh("plain"))
        .create()
        .expect("valid settings");
    let mut whole = TopicPartitionList::new();
    whole
        .add_partition_offset(topic, 0, rdkafka::Offset::Beginning)
        .expect("an offset");
    consumer.assign(&whole).expect("assigned");
    std::thread::spawn(move || {
        let (mut seen, deadline) = (Vec::new(), Instant::now() + LIMIT);
        while seen.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} came", seen.len());
            // A poll may end without a record.
            if let Some(record) = consumer.poll(Duration::from_secs(1)) {
                record.expect("the consumer reads");
                seen.push(Instant::now());
            }
        }
        seen
    })
}

/// A record of a quiet topic waits for no timer and no full buffer: compared with a consumer of bare rdkafka beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_topic_is_delivered_as_soon_as_a_plain_consumer_has_it() {
    const RECORDS: i64 = 20;
    let kafka = Kafka::real();
    let topic = kafka.topic(1).await;
    let (mut log, mut witness) = (kafka.join(&fresh("g"), &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.assigned).await;
    let plain = plain(&kafka, &topic, RECORDS as usize);
    let mut delivered = Vec::new();
    for n in 0..RECORDS {
        kafka.send(numbered(&topic, n, n + 1)).await;
        watch(&mut log, &mut witness, |it| it.values().contains(&n)).await;
        delivered.push(Instant::now());
    }
    let plain = plain.join().expect("it read all");
    let after = |(log, plain): (&Instant, &Instant)| log.saturating_duration_since(*plain);
    let mut later: Vec<_> = delivered.iter().zip(&plain).map(after).collect();
    later.sort();
    // A timer would make all of them late; a busy machine makes some late, so the quickest few are compared.
    assert!(later[2] < Duration::from_millis(100), "{later:?}");
    log.close().await;
}

/// Reads a tail until it has reached the end as of its start.
pub async fn read_until_ready(tail: &mut nearshore_kafka::Tail) -> Vec<Record> {
    let mut records = Vec::new();
    let all = async {
        while let Tailed::Record(record) = tail.next().await.expect("the topic is read") {
            records.push(record);
        }
    };
    tokio::time::timeout(LIMIT, all)
        .await
        .expect("it reaches the end");
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_of_an_empty_topic_is_ready_and_then_follows_it() {
    let kafka = Kafka::real();
    let topic = kafka.topic(3).await;
    let nowhere = BTreeMap::new();
    let mut empty = tail(&kafka.settings, &topic, &nowhere)
        .await
        .expect("the topic exists");
    assert_eq!(read_until_ready(&mut empty).await, []);
    kafka.send(numbered(&topic, 0, 1_000)).await;
    for _ in 0..1_000 {
        let next = tokio::time::timeout(LIMIT, empty.next()).await;
        assert!(matches!(next, Ok(Ok(Tailed::Record(_)))), "{next:?}");
    }
    let mut full = tail(&kafka.settings, &topic, &nowhere)
        .await
        .expect("the topic exists");
    let records = read_until_ready(&mut full).await;
    assert_eq!(records.len(), 1_000);
    // From given offsets, only the rest.
    let mut ends = BTreeMap::new();
    for record in &records {
        let done = Resume::after(record.position.offset);
        ends.insert(record.position.partition.clone(), done);
    }
    kafka.send(numbered(&topic, 1_000, 1_010)).await;
    let mut rest = tail(&kafka.settings, &topic, &ends)
        .await
        .expect("the topic exists");
    assert_eq!(read_until_ready(&mut rest).await.len(), 10);
    let missing = tail(&kafka.settings, &fresh("missing"), &nowhere).await;
    assert!(matches!(missing, Err(Error::Refused { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_waits_a_moment_for_a_topic_that_is_being_created() {
    let kafka = Kafka::real();
    let admin = Admin::new(&kafka.settings).expect("valid settings");
    let topic = NewTopic {
        name: fresh("late"),
        partitions: 2,
        config: BTreeMap::new(),
    };
    let nowhere = BTreeMap::new();
    let create = async {
        // Longer than the tail's first question takes.
        tokio::time::sleep(Duration::from_secs(1)).await;
        admin.ensure(std::slice::from_ref(&topic)).await
    };
    let (late, created) = tokio::join!(tail(&kafka.settings, &topic.name, &nowhere), create);
    created.expect("the topic is created");
    assert_eq!(read_until_ready(&mut late.expect("it is found")).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_is_ready_although_the_last_offsets_have_no_record() {
    let kafka = Kafka::real();
    let topic = kafka.topic(1).await;
    let writer: BaseProducer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &kafka.settings.brokers)
        .set("transactional.id", fresh("t"))
        .create()
        .expect("valid settings");
    let write = topic.clone();
    tokio::task::spawn_blocking(move || {
        writer.init_transactions(LIMIT).expect("begun");
        for (value, keep) in [("kept", true), ("aborted", false)] {
            writer.begin_transaction().expect("begun");
            let record = BaseRecord::to(&write).key("k").payload(value);
            writer.send(record).map_err(|it| it.0).expect("queued");
            writer.flush(LIMIT).expect("the records are written");
            match keep {
                true => writer.commit_transaction(LIMIT).expect("committed"),
                false => writer.abort_transaction(LIMIT).expect("aborted"),
            }
        }
    })
    .await
    .expect("no panic");
    let mut reader = tail(&kafka.settings, &topic, &BTreeMap::new())
        .await
        .expect("the topic exists");
    let records = read_until_ready(&mut reader).await;
    assert_eq!(records.len(), 1);
    let admin = Admin::new(&kafka.settings).expect("valid settings");
    let end = admin.extents(&topic).await.expect("Kafka answers")[0].end;
    assert_eq!(end, Offset(4), "two records and two markers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_whose_name_is_not_utf8_is_delivered() {
    let kafka = Kafka::real();
    let topic = kafka.topic(1).await;
    let writer: BaseProducer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &kafka.settings.brokers)
        .create()
        .expect("valid settings");
    let name = std::ffi::CString::new(topic.as_str()).expect("no zero");
    // SAFETY: types and order are those of librdkafka's manual; everything is copied before the return.
    let failed = unsafe {
        use raw::rd_kafka_vtype_t as vtype;
        use rdkafka::bindings as raw;
        raw::rd_kafka_producev(
            writer.client().native_ptr(),
            vtype::RD_KAFKA_VTYPE_TOPIC,
            name.as_ptr(),
            vtype::RD_KAFKA_VTYPE_HEADER,
            c"na\xffme".as_ptr(),
            c"v".as_ptr(),
            1_isize,
            vtype::RD_KAFKA_VTYPE_END,
        )
    };
    assert_eq!(failed as i32, 0);
    writer.flush(LIMIT).expect("the records are written");
    let (mut log, mut witness) = (kafka.join(&fresh("g"), &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.records.len() == 1).await;
    assert_eq!(witness.records[0].headers[0].0, "na\u{fffd}me");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_2_megabytes_is_written_where_the_topic_admits_it_and_refused_elsewhere() {
    let kafka = Kafka::real();
    let large = kafka
        .topic_with(1, &[("max.message.bytes", "4000000")])
        .await;
    let small = kafka.topic(1).await;
    let value = noise(2_000_000);
    let record = |topic: &str| Outgoing {
        value: Some(value.clone()),
        ..numbered(topic, 0, 1).remove(0)
    };
    kafka.send(vec![record(&large)]).await;
    let (mut log, mut witness) = (kafka.join(&fresh("g"), &large), Witness::default());
    watch(&mut log, &mut witness, |it| it.records.len() == 1).await;
    assert_eq!(witness.records[0].value.as_ref(), Some(&value));
    let refused = log.send(vec![record(&small)]).await;
    assert!(matches!(&refused, Err(Error::Unfit { .. })), "{refused:?}");
    // The producer still writes.
    log.send(numbered(&small, 0, 10))
        .await
        .expect("the records are written");
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_is_reported_by_the_member_and_by_the_cluster() {
    let kafka = Kafka::real();
    let (topic, group) = (kafka.topic(2).await, fresh("g"));
    kafka.send(numbered(&topic, 0, 100)).await;
    let admin = Admin::new(&kafka.settings).expect("valid settings");
    let lag = async || -> u64 {
        let lag = admin.lag(&group, &[&topic]).await.expect("Kafka answers");
        lag.values().sum()
    };
    assert_eq!(
        lag().await,
        100,
        "the lag of a group that never committed is the whole topic"
    );
    let (mut log, mut witness) = (kafka.join(&group, &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.seen.len() == 100).await;
    let status = log.lag().read();
    assert_eq!(status.len(), 2);
    for it in &status {
        let first = witness
            .records
            .iter()
            .find(|record| record.position.partition == it.partition);
        assert_eq!(it.oldest, first.map(|record| record.time));
    }
    log.commit(&witness.resumes())
        .await
        .expect("the partition is assigned");
    let ends: i64 = log
        .lag()
        .read()
        .iter()
        .filter_map(|it| Some(it.end?.0))
        .sum();
    assert_eq!(ends, 100);
    for it in log.lag().read() {
        assert_eq!(
            (it.oldest, it.committed.map(|at| at.0)),
            (None, it.end.map(|at| at.0))
        );
    }
    assert_eq!(lag().await, 0);
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_can_be_placed_at_a_time() {
    let kafka = Kafka::real();
    let (topic, group) = (kafka.topic(3).await, fresh("g"));
    kafka.send(numbered(&topic, 0, 300)).await;
    let admin = Admin::new(&kafka.settings).expect("valid settings");
    let start = admin
        .since(&topic, Timestamp(TIME + 200))
        .await
        .expect("Kafka answers");
    admin
        .place(&group, &start)
        .await
        .expect("the group is empty");
    assert_eq!(
        admin
            .committed(&group, &[&topic])
            .await
            .expect("Kafka answers"),
        start
    );
    let (mut log, mut witness) = (kafka.join(&group, &topic), Witness::default());
    watch(&mut log, &mut witness, |it| it.seen.len() >= 100).await;
    assert_eq!(witness.values(), (200..300).collect());
    assert!(
        admin.place(&group, &start).await.is_err(),
        "a group with a member cannot be placed"
    );
    let never = admin
        .since(&topic, Timestamp(TIME + 1_000))
        .await
        .expect("Kafka answers");
    assert_eq!(
        never.values().map(|at| at.0).sum::<i64>(),
        300,
        "after the last record, all partitions are placed at their ends"
    );
    log.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_described_with_partitions_policy_and_retention() {
    let kafka = Kafka::real();
    let week = ("retention.ms", "604800000");
    let stamped = ("message.timestamp.type", "LogAppendTime");
    let events = kafka.topic_with(5, &[stamped, week]).await;
    let profiles = kafka.topic_with(2, &[("cleanup.policy", "compact")]).await;
    let missing = fresh("missing");
    let admin = Admin::new(&kafka.settings).expect("valid settings");
    let found = admin
        .describe(&[&events, &profiles, &missing])
        .await
        .expect("Kafka answers");
    assert_eq!(
        [5, 2, 0],
        [
            found[0].partitions,
            found[1].partitions,
            found[2].partitions
        ]
    );
    assert_eq!(
        [Some(true), Some(false), None],
        [0, 1, 2].map(|nth| found[nth].log_append_time())
    );
    assert_eq!(
        [Some(false), Some(true), None],
        [0, 1, 2].map(|nth| found[nth].compacted())
    );
    assert_eq!(
        found[0].retention(),
        Some(Some(Duration::from_secs(604_800)))
    );
    assert_eq!(found[1].retention(), Some(None));
    assert_eq!(
        admin.brokers().await.expect("Kafka answers"),
        std::slice::from_ref(&kafka.settings.brokers)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_broker_is_reported_and_so_is_its_return() {
    let cluster = Embedded::start(&[("t", 1)]).expect("the mock cluster starts");
    let mut log = KafkaLog::join(&cluster.settings(), "g", &["t"]).expect("valid settings");
    let mut witness = Witness::default();
    watch(&mut log, &mut witness, |it| it.assigned).await;
    let health = log.health();
    assert_eq!((health.fault(), health.assigned()), (None, Some(1)));
    cluster.reachable(false).expect("the mock cluster runs");
    let fault = eventually(LIMIT, async || health.fault().ok_or("no fault".to_owned())).await;
    assert!(
        fault.contains(cluster.brokers().split(',').next().expect("one")),
        "{fault}"
    );
    cluster.reachable(true).expect("the mock cluster runs");
    eventually(LIMIT, async || health.fault().map_or(Ok(()), Err)).await;
    cluster.reachable(false).expect("the mock cluster runs");
    eventually(LIMIT, async || health.fault().ok_or("no fault".to_owned())).await;
    // It ends without its broker.
    let closed = tokio::time::timeout(LIMIT, log.close()).await;
    closed.expect("it does not wait for the broker");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_a_broker_is_a_timeout_to_retry() {
    let cluster = Embedded::start(&[("t", 1)]).expect("the mock cluster starts");
    let mut settings = cluster.settings();
    settings.ack_timeout = Duration::from_secs(2);
    cluster.reachable(false).expect("the mock cluster runs");
    let producer = Producer::new(&settings).expect("valid settings");
    let sent = producer.send(numbered("t", 0, 3)).await;
    assert!(
        matches!(&sent, Err(Error::Timeout { topic, .. }) if topic == "t"),
        "{sent:?}"
    );
    cluster.reachable(true).expect("the mock cluster runs");
    eventually(LIMIT, || async {
        let sent = producer.send(numbered("t", 0, 3)).await;
        sent.map_err(|error| error.to_string())
    })
    .await;
}

/// `scripts/test --test integration speed_of_reading -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: it prints and checks nothing"]
async fn speed_of_reading_and_writing() {
    let kafka = Kafka::real();
    let topic = kafka.topic(4).await;
    let count = 400_000;
    let start = Instant::now();
    for _ in 0..4 {
        kafka.send(many(&topic, count / 4)).await;
    }
    println!(
        "written: {:.0}/s",
        count as f64 / start.elapsed().as_secs_f64()
    );
    let mut log = kafka.join(&fresh("g"), &topic);
    let (mut first, mut seen, mut batches) = (None, 0, 0);
    while seen < count {
        if let Delivery::Batch(batch) = log.next().await.expect("the member reads") {
            first.get_or_insert_with(Instant::now);
            seen += i64::try_from(batch.records.len()).expect("few");
            batches += 1;
        }
    }
    let took = first.expect("read").elapsed();
    println!(
        "read: {:.0}/s in {batches} batches",
        count as f64 / took.as_secs_f64()
    );
    log.close().await;
}
