//! `nearshore top`: what many processes do now, from their `/metrics`.
//!
//! Invariant: a process that does not answer, or answers something else, is a row with its fault; the others are shown
//! as if it were not there. Rates are differences of two rounds of the same process: a counter that fell is of a
//! restarted process, and counts from 0.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;

use crate::members::clock::wall_clock;
use exposition::Exposition;
use nearshore_core::user::record::Timestamp;

mod exposition;
mod fetch;
mod text;

/// The lanes, the most urgent first.
const LANES: [&str; 3] = ["urgent", "live", "backfill"];

/// What all processes did in one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Reading {
    /// When it was read, in milliseconds.
    pub at: Timestamp,
    /// The processes, in the order of their addresses as given.
    pub replicas: Vec<Replica>,
    /// Processes that answered.
    pub answered: usize,
    /// Sums over the processes that answered; ages are the largest.
    pub total: Figures,
}

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Replica {
    /// Its address.
    pub address: String,
    /// Why it has no figures; null if it answered.
    pub error: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// What it does.
    pub figures: Figures,
    /// What is wrong in it, for people.
    pub faults: Vec<String>,
}

/// Figures of a process, or of all. Null is a figure that it does not have, or a rate before the second round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Figures {
    /// Records consumed per second.
    pub records_per_second: Option<f64>,
    /// Lists stored per second.
    pub lists_per_second: Option<f64>,
    /// Share of the time in which the engine computed.
    pub engine_busy: Option<f64>,
    /// Seconds from a record to its list, the median of this round: an upper bound by the buckets.
    pub fresh_p50_seconds: Option<f64>,
    /// The same at the 95th percentile.
    pub fresh_p95_seconds: Option<f64>,
    /// Records that wait in Kafka for its partitions.
    pub lag_records: Option<f64>,
    /// Age of the oldest of them, in seconds.
    pub lag_seconds: Option<f64>,
    /// Dead letters since it started.
    pub dlq_records: Option<f64>,
    /// Its lanes, by name.
    pub lanes: BTreeMap<String, Lane>,
}

/// A lane in the memory of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Lane {
    /// Requests that are in no batch yet.
    pub waiting: f64,
    /// Requests in batches.
    pub running: f64,
    /// Seconds since the oldest became due.
    pub oldest_age_seconds: f64,
    /// Seconds of model time that they take.
    pub queued_work_seconds: f64,
}

/// What is known of the processes from the round before.
#[derive(Debug, Default)]
pub struct Rounds {
    /// The last page of each process, and when it was read.
    before: BTreeMap<String, (Timestamp, Exposition)>,
}

impl Rounds {
    /// Reads all addresses at once; each has `limit` to answer.
    pub async fn read(&mut self, targets: &[String], limit: Duration) -> Reading {
        let addresses = fetch::addresses(targets, limit).await;
        let asked = addresses.iter().map(|target| fetch::metrics(target, limit));
        let pages = join_all(asked).await;
        let named = addresses.iter().map(fetch::Target::to_string);
        let found = named.zip(pages).map(|(address, page)| {
            let page = page.map(|text| Exposition::read(&text));
            let page = page.and_then(|page| match page.is_empty() {
                true => Err("it answers, but with no metrics".to_owned()),
                false => Ok(page),
            });
            (address, page)
        });
        let found = found.collect();
        self.summed(found, wall_clock())
    }

    /// The figures of these pages.
    fn summed(
        &mut self,
        found: Vec<(String, Result<Exposition, String>)>,
        now: Timestamp,
    ) -> Reading {
        let mut reading = Reading {
            at: now,
            ..Reading::default()
        };
        let mut buckets = Vec::new();
        for (address, page) in found {
            match page {
                Ok(page) => {
                    let before = self.before.get(&address);
                    let round = Round {
                        page: &page,
                        before: before.map(|(_, page)| page),
                        seconds: before.map(|(then, _)| now.since(*then).as_secs_f64()),
                    };
                    let fresh = round.fresh();
                    let replica = round.replica(address.clone(), &fresh);
                    buckets.push(fresh);
                    reading.total.add(&replica.figures);
                    reading.answered += 1;
                    reading.replicas.push(replica);
                    self.before.insert(address, (now, page));
                }
                // Its last page stays: when it comes back, its rates are those of the whole time.
                Err(error) => reading.replicas.push(Replica {
                    address,
                    error: Some(error),
                    ..Replica::default()
                }),
            }
        }
        let all = merged(&buckets);
        reading.total.fresh_p50_seconds = quantile(&all, 0.5);
        reading.total.fresh_p95_seconds = quantile(&all, 0.95);
        reading
    }
}

/// One process in one round.
struct Round<'a> {
    page: &'a Exposition,
    before: Option<&'a Exposition>,
    /// Since that page was read.
    seconds: Option<f64>,
}

/// Upper bounds of buckets, with how many observations are at most as large.
type Buckets = Vec<(f64, f64)>;

