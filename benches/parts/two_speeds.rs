//! How many lists a second are made without a model, and how soon after an event they are stored: the shipped binary on a
//! real Kafka and a real Redis, with a real shop's catalogue, purchases and artefact.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nearshore_core::ports::log::Outgoing;
use nearshore_core::user::record::Timestamp;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::{ClientConfig, Message as _};
use serde_json::{Value, json};

use crate::fold::{fill, samples};
use crate::process::{Process, Site, TABLE, now, record};
use crate::{Options, machine};

/// The quiet period of the site.
const QUIET: Duration = Duration::from_millis(200);

/// Longest wait for a part of the measurement.
const LIMIT: Duration = Duration::from_secs(600);

/// Age of the newest purchase of the history: older than `trigger.history_after`.
const HISTORY_AGE: i64 = 2 * 3_600_000;

/// Prints the ceiling, a burst, and latencies below saturation.
pub async fn run(options: &Options) {
    let users = options.number("users", 20_000);
    let shop = Shop::read(
        Path::new(options.text("shop")),
        options.number("history", 40),
    );
    let site = site(Path::new(options.text("artefact"))).await;
    fill(&site.producer, shop.catalogue(&site)).await;
    let names: Vec<String> = (0..users).map(|nth| shop.user(nth)).collect();
    println!(
        "two speeds: {users} users, {} SKUs; {}",
        shop.catalogue.len(),
        machine()
    );
    history(&site, &shop, users).await;
    ceiling(&site, &shop, &names).await;
    bytes(&site, &names).await;
    burst(&site, &shop, &names).await;
    for rate in [25, 50, 100, 200] {
        let seconds = options.number("seconds", 20);
        latency(&site, &shop, &names, (rate, seconds)).await;
    }
    crate::worth::run(options).await;
}

/// Time, SKU and pieces of a purchase.
type Bought = (i64, String, u32);

/// Files of a shop, as `scripts/benches/recall.py` writes them.
struct Shop {
    catalogue: Vec<(String, String)>,
    /// Newest purchases of each household, SKU and pieces, with their time.
    purchases: Vec<(String, Vec<Bought>)>,
    profiles: HashMap<String, String>,
}

impl Shop {
    fn read(folder: &Path, history: usize) -> Self {
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| {
                panic!("{}: {error}; run scripts/bench two-speeds", path.display())
            })
        };
        let keyed = |name: &str| {
            let parse = |line: &str| -> (String, String) {
                let row: Value = serde_json::from_str(line).expect("JSON");
                let key = row["key"].as_str().expect("a key");
                (key.to_owned(), row["value"].to_string())
            };
            text(name).lines().map(parse).collect::<Vec<_>>()
        };
        let mut purchases: BTreeMap<String, Vec<Bought>> = BTreeMap::new();
        for line in text("events.csv").lines().skip(1) {
            let cells: Vec<&str> = line.split(',').collect();
            let (time, pieces) = (cells[2].parse().expect("a time"), cells[4].parse());
            let bought = (time, cells[3].to_owned(), pieces.expect("a number"));
            purchases
                .entry(cells[0].to_owned())
                .or_default()
                .push(bought);
        }
        let newest = purchases.values().flatten().map(|row| row.0).max();
        let shift = now().0 - HISTORY_AGE - newest.expect("a purchase");
        for rows in purchases.values_mut() {
            rows.sort_unstable();
            rows.drain(..rows.len().saturating_sub(history));
            rows.iter_mut().for_each(|row| row.0 += shift);
        }
        Self {
            catalogue: keyed("catalog.jsonl"),
            purchases: purchases.into_iter().collect(),
            profiles: keyed("profiles.jsonl").into_iter().collect(),
        }
    }

    fn catalogue<'a>(&'a self, site: &'a Site) -> impl Iterator<Item = Outgoing> + 'a {
        let rows = self.catalogue.iter();
        rows.map(|(key, value)| outgoing(&site.topics.catalog, key, value.clone(), None))
    }

    fn household(&self, nth: usize) -> &(String, Vec<Bought>) {
        &self.purchases[nth % self.purchases.len()]
    }

    /// Id of the nth user: a copy of a household.
    fn user(&self, nth: usize) -> String {
        format!("{}-{}", self.household(nth).0, nth / self.purchases.len())
    }

    /// Profile and purchases of the nth user.
    fn history<'a>(&'a self, site: &'a Site, nth: usize) -> impl Iterator<Item = Outgoing> + 'a {
        let (household, rows) = self.household(nth);
        let user = self.user(nth);
        let first = rows.first().map_or(0, |row| row.0);
        let profile = self.profiles.get(household).map(|profile| {
            let topic = &site.topics.profile_changes;
            outgoing(topic, &user, profile.clone(), Some(first))
        });
        let events = rows.iter().map(move |(time, sku, pieces)| {
            let value = json!({"type": "purchase", "sku": sku, "qty": pieces});
            outgoing(
                &site.topics.user_events,
                &user,
                value.to_string(),
                Some(*time),
            )
        });
        profile.into_iter().chain(events)
    }

    /// A purchase of the nth user now.
    fn bought(&self, site: &Site, nth: usize, user: &str) -> Outgoing {
        let rows = &self.household(nth).1;
        let sku = &rows[nth / self.purchases.len() % rows.len()].1;
        let value = json!({"type": "purchase", "sku": sku, "qty": 1});
        record(&site.topics.user_events, user, &value)
    }
}

