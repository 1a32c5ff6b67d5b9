//! A client with the same reads and writes as ingest and no fold: the floor that broker and store give on this machine.
//!
//! It reads by rdkafka on a thread of its own, as ingest does. It writes to Redis the commands that ingest sent, in the
//! same bursts, prepared before the clock starts. It sends the same requests to the lanes and commits offsets twice a
//! second.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use nearshore_core::ports::log::Outgoing;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use redis::aio::MultiplexedConnection;

use crate::process::Site;
use crate::recorder::{Burst, words};

/// Records of one flush.
const FLUSH: usize = 4_000;

/// What the client writes.
pub struct Script {
    pipes: Vec<redis::Pipeline>,
    requests: Vec<Outgoing>,
    events: usize,
}

impl Script {
    /// Prepares the commands and requests of ingest for so many events.
    pub fn new(bursts: &[Burst], requests: Vec<Outgoing>, events: usize) -> Self {
        let pipes = bursts.iter().map(|burst| {
            let mut pipe = redis::Pipeline::with_capacity(burst.commands);
            pipe.ignore_errors();
            // The client sends its own CLIENT commands.
            for said in words(&burst.bytes)
                .iter()
                .filter(|said| said[0] != b"CLIENT")
            {
                let mut cmd = redis::Cmd::new();
                said.iter().for_each(|word| {
                    cmd.arg(word.as_slice());
                });
                pipe.add_command(cmd);
            }
            pipe
        });
        Self {
            pipes: pipes.filter(|pipe| !pipe.is_empty()).collect(),
            requests,
            events,
        }
    }
}

/// Number of records done, with the time.
pub type Samples = Vec<(Instant, usize)>;

/// Reads the topic once and writes the script meanwhile.
pub async fn run(site: &Site, script: &Script, group: &str) -> Samples {
    let client = redis::Client::open(site.redis.url()).expect("a valid url");
    let config = redis::AsyncConnectionConfig::new().set_pipeline_buffer_size(512);
    let mut redis = client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("Redis answers");
    let (records, received) = mpsc::sync_channel::<Vec<(i32, i64)>>(2);
    let consumer = consumer(site, group);
    let topic = site.topics.user_events.to_string();
    std::thread::scope(|scope| {
        let events = script.events;
        let reading = &consumer;
        scope.spawn(move || read(reading, events, &records));
        // The reader ends by itself. Only this task blocks; the other worker thread continues.
        tokio::task::block_in_place(|| {
            let handle = tokio::runtime::Handle::current();
            handle.block_on(write(
                site,
                (script, &mut redis),
                (&consumer, &topic, &received),
            ))
        })
    })
}

fn consumer(site: &Site, group: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &site.settings.brokers)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("queued.max.messages.kbytes", "16384")
        .set("queued.min.messages", "20000")
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.wait.max.ms", "100")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
        .expect("valid settings");
    consumer
        .subscribe(&[&site.topics.user_events])
        .expect("subscribed");
    consumer
}

fn read(consumer: &BaseConsumer, events: usize, records: &mpsc::SyncSender<Vec<(i32, i64)>>) {
    let (mut seen, mut flush) = (0, Vec::with_capacity(FLUSH));
    while seen < events {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        std::hint::black_box((message.key(), message.payload()));
        flush.push((message.partition(), message.offset()));
        seen += 1;
        if flush.len() == FLUSH || seen == events {
            let full = std::mem::replace(&mut flush, Vec::with_capacity(FLUSH));
            if records.send(full).is_err() {
                return;
            }
        }
    }
}

type Reading<'a> = (
    &'a BaseConsumer,
    &'a str,
    &'a mpsc::Receiver<Vec<(i32, i64)>>,
);

async fn write(
    site: &Site,
    (script, redis): (&Script, &mut MultiplexedConnection),
    (consumer, topic, received): Reading<'_>,
) -> Samples {
    let mut samples = Samples::new();
    let (mut done, mut written, mut requested) = (0, 0, 0);
    let mut committed = Instant::now();
    let mut positions = std::collections::BTreeMap::new();
    while done < script.events {
        let flush = received.recv().expect("the reader runs");
        done += flush.len();
        positions.extend(flush);
        let upto = |all: usize| (all as f64 * done as f64 / script.events as f64).round() as usize;
        for pipe in &script.pipes[written..upto(script.pipes.len())] {
            let answers: Vec<redis::RedisResult<redis::Value>> =
                pipe.query_async(redis).await.expect("Redis answers");
            let wrong = answers.iter().find(|answer| answer.is_err());
            assert!(wrong.is_none(), "{wrong:?}");
        }
        written = upto(script.pipes.len());
        let requests = script.requests[requested..upto(script.requests.len())].to_vec();
        requested = upto(script.requests.len());
        if !requests.is_empty() {
            site.producer
                .send(requests)
                .await
                .expect("the records are written");
        }
        if committed.elapsed() >= Duration::from_millis(500) || done == script.events {
            let mut list = TopicPartitionList::new();
            for (partition, offset) in &positions {
                let at = Offset::Offset(offset + 1);
                list.add_partition_offset(topic, *partition, at)
                    .expect("a valid offset");
            }
            consumer.commit(&list, CommitMode::Sync).expect("committed");
            committed = Instant::now();
        }
        samples.push((Instant::now(), done));
    }
    samples
}
