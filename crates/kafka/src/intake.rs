//! The queue between poll thread and member, from which batches can be removed: [`Intake`].
//!
//! Decides what is delivered next, when the poll thread must stop fetching, and which partitions are assigned.
//! Invariants: a revoke removes the partition's undelivered batches in the same step in which it ends the ownership,
//! so no batch of a partition is delivered after its revoke; assignments and revokes overtake batches but never each
//! other; memory is bounded by [`FULL_BYTES`] and [`FULL_RECORDS`] plus one batch, and by two notices per partition;
//! paused batches are bounded by as much again. The intake does not know Kafka.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::Notify;

use nearshore_core::ports::log::{Batch, Delivery, Error};
use nearshore_core::user::record::{Offset, Partition, Record, Resume, Timestamp};

/// Bytes at which the intake is full. A member that folds 100 MB/s then has 80 ms of work queued, which is longer
/// than the poll thread needs to fetch more.
pub(super) const FULL_BYTES: usize = 8 << 20;
/// Records at which the intake is full: 16 full batches, since records are often far smaller than the bytes allow.
pub(super) const FULL_RECORDS: usize = 8_000;
/// Uncommitted batches per partition whose times are kept for the lag; more are merged.
const MARKS_MAX: usize = 1_024;

/// Position and lag of an assigned partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: Partition,
    /// Last known end offset; `None` before the first fetch.
    pub end: Option<Offset>,
    /// Committed position; `None` as long as it is unknown or nothing was committed.
    pub committed: Option<Resume>,
    /// Time of the oldest record that was read and is not committed; of its batch's first record.
    pub oldest: Option<Timestamp>,
}

#[derive(Default)]
struct Assigned {
    end: Option<Offset>,
    committed: Option<Resume>,
    /// The first known committed position: that of the group when the partition was assigned.
    began: Option<Resume>,
    /// Last offset and first time of each uncommitted batch, in order.
    marks: VecDeque<(Offset, Timestamp)>,
    /// Requested position. Until the poll thread has moved there, its batches are dropped.
    rewind: Option<Resume>,
}

impl Assigned {
    fn mark(&mut self, batch: &Batch) {
        let (Some(first), Some(last)) = (batch.records.first(), batch.records.last()) else {
            return;
        };
        let full = self.marks.len() >= MARKS_MAX;
        match self.marks.back_mut() {
            Some(back) if full => back.0 = last.position.offset,
            _ => self.marks.push_back((last.position.offset, first.time)),
        }
        self.end = self.end.max(Some(batch.end));
    }

    fn commit(&mut self, resume: Resume) {
        self.committed = Some(resume);
        self.began.get_or_insert(resume);
        while self
            .marks
            .front()
            .is_some_and(|(last, _)| last.0 < resume.0)
        {
            self.marks.pop_front();
        }
    }
}

#[derive(Default)]
struct State {
    notices: VecDeque<Delivery>,
    batches: VecDeque<Batch>,
    /// Paused topics.
    paused: BTreeSet<Arc<str>>,
    /// Batches of paused topics, which must not fill the intake for other topics.
    paused_batches: VecDeque<Batch>,
    records: usize,
    bytes: usize,
    assigned: BTreeMap<Partition, Assigned>,
    stopped: Option<String>,
}

/// The queue between poll thread and member; see the module.
#[derive(Default)]
pub(super) struct Intake {
    state: Mutex<State>,
    readable: Notify,
    room: Condvar,
}

impl Intake {
    /// Locks the state. A panic under the lock leaves the counters off by one batch at worst, so poisoning is ignored.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Adds assigned partitions and posts the assignment.
    pub(super) fn assign(&self, partitions: Vec<Partition>) {
        let mut state = self.lock();
        for partition in &partitions {
            state
                .assigned
                .insert(partition.clone(), Assigned::default());
        }
        state.notices.push_back(Delivery::Assigned(partitions));
        drop(state);
        self.readable.notify_one();
    }