fn outgoing(topic: &std::sync::Arc<str>, key: &str, value: String, time: Option<i64>) -> Outgoing {
    Outgoing {
        topic: topic.clone(),
        key: Some(key.to_owned().into()),
        value: Some(value.into()),
        headers: Vec::new(),
        time: time.map(Timestamp),
    }
}

/// Topics that keep old records, and an arm with the artefact and without a model.
async fn site(artefact: &Path) -> Site {
    // The history is older than a week.
    let keep: &[(&str, &str)] = &[("retention.ms", "-1")];
    let topics = [
        "user_events",
        "profile_changes",
        "regen_urgent",
        "regen_live",
        "regen_backfill",
    ];
    let site = Site::open(&topics.map(|topic| (topic, 4, keep))).await;
    let artefact: PathBuf = artefact.canonicalize().expect("the artefact's folder");
    let arm = format!("artefact = {:?}\n", artefact.display().to_string());
    site.edit(&[
        ("weights = { model = 1.0 }\n", &arm),
        (TABLE, "table:1ms"),
        ("names = 3", "names = 20"),
        ("names = 5", "names = 20"),
        ("every = \"1s\"", "every = \"60s\""),
        ("batch_max = 4", "batch_max = 64"),
    ]);
    site
}

/// CPU seconds that a process, Redis and all the rest of the machine have used.
#[derive(Clone, Copy)]
struct Cpu {
    process: f64,
    redis: f64,
    machine: f64,
}

impl Cpu {
    async fn now(site: &Site, process: &Process) -> Self {
        let redis = site.redis.info("server", "process_id").await;
        Self {
            process: cpu_of(&format!("/proc/{}/stat", process.pid())),
            redis: cpu_of(&format!("/proc/{redis}/stat")),
            machine: cpu_of_machine(),
        }
    }

    /// Milliseconds a list since `before`.
    fn print(self, before: Self, lists: usize) {
        let each = |now: f64, then: f64| (now - then) * 1e3 / lists as f64;
        let process = each(self.process, before.process);
        let redis = each(self.redis, before.redis);
        let rest = each(self.machine, before.machine) - process - redis;
        println!(
            "    CPU a list: {process:.2} ms nearshore, {redis:.2} ms Redis, {rest:.2} ms all others (Kafka, this bench)"
        );
    }
}

/// User and system time of a process, in seconds. Clock ticks of Linux are 10 ms.
fn cpu_of(path: &str) -> f64 {
    let text = std::fs::read_to_string(path).expect("a process");
    let fields = text.rsplit(')').next().unwrap_or_default();
    let field = |nth: usize| {
        fields
            .split_whitespace()
            .nth(nth)
            .and_then(|it| it.parse::<f64>().ok())
    };
    (field(11).expect("utime") + field(12).expect("stime")) / 100.0
}

