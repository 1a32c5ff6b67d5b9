//! Promise: a model that stalls, a member that leaves and all of them one after another cost nobody their place in the
//! group, no memory, and no more freshness than a quiet period.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nearshore_core::list::document::Update;
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Position, Timestamp};
use nearshore_kafka::Producer;
use tokio::task::JoinHandle;

use crate::harness::eventually;
use crate::process::{DRAIN, LIMIT, Process, Site};
use crate::way::is_exact;

/// How long the model stalls: `NEARSHORE_TEST_STALL` in seconds, 600 for the whole promise.
fn stall() -> Duration {
    let text = std::env::var("NEARSHORE_TEST_STALL").ok();
    Duration::from_secs(text.and_then(|it| it.parse().ok()).unwrap_or(40))
}

async fn site(model: &str, quiet: &str, lanes: &str) -> Site {
    let site = Site::open(&[("user_events", 4, &[]), ("profile_changes", 2, &[])]).await;
    let path = site.folder().join("nearshore.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let real = std::env::var("NEARSHORE_TEST_MODEL").expect("scripts/test sets it");
    let text = text
        .replace(&real, model)
        .replace(
            "quiet_period = \"200ms\"",
            &format!("quiet_period = \"{quiet}\""),
        )
        .replace("[lanes]\nbatch_max = 4\n", lanes);
    site.write("nearshore.toml", &text);
    site.catalogue().await;
    site
}

/// Purchases of so many users, `burst` of them every 50 ms, until it is stopped.
fn feed(site: &Site, (users, burst): (usize, usize)) -> JoinHandle<()> {
    let producer: Producer = site.producer.clone();
    let events: Vec<_> = (0..users)
        .map(|nth| site.bought(&format!("user-{nth}"), nth))
        .collect();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        let mut events = events.into_iter().cycle();
        loop {
            ticks.tick().await;
            let some = events.by_ref().take(burst).collect();
            producer.send(some).await.expect("written");
        }
    })
}

/// Resident memory, in MiB.
fn resident(process: &Process) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid()));
    let text = text.expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.expect("a number") / 1024.0
}

/// The slowest rebalance callback was not slower than a second, and no partition was lost.
async fn no_callback_waited(process: &Process) {
    let name = "nearshore_rebalance_callback_seconds";
    let within = process
        .metric(&format!("{name}_bucket"), "le=\"0.25\"")
        .await;
    let all = process.metric(&format!("{name}_count"), "").await;
    eprintln!("pressure: {within} of {all} rebalance callbacks within 250 ms");
    assert!(all > 0.0);
    assert_eq!(within, all, "a callback waited");
    let lost = process
        .metric("nearshore_rebalanced_partitions_total", "lost")
        .await;
    assert_eq!(lost, 0.0, "{}", process.log());
}

/// Everybody's window is full, ingest has caught up, and generate holds all that it may: from here on nothing has a
/// reason to grow.
async fn full(site: &Site, (users, generate): (usize, &Process)) {
    let events = (0..users * 60).map(|nth| site.bought(&format!("user-{}", nth % users), nth));
    site.send(events.collect()).await;
    site.committed().await;
    let all: Vec<UserId> = (0..users)
        .map(|nth| UserId(format!("user-{nth}").into()))
        .collect();
    let held = site.store.load(&site.ns, &all).await.expect("answered");
    assert!(held.iter().all(|held| held.state.window.len() == 50));
    // Requests, not users: a slow ingest asks for somebody more than once, and each of it takes room.
    eventually(LIMIT, || async {
        let (mut read, mut asked) = (0.0, 0);
        for lane in site.topics.lanes() {
            let topic = format!("topic=\"{lane}\"");
            read += generate.metric("nearshore_records_total", &topic).await;
            asked += site.count(&lane).await;
        }
        let waiting = generate.metric("nearshore_requests_waiting", "").await;
        match read {
            read if read >= 200.0 => Ok(()),
            read => Err(format!(
                "{read} of {asked} requests were read, {waiting} wait"
            )),
        }
    })
    .await;
}