    /// Removes partitions and posts the revoke. Where the assignment was not delivered yet, it is removed instead.
    pub(super) fn revoke(&self, partitions: &[Partition], lost: bool) {
        let mut state = self.lock();
        for partition in partitions {
            state.assigned.remove(partition);
        }
        state.drop_batches(partitions);
        let mut delivered: Vec<Partition> = partitions.to_vec();
        for notice in &mut state.notices {
            if let Delivery::Assigned(waiting) = notice {
                delivered.retain(|partition| !waiting.contains(partition));
                waiting.retain(|partition| !partitions.contains(partition));
            }
        }
        state
            .notices
            .retain(|notice| !matches!(notice, Delivery::Assigned(left) if left.is_empty()));
        if !delivered.is_empty() {
            state.notices.push_back(Delivery::Revoked {
                partitions: delivered,
                lost,
            });
        }
        drop(state);
        self.readable.notify_one();
        self.room.notify_one();
    }

    /// Requests that reading of these partitions continues from there, and drops their queued batches. A partition
    /// with an undelivered revoke or assignment is ignored: it is read from the group's position, which the member
    /// has yet to ask for.
    pub(super) fn rewind(&self, to: &[(Partition, Resume)]) {
        let mut state = self.lock();
        let owned = |(partition, _): &&(Partition, Resume)| state.owns(partition);
        let to: Vec<(Partition, Resume)> = to.iter().filter(owned).cloned().collect();
        let of: Vec<Partition> = to.iter().map(|(partition, _)| partition.clone()).collect();
        state.drop_batches(&of);
        for (partition, resume) in to {
            if let Some(assigned) = state.assigned.get_mut(&partition) {
                assigned.rewind = Some(resume);
                assigned.marks.clear();
            }
        }
        drop(state);
        self.room.notify_one();
    }

    /// Requested rewinds that the poll thread has not done yet.
    pub(super) fn rewinds(&self) -> Vec<(Partition, Resume)> {
        let state = self.lock();
        let requested = state
            .assigned
            .iter()
            .filter_map(|(partition, assigned)| Some((partition.clone(), assigned.rewind?)));
        requested.collect()
    }

    /// Marks a rewind as done, unless another position was requested by now.
    pub(super) fn rewound(&self, partition: &Partition, to: Resume) {
        if let Some(assigned) = self.lock().assigned.get_mut(partition) {
            assigned.rewind = assigned.rewind.filter(|requested| *requested != to);
        }
    }

    /// Pauses exactly these topics. Batches of a resumed topic are delivered before newer ones.
    pub(super) fn pause(&self, topics: &[Arc<str>]) {
        let mut state = self.lock();
        state.paused = topics.iter().cloned().collect();
        let all = std::mem::take(&mut state.paused_batches).into_iter();
        let all = all.chain(std::mem::take(&mut state.batches));
        let (paused, batches) =
            all.partition(|batch| state.paused.contains(&batch.partition.topic));
        (state.paused_batches, state.batches) = (paused, batches);
        state.count();
        drop(state);
        self.readable.notify_one();
        self.room.notify_one();
    }

    /// Paused topics, which the poll thread must stop fetching.
    pub(super) fn paused(&self) -> BTreeSet<Arc<str>> {
        self.lock().paused.clone()
    }

    /// Queues a batch, or returns it if the intake is full. A batch of a partition that is not assigned is dropped. A
    /// batch of a paused topic is always accepted, since the poll thread stops fetching the topic at its next turn.
    pub(super) fn offer(&self, batch: Batch) -> Result<(), Batch> {
        let mut state = self.lock();
        let paused = state.paused.contains(&batch.partition.topic);
        if state.full() && !paused {
            return Err(batch);
        }
        let Some(assigned) = state.assigned.get_mut(&batch.partition) else {
            return Ok(());
        };
        if assigned.rewind.is_some() {
            return Ok(());
        }
        assigned.mark(&batch);
        if paused {
            state.paused_batches.push_back(batch);
            return Ok(());
        }
        state.records += batch.records.len();
        state.bytes += bytes(&batch);
        state.batches.push_back(batch);
        drop(state);
        self.readable.notify_one();
        Ok(())
    }

