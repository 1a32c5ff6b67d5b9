//! Promise: a Redis that loses writes which it had acknowledged, and whose offsets are committed, gets them again
//! from the log: states, counts and lists come right by themselves, and nothing is doubled.

use std::time::{Duration, Instant};

use nearshore_core::ports::store::{Durability, Users};
use serde_json::json;

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site};
use crate::proxy::{Fate, Proxy};
use crate::redis_trouble::{behind_a_proxy, in_step};
use crate::store_faults::{Server, store_at};
use crate::way::{accepted, covering, is_exact};

const USERS: usize = 40;

/// Purchases, profiles and an erase.
async fn produce(site: &Site, round: usize) {
    let user = |nth: usize| format!("user-{}", nth % USERS);
    let events = (0..400).map(|nth| site.bought(&user(nth * 7 + round), nth + round));
    site.send(events.collect()).await;
    let profiles =
        (0..10).map(|nth| site.profile(&user(nth * 3 + round), &json!({"round": round})));
    site.send(profiles.collect()).await;
    let mut erase = site.profile(&user(round * 5 + 1), &json!({}));
    erase.value = None;
    site.send(vec![erase]).await;
}

/// Every user who is not erased has a list of the model that has seen all of them.
async fn all_listed(site: &Site) {
    let all = accepted(site).await;
    for (user, records) in &all {
        let held = site.store.load(&site.ns, std::slice::from_ref(user));
        let held = held.await.expect("answered").remove(0);
        if held.state.is_vacant() {
            continue;
        }
        let since = records.iter().filter(|it| it.time > held.state.erased_at);
        let since: Vec<_> = since.cloned().collect();
        eventually(LIMIT, || async {
            covering(&site.peek(&user.0).await, &since)
        })
        .await;
    }
}

/// A replica behind a link that can be cut, in step with the primary.
async fn replicated(site: &Site) -> (Server, Proxy) {
    let link = Proxy::to(site.redis.port).await;
    let port = link.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    in_step(&site.redis, &replica).await;
    (replica, link)
}

async fn come_right(site: &Site, since: Instant) {
    let (group, topics) = (
        format!("nearshore-ingest-{}", site.ns),
        [&*site.topics.user_events, &*site.topics.profile_changes],
    );
    eventually(LIMIT, || async {
        let behind = site
            .admin
            .lag(&group, &topics)
            .await
            .map_err(|e| e.to_string())?;
        let noted = site
            .store
            .checkpoints(&site.ns)
            .await
            .map_err(|e| e.to_string())?;
        let ends = behind.len();
        let done = noted.len() == ends && behind.values().all(|it| *it == 0);
        let exact = done && is_noted_to_the_end(site, &noted).await;
        exact
            .then_some(())
            .ok_or_else(|| format!("{behind:?}, {noted:?}"))
    })
    .await;
    eprintln!(
        "failover: states and counts are whole again after {:?}",
        since.elapsed()
    );
    is_exact(site).await;
    all_listed(site).await;
    eprintln!(
        "failover: lists have seen everything after {:?}",
        since.elapsed()
    );
}

async fn is_noted_to_the_end(
    site: &Site,
    noted: &std::collections::BTreeMap<
        nearshore_core::user::record::Partition,
        nearshore_core::user::record::Resume,
    >,
) -> bool {
    let mut sum = 0;
    for topic in [&site.topics.user_events, &site.topics.profile_changes] {
        sum += site.count(topic).await;
    }
    noted.values().map(|it| it.0).sum::<i64>() == sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_no_replica_had_are_made_again_after_its_promotion() {
    let (mut site, front) = behind_a_proxy(3).await;
    let (replica, link) = replicated(&site).await;
    let ingest = Process::ready(&site, "ingest").await;
    let generate = Process::ready(&site, "generate").await;
    produce(&site, 0).await;
    site.committed().await;
    all_listed(&site).await;
    in_step(&site.redis, &replica).await;

    link.set(Fate::Swallow);
    produce(&site, 1).await;
    site.committed().await;
    is_exact(&site).await;
    all_listed(&site).await;
    let quiet = Duration::from_millis(1_500);
    tokio::time::sleep(quiet).await; // The offsets of the lanes are committed, too.

    // Nothing is fed any more: who looks only when there is work would never know.
    site.redis.kill();
    replica.told(&["REPLICAOF", "NO", "ONE"]).await;
    let behind = store_at(replica.url());
    let noted = behind.checkpoints(&site.ns).await.expect("answered");
    assert!(
        !is_noted_to_the_end(&site, &noted).await,
        "nothing was lost"
    );
    let since = Instant::now();
    front.lead(replica.port);
    come_right(&site, since).await;
    for (member, reader) in [(&ingest, "ingest"), (&generate, "generate")] {
        let again = member.metric("nearshore_rewound_records_total", "").await;
        eprintln!("failover: {reader} read {again} records again");
        assert!(again > 0.0, "{}", member.log());
    }
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_notices_what_its_predecessors_primary_lost() {
    let (mut site, front) = behind_a_proxy(3).await;
    let (replica, link) = replicated(&site).await;
    let mut ingest = Process::ready(&site, "ingest").await;
    produce(&site, 0).await;
    site.committed().await;
    in_step(&site.redis, &replica).await;
    link.set(Fate::Swallow);
    produce(&site, 1).await;
    site.committed().await;

    // All at once: nobody is left who knew the old primary.
    ingest.kill();
    site.redis.kill();
    replica.told(&["REPLICAOF", "NO", "ONE"]).await;
    front.lead(replica.port);
    let since = Instant::now();
    let _ingest = Process::ready(&site, "ingest").await;
    let _generate = Process::start(&site, "generate");
    come_right(&site, since).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_lost_everything_is_filled_from_the_log() {
    let (mut site, _front) = behind_a_proxy(2).await;
    let _member = Process::ready(&site, "ingest").await;
    let _generate = Process::start(&site, "generate");
    produce(&site, 0).await;
    site.committed().await;
    let since = Instant::now();
    site.redis.restart().await;
    come_right(&site, since).await;
}
