//! Round trips, fixtures and damaged bytes of the stored form.

use proptest::prelude::*;

use super::*;
use crate::user::event::{Change, Event, Profile};
use crate::user::fold::fold;
use crate::user::fold::tests::{BASE, histories};
use crate::user::state::register::{LIMITS, Limits};
use crate::user::state::{ClaimRate, Pending, canonical};

/// Bytes of version 1; must be readable for as long as 1 is the oldest version.
const FIXTURE_1: &str = "010180a0abfef96200087265636f6d6d2d650a5404000241310201ec51b81e85eb0f400100087265636f6d6d2d650a56";
/// Bytes of version 4.
const FIXTURE_4: &str = "0480a0abfef96201087265636f6d6d2d650100000a01560180a0abfef9620001040002413102018f030000010241310180a0abfef9620100010154";
/// Bytes of version 3.
const FIXTURE_3: &str =
    "0380a0abfef96201087265636f6d6d2d650100000a01560180a0abfef9620001040002413102018f03";
/// Bytes of version 2.
const FIXTURE_2: &str = "0201087265636f6d6d2d650100000a01560180a0abfef9620001040002413102018f03";

fn fixture() -> UserState {
    let position = |offset| format!("0/recomm-e/5:{offset}").parse().expect("valid");
    UserState {
        window: vec![WindowEvent {
            time: Timestamp(BASE),
            position: position(42),
            kind: Kind::Purchase,
            item: Item::Sku("A1".into()),
            qty: 2,
            price: Some(3.99),
        }],
        fences: [position(43)].into_iter().collect(),
        erased_at: Timestamp(0),
        complete_since: Timestamp(0),
        profile: None,
        ..UserState::default()
    }
    .registered()
}

impl UserState {
    /// With the register of its window.
    fn registered(mut self) -> Self {
        self.register = Register::of_window(&self.window);
        self
    }

    /// As it is after being stored in a version.
    fn stored_in(mut self, version: u8) -> Self {
        if version < 3 {
            self.complete_since = Timestamp(0);
        }
        if version < 4 { self.registered() } else { self }
    }
}

#[test]
fn bytes_of_versions_1_and_2_are_read_and_written_unchanged() {
    for (version, hex) in [(1, FIXTURE_1), (2, FIXTURE_2)] {
        assert_eq!(hex::encode(encode(&fixture(), version)), hex, "{version}");
        let bytes = hex::decode(hex).expect("hex");
        assert_eq!(
            decode(&bytes, None, Timestamp(0)),
            Ok(fixture()),
            "{version}"
        );
    }
}

#[test]
fn versions_from_3_on_store_complete_since() {
    let state = UserState {
        complete_since: Timestamp(BASE),
        ..fixture()
    };
    for version in [1, 2, 3, 4] {
        let found = decode(&encode(&state, version), None, Timestamp(0)).expect("valid");
        let kept = if version >= 3 { BASE } else { 0 };
        assert_eq!(found.complete_since, Timestamp(kept), "{version}");
    }
    assert_eq!(hex::encode(encode(&state, 3)), FIXTURE_3);
    assert_eq!(hex::encode(encode(&state, 4)), FIXTURE_4);
}

#[test]
fn a_newer_version_and_damaged_bytes_are_different_errors() {
    let newer = decode(&[5, 0, 0], None, Timestamp(0));
    assert_eq!(newer, Err(DecodeError::Newer { found: 5, known: 4 }));
    for bytes in [
        &[][..],
        &[0],
        &[1],
        &[2],
        &[2, 0, 0],
        &[2, 0, 0, 0, 0],
        &[3],
        &[3, 0, 0],
        &[4],
        &[4, 0, 0],
        &[4, 0, 0, 0, 0],
        &[1, 0xff, 0xff, 0xff, 0x7f],
    ] {
        let found = decode(bytes, None, Timestamp(0));
        assert!(
            matches!(found, Err(DecodeError::Damaged(_))),
            "{bytes:?}: {found:?}"
        );
    }
}

