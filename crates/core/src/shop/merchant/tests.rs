//! Cases and laws of boosts and arrangements.

use fixedbitset::FixedBitSet;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use crate::shop::catalogue::tests::sku;
use crate::shop::demand::Demand;
use crate::shop::rules::{Rule, Table};

/// Products `P0`, `P1` and so on, each with one SKU, of the category `C<n % 3>`; every seventh has none.
fn catalogue(products: usize) -> Catalogue {
    let skus = (0..products).map(|n| {
        let mut sku = sku(&format!("s{n:03}"), &format!("P{n}"), json!({}));
        sku.category = (n % 7 != 0).then(|| format!("C{}", n % 3));
        sku
    });
    Catalogue::load(skus.collect())
}

fn policy(text: &str) -> Policy {
    toml::from_str(text).expect("a policy")
}

fn merchant(text: &str, products: usize) -> Merchant {
    Merchant::compile(&policy(text), &catalogue(products))
}

fn all(products: usize) -> FixedBitSet {
    let mut all = FixedBitSet::with_capacity(products);
    all.insert_range(..);
    all
}

fn ranked(pus: &[u32]) -> Vec<PuIx> {
    pus.iter().copied().map(PuIx).collect()
}

fn ids(pus: &[PuIx]) -> Vec<u32> {
    pus.iter().map(|pu| pu.0).collect()
}

fn ms(time: &str) -> Timestamp {
    let time: jiff::Timestamp = time.parse().expect("a time");
    Timestamp(time.as_millisecond())
}

#[test]
fn a_boost_adds_the_logarithm_of_its_factor_while_it_is_valid() {
    let merchant = merchant(
        r#"
        boosts = [
            { pu = "P4", factor = 2.0, from = "2026-12-01T00:00:00Z", until = "2026-12-24T00:00:00Z" },
            { category = "C1", factor = 0.5 },
            { pu = "unknown", factor = 9.0 },
        ]"#,
        8,
    );
    let half = 0.5f32.ln();
    // Of P0 to P7 the category C1 has P1 and P4; P7 has none.
    for (at, expected) in [
        ("2026-11-30T23:59:59.999Z", [(1, half), (4, half)]),
        ("2026-12-01T00:00:00Z", [(1, half), (4, 0.0)]),
        ("2026-12-23T23:59:59.999Z", [(1, half), (4, 0.0)]),
        ("2026-12-24T00:00:00Z", [(1, half), (4, half)]),
    ] {
        assert_eq!(*merchant.boosts(ms(at)), expected, "{at}");
    }
}

#[test]
fn the_log_weights_are_one_allocation_between_two_changes() {
    let merchant = merchant(
        r#"boosts = [{ pu = "P1", factor = 3.0, from = "2026-12-01T00:00:00Z" }]"#,
        3,
    );
    let (before, early) = (ms("2026-11-01T00:00:00Z"), ms("2026-12-02T00:00:00Z"));
    let late = ms("2027-01-01T00:00:00Z");
    assert!(merchant.boosts(before).is_empty());
    assert!(Arc::ptr_eq(&merchant.boosts(early), &merchant.boosts(late)));
    assert!(Merchant::default().boosts(early).is_empty());
}

#[test]
fn a_category_of_a_sku_counts_as_that_of_its_product() {
    let mut wine = sku("a1", "WINE", json!({}));
    wine.category = Some("drinks".into());
    let mut red = sku("a2", "WINE", json!({}));
    red.category = Some("red".into());
    let catalogue = Catalogue::load(vec![wine, red]);
    for category in ["drinks", "red", "red\u{feff}"] {
        let policy = policy(&format!(
            "boosts = [{{ category = '{category}', factor = 2.0 }}]"
        ));
        let merchant = Merchant::compile(&policy, &catalogue);
        assert_eq!(merchant.boosts(Timestamp(0)).len(), 1, "{category}");
    }
}

