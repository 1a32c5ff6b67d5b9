//! Metrics of this crate. The binary's table of metrics describes them under the same names.

use std::time::Duration;

/// Counter with labels `topic` and `outcome`: consumed records. This crate counts records that the broker deleted
/// before they were read, under the outcome [`LOST`].
pub const RECORDS: &str = "nearshore_records_total";

/// Outcome of a record that the broker deleted before it was read.
const LOST: &str = "lost";

/// Histogram in seconds: duration of a rebalance callback.
pub const CALLBACK: &str = "nearshore_rebalance_callback_seconds";

pub(crate) fn lost(topic: &str, records: u64) {
    metrics::counter!(RECORDS, "topic" => topic.to_owned(), "outcome" => LOST).increment(records);
}

pub(crate) fn callback(took: Duration) {
    metrics::histogram!(CALLBACK).record(took.as_secs_f64());
}
