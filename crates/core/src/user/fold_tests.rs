//! Laws of the fold, and histories of one user, shared with the tests of state and trigger.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::user::event::{Item, Kind, UNAVAILABLE, UserId, is_unavailable};
use crate::user::record::{Fences, Offset, Partition, Position};
use crate::user::state::{DecodeError, VERSION_CURRENT, canonical, decode, encode};

/// 2023-11-14, so that times are as long as real ones.
pub(crate) const BASE: i64 = 1_700_000_000_000;

pub(crate) fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Impression),
        Just(Kind::View),
        Just(Kind::Click),
        Just(Kind::Cart),
        Just(Kind::Purchase),
        Just(Kind::Search),
    ]
}

pub(crate) fn events() -> impl Strategy<Value = Change> {
    let item = prop_oneof![
        "[a-c]{1,3}".prop_map(Item::Sku),
        Just(Item::Pu("Vitamin C".into())),
        "\\PC{0,4}".prop_map(Item::Query),
    ];
    let price = prop_oneof![
        Just(None),
        (0u32..100_000).prop_map(|cents| Some(f64::from(cents) / 100.0)),
        (0.0f64..1000.0).prop_map(Some),
        (0.0f64..1e18).prop_map(Some),
    ];
    (kinds(), item, 0u32..4, price).prop_map(|(kind, item, qty, price)| {
        Change::Event(Event {
            kind,
            item,
            qty,
            price,
            ts: None,
            shown_in: None,
        })
    })
}

pub(crate) fn profiles() -> impl Strategy<Value = Change> {
    let open = Just(Some(json!(UNAVAILABLE)));
    let bio = prop_oneof![2 => open, 2 => (0u8..3).prop_map(|n| Some(json!(n))), 1 => Just(None)];
    (0u8..3, bio).prop_map(|(age, bio)| {
        let fields = [("age".to_owned(), json!(age))].into_iter();
        let bio = bio.map(|bio| ("bio".to_owned(), bio));
        Change::Profile(Profile(fields.chain(bio).collect()))
    })
}

/// Records of each partition in offset order, with gaps; times collide and run backwards.
pub(crate) fn histories() -> impl Strategy<Value = Vec<Vec<Accepted>>> {
    let partition =
        |incarnation: u32, topic: &'static str, number: i32, change: BoxedStrategy<Change>| {
            prop::collection::vec((0i64..30, 1i64..4, change), 0..14).prop_map(move |rows| {
                let mut offset = -1;
                let record = |(time, gap, change)| {
                    offset += gap;
                    Accepted {
                        user: UserId("u".into()),
                        position: Position {
                            partition: Partition {
                                incarnation,
                                topic: topic.into(),
                                number,
                            },
                            offset: Offset(offset),
                        },
                        time: Timestamp(BASE + time),
                        change,
                    }
                };
                rows.into_iter().map(record).collect::<Vec<_>>()
            })
        };
    let profile_changes = || prop_oneof![3 => profiles(), 1 => Just(Change::Erase)].boxed();
    (
        partition(0, "user-events", 0, events().boxed()),
        partition(0, "user-events", 1, events().boxed()),
        partition(1, "user-events", 0, events().boxed()),
        partition(0, "profile-changes", 0, profile_changes()),
        partition(0, "profile-changes", 7, profile_changes()),
    )
        .prop_map(|(a, b, c, d, e)| vec![a, b, c, d, e])
}

/// Steps of a run over a history.
#[derive(Clone, Debug)]
enum Act {
    Deliver(prop::sample::Index),
    Rewind(prop::sample::Index, prop::sample::Index),
    Store(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => any::<prop::sample::Index>().prop_map(Act::Deliver),
        1 => any::<(prop::sample::Index, prop::sample::Index)>().prop_map(|(p, to)| Act::Rewind(p, to)),
        2 => (1u8..=4).prop_map(Act::Store),
    ];
    prop::collection::vec(act, 0..120)
}

fn reload(state: UserState, version: u8) -> Result<UserState, DecodeError> {
    let profile = state.profile.as_ref().map(Profiled::to_text);
    let profile = profile.map(|text| Profiled::from_text(&text)).transpose()?;
    let mut found = decode(&encode(&state, version), profile, state.erased_at)?;
    if version < VERSION_CURRENT {
        // Older versions store no register.
        found.register = state.register;
    }
    Ok(found)
}

