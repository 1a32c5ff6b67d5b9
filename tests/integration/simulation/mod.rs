//! Ten thousand seeded histories of ingest and generate, on doubles of log, store and model.
//!
//! A history has random events, profiles and erases; crashes between any two steps; lost, unanswered and late calls;
//! members that stop and wake after a rebalance; wall clocks an hour apart; slow generation. After each one the facts
//! are compared with a single-threaded reading of the log. `NEARSHORE_SEED=N` replays one history, `NEARSHORE_SEEDS=N`
//! sets how many.

mod calls;
pub mod check;
mod gate;
mod history;

use nearshore_core::ports::store::Store;
use nearshore_redis::RedisStore;
use nearshore_testkit::log::Flaws as LogFlaws;
use nearshore_testkit::store::{Flaws as StoreFlaws, MemoryStore};

use crate::harness::{ANSWER_MAX, fresh, variable};
use history::{Doubles, run, run_erasing};

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    match number("NEARSHORE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("NEARSHORE_SEEDS").unwrap_or(default),
    }
}

/// The failure with the lowest seed among the first of each half. Two threads, because CI has two cores.
fn first_failure<S: Store>(
    seeds: std::ops::Range<u64>,
    doubles: impl Fn(u64) -> Doubles<S> + Sync,
) -> Option<(u64, String)> {
    let half = |odd: u64| {
        let (seeds, doubles) = (seeds.clone(), &doubles);
        move || {
            seeds
                .filter(|seed| seed % 2 == odd)
                .find_map(|seed| Some((seed, run(seed, doubles(seed)).err()?)))
        }
    };
    let (even, odd) = std::thread::scope(|scope| {
        let even = scope.spawn(half(0));
        let odd = scope.spawn(half(1));
        (
            even.join().expect("no panic"),
            odd.join().expect("no panic"),
        )
    });
    even.into_iter().chain(odd).min()
}

/// Doubles in memory, broken or not.
fn in_memory(log: LogFlaws, flaws: StoreFlaws) -> impl Fn(u64) -> Doubles<MemoryStore> + Sync {
    move |seed| Doubles {
        log,
        store: MemoryStore::broken(flaws),
        ns: format!("sim-{seed}"),
        losing: None,
    }
}

/// The same with a store that sometimes loses its last writes.
fn losing(flaws: StoreFlaws) -> impl Fn(u64) -> Doubles<MemoryStore> + Sync {
    let doubles = in_memory(LogFlaws::default(), flaws);
    move |seed| {
        let doubles = doubles(seed);
        Doubles {
            losing: Some(doubles.store.clone()),
            ..doubles
        }
    }
}

/// Runs these histories and panics with the first failure.
fn all_pass(seeds: std::ops::Range<u64>, doubles: impl Fn(u64) -> Doubles<MemoryStore> + Sync) {
    let start = std::time::Instant::now();
    if let Some((seed, what)) = first_failure(seeds.clone(), doubles) {
        panic!("NEARSHORE_SEED={seed}: {what}");
    }
    eprintln!("simulation: seeds {seeds:?} in {:?}", start.elapsed());
}

#[test]
fn every_history_ends_with_nothing_lost_stale_or_doubled() {
    all_pass(
        seeds(10_000),
        in_memory(LogFlaws::default(), StoreFlaws::default()),
    );
}

#[test]
fn every_history_survives_a_store_that_loses_its_last_writes() {
    all_pass(seeds(5_000), losing(StoreFlaws::default()));
}

