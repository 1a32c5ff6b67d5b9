//! What a backfill would take: [`estimate`].
//!
//! Invariant: nothing is written, no group is moved, and each figure says how it was come by. Compaction and
//! transactions leave gaps in offsets, so records are at most so many.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::plan::{Order, kept, span};
use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::generate::{GROUP, UserCost};
use crate::ops::sweep::put_off;
use nearshore_core::ports::store::Namespaces;
use nearshore_core::queue::replay::{Moment, Plan, Since};
use nearshore_core::shop::arms::arms_for;
use nearshore_core::user::record::{Partition, Resume, Timestamp};
use nearshore_kafka::{Admin, probe};
use nearshore_redis::RedisStore;

/// Records read to count users.
const COUNTED: u64 = 200_000;
/// Users whose keys are measured.
const MEASURED: usize = 200;
/// Every so many-th shard of the counts is measured.
const SHARDS_STEP: usize = 16;
/// Records per second where no backfill was measured yet.
const RATE: f64 = 5_000.0;
/// Bytes of a user where none can be measured: state, profile and list, as Redis keeps them.
const USER_BYTES: u64 = 6_000;

/// What a person knows better.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Given {
    /// Lists per second of all generate processes.
    pub lists_per_second: Option<f64>,
    /// Records per second of all backfill processes.
    pub records_per_second: Option<f64>,
}

/// A figure, and how it was come by.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure<T> {
    /// The figure.
    pub value: T,
    /// How it was come by.
    pub how: String,
}

fn figure<T>(value: T, how: impl Into<String>) -> Figure<T> {
    Figure {
        value,
        how: how.into(),
    }
}

/// What a backfill would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Records to fold, at most.
    pub records: Figure<u64>,
    /// Users with events among them.
    pub users: Figure<u64>,
    /// Hours of one model, of all generate processes together.
    pub model_hours: Option<Figure<f64>>,
    /// Bytes that Redis needs more.
    pub redis_bytes: Figure<u64>,
    /// Seconds of folding.
    pub fold_seconds: Figure<f64>,
    /// When all lists would be there, if it began now.
    pub finished_at: Option<Figure<String>>,
}