fn run(history: &[Vec<Accepted>], acts: &[Act], window: usize) -> UserState {
    let mut state = UserState::default();
    let mut next = vec![0; history.len()];
    for act in acts {
        match act {
            Act::Deliver(partition) => {
                let p = partition.index(history.len());
                if let Some(record) = history[p].get(next[p]) {
                    fold(&mut state, record, window);
                    next[p] += 1;
                }
            }
            Act::Rewind(partition, to) => {
                let p = partition.index(history.len());
                next[p] = to.index(next[p] + 1);
            }
            Act::Store(version) => {
                state = reload(state, *version).expect("bytes that encode wrote")
            }
        }
    }
    for (records, next) in history.iter().zip(next) {
        for record in &records[next..] {
            fold(&mut state, record, window);
        }
    }
    state
}

/// The expected state as a function of the set of records, independent of their order.
fn of_the_set(history: &[Vec<Accepted>], window: usize) -> UserState {
    let all = || history.iter().flatten();
    let erases = all().filter(|r| r.change == Change::Erase).map(|r| r.time);
    let erased_at = erases.max().unwrap_or_default();
    let mut remaining: Vec<&Accepted> = all().filter(|r| r.time > erased_at).collect();
    remaining.sort_by_key(|r| (r.time, r.position.clone()));
    let mut state = UserState {
        erased_at,
        fences: all().map(|r| r.position.clone()).collect::<Fences>(),
        ..UserState::default()
    };
    for record in remaining {
        if let Change::Event(Event {
            kind: Kind::Purchase,
            item: Item::Sku(sku),
            ..
        }) = &record.change
        {
            let register = &mut state.register;
            register.insert(record.time, sku, &record.position, &LIMITS);
        }
        match &record.change {
            Change::Event(event) => state.window.push(WindowEvent {
                time: record.time,
                position: record.position.clone(),
                kind: event.kind,
                item: event.item.clone(),
                qty: event.qty,
                price: event.price,
            }),
            Change::Profile(profile) => {
                state.profile = Some(Profiled {
                    time: record.time,
                    position: record.position.clone(),
                    profile: profile.clone(),
                    kept: Default::default(),
                });
            }
            Change::Erase => unreachable!("erases are not after the last erase"),
        }
    }
    let sent = |record: &&Accepted| match &record.change {
        Change::Profile(profile) => !profile.0.get("bio").is_some_and(is_unavailable),
        Change::Event(_) | Change::Erase => false,
    };
    let all_remaining = all().filter(|r| r.time > erased_at);
    let newest_sent = all_remaining
        .filter(sent)
        .max_by_key(|r| (r.time, r.position.clone()));
    if let Some(profiled) = &mut state.profile
        && profiled.profile.0.get("bio").is_some_and(is_unavailable)
        && let Some(from) = newest_sent
        && let Change::Profile(known) = &from.change
    {
        let from = (from.time, from.position.clone());
        profiled.kept.insert("bio".to_owned(), from);
        let known = known.0.get("bio").cloned();
        let known = known.unwrap_or_else(|| json!(UNAVAILABLE));
        profiled.profile.0.insert("bio".to_owned(), known);
    }
    let surplus = state.window.len().saturating_sub(window);
    state.window.drain(..surplus);
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_interleaving_batching_or_repetition_gives_the_state_of_the_set(
        history in histories(), acts in acts(), window in 1usize..9,
    ) {
        let mut found = run(&history, &acts, window);
        let mut wanted = of_the_set(&history, window);
        prop_assert_eq!(canonical(&found), canonical(&wanted));
        for state in [&mut found, &mut wanted] {
            state.register = std::mem::take(&mut state.register).without_counting();
        }
        prop_assert_eq!(found, wanted);
    }

    #[test]
    fn replaying_everything_changes_nothing(history in histories(), window in 1usize..9) {
        let once = run(&history, &[], window);
        let mut twice = once.clone();
        for record in history.iter().flatten() {
            prop_assert_eq!(fold(&mut twice, record, window), Step::Duplicate);
        }
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn a_step_describes_the_change_of_the_state(history in histories(), window in 1usize..9) {
        let mut state = UserState::default();
        for record in history.iter().flatten() {
            let before = state.clone();
            let step = fold(&mut state, record, window);
            let same = UserState { fences: state.fences.clone(), ..before.clone() } == state;
            match step {
                Step::Passed => prop_assert!(same),
                Step::Folded => prop_assert!(!same),
                Step::ProfileChanged => prop_assert_ne!(
                    before.profile.map(|p| p.profile), state.profile.clone().map(|p| p.profile)
                ),
                Step::Erased => prop_assert_eq!(state.erased_at, record.time),
                Step::Duplicate => prop_assert!(false, "no record was delivered twice"),
            }
        }
    }
}

fn at(text: &str, time: i64, change: Change) -> Accepted {
    Accepted {
        user: UserId("u".into()),
        position: text.parse().expect("valid"),
        time: Timestamp(BASE + time),
        change,
    }
}

fn bought(sku: &str) -> Change {
    Change::Event(Event {
        kind: Kind::Purchase,
        item: Item::Sku(sku.into()),
        qty: 1,
        price: None,
        ts: None,
        shown_in: None,
    })
}

fn viewed(sku: &str) -> Change {
    let Change::Event(event) = bought(sku) else {
        unreachable!("a purchase is an event")
    };
    let kind = Kind::View;
    Change::Event(Event { kind, ..event })
}

#[test]
fn an_erase_drops_earlier_records_and_redelivery_does_not_restore_them() {
    let mut state = UserState::default();
    assert_eq!(
        fold(&mut state, &at("0/e/0:0", 5, bought("old")), 3),
        Step::Folded
    );
    assert_eq!(
        fold(&mut state, &at("0/e/0:1", 9, bought("new")), 3),
        Step::Folded
    );
    assert_eq!(
        fold(&mut state, &at("0/p/0:0", 5, Change::Erase), 3),
        Step::Erased
    );
    assert_eq!(state.window.len(), 1);
    assert_eq!(state.erased_at, Timestamp(BASE + 5));
    // A null after a delete, with the same time, is the same erase again and drops nothing more. So is an erase whose
    // tombstone arrived before it. An older erase is ignored.
    assert_eq!(
        fold(&mut state, &at("0/p/0:1", 5, Change::Erase), 3),
        Step::Erased
    );
    assert_eq!(
        fold(&mut state, &at("0/p/1:0", 4, Change::Erase), 3),
        Step::Passed
    );
    assert_eq!(
        fold(&mut state, &at("0/e/1:0", 5, bought("late")), 3),
        Step::Passed
    );
    assert_eq!(
        fold(&mut state, &at("0/e/0:0", 5, bought("old")), 3),
        Step::Duplicate
    );
    assert_eq!(state.window.len(), 1);
}

#[test]
fn an_event_older_than_a_full_window_only_raises_the_fence() {
    let mut state = UserState::default();
    for (offset, time) in [(0, 5), (1, 6), (2, 7)] {
        fold(
            &mut state,
            &at(&format!("0/e/0:{offset}"), time, bought("a")),
            3,
        );
    }
    assert_eq!(
        fold(&mut state, &at("0/e/1:4", 4, viewed("b")), 3),
        Step::Passed
    );
    assert_eq!(state.fences.to_string(), "0/e/0:2,0/e/1:4");
    // With a smaller window, an event that would be dropped at once is not folded either.
    assert_eq!(
        fold(&mut state, &at("0/e/1:5", 5, viewed("c")), 2),
        Step::Passed
    );
    assert_eq!(
        fold(&mut state, &at("0/e/1:6", 8, bought("d")), 2),
        Step::Folded
    );
    assert_eq!(state.window.len(), 2);
    // A purchase goes into the register all the same.
    assert_eq!(
        fold(&mut state, &at("0/e/1:7", 3, bought("old")), 2),
        Step::Folded
    );
    assert!(state.register.skus().any(|it| it.sku == "old"));
    assert_eq!(state.window.len(), 2);
}
