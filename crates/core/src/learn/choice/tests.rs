//! Tests of the choice of a SKU: shares, what they are fitted to, and what a replay shows.

use proptest::prelude::*;

use super::fit::{Sample, Samples, fit};
use super::measure::{Again, Tally, popular};
use super::replay::{Bought, ReplayOptions, SkuAttribute, SkuTable, replay};
use super::*;
use crate::learn::bootstrap::Random;
use crate::learn::log::DAY_MS;

const OPTIONS: ReplayOptions = ReplayOptions {
    half_life_ms: 28 * DAY_MS,
    own_skus: 200,
    own_purchases: 512,
};

/// SKUs 0 to 5 are product 0, SKU 6 is product 1; of product 0 the first three have the value 1, the others 2.
fn table() -> SkuTable {
    SkuTable {
        products: vec![0, 0, 0, 0, 0, 0, 1],
        skus: vec![(0..6).collect(), vec![6]],
        prices: vec![f32::NAN; 7],
        attributes: vec![SkuAttribute {
            name: "brand".into(),
            values: vec![1, 1, 1, 2, 2, 2, 0],
            len: 3,
        }],
    }
}

fn bought(day: i64, user: u32, sku: u32) -> Bought {
    Bought {
        at: day * DAY_MS,
        user,
        sku,
        pieces: 1,
    }
}

/// Users of whom most take their last SKU again, and some a popular one.
fn habits(users: u32, days: i64) -> Vec<Bought> {
    let mut random = Random::new(3);
    let mut last: Vec<Option<u32>> = vec![None; users as usize];
    let mut all = Vec::new();
    for day in 0..days {
        for user in 0..users {
            let popular = (random.uniform().powi(2) * 6.0) as u32;
            let own = last[user as usize].filter(|_| random.uniform() < 0.7);
            let sku = own.unwrap_or(popular.min(5));
            last[user as usize] = Some(sku);
            all.push(bought(day, user, sku));
        }
    }
    all
}

fn samples(log: &[Bought], folds: usize) -> Samples {
    let mut samples = Samples::default();
    replay(&table(), log, OPTIONS, |choice| {
        samples.add(choice, choice.user as usize % folds);
    });
    samples
}

#[test]
fn without_an_artefact_the_users_last_sku_comes_first_and_then_what_sells() {
    let candidates = Candidates {
        demand: vec![[5.0; 3], [3.0; 3], [4.0; 3]],
        prices: vec![f32::NAN; 3],
        own: vec![OwnPurchase {
            place: Some(1),
            days: 20.0,
        }],
        attributes: Vec::new(),
    };
    let shares = ChoiceModel::default().shares(&candidates);
    assert!(shares[1] > shares[0] && shares[0] > shares[2], "{shares:?}");
}

#[test]
fn a_choice_sees_nothing_of_its_own_time_and_of_many_skus_at_once_none_is_chosen() {
    let log = [
        bought(0, 0, 1),
        bought(1, 0, 2),
        bought(1, 0, 3),
        bought(2, 0, 4),
        bought(2, 1, 4),
        bought(3, 0, 6),
    ];
    let mut seen: Vec<(u32, usize, Option<usize>, f32)> = Vec::new();
    let all = replay(&table(), &log, OPTIONS, |choice| {
        let pieces: f32 = choice.pieces().iter().sum();
        seen.push((choice.user, choice.taken, choice.own_last(), pieces));
    });
    assert_eq!(all, 3);
    let parts: Vec<_> = seen.iter().map(|it| (it.0, it.1, it.2)).collect();
    assert_eq!(parts, [(0, 1, None), (0, 4, Some(3)), (1, 4, None)]);
    assert_eq!(seen[0].3, 0.0);
    assert!(seen[1].3 > 2.8 && seen[1].3 < 3.0, "{seen:?}");
}

#[test]
fn no_more_of_a_user_is_visible_than_a_state_keeps() {
    let options = ReplayOptions {
        own_skus: 2,
        ..OPTIONS
    };
    let log = [
        bought(0, 0, 1),
        bought(1, 0, 6),
        bought(2, 0, 6),
        bought(3, 0, 2),
        bought(4, 0, 3),
    ];
    let mut own = Vec::new();
    replay(&table(), &log, options, |choice| {
        own.push(choice.candidates().own.len());
    });
    // Before the last choice SKU 1 was evicted: 6 and 2 are two SKUs.
    assert_eq!(own, [0, 1, 1]);
}

#[test]
fn counts_decay_however_long_the_log_is() {
    let log = [bought(0, 0, 1), bought(20_000, 1, 2), bought(20_028, 0, 2)];
    let mut last = Vec::new();
    replay(&table(), &log, OPTIONS, |choice| last = choice.pieces());
    assert!(last[1] < 1e-9 && (last[2] - 0.5).abs() < 1e-6, "{last:?}");
}

#[test]
fn the_fit_finds_habits_and_says_how_sure_it_is() {
    let log = habits(60, 40);
    let found = fit(&samples(&log, 3), None);
    found.check().expect("usable");
    let (mut tally, mut again) = (Tally::default(), Again::default());
    replay(&table(), &log, OPTIONS, |choice| {
        let popular = popular(choice);
        let own = again.own_last(choice, &popular);
        let shares = found.shares(&choice.candidates());
        let shares: Vec<f64> = shares.into_iter().map(f64::from).collect();
        let hits = [("popular", popular), ("own", own), ("fitted", shares)]
            .map(|(way, shares)| tally.add(way, choice, &shares));
        tally.compare(choice.user, hits[2], hits[0]);
    });
    let ways = tally.ways();
    assert!(
        ways["fitted"].all.nats < ways["own"].all.nats - 0.005,
        "{ways:#?}"
    );
    assert!(
        ways["fitted"].all.nats < ways["popular"].all.nats - 0.3,
        "{ways:#?}"
    );
    assert!(ways["fitted"].ece < 0.03, "{ways:#?}");
    assert!(tally.gain(1).above_zero());
    assert_eq!(
        ways["own"].all.choices,
        ways["own"].own_visible.choices + 60
    );
}

