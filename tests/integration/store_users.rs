//! Promise: a state is written iff it was made from the stored version and knows the user's erase; a claim loses no
//! event. Duplicate, stale and late writes change nothing, also from a former owner of the partition.

use nearshore_core::ports::store::{Error, FoldWrite, Folded, Published, Store};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::{Activity, ClaimRate, LoadedUser};
use nearshore_core::user::trigger::ACTIVITY_AFTER_FIRST;

use crate::harness::fresh;
use crate::store::{
    STORED, activity, claim, doc, erase, fold, list, load, peek, profile, publish, state, user,
    write,
};

crate::for_every_store!(
    a_written_state_is_loaded_unchanged,
    a_fold_that_is_sent_twice_is_stored_once,
    a_write_from_an_old_version_is_stale,
    a_late_write_changes_nothing,
    a_former_owner_with_a_wrong_version_changes_nothing,
    a_profile_is_kept_unless_it_changed,
    an_erase_deletes_list_and_profile_and_refuses_older_states,
    an_erase_that_is_sent_twice_is_stored_once,
    an_erase_in_one_namespace_refuses_older_writes_in_another,
    what_is_later_than_the_erase_is_kept,
    an_erase_of_a_user_without_a_state_is_known,
    a_claim_clears_pending_and_makes_cached_versions_stale,
    a_claim_of_an_unknown_user_is_none,
    claims_are_counted_by_the_day_of_their_request,
    a_claim_sees_the_erase_of_another_namespace,
    ids_with_braces_percents_and_spaces_are_distinct_users,
    an_empty_id_and_a_wrong_namespace_are_refused,
    a_batch_is_answered_in_its_order,
    a_scan_finds_every_user_of_the_namespace_and_no_other,
    deleting_a_namespace_leaves_the_others,
);

async fn a_written_state_is_loaded_unchanged<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(load(&store, &ns, &user).await, LoadedUser::default());
    let mut write = write(&user, 0, 3);
    write.state.profile = Some(profile(1, 500));
    write.profile_changed = true;
    write.activity.claim_rate = ClaimRate {
        last: Timestamp(5),
        day: 0,
        claims: 2,
    };
    assert_eq!(fold(&store, &ns, write.clone()).await, STORED(1));
    let loaded = load(&store, &ns, &user).await;
    assert_eq!(loaded.state, write.state);
    assert_eq!(loaded.activity, write.activity);
    assert_eq!((loaded.ver, loaded.claim), (1, 0));
}

async fn a_fold_that_is_sent_twice_is_stored_once<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    let write = write(&user, 0, 1);
    assert_eq!(fold(&store, &ns, write.clone()).await, STORED(1));
    assert_eq!(fold(&store, &ns, write).await, Folded::Stale);
    assert_eq!(load(&store, &ns, &user).await.ver, 1);
}

async fn a_write_from_an_old_version_is_stale<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    assert_eq!(fold(&store, &ns, write(&user, 1, 2)).await, STORED(2));
    assert_eq!(fold(&store, &ns, write(&user, 1, 3)).await, Folded::Stale);
    assert_eq!(load(&store, &ns, &user).await.state, state(2));
}

async fn a_late_write_changes_nothing<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    let mut late = write(&user, 0, 1);
    late.profile_changed = true;
    late.state.profile = Some(profile(9, 9000));
    // It timed out at its sender, which loaded and wrote again; now it arrives.
    assert_eq!(fold(&store, &ns, write(&user, 0, 2)).await, STORED(1));
    let before = load(&store, &ns, &user).await;
    assert_eq!(fold(&store, &ns, late).await, Folded::Stale);
    assert_eq!(load(&store, &ns, &user).await, before);
    assert_eq!(doc(&store, &ns, &user).await, None);
}

async fn a_former_owner_with_a_wrong_version_changes_nothing<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 5)).await, STORED(1));
    // An owner from before a rebalance, with a version that the store no longer has or never had.
    for expected in [0, 7] {
        let old = write(&user, expected, 1);
        assert_eq!(fold(&store, &ns, old).await, Folded::Stale);
    }
    assert_eq!(load(&store, &ns, &user).await.state, state(5));
}