    /// Waits until the intake is at most half full; false if that takes longer than `limit`.
    pub(super) fn wait_for_room(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.half_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.room.wait_for(&mut state, left);
        }
        true
    }

    /// The next delivery, if there is one; only a notice if `batches` is false.
    pub(super) fn pop(&self, batches: bool) -> Option<Result<Delivery, Error>> {
        let mut state = self.lock();
        if let Some(notice) = state.notices.pop_front() {
            return Some(Ok(notice));
        }
        if batches && let Some(batch) = state.batches.pop_front() {
            state.records -= batch.records.len();
            state.bytes -= bytes(&batch);
            if state.half_empty() {
                self.room.notify_one();
            }
            return Some(Ok(Delivery::Batch(batch)));
        }
        let reason = state.stopped.clone()?;
        Some(Err(Error::Stopped(reason)))
    }

    /// Waits for the next delivery, or notice. Cancel-safe: a delivery leaves the queue only in the poll that returns
    /// it.
    pub(super) async fn next(&self, batches: bool) -> Result<Delivery, Error> {
        loop {
            let readable = self.readable.notified();
            if let Some(delivery) = self.pop(batches) {
                return delivery;
            }
            readable.await;
        }
    }

    /// Ends the queue with a reason, after everything that is queued.
    pub(super) fn stop(&self, reason: &str) {
        self.lock().stopped.get_or_insert_with(|| reason.into());
        self.readable.notify_one();
    }

    /// Number of assigned partitions.
    pub(super) fn count(&self) -> usize {
        self.lock().assigned.len()
    }

    /// The first of these partitions that the member does not own. One with an undelivered revoke or assignment is not
    /// owned: the member would commit a position from before the revoke, and set the group's position back.
    pub(super) fn first_not_owned<'a>(
        &self,
        mut of: impl Iterator<Item = &'a Partition>,
    ) -> Option<Partition> {
        let state = self.lock();
        of.find(|partition| !state.owns(partition)).cloned()
    }

    /// Stores an acknowledged commit, or the position that the group had at the assignment.
    pub(super) fn set_committed(&self, partition: &Partition, resume: Resume) {
        if let Some(assigned) = self.lock().assigned.get_mut(partition) {
            assigned.commit(resume);
        }
    }

    /// The group's position when this partition was assigned; `None` as long as that is unknown.
    pub(super) fn began(&self, partition: &Partition) -> Option<Resume> {
        self.lock().assigned.get(partition)?.began
    }

    /// Stores an end offset.
    pub(super) fn set_end(&self, partition: &Partition, end: Offset) {
        if let Some(assigned) = self.lock().assigned.get_mut(partition) {
            assigned.end = assigned.end.max(Some(end));
        }
    }

    /// Status of each assigned partition, sorted.
    pub(super) fn status(&self) -> Vec<PartitionStatus> {
        self.lock()
            .assigned
            .iter()
            .map(|(partition, assigned)| PartitionStatus {
                partition: partition.clone(),
                end: assigned.end,
                committed: assigned.committed,
                oldest: assigned.marks.front().map(|(_, time)| *time),
            })
            .collect()
    }
}

impl State {
    /// Whether a partition is assigned and all notices about it are delivered.
    fn owns(&self, partition: &Partition) -> bool {
        let undelivered = self
            .notices
            .iter()
            .any(|notice| notice.changes_owner_of(partition));
        self.assigned.contains_key(partition) && !undelivered
    }

    /// Drops the queued batches of these partitions.
    fn drop_batches(&mut self, partitions: &[Partition]) {
        let kept = |batch: &Batch| !partitions.contains(&batch.partition);
        self.batches.retain(kept);
        self.paused_batches.retain(kept);
        self.count();
    }

    /// Counts records and bytes of queued batches that are not paused.
    fn count(&mut self) {
        (self.records, self.bytes) = self.batches.iter().fold((0, 0), |(records, size), batch| {
            (records + batch.records.len(), size + bytes(batch))
        });
    }

    fn full(&self) -> bool {
        self.bytes >= FULL_BYTES || self.records >= FULL_RECORDS
    }

    fn half_empty(&self) -> bool {
        self.bytes <= FULL_BYTES / 2 && self.records <= FULL_RECORDS / 2
    }
}

fn bytes(batch: &Batch) -> usize {
    batch.records.iter().map(size).sum()
}