#[test]
fn decoding_with_a_later_erase_drops_what_is_not_later() {
    let bytes = encode(&fixture(), 2);
    let state = decode(&bytes, None, Timestamp(BASE)).expect("valid");
    assert!(state.is_vacant());
    assert_eq!(state.fences, fixture().fences);
    assert_eq!(state.erased_at, Timestamp(BASE));
}

#[test]
fn a_price_keeps_its_bits() {
    for price in [0.0, -0.0, 0.1, 3.99, 0.005, 9e15, f64::MIN_POSITIVE, -1.5] {
        let mut state = busy();
        state.window[7].price = Some(price);
        for version in VERSION_OLDEST..=VERSION_CURRENT {
            let decoded = decode(&encode(&state, version), None, Timestamp(0))
                .expect("bytes that encode wrote");
            let kept = decoded.window[7].price.map(f64::to_bits);
            assert_eq!(kept, Some(price.to_bits()), "{price} in version {version}");
        }
    }
}

/// Fifty purchases and views of a busy user over a month, on two partitions.
fn busy() -> UserState {
    let mut state = UserState::default();
    for nth in 0i64..50 {
        let change = Change::Event(Event {
            kind: if nth % 3 == 0 {
                Kind::Purchase
            } else {
                Kind::View
            },
            item: Item::Sku(format!("{}", 1_000_000 + nth * 7919)),
            qty: 1,
            price: Some((nth * 137 % 4000) as f64 / 100.0),
            ts: None,
            shown_in: None,
        });
        let record = crate::user::event::Accepted {
            user: crate::user::event::UserId("u".into()),
            position: format!("0/user-events/{}:{}", nth % 2, 40_000_000 + nth * 91_733)
                .parse()
                .expect("valid"),
            time: Timestamp(BASE + nth * 51_840_123),
            change,
        };
        fold(&mut state, &record, 50);
    }
    state
}

#[test]
fn fifty_events_take_less_than_1400_bytes() {
    let (one, two) = (encode(&busy(), 1).len(), encode(&busy(), 2).len());
    assert!(two < 1400 && two < one, "{two} and {one} bytes");
}

