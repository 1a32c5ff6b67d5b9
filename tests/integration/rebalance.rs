//! Promise: a rebalance costs what the broker makes it cost: a join through us takes no longer than one
//! through a bare client in the same group setup, while the role of the old owner is busy with something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nearshore::log::{Delivery, Log};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::harness::fresh;
use crate::log::{Kafka, LIMIT, Rig, Witness, numbered, watch};

const ROUNDS: usize = 5;
const OVERHEAD_MAX: Duration = Duration::from_millis(200);

fn bare(kafka: &Kafka, group: &str, topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.settings.brokers)
        .set("group.id", group)
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1200")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
        .expect("valid settings");
    consumer.subscribe(&[topic]).expect("subscribed");
    consumer
}

fn first_record(consumer: &BaseConsumer) {
    let deadline = Instant::now() + LIMIT;
    while !matches!(consumer.poll(Duration::from_millis(50)), Some(Ok(_))) {
        assert!(Instant::now() < deadline, "no record");
    }
}

/// From the second member's subscription to its first record, with bare clients.
fn floor(kafka: &Kafka, topic: &str) -> Duration {
    let group = fresh("bare");
    let old = bare(kafka, &group, topic);
    first_record(&old);
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let polling = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            let _ = old.poll(Duration::from_millis(50));
        }
    });
    let start = Instant::now();
    let new = bare(kafka, &group, topic);
    first_record(&new);
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    polling.join().expect("no panic");
    took
}

/// The same through us; the old owner's role is busy all the while.
async fn ours(kafka: &Kafka, topic: &str) -> Duration {
    let group = fresh("ours");
    let (mut old, mut witness) = (kafka.join(&group, topic), Witness::default());
    watch(&mut old, &mut witness, |it| !it.records.is_empty()).await;
    let start = Instant::now();
    let mut new = kafka.join(&group, topic);
    let first =
        async { while !matches!(new.next().await.expect("goes on"), Delivery::Batch(_)) {} };
    tokio::time::timeout(LIMIT, first).await.expect("a record");
    let took = start.elapsed();
    old.close().await;
    new.close().await;
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "compares times: run it by hand on a quiet machine, with --ignored"]
async fn a_join_takes_as_long_as_a_bare_clients() {
    let kafka = Kafka::real();
    let topic = kafka.topic(8).await;
    kafka.send(numbered(&topic, 0, 4_000)).await;
    let (mut floors, mut took) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floors.push(tokio::task::block_in_place(|| floor(&kafka, &topic)));
        took.push(ours(&kafka, &topic).await);
    }
    floors.sort();
    took.sort();
    // The least of each: when the old owner's heartbeat is due decides about the rest.
    let (floor, ours) = (floors[0], took[0]);
    eprintln!("rebalance: bare {floors:?}, ours {took:?}");
    assert!(ours <= floor + OVERHEAD_MAX, "{ours:?} over {floor:?}");
}
