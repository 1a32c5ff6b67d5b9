//! Promise: a stored value that cannot be used is named by its key, with the user if it is one user's, and is left as it
//! is; an erase deletes it; a count that is no integer costs that count alone.

use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    Added, Availability, Cell, Claim, Counts, Delta, Error, Folded, Stock, StockRecord, Store,
    Users,
};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Offset, Partition, Timestamp};
use nearshore_core::user::state::LoadedUser;
use nearshore_redis::RedisStore;
use redis::aio::MultiplexedConnection;

use crate::harness::fresh;
use crate::store::{
    STORED, claim, cluster, erase, fallback, fold, list, load, partition, peek, profile, publish,
    single, single_url, topic, user, write,
};
use crate::store_faults::{Server, store_at};

async fn raw() -> MultiplexedConnection {
    raw_at(single_url()).await
}

async fn raw_at(url: String) -> MultiplexedConnection {
    let client = redis::Client::open(url).expect("an address");
    let conn = client.get_multiplexed_async_connection().await;
    conn.expect("Redis answers")
}

async fn ask(conn: &mut MultiplexedConnection, words: &[&str]) -> redis::Value {
    let mut cmd = redis::cmd(words[0]);
    cmd.arg(&words[1..]);
    cmd.query_async(conn).await.expect("Redis answers")
}

/// Does one thing to a user, or reads it of them.
async fn one_call(store: &RedisStore, ns: &str, user: &UserId, call: &str) -> Result<(), Error> {
    let users = std::slice::from_ref(user);
    let claim = Claim {
        user: user.clone(),
        due: Timestamp(1),
        expected: 2,
    };
    match call {
        "load" => store.load(ns, users).await.map(drop),
        "peek" => store.peek(ns, users).await.map(drop),
        "claim" => store.claim(ns, &[claim]).await.map(drop),
        "publish" => store.publish(ns, &[list(user, 1)]).await.map(drop),
        _ => store.fold(ns, &[write(user, 2, 3)]).await.map(drop),
    }
}

/// A user with a state, a profile, a list and a claim.
async fn known(store: &RedisStore, ns: &str, user: &UserId) {
    let mut new = write(user, 0, 2);
    new.state.profile = Some(profile(1, 500));
    new.profile_changed = true;
    assert_eq!(fold(store, ns, new).await, STORED(1));
    claim(store, ns, user, 40_000)
        .await
        .expect("there is a state");
    publish(store, ns, fallback(user, 1)).await;
}

/// Part of a user, what is written there, and the calls that meet it.
type Bad = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

const WRONG: &[Bad] = &[
    (
        "state",
        &["SET", "KEY", "x"],
        &["load", "peek", "claim", "publish", "fold"],
    ),
    (
        "state",
        &["HSET", "KEY", "blob", "\u{2}"],
        &["load", "peek", "claim"],
    ),
    ("state", &["HSET", "KEY", "ver", "x"], &["load", "peek"]),
    ("state", &["HDEL", "KEY", "blob"], &["load", "peek"]),
    ("state", &["HDEL", "KEY", "pending"], &["load", "peek"]),
    (
        "state",
        &["HSET", "KEY", "claim", "x"],
        &["load", "peek", "claim", "publish"],
    ),
    ("profile", &["RPUSH", "KEY", "x"], &["load", "claim"]),
    ("profile", &["SET", "KEY", "{"], &["load", "claim"]),
    ("recall", &["SET", "KEY", "x"], &["peek", "publish", "fold"]),
    (
        "recall",
        &["HSET", "KEY", "claim", "x"],
        &["peek", "publish"],
    ),
    ("recall", &["HSET", "KEY", "seen", "x"], &["peek"]),
    (
        "erased",
        &["HSET", "KEY", "a", "b"],
        &["load", "peek", "claim", "publish", "fold"],
    ),
    (
        "erased",
        &["SET", "KEY", "x"],
        &["load", "peek", "publish", "fold"],
    ),
];

