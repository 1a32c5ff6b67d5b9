//! The wall clock of a process, read only to wait and to measure. The time of a decision is that of a record.

use nearshore_core::user::record::Timestamp;

/// Now, in milliseconds since 1970.
pub fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }))
}
