//! Tests of training on shops that are made up, of which it is known what a head should find.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::learn::gate::GateOptions;
use crate::learn::measures::{log_sum_exp, nats};
use crate::learn::model::{ModelFit, ModelSample, fit_model};
use crate::names::head::BoundHead;

const WIDTH: usize = 12;
const PRODUCTS: usize = 40;

/// A shop whose users like products by `taste` times what hidden states of users and names have in common.
struct World {
    names: Vec<Vec<f32>>,
    cases: Vec<HeadCase>,
}

fn world(cases: usize, taste: f32, seed: u64) -> World {
    let mut random = Random::new(seed);
    let state = |random: &mut Random| -> Vec<f32> {
        // One number is far larger than the others, as in language models.
        let number = |nth| if nth == 5 { 300.0 } else { 3.0 };
        (0..WIDTH)
            .map(|nth| number(nth) * (1.0 + random.normal() as f32))
            .collect()
    };
    let names: Vec<Vec<f32>> = (0..PRODUCTS).map(|_| state(&mut random)).collect();
    let standard = |x: f32| x / 3.0 - 1.0;
    let one = |nth: usize| {
        let hidden = state(&mut random);
        let offset: Vec<f32> = (0..PRODUCTS).map(|_| random.normal() as f32).collect();
        let liked = |name: &Vec<f32>| {
            let pairs = [(0, 1), (1, 0), (2, 3)];
            let common = pairs.map(|(a, b)| standard(hidden[a]) * standard(name[b]));
            taste * common.iter().sum::<f32>()
        };
        let scores: Vec<f32> = names
            .iter()
            .zip(&offset)
            .map(|(name, x)| x + liked(name))
            .collect();
        let total = log_sum_exp(&scores);
        let mut targets = std::collections::BTreeSet::new();
        while targets.len() < 3 {
            let mut left = random.uniform();
            let bought = scores.iter().position(|score| {
                left -= (f64::from(*score) - total).exp();
                left <= 0.0
            });
            targets.insert(bought.unwrap_or(0) as u32);
        }
        HeadCase {
            hidden,
            products: (0..PRODUCTS as u32).collect(),
            offset,
            targets: targets.into_iter().collect(),
            is_tune: nth.is_multiple_of(5),
        }
    };
    let cases = (0..cases).map(one).collect();
    World { names, cases }
}

fn options() -> HeadOptions {
    HeadOptions {
        rank: 4,
        rate: 0.01,
        ..HeadOptions::default()
    }
}

/// The head of a world that has read all names but the last `unread`.
fn head(world: &World, unread: usize) -> (BoundHead, HeadFit) {
    let fitted = fit(&world.names, &world.cases, &options()).expect("trained");
    let how = fitted.fit.clone();
    let text = |nth: usize| format!("product {nth}");
    let read = world.names[..PRODUCTS - unread].iter().enumerate();
    let read = read.map(|(nth, hidden)| (text(nth), hidden.clone()));
    let head = Arc::new(fitted.head(Origin::default(), read));
    (BoundHead::new(&head, (0..PRODUCTS).map(text)), how)
}

/// Gain of a head on other users, in nats.
fn gain(bound: &BoundHead, cases: &[HeadCase], read: &BTreeMap<String, Vec<f32>>) -> f64 {
    let of = |case: &HeadCase| {
        let values = bound.values(&case.hidden, read).expect("same width");
        let with: Vec<f32> = case
            .offset
            .iter()
            .zip(&*values)
            .map(|(a, b)| a + b)
            .collect();
        nats(&case.offset, &case.targets).expect("targets")
            - nats(&with, &case.targets).expect("targets")
    };
    cases.iter().map(of).sum::<f64>() / cases.len() as f64
}

/// What the gate makes of heads that are cross-fitted in three folds.
fn gated(world: &World) -> ModelFit {
    let mut samples = Vec::new();
    for fold in 0..3 {
        let others = world
            .cases
            .iter()
            .enumerate()
            .filter(|(nth, _)| nth % 3 != fold);
        let others = World {
            names: world.names.clone(),
            cases: others.map(|(_, case)| case.clone()).collect(),
        };
        let (bound, _) = head(&others, 0);
        for (nth, case) in world
            .cases
            .iter()
            .enumerate()
            .filter(|(nth, _)| nth % 3 == fold)
        {
            let values = bound
                .values(&case.hidden, &BTreeMap::new())
                .expect("same width");
            samples.push(ModelSample {
                user: nth as u32,
                fold,
                offset: case.offset.clone(),
                model: values.to_vec(),
                targets: case.targets.clone(),
            });
        }
    }
    let options = GateOptions {
        folds: 3,
        users_min: 30,
        seed: 1,
    };
    fit_model(&samples, &options)
}

