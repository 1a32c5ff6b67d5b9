//! Promise: a shown list is what clients read, with the time at which it was stored; counts of what lists earned add up,
//! and belong to their namespace.

use std::collections::BTreeMap;

use nearshore_core::list::document::Source;
use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::ports::store::{ShownDoc, Store};
use nearshore_core::user::event::UserId;

use crate::harness::fresh;
use crate::store::{STORED, claim, erase, fallback, fold, list, publish, user, write};

crate::for_every_store!(
    a_shown_list_is_the_stored_one_with_the_time_of_the_store,
    a_list_from_before_an_erase_in_another_namespace_is_not_shown,
    counts_of_lists_add_up_and_go_with_their_namespace,
);

async fn shown<S: Store>(store: &S, ns: &str, user: &UserId) -> Option<ShownDoc> {
    let users = [user.clone(), UserId(fresh("nobody").into())];
    let mut shown = store.shown(ns, &users).await.expect("the store answers");
    assert_eq!((shown.len(), shown.pop()), (2, Some(None)));
    shown.pop().expect("two answers")
}

async fn a_shown_list_is_the_stored_one_with_the_time_of_the_store<S: Store>(store: S) {
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(1));
    claim(&store, &ns, &user, 40_000).await.expect("a claim");
    let first = fallback(&user, 1);
    publish(&store, &ns, first.clone()).await;
    let fallback = shown(&store, &ns, &user).await.expect("a list");
    assert_eq!((&fallback.doc, fallback.epoch), (&first.list.doc, 1));
    assert!(fallback.stored_at >= Some(first.list.at), "{fallback:?}");

    let list = list(&user, 1);
    publish(&store, &ns, list.clone()).await;
    let model = shown(&store, &ns, &user).await.expect("a list");
    assert_eq!((model.doc, model.epoch), (list.list.doc, 1));
    assert!(model.stored_at >= fallback.stored_at.max(Some(list.list.at)));
}

async fn a_list_from_before_an_erase_in_another_namespace_is_not_shown<S: Store>(store: S) {
    let (ns, other, user) = (fresh("ns"), fresh("ns"), user("u"));
    fold(&store, &ns, write(&user, 0, 1)).await;
    claim(&store, &ns, &user, 40_000).await.expect("a claim");
    publish(&store, &ns, list(&user, 1)).await;
    assert!(shown(&store, &ns, &user).await.is_some());
    assert_eq!(fold(&store, &other, erase(&user, 0, 500)).await, STORED(1));
    assert_eq!(shown(&store, &ns, &user).await, None);
}

async fn counts_of_lists_add_up_and_go_with_their_namespace<S: Store>(store: S) {
    let (ns, other) = (fresh("ns"), fresh("ns"));
    let kind = |arm: &str, epoch, source| ListKind {
        arm: arm.into(),
        epoch,
        source,
    };
    let (model, none) = (kind("a-1", 3, Source::Model), kind("", 0, Source::Fallback));
    let earned = |lists, purchases, hits, fallback_hits| Earned {
        lists,
        purchases,
        hits,
        fallback_hits,
    };
    let add = async |ns: &str, counts: &[(&ListKind, Earned)]| {
        let counts = counts.iter().map(|(kind, n)| ((*kind).clone(), *n));
        let counts: BTreeMap<_, _> = counts.collect();
        store
            .add_earned(ns, &counts)
            .await
            .expect("the store answers");
    };
    add(
        &ns,
        &[(&model, earned(1, 0, 0, 0)), (&none, earned(0, 5, 2, 3))],
    )
    .await;
    add(&ns, &[(&model, earned(2, 7, 4, 1))]).await;
    add(&other, &[(&model, earned(9, 9, 9, 9))]).await;
    add(&ns, &[]).await;
    let stored = store.earned(&ns).await.expect("the store answers");
    let expected = [(none, earned(0, 5, 2, 3)), (model, earned(3, 7, 4, 1))];
    assert_eq!(stored, BTreeMap::from(expected));

    let mut cursor = None;
    loop {
        let (_, next) = store.delete(&ns, cursor).await.expect("the store answers");
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(
        store.earned(&ns).await.expect("the store answers"),
        BTreeMap::new()
    );
}
