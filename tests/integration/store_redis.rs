//! Promise: keys, types, fields and lifetimes in Redis are those of docs/contract.md, so that any client can read them;
//! a Redis that lost its scripts, a newer state or a key of a wrong type never leads to a wrong value.

use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    Availability, Block, Cell, Counts, Delta, Error, Folded, Namespaces, Remedy, Stock,
    StockRecord, Users,
};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::user::event::Kind;
use nearshore_core::user::record::{Offset, Timestamp};
use nearshore_redis::RedisStore;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, FromRedisValue};

use crate::harness::{fresh, variable};
use crate::store::{
    STORED, activity, claim, cluster, doc, erase, fallback, fold, list, load, partition, profile,
    publish, settings, single, single_url, state, topic, user, write,
};

async fn raw(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).expect("an address");
    let conn = client.get_multiplexed_async_connection().await;
    conn.expect("Redis answers")
}

async fn ask<T: FromRedisValue>(conn: &mut MultiplexedConnection, words: &[&str]) -> T {
    let mut cmd = redis::cmd(words[0]);
    cmd.arg(&words[1..]);
    cmd.query_async(conn).await.expect("Redis answers")
}

/// Whether a TTL in ms is set, at most `days` and more than a day less.
fn within(ttl: i64, days: i64) -> bool {
    ttl > (days - 1) * 86_400_000 && ttl <= days * 86_400_000
}

