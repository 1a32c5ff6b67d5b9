//! Time that a generate worker takes for a backlog, compared with the time of its model alone.

use std::time::{Duration, Instant};

use crate::fold::{fill, samples, site};
use crate::harness::eventually;
use crate::load::Load;
use crate::process::{LIMIT, Process, Site};
use crate::{Options, machine};

/// Users of a batch.
const BATCH: usize = 16;

/// Time of the model for a batch, in milliseconds.
const MODEL_MS: u64 = 50;

/// Prints the time from ready to the last list, and its ratio to backlog / capacity.
pub async fn run(options: &Options) {
    let users = options.number("users", 20_000);
    let capacity = BATCH as f64 * 1000.0 / MODEL_MS as f64;
    println!(
        "recovery: {users} users, a model of {capacity:.0} lists/s; {}",
        machine()
    );
    for round in 0..options.number("rounds", 3) {
        let site = slow_site().await;
        let backlog = backlog(&site, users).await;
        let (ready, drained) = drain(&site, users).await;
        let alone = backlog as f64 / capacity;
        println!(
            "  round {round}: {backlog} requests; ready after {ready:.1} s, the last list {drained:.1} s later; \
             backlog / capacity {alone:.1} s, ratio {:.3}; {}",
            drained / alone,
            machine()
        );
    }
}

async fn slow_site() -> Site {
    let site = site(16).await;
    site.edit(&[
        ("table:1ms", &format!("table:{MODEL_MS}ms")),
        ("batch_max = 64", &format!("batch_max = {BATCH}")),
        ("[trigger]\n", "[trigger]\nquiet_period = \"1s\"\n"),
    ]);
    site
}

/// Folds one event of each user; the number of requests then.
async fn backlog(site: &Site, users: usize) -> i64 {
    let load = Load {
        events: users,
        users,
        visit: 1,
    };
    fill(&site.producer, load.records(&site.topics.user_events)).await;
    let mut ingest = Process::start_with(site, "ingest", &[]);
    samples(site, &ingest, load.events).await;
    let requests = requests(site, users as i64).await;
    ingest.terminate().await;
    // Wait until all are due: a backlog is what could be served.
    tokio::time::sleep(Duration::from_secs(3)).await;
    requests
}

/// Waits until the lanes have a request of every user; their number.
async fn requests(site: &Site, users: i64) -> i64 {
    let on_lanes = || async {
        let lanes = &site.topics;
        site.count(&lanes.regen_urgent).await + site.count(&lanes.regen_live).await
    };
    eventually(LIMIT, || async {
        match on_lanes().await {
            many if many >= users => Ok(()),
            many => Err(format!("{many} requests")),
        }
    })
    .await;
    on_lanes().await
}

/// Seconds until the worker is ready, and from then until the last list.
async fn drain(site: &Site, users: usize) -> (f64, f64) {
    let start = Instant::now();
    let mut generate = Process::with(site, "generate", &[]).await;
    let ready = Instant::now();
    let mut made = 0;
    while made < users {
        assert!(ready.elapsed() < LIMIT * 8, "{made} lists of {users}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        made = generate.metric("nearshore_lists_published_total", "").await as usize;
    }
    let drained = ready.elapsed();
    generate.terminate().await;
    ((ready - start).as_secs_f64(), drained.as_secs_f64())
}
