//! Off-policy evaluation against a simulator whose truth is known, and against an independent implementation.

use serde::Deserialize;

use super::*;
use crate::learn::bootstrap::{Interval, Random};

const DAY: i64 = 86_400_000;
const WINDOW: i64 = 14 * DAY;

const LOGGED: Weighing = Weighing {
    gamma: 1.0,
    explore: 0.3,
    epsilon: 0.02,
};

const TARGET: Weighing = Weighing {
    gamma: 2.0,
    explore: 0.1,
    epsilon: 0.02,
};

fn question(target: Weighing) -> Question {
    Question {
        target,
        window: WINDOW,
        places: 3,
        how: Resampling {
            seed: 1,
            resamples: 400,
        },
    }
}

/// A shop: users of different activity, who read the places of a name from above, and mostly stop once they bought.
struct Shop {
    random: Random,
    /// Days of the log.
    days: f64,
    /// Mean days until a purchase.
    delay: f64,
}

/// A name for a user, with what is true of it.
struct Context {
    candidates: Candidates,
    /// Probability that the user buys each candidate if it is read.
    rates: Vec<f64>,
}

impl Shop {
    fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            days: 28.0,
            delay: 4.0,
        }
    }

    fn shares(&mut self, len: usize, spread: f64) -> Vec<f64> {
        let powers: Vec<f64> = (0..len)
            .map(|_| (spread * self.random.normal()).exp())
            .collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|it| it / sum).collect()
    }

    fn context(&mut self, activity: f64) -> Context {
        let len = 4 + self.random.below(5);
        let mut shares = self.shares(len, 1.0);
        shares.sort_by(|a, b| b.total_cmp(a));
        let best = self.shares(len, 2.0);
        let own = self.shares(len, 1.0);
        let rate = |(share, own): (&f64, &f64)| (activity * (0.6 * share + 0.4 * own)).min(0.9);
        let listed = shares.iter().zip(best);
        let listed = listed.map(|(share, best)| Candidate {
            share: *share,
            best,
        });
        Context {
            rates: shares.iter().zip(&own).map(rate).collect(),
            candidates: Candidates {
                listed: listed.collect(),
                ..Candidates::default()
            },
        }
    }

    /// The SKUs that a policy shows, and their propensities.
    fn drawn(&mut self, policy: &Weighing, candidates: &Candidates) -> Vec<(usize, f64)> {
        let mut placing = Placing::new(policy, candidates);
        let mut places = Vec::new();
        for _ in 0..3 {
            let chances = placing.next();
            let mut at = self.random.uniform();
            let mut chosen = chances
                .iter()
                .position(|it| *it > 0.0)
                .expect("some are left");
            for (nth, chance) in chances.iter().enumerate().filter(|(_, it)| **it > 0.0) {
                chosen = nth;
                at -= chance;
                if at < 0.0 {
                    break;
                }
            }
            places.push((chosen, chances[chosen]));
            placing.place(chosen);
        }
        places
    }

    /// Names shown by the logged policy, of users with eight names each.
    fn log(&mut self, users: u32) -> Vec<ShownName> {
        let mut names = Vec::new();
        for user in 0..users {
            let activity = (0.5 * self.random.normal() - 1.0).exp();
            for _ in 0..8 {
                let context = self.context(activity);
                let drawn = self.drawn(&LOGGED, &context.candidates);
                let elapsed = (self.random.uniform() * self.days * DAY as f64) as i64;
                let mut reads = true;
                let mut place = |(candidate, propensity): (usize, f64)| {
                    let buys = reads && self.random.uniform() < context.rates[candidate];
                    let delay = -self.delay * (1.0 - self.random.uniform()).ln() * DAY as f64;
                    reads = reads && !(buys && self.random.uniform() < 0.7);
                    let delay = (delay as i64).max(1);
                    ShownPlace {
                        candidate,
                        propensity,
                        delay: (buys && delay <= elapsed).then_some(delay),
                    }
                };
                names.push(ShownName {
                    user,
                    elapsed,
                    logged: LOGGED,
                    places: drawn.into_iter().map(&mut place).collect(),
                    candidates: context.candidates,
                });
            }
        }
        names
    }

    /// Purchases per name in the window, if a policy shows the names.
    fn truth(&mut self, policy: &Weighing, users: u32) -> f64 {
        let within = 1.0 - (-(WINDOW as f64) / (self.delay * DAY as f64)).exp();
        let mut sum = 0.0;
        for _ in 0..users {
            let activity = (0.5 * self.random.normal() - 1.0).exp();
            for _ in 0..8 {
                let context = self.context(activity);
                let mut reads = 1.0;
                for (candidate, _) in self.drawn(policy, &context.candidates) {
                    let rate = context.rates[candidate];
                    sum += reads * rate * within;
                    reads *= 1.0 - 0.7 * rate;
                }
            }
        }
        sum / f64::from(users * 8)
    }
}

fn holds(interval: &Interval, truth: f64) -> bool {
    interval.low <= truth && truth <= interval.high
}