async fn a_profile_is_kept_unless_it_changed<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    let mut with = write(&user, 0, 1);
    with.state.profile = Some(profile(1, 500));
    with.profile_changed = true;
    assert_eq!(fold(&store, &ns, with).await, STORED(1));
    let mut unchanged = write(&user, 1, 2);
    unchanged.state.profile = Some(profile(1, 500));
    assert_eq!(fold(&store, &ns, unchanged).await, STORED(2));
    let loaded = load(&store, &ns, &user).await;
    assert_eq!(loaded.state.profile, Some(profile(1, 500)));
    let mut without = write(&user, 2, 2);
    without.profile_changed = true;
    assert_eq!(fold(&store, &ns, without).await, STORED(3));
    assert_eq!(load(&store, &ns, &user).await.state.profile, None);
}

/// Writes a user with events, a profile and a list by the model, at version 2 and claim 1.
async fn settle<S: Store>(store: &S, ns: &str, user: &UserId) {
    let mut with = write(user, 0, 3);
    with.state.profile = Some(profile(1, 500));
    with.profile_changed = true;
    assert_eq!(fold(store, ns, with).await, STORED(1));
    let claimed = claim(store, ns, user, 40_000)
        .await
        .expect("the user is stored");
    assert_eq!(claimed.claim, 1);
    publish(store, ns, list(user, 1)).await;
    assert!(doc(store, ns, user).await.is_some());
}

async fn an_erase_deletes_list_and_profile_and_refuses_older_states<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    settle(&store, &ns, &user).await;
    assert_eq!(fold(&store, &ns, erase(&user, 2, 5000)).await, STORED(3));
    let loaded = load(&store, &ns, &user).await;
    assert_eq!(loaded.state.erased_at, Timestamp(5000));
    assert_eq!(
        (loaded.state.profile, loaded.state.window),
        (None, Vec::new())
    );
    assert_eq!(doc(&store, &ns, &user).await, None);
    // The right version with a state from before the erase is refused, too.
    let refused = Folded::Erased {
        at: Timestamp(5000),
    };
    assert_eq!(fold(&store, &ns, write(&user, 3, 3)).await, refused);
    assert_eq!(load(&store, &ns, &user).await.ver, 3);
}

async fn an_erase_that_is_sent_twice_is_stored_once<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    settle(&store, &ns, &user).await;
    assert_eq!(fold(&store, &ns, erase(&user, 2, 5000)).await, STORED(3));
    let mut back = write(&user, 3, 0);
    back.state.erased_at = Timestamp(5000);
    assert_eq!(fold(&store, &ns, back).await, STORED(4));
    claim(&store, &ns, &user, 40_000).await.expect("a claim");
    let mut again = list(&user, 2);
    again.erased_at = Timestamp(5000);
    assert_eq!(publish(&store, &ns, again.clone()).await, Published::Stored);
    assert_eq!(
        fold(&store, &ns, erase(&user, 2, 5000)).await,
        Folded::Stale
    );
    assert_eq!(doc(&store, &ns, &user).await, Some(again.list.doc));
}

async fn an_erase_in_one_namespace_refuses_older_writes_in_another<S: Store>(store: S) {
    let (old, new, user) = (fresh("ns"), fresh("ns"), user("u"));
    settle(&store, &old, &user).await;
    settle(&store, &new, &user).await;
    assert_eq!(fold(&store, &new, erase(&user, 2, 2500)).await, STORED(3));

    let refused = Folded::Erased {
        at: Timestamp(2500),
    };
    assert_eq!(fold(&store, &old, write(&user, 2, 4)).await, refused);
    let loaded = load(&store, &old, &user).await;
    assert_eq!((loaded.ver, loaded.state.erased_at), (2, Timestamp(2500)));
    assert_eq!(loaded.state.profile, None);
    assert_eq!(loaded.state.window, state(3).window[2..]);
    assert_eq!(loaded.state.fences, state(3).fences, "fences are kept");
    assert_eq!(
        doc(&store, &old, &user).await,
        None,
        "the list is from before the erase"
    );

    // The state as `load` returned it may be written; the write deletes the namespace's old list and profile.
    let mut write = write(&user, 2, 4);
    write.state.window = state(4).window[2..].to_vec();
    write.state.erased_at = Timestamp(2500);
    assert_eq!(fold(&store, &old, write).await, STORED(3));
    let loaded = load(&store, &old, &user).await;
    assert_eq!((loaded.state.window.len(), loaded.state.profile), (2, None));
    assert_eq!(doc(&store, &old, &user).await, None);
}