#[test]
fn a_taste_that_hidden_states_show_is_recovered_on_other_users() {
    let world = world(1_500, 0.8, 11);
    let (bound, fit) = head(
        &World {
            names: world.names.clone(),
            cases: world.cases[..1_000].to_vec(),
        },
        0,
    );
    let best = {
        // What the shop's own rule would gain.
        let standard = |x: f32| x / 3.0 - 1.0;
        let of = |case: &HeadCase| {
            let with: Vec<f32> = world
                .names
                .iter()
                .zip(&case.offset)
                .map(|(name, x)| {
                    let pairs = [(0, 1), (1, 0), (2, 3)];
                    x + 0.8
                        * pairs
                            .map(|(a, b)| standard(case.hidden[a]) * standard(name[b]))
                            .iter()
                            .sum::<f32>()
                })
                .collect();
            nats(&case.offset, &case.targets).expect("targets")
                - nats(&with, &case.targets).expect("targets")
        };
        world.cases[1_000..].iter().map(of).sum::<f64>() / 500.0
    };
    let found = gain(&bound, &world.cases[1_000..], &BTreeMap::new());
    assert!(found > 0.7 * best, "gain {found} of {best}: {fit:?}");
    assert!(fit.epochs > 0 && fit.tune_nats > 0.0, "{fit:?}");
}

#[test]
fn products_that_no_case_had_are_scored_by_their_names() {
    let mut world = world(1_500, 0.8, 12);
    let test = world.cases.split_off(1_000);
    // The last ten products are new: nobody could buy them while the head was trained.
    let new = PRODUCTS - 10;
    for case in &mut world.cases {
        case.products.truncate(new);
        case.offset.truncate(new);
        case.targets.retain(|it| (*it as usize) < new);
    }
    world.cases.retain(|case| !case.targets.is_empty());
    let (bound, fit) = head(&world, 10);
    assert_eq!(bound.lacking().len(), 10);
    let of_new = |case: &HeadCase| HeadCase {
        targets: case
            .targets
            .iter()
            .copied()
            .filter(|it| *it as usize >= new)
            .collect(),
        ..case.clone()
    };
    let test: Vec<HeadCase> = test
        .iter()
        .map(of_new)
        .filter(|case| !case.targets.is_empty())
        .collect();
    let unread = gain(&bound, &test, &BTreeMap::new());
    let read = bound.lacking().iter().map(|(nth, name)| {
        let key = bound
            .head()
            .key(&world.names[*nth as usize])
            .expect("same width");
        (name.clone(), key)
    });
    let read = gain(&bound, &test, &read.collect());
    assert!(
        read > 0.1 && read > unread + 0.1,
        "read {read}, not read {unread}: {fit:?}"
    );
}

#[test]
fn hidden_states_that_say_nothing_get_no_weight() {
    for seed in 1..4 {
        let fit = gated(&world(450, 0.0, seed));
        assert_eq!(fit.weight(), None, "seed {seed}: {fit:?}");
        assert!(!fit.reason.is_empty());
    }
    let fit = gated(&world(450, 0.8, 1));
    assert!(fit.weight().is_some_and(|weight| weight > 0.3), "{fit:?}");
}

#[test]
fn training_is_equal_by_its_seed_and_never_worse_than_none_on_tune_cases() {
    let world = world(300, 0.0, 5);
    let bytes = |seed| {
        let options = HeadOptions { seed, ..options() };
        let fitted = fit(&world.names, &world.cases, &options).expect("trained");
        assert!(fitted.fit.tune_nats >= 0.0);
        fitted.head(Origin::default(), std::iter::empty()).encode()
    };
    assert_eq!(bytes(1), bytes(1));
    assert_ne!(bytes(1), bytes(2));
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let World { names, cases } = world(200, 0.5, 6);
    let error = |names: &[Vec<f32>], cases: &[HeadCase], options: &HeadOptions| {
        fit(names, cases, options).expect_err("refused").to_string()
    };
    let without = |is_tune: bool| -> Vec<HeadCase> {
        cases
            .iter()
            .filter(|case| case.is_tune != is_tune)
            .cloned()
            .collect()
    };
    let changed = |change: fn(&mut HeadCase)| {
        let mut cases = cases.clone();
        change(&mut cases[7]);
        cases
    };
    let usual = options();
    let large = HeadOptions {
        rate: 1e200,
        ..options()
    };
    for (found, expected) in [
        (error(&names, &cases[..60], &usual), "only 48 cases"),
        (error(&names, &without(false), &usual), "only 0 cases"),
        (error(&names, &without(true), &usual), "only 0 tune cases"),
        (
            error(&names, &changed(|it| it.hidden[3] = f32::NAN), &usual),
            "case 7: its hidden state is not finite",
        ),
        (
            error(&names, &changed(|it| it.offset[3] = f32::INFINITY), &usual),
            "case 7: the mixture's score",
        ),
        (
            error(&names, &changed(|it| it.targets.clear()), &usual),
            "case 7: nothing that may be listed",
        ),
        (
            error(&names, &changed(|it| it.hidden.truncate(3)), &usual),
            "case 7: its hidden state is not as wide",
        ),
        (
            error(&names[..9], &cases, &usual),
            "its products are not those of the catalogue",
        ),
        (error(&names, &cases, &large), "the loss is"),
    ] {
        assert!(found.contains(expected), "{found}, not {expected}");
    }
}
