//! The requests that this member has read and not finished: [`Queue`].
//!
//! Invariant: the offset of a request may be committed only when the request is done: its batch was served, its
//! requeued records are acknowledged, or it was rejected. Until then its work is in the lanes, in a batch or deferred,
//! also over an error; only a revoke or a rewind drops it, because the log delivers it again. It does not know what
//! serving a batch means.

use std::collections::BTreeSet;
use std::time::Duration;

use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::Store;
use nearshore_core::queue::lanes::{Lanes, Offered, Policy, Work};
use nearshore_core::queue::offsets::InProgress;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Partition, Record, Resume, Timestamp};
use nearshore_core::user::trigger::Request;

use super::TURN_MAX;
use super::backpressure::Backpressure;
use super::cost::UserCosts;
use super::requeue::{requeue_records, waited};
use crate::members::dlq::Rejected;
use crate::members::error::Error;
use crate::metrics::{self, RecordOutcome, Stage};

/// Most batches of one turn.
const BATCHES_MAX: usize = 16;

/// The requests in hand, from their delivery until their offsets may be committed.
pub(super) struct Queue {
    topics: Topics,
    /// Most users of a batch.
    batch_max: usize,
    lanes: Lanes,
    /// Batches that were cut and are not served.
    batches: Vec<Vec<Work>>,
    /// Requests that are to be requeued and whose new records are not acknowledged.
    deferred: Vec<Work>,
    offsets: InProgress,
    backpressure: Backpressure,
}

/// The records of a batch, as requests or as rejects.
pub(super) struct DecodedBatch<'a> {
    pub(super) requests: Vec<(Request, &'a Record)>,
    pub(super) rejects: Vec<Rejected<'a>>,
}

impl<'a> DecodedBatch<'a> {
    /// Decodes each record of a batch.
    pub(super) fn new(batch: &'a Batch) -> Self {
        let (mut requests, mut rejects) = (Vec::new(), Vec::new());
        for record in &batch.records {
            match Request::decode(record) {
                Ok(request) => requests.push((request, record)),
                Err(reject) => rejects.push(Rejected {
                    record,
                    stage: Stage::Request,
                    reject,
                }),
            }
        }
        Self { requests, rejects }
    }
}

impl Queue {
    /// An empty queue.
    pub(super) fn new(topics: Topics, policy: Policy) -> Self {
        Self {
            backpressure: Backpressure::new(topics.regen_backfill.clone(), policy.objective),
            topics,
            batch_max: policy.batch_max,
            lanes: Lanes::new(policy),
            batches: Vec::new(),
            deferred: Vec::new(),
            offsets: InProgress::default(),
        }
    }

    pub(super) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// The batches that were cut and are not served, in their order.
    pub(super) fn batches(&self) -> &[Vec<Work>] {
        &self.batches
    }

    /// Adds the requests of a batch to the lanes. Its rejects must be in `dlq`: their offsets are done here.
    pub(super) fn add<L: Log>(
        &mut self,
        log: &mut L,
        batch: &Batch,
        decoded: DecodedBatch<'_>,
        now: Timestamp,
    ) {
        for record in &batch.records {
            self.offsets.began(&record.position);
        }
        for Rejected { record, .. } in decoded.rejects {
            self.offsets.done(&record.position);
        }
        let count = decoded.requests.len() as u64;
        metrics::records(&batch.partition.topic, RecordOutcome::Folded, count);
        for (request, record) in decoded.requests {
            let waiting = (now, waited(record));
            let position = record.position.clone();
            let merged = self.lanes.offer_again(request, position, waiting) == Offered::Merged;
            metrics::coalesced(u64::from(merged));
        }
        self.backpressure.apply(&mut self.lanes, log);
    }

    /// Writes requests that are due much later to the end of their lanes. Their offsets are done when the new records
    /// are acknowledged, so that a crash between the two leaves a request twice, never none. After an error call it
    /// again.
    pub(super) async fn requeue<L: Log>(&mut self, log: &L, now: Timestamp) -> Result<(), Error> {
        self.deferred.extend(self.lanes.deferred(now));
        if self.deferred.is_empty() {
            return Ok(());
        }
        let deferred = self.deferred.iter();
        let records = deferred.flat_map(|work| requeue_records(&self.topics, work, now));
        log.send(records.collect()).await?;
        for work in std::mem::take(&mut self.deferred) {
            metrics::requeue(work.request.lane);
            for position in &work.positions {
                self.offsets.done(position);
            }
        }
        Ok(())
    }