#[test]
fn the_same_log_gives_the_same_bytes_and_a_fold_is_left_out() {
    let log = habits(30, 20);
    let json = |held_out| serde_json::to_string(&fit(&samples(&log, 3), held_out)).expect("json");
    assert_eq!(json(None), json(None));
    assert_ne!(json(None), json(Some(1)));
    let alone = Samples {
        samples: samples(&log, 3)
            .samples
            .into_iter()
            .filter(|it| it.fold != 1)
            .collect(),
        ..samples(&log, 3)
    };
    assert_eq!(
        json(Some(1)),
        serde_json::to_string(&fit(&alone, None)).expect("json")
    );
}

#[test]
fn the_likelihoods_slope_is_its_gradient() {
    let samples = samples(&habits(10, 12), 1);
    let terms = samples.names.len() + 1;
    let weights: Vec<f64> = (0..terms).map(|nth| 0.1 * nth as f64 - 0.3).collect();
    let value = |weights: &[f64]| moments(&samples.samples, weights).value;
    let found = moments(&samples.samples, &weights);
    for term in 0..terms {
        let (mut low, mut high) = (weights.clone(), weights.clone());
        low[term] -= 1e-3;
        high[term] += 1e-3;
        let slope = (value(&high) - value(&low)) / 2e-3;
        let given = found.gradient[term];
        assert!(
            (slope - given).abs() < 0.02 * (1.0 + given.abs()),
            "{term}: {slope} {given}"
        );
    }
}

fn moments(samples: &[Sample], weights: &[f64]) -> crate::learn::logit::Moments {
    let mut moments = crate::learn::logit::Moments::new(weights.len());
    samples
        .iter()
        .for_each(|sample| super::fit::add(sample, weights, &mut moments));
    moments
}

#[test]
fn another_release_and_numbers_that_make_no_shares_are_refused() {
    let parsed = |text: &str| ChoiceModel::parse(text.as_bytes()).expect("json").check();
    let with = |version: u32, kappa: &str| {
        parsed(&format!(
            r#"{{"version":{version},"weights":{{}},"kappa":{kappa},"forget":0.9,"half_life_days":90.0}}"#
        ))
    };
    assert_eq!(with(1, "1.0"), Ok(()));
    assert_eq!(with(2, "1.0"), Err(ChoiceError::Version(2)));
    assert_eq!(with(1, "0.0"), Err(ChoiceError::Number("kappa")));
}

#[test]
fn what_a_catalogue_does_not_have_changes_no_share() {
    let log = habits(30, 20);
    let found = fit(&samples(&log, 2), None);
    let bare = SkuTable {
        attributes: Vec::new(),
        ..table()
    };
    let mut without = found.clone();
    without.weights.retain(|name, _| !name.contains(':'));
    let mut shares = [Vec::new(), Vec::new()];
    replay(&bare, &log, OPTIONS, |choice| {
        shares[0] = found.shares(&choice.candidates())
    });
    replay(&table(), &log, OPTIONS, |choice| {
        shares[1] = without.shares(&choice.candidates())
    });
    assert_eq!(shares[0], shares[1]);
}

#[test]
fn a_cheap_buyer_is_shown_cheap_skus() {
    let model = ChoiceModel {
        weights: [("price_distance".to_owned(), -1.0)].into(),
        kappa: 100.0,
        ..ChoiceModel::default()
    };
    let candidates = Candidates {
        demand: vec![[1.0; 3]; 4],
        prices: vec![1f32.ln(), 9f32.ln(), 1.1f32.ln(), f32::NAN],
        own: vec![OwnPurchase {
            place: Some(0),
            days: 1.0,
        }],
        attributes: Vec::new(),
    };
    let shares = model.shares(&candidates);
    assert!(shares[2] > shares[1], "{shares:?}");
}

fn any_candidates() -> impl Strategy<Value = (Vec<[f32; 3]>, Vec<f32>, Vec<OwnPurchase>)> {
    (1usize..40).prop_flat_map(|len| {
        let demand = prop::collection::vec([-3.0f32..12.0, -3.0f32..12.0, -3.0f32..12.0], len);
        let price = prop_oneof![Just(f32::NAN), -5.0f32..10.0];
        let place = prop::option::of(0..len as u32);
        let own = (place, -1.0f32..4000.0).prop_map(|(place, days)| OwnPurchase { place, days });
        let own = prop::collection::vec(own, 0..20);
        (demand, prop::collection::vec(price, len), own)
    })
}

proptest! {
    #[test]
    fn shares_of_any_candidates_sum_to_one_and_none_is_zero(
        (demand, prices, own) in any_candidates(), weights in prop::collection::vec(-5.0f64..5.0, 9), kappa in 1e-6f64..1e6,
    ) {
        let names = PLAIN.map(str::to_owned);
        let model = ChoiceModel::of(&names, &weights, kappa);
        let shares = model.shares(&Candidates { demand, prices, own, attributes: Vec::new() });
        prop_assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-3, "{:?}", shares);
        prop_assert!(shares.iter().all(|share| *share > 0.0 && share.is_finite()), "{:?}", shares);
    }
}