/// Memory of a record in bytes, structures around the bytes included.
pub(super) fn size(record: &Record) -> usize {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 64)
        .sum();
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    length(&record.key) + length(&record.value) + headers + 160
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearshore_core::user::record::Position;

    fn partition(number: i32) -> Partition {
        Partition {
            incarnation: 0,
            topic: "t".into(),
            number,
        }
    }

    fn batch(number: i32, offsets: std::ops::Range<i64>, value: usize) -> Batch {
        let end = Offset(offsets.end);
        let records = offsets
            .map(|offset| Record {
                position: Position {
                    partition: partition(number),
                    offset: Offset(offset),
                },
                time: Timestamp(1_000 + offset),
                key: None,
                value: Some(vec![0; value].into()),
                headers: Vec::new(),
            })
            .collect();
        Batch {
            partition: partition(number),
            records,
            end,
        }
    }

    fn delivered(intake: &Intake) -> Vec<String> {
        std::iter::from_fn(|| intake.pop(true))
            .map(|delivery| match delivery.expect("not stopped") {
                Delivery::Assigned(of) => format!("+{:?}", numbers(&of)),
                Delivery::Revoked { partitions, lost } => {
                    format!("-{:?}{}", numbers(&partitions), if lost { "!" } else { "" })
                }
                Delivery::Batch(batch) => {
                    format!("{}x{}", batch.partition.number, batch.records.len())
                }
            })
            .collect()
    }

    fn numbers(of: &[Partition]) -> Vec<i32> {
        of.iter().map(|partition| partition.number).collect()
    }

    #[test]
    fn batches_of_a_paused_topic_do_not_fill_the_intake_and_keep_their_order() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        assert_eq!(delivered(&intake), ["+[0, 1]"]);
        intake.offer(batch(0, 0..8_000, 1)).expect("room");
        intake.offer(batch(0, 8_000..8_001, 1)).expect_err("full");
        intake.pause(&["t".into()]);
        intake.offer(batch(0, 8_000..8_002, 1)).expect("paused");
        intake.offer(batch(1, 0..3, 1)).expect("paused");
        assert_eq!(delivered(&intake), [""; 0]);
        assert!(
            intake.wait_for_room(Duration::ZERO),
            "room for other topics"
        );
        intake.revoke(&[partition(1)], false);
        intake.pause(&["other".into()]);
        intake
            .offer(batch(0, 8_002..8_003, 1))
            .expect_err("full again");
        assert_eq!(delivered(&intake), ["-[1]", "0x8000", "0x2"]);
    }

    #[test]
    fn no_batch_of_a_partition_is_delivered_after_its_revoke() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        assert_eq!(delivered(&intake), ["+[0, 1]"]);
        intake.offer(batch(0, 0..3, 1)).expect("room");
        intake.offer(batch(1, 0..2, 1)).expect("room");
        intake.revoke(&[partition(0)], false);
        // The poll thread still had a batch of it.
        intake
            .offer(batch(0, 3..4, 1))
            .expect("dropped, not refused");
        assert_eq!(delivered(&intake), ["-[0]", "1x2"]);
        assert_eq!(
            intake.first_not_owned([partition(1), partition(0)].iter()),
            Some(partition(0))
        );
    }

    #[test]
    fn an_undelivered_assignment_is_removed_by_its_revoke() {
        let intake = Intake::default();
        intake.assign(vec![partition(0)]);
        delivered(&intake);
        intake.revoke(&[partition(0)], true);
        intake.assign(vec![partition(0), partition(1)]);
        intake.revoke(&[partition(0)], false);
        assert_eq!(delivered(&intake), ["-[0]!", "+[1]"]);
    }

    #[test]
    fn notices_stay_bounded_however_often_the_group_rebalances() {
        let intake = Intake::default();
        for _ in 0..1_000 {
            intake.assign(vec![partition(0), partition(1)]);
            intake.revoke(&[partition(0), partition(1)], false);
        }
        assert!(intake.lock().notices.len() <= 4);
    }

    #[test]
    fn a_full_intake_returns_the_batch_and_accepts_more_at_half() {
        let intake = Intake::default();
        intake.assign(vec![partition(0)]);
        let mut at = 0;
        let refused = loop {
            match intake.offer(batch(0, at..at + 500, 4_000)) {
                Ok(()) => at += 500,
                Err(batch) => break batch,
            }
        };
        assert_eq!(refused.records.len(), 500);
        assert!(intake.lock().bytes < FULL_BYTES + 500 * 4_200);
        assert!(!intake.wait_for_room(Duration::from_millis(1)));
        while !intake.lock().half_empty() {
            intake.pop(true);
        }
        assert!(intake.wait_for_room(Duration::ZERO));
        intake.revoke(&[partition(0)], false);
        let state = intake.lock();
        assert_eq!((state.bytes, state.records), (0, 0));
    }

    #[test]
    fn a_notice_is_delivered_while_batches_must_wait() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        intake.offer(batch(1, 0..2, 1)).expect("room");
        intake.revoke(&[partition(0)], false);
        assert!(matches!(intake.pop(false), Some(Ok(Delivery::Assigned(_)))));
        assert!(intake.pop(false).is_none());
        assert_eq!(delivered(&intake), ["1x2"]);
    }

    #[test]
    fn no_record_read_before_a_rewind_is_delivered_after_it() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        delivered(&intake);
        intake.offer(batch(0, 5..8, 1)).expect("room");
        intake.offer(batch(1, 0..2, 1)).expect("room");
        intake.rewind(&[(partition(0), Resume(2)), (partition(7), Resume(1))]);
        // The poll thread still had a batch of it.
        intake
            .offer(batch(0, 8..9, 1))
            .expect("dropped, not refused");
        assert_eq!(intake.rewinds(), [(partition(0), Resume(2))]);
        assert_eq!(delivered(&intake), ["1x2"]);
        intake.rewind(&[(partition(0), Resume(1))]);
        intake.rewound(&partition(0), Resume(2));
        assert_eq!(intake.rewinds(), [(partition(0), Resume(1))]);
        intake.rewound(&partition(0), Resume(1));
        intake.offer(batch(0, 1..9, 1)).expect("room");
        assert_eq!(delivered(&intake), ["0x8"]);
    }

    #[test]
    fn a_rewind_of_a_partition_with_an_undelivered_revoke_is_ignored() {
        let intake = Intake::default();
        intake.assign(vec![partition(0)]);
        delivered(&intake);
        intake.revoke(&[partition(0)], false);
        intake.assign(vec![partition(0)]);
        intake.offer(batch(0, 3..5, 1)).expect("room");
        intake.rewind(&[(partition(0), Resume(9))]);
        assert_eq!(intake.rewinds(), []);
        assert_eq!(delivered(&intake), ["-[0]", "+[0]", "0x2"]);
    }

    #[test]
    fn the_oldest_uncommitted_record_is_the_first_of_the_first_uncommitted_batch() {
        let intake = Intake::default();
        intake.assign(vec![partition(0)]);
        let oldest = || intake.status()[0].oldest;
        intake.offer(batch(0, 0..10, 1)).expect("room");
        intake.offer(batch(0, 10..20, 1)).expect("room");
        assert_eq!(oldest(), Some(Timestamp(1_000)));
        intake.set_committed(&partition(0), Resume(10));
        assert_eq!(oldest(), Some(Timestamp(1_010)));
        intake.set_committed(&partition(0), Resume(20));
        assert_eq!(oldest(), None);
        assert_eq!(intake.status()[0].end, Some(Offset(20)));
    }

    #[tokio::test]
    async fn a_dropped_next_loses_nothing() {
        let intake = std::sync::Arc::new(Intake::default());
        for round in 0..100 {
            let waiting = tokio::time::timeout(Duration::ZERO, intake.next(true));
            assert!(waiting.await.is_err(), "round {round}");
            intake.assign(vec![partition(round)]);
            drop(intake.next(true));
            assert_eq!(delivered(&intake), [format!("+[{round}]")]);
        }
        intake.stop("over");
        let end = intake.next(true).await;
        assert!(matches!(end, Err(Error::Stopped(reason)) if reason == "over"));
    }
}
