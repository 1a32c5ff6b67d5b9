//! Estimates what a backfill would need: [`estimate`].
//!
//! Invariant: nothing is written, no group's position changes, and each value says how it was estimated. Compaction and
//! transactions leave gaps in offsets, so the number of records is an upper bound.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::plan::{BackfillOrder, kept, span};
use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::generate::{UserCost, group};
use crate::ops::sweep::demand_read_delay;
use nearshore_core::map::ReadAs;
use nearshore_core::ports::store::Namespaces;
use nearshore_core::queue::replay::{Moment, Plan, Since};
use nearshore_core::shop::arms::arms_for;
use nearshore_core::user::record::{Partition, Resume, Timestamp};
use nearshore_kafka::{Admin, probe};
use nearshore_redis::RedisStore;

/// Most records read to count users.
const COUNTED: u64 = 200_000;
/// Most users whose keys are measured.
const MEASURED: usize = 200;
/// One of this many shards of the counts is measured.
const SHARDS_STEP: usize = 16;
/// Records per second, assumed where no backfill was measured yet.
const RATE: f64 = 5_000.0;
/// Bytes of a user in Redis (state, profile and list), assumed where none can be measured.
const USER_BYTES: u64 = 6_000;

/// Rates that the operator gives; a rate that is not given is measured or assumed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EstimateInput {
    /// Lists per second of all generate processes.
    pub lists_per_second: Option<f64>,
    /// Records per second of all backfill processes.
    pub records_per_second: Option<f64>,
}

/// An estimated value, and how it was estimated.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Estimated<T> {
    /// The value.
    pub value: T,
    /// How it was estimated.
    pub how: String,
}

fn estimated<T>(value: T, how: impl Into<String>) -> Estimated<T> {
    Estimated {
        value,
        how: how.into(),
    }
}

/// What a backfill would need.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Estimate {
    /// Records to fold, at most.
    pub records: Estimated<u64>,
    /// Users with events among these records.
    pub users: Estimated<u64>,
    /// Hours of model time, summed over all generate processes; `None` where no cost was measured yet.
    pub model_hours: Option<Estimated<f64>>,
    /// Bytes that Redis needs in addition.
    pub redis_bytes: Estimated<u64>,
    /// Seconds of folding.
    pub fold_seconds: Estimated<f64>,
    /// When all lists would be made, if it began now.
    pub finished_at: Option<Estimated<String>>,
}

/// Estimates from the log, the store and the measured costs.
pub async fn estimate(
    config: &Config,
    store: &RedisStore,
    order: &BackfillOrder,
    input: EstimateInput,
) -> anyhow::Result<Estimate> {
    let from = order.from.as_deref().unwrap_or("earliest");
    let to = order.to.as_deref().unwrap_or("latest");
    let now = wall_clock();
    let (starts, ends) = span(config, from, to, now).await?;
    let mut profiles = 0;
    for topic in config.topics.read_as(ReadAs::Profiles) {
        let kept = kept(config, &topic).await?;
        let each = kept
            .iter()
            .map(|it| u64::try_from(it.end.0 - it.begin.0).unwrap_or(0));
        profiles += each.sum::<u64>();
    }
    let events = length(&starts, &ends);
    let records = estimated(
        events + profiles,
        format!(
            "{events} events and {profiles} profiles between offsets; fewer where compaction or transactions left gaps"
        ),
    );
    let users = users(config, &starts, &ends).await?;
    let redis_bytes = bytes(store, config, users.value).await?;
    let fold_seconds = fold_time(store, records.value, input).await?;
    let model_hours = model_time(config, store, users.value, input).await?;
    let finished_at = match &model_hours {
        Some(hours) => Some(end(config, now, &fold_seconds, hours, input).await?),
        None => None,
    };
    Ok(Estimate {
        records,
        users,
        model_hours,
        redis_bytes,
        fold_seconds,
        finished_at,
    })
}

/// Model hours of the lists: by the given rate, or by the cost that generate processes measured last for each arm;
/// `None` where a cost was not measured yet.
async fn model_time(
    config: &Config,
    store: &RedisStore,
    users: u64,
    input: EstimateInput,
) -> anyhow::Result<Option<Estimated<f64>>> {
    if let Some(rate) = input.lists_per_second.filter(|rate| *rate > 0.0) {
        let how = format!("{users} lists at {rate} per second, as given");
        return Ok(Some(estimated(users as f64 / rate / 3600.0, how)));
    }
    let stored = store.costs().await?;
    let read = |text: &String| serde_json::from_str::<UserCost>(text).ok();
    let measured: BTreeMap<&str, UserCost> = stored
        .iter()
        .filter_map(|(arm, text)| Some((arm.as_str(), read(text)?)))
        .collect();
    let arms = arms_for(&config.namespace, &config.arms);
    let (mut shares, mut seconds, mut sources) = (0.0, 0.0, Vec::new());
    for arm in arms.iter().filter(|arm| arm.share > 0) {
        // Another arm with the same model costs about the same.
        let same_model = || measured.values().find(|cost| cost.model == arm.model);
        let Some(cost) = measured.get(arm.id.as_str()).or_else(same_model) else {
            return Ok(None);
        };
        shares += f64::from(arm.share);
        seconds += f64::from(arm.share) * cost.seconds;
        let by_itself = measured.contains_key(arm.id.as_str());
        sources.push(format!(
            "{:.4} s per list of arm {}{}, measured at {} in batches of {:.1}",
            cost.seconds,
            arm.id,
            if by_itself {
                ""
            } else {
                " (from another arm with the same model)"
            },
            Moment(cost.at),
            cost.batch
        ));
    }
    if shares == 0.0 {
        return Ok(None);
    }
    let hours = users as f64 * seconds / shares / 3600.0;
    Ok(Some(estimated(
        hours,
        format!("{users} lists; {}", sources.join("; ")),
    )))
}