/// Time that the cores were not idle.
fn cpu_of_machine() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("Linux");
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|it| it.parse().ok())
        .collect();
    let all: f64 = ticks.iter().take(8).sum();
    (all - ticks[3] - ticks[4]) / 100.0
}

async fn published(process: &Process) -> usize {
    process.metric("nearshore_lists_published_total", "").await as usize
}

/// Samples the number of lists until there are so many.
async fn until_published(process: &Process, lists: usize) -> Vec<(Instant, usize)> {
    let (start, mut samples) = (Instant::now(), Vec::new());
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let made = published(process).await;
        samples.push((Instant::now(), made));
        if made >= lists {
            return samples;
        }
        assert!(
            start.elapsed() < LIMIT,
            "{made} of {lists} lists\n{}",
            process.log()
        );
    }
}

/// Folds the users' history, and makes their first lists.
async fn history(site: &Site, shop: &Shop, users: usize) {
    let all = (0..users).flat_map(|nth| shop.history(site, nth));
    fill(&site.producer, all).await;
    let events = site.count(&site.topics.user_events).await as usize;
    let mut process = Process::ready(site, "ingest").await;
    samples(site, &process, events).await;
    site.committed().await;
    process.terminate().await;
    let mut process = Process::ready(site, "generate").await;
    let made = until_published(&process, users).await;
    println!(
        "  {events} events of their past folded; their first lists: {:.0} lists/s",
        rate(&made)
    );
    process.terminate().await;
}

/// Lists per second between the first tenth and the end.
fn rate(samples: &[(Instant, usize)]) -> f64 {
    let last = samples.last().expect("it has ended");
    let first = samples.iter().find(|(_, made)| made * 10 >= last.1);
    let first = first.expect("it has begun");
    (last.1 - first.1) as f64 / last.0.duration_since(first.0).as_secs_f64()
}

/// A generate process alone, with a request of every user in the live lane.
async fn ceiling(site: &Site, shop: &Shop, names: &[String]) {
    let mut ingest = Process::ready(site, "ingest").await;
    send(site, shop, names).await;
    site.committed().await;
    ingest.terminate().await;
    for round in 0..3 {
        if round > 0 {
            site.output(&["refresh", "--all"]).await;
        }
        let mut generate = Process::start(site, "generate");
        let begun = async {
            while !matches!(generate.get("/metrics").await, Ok((200, _)))
                || published(&generate).await == 0
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, begun)
            .await
            .expect("a first list");
        let (before, done) = (Cpu::now(site, &generate).await, published(&generate).await);
        let made = until_published(&generate, names.len()).await;
        println!(
            "  ceiling, generate alone: {:.0} lists/s; {}",
            rate(&made),
            machine()
        );
        Cpu::now(site, &generate)
            .await
            .print(before, names.len() - done);
        generate.terminate().await;
    }
}

async fn send(site: &Site, shop: &Shop, names: &[String]) {
    let events = names.iter().enumerate();
    let events = events.map(|(nth, user)| shop.bought(site, nth, user));
    site.send(events.collect()).await;
}

/// Bytes of the lists and audits of a hundred users, and of their keys in Redis.
async fn bytes(site: &Site, names: &[String]) {
    let (mut doc, mut audit, mut keys) = (0.0, 0.0, [0.0; 3]);
    let users = names.len().min(100);
    for user in &names[..users] {
        let of = |what: &str| format!("{}:{{{user}}}:{what}", site.ns);
        let number = async |words: &[&str]| -> f64 {
            let answer = site.redis.ask(words).await;
            answer.parse().unwrap_or_default()
        };
        doc += number(&["EVAL", LENGTH, "1", &of("recall"), "doc"]).await;
        audit += number(&["EVAL", LENGTH, "1", &of("recall"), "audit"]).await;
        for (sum, what) in keys.iter_mut().zip(["state", "profile", "recall"]) {
            *sum += number(&["EVAL", MEMORY, "1", &of(what)]).await;
        }
    }
    let each = |sum: f64| sum / users as f64;
    println!(
        "  a user: list {:.0} bytes, audit {:.0}; MEMORY USAGE of state {:.0}, profile {:.0}, list with audit {:.0}",
        each(doc),
        each(audit),
        each(keys[0]),
        each(keys[1]),
        each(keys[2])
    );
}