#[tokio::test]
async fn each_call_that_meets_a_bad_value_names_its_key_and_its_user() {
    let (store, ns, mut redis) = (single(), fresh("ns"), raw().await);
    for (what, words, calls) in WRONG {
        let user = user("u");
        known(&store, &ns, &user).await;
        let keys = keys::user(&ns, &user).expect("keys");
        let key = match *what {
            "state" => keys.state,
            "profile" => keys.profile,
            "recall" => keys.recall,
            _ => keys.erased,
        };
        if !["HDEL", "HSET"].contains(&words[0]) || *what == "erased" {
            ask(&mut redis, &["DEL", &key]).await;
        }
        let words: Vec<&str> = words
            .iter()
            .map(|word| if *word == "KEY" { &*key } else { word })
            .collect();
        ask(&mut redis, &words).await;
        for call in *calls {
            let before = ask(&mut redis, &["DUMP", &key]).await;
            let error = one_call(&store, &ns, &user, call).await.expect_err(call);
            let Error::Corrupt {
                key: found,
                user: whose,
                ..
            } = &error
            else {
                panic!("{call} with {words:?}: {error}");
            };
            assert_eq!(
                whose.as_ref(),
                Some(&user),
                "{call} with {words:?}: {error}"
            );
            assert!(
                found.contains(&keys::masked(&key)),
                "{call} with {words:?}: {error}"
            );
            assert!(!error.to_string().contains(&*user.0), "{error}");
            // A claim decodes the state behind its script, and may be made again.
            if *call != "claim" {
                let after = ask(&mut redis, &["DUMP", &key]).await;
                assert_eq!(after, before, "{call} with {words:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_erase_that_finds_bad_values_deletes_them() {
    let (store, ns, mut redis) = (single(), fresh("ns"), raw().await);
    let user = user("u");
    known(&store, &ns, &user).await;
    let keys = keys::user(&ns, &user).expect("keys");
    for key in [&keys.state, &keys.profile, &keys.recall, &keys.erased] {
        ask(&mut redis, &["DEL", key]).await;
        ask(&mut redis, &["RPUSH", key, "x"]).await;
    }
    store
        .discard(&ns, &user, Timestamp(5000))
        .await
        .expect("it is deleted");
    let loaded = load(&store, &ns, &user).await;
    assert_eq!((loaded.ver, loaded.state.erased_at), (0, Timestamp(5000)));
    assert_eq!(fold(&store, &ns, erase(&user, 0, 5000)).await, STORED(1));
    assert_eq!(peek(&store, &ns, &user).await.list, None);
}

#[tokio::test]
async fn a_discarded_user_has_nothing_but_a_tombstone_that_only_rises() {
    async fn check<S: Store>(store: S) {
        let (ns, user) = (fresh("ns"), user("u"));
        assert_eq!(fold(&store, &ns, write(&user, 0, 2)).await, STORED(1));
        for (at, in_force) in [(5000, 5000), (4000, 5000), (6000, 6000)] {
            store
                .discard(&ns, &user, Timestamp(at))
                .await
                .expect("it answers");
            let expected = Timestamp(in_force);
            let LoadedUser { ver, state, .. } = load(&store, &ns, &user).await;
            assert_eq!(
                (ver, state.is_vacant(), state.erased_at),
                (0, true, expected)
            );
        }
        let old = fold(&store, &ns, write(&user, 0, 2)).await;
        assert_eq!(
            old,
            Folded::Erased {
                at: Timestamp(6000)
            }
        );
    }
    check(crate::store::memory()).await;
    check(single()).await;
    check(cluster()).await;
}

fn cell(sku: &str) -> Cell {
    Cell {
        sku: sku.into(),
        kind: CountKind::Buyer,
        segment: "default".into(),
        bucket: 7,
    }
}

#[tokio::test]
async fn a_count_that_is_no_integer_costs_that_count_alone() {
    let (store, ns, mut redis) = (single(), fresh("ns"), raw().await);
    // Two SKUs of one shard, sorted around the bad one.
    let shard = keys::shard("a");
    let skus: Vec<String> = (0..)
        .map(|nth| format!("a{nth}"))
        .filter(|sku| keys::shard(sku) == shard)
        .take(2)
        .collect();
    let all = ["a", &skus[0], &skus[1]];
    let key = keys::count_bucket(&ns, shard, 7);
    let field = keys::cell("buyer", "default", &skus[0]);
    for bad in ["x", "1.5", "99999999999999999999"] {
        ask(&mut redis, &["HSET", &key, &field, bad]).await;
        let p = partition(&fresh("events"));
        for (nth, prev) in [(0, None), (1, Some(Offset(0)))] {
            let cells = all.iter().map(|sku| (cell(sku), 2)).collect();
            let delta = Delta {
                shard,
                partition: p.clone(),
                prev,
                last: Offset(nth),
                cells,
            };
            let added = store.add(&ns, &[delta]).await.expect("it answers");
            assert_eq!(added, [Added::Stored], "{bad}");
        }
    }
    let counts = store
        .counts(&ns, shard, 0)
        .await
        .expect("the others are read");
    let expected: std::collections::BTreeMap<Cell, u64> =
        [(cell("a"), 12), (cell(&skus[1]), 12)].into();
    assert_eq!(counts, expected);
    let found = ask(&mut redis, &["HGET", &key, &field]).await;
    assert_eq!(
        found,
        redis::Value::BulkString(b"99999999999999999999".to_vec())
    );
}

#[tokio::test]
async fn a_bad_value_that_users_share_is_named_without_a_user() {
    let (store, ns, mut redis) = (single(), fresh("ns"), raw().await);
    let (shard, p) = (keys::shard("a"), partition("user-events"));
    let fence = keys::count_fence(&ns, shard);
    ask(&mut redis, &["SET", &fence, "x"]).await;
    let delta = Delta {
        shard,
        partition: p.clone(),
        prev: None,
        last: Offset(1),
        cells: [(cell("a"), 1)].into(),
    };
    let checks = [
        store.add(&ns, &[delta]).await.map(drop),
        store.count_fences(&ns, &p).await.map(drop),
        store.count_versions(&ns).await.map(drop),
    ];
    for outcome in checks {
        let error = outcome.expect_err("the fence is a string");
        assert!(
            matches!(&error, Error::Corrupt { user: None, key, .. } if *key == fence),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_damaged_block_of_a_sku_is_named_and_raises_no_fence() {
    // A Redis of its own: what is damaged here is of a set of SKUs, and an unblock of any test reads the whole set.
    let server = Server::start(&[]).await;
    let (store, mut redis) = (store_at(server.url()), raw_at(server.url()).await);
    let sku = fresh("sku");
    let record = StockRecord {
        sku: sku.clone(),
        partition: Partition {
            topic: topic(),
            ..partition("catalog")
        },
        offset: Offset(1),
        availability: Availability::SoldOut,
        time: Timestamp(0),
    };
    let blocked = keys::sold_out_blocked(keys::set(&sku));
    ask(&mut redis, &["HSET", &blocked, &sku, "no JSON"]).await;
    let error = store.stock(std::slice::from_ref(&record)).await;
    let error = error.expect_err("the note is damaged");
    assert!(
        matches!(&error, Error::Corrupt { user: None, key, .. } if key.contains(&blocked)),
        "{error}"
    );
    ask(&mut redis, &["HDEL", &blocked, &sku]).await;
    store.stock(&[record]).await.expect("it is mended");
    let out = store.sold_out(&[sku]).await.expect("it answers");
    assert_eq!(out, [true]);
}