/// When all lists are made, if the model has nothing else to do.
async fn end(
    config: &Config,
    now: Timestamp,
    fold_seconds: &Estimated<f64>,
    model_hours: &Estimated<f64>,
    input: EstimateInput,
) -> anyhow::Result<Estimated<String>> {
    // A given rate is that of all generate processes together.
    let workers = match input.lists_per_second {
        Some(_) => 1,
        None => Admin::new(&config.kafka)?
            .members(&group(&config.kafka))
            .await?
            .max(1),
    };
    let wait = demand_read_delay(config.demand.every);
    let seconds =
        fold_seconds.value + wait.as_secs_f64() + model_hours.value * 3600.0 / workers as f64;
    let length = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let by = match input.lists_per_second {
        Some(_) => String::new(),
        None => format!(" by {workers} generate processes"),
    };
    let how = format!(
        "folding, {} s until the counts are read, then lists{by} whenever live leaves the model idle; later if live is busy",
        wait.as_secs()
    );
    Ok(estimated(Moment(now.after(length)).to_string(), how))
}

fn length(starts: &Since, ends: &Since) -> u64 {
    let of = |(partition, start): (&Partition, &Resume)| {
        let end = ends.get(partition).map_or(start.0, |end| end.0);
        u64::try_from(end - start.0).unwrap_or(0)
    };
    starts.iter().map(of).sum()
}

/// Users with events, estimated from one partition: a hash spreads users evenly over partitions.
async fn users(config: &Config, starts: &Since, ends: &Since) -> anyhow::Result<Estimated<u64>> {
    let end = |partition: &Partition| ends.get(partition).copied().unwrap_or(Resume(0));
    let mut filled: Vec<(i64, Partition)> = starts
        .iter()
        .map(|(partition, start)| (end(partition).0 - start.0, partition.clone()))
        .filter(|(length, _)| *length > 0)
        .collect();
    filled.sort();
    let Some((_, partition)) = filled.get(filled.len() / 2).cloned() else {
        return Ok(estimated(0, "no events"));
    };
    let start = starts.get(&partition).copied().unwrap_or(Resume(0));
    let to = end(&partition);
    let keys = probe::keys(&config.kafka, partition.clone(), start, to, COUNTED).await?;
    let count = keys.distinct * filled.len() as u64;
    let read = match keys.whole {
        true => format!("all {} records", keys.records),
        false => format!("the first {} records, so a lower bound", keys.records),
    };
    let how = format!(
        "{} different keys in {partition} ({read}), times {} partitions with events",
        keys.distinct,
        filled.len()
    );
    Ok(estimated(count, how))
}

async fn bytes(store: &RedisStore, config: &Config, users: u64) -> anyhow::Result<Estimated<u64>> {
    let ns = store
        .active()
        .await?
        .unwrap_or_else(|| config.namespace.clone());
    let (mut users_measured, mut next) = store.scan(&ns, None).await?;
    while let Some(cursor) = next.filter(|_| users_measured.len() < MEASURED) {
        let (more, after) = store.scan(&ns, Some(cursor)).await?;
        users_measured.extend(more);
        next = after;
    }
    users_measured.truncate(MEASURED);
    if users_measured.is_empty() {
        let how = format!(
            "{USER_BYTES} per user, assumed: no filled namespace can be measured; counts come in addition"
        );
        return Ok(estimated(users * USER_BYTES, how));
    }
    let sum = store.bytes_of(&ns, &users_measured).await?;
    let each = sum / users_measured.len() as u64;
    let shards: Vec<u8> = (0..=u8::MAX).step_by(SHARDS_STEP).collect();
    let counts = store.bytes_of_counts(&ns, &shards).await? * SHARDS_STEP as u64;
    let how = format!(
        "{each} per user, measured on {} users of {ns}, and {counts} for counts, measured on {} of the 256 shards of {ns}",
        users_measured.len(),
        shards.len()
    );
    Ok(estimated(users * each + counts, how))
}

async fn fold_time(
    store: &RedisStore,
    records: u64,
    input: EstimateInput,
) -> anyhow::Result<Estimated<f64>> {
    if let Some(rate) = input.records_per_second.filter(|rate| *rate > 0.0) {
        return Ok(estimated(
            records as f64 / rate,
            format!("{rate} records per second, as given"),
        ));
    }
    let mut last: Option<(Timestamp, String, f64)> = None;
    for ns in store.namespaces().await?.into_keys() {
        let plan = store
            .plan(&ns)
            .await?
            .and_then(|text| Plan::parse(&text).ok());
        let Some((at, rate)) = plan.and_then(|plan| Some((plan.created_at, plan.totals.rate()?)))
        else {
            continue;
        };
        if last.as_ref().is_none_or(|(before, _, _)| at > *before) {
            last = Some((at, ns, rate));
        }
    }
    Ok(match last {
        Some((_, ns, rate)) => estimated(
            records as f64 / rate,
            format!("{rate:.0} records per second, as measured in the backfill of {ns}"),
        ),
        None => estimated(
            records as f64 / RATE,
            format!("{RATE} records per second, assumed: no backfill was measured yet"),
        ),
    })
}