impl Round<'_> {
    /// How much a counter rose; `None` before the second round.
    fn risen(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let before = self.before?.sum(name, labels).unwrap_or(0.0);
        let now = self.page.sum(name, labels)?;
        Some(if now < before { now } else { now - before })
    }

    fn replica(&self, address: String, fresh: &Buckets) -> Replica {
        let mut versions = self.page.of("nearshore_build_info", &[]);
        let version = versions.next().and_then(|it| it.labels.get("version"));
        Replica {
            address,
            version: version.cloned(),
            error: None,
            faults: self.faults(),
            figures: Figures {
                fresh_p50_seconds: quantile(fresh, 0.5),
                fresh_p95_seconds: quantile(fresh, 0.95),
                ..self.figures()
            },
        }
    }

    fn rate(&self, name: &str) -> Option<f64> {
        let seconds = self.seconds.filter(|seconds| *seconds > 0.0)?;
        Some(self.risen(name, &[])? / seconds)
    }

    fn figures(&self) -> Figures {
        let page = self.page;
        let lane = |name: &str| {
            let of = |metric: &str| page.sum(metric, &[("lane", name)]);
            let lane = Lane {
                waiting: of("nearshore_requests_waiting")?,
                running: of("nearshore_requests_running").unwrap_or(0.0),
                oldest_age_seconds: of("nearshore_requests_oldest_age_seconds").unwrap_or(0.0),
                queued_work_seconds: of("nearshore_queued_work_seconds").unwrap_or(0.0),
            };
            Some((name.to_owned(), lane))
        };
        Figures {
            records_per_second: self.rate("nearshore_records_total"),
            lists_per_second: self.rate("nearshore_lists_published_total"),
            engine_busy: self.rate("nearshore_engine_busy_seconds_sum"),
            lag_records: page.sum("nearshore_consumer_lag", &[]),
            lag_seconds: page.max("nearshore_consumer_lag_seconds", &[]),
            dlq_records: page.sum("nearshore_dlq_records_total", &[]),
            lanes: LANES.into_iter().filter_map(lane).collect(),
            ..Figures::default()
        }
    }

    /// The histogram of the time from record to list in this round, or since the start in the first one.
    fn fresh(&self) -> Buckets {
        let name = "nearshore_event_to_list_seconds_bucket";
        let bounds = self.page.of(name, &[]).filter_map(|sample| {
            let bound = sample.labels.get("le")?;
            Some((bound.as_str(), number(bound)?))
        });
        let bounds: BTreeMap<&str, f64> = bounds.collect();
        let mut buckets: Buckets = bounds
            .into_iter()
            .map(|(label, bound)| {
                let labels = [("le", label)];
                let now = self.page.sum(name, &labels).unwrap_or(0.0);
                (bound, self.risen(name, &labels).unwrap_or(now))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets
    }

    fn faults(&self) -> Vec<String> {
        let known = [
            ("nearshore_partitions_stopped", "partitions stopped"),
            (
                "nearshore_foreign_members",
                "members of another installation",
            ),
            (
                "nearshore_dlq_waiting_records",
                "dead letters not acknowledged",
            ),
            ("nearshore_endpoint_failing", "model servers that fail"),
            ("nearshore_artefact_refused", "artefacts refused"),
        ];
        let mut faults: Vec<String> = known
            .iter()
            .filter_map(|(metric, what)| {
                let number = self.page.sum(metric, &[])?;
                (number > 0.0).then(|| format!("{number} {what}"))
            })
            .collect();
        let risen = [
            ("nearshore_dlq_records_total", "dead letters"),
            (
                "nearshore_errors_total",
                "errors of Kafka, Redis or the model",
            ),
            ("nearshore_store_regressions_total", "failovers of Redis"),
        ];
        faults.extend(risen.iter().filter_map(|(metric, what)| {
            let number = self.risen(metric, &[])?;
            (number > 0.0).then(|| format!("{number} new {what}"))
        }));
        let lost = self
            .page
            .sum("nearshore_records_total", &[("outcome", "lost")]);
        if let Some(lost) = lost.filter(|lost| *lost > 0.0) {
            faults.push(format!("{lost} records lost to the topics' retention"));
        }
        faults
    }
}

impl Figures {
    /// Adds another process' figures; ages become the larger ones.
    fn add(&mut self, other: &Self) {
        let sum = |a: &mut Option<f64>, b: Option<f64>| {
            if let Some(b) = b {
                *a = Some(a.unwrap_or(0.0) + b);
            }
        };
        sum(&mut self.records_per_second, other.records_per_second);
        sum(&mut self.lists_per_second, other.lists_per_second);
        sum(&mut self.engine_busy, other.engine_busy);
        sum(&mut self.lag_records, other.lag_records);
        sum(&mut self.dlq_records, other.dlq_records);
        let ages = [self.lag_seconds, other.lag_seconds];
        self.lag_seconds = ages.into_iter().flatten().max_by(f64::total_cmp);
        for (name, lane) in &other.lanes {
            let all = self.lanes.entry(name.clone()).or_default();
            all.waiting += lane.waiting;
            all.running += lane.running;
            all.queued_work_seconds += lane.queued_work_seconds;
            all.oldest_age_seconds = all.oldest_age_seconds.max(lane.oldest_age_seconds);
        }
    }
}

fn number(bound: &str) -> Option<f64> {
    match bound {
        "+Inf" => Some(f64::INFINITY),
        bound => bound.parse().ok(),
    }
}

/// The histogram of all processes.
fn merged(all: &[Buckets]) -> Buckets {
    let mut sum: Buckets = Vec::new();
    for (bound, count) in all.iter().flatten() {
        match sum.iter_mut().find(|(known, _)| known == bound) {
            Some((_, known)) => *known += count,
            None => sum.push((*bound, *count)),
        }
    }
    sum.sort_by(|a, b| a.0.total_cmp(&b.0));
    sum
}

/// The upper bound of the bucket of a quantile; `None` without observations, and beyond the last finite bound.
fn quantile(buckets: &Buckets, share: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count)?;
    let found = buckets.iter().find(|(_, count)| *count >= share * all);
    let bound = found.map(|(bound, _)| *bound);
    bound.filter(|bound| all > 0.0 && bound.is_finite())
}

#[cfg(test)]
mod tests;
