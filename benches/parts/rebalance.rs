//! What a rebalance costs beyond the broker's own time: joins, callbacks, partitions that stay, and the death of a
//! member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nearshore_core::list::document::Update;
use nearshore_core::ports::log::{Delivery, Log, Outgoing};
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::{KafkaLog, NewTopic};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message as _};

use crate::fold::{fill, samples, site};
use crate::harness::{eventually, fresh};
use crate::load::Load;
use crate::process::{LIMIT, Process, Site, now};
use crate::{Options, machine, median};

const PARTITIONS: i32 = 8;

/// Prints all four measurements.
pub async fn run(options: &Options) {
    let site = site(PARTITIONS).await;
    println!("rebalance: {}", machine());
    joins(&site, options.number("pairs", 7)).await;
    stays(&site, options.number("joins", 5)).await;
    callbacks(&site, options.number("comings", 10)).await;
    death(&site, options.number("users", 100_000)).await;
    println!("  {}", machine());
}

/// A consumer of bare rdkafka with the settings of a member.
fn bare(site: &Site, group: &str, topic: &str) -> BaseConsumer {
    let consumer: BaseConsumer = config(&site.settings.brokers, group)
        .create()
        .expect("valid settings");
    consumer.subscribe(&[topic]).expect("subscribed");
    consumer
}

fn config(brokers: &str, group: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "1200")
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .set("partition.assignment.strategy", "cooperative-sticky");
    config
}

fn first_record(consumer: &BaseConsumer) {
    let deadline = Instant::now() + LIMIT;
    while !matches!(consumer.poll(Duration::from_millis(50)), Some(Ok(_))) {
        assert!(Instant::now() < deadline, "no record");
    }
}

/// A thread that polls a consumer until it is stopped, and returns it.
struct Polling {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BaseConsumer>,
}

impl Polling {
    fn start(consumer: BaseConsumer) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = consumer.poll(Duration::from_millis(50));
            }
            consumer
        });
        Self { stop, thread }
    }

    fn end(self) -> BaseConsumer {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic")
    }
}

/// Seconds from the subscription of a second consumer to its first record, with bare rdkafka.
fn bare_join(site: &Site, topic: &str) -> f64 {
    let group = fresh("bare");
    let old = bare(site, &group, topic);
    first_record(&old);
    let old = Polling::start(old);
    let start = Instant::now();
    let new = bare(site, &group, topic);
    first_record(&new);
    let took = start.elapsed().as_secs_f64();
    drop((old.end(), new));
    took
}

async fn first_batch(log: &mut KafkaLog) {
    let first = async {
        while !matches!(
            log.next().await.expect("the member reads"),
            Delivery::Batch(_)
        ) {}
    };
    tokio::time::timeout(LIMIT, first).await.expect("a record");
}

/// The same with [`KafkaLog`]; the old owner does not read its records meanwhile.
async fn log_join(site: &Site, topic: &str) -> f64 {
    let group = fresh("log");
    let join = || KafkaLog::join(&site.settings, &group, &[topic]).expect("valid settings");
    let mut old = join();
    first_batch(&mut old).await;
    let start = Instant::now();
    let mut new = join();
    first_batch(&mut new).await;
    let took = start.elapsed().as_secs_f64();
    old.close().await;
    new.close().await;
    took
}

async fn topic(site: &Site) -> String {
    let name = fresh("joins");
    let new = NewTopic {
        name: name.clone(),
        partitions: PARTITIONS,
        config: BTreeMap::new(),
    };
    site.admin
        .ensure(&[new])
        .await
        .expect("the topic is created");
    name
}

fn note(topic: &str, nth: usize) -> Outgoing {
    Outgoing {
        topic: topic.into(),
        key: Some(format!("{nth}").into()),
        value: Some("{}".into()),
        headers: Vec::new(),
        time: None,
    }
}