#[test]
fn the_truth_of_a_simulator_is_in_the_interval_for_93_of_100_seeds() {
    let truth = Shop::new(0).truth(&TARGET, 100_000);
    let logged = Shop::new(0).truth(&LOGGED, 100_000);
    assert!(truth > 1.05 * logged, "{truth} {logged}");
    let mut held = [0; 4];
    for seed in 1..=100 {
        let names = Shop::new(seed).log(600);
        let found = evaluate(&names, &question(TARGET)).expect("enough");
        let all = [
            (found.dr.value, truth),
            (found.snips.value, truth),
            (found.ips.value, truth),
            (found.logged, logged),
        ];
        for (held, (interval, truth)) in held.iter_mut().zip(all) {
            *held += usize::from(holds(&interval, truth));
        }
    }
    assert!(held.iter().all(|it| *it >= 93), "{held:?}");
}

/// Prints how often intervals hold the truth, by how far the policy is and how long the log: the figures of
/// docs/selection.md. Run it with `--ignored --nocapture`.
#[test]
#[ignore = "it measures, and takes minutes"]
#[expect(clippy::disallowed_macros, reason = "a person reads what it prints")]
fn intervals_by_what_the_weights_leave() {
    let mut seed = 1_000;
    for (gamma, explore) in [(1.0, 0.3), (2.0, 0.1), (3.0, 0.1), (4.0, 0.05)] {
        let target = Weighing {
            gamma,
            explore,
            epsilon: 0.02,
        };
        let truth = Shop::new(0).truth(&target, 100_000);
        for users in [100, 200, 400, 800] {
            let (mut given, mut held, mut rewards, mut names) = (0.0, [0.0; 3], 0.0, 0.0);
            for _ in 0..200 {
                seed += 1;
                let Ok(found) = evaluate(&Shop::new(seed).log(users), &question(target)) else {
                    continue;
                };
                given += 1.0;
                rewards += found.effective_rewards;
                names += found.places[2].effective;
                for (held, it) in held.iter_mut().zip([found.dr, found.snips, found.ips]) {
                    *held += f64::from(u8::from(holds(&it.value, truth)));
                }
            }
            let held = held.map(|it| it / given);
            let (rewards, names) = (rewards / given, names / given);
            println!(
                "gamma {gamma}, {users} users: {given} of 200 given, {rewards:.0} rewards, {names:.0} names, held {held:.3?}"
            );
        }
    }
}

/// A log with known propensities, and what `scripts/make-off-policy-reference` made of it.
#[derive(Deserialize)]
struct Reference {
    window: i64,
    places: usize,
    logged: Weighing,
    target: Weighing,
    wanted: Wanted,
    names: Vec<ReferenceName>,
}

#[derive(Deserialize)]
struct Wanted {
    logged: f64,
    ips: f64,
    snips: f64,
    dr: f64,
    exposures: f64,
    effective_rewards: f64,
    effective: Vec<f64>,
    weight_max: Vec<f64>,
    weight_mean: Vec<f64>,
    unsupported: Vec<f64>,
}

#[derive(Deserialize)]
struct ReferenceName {
    user: u32,
    elapsed: i64,
    listed: Vec<(f64, f64)>,
    others: Vec<(u32, f64)>,
    places: Vec<(usize, f64, Option<i64>)>,
}

fn reference() -> (Reference, Vec<ShownName>) {
    let reference: Reference =
        serde_json::from_str(include_str!("reference.json")).expect("a reference");
    let name = |it: &ReferenceName| {
        let listed = it.listed.iter();
        let places = it.places.iter();
        ShownName {
            user: it.user,
            elapsed: it.elapsed,
            logged: reference.logged,
            candidates: Candidates {
                listed: listed
                    .map(|(share, best)| Candidate {
                        share: *share,
                        best: *best,
                    })
                    .collect(),
                others: it.others.clone(),
            },
            places: places
                .map(|(candidate, propensity, delay)| ShownPlace {
                    candidate: *candidate,
                    propensity: *propensity,
                    delay: *delay,
                })
                .collect(),
        }
    };
    let names = reference.names.iter().map(name).collect();
    (reference, names)
}

#[test]
fn all_estimates_are_those_of_an_independent_implementation() {
    let (reference, names) = reference();
    let question = Question {
        target: reference.target,
        window: reference.window,
        places: reference.places,
        how: Resampling::default(),
    };
    let found = evaluate(&names, &question).expect("enough");
    let of_place = |of: fn(&PlaceFound) -> f64| found.places.iter().map(of).collect::<Vec<f64>>();
    let Wanted {
        logged,
        ips,
        snips,
        dr,
        exposures,
        effective_rewards,
        effective,
        weight_max,
        weight_mean,
        unsupported,
    } = reference.wanted;
    let alone = [
        (found.logged.mean, logged),
        (found.ips.value.mean, ips),
        (found.snips.value.mean, snips),
        (found.dr.value.mean, dr),
        (found.dr.difference.mean, dr - logged),
        (found.exposures, exposures),
        (found.effective_rewards, effective_rewards),
    ];
    let by_place = [
        (of_place(|it| it.effective), effective),
        (of_place(|it| it.weight_max), weight_max),
        (of_place(|it| it.weight_mean), weight_mean),
        (of_place(|it| it.unsupported), unsupported),
    ];
    for (found, wanted) in &by_place {
        assert_eq!(found.len(), wanted.len());
    }
    let by_place = by_place.into_iter().flat_map(|(a, b)| a.into_iter().zip(b));
    for (nth, (found, wanted)) in alone.into_iter().chain(by_place).enumerate() {
        assert!((found - wanted).abs() <= 1e-9, "{nth}: {found} {wanted}");
    }
}

