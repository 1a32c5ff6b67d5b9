//! Declares all metrics in [`table`] and exports them to Prometheus.
//!
//! Invariant: every exported metric is in the table, and every series whose labels are known exists at zero from the
//! start. When something is counted is decided by the members, not here.

pub mod labels;
mod process;
pub mod table;
mod updates;

use std::time::Duration;

use metrics::Label;
use metrics_exporter_prometheus::PrometheusRecorder;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

pub use labels::*;
pub use process::Usage;
use table::{ALL, Kind, Metric, Values};
pub use updates::*;

/// Buckets of every duration, in seconds: 10 ms to 1 h. All metrics share them, so that their histograms add up.
pub const SECONDS: [f64; 17] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    1800.0, 3600.0,
];

/// Buckets of every size, in pieces.
pub const SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Label value of a list that no arm made.
pub const NO_ARM: &str = "none";

/// Label values that depend on the configuration.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Ids of the configured arms.
    pub arms: Vec<String>,
    /// Names of the topics that are read.
    pub topics: Vec<String>,
    /// Ids of the configured rules.
    pub rules: Vec<String>,
}

impl Known {
    /// Reads arms, topics and rules from the configuration.
    pub fn of(config: &crate::config::Config) -> Self {
        let topics = &config.topics;
        let ours = [
            &topics.user_events,
            &topics.profile_changes,
            &topics.catalog,
            &topics.regen_urgent,
            &topics.regen_live,
            &topics.regen_backfill,
        ];
        let mapped = topics.inputs.iter().map(|input| &input.topic);
        let read = ours.into_iter().chain(mapped);
        Self {
            arms: config.arms.iter().map(|arm| arm.id.clone()).collect(),
            topics: read.map(|topic| topic.to_string()).collect(),
            rules: config.rules.iter().map(|rule| rule.id.clone()).collect(),
        }
    }
}

/// Builds a recorder with the buckets of [`SECONDS`] and [`SIZES`].
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new().set_buckets(&SECONDS)?;
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Sizes) {
        let name = Matcher::Full(metric.name.to_owned());
        builder = builder.set_buckets_for_metric(name, &SIZES)?;
    }
    Ok(builder.build_recorder())
}

/// Installs the recorder of this process, with every known series at zero. Call it once, before any member starts.
/// Returns `None` if the process already has a recorder.
pub fn install(known: &Known) -> Result<Option<PrometheusHandle>, BuildError> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        return Ok(None);
    }
    register(known);
    Ok(Some(handle))
}

/// Describes every metric and sets every known series to zero, on the current recorder.
pub fn register(known: &Known) {
    for metric in ALL {
        metric.describe();
        for values in metric.series(known) {
            metric.start(&values);
        }
    }
    build();
}

/// Sorts histogram samples into their buckets every 5 s. Without it their memory grows without limit.
pub async fn run_upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        // Both arms are cancel-safe: no work is kept between two ticks.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => handle.run_upkeep(),
        }
    }
}

impl Metric {
    fn describe(&self) {
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, self.help),
            Kind::Gauge => metrics::describe_gauge!(self.name, self.help),
            Kind::Seconds | Kind::Sizes => metrics::describe_histogram!(self.name, self.help),
        }
    }

    /// Lists the label values of every series that is known at the start.
    pub fn series(&self, known: &Known) -> Vec<Vec<String>> {
        let mut all = vec![Vec::new()];
        for (_, values) in self.labels {
            let values: Vec<String> = match values {
                Values::These(these) => these.iter().map(|value| (*value).to_owned()).collect(),
                Values::Arms => known
                    .arms
                    .iter()
                    .cloned()
                    .chain([NO_ARM.to_owned()])
                    .collect(),
                Values::Topics => known.topics.clone(),
                Values::Rules => known.rules.clone(),
                Values::Later => Vec::new(),
            };
            all = all
                .iter()
                .flat_map(|series: &Vec<String>| {
                    values.iter().map(|value| {
                        let mut longer = series.clone();
                        longer.push(value.clone());
                        longer
                    })
                })
                .collect();
        }
        all
    }

    fn start(&self, values: &[String]) {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        match self.kind {
            Kind::Counter => self.add(&values, 0),
            Kind::Gauge => self.set(&values, 0.0),
            Kind::Seconds | Kind::Sizes => drop(metrics::histogram!(self.name, self.with(&values))),
        }
    }

    fn with(&self, values: &[&str]) -> Vec<Label> {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        let pairs = self.labels.iter().zip(values);
        pairs
            .map(|((name, _), value)| Label::new(*name, (*value).to_owned()))
            .collect()
    }

    fn add(&self, values: &[&str], count: u64) {
        metrics::counter!(self.name, self.with(values)).increment(count);
    }

    fn set(&self, values: &[&str], value: f64) {
        metrics::gauge!(self.name, self.with(values)).set(value);
    }

    fn observe(&self, values: &[&str], value: f64) {
        metrics::histogram!(self.name, self.with(values)).record(value);
    }
}

#[cfg(test)]
mod tests;