/// Length of a field as text.
const LENGTH: &str = "return tostring(redis.call('HSTRLEN', KEYS[1], ARGV[1]))";
/// Memory of a key as text; 0 without it.
const MEMORY: &str = "return tostring(redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', '0') or 0)";

/// All users buy at once; one process has both roles.
async fn burst(site: &Site, shop: &Shop, names: &[String]) {
    let mut process = Process::ready(site, "all").await;
    for _ in 0..2 {
        let done = published(&process).await;
        let (before, start) = (Cpu::now(site, &process).await, Instant::now());
        send(site, shop, names).await;
        let made = until_published(&process, done + names.len()).await;
        let took = made.last().expect("it has ended").0.duration_since(start);
        println!(
            "  all due at once, both roles: {} lists in {:.1} s; {}",
            names.len(),
            took.as_secs_f64(),
            machine()
        );
        Cpu::now(site, &process).await.print(before, names.len());
    }
    process.terminate().await;
}

/// Time from an event to the update of its user's list, at a steady rate.
async fn latency(site: &Site, shop: &Shop, names: &[String], (rate, seconds): (usize, usize)) {
    let mut process = Process::ready(site, "all").await;
    let updates = updates_of(site).await;
    let events = (rate * seconds).min(names.len());
    let names = &names[..events];
    let arrivals = tokio::spawn(arrivals(updates, names.to_vec()));
    let start = tokio::time::Instant::now();
    let mut sent = HashMap::new();
    for (nth, user) in names.iter().enumerate() {
        tokio::time::sleep_until(start + Duration::from_secs_f64(nth as f64 / rate as f64)).await;
        sent.insert(user.clone(), Instant::now());
        let event = shop.bought(site, nth, user);
        let producer = site.producer.clone();
        tokio::spawn(async move { producer.send(vec![event]).await });
    }
    let arrived = tokio::time::timeout(LIMIT, arrivals).await;
    let arrived = arrived.expect("every list").expect("no panic");
    let mut waits: Vec<f64> = sent
        .iter()
        .map(|(user, sent)| arrived[user].duration_since(*sent).as_secs_f64() - QUIET.as_secs_f64())
        .collect();
    waits.sort_by(f64::total_cmp);
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize] * 1e3;
    println!(
        "  {rate} events/s, {events} users: event to update beyond the quiet period: p50 {:.0} ms, p95 {:.0} ms, p99 {:.0} ms, most {:.0} ms; {}",
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0),
        machine()
    );
    process.terminate().await;
}

/// A consumer at the end of `recall-updates`.
async fn updates_of(site: &Site) -> StreamConsumer {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", &site.settings.brokers)
        .set("group.id", "two-speeds")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "5")
        .create()
        .expect("valid settings");
    let extents = site.admin.extents(&site.topics.recall_updates).await;
    let mut from = rdkafka::TopicPartitionList::new();
    for (nth, extent) in extents.expect("Kafka answers").iter().enumerate() {
        let end = rdkafka::Offset::Offset(extent.end.0);
        from.add_partition_offset(&site.topics.recall_updates, nth as i32, end)
            .expect("a valid offset");
    }
    consumer.assign(&from).expect("assigned");
    consumer
}

/// When the first update of each user arrived.
async fn arrivals(updates: StreamConsumer, names: Vec<String>) -> HashMap<String, Instant> {
    let mut waiting: std::collections::HashSet<String> = names.into_iter().collect();
    let mut arrived = HashMap::new();
    while !waiting.is_empty() {
        let update = updates.recv().await.expect("Kafka answers");
        let key = String::from_utf8_lossy(update.key().unwrap_or_default());
        let user = key.split_once('/').map_or("", |(_, user)| user);
        if waiting.remove(user) {
            arrived.insert(user.to_owned(), Instant::now());
        }
    }
    arrived
}
