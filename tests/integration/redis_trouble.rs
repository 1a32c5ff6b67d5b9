//! Promise: whatever happens to Redis costs time and nothing else. A member waits, says so, and writes again
//! within a second of the moment at which that is possible (two where packets had vanished).

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site};
use crate::proxy::{Fate, Proxy};
use crate::store_faults::Server;
use crate::way::is_exact;

/// How long each trouble lasts.
const TROUBLE: Duration = Duration::from_secs(4);

/// A site whose processes reach Redis through a proxy, and whose lists come from a table.
pub async fn behind_a_proxy(partitions: i32) -> (Site, Proxy) {
    let mut site = Site::open(&[
        ("user_events", partitions, &[]),
        ("profile_changes", partitions, &[]),
    ])
    .await;
    let proxy = Proxy::to(site.redis.port).await;
    let path = site.folder().join("nearshore.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let model = std::env::var("NEARSHORE_TEST_MODEL").expect("scripts/test sets it");
    let text = text
        .replace(&site.redis.url(), &proxy.url())
        .replace(&model, "table:20ms");
    site.write("nearshore.toml", &text);
    site.store = crate::store_faults::store_at(proxy.url());
    site.catalogue().await;
    (site, proxy)
}

/// Purchases of fifty users, one every ten milliseconds, until it is stopped.
fn feed(site: &Site) -> JoinHandle<()> {
    let producer = site.producer.clone();
    let events: Vec<_> = (0..3_000)
        .map(|nth| site.bought(&format!("user-{}", nth % 50), nth))
        .collect();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for event in events.into_iter().cycle() {
            ticks.tick().await;
            producer.send(vec![event]).await.expect("written");
        }
    })
}

async fn folded(member: &Process) -> f64 {
    member.metric("nearshore_records_total", "folded").await
}

/// The member is stuck, and says so.
async fn waits(member: &Process) {
    let errors = member.metric("nearshore_errors_total", "store").await;
    let mut before = -1.0;
    let start = Instant::now();
    loop {
        let now = folded(member).await;
        if now == before {
            break;
        }
        before = now;
        assert!(start.elapsed() < LIMIT, "it goes on folding");
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    eventually(LIMIT, || async {
        let now = member.metric("nearshore_errors_total", "store").await;
        let (status, page) = member.get("/readyz").await.map_err(|e| e.to_string())?;
        match (now > errors, status) {
            (true, 503) => Ok(()),
            other => Err(format!("{other:?} {page}")),
        }
    })
    .await;
    assert!(member.log().contains("will be tried again"));
}

/// From now until something is folded again.
async fn first_good_write(member: &Process, (what, limit): (&str, Duration)) {
    let (start, before) = (Instant::now(), folded(member).await);
    eventually(LIMIT, || async {
        match folded(member).await > before {
            true => Ok(()),
            false => Err("nothing is folded".to_owned()),
        }
    })
    .await;
    let took = start.elapsed();
    eprintln!("redis trouble: {what}: first good write after {took:?} (at most {limit:?})");
    assert!(took <= limit, "{what}: {took:?}\n{}", member.log());
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_trouble_of_redis_costs_time_and_nothing_else() {
    let (site, proxy) = behind_a_proxy(2).await;
    site.redis
        .told(&["CONFIG", "SET", "appendfsync", "always"])
        .await;
    site.redis
        .told(&["CONFIG", "SET", "appendonly", "yes"])
        .await;
    let member = Process::ready(&site, "ingest").await;
    let feeding = feed(&site);
    first_good_write(&member, ("nothing", LIMIT)).await;

    proxy.set(Fate::Swallow);
    waits(&member).await;
    tokio::time::sleep(TROUBLE).await;
    proxy.set(Fate::Pass);
    first_good_write(&member, ("packets vanish", SECOND * 2)).await;

    proxy.set(Fate::Reset);
    waits(&member).await;
    proxy.set(Fate::Pass);
    first_good_write(&member, ("connections are reset", SECOND)).await;

    site.redis.told(&["CONFIG", "SET", "maxmemory", "1"]).await;
    waits(&member).await;
    site.redis.told(&["CONFIG", "SET", "maxmemory", "0"]).await;
    first_good_write(&member, ("memory is full", SECOND)).await;

    let pause = Instant::now();
    site.redis.told(&["CLIENT", "PAUSE", "4000"]).await;
    tokio::time::sleep(TROUBLE.saturating_sub(pause.elapsed())).await;
    first_good_write(&member, ("Redis is silent", SECOND)).await;

    site.redis.told(&["SCRIPT", "FLUSH"]).await;
    first_good_write(&member, ("scripts are gone", SECOND)).await;

    a_primary_is_demoted(&site, &proxy, &member).await;

    feeding.abort();
    site.committed().await;
    is_exact(&site).await;
    // Slow, but alive: it goes on, at the pace of the answers.
    proxy.set(Fate::Late(Duration::from_millis(100)));
    let feeding = feed(&site);
    first_good_write(&member, ("each answer is 200 ms late", SECOND * 3)).await;
    feeding.abort();
    proxy.set(Fate::Pass);
    site.committed().await;
    is_exact(&site).await;
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

/// The address leads to a replica for a while: READONLY, and no connection breaks.
async fn a_primary_is_demoted(site: &Site, proxy: &Proxy, member: &Process) {
    let (old, port) = (&site.redis, site.redis.port.to_string());
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    in_step(old, &replica).await;
    old.told(&["CLIENT", "PAUSE", "300", "WRITE"]).await;
    in_step(old, &replica).await;
    replica.told(&["REPLICAOF", "NO", "ONE"]).await;
    let port = replica.port.to_string();
    old.told(&["REPLICAOF", "127.0.0.1", &port]).await;
    waits(member).await;
    proxy.lead(replica.port);
    first_good_write(member, ("a replica took over", SECOND)).await;
    // And back, for the rest of the test.
    in_step(&replica, old).await;
    replica.told(&["CLIENT", "PAUSE", "300", "WRITE"]).await;
    in_step(&replica, old).await;
    old.told(&["REPLICAOF", "NO", "ONE"]).await;
    drop(replica);
    proxy.lead(old.port);
    first_good_write(member, ("the primary died", SECOND)).await;
}

/// The replica has what the primary has.
pub async fn in_step(primary: &Server, replica: &Server) {
    eventually(LIMIT, || async {
        let has = offset(
            &replica.told(&["INFO", "replication"]).await,
            "slave_repl_offset:",
        );
        let all = offset(
            &primary.told(&["INFO", "replication"]).await,
            "master_repl_offset:",
        );
        match (has, all) {
            (Some(has), Some(all)) if has >= all => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

fn offset(info: &str, field: &str) -> Option<i64> {
    let line = info.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().parse().ok()
}
