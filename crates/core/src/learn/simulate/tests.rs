//! Runs of the simulation: the same world for every way, and what a summary says.

use super::*;
use crate::list::select::Policy;

fn ours() -> Way {
    Way::Ours {
        policy: Policy::default(),
    }
}

fn world(name: &str) -> World {
    let all = World::all().into_iter();
    all.map(World::small)
        .find(|world| world.name == name)
        .expect("a world of this name")
}

#[test]
fn a_run_is_a_function_of_world_way_and_seed() {
    let ways: Vec<Way> = [ours()].into_iter().chain(Way::others()).collect();
    for way in &ways {
        let first = run(&world("all"), way, 1);
        assert_eq!(run(&world("all"), way, 1), first);
        assert_ne!(run(&world("all"), way, 2), first);
    }
}

#[test]
fn every_way_meets_the_same_world() {
    for world in World::all() {
        // With habits, the best list depends on what the user bought before, which the lists decide too.
        let world = World {
            habit: 0.0,
            ..world.small()
        };
        let best = run(&world, &ours(), 3).value().1;
        for way in Way::others() {
            let run = run(&world, &way, 3);
            assert_eq!(run.value().1, best, "{} by {}", world.name, way.name());
            assert!(run.loss() >= 0.0);
        }
    }
}

#[test]
fn choosing_at_random_loses_most_and_a_certain_order_least_where_nothing_changes() {
    let loss = |gamma: f64, explore: f64| {
        let policy = Policy {
            gamma,
            explore,
            epsilon: 0.0,
            ..Policy::default()
        };
        let way = Way::Ours { policy };
        let runs: Vec<f64> = (0..4)
            .map(|seed| run(&world("calm"), &way, seed).loss())
            .collect();
        runs.iter().sum::<f64>()
    };
    let (random, drawn, certain) = (loss(1e-9, 0.0), loss(2.0, 0.0), loss(1000.0, 0.0));
    assert!(
        random > 2.0 * drawn && drawn > certain,
        "{random} {drawn} {certain}"
    );
}

#[test]
fn good_launches_are_shown_more_often_the_longer_they_are_there() {
    let world = World {
        launch: 0.2,
        launch_good: 1.0,
        ..world("launches")
    };
    let runs = vec![
        (0..6)
            .map(|seed| run(&world, &ours(), seed))
            .collect::<Vec<_>>(),
    ];
    let summary = &summarise(&[ours()], &runs, 0)[0];
    let [first, later] = summary.launches;
    assert!(first.mean > 0.0 && later.mean > first.mean, "{summary:?}");
    let none = run(&self::world("calm"), &ours(), 1);
    assert_eq!(none.launches.shown(0), None);
}

#[test]
fn a_summary_compares_ways_seed_by_seed() {
    let ways = [ours(), Way::EpsilonGreedy];
    let runs: Vec<Vec<Run>> = ways
        .iter()
        .map(|way| (0..5).map(|seed| run(&world("calm"), way, seed)).collect())
        .collect();
    let found = summarise(&ways, &runs, 0);
    assert_eq!(
        (found[0].difference.mean, found[0].difference.high),
        (0.0, 0.0)
    );
    let mean = |of: &[Run]| of.iter().map(Run::loss).sum::<f64>() / 5.0;
    let difference = mean(&runs[1]) - mean(&runs[0]);
    assert!((found[1].difference.mean - difference).abs() < 1e-9);
    assert_eq!(found[0].weeks.len(), 4);
    let weeks = found[0].weeks.iter().sum::<f64>() / 4.0;
    assert!((weeks - found[0].loss.mean).abs() < 1e-6, "{weeks}");
}
