//! Promise: what is noted of namespaces as a whole holds on every store: of two who write a plan at once one is refused,
//! the register knows what was filled and not retired, the signal that live is behind passes by itself, and deleting a
//! namespace takes its plan and counts along and leaves what stands outside.

use std::time::Duration;

use nearshore_core::ports::store::{Delta, Namespaces, Store};
use nearshore_core::user::record::{Offset, Timestamp};

use crate::harness::{eventually, fresh};
use crate::store::{STORED, cluster, erase, fold, load, partition, single, user, write};

crate::for_every_store!(
    of_two_who_write_a_plan_one_is_refused,
    a_plan_of_a_wrong_namespace_is_refused,
    the_register_knows_what_was_filled,
    the_signal_that_live_is_behind_reaches_everybody,
    a_pace_is_each_arms_own,
    deleting_takes_the_plan_and_the_counts_and_leaves_tombstones,
);

async fn of_two_who_write_a_plan_one_is_refused<S: Store>(store: S) {
    let (ns, other) = (fresh("ns"), fresh("ns"));
    let set = async |plan: &str, expected: Option<&str>| {
        let set = store.set_plan(&ns, plan, expected).await;
        set.expect("answered")
    };
    assert_eq!(store.plan(&ns).await.expect("answered"), None);
    assert!(!set("b", Some("a")).await, "there is none yet");
    assert!(set("a", None).await);
    assert!(!set("b", None).await, "somebody was faster");
    assert!(!set("c", Some("b")).await);
    assert!(set("b", Some("a")).await);
    assert_eq!(
        store.plan(&ns).await.expect("answered").as_deref(),
        Some("b")
    );
    assert_eq!(store.plan(&other).await.expect("answered"), None);
    // At once: each has read "b".
    let (one, two) = tokio::join!(set("one", Some("b")), set("two", Some("b")));
    assert!(one != two, "{one} {two}");
    let kept = store.plan(&ns).await.expect("answered");
    assert_eq!(kept.as_deref(), Some(if one { "one" } else { "two" }));
}

async fn a_plan_of_a_wrong_namespace_is_refused<S: Store>(store: S) {
    for ns in ["", "nearshore", "a:b", "Upper"] {
        assert!(store.plan(ns).await.is_err(), "{ns}");
        assert!(store.set_plan(ns, "{}", None).await.is_err(), "{ns}");
        assert!(store.enroll(ns, Some("{}")).await.is_err(), "{ns}");
    }
}

async fn the_register_knows_what_was_filled<S: Store>(store: S) {
    let (ns, beside) = (fresh("ns"), fresh("ns"));
    let known = async |ns: &str| {
        let all = store.namespaces().await.expect("answered");
        all.get(ns).cloned()
    };
    assert_eq!(known(&ns).await, None);
    for note in ["{\"by\":\"run\"}", "{\"by\":\"backfill\"}"] {
        store.enroll(&ns, Some(note)).await.expect("noted");
        assert_eq!(known(&ns).await.as_deref(), Some(note));
    }
    store.enroll(&beside, Some("{}")).await.expect("noted");
    for _ in 0..2 {
        store.enroll(&ns, None).await.expect("taken off");
        assert_eq!(known(&ns).await, None);
    }
    assert_eq!(known(&beside).await.as_deref(), Some("{}"));
}

async fn the_signal_that_live_is_behind_reaches_everybody<S: Store>(store: S) {
    let other = store.clone();
    let told = store.say_live_behind(Duration::from_secs(5)).await;
    told.expect("told");
    assert!(other.live_behind().await.expect("answered"));
}

/// Memory knows no time.
#[tokio::test]
async fn the_signal_that_live_is_behind_passes_by_itself() {
    for store in [single(), cluster()] {
        let behind = async || store.live_behind().await.expect("answered");
        // The last word counts, so that a worker whose clock runs slow holds nobody back for long.
        for ttl in [Duration::from_secs(600), Duration::from_millis(300)] {
            store.say_live_behind(ttl).await.expect("told");
            assert!(behind().await);
        }
        eventually(Duration::from_secs(10), || async {
            (!behind().await).then_some(()).ok_or("still behind".into())
        })
        .await;
    }
}

async fn a_pace_is_each_arms_own<S: Store>(store: S) {
    let (one, two) = (fresh("arm"), fresh("arm"));
    for (arm, note) in [(&one, "0.5"), (&two, "2"), (&one, "0.25")] {
        store.note_cost(arm, note).await.expect("noted");
    }
    let all = store.costs().await.expect("answered");
    assert_eq!(all.get(&one).map(String::as_str), Some("0.25"));
    assert_eq!(all.get(&two).map(String::as_str), Some("2"));
}

async fn deleting_takes_the_plan_and_the_counts_and_leaves_tombstones<S: Store>(store: S) {
    let (ns, user, gone) = (fresh("ns"), user("u"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    assert_eq!(fold(&store, &ns, erase(&gone, 0, 700)).await, STORED(1));
    let delta = Delta {
        shard: 9,
        partition: partition("user-events"),
        prev: None,
        last: Offset(1),
        cells: Default::default(),
    };
    store.add(&ns, &[delta]).await.expect("added");
    assert!(store.set_plan(&ns, "{}", None).await.expect("answered"));
    store.enroll(&ns, Some("{}")).await.expect("noted");
    let mut cursor = None;
    loop {
        let (_, next) = store.delete(&ns, cursor).await.expect("answered");
        match next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(store.plan(&ns).await.expect("answered"), None);
    let versions = store.count_versions(&ns).await.expect("answered");
    assert!(versions.is_empty(), "{versions:?}");
    assert_eq!(load(&store, &ns, &user).await.ver, 0);
    let erased_at = load(&store, &ns, &gone).await.state.erased_at;
    assert_eq!(
        erased_at,
        Timestamp(700),
        "erased in every namespace, for good"
    );
    // The register is the caller's to clear: first of all, so that no worker fills it anew.
    let left = store.namespaces().await.expect("answered");
    assert!(left.contains_key(&ns));
}