async fn what_is_later_than_the_erase_is_kept<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    let mut write = write(&user, 0, 4);
    write.state.window.drain(..2);
    write.state.erased_at = Timestamp(2000);
    write.state.profile = Some(profile(2, 2001));
    write.profile_changed = true;
    let expected = write.state.clone();
    assert_eq!(fold(&store, &ns, write).await, STORED(1));
    assert_eq!(load(&store, &ns, &user).await.state, expected);
}

async fn an_erase_of_a_user_without_a_state_is_known<S: Store>(store: S) {
    let (ns, other, user) = (fresh("ns"), fresh("ns"), user("u"));
    // An erase of a user unknown to this namespace: only erased_at is known.
    assert_eq!(fold(&store, &other, erase(&user, 0, 700)).await, STORED(1));
    let loaded = load(&store, &ns, &user).await;
    assert_eq!((loaded.ver, loaded.state.erased_at), (0, Timestamp(700)));
    let refused = Folded::Erased { at: Timestamp(700) };
    assert_eq!(fold(&store, &ns, write(&user, 0, 0)).await, refused);
    let known = FoldWrite {
        state: loaded.state,
        ..write(&user, 0, 0)
    };
    assert_eq!(fold(&store, &ns, known).await, STORED(1));
}

async fn a_claim_clears_pending_and_makes_cached_versions_stale<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    let mut with = write(&user, 0, 2);
    with.state.profile = Some(profile(1, 500));
    with.profile_changed = true;
    assert_eq!(fold(&store, &ns, with.clone()).await, STORED(1));
    let claimed = claim(&store, &ns, &user, 32_000)
        .await
        .expect("the user is stored");
    assert_eq!(claimed.state, with.state);
    assert_eq!((claimed.claim, claimed.pending), (1, activity(2).pending));

    let loaded = load(&store, &ns, &user).await;
    assert_eq!((loaded.ver, loaded.claim), (2, 1));
    let left = (None, ACTIVITY_AFTER_FIRST);
    assert_eq!((loaded.activity.pending, loaded.activity.score), left);
    assert_eq!(fold(&store, &ns, write(&user, 1, 3)).await, Folded::Stale);
    assert_eq!(fold(&store, &ns, write(&user, 2, 3)).await, STORED(3));
    // A fold does not change the claim number, and a second claim finds what was folded in between.
    let claimed = claim(&store, &ns, &user, 33_000)
        .await
        .expect("the user is stored");
    assert_eq!((claimed.claim, claimed.state.window.len()), (2, 3));
    assert_eq!(peek(&store, &ns, &user).await.claim, 2);
}

async fn a_claim_of_an_unknown_user_is_none<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(claim(&store, &ns, &user, 1).await, None);
    assert_eq!(load(&store, &ns, &user).await, LoadedUser::default());
}

async fn claims_are_counted_by_the_day_of_their_request<S: Store>(store: S) {
    const DAY: i64 = 86_400_000;
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    let base = 20_000 * DAY;
    let mut last = 0;
    for (due, day, claims, score) in [
        (base + 5, 20_000, 1, ACTIVITY_AFTER_FIRST),
        (base + DAY - 1, 20_000, 2, 0),
        (base + DAY, 20_001, 1, 0),
        // An older request, e.g. of a sweep, counts on the day of the latest.
        (base + 7, 20_001, 2, 0),
    ] {
        claim(&store, &ns, &user, due)
            .await
            .expect("the user is stored");
        last = due.max(last);
        let expected = Activity {
            claim_rate: ClaimRate {
                last: Timestamp(last),
                day,
                claims,
            },
            score,
            ..Activity::default()
        };
        assert_eq!(load(&store, &ns, &user).await.activity, expected);
    }
}

async fn a_claim_sees_the_erase_of_another_namespace<S: Store>(store: S) {
    let (ns, other, user) = (fresh("ns"), fresh("ns"), user("u"));
    settle(&store, &ns, &user).await;
    assert_eq!(fold(&store, &other, erase(&user, 0, 2500)).await, STORED(1));
    let claimed = claim(&store, &ns, &user, 50_000)
        .await
        .expect("the user is stored");
    assert_eq!(claimed.state.erased_at, Timestamp(2500));
    assert_eq!(claimed.state.window, state(3).window[2..]);
    assert_eq!(claimed.state.profile, None);
}