/// Histories whose first user is erased at each step in turn; two threads, each with every second step.
#[test]
fn an_erase_at_any_step_leaves_nothing_from_before_it() {
    let run_at = |seed: u64, step: usize| {
        let doubles = Doubles {
            log: LogFlaws::default(),
            store: MemoryStore::default(),
            ns: format!("erase-{seed}"),
            losing: None,
        };
        run_erasing(seed, doubles, Some(step))
    };
    let half = |odd: usize| {
        move || {
            // Two of these seeds fill two namespaces.
            let all = (100..108_u64).flat_map(|seed| (1..=400).map(move |step| (seed, step)));
            for (seed, step) in all.filter(|(_, step)| step % 2 == odd) {
                if let Err(what) = run_at(seed, step) {
                    return Some(format!("seed {seed}, erased at step {step}: {what}"));
                }
            }
            None
        }
    };
    let start = std::time::Instant::now();
    let failure = std::thread::scope(|scope| {
        let threads = [scope.spawn(half(0)), scope.spawn(half(1))];
        threads.map(|thread| thread.join().expect("no panic"))
    });
    assert_eq!(failure, [None, None]);
    eprintln!("simulation: 3,200 erases in {:?}", start.elapsed());
}

/// A broken double must be noticed within so many histories.
const NOTICED_WITHIN: u64 = 1_000;

/// Runs histories on a broken double until one fails.
fn noticed(doubles: impl Fn(u64) -> Doubles<MemoryStore> + Sync) {
    let failure = first_failure(0..NOTICED_WITHIN, doubles);
    let (seed, what) = failure.expect("the broken double was not noticed");
    eprintln!("noticed at seed {seed}: {what}");
}

#[test]
fn a_late_write_from_before_a_loss_is_noticed() {
    noticed(losing(StoreFlaws {
        blind_lineage: true,
        ..StoreFlaws::default()
    }));
}

#[test]
fn a_checkpoint_that_outlives_its_writes_is_noticed() {
    noticed(losing(StoreFlaws {
        stray_checkpoint: true,
        ..StoreFlaws::default()
    }));
}

#[test]
fn counts_without_a_fence_are_noticed() {
    noticed(in_memory(
        LogFlaws::default(),
        StoreFlaws {
            no_fence: true,
            ..StoreFlaws::default()
        },
    ));
}

#[test]
fn a_blind_write_of_the_state_is_noticed() {
    noticed(in_memory(
        LogFlaws::default(),
        StoreFlaws {
            blind_write: true,
            ..StoreFlaws::default()
        },
    ));
}

#[test]
fn a_missing_tombstone_check_is_noticed() {
    noticed(in_memory(
        LogFlaws::default(),
        StoreFlaws {
            no_tombstone: true,
            ..StoreFlaws::default()
        },
    ));
}

/// No checkpoints: with them a commit that is too early has no effect, because the next owner finds the store behind it
/// and reads again.
const NO_CHECKPOINTS: StoreFlaws = StoreFlaws {
    no_fence: false,
    blind_write: false,
    no_tombstone: false,
    blind_publish: false,
    blind_lineage: false,
    stray_checkpoint: false,
    blind_checkpoint: true,
};

#[test]
fn a_commit_too_early_is_noticed() {
    let flaws = LogFlaws {
        commit_early: true,
        ..LogFlaws::default()
    };
    noticed(in_memory(flaws, NO_CHECKPOINTS));
}

#[test]
fn work_forgotten_on_revoke_is_noticed() {
    let flaws = LogFlaws {
        forget_in_hand: true,
        ..LogFlaws::default()
    };
    noticed(in_memory(flaws, NO_CHECKPOINTS));
}

#[test]
fn fifty_histories_end_well_on_a_real_redis() {
    let url = format!("redis://{}", variable("NEARSHORE_TEST_REDIS"));
    let prefix = fresh("sim");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    for seed in seeds(50) {
        let settings = nearshore_redis::RedisSettings {
            url: url.clone(),
            response_max: ANSWER_MAX,
            connect_max: ANSWER_MAX,
            ..Default::default()
        };
        let store = RedisStore::new(settings).expect("valid settings");
        let marked = runtime.block_on(store.check_layout());
        marked.expect("a Redis of this layout");
        let doubles = Doubles {
            log: LogFlaws::default(),
            store,
            ns: format!("{prefix}-{seed}"),
            losing: None,
        };
        // Answers come from another thread: the hand-made scheduler waits for them by polling.
        let _inside = runtime.enter();
        if let Err(what) = run(seed, doubles) {
            panic!("NEARSHORE_SEED={seed}: {what}");
        }
    }
}