/// Looks at log and store, and reckons.
pub async fn estimate(
    config: &Config,
    store: &RedisStore,
    (order, given): (&Order, Given),
) -> anyhow::Result<Estimate> {
    let from = order.from.as_deref().unwrap_or("earliest");
    let to = order.to.as_deref().unwrap_or("latest");
    let now = wall_clock();
    let (starts, ends) = span(config, (from, to), now).await?;
    let profiles: u64 = kept(config, &config.topics.profile_changes)
        .await?
        .iter()
        .map(|kept| u64::try_from(kept.end.0 - kept.begin.0).unwrap_or(0))
        .sum();
    let events = length(&starts, &ends);
    let records = figure(
        events + profiles,
        format!(
            "{events} events and {profiles} profiles between offsets; fewer where compaction or transactions left gaps"
        ),
    );
    let users = users(config, &starts, &ends).await?;
    let redis_bytes = bytes(store, config, users.value).await?;
    let fold_seconds = folding(store, records.value, given).await?;
    let model_hours = hours(config, store, (users.value, given)).await?;
    let finished_at = match &model_hours {
        Some(hours) => Some(end(config, now, (&fold_seconds, hours, given)).await?),
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

/// What the lists cost: as given, or by what the arms' models took lately; `None` where nothing was measured yet.
async fn hours(
    config: &Config,
    store: &RedisStore,
    (users, given): (u64, Given),
) -> anyhow::Result<Option<Figure<f64>>> {
    if let Some(rate) = given.lists_per_second.filter(|rate| *rate > 0.0) {
        let how = format!("{users} lists at {rate} a second, as given");
        return Ok(Some(figure(users as f64 / rate / 3600.0, how)));
    }
    let noted = store.costs().await?;
    let read = |text: &String| serde_json::from_str::<UserCost>(text).ok();
    let known: BTreeMap<&str, UserCost> = noted
        .iter()
        .filter_map(|(arm, text)| Some((arm.as_str(), read(text)?)))
        .collect();
    let arms = arms_for(&config.namespace, &config.arms);
    let (mut shares, mut seconds, mut hows) = (0.0, 0.0, Vec::new());
    for arm in arms.iter().filter(|arm| arm.share > 0) {
        // A new prompt for a model that is known costs about what the old one did.
        let alike = || known.values().find(|cost| cost.model == arm.model);
        let Some(cost) = known.get(arm.id.as_str()).or_else(alike) else {
            return Ok(None);
        };
        shares += f64::from(arm.share);
        seconds += f64::from(arm.share) * cost.seconds;
        let own = known.contains_key(arm.id.as_str());
        hows.push(format!(
            "{:.4} s a list of {}{}, as measured at {} in batches of {:.1}",
            cost.seconds,
            arm.id,
            if own {
                ""
            } else {
                " (by another arm of its model)"
            },
            Moment(cost.at),
            cost.batch
        ));
    }
    if shares == 0.0 {
        return Ok(None);
    }
    let hours = users as f64 * seconds / shares / 3600.0;
    Ok(Some(figure(
        hours,
        format!("{users} lists; {}", hows.join("; ")),
    )))
}

/// When all lists are there, if nothing else is to be done.
async fn end(
    config: &Config,
    now: Timestamp,
    (fold, hours, given): (&Figure<f64>, &Figure<f64>, Given),
) -> anyhow::Result<Figure<String>> {
    // What is given is the rate of all of them.
    let workers = match given.lists_per_second {
        Some(_) => 1,
        None => Admin::new(&config.kafka)?.members(GROUP).await?.max(1),
    };
    let wait = put_off(config.demand.every);
    let seconds = fold.value + wait.as_secs_f64() + hours.value * 3600.0 / workers as f64;
    let length = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    let by = match given.lists_per_second {
        Some(_) => String::new(),
        None => format!(" by {workers} generate processes"),
    };
    let how = format!(
        "folding, {} s until the counts are read, then lists{by} in every slot that live leaves idle; longer while live is busy",
        wait.as_secs()
    );
    Ok(figure(Moment(now.after(length)).to_string(), how))
}

fn length(starts: &Since, ends: &Since) -> u64 {
    let of = |(partition, start): (&Partition, &Resume)| {
        let end = ends.get(partition).map_or(start.0, |end| end.0);
        u64::try_from(end - start.0).unwrap_or(0)
    };
    starts.iter().map(of).sum()
}

/// Users are spread over partitions by a hash, so one partition's keys stand for all.
async fn users(config: &Config, starts: &Since, ends: &Since) -> anyhow::Result<Figure<u64>> {
    let end = |partition: &Partition| ends.get(partition).copied().unwrap_or(Resume(0));
    let mut filled: Vec<(i64, Partition)> = starts
        .iter()
        .map(|(partition, start)| (end(partition).0 - start.0, partition.clone()))
        .filter(|(length, _)| *length > 0)
        .collect();
    filled.sort();
    let Some((_, partition)) = filled.get(filled.len() / 2).cloned() else {
        return Ok(figure(0, "no events"));
    };
    let start = starts.get(&partition).copied().unwrap_or(Resume(0));
    let to = end(&partition);
    let keys = probe::keys(&config.kafka, partition.clone(), start, to, COUNTED).await?;
    let count = keys.distinct * filled.len() as u64;
    let scope = match keys.whole {
        true => "whole",
        false => "in part, so at least",
    };
    let how = format!(
        "{} different keys in {partition}, read {scope} ({} records), times {} partitions with events",
        keys.distinct,
        keys.records,
        filled.len()
    );
    Ok(figure(count, how))
}

async fn bytes(store: &RedisStore, config: &Config, users: u64) -> anyhow::Result<Figure<u64>> {
    let ns = store
        .active()
        .await?
        .unwrap_or_else(|| config.namespace.clone());
    let (mut some, mut next) = store.scan(&ns, None).await?;
    while let Some(cursor) = next.filter(|_| some.len() < MEASURED) {
        let (more, after) = store.scan(&ns, Some(cursor)).await?;
        some.extend(more);
        next = after;
    }
    some.truncate(MEASURED);
    if some.is_empty() {
        let how = format!(
            "{USER_BYTES} a user: assumed, for no namespace is filled to be measured; counts beside that"
        );
        return Ok(figure(users * USER_BYTES, how));
    }
    let sum = store.bytes_of(&ns, &some).await?;
    let each = sum / some.len() as u64;
    let shards: Vec<u8> = (0..=u8::MAX).step_by(SHARDS_STEP).collect();
    let counts = store.bytes_of_counts(&ns, &shards).await? * SHARDS_STEP as u64;
    let how = format!(
        "{each} a user, by {} users of {ns}, and {counts} of counts, as {ns} has, by {} of its 256 shards",
        some.len(),
        shards.len()
    );
    Ok(figure(users * each + counts, how))
}

async fn folding(store: &RedisStore, records: u64, given: Given) -> anyhow::Result<Figure<f64>> {
    if let Some(rate) = given.records_per_second.filter(|rate| *rate > 0.0) {
        return Ok(figure(
            records as f64 / rate,
            format!("{rate} records a second, as given"),
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
        Some((_, ns, rate)) => figure(
            records as f64 / rate,
            format!("{rate:.0} records a second, as the backfill of {ns} had"),
        ),
        None => figure(
            records as f64 / RATE,
            format!("{RATE} records a second: assumed, for no backfill was measured yet"),
        ),
    })
}