async fn joins(site: &Site, pairs: usize) {
    let topic = topic(site).await;
    site.send((0..4_000).map(|nth| note(&topic, nth)).collect())
        .await;
    let (mut floors, mut logs) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        floors.push(tokio::task::block_in_place(|| bare_join(site, &topic)));
        logs.push(log_join(site, &topic).await);
    }
    let ratios = logs.iter().zip(&floors).map(|(log, floor)| log / floor);
    println!("  a join, subscription to first record, {pairs} pairs:");
    println!("    bare {floors:.3?} s\n    log  {logs:.3?} s");
    println!(
        "    medians: bare {:.3} s, log {:.3} s; ratio of pairs {:.2}, overhead {:+.0} ms",
        median(floors.clone()),
        median(logs.clone()),
        median(ratios.collect()),
        1000.0 * (median(logs) - median(floors))
    );
}

/// Longest time without a delivery from partitions that a member keeps while others join. Compared with a bare
/// consumer, which librdkafka may wake late after its own pause.
async fn stays(site: &Site, joins: usize) {
    let topic = topic(site).await;
    let (producer, name) = (site.producer.clone(), topic.clone());
    let feeding = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for round in 0.. {
            ticks.tick().await;
            let some = (0..64).map(|nth| note(&name, round * 64 + nth)).collect();
            producer.send(some).await.expect("the records are written");
        }
    });
    let group = fresh("stays");
    let mut old = KafkaLog::join(&site.settings, &group, &[&topic]).expect("valid settings");
    first_batch(&mut old).await;
    let quiet = gaps(&mut old, Duration::from_secs(5)).await;
    let mut silences = Vec::new();
    for _ in 0..joins {
        let mut new = KafkaLog::join(&site.settings, &group, &[&topic]).expect("valid settings");
        let reading = tokio::spawn(async move {
            first_batch(&mut new).await;
            new
        });
        silences.push(gaps(&mut old, Duration::from_secs(8)).await);
        reading.await.expect("no panic").close().await;
        gaps(&mut old, Duration::from_secs(5)).await;
    }
    old.close().await;
    let bare = tokio::task::block_in_place(|| bare_stays(site, &topic, joins));
    feeding.abort();
    println!(
        "  partitions that stay, records every 10 ms: longest silence {quiet:.3} s before, {silences:.3?} s while others join; of a bare consumer {bare:.3?} s"
    );
}

fn bare_stays(site: &Site, topic: &str, joins: usize) -> Vec<f64> {
    let group = fresh("bare-stays");
    let old = bare(site, &group, topic);
    first_record(&old);
    bare_gaps(&old, Duration::from_secs(5));
    let one = |_| {
        let new = bare(site, &group, topic);
        let new = Polling::start(new);
        let longest = bare_gaps(&old, Duration::from_secs(8));
        drop(new.end());
        bare_gaps(&old, Duration::from_secs(5));
        longest
    };
    (0..joins).map(one).collect()
}

fn bare_gaps(consumer: &BaseConsumer, span: Duration) -> f64 {
    let end = Instant::now() + span;
    let mut silences = Silences::default();
    while Instant::now() < end {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
            silences.delivered(message.partition());
        }
    }
    let assigned = consumer.assignment().expect("a member");
    let kept: Vec<i32> = assigned
        .elements()
        .iter()
        .map(|it| it.partition())
        .collect();
    silences.last.retain(|number, _| kept.contains(number));
    silences.longest(end)
}

/// Time of the last delivery of each partition, and its longest silence so far.
#[derive(Default)]
struct Silences {
    last: BTreeMap<i32, (Instant, f64)>,
}

impl Silences {
    fn delivered(&mut self, number: i32) {
        let now = Instant::now();
        let (before, longest) = self.last.entry(number).or_insert((now, 0.0));
        *longest = longest.max(now.duration_since(*before).as_secs_f64());
        *before = now;
    }

