//! The records of a deferred request, which go to the end of its lane with the time that it has waited.
//!
//! Invariant: there is a record for each record that asked, because a list must have seen each of them. It does not
//! know when a request is deferred, nor when its positions are done.

use std::time::Duration;

use crate::members::records::request_record;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::queue::lanes::Work;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::record::{Record, Timestamp};
use nearshore_core::user::trigger::Request;

/// Header with the time that a request had waited when it was requeued, in ms.
const WAITED: &str = "waited-ms";

/// Reads how long a request had waited before its record was written; zero for one that was never requeued.
pub(super) fn waited(record: &Record) -> Duration {
    let header = record.headers.iter().find(|(name, _)| name == WAITED);
    let text = header.and_then(|(_, value)| std::str::from_utf8(value).ok());
    Duration::from_millis(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// Makes the records that requeue a deferred request.
pub(super) fn requeue_records(topics: &Topics, work: &Work, now: Timestamp) -> Vec<Outgoing> {
    let waited = now.since(work.arrived).as_millis().to_string();
    let record = |source| {
        let request = Request {
            source,
            ..work.request.clone()
        };
        let mut record = request_record(topics, &request);
        record.headers = vec![(WAITED.into(), waited.clone().into())];
        record
    };
    if work.sources.is_empty() {
        return vec![record(None)];
    }
    let sources = work.sources.iter().cloned();
    sources.map(|source| record(Some(source))).collect()
}
