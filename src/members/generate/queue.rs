//! The requests that this member has read and not finished: [`Queue`].
//!
//! Invariant: the offset of a request may be committed only when the request is done: its list without the model is
//! published and the model has answered or was refused, its requeued records are acknowledged, or it was rejected. Until
//! then its work is in the lanes, in a batch, deferred, or waits for the model, also over an error; only a revoke or a
//! rewind drops it, because the log delivers it again. It does not know what serving a batch means.

use std::collections::BTreeSet;
use std::time::Duration;

use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::Store;
use nearshore_core::queue::asking::{Ask, Asking};
use nearshore_core::queue::lanes::{Lanes, Offered, Policy, Work};
use nearshore_core::queue::offsets::InProgress;
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Partition, Position, Record, Resume, Timestamp};
use nearshore_core::user::trigger::Request;

use super::backpressure::Backpressure;
use super::requeue::{requeue_records, waited};
use crate::members::dlq::Rejected;
use crate::members::error::Error;
use crate::metrics::{self, RecordOutcome, Refused, Stage};

/// Most batches of one turn.
const BATCHES_MAX: usize = 16;

/// Most users of a batch. They are claimed, and their lists published, in a round trip each.
const BATCH_MAX: usize = 64;

/// The requests in hand, from their delivery until their offsets may be committed.
pub(super) struct Queue {
    topics: Topics,
    lanes: Lanes,
    /// Batches that were cut and are not served.
    batches: Vec<Vec<Work>>,
    /// Requests that are to be requeued and whose new records are not acknowledged.
    deferred: Vec<Work>,
    /// Requests whose lists without the model are published.
    asking: Asking,
    /// Those of them that the model is asked about next.
    picked: Vec<Ask>,
    /// Requests that end without the model's list, while that is not reported.
    refused: Vec<(Work, Refused)>,
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
            asking: Asking::new(policy.clone()),
            picked: Vec::new(),
            refused: Vec::new(),
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

    /// Takes the requests of a user out of batches and of those that wait for the model, to be requeued with a later due
    /// time. Returns whether there were any. `theirs`: those that the model was asked about.
    pub(super) fn postpone(
        &mut self,
        (user, mut theirs): (&UserId, Vec<Work>),
        due: Timestamp,
    ) -> bool {
        let before = self.deferred.len();
        for batch in &mut self.batches {
            theirs.extend(batch.extract_if(.., |work| work.request.user == *user));
        }
        let is_theirs = |ask: &mut Ask| ask.work.request.user == *user;
        let mut asks = self.asking.take(user);
        asks.extend(self.picked.extract_if(.., is_theirs));
        theirs.extend(asks.into_iter().map(|ask| ask.work));
        let refused = |(work, _): &mut (Work, Refused)| work.request.user == *user;
        let refused = self.refused.extract_if(.., refused);
        theirs.extend(refused.map(|(work, _)| work));
        self.lanes.set_asking(self.asking.counts());
        self.deferred.extend(theirs.into_iter().map(|mut work| {
            work.request.due = due;
            work
        }));
        self.deferred.len() > before
    }

    /// Cuts batches of what is due, unless an earlier turn left some; whether there is anything to serve.
    pub(super) fn cut<L: Log>(&mut self, log: &mut L, now: Timestamp) -> bool {
        if self.batches.is_empty() {
            while self.batches.len() < BATCHES_MAX {
                let batch = self.lanes.cut(now, BATCH_MAX);
                if batch.is_empty() {
                    break;
                }
                self.batches.push(batch);
            }
            self.backpressure.apply(&mut self.lanes, log);
        }
        // A revoke may have left nothing in them.
        if self.batches.iter().all(Vec::is_empty) {
            self.batches.clear();
        }
        !self.batches.is_empty()
    }