#[tokio::test]
async fn a_client_finds_a_users_keys_by_name_type_and_lifetime() {
    let (store, ns, user) = (single(), fresh("ns"), user("u"));
    let mut new = write(&user, 0, 2);
    new.state.profile = Some(profile(1, 500));
    new.profile_changed = true;
    assert_eq!(fold(&store, &ns, new).await, STORED(1));
    let mut redis = raw(&single_url()).await;
    let key = |what: &str| format!("{ns}:{{{user}}}:{what}");

    let recall = key("recall");
    claim(&store, &ns, &user, 40_000)
        .await
        .expect("the user is stored");
    publish(&store, &ns, fallback(&user, 1)).await;
    let doc: String = ask(&mut redis, &["HGET", &recall, "doc"]).await;
    assert_eq!(doc, r#"{"source":"fallback"}"#);
    let ttl = ask(&mut redis, &["PTTL", &recall]).await;
    assert!(within(ttl, 30), "a fallback: {ttl}");
    publish(&store, &ns, list(&user, 1)).await;
    let mut fields: Vec<String> = ask(&mut redis, &["HKEYS", &recall]).await;
    fields.sort();
    assert_eq!(
        fields,
        [
            "at",
            "audit",
            "claim",
            "doc",
            "epoch",
            "erased_at",
            "seen",
            "stage",
            "stored_at"
        ]
    );
    let seen: String = ask(&mut redis, &["HGET", &recall, "seen"]).await;
    assert_eq!(seen, "0/user-events/3:1");

    let mut fields: Vec<String> = ask(&mut redis, &["HKEYS", &key("state")]).await;
    fields.sort();
    let expected = [
        "activity",
        "blob",
        "claim",
        "claim_rate",
        "erased_at",
        "pending",
        "ver",
    ];
    assert_eq!(fields, expected);
    let kind: String = ask(&mut redis, &["TYPE", &key("profile")]).await;
    assert_eq!(kind, "string");
    for (what, days) in [("state", 180), ("recall", 30)] {
        let ttl = ask(&mut redis, &["PTTL", &key(what)]).await;
        assert!(within(ttl, days), "{what}: {ttl}");
    }
    let ttl: i64 = ask(&mut redis, &["PTTL", &key("profile")]).await;
    assert_eq!(ttl, -1, "rules need the profile as long as there is a user");

    assert_eq!(fold(&store, &ns, erase(&user, 2, 5000)).await, STORED(3));
    let tombstone = format!("nearshore:erased:{{{user}}}");
    let at: String = ask(&mut redis, &["GET", &tombstone]).await;
    assert_eq!(at, "5000");
    let ttl: i64 = ask(&mut redis, &["PTTL", &tombstone]).await;
    assert_eq!(ttl, -1);
    let left: i64 = ask(&mut redis, &["EXISTS", &recall, &key("profile")]).await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn every_write_renews_the_states_lifetime_and_no_list_outlives_it() {
    let (ns, user) = (fresh("ns"), user("u"));
    let mut short = settings(single_url());
    short.state_ttl = std::time::Duration::from_secs(1000);
    let store = RedisStore::new(short).expect("valid settings");
    let mut redis = raw(&single_url()).await;
    let key = |what: &str| format!("{ns}:{{{user}}}:{what}");
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    claim(&store, &ns, &user, 1)
        .await
        .expect("the user is stored");
    for step in 0..3 {
        let _: i64 = ask(&mut redis, &["PEXPIRE", &key("state"), "5000"]).await;
        match step {
            0 => assert_eq!(fold(&store, &ns, write(&user, 2, 2)).await, STORED(3)),
            1 => drop(publish(&store, &ns, list(&user, 1)).await),
            _ => drop(claim(&store, &ns, &user, 1).await),
        }
        let ttl: i64 = ask(&mut redis, &["PTTL", &key("state")]).await;
        assert!((900_000..=1_000_000).contains(&ttl), "step {step}: {ttl}");
    }
    let state: i64 = ask(&mut redis, &["PTTL", &key("state")]).await;
    let list: i64 = ask(&mut redis, &["PTTL", &key("recall")]).await;
    assert!(list > 0 && list <= state, "{list} {state}");
}

#[tokio::test]
async fn a_client_finds_stock_and_counts_by_the_published_hash() {
    let (store, ns) = (single(), fresh("ns"));
    let sku = fresh("sku");
    // FNV-1a as docs/contract.md defines it, not the implementation under test.
    let mut hash: u64 = 2_166_136_261;
    for byte in sku.bytes() {
        hash = ((hash ^ u64::from(byte)) * 16_777_619) % (1 << 32);
    }
    let op = StockRecord {
        sku: sku.clone(),
        partition: partition(&topic()),
        offset: Offset(1),
        availability: Availability::SoldOut,
        time: Timestamp(1),
    };
    store.stock(&[op]).await.expect("the store answers");
    let mut redis = raw(&single_url()).await;
    let set = format!("nearshore:oos:{{{}}}", hash % 16);
    let out: Vec<bool> = ask(&mut redis, &["SMISMEMBER", &set, &sku, "unknown"]).await;
    assert_eq!(out, [true, false]);

    let cell = Cell {
        sku: sku.clone(),
        kind: CountKind::Event(Kind::Cart),
        segment: "default".into(),
        bucket: 2810,
    };
    let delta = Delta {
        shard: keys::shard(&sku),
        partition: partition("user-events"),
        prev: None,
        last: Offset(41),
        cells: [(cell, 3)].into(),
    };
    store.add(&ns, &[delta]).await.expect("the store answers");
    let shard = format!("{ns}:counts:{{s{:02x}}}", hash % 256);
    let bucket = format!("{shard}:b2810");
    let field = format!("cart:default:{sku}");
    let n: i64 = ask(&mut redis, &["HGET", &bucket, &field]).await;
    assert_eq!(n, 3);
    let ttl = ask(&mut redis, &["PTTL", &bucket]).await;
    assert!(within(ttl, 400), "{ttl}");
    let fence = format!("{shard}:fence");
    let last: String = ask(&mut redis, &["HGET", &fence, "0/user-events/3"]).await;
    assert_eq!(last, "41");
    let ttl: i64 = ask(&mut redis, &["PTTL", &fence]).await;
    assert_eq!(ttl, -1, "a fence must not expire before its log");
}

#[tokio::test]
async fn an_erase_in_another_namespace_deletes_the_stored_profile() {
    let (store, ns, other, user) = (single(), fresh("ns"), fresh("ns"), user("u"));
    let mut new = write(&user, 0, 0);
    new.state.profile = Some(profile(1, 500));
    new.profile_changed = true;
    assert_eq!(fold(&store, &ns, new).await, STORED(1));
    assert_eq!(fold(&store, &other, erase(&user, 0, 5000)).await, STORED(1));
    // This namespace learns of the erase only by what `load` returns.
    let mut after = write(&user, 1, 0);
    after.state = load(&store, &ns, &user).await.state;
    assert_eq!(fold(&store, &ns, after).await, STORED(2));
    let mut redis = raw(&single_url()).await;
    let key = format!("{ns}:{{{user}}}:profile");
    let left: i64 = ask(&mut redis, &["EXISTS", &key]).await;
    assert_eq!(
        left, 0,
        "the profile is hidden from readers but still stored"
    );
}

#[tokio::test]
async fn a_block_that_is_sent_twice_is_stored_and_logged_once() {
    let (store, sku, id) = (single(), fresh("sku"), fresh("pu"));
    let block = Block {
        id: id.clone(),
        pu: true,
        skus: vec![sku.clone()],
        reason: "recall".into(),
        by: "ops".into(),
        at: Timestamp(5),
    };
    for _ in 0..2 {
        store.block(&block).await.expect("the store answers");
    }
    let mut redis = raw(&single_url()).await;
    let key = keys::sold_out_blocked(keys::set(&sku));
    let entry: String = ask(&mut redis, &["HGET", &key, &sku]).await;
    let entry: serde_json::Value = serde_json::from_str(&entry).expect("JSON");
    let expected = serde_json::json!({"out": false, "by": [format!("pu:{id}")]});
    assert_eq!(entry, expected);
    let unblocked = store.unblock(&id, "ops", Timestamp(6)).await;
    assert!(unblocked.expect("the store answers"));
    let log: Vec<String> = ask(&mut redis, &["LRANGE", keys::BLOCKS_LOG, "0", "-1"]).await;
    let lines = log.iter().filter(|line| line.contains(&id));
    let actions: Vec<bool> = lines.map(|line| line.contains("unblock")).collect();
    assert_eq!(actions, [false, true]);
}

#[tokio::test]
async fn a_kept_list_is_marked_stale_until_the_next_one() {
    let (store, ns, user) = (single(), fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    for _ in 0..3 {
        claim(&store, &ns, &user, 1)
            .await
            .expect("the user is stored");
    }
    publish(&store, &ns, list(&user, 1)).await;
    let mut failed = list(&user, 2);
    failed.only_if_absent = true;
    failed.list.at = Timestamp(7777);
    publish(&store, &ns, failed).await;
    let mut redis = raw(&single_url()).await;
    let recall = format!("{ns}:{{{user}}}:recall");
    let stale: Option<String> = ask(&mut redis, &["HGET", &recall, "stale"]).await;
    assert_eq!(stale.as_deref(), Some("7777"));
    publish(&store, &ns, list(&user, 3)).await;
    let stale: Option<String> = ask(&mut redis, &["HGET", &recall, "stale"]).await;
    assert_eq!(stale, None);
}

#[tokio::test]
async fn a_state_of_a_newer_version_stops_its_reader_and_is_left_alone() {
    let (store, ns, user) = (single(), fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    let mut redis = raw(&single_url()).await;
    let key = format!("{ns}:{{{user}}}:state");
    let newer: &[u8] = &[250, 1, 2, 3];
    let _: () = redis.hset(&key, "blob", newer).await.expect("written");
    let users = [user.clone()];
    let claim = nearshore_core::ports::store::Claim {
        user,
        due: Timestamp(1),
        expected: 1,
    };
    for error in [
        store
            .load(&ns, &users)
            .await
            .map(drop)
            .expect_err("the state is newer"),
        store
            .peek(&ns, &users)
            .await
            .map(drop)
            .expect_err("the state is newer"),
        store
            .claim(&ns, &[claim])
            .await
            .map(drop)
            .expect_err("the state is newer"),
    ] {
        assert_eq!(error.remedy(), Remedy::Stop);
        // A process that is too old stops; it does not set aside one user after the other.
        assert!(
            matches!(error, Error::Corrupt { user: None, .. }),
            "{error}"
        );
        let text = error.to_string();
        // The error has the key without the user's id: errors are logged.
        assert!(text.contains(&format!("{ns}:{{#")), "{text}");
        assert!(text.contains("newer"), "{text}");
    }
    let left: Vec<u8> = redis.hget(&key, "blob").await.expect("read");
    assert_eq!(left, newer);
}

#[tokio::test]
async fn a_key_of_a_wrong_type_is_refused_and_named() {
    let (store, ns, user) = (single(), fresh("ns"), user("u"));
    let mut redis = raw(&single_url()).await;
    let key = format!("{ns}:{{{user}}}:state");
    let _: String = ask(&mut redis, &["SET", &key, "text"]).await;
    let refused = store.fold(&ns, &[write(&user, 0, 1)]).await;
    let refused = refused.expect_err("the key has a wrong type");
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
    assert_eq!(refused.remedy(), Remedy::Stop);
}

#[tokio::test]
async fn scripts_that_redis_lost_are_loaded_again() {
    let nodes = variable("NEARSHORE_TEST_REDIS_CLUSTER");
    let urls = nodes.split(',').map(|node| format!("redis://{node}"));
    lose_scripts(cluster(), urls.collect()).await;
    lose_scripts(single(), vec![single_url()]).await;
}

async fn lose_scripts(store: RedisStore, urls: Vec<String>) {
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    for url in urls {
        let _: String = ask(&mut raw(&url).await, &["SCRIPT", "FLUSH"]).await;
    }
    // Commands that are not scripts, before and after them in the pipeline, must keep their answers.
    let users: Vec<_> = (0..50).map(|_| crate::store::user("u")).collect();
    let writes: Vec<_> = users.iter().map(|user| write(user, 0, 2)).collect();
    let answers = store.fold(&ns, &writes).await.expect("the store answers");
    assert!(answers.iter().all(|answer| *answer == STORED(1)));
    assert_eq!(fold(&store, &ns, write(&user, 0, 3)).await, Folded::Stale);
    assert_eq!(load(&store, &ns, &users[9]).await.state, state(2));
    assert_eq!(load(&store, &ns, &users[9]).await.activity, activity(2));
    assert_eq!(doc(&store, &ns, &user).await, None);
}

#[tokio::test]
async fn a_cluster_configured_as_a_single_server_is_named_in_the_error() {
    let nodes = variable("NEARSHORE_TEST_REDIS_CLUSTER");
    let node = nodes.split(',').next().expect("a node");
    let url = format!("redis://{node}");
    let store = RedisStore::new(settings(url)).expect("valid settings");
    let users: Vec<_> = (0..20).map(|_| user("u")).collect();
    let refused = store
        .load(&fresh("ns"), &users)
        .await
        .expect_err("the slots are on other nodes");
    assert!(
        refused.to_string().contains("redis+cluster://"),
        "{refused}"
    );
    let checks = store.check().await;
    let mode = checks.iter().find(|(name, _)| name == "redis mode");
    let (_, verdict) = mode.expect("the mode is checked");
    assert!(verdict.is_err(), "{checks:?}");
}

#[tokio::test]
async fn a_healthy_redis_passes_every_check() {
    for store in [single(), cluster()] {
        store.ready().await.expect("Redis takes writes");
        let checks = store.check().await;
        assert!(checks.len() >= 6, "{checks:?}");
        for (name, verdict) in &checks {
            assert!(verdict.is_ok(), "{name}: {verdict:?}");
        }
    }
}

#[tokio::test]
async fn a_redis_of_another_layout_is_refused_and_an_empty_one_is_marked() {
    let server = crate::store_faults::Server::start(&[]).await;
    let store = RedisStore::new(settings(server.url())).expect("settings are right");
    let mut redis = raw(&server.url()).await;
    store.check_layout().await.expect("empty");
    let layout: String = ask(&mut redis, &["GET", "nearshore:layout"]).await;
    assert_eq!(layout, keys::LAYOUT_VERSION.to_string());
    store.enroll("main", Some("{}")).await.expect("enrolled");
    store.check_layout().await.expect("its own layout");
    // As a build left it that did not know of layouts.
    let _: i64 = ask(&mut redis, &["DEL", "nearshore:layout"]).await;
    let refused = store.check_layout().await;
    assert!(
        matches!(&refused, Err(Error::Refused { reason, .. }) if reason.contains("1 registered")),
        "{refused:?}"
    );
    let _: String = ask(&mut redis, &["SET", "nearshore:layout", "1"]).await;
    let refused = store.check_layout().await;
    assert!(
        matches!(&refused, Err(Error::Refused { reason, .. }) if reason.contains("\"1\"")),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_at_once_on_an_empty_redis_all_start() {
    let server = crate::store_faults::Server::start(&[]).await;
    let mut redis = raw(&server.url()).await;
    for round in 0..20 {
        let _: String = ask(&mut redis, &["FLUSHALL"]).await;
        let starts = (0..16).map(|i| {
            // A store of its own: processes share no connection.
            let store = RedisStore::new(settings(server.url())).expect("settings are right");
            tokio::spawn(async move {
                store.check_layout().await?;
                store.enroll(&format!("ns{i}"), Some("{}")).await
            })
        });
        for started in futures::future::join_all(starts).await {
            let started = started.expect("no panic");
            assert!(started.is_ok(), "round {round}: {started:?}");
        }
    }
}