    fn longest(&self, end: Instant) -> f64 {
        let tail = |(before, longest): &(Instant, f64)| {
            longest.max(end.saturating_duration_since(*before).as_secs_f64())
        };
        self.last.values().map(tail).fold(0.0, f64::max)
    }
}

/// Longest silence of a partition that was assigned all the time.
async fn gaps(log: &mut KafkaLog, span: Duration) -> f64 {
    let end = Instant::now() + span;
    let mut silences = Silences::default();
    while let Ok(delivery) = tokio::time::timeout_at(end.into(), log.next()).await {
        match delivery.expect("the member reads") {
            Delivery::Batch(batch) => silences.delivered(batch.partition.number),
            Delivery::Revoked { partitions, .. } => {
                let moved: Vec<i32> = partitions.iter().map(|it| it.number).collect();
                silences.last.retain(|number, _| !moved.contains(number));
            }
            Delivery::Assigned(_) => {}
        }
        if Instant::now() >= end {
            break;
        }
    }
    silences.longest(end)
}

/// Rebalance callbacks while the model is busy: members join and leave.
async fn callbacks(site: &Site, comings: usize) {
    let before = site.config();
    site.edit(&[
        ("table:1ms", "table:15s"),
        ("batch_max = 64", "batch_max = 4\nunserved_max = 200"),
    ]);
    let ingest = Process::ready(site, "ingest").await;
    let generate = Process::ready(site, "generate").await;
    let users = (0..2_000).map(|nth| site.bought(&format!("busy-{nth}"), nth));
    site.send(users.collect()).await;
    // Requests are due after the quiet period; from then on a batch is always in flight.
    eventually(LIMIT, || async {
        match generate.metric("nearshore_requests_waiting", "").await {
            waiting if waiting >= 190.0 => Ok(()),
            waiting => Err(format!("{waiting} wait")),
        }
    })
    .await;
    for _ in 0..comings {
        let mut other = Process::ready(site, "generate").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        other.terminate().await;
    }
    let name = "nearshore_rebalance_callback_seconds";
    println!("  callbacks of a member whose model is busy, {comings} others came and went:");
    for process in [&generate, &ingest] {
        let all = process.metric(&format!("{name}_count"), "").await;
        let mut within = Vec::new();
        for le in ["0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1"] {
            let many = process
                .metric(&format!("{name}_bucket"), &format!("le=\"{le}\""))
                .await;
            within.push(format!("{many} within {le} s"));
        }
        let lost = process
            .metric("nearshore_rebalanced_partitions_total", "lost")
            .await;
        println!(
            "    {all} callbacks: {}; {lost} partitions lost",
            within.join(", ")
        );
    }
    drop((ingest, generate));
    site.write("nearshore.toml", &before);
}