/// Resident memory, sampled once a second for so long: the most of the first and of the second half, which a leak
/// tells apart from an allocator that keeps what a busy second took.
async fn halves(processes: [&Process; 2], span: Duration) -> [(f64, f64); 2] {
    let start = Instant::now();
    let mut most = [(0.0_f64, 0.0_f64); 2];
    while start.elapsed() < span {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (most, process) in most.iter_mut().zip(processes) {
            let half = match start.elapsed() < span / 2 {
                true => &mut most.0,
                false => &mut most.1,
            };
            *half = half.max(resident(process));
        }
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_model_costs_neither_memory_nor_the_group() {
    // So slow that a batch in hand is never done before somebody comes or goes.
    let site = site(
        "table:15s",
        "200ms",
        "[lanes]\nbatch_max = 4\nunserved_max = 200\n",
    )
    .await;
    let ingest = Process::ready(&site, "ingest").await;
    let generate = Process::ready(&site, "generate").await;
    full(&site, (300, &generate)).await;
    let feeding = feed(&site, (300, 40));
    // Its partitions come in the middle of the first one's batch.
    let other = Process::start(&site, "generate");
    let most = halves([&ingest, &generate], stall()).await;
    eprintln!(
        "pressure: stalled for {:?}: ingest, generate MiB {most:.1?}",
        stall()
    );
    feeding.abort();
    for (first, second) in most {
        assert!(second <= first * 1.05 + 1.0, "{first} to {second} MiB");
    }
    for member in [&ingest, &generate, &other] {
        no_callback_waited(member).await;
    }
    // Of what went the first one hears when its batch is done, long after the group has given it away.
    let came = other
        .metric("nearshore_rebalanced_partitions_total", "assigned")
        .await;
    assert!(came > 0.0, "nothing moved to the other one");
    drop((generate, other));
    recovers(&site).await;
    is_exact(&site).await;
}

/// The model is itself again: what waited is done, and how long that took.
async fn recovers(site: &Site) {
    let path = site.folder().join("nearshore.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    site.write("nearshore.toml", &text.replace("table:15s", "table:10ms"));
    let start = Instant::now();
    let lanes = site.topics.lanes();
    let names: Vec<&str> = lanes.iter().map(|name| &**name).collect();
    let lag = || async {
        let lag = site.admin.lag("nearshore-generate", &names).await;
        lag.map(|lag| lag.values().sum::<u64>())
    };
    let backlog = lag().await.expect("answered");
    let _generate = Process::ready(site, "generate").await;
    eventually(LIMIT * 4, || async {
        match lag().await.map_err(|error| error.to_string())? {
            0 => Ok(()),
            left => Err(format!("{left} requests left")),
        }
    })
    .await;
    site.committed().await;
    eprintln!(
        "pressure: {backlog} requests made up in {:?}, start included",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_busy_user_and_one_busy_partition_cost_no_memory() {
    let site = site("table:10ms", "5s", "[lanes]\nbatch_max = 64\n").await;
    let ingest = Process::ready(&site, "ingest").await;
    // A single user, hence a single partition, with all but a tenth of what there is.
    let some = |from: usize| {
        (from..from + 25_000).map(|nth| match nth % 10 {
            0 => site.bought(&format!("user-{}", nth % 200), nth),
            _ => site.bought("busy", nth),
        })
    };
    let mut after = Vec::new();
    for nth in 0..9 {
        site.send(some(nth * 25_000).collect()).await;
        site.committed().await;
        after.push(resident(&ingest));
    }
    eprintln!("pressure: 202,500 events of one user: ingest MiB {after:.1?}");
    // What is read ahead comes and goes with the reader's luck, by 20 MiB and more; what is kept of an event only adds
    // up. So the least of the last rounds is compared with the most of the first ones.
    let most = after[1..4].iter().copied().fold(0.0, f64::max);
    let least = after[6..].iter().copied().fold(f64::MAX, f64::min);
    assert!(least <= most * 1.05 + 1.0, "{after:?}");
    let held = site.store.load(&site.ns, &[UserId("busy".into())]).await;
    assert_eq!(held.expect("answered")[0].state.window.len(), 50);
}

/// When each event was first seen by a list, since it was written.
async fn staleness(site: &Site) -> Vec<(Timestamp, Duration)> {
    let mut lists: BTreeMap<String, Vec<(Timestamp, nearshore_core::user::record::Fences)>> =
        BTreeMap::new();
    for record in site.read(&site.topics.recall_updates).await {
        let (Some(key), Some(value)) = (&record.key, &record.value) else {
            continue;
        };
        let update = Update::parse(value).expect("an update");
        let key = String::from_utf8_lossy(key).into_owned();
        lists
            .entry(key)
            .or_default()
            .push((record.time, update.seen));
    }
    let mut all = Vec::new();
    for record in site.read(&site.topics.user_events).await {
        let user = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into_owned();
        let key = format!("{}/{user}", site.ns);
        let position: &Position = &record.position;
        let seen = lists.get(&key).into_iter().flatten();
        let first = seen
            .filter(|(_, seen)| seen.contains(position))
            .map(|(time, _)| *time)
            .min();
        let first = first.unwrap_or_else(|| panic!("{position} of {user} is in no list"));
        all.push((record.time, first.since(record.time)));
    }
    all
}

fn p99(all: &[(Timestamp, Duration)], between: (Timestamp, Timestamp)) -> Duration {
    let inside = all
        .iter()
        .filter(|(time, _)| (between.0..between.1).contains(time));
    let mut waits: Vec<Duration> = inside.map(|(_, wait)| *wait).collect();
    waits.sort();
    assert!(waits.len() > 100, "{} events", waits.len());
    waits[waits.len() * 99 / 100]
}

const QUIET: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_costs_no_more_than_a_quiet_period() {
    let site = site("table:10ms", "5s", "[lanes]\nbatch_max = 64\n").await;
    let roles = ["ingest", "ingest", "generate", "generate"];
    let mut members = Vec::new();
    for role in roles {
        members.push(Process::ready(&site, role).await);
    }
    let feeding = feed(&site, (100, 2));
    eventually(LIMIT, || async {
        match site.count(&site.topics.recall_updates).await {
            0 => Err("no list yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    tokio::time::sleep(QUIET).await;
    let steady = crate::process::now();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let rolling = crate::process::now();
    let mut drains = Vec::new();
    for (member, role) in members.iter_mut().zip(roles) {
        let (status, took) = member.terminate().await;
        assert!(status.success(), "{status}\n{}", member.log());
        drains.push(took);
        *member = Process::ready(&site, role).await;
    }
    let end = crate::process::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    feeding.abort();
    site.committed().await;
    is_exact(&site).await;
    tokio::time::sleep(QUIET * 3).await;
    let all = staleness(&site).await;
    let (before, during) = (p99(&all, (steady, rolling)), p99(&all, (rolling, end)));
    eprintln!(
        "pressure: rolling restart: drains {drains:?}; p99 from event to list {before:?} before, {during:?} during"
    );
    assert!(drains.iter().all(|took| *took <= DRAIN), "{drains:?}");
    assert!(during <= before + QUIET, "{during:?}");
    for member in &members {
        no_callback_waited(member).await;
    }
}
