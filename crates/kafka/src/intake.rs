//! The channel between poll thread and role, which can take back: [`Intake`].
//!
//! Decides what is delivered next, when the poll thread must stop taking records, and which partitions
//! are ours. Invariants: a revoke removes the partition's undelivered batches in the same step in which
//! it ends the ownership, so nothing of a partition is delivered after its revoke; assigns and revokes
//! overtake batches but never each other; memory is bounded by [`FULL_BYTES`] and [`FULL_RECORDS`] plus
//! one batch, and by two notices per partition; what is held back is bounded by as much again. It does not know Kafka.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use nearshore_core::ports::log::{Batch, Delivery, Error};
use nearshore_core::user::record::{Offset, Partition, Record, Resume, Timestamp};

/// Bytes at which the intake is full: a role that folds 100 MB/s has 80 ms of work waiting, which is
/// longer than the poll thread needs to bring more.
pub(super) const FULL_BYTES: usize = 8 << 20;
/// Records at which the intake is full: 16 full batches, for records are often far smaller.
pub(super) const FULL_RECORDS: usize = 8_000;
/// Uncommitted batches whose times are kept per partition, for lag; beyond it they are merged.
const MARKS_MAX: usize = 1_024;

/// Where a partition of ours stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: Partition,
    /// End offset as last seen; `None` before the first fetch.
    pub end: Option<Offset>,
    /// Committed position; `None` as long as it is unknown or nothing was committed.
    pub committed: Option<Resume>,
    /// Time of the oldest record that was read and is not committed, to the batch.
    pub oldest: Option<Timestamp>,
}

#[derive(Default)]
struct Own {
    end: Option<Offset>,
    committed: Option<Resume>,
    /// The first such position that we heard of: where the group stood when we came.
    began: Option<Resume>,
    /// Last offset and first time of each uncommitted batch, in order.
    marks: VecDeque<(Offset, Timestamp)>,
    /// Where reading is to go on; until the poll thread is there, what it still brings is dropped.
    rewind: Option<Resume>,
}

