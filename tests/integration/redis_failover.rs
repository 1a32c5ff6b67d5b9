//! Promise: a Redis that loses acknowledged writes whose offsets are committed gets them again from the log: states,
//! counts and lists become complete by themselves, and nothing is doubled.

use std::time::Instant;

use nearshore_core::ports::store::{Durability, Users};
use serde_json::json;

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site};
use crate::proxy::{Fate, Proxy};
use crate::redis_trouble::{behind_a_proxy, in_step};
use crate::store_faults::{Server, store_at};
use crate::way::{accepted, is_exact, list_with_all};

const USERS: usize = 40;

/// Sends purchases, profiles and an erase.
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

/// Waits until every user that is not erased has a list by the model that has seen all records since the erase.
async fn all_listed(site: &Site) {
    let all = accepted(site).await;
    for (user, records) in &all {
        let loaded = site.store.load(&site.ns, std::slice::from_ref(user));
        let loaded = loaded.await.expect("Redis answers").remove(0);
        if loaded.state.is_vacant() {
            continue;
        }
        let since = records.iter().filter(|it| it.time > loaded.state.erased_at);
        let since: Vec<_> = since.cloned().collect();
        eventually(LIMIT, || async {
            list_with_all(&site.peek(&user.0).await, &since)
        })
        .await;
    }
}

/// A replica that has all that the primary has, and the proxy on its link.
async fn replicated(site: &Site) -> (Server, Proxy) {
    let link = Proxy::to(site.redis.port).await;
    let port = link.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    in_step(&site.redis, &replica).await;
    (replica, link)
}

/// Waits until states, counts and lists are complete again.
async fn becomes_complete(site: &Site, since: Instant) {
    let (group, topics) = (
        site.ingest_group(),
        [&*site.topics.user_events, &*site.topics.profile_changes],
    );
    eventually(LIMIT, || async {
        let behind = site
            .admin
            .lag(&group, &topics)
            .await
            .map_err(|e| e.to_string())?;
        let checkpoints = site
            .store
            .checkpoints(&site.ns)
            .await
            .map_err(|e| e.to_string())?;
        let ends = behind.len();
        let done = checkpoints.len() == ends && behind.values().all(|it| *it == 0);
        let exact = done && checkpoints_are_at_the_ends(site, &checkpoints).await;
        exact
            .then_some(())
            .ok_or_else(|| format!("{behind:?}, {checkpoints:?}"))
    })
    .await;
    eprintln!(
        "failover: states and counts are complete after {:?}",
        since.elapsed()
    );
    is_exact(site).await;
    all_listed(site).await;
    eprintln!(
        "failover: lists have seen everything after {:?}",
        since.elapsed()
    );
}

async fn checkpoints_are_at_the_ends(
    site: &Site,
    checkpoints: &std::collections::BTreeMap<
        nearshore_core::user::record::Partition,
        nearshore_core::user::record::Resume,
    >,
) -> bool {
    let mut sum = 0;
    for topic in [&site.topics.user_events, &site.topics.profile_changes] {
        sum += site.count(topic).await;
    }
    checkpoints.values().map(|it| it.0).sum::<i64>() == sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_a_promoted_replica_lacks_are_made_again() {
    let (mut site, front) = behind_a_proxy(3).await;
    let (replica, link) = replicated(&site).await;
    let ingest = Process::ready(&site, "ingest").await;
    let generate = Process::ready(&site, "generate").await;
    produce(&site, 0).await;
    site.committed().await;
    all_listed(&site).await;
    in_step(&site.redis, &replica).await;

    link.set(Fate::Drop);
    produce(&site, 1).await;
    site.committed().await;
    is_exact(&site).await;
    all_listed(&site).await;
    // The offsets of the lanes are committed, too.
    let lanes = site.topics.lanes();
    let names: Vec<&str> = lanes.iter().map(|name| &**name).collect();
    eventually(LIMIT, || async {
        let lag = site
            .admin
            .lag(&site.settings.group("generate"), &names)
            .await;
        let lag = lag.map_err(|error| error.to_string())?;
        match lag.values().sum::<u64>() {
            0 => Ok(()),
            _ => Err(format!("{lag:?}")),
        }
    })
    .await;

    // No record is sent any more: a member that checks the store only when it has work would never notice.
    site.redis.kill();
    replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
    let behind = store_at(replica.url());
    let checkpoints = behind.checkpoints(&site.ns).await;
    let checkpoints = checkpoints.expect("Redis answers");
    assert!(
        !checkpoints_are_at_the_ends(&site, &checkpoints).await,
        "the replica lacks nothing"
    );
    let since = Instant::now();
    front.redirect(replica.port);
    becomes_complete(&site, since).await;
    for (member, reader) in [(&ingest, "ingest"), (&generate, "generate")] {
        let again = member.metric("nearshore_rewound_records_total", "").await;
        eprintln!("failover: {reader} read {again} records again");
        assert!(again > 0.0, "{}", member.log());
    }
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_notices_what_the_old_primary_lost() {
    let (mut site, front) = behind_a_proxy(3).await;
    // The killed member keeps its partitions for so long.
    site.edit(&[("session_timeout = \"6s\"", "session_timeout = \"3s\"")]);
    let (replica, link) = replicated(&site).await;
    let mut ingest = Process::ready(&site, "ingest").await;
    produce(&site, 0).await;
    site.committed().await;
    in_step(&site.redis, &replica).await;
    link.set(Fate::Drop);
    produce(&site, 1).await;
    site.committed().await;

    // Member and primary at once: no process is left that knew the old primary.
    ingest.kill();
    site.redis.kill();
    replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
    front.redirect(replica.port);
    let since = Instant::now();
    let _ingest = Process::ready(&site, "ingest").await;
    let _generate = Process::start(&site, "generate");
    becomes_complete(&site, since).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_redis_is_filled_from_the_log() {
    let (mut site, _front) = behind_a_proxy(2).await;
    let _member = Process::ready(&site, "ingest").await;
    let _generate = Process::start(&site, "generate");
    produce(&site, 0).await;
    site.committed().await;
    let since = Instant::now();
    site.redis.restart().await;
    becomes_complete(&site, since).await;
}