#[test]
fn pins_stand_in_their_places_and_the_others_keep_their_order() {
    let check = |text: &str, n, expected: &[u32]| {
        let merchant = merchant(text, 30);
        let arranged = merchant.arrange(&ranked(&[1, 2, 3, 4, 5, 6]), n, &all(30));
        assert_eq!(ids(&arranged), expected, "{text}");
    };
    check("", 4, &[1, 2, 3, 4]);
    // From outside of the ranking, from below, and from above.
    check(r#"pins = [{ pu = "P9", position = 2 }]"#, 4, &[1, 9, 2, 3]);
    check(r#"pins = [{ pu = "P6", position = 1 }]"#, 4, &[6, 1, 2, 3]);
    check(r#"pins = [{ pu = "P1", position = 3 }]"#, 4, &[2, 3, 1, 4]);
    // Beyond the end it is the last.
    check(r#"pins = [{ pu = "P9", position = 90 }]"#, 4, &[1, 2, 3, 9]);
    // Among the first two: the second place, or where its rank puts it.
    check(r#"pins = [{ pu = "P6", top = 2 }]"#, 4, &[1, 6, 2, 3]);
    check(r#"pins = [{ pu = "P1", top = 3 }]"#, 4, &[1, 2, 3, 4]);
    // A position wins over a top; a second top goes before it.
    let three =
        r#"pins = [{ pu = "P7", top = 2 }, { pu = "P8", top = 2 }, { pu = "P9", position = 2 }]"#;
    check(three, 5, &[7, 9, 8, 1, 2]);
    // More pins than places: those that are named first.
    check(three, 2, &[8, 7]);
}

#[test]
fn a_ranking_that_ends_early_leaves_no_gap_before_a_pin() {
    let merchant = merchant(r#"pins = [{ pu = "P9", position = 5 }]"#, 30);
    let arranged = merchant.arrange(&ranked(&[1, 2]), 8, &all(30));
    assert_eq!(ids(&arranged), [1, 2, 9]);
}

#[test]
fn a_full_category_leaves_its_next_names_out_and_pins_count_but_stay() {
    // C1 has 1, 4, 10, 13; C2 has 2, 5, 8, 11; 7 and 14 have no category.
    let order = ranked(&[1, 4, 2, 10, 7, 13, 14, 5, 8]);
    let max = merchant("category_max = 1", 30);
    assert_eq!(ids(&max.arrange(&order, 5, &all(30))), [1, 2, 7, 14]);
    let pinned = merchant(
        r#"
        category_max = 1
        pins = [{ pu = "P10", position = 3 }, { pu = "P13", position = 4 }]"#,
        30,
    );
    assert_eq!(
        ids(&pinned.arrange(&order, 5, &all(30))),
        [2, 7, 10, 13, 14]
    );
}

#[test]
fn rules_and_stock_win_over_a_pin() {
    let merchant = merchant(r#"pins = [{ pu = "P9", position = 1 }]"#, 30);
    let mut permitted = all(30);
    permitted.set(9, false);
    assert_eq!(
        ids(&merchant.arrange(&ranked(&[1, 9, 2]), 3, &permitted)),
        [1, 2]
    );
}

#[test]
fn a_fallback_obeys_pins_and_the_most_names_of_a_category() {
    let fallback = |text: &str, rules: &[Rule]| {
        let catalogue = Arc::new(catalogue(12));
        let demand = Demand::build([], &catalogue, &Default::default(), Timestamp(0));
        let parts = SnapshotParts {
            rules: Arc::new(Table::compile(rules, &[], &catalogue)),
            demand: Arc::new(demand),
            merchant: Arc::new(Merchant::compile(&policy(text), &catalogue)),
            catalogue,
        };
        let settings = FallbackSettings {
            segments: &[],
            names: 4,
            selection: &Default::default(),
        };
        let list = serving_snapshot(parts, settings).fallbacks["default"].clone();
        let names = list.pus.iter().map(|shown| shown.name.clone());
        names.collect::<Vec<_>>()
    };
    // Nothing was bought: the order is that of ids. C1 has P1, P4, P10; P0 and P7 have no category.
    assert_eq!(fallback("", &[]), ["P0", "P1", "P10", "P11"]);
    let pinned = "category_max = 1\npins = [{ pu = 'P9', position = 2 }]";
    assert_eq!(fallback(pinned, &[]), ["P0", "P9", "P1", "P11"]);
    let required: Rule = serde_json::from_value(json!({
        "id": "r", "required": true, "when": {"field": "age", "below": 18}, "forbid": {"pus": ["P9"]},
    }))
    .expect("a rule");
    assert_eq!(fallback(pinned, &[required]), ["P0", "P1", "P11", "P3"]);
}

/// A policy over 24 products, a ranking of some of them, what is permitted, and a length.
fn cases() -> impl Strategy<Value = (Policy, Vec<PuIx>, FixedBitSet, usize)> {
    let pin = (0u32..24, 1usize..9, any::<bool>()).prop_map(|(pu, place, fixed)| Pin {
        pu: format!("P{pu}"),
        position: fixed.then_some(place),
        top: (!fixed).then_some(place),
    });
    let policy = (proptest::collection::vec(pin, 0..6), 0usize..4).prop_map(|(pins, max)| Policy {
        category_max: max,
        boosts: Vec::new(),
        pins,
    });
    let ranked = Just((0..24).map(PuIx).collect::<Vec<_>>()).prop_shuffle();
    let cut = (ranked, 0usize..25).prop_map(|(mut ranked, len)| {
        ranked.truncate(len);
        ranked
    });
    let permitted = proptest::collection::vec(proptest::bool::weighted(0.8), 24);
    let permitted = permitted.prop_map(|bits| {
        let ones = bits.iter().enumerate().filter(|(_, bit)| **bit);
        let mut set: FixedBitSet = ones.map(|(at, _)| at).collect();
        set.grow(24);
        set
    });
    (policy, cut, permitted, 0usize..12)
}

proptest! {
    #[test]
    fn an_arranged_list_keeps_all_its_laws((policy, ranked, permitted, n) in cases()) {
        let catalogue = catalogue(24);
        let merchant = Merchant::compile(&policy, &catalogue);
        let list = merchant.arrange(&ranked, n, &permitted);
        let category = |pu: PuIx| catalogue.pu(pu).category.clone();
        let pins: Vec<PuIx> = merchant.pins.iter().map(|(pu, _)| *pu).collect();
        let permitted_pins: Vec<PuIx> =
            pins.iter().copied().filter(|pu| permitted.contains(pu.at())).collect();

        prop_assert!(list.len() <= n);
        prop_assert!(list.iter().all(|pu| permitted.contains(pu.at())));
        let distinct: BTreeSet<_> = list.iter().collect();
        prop_assert_eq!(distinct.len(), list.len());
        for pin in permitted_pins.iter().take(n) {
            prop_assert!(list.contains(pin), "{:?} is pinned", pin);
        }
        let others: Vec<PuIx> = list.iter().copied().filter(|pu| !pins.contains(pu)).collect();
        let mut in_rank = ranked.iter().filter(|pu| others.contains(pu));
        prop_assert!(others.iter().all(|pu| in_rank.next() == Some(pu)), "order is kept");

        // A name is left out for a worse one, or for an empty place, only if its category is full.
        let max = policy.category_max;
        let of = |wanted: &Option<String>| list.iter().filter(|pu| category(**pu) == *wanted).count();
        let worst = others.last().and_then(|pu| ranked.iter().position(|one| one == pu));
        for (rank, pu) in ranked.iter().enumerate() {
            let free = list.len() < n || worst.is_some_and(|worst| rank < worst);
            if permitted.contains(pu.at()) && !list.contains(pu) && !pins.contains(pu) && free {
                prop_assert!(max > 0 && category(*pu).is_some() && of(&category(*pu)) >= max);
            }
        }
        for pu in &others {
            let pinned = list.iter().filter(|one| pins.contains(one) && category(**one) == category(*pu));
            let bound = max.max(pinned.count());
            prop_assert!(max == 0 || category(*pu).is_none() || of(&category(*pu)) <= bound);
        }
        // A single pin stands where it must, if the list is long enough.
        if let [(pin, place)] = merchant.pins[..] {
            let at = list.iter().position(|pu| *pu == pin).map(|at| at + 1);
            if let (Some(at), true) = (at, permitted.contains(pin.at())) {
                match place {
                    Place::At(place) => prop_assert_eq!(at, place.min(list.len()).min(n)),
                    Place::Top(place) => prop_assert!(at <= place.min(n)),
                }
            }
        }
    }
}

#[test]
fn each_mistake_of_a_policy_is_described_under_its_key() {
    let found = validate(&policy(
        r#"
        boosts = [
            { pu = "a", category = "b", factor = 1.0 },
            { factor = 0.0 },
            { pu = " ", factor = nan },
            { category = "", factor = inf, from = "2026-12-01T00:00:00Z", until = "2026-12-01T00:00:00Z" },
        ]
        pins = [
            { pu = "a", position = 1, top = 2 },
            { pu = "b" },
            { pu = "", top = 0 },
            { pu = "a ", position = 1 },
        ]"#,
    ));
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "boosts[0]",
            "boosts[1]",
            "boosts[1].factor",
            "boosts[2].pu",
            "boosts[2].factor",
            "boosts[3].category",
            "boosts[3].factor",
            "boosts[3].until",
            "pins[0]",
            "pins[1]",
            "pins[2].pu",
            "pins[2].top",
            "pins[3].pu",
            "pins[3].position",
        ],
        "{found:#?}"
    );
    assert_eq!(validate(&policy(r#"pins = [{ pu = "a", top = 3 }]"#)), []);
}