async fn ids_with_braces_percents_and_spaces_are_distinct_users<S: Store>(store: S) {
    let (ns, base) = (fresh("ns"), fresh("u"));
    let ids = [
        "{}",
        "}:state",
        "100%",
        "%7B",
        "a b",
        "ü-日本",
        "\u{1}\n",
        "*",
        "{",
    ];
    let users: Vec<UserId> = ids
        .iter()
        .map(|id| UserId(format!("{base}{id}").into()))
        .collect();
    let writes: Vec<FoldWrite> = (1..)
        .zip(&users)
        .map(|(n, user)| write(user, 0, n))
        .collect();
    for answer in store.fold(&ns, &writes).await.expect("the store answers") {
        assert_eq!(answer, STORED(1));
    }
    let loaded = store.load(&ns, &users).await.expect("the store answers");
    for (loaded, write) in loaded.iter().zip(&writes) {
        assert_eq!(loaded.state, write.state, "{:?}", write.user);
    }
    assert_eq!(scan(&store, &ns).await, sorted(users));
}

async fn an_empty_id_and_a_wrong_namespace_are_refused<S: Store>(store: S) {
    let ns = fresh("ns");
    let empty = [UserId("".into())];
    let refused = store.load(&ns, &empty).await.expect_err("empty");
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    for ns in ["", "nearshore", "a:b", "Upper", "{x}"] {
        let refused = store.load(ns, &[user("u")]).await.expect_err(ns);
        assert!(matches!(refused, Error::Refused { .. }), "{refused}");
        assert!(store.scan(ns, None).await.is_err());
        assert!(store.delete(ns, None).await.is_err());
        assert!(store.set_active(ns, None).await.is_err());
    }
}

async fn a_batch_is_answered_in_its_order<S: Store>(store: S) {
    let ns = fresh("ns");
    let users: Vec<UserId> = (0..600).map(|_| user("u")).collect();
    // Every third expects a version that is not stored, so that the answers differ.
    let expected = |nth: usize| u64::from(nth % 3 == 2);
    let writes: Vec<FoldWrite> = users
        .iter()
        .enumerate()
        .map(|(nth, user)| write(user, expected(nth), 1 + nth as i64 % 5))
        .collect();
    let answers = store.fold(&ns, &writes).await.expect("the store answers");
    for (nth, answer) in answers.iter().enumerate() {
        let expected = if nth % 3 == 2 {
            Folded::Stale
        } else {
            STORED(1)
        };
        assert_eq!(*answer, expected, "{nth}");
    }
    let loaded = store.load(&ns, &users).await.expect("the store answers");
    for (nth, loaded) in loaded.iter().enumerate().filter(|(nth, _)| nth % 3 != 2) {
        assert_eq!(loaded.state, state(1 + nth as i64 % 5), "{nth}");
    }
    assert!(
        store
            .load(&ns, &[])
            .await
            .expect("the store answers")
            .is_empty()
    );
}

async fn scan<S: Store>(store: &S, ns: &str) -> Vec<UserId> {
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let (page, next) = store.scan(ns, cursor).await.expect("the store answers");
        found.extend(page);
        match next {
            Some(next) => cursor = Some(next),
            None => return sorted(found),
        }
    }
}

fn sorted(mut users: Vec<UserId>) -> Vec<UserId> {
    users.sort();
    users.dedup();
    users
}

async fn a_scan_finds_every_user_of_the_namespace_and_no_other<S: Store>(store: S) {
    let ns = fresh("ns");
    let users: Vec<UserId> = (0..1200).map(|_| user("u")).collect();
    let writes: Vec<FoldWrite> = users.iter().map(|user| write(user, 0, 1)).collect();
    store.fold(&ns, &writes).await.expect("the store answers");
    let beside = format!("{ns}-b");
    let other = write(&user("u"), 0, 1);
    assert_eq!(fold(&store, &beside, other).await, STORED(1));
    assert_eq!(scan(&store, &ns).await, sorted(users));
}

async fn deleting_a_namespace_leaves_the_others<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    let beside = format!("{ns}-b");
    settle(&store, &ns, &user).await;
    settle(&store, &beside, &user).await;
    store
        .set_fallback(&ns, "default", "{}")
        .await
        .expect("the store answers");
    let mut cursor = None;
    let mut total = 0;
    loop {
        let (deleted, next) = store.delete(&ns, cursor).await.expect("the store answers");
        total += deleted;
        match next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert!(total > 0);
    assert_eq!(load(&store, &ns, &user).await, LoadedUser::default());
    assert_eq!(
        store
            .fallback(&ns, "default")
            .await
            .expect("the store answers"),
        None
    );
    assert_eq!(load(&store, &beside, &user).await.ver, 2);
}
