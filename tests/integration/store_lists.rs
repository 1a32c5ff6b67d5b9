//! Promise: a list is published iff its erased_at is the state's and stored list's claim < its claim <= state's claim;
//! the fallback of a new user and that of a failed generation never replace a list by the model.

use nearshore_core::list::document::Stage;
use nearshore_core::ports::store::{Folded, ListEdit, Published, Store};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

use crate::harness::fresh;
use crate::store::{STORED, claim, doc, erase, fold, list, load, peek, publish, user, write};

crate::for_every_store!(
    a_published_list_is_read_unchanged,
    a_list_that_is_sent_twice_is_stored_once,
    publish_with_an_older_claim_is_refused,
    publish_with_a_claim_that_the_store_lost_is_refused,
    publish_with_another_erased_at_is_refused,
    publish_from_before_an_erase_in_another_namespace_is_refused,
    a_lower_epoch_is_refused_unless_forced,
    a_failed_generation_keeps_the_models_list,
    a_strip_of_a_replaced_list_is_refused,
    a_strip_keeps_claim_and_seen_offsets,
);

/// A user with so many claims.
async fn claimed<S: Store>(store: &S, ns: &str, claims: u64) -> UserId {
    let user = user("u");
    assert_eq!(fold(store, ns, write(&user, 0, 1)).await, STORED(1));
    for nth in 1..=claims {
        let claimed = claim(store, ns, &user, 40_000)
            .await
            .expect("the user is stored");
        assert_eq!(claimed.claim, nth);
    }
    user
}

async fn a_published_list_is_read_unchanged<S: Store>(store: S) {
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

async fn publish_with_an_older_claim_is_refused<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 2).await;
    assert_eq!(
        publish(&store, &ns, list(&user, 2)).await,
        Published::Stored
    );
    // Neither from a slow worker nor, with force, from a refresh.
    let mut late = list(&user, 1);
    assert_eq!(publish(&store, &ns, late.clone()).await, Published::Older);
    late.force = true;
    assert_eq!(publish(&store, &ns, late).await, Published::Older);
    assert_eq!(doc(&store, &ns, &user).await, Some(list(&user, 2).list.doc));
}

async fn publish_with_a_claim_that_the_store_lost_is_refused<S: Store>(store: S) {
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

async fn publish_with_another_erased_at_is_refused<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 1).await;
    assert_eq!(fold(&store, &ns, erase(&user, 2, 5000)).await, STORED(3));
    // A list that was made from what was erased meanwhile.
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Erased
    );
    let mut future = list(&user, 1);
    future.erased_at = Timestamp(9000);
    assert_eq!(publish(&store, &ns, future).await, Published::Erased);
    assert_eq!(doc(&store, &ns, &user).await, None);
    claim(&store, &ns, &user, 50_000)
        .await
        .expect("the user is stored");
    let mut after = list(&user, 2);
    after.erased_at = Timestamp(5000);
    assert_eq!(publish(&store, &ns, after).await, Published::Stored);
}

async fn publish_from_before_an_erase_in_another_namespace_is_refused<S: Store>(store: S) {
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

    // A claim after the erase knows it, although this namespace has not folded it yet. The older list does not count,
    // not even for a list that is stored only if there is none.
    let claimed = claim(&store, &ns, &user, 50_000)
        .await
        .expect("the user is stored");
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
    // The claim that failed has no list: the next list by the model has a later claim.
    assert_eq!(
        publish(&store, &ns, list(&user, 4)).await,
        Published::Stored
    );
}

async fn a_strip_of_a_replaced_list_is_refused<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 2).await;
    let strip = |claim, expected| {
        let mut write = write(&user, expected, 2);
        write.list = ListEdit::Strip {
            claim,
            stage: Stage::Model,
            doc: "stripped".into(),
        };
        write
    };
    assert_eq!(
        fold(&store, &ns, strip(1, 3)).await,
        Folded::Stale,
        "there is no list"
    );
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
        "neither state nor list was written"
    );
    assert_eq!(fold(&store, &ns, strip(2, 3)).await, STORED(4));
    assert_eq!(doc(&store, &ns, &user).await.as_deref(), Some("stripped"));
    // With an erase in the same step the list is deleted, not stripped.
    let mut erased = strip(2, 4);
    erased.state.erased_at = Timestamp(9000);
    erased.state.window.clear();
    assert_eq!(fold(&store, &ns, erased).await, STORED(5));
    assert_eq!(doc(&store, &ns, &user).await, None);
}

async fn a_strip_keeps_claim_and_seen_offsets<S: Store>(store: S) {
    let ns = fresh("ns");
    let user = claimed(&store, &ns, 1).await;
    assert_eq!(
        publish(&store, &ns, list(&user, 1)).await,
        Published::Stored
    );
    let mut write = write(&user, 2, 2);
    write.list = ListEdit::Strip {
        claim: 1,
        stage: Stage::Model,
        doc: "stripped".into(),
    };
    assert_eq!(fold(&store, &ns, write).await, STORED(3));
    let mut expected = list(&user, 1).list;
    expected.doc = "stripped".into();
    assert_eq!(peek(&store, &ns, &user).await.list, Some(expected));
}
