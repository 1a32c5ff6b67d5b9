//! Metrics of this crate. The binary's table of metrics describes them under the same names.

/// Counter: round trips to Redis, to each primary.
pub const ROUND_TRIPS: &str = "nearshore_redis_round_trips_total";

pub(crate) fn round_trips(n: u64) {
    metrics::counter!(ROUND_TRIPS).increment(n);
}
