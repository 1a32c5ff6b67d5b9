//! Laws of the register: a function of the set of records, and which records count as buyers.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::user::fold::tests::BASE;

impl Register {
    /// The register without what depends on the order of records.
    pub(crate) fn without_counting(mut self) -> Self {
        self.entries.iter_mut().for_each(|it| it.counting = None);
        self
    }
}

#[derive(Clone, Debug)]
enum Act {
    Bought(Timestamp, &'static str, Position),
    Erase(Timestamp),
}

fn limits() -> impl Strategy<Value = Limits> {
    (1usize..5, 1usize..9, 1usize..4).prop_map(|(skus, entries, times)| Limits {
        skus,
        entries,
        times,
    })
}

/// Purchases over three buckets, with equal times, in the order of the log and in a shuffled one.
fn acts(erases: u32) -> impl Strategy<Value = (Vec<Act>, Vec<Act>)> {
    let time = || (0i64..3, 0i64..6).prop_map(|(week, ms)| Timestamp(BASE + week * BUCKET_MS + ms));
    let sku = prop::sample::select(&["a", "b", "c", "7", "70", "d"][..]);
    let act = prop_oneof![
        12 => (time(), sku, 0i32..2).prop_map(|(time, sku, number)| (time, Some((sku, number)))),
        erases => time().prop_map(|time| (time, None)),
    ];
    let all = prop::collection::vec(act, 0..40).prop_map(|all| {
        let place = |(nth, (time, bought))| match bought {
            None => Act::Erase(time),
            Some((sku, number)) => {
                let position = format!("0/e/{number}:{nth}").parse().expect("valid");
                Act::Bought(time, sku, position)
            }
        };
        all.into_iter().enumerate().map(place).collect::<Vec<_>>()
    });
    all.prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
}

/// As the fold does it: records at or before the last erase are ignored.
fn run(acts: &[Act], limits: &Limits) -> Register {
    let (mut register, mut erased_at) = (Register::default(), Timestamp(0));
    for act in acts {
        match act {
            Act::Erase(at) => {
                erased_at = erased_at.max(*at);
                register.erase(erased_at);
            }
            Act::Bought(time, sku, position) if *time > erased_at => {
                let before = register.clone();
                let changed = register.insert(*time, sku, position, limits);
                let same = register.entries == before.entries;
                assert_eq!(changed, !same, "{before:?}\n{act:?}");
            }
            Act::Bought(..) => {}
        }
    }
    register
}

type Key = (Timestamp, &'static str);

/// Kept purchases and floor as a function of the set of records.
fn of_the_set(acts: &[Act], limits: &Limits) -> (BTreeMap<Key, u32>, Option<Key>) {
    let erases = acts.iter().filter_map(|act| match act {
        Act::Erase(at) => Some(*at),
        Act::Bought(..) => None,
    });
    let erased_at = erases.max().unwrap_or_default();
    let mut all: BTreeMap<Key, u32> = BTreeMap::new();
    for act in acts {
        if let Act::Bought(time, sku, _) = act
            && *time > erased_at
        {
            *all.entry((*time, *sku)).or_default() += 1;
        }
    }
    let newest = |from: &Key| {
        let mut groups: BTreeMap<(i64, &str), usize> = BTreeMap::new();
        let mut kept = Vec::new();
        for key in all.range(*from..).rev().map(|(key, _)| *key) {
            let times = groups.entry((bucket_of(key.0), key.1)).or_default();
            if *times < limits.times {
                *times += 1;
                kept.push(key);
            }
        }
        kept
    };
    let exceeded = |from: &&Key| {
        let kept = newest(from);
        let skus: BTreeSet<&str> = kept.iter().map(|(_, sku)| *sku).collect();
        skus.len() > limits.skus || kept.len() > limits.entries
    };
    let floor = all.keys().rev().find(exceeded).copied();
    let first = (Timestamp(i64::MIN), "");
    let kept = newest(&first).into_iter().filter(|key| floor < Some(*key));
    (kept.map(|key| (key, all[&key])).collect(), floor)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_order_of_purchases_and_erases_gives_the_register_of_the_set(
        (one, other) in acts(1), limits in limits(),
    ) {
        let (kept, floor) = of_the_set(&one, &limits);
        for acts in [&one, &other] {
            let register = run(acts, &limits);
            let found: BTreeMap<_, _> =
                register.purchases().map(|it| ((it.time, it.sku), it.count)).collect();
            prop_assert_eq!(&found, &kept);
            prop_assert_eq!(register.floor(), floor);
            let skus: BTreeSet<_> = kept.keys().map(|(_, sku)| *sku).collect();
            prop_assert_eq!(register.skus, skus.len());
        }
    }

    #[test]
    fn within_the_limits_one_record_of_a_sku_and_bucket_counts_and_goes_on_counting(
        (_, acts) in acts(0), cut in any::<prop::sample::Index>(),
    ) {
        let mut counted: BTreeMap<(&str, i64), u32> = BTreeMap::new();
        let mut register = Register::default();
        let mut answers = Vec::new();
        for act in &acts {
            let Act::Bought(time, sku, position) = act else { continue };
            register.insert(*time, sku, position, &LIMITS);
            let counts = register.is_counting(*time, sku, position);
            *counted.entry((sku, bucket_of(*time))).or_default() += u32::from(counts);
            answers.push(counts);
        }
        prop_assert!(counted.values().all(|n| *n == 1), "{counted:?}");
        let from = cut.index(acts.len() + 1);
        for (act, counts) in acts.iter().zip(answers).skip(from) {
            let Act::Bought(time, sku, position) = act else { continue };
            prop_assert_eq!(register.is_counting(*time, sku, position), counts);
        }
    }

    #[test]
    fn beyond_the_limits_no_record_counts_twice(
        (_, acts) in acts(0), limits in limits(),
    ) {
        let mut counted: BTreeMap<(&str, i64), u32> = BTreeMap::new();
        let mut register = Register::default();
        let mut answers = Vec::new();
        for act in &acts {
            let Act::Bought(time, sku, position) = act else { continue };
            register.insert(*time, sku, position, &limits);
            let counts = register.is_counting(*time, sku, position);
            *counted.entry((sku, bucket_of(*time))).or_default() += u32::from(counts);
            answers.push((time, sku, position, counts));
        }
        prop_assert!(counted.values().all(|n| *n <= 1), "{counted:?}");
        for (time, sku, position, counts) in answers {
            prop_assert!(counts || !register.is_counting(*time, sku, position));
        }
    }
}

fn position(offset: i64) -> Position {
    format!("0/e/0:{offset}").parse().expect("valid")
}

#[test]
fn a_sku_has_its_last_time_and_the_number_of_its_purchases() {
    let mut register = Register::default();
    for (offset, (day, sku)) in [(3, "b"), (1, "a"), (3, "b"), (9, "a"), (2, "b")]
        .into_iter()
        .enumerate()
    {
        let time = Timestamp(BASE + day * 86_400_000);
        assert!(register.insert(time, sku, &position(offset as i64), &LIMITS));
    }
    let skus: Vec<_> = register
        .skus()
        .map(|it| (it.sku, it.last.0 - BASE, it.count))
        .collect();
    assert_eq!(skus, [("a", 9 * 86_400_000, 2), ("b", 3 * 86_400_000, 3)]);
    assert_eq!(register.purchases().count(), 4, "two were at one time");
}

#[test]
fn the_newest_200_skus_and_512_times_are_kept() {
    let mut register = Register::default();
    for nth in 0..300i64 {
        register.insert(
            Timestamp(BASE + nth),
            &nth.to_string(),
            &position(nth),
            &LIMITS,
        );
    }
    assert_eq!(register.skus().count(), 200);
    assert_eq!(register.floor(), Some((Timestamp(BASE + 99), "99")));
    let mut register = Register::default();
    for nth in 0..600i64 {
        let time = Timestamp(BASE + nth * BUCKET_MS);
        register.insert(time, "milk", &position(nth), &LIMITS);
    }
    assert_eq!(register.skus().next().map(|it| it.count), Some(512));
}

#[test]
fn an_eighth_time_in_a_week_takes_the_place_of_the_first() {
    let mut register = Register::default();
    let week = Timestamp(BASE - BASE % BUCKET_MS);
    for nth in 0..9 {
        register.insert(Timestamp(week.0 + nth), "milk", &position(nth), &LIMITS);
    }
    assert_eq!(
        register.purchases().next().map(|it| it.time.0 - week.0),
        Some(2)
    );
    assert!(
        register.is_counting(week, "milk", &position(0)),
        "it still counts"
    );
    assert_eq!(register.floor(), None);
}

#[test]
fn after_an_erase_the_same_week_counts_anew() {
    let mut register = Register::default();
    register.insert(Timestamp(BASE), "milk", &position(0), &LIMITS);
    register.erase(Timestamp(BASE));
    assert!(register.is_empty() && !register.is_counting(Timestamp(BASE), "milk", &position(0)));
    register.insert(Timestamp(BASE + 1), "milk", &position(1), &LIMITS);
    assert!(register.is_counting(Timestamp(BASE + 1), "milk", &position(1)));
}
