//! Promise: a double with a flaw does what the contract forbids, so that the simulation has a fault to find.

use nearshore_core::ports::store::{Added, Counts, Delta, Published};
use nearshore_core::user::record::{Offset, Timestamp};
use nearshore_testkit::store::{Flaws, MemoryStore};

use crate::harness::fresh;
use crate::store::{
    STORED, claim, erase, fold, list, load, partition, publish, state, user, write,
};

#[tokio::test]
async fn without_a_fence_a_delta_is_added_twice() {
    let store = MemoryStore::broken(Flaws {
        no_fence: true,
        ..Flaws::default()
    });
    let delta = Delta {
        shard: 1,
        partition: partition("t"),
        prev: None,
        last: Offset(4),
        cells: Default::default(),
    };
    for _ in 0..2 {
        let added = store.add("ns", std::slice::from_ref(&delta)).await;
        assert_eq!(added.expect("the store answers"), [Added::Stored]);
    }
}

#[tokio::test]
async fn a_blind_write_overwrites_a_newer_state() {
    let store = MemoryStore::broken(Flaws {
        blind_write: true,
        ..Flaws::default()
    });
    let (ns, user) = (fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 3)).await, STORED(1));
    assert_eq!(fold(&store, &ns, write(&user, 0, 1)).await, STORED(2));
    assert_eq!(load(&store, &ns, &user).await.state, state(1));
}

#[tokio::test]
async fn without_a_tombstone_an_erased_user_comes_back() {
    let store = MemoryStore::broken(Flaws {
        no_tombstone: true,
        ..Flaws::default()
    });
    let (ns, other, user) = (fresh("ns"), fresh("ns"), user("u"));
    assert_eq!(fold(&store, &ns, write(&user, 0, 3)).await, STORED(1));
    assert_eq!(fold(&store, &other, erase(&user, 0, 5000)).await, STORED(1));
    assert_eq!(load(&store, &ns, &user).await.state, state(3));
    assert_eq!(fold(&store, &ns, write(&user, 1, 4)).await, STORED(2));
    assert_eq!(fold(&store, &ns, erase(&user, 2, 5000)).await, STORED(3));
    assert_eq!(fold(&store, &ns, write(&user, 3, 4)).await, STORED(4));
    claim(&store, &ns, &user, 1)
        .await
        .expect("the user is stored");
    let mut old = list(&user, 1);
    old.erased_at = Timestamp(77);
    assert_eq!(publish(&store, &ns, old).await, Published::Stored);
}

#[tokio::test]
async fn a_blind_publish_replaces_a_newer_list_by_an_older_one() {
    let store = MemoryStore::broken(Flaws {
        blind_publish: true,
        ..Flaws::default()
    });
    let (ns, user) = (fresh("ns"), user("u"));
    for claim in [2, 1] {
        let published = publish(&store, &ns, list(&user, claim)).await;
        assert_eq!(published, Published::Stored);
    }
}
