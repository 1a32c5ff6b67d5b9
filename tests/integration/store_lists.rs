//! Promise: a list is published iff its erased_at is the state's and list.claim < claim <= state.claim;
//! a first-seen user's fallback and a failed generation's never replace what is better.

use nearshore_core::ports::store::{Folded, ListEdit, Published, Store};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

use crate::harness::fresh;
use crate::store::{
    STORED, claim, doc, erase, first, fold, list, load, peek, publish, user, write,
};

crate::for_every_store!(
    a_published_list_is_what_is_peeked,
    a_list_that_is_sent_twice_is_stored_once,
    a_late_list_of_an_older_ticket_is_refused,
    a_list_whose_take_was_lost_is_refused,
    a_list_of_another_life_is_refused,
    a_list_of_before_another_namespaces_erase_is_refused,
    a_lower_epoch_is_refused_unless_forced,
    a_failed_generation_keeps_the_models_list,
    a_first_fallback_comes_only_where_there_is_none,
    a_strip_is_refused_once_the_list_is_another,
    a_strip_keeps_ticket_and_covers,
);

/// A user of whom `takes` takes were made.
async fn claimed<S: Store>(store: &S, ns: &str, claims: u64) -> UserId {
    let user = user("u");
    assert_eq!(fold(store, ns, write(&user, 0, 1)).await, STORED(1));
    for nth in 1..=claims {
        let claimed = claim(store, ns, &user, 40_000).await.expect("stored");
        assert_eq!(claimed.claim, nth);
    }
    user
}

async fn a_published_list_is_what_is_peeked<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 1).await;
    assert_eq!(peek(&store, &ns, &user).await.list, None);
    let list = list(&user, 1);
    assert_eq!(publish(&store, &ns, list.clone()).await, Published::Stored);
    let peek = peek(&store, &ns, &user).await;
    assert_eq!(peek.list, Some(list.list));
    assert_eq!(peek.fences, load(&store, &ns, &user).await.state.fences);
    assert_eq!((peek.claim, peek.pending), (1, None));
}

async fn a_list_that_is_sent_twice_is_stored_once<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 1).await;
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Stored
    );
    let mut again = list(&user, 1);
    again.list.doc = "{}".into();
    assert_eq!(publish(&store, &ns, again).await, Published::Older);
    assert_eq!(doc(&store, &ns, &user).await, Some(list(&user, 1).list.doc));
}

async fn a_late_list_of_an_older_ticket_is_refused<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 2).await;
    assert_eq!(
        publish(&store, &ns, list(&user, 2)).await,
        Published::Stored
    );
    // Neither a slow worker's nor, by force, a refresh's.
    let mut late = list(&user, 1);
    assert_eq!(publish(&store, &ns, late.clone()).await, Published::Older);
    late.force = true;
    assert_eq!(publish(&store, &ns, late).await, Published::Older);
    assert_eq!(doc(&store, &ns, &user).await, Some(list(&user, 2).list.doc));
}

async fn a_list_whose_take_was_lost_is_refused<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 1).await;
    assert_eq!(
        publish(&store, &ns, list(&user, 2)).await,
        Published::NoState
    );
    let stranger = crate::store::user("u");
    assert_eq!(
        publish(&store, &ns, list(&stranger, 1)).await,
        Published::NoState
    );
    assert_eq!(doc(&store, &ns, &user).await, None);
    assert_eq!(doc(&store, &ns, &stranger).await, None);
}

async fn a_list_of_another_life_is_refused<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 1).await;
    assert_eq!(fold(&store, &ns, erase(&user, 2, 5000)).await, STORED(3));
    // A zombie's list, made from what was erased meanwhile.
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Erased
    );
    let mut future = list(&user, 1);
    future.erased_at = Timestamp(9000);
    assert_eq!(publish(&store, &ns, future).await, Published::Erased);
    assert_eq!(doc(&store, &ns, &user).await, None);
    claim(&store, &ns, &user, 50_000).await.expect("stored");
    let mut after = list(&user, 2);
    after.erased_at = Timestamp(5000);
    assert_eq!(publish(&store, &ns, after).await, Published::Stored);
}

