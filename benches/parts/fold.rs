//! Speed of ingest on a real Kafka and a real Redis, compared with a client with the same reads and writes and no fold.

use std::time::{Duration, Instant};

use nearshore_core::ports::log::Outgoing;
use nearshore_kafka::Producer;

use crate::bare::{self, Samples, Script};
use crate::load::{Load, catalogue};
use crate::process::{Process, Site, TABLE};
use crate::recorder::{Burst, Recorder, words};
use crate::{Options, machine, median};

/// Share of events after which the rate is measured: before it members join and caches are cold.
const FROM: f64 = 0.1;

/// Prints the rates of both in interleaved rounds, and their ratio.
pub async fn run(options: &Options) {
    let load = Load {
        events: options.number("events", 1_000_000),
        users: options.number("users", 20_000),
        visit: options.number("visit", 20),
    };
    let partitions = options.number("partitions", 4);
    let site = site(partitions as i32).await;
    fill(&site.producer, load.records(&site.topics.user_events)).await;
    println!(
        "real parts: {load:?}, {partitions} partitions; {}",
        machine()
    );
    let script = record(&site, load).await;
    let (mut ingest, mut bare) = (Vec::new(), Vec::new());
    for round in 0..options.number("rounds", 3) {
        let (rate, trips) = folded(&site, load, &format!("fold-{round}")).await;
        site.redis.ask(&["FLUSHALL"]).await;
        let samples = bare::run(&site, &script, &format!("bare-{round}-{}", site.ns)).await;
        let floor = rate_of(&samples, load.events);
        println!(
            "  round {round}: ingest {rate:.0} events/s, {trips:.2} round trips per 1,000 events; bare {floor:.0} events/s; \
             ratio {:.2}; {}",
            rate / floor,
            machine()
        );
        ingest.push(rate);
        bare.push(floor);
    }
    let ratios = ingest.iter().zip(&bare).map(|(ingest, bare)| ingest / bare);
    println!(
        "  medians: ingest {:.0}, bare {:.0} events/s, ratio {:.2}",
        median(ingest.clone()),
        median(bare.clone()),
        median(ratios.collect())
    );
}

/// Topics, a Redis and a configuration with the shipped defaults.
pub async fn site(partitions: i32) -> Site {
    let site = Site::open(&[("user_events", partitions, &[])]).await;
    site.edit(&[
        (
            "quiet_period = \"200ms\"\nclaim_every = \"200ms\"\nclaims_per_day = 1000\n",
            "",
        ),
        (TABLE, "table:1ms"),
        ("names = 3", "names = 20"),
        ("batch_max = 4", "batch_max = 64"),
    ]);
    site.send(catalogue(&site.topics.catalog)).await;
    site
}

/// Writes records, many at a time.
pub async fn fill(producer: &Producer, records: impl Iterator<Item = Outgoing>) {
    let mut records = records.peekable();
    while records.peek().is_some() {
        let some = records.by_ref().take(20_000).collect();
        producer.send(some).await.expect("the records are written");
    }
}

/// Folds everything once and records the commands to Redis.
async fn record(site: &Site, load: Load) -> Script {
    let recorder = Recorder::start(site.redis.port);
    let url = format!("redis://127.0.0.1:{}", recorder.port);
    let mut process = start(site, "fold-r", &url);
    samples(site, &process, load.events).await;
    process.terminate().await;
    let bursts = recorder.bursts();
    print_commands(&bursts, load);
    let mut requests = Vec::new();
    for lane in site.topics.lanes() {
        for record in site.read(&lane).await {
            requests.push(Outgoing {
                topic: lane.clone(),
                key: record.key,
                value: record.value,
                headers: Vec::new(),
                time: None,
            });
        }
    }
    println!("  requests: {}", requests.len());
    Script::new(&bursts, requests, load.events)
}

/// Prints the number of commands by purpose.
fn print_commands(bursts: &[Burst], load: Load) {
    let (mut folds, mut deltas, mut cells, mut loads, mut other, mut bytes) = (0, 0, 0, 0, 0, 0);
    for burst in bursts {
        bytes += burst.bytes.len();
        for command in words(&burst.bytes) {
            let key = command
                .get(3)
                .map(|word| String::from_utf8_lossy(word).into_owned());
            match (command[0].as_slice(), key) {
                (b"EVALSHA", Some(key)) if key.ends_with(":state") => folds += 1,
                (b"EVALSHA", Some(key)) if key.contains(":counts:") => {
                    deltas += 1;
                    cells += (command.len() - 9) / 2;
                }
                (b"HMGET", _) => loads += 1,
                _ => other += 1,
            }
        }
    }
    println!(
        "  commands to Redis: {folds} states ({:.1} events each), {deltas} deltas (~{cells} cells), {loads} loads, {other} others; \
         {} bursts = {:.2} per 1,000 events; {:.0} bytes an event",
        load.events as f64 / folds as f64,
        bursts.len(),
        bursts.len() as f64 * 1000.0 / load.events as f64,
        bytes as f64 / load.events as f64
    );
}

fn start(site: &Site, ns: &str, url: &str) -> Process {
    let environment = [("NEARSHORE__NAMESPACE", ns), ("NEARSHORE__REDIS__URL", url)];
    Process::start_with(site, "ingest", &environment)
}

/// Events per second of the shipped binary with an empty Redis, and its round trips per 1,000 events.
async fn folded(site: &Site, load: Load, ns: &str) -> (f64, f64) {
    site.redis.ask(&["FLUSHALL"]).await;
    let mut process = start(site, ns, &site.redis.url());
    let samples = samples(site, &process, load.events).await;
    let trips = process
        .metric("nearshore_redis_round_trips_total", "")
        .await;
    process.terminate().await;
    (
        rate_of(&samples, load.events),
        trips * 1000.0 / load.events as f64,
    )
}

/// Samples the number of folded events until all are folded.
pub async fn samples(site: &Site, process: &Process, events: usize) -> Samples {
    let topic = format!("topic=\"{}\"", site.topics.user_events);
    let start = Instant::now();
    let mut samples = Samples::new();
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let done = match process.get("/metrics").await {
            Ok((200, _)) => process.metric("nearshore_records_total", &topic).await as usize,
            _ => 0,
        };
        samples.push((Instant::now(), done));
        if done >= events {
            return samples;
        }
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "{}",
            process.log()
        );
    }
}

/// Events per second after the first [`FROM`] of them.
pub fn rate_of(samples: &Samples, events: usize) -> f64 {
    let begun = |(_, done): &&(Instant, usize)| *done as f64 >= events as f64 * FROM;
    let first = samples.iter().find(begun).expect("it has begun");
    let last = samples
        .iter()
        .find(|(_, done)| *done >= events)
        .expect("it has ended");
    (last.1 - first.1) as f64 / last.0.duration_since(first.0).as_secs_f64()
}
