//! Promise: faults of Redis cost time and nothing else. A member waits, reports it, and writes again as soon as it can:
//! within a second, or two where packets were dropped. Those figures are printed here and measured by `scripts/chaos`.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site};
use crate::proxy::{Fate, Proxy};
use crate::store_faults::Server;
use crate::way::is_exact;

/// How long a fault lasts: longer than the longest answer that a member waits for.
const FAULT: Duration = Duration::from_secs(2);

/// A site whose processes reach Redis through a proxy.
pub async fn behind_a_proxy(partitions: i32) -> (Site, Proxy) {
    let mut site = Site::open(&[
        ("user_events", partitions, &[]),
        ("profile_changes", partitions, &[]),
    ])
    .await;
    let proxy = Proxy::to(site.redis.port).await;
    site.edit(&[(&site.redis.url(), &proxy.url())]);
    site.store = crate::store_faults::store_at(proxy.url());
    site.catalogue().await;
    (site, proxy)
}

/// Sends purchases of fifty users, one every ten milliseconds, until it is aborted.
fn feed(site: &Site) -> JoinHandle<()> {
    let producer = site.producer.clone();
    let events: Vec<_> = (0..3_000)
        .map(|nth| site.bought(&format!("user-{}", nth % 50), nth))
        .collect();
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        for event in events.into_iter().cycle() {
            ticks.tick().await;
            producer
                .send(vec![event])
                .await
                .expect("the record is written");
        }
    })
}

async fn folded(member: &Process) -> f64 {
    member.metric("nearshore_records_total", "folded").await
}

