//! Requests that are due much later go to the end of their lane, with the time that they have waited.
//!
//! Invariant: their positions are done only when the new records are acknowledged, so a crash between the two
//! leaves a request twice, never none.

use std::time::Duration;

use super::{Generate, Scorer};
use crate::members::error::Error;
use crate::members::records::request_record;
use crate::metrics;
use nearshore_core::ports::log::{Log, Outgoing};
use nearshore_core::ports::store::Store;
use nearshore_core::queue::lanes::Work;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::record::{Record, Timestamp};
use nearshore_core::user::trigger::Request;

/// Header with the time that a request had waited when it was put back, in ms.
const WAITED: &str = "waited-ms";

/// How long a request had waited before it was written.
pub(super) fn waited(record: &Record) -> Duration {
    let header = record.headers.iter().find(|(name, _)| name == WAITED);
    let text = header.and_then(|(_, value)| std::str::from_utf8(value).ok());
    Duration::from_millis(text.and_then(|text| text.parse().ok()).unwrap_or(0))
}

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// Puts back who is due much later. After an error call it again.
    pub(super) async fn requeue(&mut self, now: Timestamp) -> Result<(), Error> {
        self.deferred.extend(self.lanes.deferred(now));
        if self.deferred.is_empty() {
            return Ok(());
        }
        let records = self
            .deferred
            .iter()
            .flat_map(|work| again(&self.settings.topics, work, now));
        self.log.send(records.collect()).await?;
        for work in std::mem::take(&mut self.deferred) {
            metrics::requeue(work.request.lane);
            for position in &work.positions {
                self.in_hand.done(position);
            }
        }
        Ok(())
    }
}

/// One record per record that asked: a list must have seen each.
fn again(topics: &Topics, work: &Work, now: Timestamp) -> Vec<Outgoing> {
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