    /// Looks which namespaces are in history: their backfill requests wait, for more of the history of their users may
    /// come. Each of them asks once then, at its end.
    pub(super) async fn hold_history<S: Store>(&mut self, store: &S) -> Result<(), Error> {
        let mut held = BTreeSet::new();
        for ns in self.lanes.backfill_namespaces() {
            if store.in_history(&ns).await? {
                held.insert(ns);
            }
        }
        self.lanes.hold_backfill(held);
        Ok(())
    }

    /// Takes the requests of a user out of the batches, to be requeued with a later due time. Returns whether there were
    /// any.
    pub(super) fn postpone(&mut self, user: &UserId, due: Timestamp) -> bool {
        let before = self.deferred.len();
        for batch in &mut self.batches {
            let mut theirs = batch.extract_if(.., |work| work.request.user == *user);
            self.deferred.extend(theirs.by_ref().map(|mut work| {
                work.request.due = due;
                work
            }));
        }
        self.deferred.len() > before
    }

    /// Cuts batches of what is due, unless an earlier turn left some; whether there is anything to serve.
    pub(super) fn cut<L: Log>(&mut self, log: &mut L, costs: &UserCosts, now: Timestamp) -> bool {
        if self.batches.is_empty() {
            self.batches = self.next_batches(costs, now);
            self.backpressure.apply(&mut self.lanes, log);
        }
        // A revoke may have left nothing in them.
        if self.batches.iter().all(Vec::is_empty) {
            self.batches.clear();
        }
        !self.batches.is_empty()
    }

    /// The batches of a turn: one, unless the model is so quick that the work around a batch would leave it idle. Then
    /// as many as it answers within [`TURN_MAX`], and no more, because the log is read between turns only.
    fn next_batches(&mut self, costs: &UserCosts, now: Timestamp) -> Vec<Vec<Work>> {
        let users_max = self.batch_max;
        let mut batch = self.lanes.overdue(now, users_max);
        for work in &batch {
            metrics::expired(work.request.lane, 1);
        }
        let mut batches = Vec::new();
        let batches_max = costs.fit(users_max, TURN_MAX).clamp(1, BATCHES_MAX);
        while batches.len() < batches_max {
            batch.extend(self.lanes.cut(now, users_max));
            if batch.is_empty() {
                break;
            }
            batches.push(std::mem::take(&mut batch));
        }
        batches
    }

    /// Marks the offsets of the first so many batches as done and drops these batches.
    pub(super) fn finish(&mut self, served: usize) {
        for work in self.batches.drain(..served).flatten() {
            for position in work.positions {
                self.offsets.done(&position);
            }
        }
    }

    /// Shares the model between backfill and live, here and in all workers.
    pub(super) async fn update_backpressure<S: Store>(
        &mut self,
        store: &S,
        seconds_per_user: Duration,
        now: Timestamp,
    ) -> Result<(), Error> {
        let lanes = &mut self.lanes;
        let backpressure = &self.backpressure;
        backpressure
            .update(lanes, store, seconds_per_user, now)
            .await
    }

    /// Drops what was read from revoked partitions: their new owner serves it.
    pub(super) fn revoke(&mut self, partitions: &[Partition]) {
        self.lanes.revoke(partitions);
        self.offsets.revoke(partitions);
        let is_ours = |work: &Work| {
            let mut positions = work.positions.iter();
            positions.any(|position| !partitions.contains(&position.partition))
        };
        for batch in &mut self.batches {
            batch.retain(is_ours);
        }
        self.deferred.retain(is_ours);
    }

    /// Drops everything before a rewind: the log delivers it again.
    pub(super) fn clear(&mut self) {
        self.lanes.clear();
        self.offsets = InProgress::default();
        self.batches.clear();
        self.deferred.clear();
    }

    /// Hands out what may be committed now, of the partitions that advanced since the last call.
    pub(super) fn take_commits(&mut self) -> Vec<(Partition, Resume)> {
        self.offsets.take_commits()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
