//! Speed of pure code on the log in memory: the log alone, then with decoding, then with the fold.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use nearshore_core::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use nearshore_core::list::select;
use nearshore_core::ports::log::{Batch, Delivery, Log};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::demand::Demand;
use nearshore_core::shop::rules::Table;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{self, Accepted, Limits, Source, UserId};
use nearshore_core::user::plan::{PlanContext, plan};
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::LoadedUser;
use nearshore_core::user::trigger::Policy;
use nearshore_testkit::log::MemoryCluster;

use crate::load::{Load, catalogue};
use crate::{Options, machine, median};

const THREADS: usize = 2;
const PARTITIONS: usize = 8;
/// Records that a member gathers, as the shipped loop does.
const GATHER: usize = 4_000;

/// How much is done with each batch.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Depth {
    Log,
    Decode,
    Fold,
}

/// Prints the rates of the three depths: medians of interleaved rounds.
pub fn run(options: &Options) {
    let load = Load {
        events: options.number("memory-events", 1_000_000),
        users: 20_000,
        visit: options.number("visit", 20),
    };
    let rounds = options.number("rounds", 5);
    let snapshot = snapshot();
    let cluster = filled(load);
    let mut rates: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    println!(
        "in process: {load:?}, {THREADS} threads, {rounds} rounds; {}",
        machine()
    );
    for round in 0..rounds {
        for (nth, depth) in [Depth::Log, Depth::Decode, Depth::Fold]
            .into_iter()
            .enumerate()
        {
            let group = format!("{depth:?}-{round}");
            let took = drained(&cluster, (&group, depth), &snapshot);
            let rate = load.events as f64 / took.as_secs_f64();
            rates.entry(nth).or_default().push(rate);
        }
    }
    let log = median(rates[&0].clone());
    for (nth, what) in ["the log alone", "log + decode", "log + decode + fold"]
        .iter()
        .enumerate()
    {
        let rate = median(rates[&nth].clone());
        println!(
            "  {what:<20} {rate:>10.0} events/s  {:>5.1} % of the log",
            100.0 * rate / log
        );
    }
    println!("  {}", machine());
}

fn filled(load: Load) -> MemoryCluster {
    let cluster = MemoryCluster::new(5);
    cluster.create_topic("events", PARTITIONS);
    cluster.set_batch_max(1_000);
    cluster.set_time(Timestamp(1_790_000_000_000));
    for record in load.records(&Arc::from("events")) {
        cluster.produce(record);
    }
    cluster
}

/// The snapshot of [`catalogue`], without rules.
pub fn snapshot() -> Arc<Snapshot> {
    let sku = |record: nearshore_core::ports::log::Outgoing| {
        let record = nearshore_core::user::record::Record {
            position: "0/catalog/0:1".parse().expect("valid"),
            time: Timestamp(1_790_000_000_000),
            key: record.key,
            value: record.value,
            headers: Vec::new(),
        };
        let (_, sku) = event::decode_sku(&record, &Limits::default()).expect("valid");
        sku.expect("not gone")
    };
    let all = catalogue(&Arc::from("catalog"));
    let known = Arc::new(Catalogue::load(all.into_iter().map(sku).collect()));
    let rules = Table::compile(&[], &[], &known);
    let demand = Demand::build(
        [],
        &known,
        &Default::default(),
        Timestamp(1_790_000_000_000),
    );
    let parts = SnapshotParts {
        catalogue: known,
        rules: Arc::new(rules),
        demand: Arc::new(demand),
        merchant: Arc::default(),
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: 10,
        selection: &select::Policy::default(),
    };
    Arc::new(serving_snapshot(parts, fallbacks))
}

/// Time until all members of a new group have read to the end.
fn drained(
    cluster: &MemoryCluster,
    (group, depth): (&str, Depth),
    snapshot: &Arc<Snapshot>,
) -> Duration {
    let members: Vec<_> = (0..THREADS)
        .map(|_| cluster.join(group, &["events"]))
        .collect();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for mut member in members {
            scope.spawn(move || {
                let mut loaded = HashMap::new();
                loop {
                    let batches = gather(&mut member);
                    if batches.is_empty() {
                        // A member that leaves would move its partitions to the others.
                        return std::mem::forget(member);
                    }
                    work(&batches, depth, (&mut loaded, snapshot));
                }
            });
        }
    });
    start.elapsed()
}

fn gather(member: &mut impl Log) -> Vec<Batch> {
    let (mut batches, mut count) = (Vec::<Batch>::new(), 0);
    while count < GATHER {
        match member.next().now_or_never() {
            Some(Ok(Delivery::Batch(batch))) => {
                count += batch.records.len();
                match batches
                    .iter_mut()
                    .find(|it| it.partition == batch.partition)
                {
                    Some(known) => known.records.extend(batch.records),
                    None => batches.push(batch),
                }
            }
            Some(Ok(_)) => {}
            _ => break,
        }
    }
    batches
}

/// Handles batches as the member does: decoded, grouped by user, one plan per user.
fn work(
    batches: &[Batch],
    depth: Depth,
    (loaded, snapshot): (&mut HashMap<UserId, LoadedUser>, &Snapshot),
) {
    if depth == Depth::Log {
        std::hint::black_box(batches);
        return;
    }
    let limits = Limits::default();
    let mut users: BTreeMap<UserId, Vec<Accepted>> = BTreeMap::new();
    for record in batches.iter().flat_map(|batch| &batch.records) {
        let accepted = event::decode_user(record, Source::Events, &limits).expect("all are good");
        users
            .entry(accepted.user.clone())
            .or_default()
            .push(accepted);
    }
    if depth == Depth::Decode {
        std::hint::black_box(&users);
        return;
    }
    let policy = Policy::default();
    let complete = BTreeMap::new();
    let book = PlanContext {
        snapshot,
        policy: &policy,
        ns: "main",
        window: 50,
        triggers: true,
        history_before: Timestamp(0),
        units_max: 20,
        complete_since: &complete,
    };
    for (user, records) in users {
        let known = loaded.remove(&user).unwrap_or_default();
        let mut plan = plan(known, &records, None, &book);
        plan.held.ver += 1;
        std::hint::black_box(&plan.counted);
        loaded.insert(user, plan.held);
    }
}