    /// Drops the first so many batches. Of the requests in them, those of `asks` wait for the model now; the offsets of
    /// all others are done.
    pub(super) fn finish(&mut self, served: usize, asks: Vec<Ask>) {
        let waiting: BTreeSet<&Position> = asks.iter().flat_map(|it| &it.work.positions).collect();
        for work in self.batches.drain(..served).flatten() {
            for position in work.positions {
                if !waiting.contains(&position) {
                    self.offsets.done(&position);
                }
            }
        }
        drop(waiting);
        for ask in asks {
            self.asking.offer(ask);
        }
        self.lanes.set_asking(self.asking.counts());
    }

    /// The users that the model is asked about next; the same ones until [`Queue::take_picked`] takes them.
    pub(super) fn pick(&mut self, now: Timestamp) -> &[Ask] {
        if self.picked.is_empty() {
            let behind = self.lanes.is_backfill_paused() || self.live_behind(now);
            self.picked = self.asking.pick(now, behind);
            self.lanes.set_asking(self.asking.counts());
        }
        &self.picked
    }

    /// Takes the picked users out: the caller asks the model, and says of each when it is done.
    pub(super) fn take_picked(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.picked)
    }

    /// Refuses users who wait too long for the model, and those without room.
    pub(super) fn release(&mut self, now: Timestamp) {
        for ask in self.asking.late(now) {
            self.refuse(ask.work, Refused::Late);
        }
        for ask in self.asking.crowded(now) {
            self.refuse(ask.work, Refused::Crowded);
        }
        self.lanes.set_asking(self.asking.counts());
    }

    /// Notes that a request ends without the model's list. Its offsets are done when [`Queue::end_refused`] is called.
    pub(super) fn refuse(&mut self, work: Work, why: Refused) {
        self.refused.push((work, why));
    }

    /// The requests that end without the model's list.
    pub(super) fn refused(&self) -> &[(Work, Refused)] {
        &self.refused
    }

    /// Counts the refused requests and marks their offsets as done.
    pub(super) fn end_refused(&mut self) {
        for (work, why) in std::mem::take(&mut self.refused) {
            metrics::model_refused(work.request.lane, why);
            self.done(&work);
        }
    }

    /// Marks the offsets of a request as done that waited for the model.
    pub(super) fn done(&mut self, work: &Work) {
        for position in &work.positions {
            self.offsets.done(position);
        }
    }

    /// The users who wait for the model.
    pub(super) fn asking(&self) -> &Asking {
        &self.asking
    }

    /// Whether live requests wait longer than the objective, for a list or for the model.
    fn live_behind(&self, now: Timestamp) -> bool {
        self.lanes.live_behind(now) || self.asking.live_behind(now)
    }

    /// Shares the model between backfill and live, here and in all workers.
    pub(super) async fn update_backpressure<S: Store>(
        &mut self,
        store: &S,
        seconds_per_user: Duration,
        now: Timestamp,
    ) -> Result<(), Error> {
        let here = self.live_behind(now);
        self.backpressure
            .update(&mut self.lanes, store, here)
            .await?;
        self.asking
            .limit_backfill(self.backpressure.users_max(seconds_per_user));
        Ok(())
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
        self.asking.revoke(partitions);
        let picked = self.picked.iter_mut().map(|ask| &mut ask.work);
        for work in picked.chain(self.refused.iter_mut().map(|(work, _)| work)) {
            work.positions
                .retain(|it| !partitions.contains(&it.partition));
        }
        self.picked.retain(|ask| !ask.work.positions.is_empty());
        self.refused.retain(|(work, _)| !work.positions.is_empty());
        self.lanes.set_asking(self.asking.counts());
    }

    /// Drops everything before a rewind: the log delivers it again.
    pub(super) fn clear(&mut self) {
        self.lanes.clear();
        self.offsets = InProgress::default();
        self.batches.clear();
        self.deferred.clear();
        self.asking.clear();
        self.picked.clear();
        self.refused.clear();
    }

    /// Hands out what may be committed now, of the partitions that advanced since the last call.
    pub(super) fn take_commits(&mut self) -> Vec<(Partition, Resume)> {
        self.offsets.take_commits()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
