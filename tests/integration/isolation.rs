//! A measurement, not a test: what a backfill costs live users. `scripts/bench isolation` runs it.
//!
//! It measures pairs of runs, without and with a backfill: live events at a steady rate, and in the second of each pair
//! a backfill that folds ten times as many records per second while the backfill lane is never empty. The time is from
//! the timestamp of the event to that of the record on recall-updates, which is written when Redis has acknowledged the
//! list.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nearshore_core::user::record::{Resume, Timestamp};
use nearshore_kafka::{Tail, Tailed, tail};
use serde_json::Value;

use crate::harness::{eventually, fresh};
use crate::process::{LIMIT, Process, Site, TABLE, now};

/// Live events per second; each requests a list.
const RATE: u32 = 50;
/// Least number of lists in a run.
const LISTS: usize = 2_000;
const PAIRS: usize = 5;
const LIVE_USERS: usize = 600;
/// Users and records that the backfill reads.
const PAST_USERS: usize = 1_500;
const PAST: usize = 60_000;
/// Student's t for five pairs, 95 %.
const T: f64 = 2.776;

/// What one run measured.
struct Run {
    lists: usize,
    p50: f64,
    p99: f64,
    /// Largest and mean lag of live ingest, in records.
    lag: (u64, f64),
    /// Backfill lists made meanwhile.
    backfilled: f64,
    folded: u64,
}