impl Own {
    fn mark(&mut self, batch: &Batch) {
        let (Some(first), Some(last)) = (batch.records.first(), batch.records.last()) else {
            return;
        };
        let many = self.marks.len() >= MARKS_MAX;
        match self.marks.back_mut() {
            Some(back) if many => back.0 = last.position.offset,
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
    /// Topics that are held back.
    held: BTreeSet<Arc<str>>,
    /// Their batches, which must not fill the intake for the others.
    aside: VecDeque<Batch>,
    records: usize,
    bytes: usize,
    own: BTreeMap<Partition, Own>,
    stopped: Option<String>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Intake {
    state: Mutex<State>,
    readable: Notify,
    room: Condvar,
}

impl Intake {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves counters at worst off by one batch: better than a second panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These partitions are ours from now on.
    pub fn assign(&self, partitions: Vec<Partition>) {
        let mut state = self.lock();
        for partition in &partitions {
            state.own.insert(partition.clone(), Own::default());
        }
        state.notices.push_back(Delivery::Assigned(partitions));
        drop(state);
        self.readable.notify_one();
    }

    /// These are ours no longer. One whose assign was not delivered yet is simply forgotten.
    pub fn revoke(&self, partitions: &[Partition], lost: bool) {
        let mut state = self.lock();
        for partition in partitions {
            state.own.remove(partition);
        }
        state.forget(partitions);
        let mut untold: Vec<Partition> = partitions.to_vec();
        for notice in &mut state.notices {
            if let Delivery::Assigned(waiting) = notice {
                untold.retain(|partition| !waiting.contains(partition));
                waiting.retain(|partition| !partitions.contains(partition));
            }
        }
        state
            .notices
            .retain(|notice| !matches!(notice, Delivery::Assigned(none) if none.is_empty()));
        if !untold.is_empty() {
            state.notices.push_back(Delivery::Revoked {
                partitions: untold,
                lost,
            });
        }
        drop(state);
        self.readable.notify_one();
        self.room.notify_one();
    }

    /// Reading of these is to go on from there: what waits of them is taken back. One that went and came back is not
    /// ours until the role was told: its reading begins where the group stands, which the role has yet to ask for.
    pub fn rewind(&self, to: &[(Partition, Resume)]) {
        let mut state = self.lock();
        let known = |(partition, _): &&(Partition, Resume)| state.knows(partition);
        let to: Vec<(Partition, Resume)> = to.iter().filter(known).cloned().collect();
        let of: Vec<Partition> = to.iter().map(|(partition, _)| partition.clone()).collect();
        state.forget(&of);
        for (partition, resume) in to {
            if let Some(own) = state.own.get_mut(&partition) {
                own.rewind = Some(resume);
                own.marks.clear();
            }
        }
        drop(state);
        self.room.notify_one();
    }

    /// Partitions whose reading is to go on elsewhere.
    pub fn rewinds(&self) -> Vec<(Partition, Resume)> {
        let state = self.lock();
        let asked = state.own.iter();
        asked
            .filter_map(|(partition, own)| Some((partition.clone(), own.rewind?)))
            .collect()
    }

    /// The poll thread reads on from there; unless it was asked for another place meanwhile.
    pub fn rewound(&self, partition: &Partition, to: Resume) {
        if let Some(own) = self.lock().own.get_mut(partition) {
            own.rewind = own.rewind.filter(|asked| *asked != to);
        }
    }

    /// Batches of these topics, and of no others, wait aside; what waited aside of others comes first.
    pub fn pause(&self, topics: &[Arc<str>]) {
        let mut state = self.lock();
        state.held = topics.iter().cloned().collect();
        let all = std::mem::take(&mut state.aside).into_iter();
        let all = all.chain(std::mem::take(&mut state.batches));
        let (aside, batches) = all.partition(|batch| state.held.contains(&batch.partition.topic));
        (state.aside, state.batches) = (aside, batches);
        state.count();
        drop(state);
        self.readable.notify_one();
        self.room.notify_one();
    }

    /// Topics that are held back: reading of them is to pause.
    pub fn held(&self) -> BTreeSet<Arc<str>> {
        self.lock().held.clone()
    }

    /// Queues a batch, or gives it back when the intake is full. One of a partition that is not ours vanishes.
    /// One of a topic that is held back goes aside in any case, for the poll thread stops reading it at its next turn.
    pub fn offer(&self, batch: Batch) -> Result<(), Batch> {
        let mut state = self.lock();
        let held = state.held.contains(&batch.partition.topic);
        if state.full() && !held {
            return Err(batch);
        }
        let Some(own) = state.own.get_mut(&batch.partition) else {
            return Ok(());
        };
        if own.rewind.is_some() {
            return Ok(());
        }
        own.mark(&batch);
        if held {
            state.aside.push_back(batch);
            return Ok(());
        }
        state.records += batch.records.len();
        state.bytes += bytes(&batch);
        state.batches.push_back(batch);
        drop(state);
        self.readable.notify_one();
        Ok(())
    }

    /// Waits until the intake is at most half full; false if it is not within `limit`.
    pub fn wait_for_room(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.half_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .room
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// The next delivery, if there is one; with `batches` false, the next notice.
    pub fn take(&self, batches: bool) -> Option<Result<Delivery, Error>> {
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
        let why = state.stopped.clone()?;
        Some(Err(Error::Stopped(why)))
    }

    /// The next delivery, or notice. Cancel-safe: a delivery leaves the queue only in the poll that returns it.
    pub async fn next(&self, batches: bool) -> Result<Delivery, Error> {
        loop {
            let readable = self.readable.notified();
            if let Some(delivery) = self.take(batches) {
                return delivery;
            }
            readable.await;
        }
    }

    /// No more will come; what is queued is still delivered.
    pub fn stop(&self, why: &str) {
        self.lock().stopped.get_or_insert_with(|| why.into());
        self.readable.notify_one();
    }

    /// How many partitions are ours.
    pub fn count(&self) -> usize {
        self.lock().own.len()
    }

    /// The first of these that is not ours, as far as the role knows: one that went and came back is not, until
    /// the role was told. What it would commit is from before, and would set the position back.
    pub fn foreign<'a>(&self, mut of: impl Iterator<Item = &'a Partition>) -> Option<Partition> {
        let state = self.lock();
        of.find(|partition| !state.knows(partition)).cloned()
    }

    /// Notes a commit that was acknowledged, or the position that the group had when we came.
    pub fn committed(&self, partition: &Partition, resume: Resume) {
        if let Some(own) = self.lock().own.get_mut(partition) {
            own.commit(resume);
        }
    }

    /// Where the group stood when this partition became ours; `None` as long as that is unknown.
    pub fn began(&self, partition: &Partition) -> Option<Resume> {
        self.lock().own.get(partition)?.began
    }

    /// Notes an end offset.
    pub fn ended(&self, partition: &Partition, end: Offset) {
        if let Some(own) = self.lock().own.get_mut(partition) {
            own.end = own.end.max(Some(end));
        }
    }

    /// Where each partition of ours stands, sorted.
    pub fn status(&self) -> Vec<PartitionStatus> {
        self.lock()
            .own
            .iter()
            .map(|(partition, own)| PartitionStatus {
                partition: partition.clone(),
                end: own.end,
                committed: own.committed,
                oldest: own.marks.front().map(|(_, time)| *time),
            })
            .collect()
    }
}

impl State {
    /// Whether a partition is ours, and the role was told all that it went through.
    fn knows(&self, partition: &Partition) -> bool {
        let untold = self
            .notices
            .iter()
            .any(|notice| notice.changes_owner_of(partition));
        self.own.contains_key(partition) && !untold
    }

    /// Takes back what waits of these.
    fn forget(&mut self, partitions: &[Partition]) {
        let kept = |batch: &Batch| !partitions.contains(&batch.partition);
        self.batches.retain(kept);
        self.aside.retain(kept);
        self.count();
    }

    /// How much waits and is not aside.
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

/// Bytes that a record holds, with what the structures around them take.
pub(super) fn size(record: &Record) -> usize {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 64)
        .sum();
    let held = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    held(&record.key) + held(&record.value) + headers + 160
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

    fn told(intake: &Intake) -> Vec<String> {
        std::iter::from_fn(|| intake.take(true))
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
    fn what_is_held_back_fills_nothing_and_keeps_its_order() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        assert_eq!(told(&intake), ["+[0, 1]"]);
        intake.offer(batch(0, 0..8_000, 1)).expect("room");
        intake.offer(batch(0, 8_000..8_001, 1)).expect_err("full");
        intake.pause(&["t".into()]);
        intake.offer(batch(0, 8_000..8_002, 1)).expect("aside");
        intake.offer(batch(1, 0..3, 1)).expect("aside");
        assert_eq!(told(&intake), [""; 0]);
        assert!(intake.wait_for_room(Duration::ZERO), "for other topics");
        intake.revoke(&[partition(1)], false);
        intake.pause(&["other".into()]);
        intake
            .offer(batch(0, 8_002..8_003, 1))
            .expect_err("full again");
        assert_eq!(told(&intake), ["-[1]", "0x8000", "0x2"]);
    }

    #[test]
    fn nothing_of_a_partition_is_delivered_after_its_revoke() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        assert_eq!(told(&intake), ["+[0, 1]"]);
        intake.offer(batch(0, 0..3, 1)).expect("room");
        intake.offer(batch(1, 0..2, 1)).expect("room");
        intake.revoke(&[partition(0)], false);
        // The poll thread still had some in hand.
        intake
            .offer(batch(0, 3..4, 1))
            .expect("dropped, not refused");
        assert_eq!(told(&intake), ["-[0]", "1x2"]);
        assert_eq!(
            intake.foreign([partition(1), partition(0)].iter()),
            Some(partition(0))
        );
    }

    #[test]
    fn an_assignment_that_was_never_told_is_taken_back_silently() {
        let intake = Intake::default();
        intake.assign(vec![partition(0)]);
        told(&intake);
        intake.revoke(&[partition(0)], true);
        intake.assign(vec![partition(0), partition(1)]);
        intake.revoke(&[partition(0)], false);
        assert_eq!(told(&intake), ["-[0]!", "+[1]"]);
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
    fn a_full_intake_gives_the_batch_back_and_opens_at_half() {
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
            intake.take(true);
        }
        assert!(intake.wait_for_room(Duration::ZERO));
        intake.revoke(&[partition(0)], false);
        let state = intake.lock();
        assert_eq!((state.bytes, state.records), (0, 0));
    }

    #[test]
    fn a_notice_comes_also_where_batches_must_wait() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        intake.offer(batch(1, 0..2, 1)).expect("room");
        intake.revoke(&[partition(0)], false);
        assert!(matches!(
            intake.take(false),
            Some(Ok(Delivery::Assigned(_)))
        ));
        assert!(intake.take(false).is_none());
        assert_eq!(told(&intake), ["1x2"]);
    }

    #[test]
    fn nothing_read_before_a_rewind_is_delivered_after_it() {
        let intake = Intake::default();
        intake.assign(vec![partition(0), partition(1)]);
        told(&intake);
        intake.offer(batch(0, 5..8, 1)).expect("room");
        intake.offer(batch(1, 0..2, 1)).expect("room");
        intake.rewind(&[(partition(0), Resume(2)), (partition(7), Resume(1))]);
        // The poll thread still had some in hand.
        intake
            .offer(batch(0, 8..9, 1))
            .expect("dropped, not refused");
        assert_eq!(intake.rewinds(), [(partition(0), Resume(2))]);
        assert_eq!(told(&intake), ["1x2"]);
        intake.rewind(&[(partition(0), Resume(1))]);
        intake.rewound(&partition(0), Resume(2));
        assert_eq!(intake.rewinds(), [(partition(0), Resume(1))]);
        intake.rewound(&partition(0), Resume(1));
        intake.offer(batch(0, 1..9, 1)).expect("room");
        assert_eq!(told(&intake), ["0x8"]);
    }

    #[test]
    fn a_rewind_of_what_came_back_untold_does_nothing() {
        let intake = Intake::default();
        intake.assign(vec![partition(0)]);
        told(&intake);
        intake.revoke(&[partition(0)], false);
        intake.assign(vec![partition(0)]);
        intake.offer(batch(0, 3..5, 1)).expect("room");
        intake.rewind(&[(partition(0), Resume(9))]);
        assert_eq!(intake.rewinds(), []);
        assert_eq!(told(&intake), ["-[0]", "+[0]", "0x2"]);
    }

    #[test]
    fn the_oldest_uncommitted_record_is_the_first_of_the_first_open_batch() {
        let intake = Intake::default();
        intake.assign(vec![partition(0)]);
        let oldest = || intake.status()[0].oldest;
        intake.offer(batch(0, 0..10, 1)).expect("room");
        intake.offer(batch(0, 10..20, 1)).expect("room");
        assert_eq!(oldest(), Some(Timestamp(1_000)));
        intake.committed(&partition(0), Resume(10));
        assert_eq!(oldest(), Some(Timestamp(1_010)));
        intake.committed(&partition(0), Resume(20));
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
            assert_eq!(told(&intake), [format!("+[{round}]")]);
        }
        intake.stop("over");
        assert!(matches!(intake.next(true).await, Err(Error::Stopped(why)) if why == "over"));
    }
}
