//! Promise: records about a namespace as a whole work alike on every store: of two concurrent writes of a plan one is
//! refused, the register lists what was filled and not retired, the signal that live is behind expires by itself, and
//! deleting a namespace deletes its plan and counts and leaves what is shared by all namespaces.

use std::time::Duration;

use nearshore_core::ports::store::{Delta, Namespaces, Store};
use nearshore_core::user::record::{Offset, Timestamp};

use crate::harness::{LIMIT, eventually, fresh};
use crate::store::{STORED, cluster, erase, fold, load, partition, single, user, write};

crate::for_every_store!(
    of_two_concurrent_writes_of_a_plan_one_is_refused,
    a_plan_of_a_wrong_namespace_is_refused,
    the_register_lists_namespaces_until_they_are_removed,
    the_signal_that_live_is_behind_is_seen_by_other_clients,
    the_cost_per_user_is_kept_for_each_arm,
    deleting_a_namespace_deletes_plan_and_counts_and_keeps_tombstones,
);

async fn of_two_concurrent_writes_of_a_plan_one_is_refused<S: Store>(store: S) {
    let (ns, other) = (fresh("ns"), fresh("ns"));
    let set = async |plan: &str, expected: Option<&str>| {
        let set = store.set_plan(&ns, plan, expected).await;
        set.expect("the store answers")
    };
    assert_eq!(store.plan(&ns).await.expect("the store answers"), None);
    assert!(!set("b", Some("a")).await, "there is no plan yet");
    assert!(set("a", None).await);
    assert!(!set("b", None).await, "another write was first");
    assert!(!set("c", Some("b")).await);
    assert!(set("b", Some("a")).await);
    assert_eq!(
        store.plan(&ns).await.expect("the store answers").as_deref(),
        Some("b")
    );
    assert_eq!(store.plan(&other).await.expect("the store answers"), None);
    // Concurrent: both have read "b".
    let (one, two) = tokio::join!(set("one", Some("b")), set("two", Some("b")));
    assert!(one != two, "{one} {two}");
    let kept = store.plan(&ns).await.expect("the store answers");
    assert_eq!(kept.as_deref(), Some(if one { "one" } else { "two" }));
}

async fn a_plan_of_a_wrong_namespace_is_refused<S: Store>(store: S) {
    for ns in ["", "nearshore", "a:b", "Upper"] {
        assert!(store.plan(ns).await.is_err(), "{ns}");
        assert!(store.set_plan(ns, "{}", None).await.is_err(), "{ns}");
        assert!(store.enroll(ns, Some("{}")).await.is_err(), "{ns}");
    }
}

async fn the_register_lists_namespaces_until_they_are_removed<S: Store>(store: S) {
    let (ns, beside) = (fresh("ns"), fresh("ns"));
    let known = async |ns: &str| {
        let all = store.namespaces().await.expect("the store answers");
        all.get(ns).cloned()
    };
    assert_eq!(known(&ns).await, None);
    for note in ["{\"by\":\"run\"}", "{\"by\":\"backfill\"}"] {
        store
            .enroll(&ns, Some(note))
            .await
            .expect("the store answers");
        assert_eq!(known(&ns).await.as_deref(), Some(note));
    }
    store
        .enroll(&beside, Some("{}"))
        .await
        .expect("the store answers");
    for _ in 0..2 {
        store.enroll(&ns, None).await.expect("the store answers");
        assert_eq!(known(&ns).await, None);
    }
    assert_eq!(known(&beside).await.as_deref(), Some("{}"));
}

async fn the_signal_that_live_is_behind_is_seen_by_other_clients<S: Store>(store: S) {
    let other = store.clone();
    let said = store.signal_live_behind(Duration::from_secs(600)).await;
    said.expect("the store answers");
    assert!(other.live_behind().await.expect("the store answers"));
}

/// Not for memory, which has no time.
#[tokio::test]
async fn the_signal_that_live_is_behind_expires_by_itself() {
    for store in [single(), cluster()] {
        let behind = async || store.live_behind().await.expect("the store answers");
        // The last call counts: a shorter lifetime replaces a longer one.
        let long = store.signal_live_behind(LIMIT * 2).await;
        long.expect("the store answers");
        assert!(behind().await);
        let short = store.signal_live_behind(Duration::from_millis(300)).await;
        short.expect("the store answers");
        eventually(LIMIT, || async {
            (!behind().await).then_some(()).ok_or("still behind".into())
        })
        .await;
    }
}

async fn the_cost_per_user_is_kept_for_each_arm<S: Store>(store: S) {
    let (one, two) = (fresh("arm"), fresh("arm"));
    for (arm, note) in [(&one, "0.5"), (&two, "2"), (&one, "0.25")] {
        store.set_cost(arm, note).await.expect("the store answers");
    }
    let all = store.costs().await.expect("the store answers");
    assert_eq!(all.get(&one).map(String::as_str), Some("0.25"));
    assert_eq!(all.get(&two).map(String::as_str), Some("2"));
}

async fn deleting_a_namespace_deletes_plan_and_counts_and_keeps_tombstones<S: Store>(store: S) {
    let (ns, user, erased) = (fresh("ns"), user("u"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    assert_eq!(fold(&store, &ns, erase(&erased, 0, 700)).await, STORED(1));
    let delta = Delta {
        shard: 9,
        partition: partition("user-events"),
        prev: None,
        last: Offset(1),
        cells: Default::default(),
    };
    store.add(&ns, &[delta]).await.expect("the store answers");
    assert!(
        store
            .set_plan(&ns, "{}", None)
            .await
            .expect("the store answers")
    );
    store
        .enroll(&ns, Some("{}"))
        .await
        .expect("the store answers");
    let mut cursor = None;
    loop {
        let (_, next) = store.delete(&ns, cursor).await.expect("the store answers");
        match next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(store.plan(&ns).await.expect("the store answers"), None);
    let versions = store.count_versions(&ns).await.expect("the store answers");
    assert!(versions.is_empty(), "{versions:?}");
    assert_eq!(load(&store, &ns, &user).await.ver, 0);
    let erased_at = load(&store, &ns, &erased).await.state.erased_at;
    assert_eq!(erased_at, Timestamp(700), "an erase outlives its namespace");
    // The caller clears the register, before it deletes, so that no worker fills the namespace again.
    let left = store.namespaces().await.expect("the store answers");
    assert!(left.contains_key(&ns));
}