/// Time from SIGKILL of one member of each role until their users have new lists, compared with the death of a bare
/// consumer.
async fn death(site: &Site, users: usize) {
    let floor = tokio::task::block_in_place(|| bare_death(site));
    site.redis.ask(&["FLUSHALL"]).await;
    site.edit(&[(
        "[trigger]\n",
        "[trigger]\nquiet_period = \"100ms\"\nclaim_every = \"100ms\"\nclaims_per_day = 100000\n",
    )]);
    let load = Load {
        events: users * 4,
        users,
        visit: 4,
    };
    let known = site.count(&site.topics.user_events).await as usize;
    fill(&site.producer, load.records(&site.topics.user_events)).await;
    let environment = [("NEARSHORE__NAMESPACE", "death")];
    let mut ingest = Process::start_with(site, "ingest", &environment);
    samples(site, &ingest, known + load.events).await;
    let others = [
        Process::with(site, "ingest", &environment).await,
        Process::with(site, "generate", &environment).await,
    ];
    let mut generate = Process::with(site, "generate", &environment).await;
    // First every user gets a list, which takes minutes.
    eventually(LIMIT * 20, || async {
        let waits = others[1].metric("nearshore_requests_waiting", "").await
            + generate.metric("nearshore_requests_waiting", "").await;
        if waits > 0.0 {
            Err(format!("{waits} wait"))
        } else {
            Ok(())
        }
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let start = now();
    ingest.kill();
    generate.kill();
    let buyers: Vec<String> = (0..64).map(|nth| format!("user-{:08}", nth * 97)).collect();
    site.send(
        buyers
            .iter()
            .enumerate()
            .map(|(nth, user)| site.bought(user, nth))
            .collect(),
    )
    .await;
    let waits = waits(site, (&buyers, start)).await;
    println!(
        "  SIGKILL of one of two members of each role, {users} users of state: partitions of a bare consumer are read again after {floor:.2} s;"
    );
    println!(
        "    64 users who bought something in that moment: first list after {:.2} s, median {:.2} s, last {:.2} s",
        waits[0],
        median(waits.clone()),
        waits[waits.len() - 1]
    );
}

/// Seconds from SIGKILL of a bare consumer until another one reads its partitions: the broker's own time.
fn bare_death(site: &Site) -> f64 {
    let handle = tokio::runtime::Handle::current();
    let topic = handle.block_on(topic(site));
    let send = |from: usize| {
        let some = (from..from + 800).map(|nth| note(&topic, nth)).collect();
        handle.block_on(site.send(some));
    };
    send(0);
    let group = fresh("death");
    let new = bare(site, &group, &topic);
    first_record(&new);
    let owned = |many: usize| {
        while new.assignment().map_or(0, |list| list.count()) != many {
            let _ = new.poll(Duration::from_millis(20));
        }
    };
    owned(PARTITIONS as usize);
    let program = std::env::current_exe().expect("this program");
    let words = [
        "member",
        "--brokers",
        &site.settings.brokers,
        "--group",
        &group,
        "--topic",
        &topic,
    ];
    let mut other = std::process::Command::new(program)
        .args(words)
        .spawn()
        .expect("starts");
    owned(PARTITIONS as usize / 2);
    let settled = Instant::now() + Duration::from_secs(3);
    while Instant::now() < settled {
        let _ = new.poll(Duration::from_millis(20));
    }
    let start = Instant::now();
    other.kill().expect("it is killed");
    owned(PARTITIONS as usize);
    send(800);
    first_record(&new);
    let took = start.elapsed().as_secs_f64();
    let _ = other.wait();
    took
}

/// A bare consumer in a process of its own, to be killed.
pub fn member(options: &Options) {
    let consumer: BaseConsumer = config(options.text("brokers"), options.text("group"))
        .create()
        .expect("valid settings");
    consumer
        .subscribe(&[options.text("topic")])
        .expect("subscribed");
    loop {
        let _ = consumer.poll(Duration::from_millis(50));
    }
}

/// Seconds from `since` until each user has a list that was made after it, sorted.
async fn waits(site: &Site, (buyers, since): (&[String], Timestamp)) -> Vec<f64> {
    let mut found = BTreeMap::new();
    let deadline = Instant::now() + LIMIT;
    while found.len() < buyers.len() {
        assert!(
            Instant::now() < deadline,
            "{} of {}",
            found.len(),
            buyers.len()
        );
        for record in site.read(&site.topics.recall_updates).await {
            let key =
                String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
            let user = key.strip_prefix("death/").unwrap_or_default().to_owned();
            let update = record
                .value
                .as_deref()
                .and_then(|value| Update::parse(value).ok());
            if record.time > since
                && buyers.contains(&user)
                && update.is_some_and(|it| it.doc.at >= since)
            {
                found
                    .entry(user)
                    .or_insert(record.time.since(since).as_secs_f64());
            }
        }
    }
    let mut waits: Vec<f64> = found.into_values().collect();
    waits.sort_by(f64::total_cmp);
    waits
}