#[test]
fn the_logged_policy_is_worth_what_it_earned_whatever_the_estimate() {
    let names = Shop::new(5).log(200);
    let found = evaluate(&names, &question(LOGGED)).expect("enough");
    for estimate in [found.ips, found.snips, found.dr] {
        assert!((estimate.value.mean - found.logged.mean).abs() < 0.01);
    }
    assert!(found.ips.difference.mean.abs() < 1e-12);
    assert!(found.snips.difference.high.abs() < 1e-12);
    for place in &found.places {
        assert!((place.effective - found.exposures).abs() > 0.0);
        assert!((place.weight_max - 1.0).abs() < 1e-9);
        assert_eq!(place.unsupported, 0.0);
    }
}

#[test]
fn late_purchases_do_not_bias_a_young_list() {
    // Purchases come ten days late on average, and the log is as long as the window and one day.
    let shop = |seed| Shop {
        days: 15.0,
        delay: 10.0,
        ..Shop::new(seed)
    };
    let truth = shop(0).truth(&TARGET, 100_000);
    let logged = shop(0).truth(&LOGGED, 100_000);
    let (mut of_target, mut of_logged, mut naive) = (0.0, 0.0, 0.0);
    let (seeds, users) = (20, 600);
    for seed in 1..=seeds {
        let names = shop(seed).log(users);
        let found = evaluate(&names, &question(TARGET)).expect("enough");
        of_target += found.dr.value.mean / seeds as f64;
        of_logged += found.logged.mean / seeds as f64;
        naive += found.rewards as f64 / found.names as f64 / seeds as f64;
    }
    assert!(
        (of_target / truth - 1.0).abs() < 0.02,
        "{of_target} {truth}"
    );
    assert!(
        (of_logged / logged - 1.0).abs() < 0.02,
        "{of_logged} {logged}"
    );
    assert!(naive < 0.7 * logged, "{naive} {logged}");
}

#[test]
fn what_cannot_be_judged_is_refused_with_the_reason() {
    let names = Shop::new(3).log(150);
    let refused =
        |names: &[ShownName], target| evaluate(names, &question(target)).expect_err("refused");
    assert!(matches!(
        refused(&names[..80], TARGET),
        Refusal::Users { found: 10 }
    ));
    assert!(matches!(refused(&[], TARGET), Refusal::Users { found: 0 }));
    let far = Weighing {
        gamma: 60.0,
        explore: 0.0,
        epsilon: 0.02,
    };
    let error = refused(&names, far);
    assert!(matches!(error, Refusal::Names { enough: 0, .. }), "{error}");
    for bad in [0.0, -0.5, 1.5, f64::NAN] {
        let mut names = names.clone();
        names[7].places[1].propensity = bad;
        let error = refused(&names, TARGET);
        assert!(matches!(error, Refusal::Propensity { .. }), "{error}");
    }
    let mut other = names.clone();
    other.iter_mut().for_each(|name| name.logged.gamma = 3.0);
    assert!(matches!(refused(&other, TARGET), Refusal::Different { .. }));
    let mut young = names.clone();
    young.iter_mut().for_each(|name| name.elapsed /= 4);
    let Refusal::Young {
        old: 0, longest, ..
    } = refused(&young, TARGET)
    else {
        panic!("it is too young");
    };
    let shorter = Question {
        window: (longest * DAY as f64) as i64,
        ..question(LOGGED)
    };
    evaluate(&young, &shorter).expect("what is advised is enough");
    let mut unsold = names;
    let places = unsold.iter_mut().flat_map(|name| &mut name.places);
    places.for_each(|place| place.delay = None);
    assert!(matches!(
        refused(&unsold, LOGGED),
        Refusal::Rewards { bought: 0, .. }
    ));
}

#[test]
fn what_the_logged_policy_could_not_show_is_told() {
    let names = Shop::new(3).log(300);
    let wider = Weighing {
        gamma: 0.5,
        explore: 0.0,
        epsilon: 0.0,
    };
    let found = evaluate(&names, &question(wider)).expect("enough");
    let place = found.places[0];
    assert!(place.unsupported > 0.005, "{}", place.unsupported);
    assert!((place.weight_mean + place.unsupported - 1.0).abs() < 0.03);
}