#[test]
fn pending_claim_rate_and_profile_survive_their_texts_and_damaged_texts_are_refused() {
    let source: Position = "0/user-events/3:17".parse().expect("valid");
    for pending in [Some(source.clone()), None] {
        let pending = Pending {
            source: pending,
            due: Timestamp(BASE),
        };
        assert_eq!(pending.to_string().parse(), Ok(pending));
    }
    let claim_rate = ClaimRate {
        last: Timestamp(BASE),
        day: 19675,
        claims: 3,
    };
    assert_eq!(claim_rate.to_string(), "1700000000000 19675 3");
    assert_eq!(claim_rate.to_string().parse(), Ok(claim_rate));
    for bad in ["", "x", "1 ", "1 0/t/0", "1 0/t/0:1 "] {
        assert!(bad.parse::<Pending>().is_err(), "{bad:?}");
    }
    for bad in ["", "1 2", "1 2 -3", "1 2 3 4", "1  2 3"] {
        assert!(bad.parse::<ClaimRate>().is_err(), "{bad:?}");
    }
    for bad in ["", "{}", r#"{"time":1,"position":"x","profile":{}}"#] {
        assert!(Profiled::from_text(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_dump_has_sorted_keys() {
    let mut state = fixture();
    let fields = serde_json::json!({"b": {"z": 1, "a": 2}, "a": null});
    state.profile = Some(Profiled {
        time: Timestamp(BASE + 1),
        position: "0/p/0:1".parse().expect("valid"),
        profile: serde_json::from_value::<Profile>(fields).expect("object"),
        kept: Default::default(),
    });
    assert_eq!(
        canonical(&state),
        r#"{"erased_at":0,"fences":{"0/recomm-e/5":43},"profile":{"position":"0/p/0:1","profile":{"a":null,"b":{"a":2,"z":1}},"time":1700000000001},"register":[[1700000000000,"A1",1]],"window":[{"position":"0/recomm-e/5:42","price":3.99,"qty":2,"sku":"A1","time":1700000000000,"type":"purchase"}]}"#
    );
}

/// A register with SKUs that are numbers and such that are not, several partitions, a floor, and times of one SKU.
fn registers() -> impl Strategy<Value = Register> {
    let sku = prop_oneof![
        "[0-9]{1,4}",
        "[1-9][0-9]{18,21}",
        "\\PC{1,3}",
        Just("+1".to_owned())
    ];
    let rows = prop::collection::vec((any::<i8>(), sku, 0i32..3, any::<i64>()), 0..60);
    (rows, 1usize..30).prop_map(|(rows, skus)| {
        let limits = Limits { skus, ..LIMITS };
        let mut register = Register::default();
        for (day, sku, number, offset) in rows {
            let time = Timestamp(BASE + i64::from(day) * 86_400_000);
            let partition = Partition {
                incarnation: 1,
                topic: "e".into(),
                number,
            };
            let position = Position {
                partition,
                offset: Offset(offset),
            };
            register.insert(time, &sku, &position, &limits);
        }
        register
    })
}

#[test]
fn a_year_of_purchases_takes_few_bytes_beside_the_window() {
    let mut state = busy();
    let before = encode(&state, 4).len();
    for nth in 0i64..300 {
        let time = Timestamp(BASE + nth / 6 * 7 * 86_400_000);
        let position = format!("0/user-events/0:{}", nth / 6 * 91_733 + nth);
        let sku = (800_000 + nth * 7919 % 190 * 60_001).to_string();
        let position = position.parse().expect("valid");
        state.register.insert(time, &sku, &position, &LIMITS);
    }
    let bytes = encode(&state, 4).len() - before;
    assert!(bytes < 300 * 7, "{bytes} bytes for 300 purchases");
}

proptest! {
    #[test]
    fn a_register_survives_its_bytes(register in registers()) {
        let state = UserState { register, ..fixture() };
        prop_assert_eq!(decode(&encode(&state, 4), None, Timestamp(0)), Ok(state));
    }

    #[test]
    fn any_state_survives_its_bytes(
        history in histories(),
        version in 1u8..=4,
        extremes in prop::collection::vec((any::<i64>(), any::<i64>()), 0..4),
    ) {
        let mut state = UserState::default();
        for record in history.iter().flatten() {
            fold(&mut state, record, 20);
        }
        for (time, offset) in extremes {
            let position = Position {
                partition: Partition { incarnation: u32::MAX, topic: "ü/x".into(), number: -1 },
                offset: Offset(offset),
            };
            state.fences.raise(&position);
            let time = Timestamp(time);
            state.window.push(WindowEvent { time, position, kind: Kind::View, item: Item::Pu(String::new()), qty: u32::MAX, price: Some(f64::MAX) });
        }
        state.window.retain(|seen| seen.time > state.erased_at);
        state.window.sort_by_key(|seen| (seen.time, seen.position.clone()));
        state.window.dedup_by_key(|seen| (seen.time, seen.position.clone()));
        let profile = state.profile.clone();
        let found = decode(&encode(&state, version), profile, state.erased_at);
        prop_assert_eq!(found, Ok(state.stored_in(version)));
    }

    #[test]
    fn any_bytes_are_a_state_or_an_error(version in 0u8..6, rest in prop::collection::vec(any::<u8>(), 0..80)) {
        let bytes: Vec<u8> = [vec![version], rest].concat();
        let _ = decode(&bytes, None, Timestamp(0));
    }

    #[test]
    fn damage_to_one_byte_never_panics(history in histories(), version in 1u8..=4, at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut state = UserState::default();
        for record in history.iter().flatten() {
            fold(&mut state, record, 20);
        }
        let mut bytes = encode(&state, version);
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = decode(&bytes, None, state.erased_at);
        let _ = decode(&bytes[..at], None, state.erased_at);
    }

    #[test]
    fn a_profile_survives_its_text(fraction in any::<f64>(), text in "\\PC{0,6}") {
        let known = Profiled {
            time: Timestamp(BASE),
            position: "0/p/0:1".parse().expect("valid"),
            profile: Profile([(text, serde_json::json!({"f": [fraction], "i": i64::MIN}))].into()),
            kept: Default::default(),
        };
        prop_assert_eq!(Profiled::from_text(&known.to_text()), Ok(known));
    }
}