/// Waits until the member folds nothing and reports why.
async fn is_stuck(member: &Process) {
    let errors = member.metric("nearshore_errors_total", "store").await;
    let mut before = -1.0;
    let start = Instant::now();
    loop {
        let now = folded(member).await;
        if now == before {
            break;
        }
        before = now;
        assert!(start.elapsed() < LIMIT, "it still folds");
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
}

/// Waits until something is folded again, and prints how long that took.
async fn writes_again(member: &Process, after: &str) {
    let (start, before) = (Instant::now(), folded(member).await);
    eventually(LIMIT, || async {
        match folded(member).await > before {
            true => Ok(()),
            false => Err("nothing is folded".to_owned()),
        }
    })
    .await;
    let took = start.elapsed();
    eprintln!("redis faults: {after}: first write after {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_redis_costs_time_and_nothing_else() {
    let (site, proxy) = behind_a_proxy(2).await;
    site.redis
        .ask(&["CONFIG", "SET", "appendfsync", "always"])
        .await;
    site.redis
        .ask(&["CONFIG", "SET", "appendonly", "yes"])
        .await;
    let member = Process::ready(&site, "ingest").await;
    let feeding = feed(&site);
    writes_again(&member, "no fault").await;

    proxy.set(Fate::Drop);
    is_stuck(&member).await;
    tokio::time::sleep(FAULT).await;
    proxy.set(Fate::Pass);
    writes_again(&member, "dropped packets").await;

    proxy.set(Fate::Reset);
    is_stuck(&member).await;
    proxy.set(Fate::Pass);
    writes_again(&member, "reset connections").await;

    site.redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    is_stuck(&member).await;
    site.redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    writes_again(&member, "full memory").await;

    site.redis.ask(&["CLIENT", "PAUSE", "2000"]).await;
    tokio::time::sleep(FAULT).await;
    writes_again(&member, "a silent Redis").await;

    site.redis.ask(&["SCRIPT", "FLUSH"]).await;
    writes_again(&member, "lost scripts").await;

    a_primary_is_demoted(&site, &proxy, &member).await;

    feeding.abort();
    site.committed().await;
    // Shown if a state is wrong: when the member read again, and from where.
    eprintln!("{}", member.log());
    is_exact(&site).await;
    // A slow Redis: the member folds as fast as the answers come.
    proxy.set(Fate::Late(Duration::from_millis(100)));
    let feeding = feed(&site);
    writes_again(&member, "answers that are 200 ms late").await;
    feeding.abort();
    proxy.set(Fate::Pass);
    site.committed().await;
    is_exact(&site).await;
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

/// The address leads to a replica for a while: it answers READONLY, and no connection breaks.
async fn a_primary_is_demoted(site: &Site, proxy: &Proxy, member: &Process) {
    let (old, port) = (&site.redis, site.redis.port.to_string());
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    in_step(old, &replica).await;
    old.ask(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    in_step(old, &replica).await;
    replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
    let port = replica.port.to_string();
    old.ask(&["REPLICAOF", "127.0.0.1", &port]).await;
    old.ask(&["CLIENT", "UNPAUSE"]).await;
    is_stuck(member).await;
    proxy.redirect(replica.port);
    writes_again(member, "a promoted replica").await;
    // Back to the old primary, for the rest of the test.
    in_step(&replica, old).await;
    replica.ask(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    in_step(&replica, old).await;
    old.ask(&["REPLICAOF", "NO", "ONE"]).await;
    drop(replica);
    proxy.redirect(old.port);
    writes_again(member, "a killed primary").await;
}

/// Waits until the replica has all that the primary has. Before its first connection a replica has the offset 1 and the
/// primary 0, so the link must be up, too.
pub async fn in_step(primary: &Server, replica: &Server) {
    eventually(LIMIT, || async {
        let info = replica.ask(&["INFO", "replication"]).await;
        if !info.contains("master_link_status:up") {
            return Err(info);
        }
        let has = offset(&info, "slave_repl_offset:");
        let all = offset(
            &primary.ask(&["INFO", "replication"]).await,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_redis_is_told_at_its_beginning_once_a_minute_and_at_its_end() {
    let mut site = Site::open(&[("user_events", 1, &[])]).await;
    for setting in [["appendfsync", "always"], ["appendonly", "yes"]] {
        let [name, value] = setting;
        site.redis.ask(&["CONFIG", "SET", name, value]).await;
    }
    site.catalogue().await;
    let mut member = Process::ready(&site, "all").await;
    let feeding = feed(&site);
    writes_again(&member, "no fault").await;
    let (before, start) = (member.log().lines().count(), Instant::now());
    site.redis.kill();
    is_stuck(&member).await;
    let errors = member.metric("nearshore_errors_total", "store").await;
    eventually(LIMIT, || async {
        match member.metric("nearshore_errors_total", "store").await {
            now if now >= errors + 20.0 => Ok(()),
            now => Err(format!("{now} errors, {errors} at first")),
        }
    })
    .await;
    site.redis.restart_with(&["--appendonly", "yes"]).await;
    writes_again(&member, "an outage").await;
    member.becomes_ready().await;
    let end = "Redis accepts writes again";
    eventually(LIMIT, || async {
        let log = member.log();
        log.contains(end).then_some(()).ok_or(log)
    })
    .await;
    feeding.abort();
    let minutes = start.elapsed().as_secs() as usize / 60 + 1;
    let log = member.log();
    let lines: Vec<&str> = log.lines().skip(before).collect();
    eprintln!("redis faults: an outage: {lines:#?}");
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    let port = site.redis.port.to_string();
    assert!(lines[0].contains(" redis: ") && lines[0].contains(&port));
    assert_eq!(count(end), 1, "{lines:#?}");
    // In a minute one line of each service; from the second one on another one says how many were left out.
    let [redis, kafka] = [count(" redis: "), count(" kafka: ")];
    assert!(redis.max(kafka) < 2 * minutes, "{lines:#?}");
    // Each of the three groups says that it reads again what Redis may have lost.
    assert!(lines.len() - redis - kafka <= 1 + 3, "{lines:#?}");
}

/// Changes the password of the member's user in Redis and ends its connections, as a rotation does.
async fn rotate(site: &Site, password: &str) {
    let rule = format!(">{password}");
    site.redis
        .ask(&[
            "ACL",
            "SETUSER",
            "shop",
            "on",
            "resetpass",
            &rule,
            "~*",
            "&*",
            "+@all",
        ])
        .await;
    site.redis.ask(&["CLIENT", "KILL", "USER", "shop"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_rotated_under_load_ends_no_process_and_loses_nothing() {
    let site = Site::open(&[]).await;
    rotate(&site, "one").await;
    let path = site.write("password", "one\n");
    let login = "[redis]\nusername = \"shop\"\npassword_file = \"password\"\n";
    site.edit(&[("[redis]\n", login)]);
    site.catalogue().await;
    let mut member = Process::ready(&site, "all").await;
    let feed = feed(&site);
    // The server first: the member waits, says why, and logs in by what the file has then.
    rotate(&site, "two").await;
    eventually(LIMIT, || async {
        let (status, page) = member.get("/readyz").await.map_err(|e| e.to_string())?;
        match status == 503 && page.contains("the login is refused") {
            true => Ok(()),
            false => Err(format!("{status}: {page}")),
        }
    })
    .await;
    std::fs::write(&path, "two\n").expect("written");
    member.becomes_ready().await;
    // The file first: the connections in use go on, and new ones find the new password.
    std::fs::write(&path, "three\n").expect("written");
    rotate(&site, "three").await;
    let before = folded(&member).await;
    eventually(LIMIT, || async {
        match folded(&member).await > before {
            true => Ok(()),
            false => Err("nothing is folded".into()),
        }
    })
    .await;
    member.becomes_ready().await;
    feed.abort();
    assert!(
        feed.await.is_err_and(|ended| ended.is_cancelled()),
        "the feed failed"
    );
    is_exact(&site).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_which_setting_of_redis_is_wrong() {
    let site = Site::open(&[]).await;
    rotate(&site, "one").await;
    site.write("password", "another\n");
    let right = site.redis.url();
    let url = format!("url = \"{right}\"");
    for (settings, hint) in [
        (
            format!("{url}\nusername = \"shop\"\npassword_file = \"password\""),
            "redis.password_file",
        ),
        (format!("url = \"{right}/99\""), "is a database"),
        (
            "url = \"redis://127.0.0.1:1\"".to_owned(),
            "is Redis running",
        ),
    ] {
        site.edit(&[(&url, &settings)]);
        let output = site.cli(&["check"]).await;
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        let advice = report
            .lines()
            .find(|line| line.contains("->") && line.contains(hint));
        assert!(advice.is_some(), "{settings}: {report}");
        assert!(report.contains("[fail] redis"), "{report}");
        site.edit(&[(&settings, &url)]);
    }
}