impl Run {
    fn line(&self) -> String {
        format!(
            "{} lists, p50 {:.3} s, p99 {:.3} s; ingest lag at most {}, mean {:.1}; meanwhile {} backfill lists, {} records folded",
            self.lists, self.p50, self.p99, self.lag.0, self.lag.1, self.backfilled, self.folded
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: it prints and checks nothing"]
async fn isolation_of_live_from_a_backfill() {
    let site = site().await;
    history(&site).await;
    let past = fresh("past");
    site.output(&["backfill", "--namespace", &past, "--from", "earliest"])
        .await;
    let ingest = Process::ready(&site, "ingest").await;
    let generate = Process::ready(&site, "generate").await;
    site.committed().await;
    rest(&site).await;
    let mut pairs = Vec::new();
    for pair in 0..PAIRS {
        let without = measure(&site, (&generate, None)).await;
        rest(&site).await;
        let with = measure(&site, (&generate, Some(&past))).await;
        rest(&site).await;
        println!("pair {pair} without: {}", without.line());
        println!("pair {pair} with:    {}", with.line());
        pairs.push((without, with));
    }
    report(&pairs);
    drop((ingest, generate));
}

fn report(pairs: &[(Run, Run)]) {
    let interval = |of: &dyn Fn(&Run) -> f64| {
        let logs: Vec<f64> = pairs
            .iter()
            .map(|(without, with)| (of(with) / of(without)).ln())
            .collect();
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n;
        let spread = (logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let half = T * spread / n.sqrt();
        format!(
            "{:.3} [{:.3}, {:.3}]",
            mean.exp(),
            (mean - half).exp(),
            (mean + half).exp()
        )
    };
    println!("p99 with/without: {}", interval(&|it| it.p99));
    println!("p50 with/without: {}", interval(&|it| it.p50));
    println!(
        "mean ingest lag with/without: {}",
        interval(&|it| it.lag.1 + 0.1)
    );
}

/// A site whose model takes 50 ms for a batch: 320 lists a second.
async fn site() -> Site {
    let site = Site::open(&[("user_events", 4, &[]), ("regen_backfill", 4, &[])]).await;
    site.edit(&[
        (TABLE, "table:50ms"),
        ("quiet_period = \"200ms\"", "quiet_period = \"1s\""),
        ("batch_max = 4", "batch_max = 16"),
    ]);
    let limit = format!("[backfill]\nrecords_per_second = {}\n", 10 * RATE);
    site.append(&limit);
    site.catalogue().await;
    site
}

/// Sends the records that the backfill reads.
async fn history(site: &Site) {
    let start = now().0 - 300 * 86_400_000;
    for chunk in (0..PAST).collect::<Vec<_>>().chunks(5_000) {
        let bought = chunk.iter().map(|nth| {
            let mut record = site.bought(&format!("past-{}", (nth * 7919) % PAST_USERS), *nth);
            record.time = Some(Timestamp(start + *nth as i64 * 300));
            record
        });
        site.send(bought.collect()).await;
    }
}

/// Waits until the lanes are read to their ends.
async fn rest(site: &Site) {
    let lanes = site.topics.lanes();
    let names: Vec<&str> = lanes.iter().map(|name| &**name).collect();
    eventually(LIMIT * 3, || async {
        let lag = site
            .admin
            .lag(&site.settings.group("generate"), &names)
            .await;
        let lag: u64 = lag.map_err(|error| error.to_string())?.values().sum();
        match lag {
            0 => Ok(()),
            left => Err(format!("{left} requests left")),
        }
    })
    .await;
}

async fn measure(site: &Site, (generate, past): (&Process, Option<&String>)) -> Run {
    let updates = ends(site, &site.topics.recall_updates.clone()).await;
    let mut updates_tail = tail(&site.settings, &site.topics.recall_updates, &updates)
        .await
        .expect("the topic exists");
    let published = || generate.metric("nearshore_lists_published_total", "lane=\"backfill\"");
    let before = published().await;
    let mut load = past.map(|past| Load::start(site, past));
    let start = now();
    let (mut lags, mut sent) = (Vec::new(), 0u32);
    let clock = Instant::now();
    let group = site.ingest_group();
    let topics = [&*site.topics.user_events];
    while (sent as usize) < LISTS + LISTS / 5 {
        let user = format!("live-{}", (sent as usize * 7919) % LIVE_USERS);
        site.send(vec![site.bought(&user, sent as usize)]).await;
        sent += 1;
        if sent.is_multiple_of(RATE) {
            let lag = site.admin.lag(&group, &topics).await.expect("it answers");
            lags.push(lag.values().sum::<u64>());
            if let Some(load) = &mut load {
                load.renew(site).await;
            }
        }
        let due = Duration::from_secs_f64(f64::from(sent) / f64::from(RATE));
        tokio::time::sleep(due.saturating_sub(clock.elapsed())).await;
    }
    let end = now();
    let backfilled = published().await - before;
    let folded = match load {
        Some(load) => load.stop(site).await,
        None => 0,
    };
    let mut seconds = lists(site, &mut updates_tail, (start, end)).await;
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize];
    Run {
        lists: seconds.len(),
        p50: at(0.5),
        p99: at(0.99),
        lag: (
            lags.iter().copied().max().unwrap_or(0),
            lags.iter().sum::<u64>() as f64 / lags.len() as f64,
        ),
        backfilled,
        folded,
    }
}

async fn ends(
    site: &Site,
    topic: &str,
) -> BTreeMap<nearshore_core::user::record::Partition, Resume> {
    let extents = site.admin.extents(topic).await.expect("it answers");
    extents
        .into_iter()
        .map(|it| (it.partition, Resume(it.end.0)))
        .collect()
}

/// Seconds from event to list, of every live list by the model whose event is of this time.
async fn lists(site: &Site, updates: &mut Tail, (start, end): (Timestamp, Timestamp)) -> Vec<f64> {
    let prefix = format!("{}/live-", site.ns);
    let mut seconds = Vec::new();
    let read = async {
        loop {
            let Tailed::Record(record) = updates.next().await.expect("the topic is read") else {
                continue;
            };
            let key = record.key.as_deref().unwrap_or_default();
            if !key.starts_with(prefix.as_bytes()) {
                continue;
            }
            let value: Value =
                serde_json::from_slice(&record.value.expect("a list")).expect("JSON");
            let at = value["doc"]["at"].as_i64().unwrap_or(0);
            if at >= start.0 && at <= end.0 && value["doc"]["source"] == "model" {
                seconds.push((record.time.0 - at) as f64 / 1000.0);
            }
        }
    };
    // No list for a while: all are there.
    let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(6), read).await;
    seconds
}

/// A backfill that lasts as long as the run.
struct Load {
    fold: Child,
    past: String,
    names: Vec<String>,
    turn: u32,
}

impl Load {
    fn start(site: &Site, past: &str) -> Self {
        let name = fresh("fold");
        Self {
            fold: backfill(site, &name),
            past: past.to_owned(),
            names: vec![name],
            turn: 0,
        }
    }

    /// Called once a second: keeps the lane filled, and starts the next fold when one has ended.
    async fn renew(&mut self, site: &Site) {
        if self.turn.is_multiple_of(4) {
            site.output(&["refresh", "--all", "--namespace", &self.past])
                .await;
        }
        self.turn += 1;
        if self.fold.try_wait().expect("the status is known").is_some() {
            self.names.push(fresh("fold"));
            self.fold = backfill(site, self.names.last().expect("one fold at least"));
        }
    }

    /// Stops it; the number of records that it folded.
    async fn stop(mut self, site: &Site) -> u64 {
        let pid = self.fold.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.fold.wait();
        let mut folded = 0;
        for name in &self.names {
            use nearshore_core::ports::store::Namespaces;
            let plan = site.store.plan(name).await.expect("it answers");
            let plan =
                plan.map(|text| nearshore_core::queue::replay::Plan::parse(&text).expect("a plan"));
            folded += plan.map_or(0, |plan| plan.totals.records());
        }
        folded
    }
}

fn backfill(site: &Site, name: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args([
            "backfill",
            "--namespace",
            name,
            "--from",
            "earliest",
            "--config",
        ])
        .arg(site.folder().join("nearshore.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}
