//! The contract of [`Store`], run against memory, one Redis and a Redis Cluster.
//!
//! This file opens the stores and builds the values that the tests write. The tests are in `store_users`,
//! `store_lists`,
//! `store_shared` and `store_register`; what only Redis has is in `store_redis`, memory compared with Redis in
//! `store_same`.

use std::sync::Arc;

use nearshore_core::list::document::Stage;
use nearshore_core::ports::store::{
    Claim, ClaimOutcome, Claimed, FoldWrite, Folded, ListEdit, Publish, Published, Store, Stored,
};
use nearshore_core::user::event::{Item, Kind, Profile, UserId};
use nearshore_core::user::record::{Fences, Offset, Partition, Position, Timestamp};
use nearshore_core::user::state::{Activity, ClaimRate, Pending, Profiled, UserState, WindowEvent};
use nearshore_redis::{RedisSettings, RedisStore};
use nearshore_testkit::store::MemoryStore;

use crate::harness::{ANSWER_MAX, fresh, variable};

/// Makes one test per store of each function.
#[macro_export]
macro_rules! for_every_store {
    ($($promise:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $promise() { super::$promise($crate::store::memory()).await })*
        }
        mod single {
            $(#[tokio::test] async fn $promise() { super::$promise($crate::store::single()).await })*
        }
        mod cluster {
            $(#[tokio::test] async fn $promise() { super::$promise($crate::store::cluster()).await })*
        }
    };
}

pub fn memory() -> MemoryStore {
    MemoryStore::default()
}

pub fn settings(url: String) -> RedisSettings {
    RedisSettings {
        url,
        response_max: ANSWER_MAX,
        connect_max: ANSWER_MAX,
        ..RedisSettings::default()
    }
}

pub fn single_url() -> String {
    format!("redis://{}", variable("NEARSHORE_TEST_REDIS"))
}

pub fn cluster_url() -> String {
    format!(
        "redis+cluster://{}",
        variable("NEARSHORE_TEST_REDIS_CLUSTER")
    )
}

pub fn single() -> RedisStore {
    RedisStore::new(settings(single_url())).expect("valid settings")
}

pub fn cluster() -> RedisStore {
    RedisStore::new(settings(cluster_url())).expect("valid settings")
}

/// A user that no other test uses: tombstones are shared by all namespaces.
pub fn user(name: &str) -> UserId {
    UserId(fresh(name).into())
}

pub fn position(offset: i64) -> Position {
    Position {
        partition: partition("user-events"),
        offset: Offset(offset),
    }
}

pub fn partition(topic: &str) -> Partition {
    Partition {
        incarnation: 0,
        topic: topic.into(),
        number: 3,
    }
}

pub fn event(offset: i64, time: i64) -> WindowEvent {
    WindowEvent {
        time: Timestamp(time),
        position: position(offset),
        kind: Kind::Purchase,
        item: Item::Sku(format!("sku-{offset}")),
        qty: 2,
        price: Some(3.25),
    }
}

/// A state that has folded offsets 1..=n, at times 1000 to 1000 n.
pub fn state(n: i64) -> UserState {
    UserState {
        window: (1..=n).map(|nth| event(nth, nth * 1000)).collect(),
        fences: (1..=n).map(position).collect(),
        erased_at: Timestamp(0),
        ..UserState::default()
    }
}

pub fn profile(offset: i64, time: i64) -> Profiled {
    let fields = [("age".to_owned(), serde_json::json!(41 + offset))];
    Profiled {
        time: Timestamp(time),
        position: Position {
            partition: partition("profile-changes"),
            offset: Offset(offset),
        },
        profile: Profile(fields.into()),
        kept: Default::default(),
    }
}

/// An activity with a pending request and a score.
pub fn activity(offset: i64) -> Activity {
    Activity {
        pending: Some(Pending {
            source: Some(position(offset)),
            due: Timestamp(offset * 1000 + 30_000),
        }),
        score: 120,
        claim_rate: ClaimRate::default(),
    }
}

/// A write of [`state`]`(n)` that expects this stored version.
pub fn write(user: &UserId, expected: u64, n: i64) -> FoldWrite {
    FoldWrite {
        user: user.clone(),
        expected,
        state: state(n),
        activity: activity(n),
        profile_changed: false,
        list: ListEdit::Keep,
    }
}

/// An erase as of `at` that expects this stored version.
pub fn erase(user: &UserId, expected: u64, at: i64) -> FoldWrite {
    let fences: Fences = [position(9)].into_iter().collect();
    FoldWrite {
        state: UserState {
            fences,
            erased_at: Timestamp(at),
            ..UserState::default()
        },
        activity: Activity::default(),
        profile_changed: true,
        ..write(user, expected, 0)
    }
}

/// A fallback under this claim number.
pub fn fallback(user: &UserId, claim: u64) -> Publish {
    let mut publish = list(user, claim);
    publish.list.doc = r#"{"source":"fallback"}"#.into();
    publish.list.stage = Stage::Mixture;
    publish.only_if_absent = true;
    publish
}

/// A list by the model under this claim number.
pub fn list(user: &UserId, claim: u64) -> Publish {
    Publish {
        user: user.clone(),
        list: Stored {
            doc: format!(r#"{{"source":"model","list_id":"{claim}"}}"#),
            claim,
            stage: Stage::Model,
            seen: [position(1)].into_iter().collect(),
            epoch: 1,
            at: Timestamp(1000),
            audit: r#"{"seed":1}"#.into(),
        },
        erased_at: Timestamp(0),
        force: false,
        only_if_absent: false,
    }
}

pub async fn fold<S: Store>(store: &S, ns: &str, write: FoldWrite) -> Folded {
    let mut answers = store.fold(ns, &[write]).await.expect("the store answers");
    answers.pop().expect("one answer")
}

pub async fn claim<S: Store>(store: &S, ns: &str, user: &UserId, due: i64) -> Option<Claimed> {
    let expected = peek(store, ns, user).await.ver;
    claim_at(store, ns, (user, due, expected)).await.claimed()
}

/// Claims a user whose stored version must be `expected`.
pub async fn claim_at<S: Store>(
    store: &S,
    ns: &str,
    (user, due, expected): (&UserId, i64, u64),
) -> ClaimOutcome {
    let claim = Claim {
        user: user.clone(),
        due: Timestamp(due),
        expected,
    };
    let mut answers = store.claim(ns, &[claim]).await.expect("the store answers");
    answers.pop().expect("one answer")
}

pub async fn publish<S: Store>(store: &S, ns: &str, publish: Publish) -> Published {
    let mut answers = store
        .publish(ns, &[publish])
        .await
        .expect("the store answers");
    answers.pop().expect("one answer")
}

pub async fn load<S: Store>(
    store: &S,
    ns: &str,
    user: &UserId,
) -> nearshore_core::user::state::LoadedUser {
    let mut answers = store
        .load(ns, std::slice::from_ref(user))
        .await
        .expect("the store answers");
    answers.pop().expect("one answer")
}

pub async fn peek<S: Store>(
    store: &S,
    ns: &str,
    user: &UserId,
) -> nearshore_core::ports::store::Peek {
    let mut answers = store
        .peek(ns, std::slice::from_ref(user))
        .await
        .expect("the store answers");
    answers.pop().expect("one answer")
}

pub async fn doc<S: Store>(store: &S, ns: &str, user: &UserId) -> Option<String> {
    peek(store, ns, user).await.list.map(|list| list.doc)
}

pub const STORED: fn(u64) -> Folded = |ver| Folded::Stored { ver };

/// A topic that no other test uses: stock fences are shared by all namespaces.
pub fn topic() -> Arc<str> {
    fresh("catalog").into()
}