async fn a_list_of_before_another_namespaces_erase_is_refused<S: Store>(store: S) {
    let (ns, other) = (fresh("ns"), fresh("ns"));
    let user = claimed(&store, &ns, 2).await;
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Stored
    );
    assert_eq!(fold(&store, &other, erase(&user, 0, 500)).await, STORED(1));
    assert_eq!(
        publish(&store, &ns, list(&user, 2)).await,
        Published::Erased
    );
    assert_eq!(doc(&store, &ns, &user).await, None);

    // A take of after the erase knows of it, though this namespace has not folded it yet; the list
    // of before is none then, not even for who only fills a gap.
    let claimed = claim(&store, &ns, &user, 50_000).await.expect("stored");
    let mut after = list(&user, claimed.claim);
    after.erased_at = claimed.state.erased_at;
    after.only_if_absent = true;
    assert_eq!(publish(&store, &ns, after).await, Published::Stored);
}

async fn a_lower_epoch_is_refused_unless_forced<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 3).await;
    let mut newer = list(&user, 1);
    newer.list.epoch = 5;
    assert_eq!(publish(&store, &ns, newer).await, Published::Stored);
    let mut older = list(&user, 2);
    older.list.epoch = 4;
    assert_eq!(publish(&store, &ns, older.clone()).await, Published::Epoch);
    older.force = true;
    assert_eq!(publish(&store, &ns, older).await, Published::Stored);
    let mut same = list(&user, 3);
    same.list.epoch = 4;
    assert_eq!(publish(&store, &ns, same).await, Published::Stored);
}

async fn a_failed_generation_keeps_the_models_list<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 4).await;
    let fallback = |claim| {
        let mut list = list(&user, claim);
        list.list.doc = format!(r#"{{"source":"fallback","list_id":"{claim}"}}"#);
        list.only_if_absent = true;
        list
    };
    assert_eq!(publish(&store, &ns, fallback(1)).await, Published::Stored);
    assert_eq!(publish(&store, &ns, fallback(2)).await, Published::Stored);
    assert_eq!(
        publish(&store, &ns, list(&user, 3)).await,
        Published::Stored
    );
    assert_eq!(publish(&store, &ns, fallback(4)).await, Published::Kept);
    let kept = peek(&store, &ns, &user).await.list;
    assert_eq!(kept, Some(list(&user, 3).list));
    // The take that failed has no list: the next one that works is published under a later claim.
    assert_eq!(
        publish(&store, &ns, list(&user, 4)).await,
        Published::Stored
    );
}

async fn a_first_fallback_comes_only_where_there_is_none<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = user("u");
    let mut new = write(&user, 0, 1);
    new.list = first("first");
    assert_eq!(fold(&store, &ns, new).await, STORED(1));
    let found = peek(&store, &ns, &user).await.list.expect("written");
    assert_eq!((found.doc.as_str(), found.claim), ("first", 0));
    assert_eq!((found.at, found.epoch), (Timestamp(7), 0));
    assert!(found.seen.is_empty());
    let mut again = write(&user, 1, 2);
    again.list = first("second");
    assert_eq!(fold(&store, &ns, again).await, STORED(2));
    assert_eq!(doc(&store, &ns, &user).await.as_deref(), Some("first"));
    claim(&store, &ns, &user, 40_000).await.expect("stored");
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Stored
    );
}

async fn a_strip_is_refused_once_the_list_is_another<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 2).await;
    let strip = |claim, expected| {
        let mut write = write(&user, expected, 2);
        write.list = ListEdit::Strip {
            claim,
            doc: "stripped".into(),
        };
        write
    };
    assert_eq!(fold(&store, &ns, strip(1, 3)).await, Folded::Stale, "none");
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Stored
    );
    assert_eq!(
        publish(&store, &ns, list(&user, 2)).await,
        Published::Stored
    );
    let before = load(&store, &ns, &user).await;
    assert_eq!(fold(&store, &ns, strip(1, 3)).await, Folded::Stale);
    assert_eq!(
        load(&store, &ns, &user).await,
        before,
        "neither was written"
    );
    assert_eq!(fold(&store, &ns, strip(2, 3)).await, STORED(4));
    assert_eq!(doc(&store, &ns, &user).await.as_deref(), Some("stripped"));
    // With an erase in the same step there is nothing left to strip.
    let mut erased = strip(2, 4);
    erased.state.erased_at = Timestamp(9000);
    erased.state.window.clear();
    assert_eq!(fold(&store, &ns, erased).await, STORED(5));
    assert_eq!(doc(&store, &ns, &user).await, None);
}

async fn a_strip_keeps_ticket_and_covers<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 1).await;
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Stored
    );
    let mut write = write(&user, 2, 2);
    write.list = ListEdit::Strip {
        claim: 1,
        doc: "stripped".into(),
    };
    assert_eq!(fold(&store, &ns, write).await, STORED(3));
    let mut expected = list(&user, 1).list;
    expected.doc = "stripped".into();
    assert_eq!(peek(&store, &ns, &user).await.list, Some(expected));
}
