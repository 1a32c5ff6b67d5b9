//! What ingest hands to its edges: writes, deltas, dead letters and records, made of what was decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{BUCKET_MS, Error};
use crate::event::{self, Kind, Reject, UserId};
use crate::intake::{Counted, Edit, Plan};
use crate::log::bury::Graves;
use crate::log::dlq::{Failure, dead};
use crate::log::{Log, Outgoing};
use crate::metrics::{self, EventOutcome, EventType, RecordOutcome, Stage};
use crate::record::{Offset, Partition, Record};
use crate::store::{self, Cell, Delta, FoldWrite, ListEdit};
use crate::topics::Topics;
use crate::trigger::Request;

pub(super) fn count_records(seen: &BTreeMap<(Arc<str>, EventType, EventOutcome), u64>) {
    for ((topic, kind, outcome), n) in seen {
        metrics::events(*kind, *outcome, *n);
        let record = match outcome {
            EventOutcome::Folded => RecordOutcome::Folded,
            EventOutcome::Passed => RecordOutcome::Passed,
            EventOutcome::Duplicate => RecordOutcome::Duplicate,
        };
        metrics::records(topic, record, *n);
    }
}

/// Takes the state out of the plan: a window is too much to copy for each write. [`give_back`] undoes it.
pub(super) fn write_of(user: &UserId, plan: &mut Plan) -> FoldWrite {
    let list = match &plan.edit {
        Edit::Keep => ListEdit::Keep,
        Edit::First(doc, at) => ListEdit::First {
            doc: doc.to_json(),
            audit: "{}".into(),
            at: *at,
        },
        Edit::Strip(list) => ListEdit::Strip {
            ticket: list.ticket,
            doc: list.doc.to_json(),
        },
    };
    FoldWrite {
        user: user.clone(),
        expected: plan.held.ver,
        state: std::mem::take(&mut plan.held.state),
        mark: plan.held.mark.clone(),
        profile_changed: plan.profile_changed,
        list,
    }
}

/// The written state belongs to its plan again.
pub(super) fn give_back(write: FoldWrite, plan: &mut Plan) {
    plan.held.state = write.state;
}

/// What of `events` (sorted by offset) is above each shard's fence, as deltas chained to it.
pub(super) fn deltas(
    partition: &Partition,
    events: &[Counted],
    chain: &BTreeMap<u8, Offset>,
) -> Vec<Delta> {
    // By what they are counted under first: a cell is made once, however many events are in it.
    type Under<'a> = (u8, &'a str, Kind, &'a str, i64);
    let mut new: Vec<(Under<'_>, u64, Offset)> = Vec::with_capacity(events.len());
    for event in events {
        let shard = store::keys::shard(&event.sku);
        let offset = event.position.offset;
        if chain.get(&shard).copied() >= Some(offset) {
            continue;
        }
        let bucket = event.time.0.div_euclid(BUCKET_MS);
        let under = (shard, &*event.sku, event.kind, &*event.segment, bucket);
        new.push((under, event.n, offset));
    }
    new.sort_unstable();
    let mut deltas: Vec<Delta> = Vec::new();
    for same in new.chunk_by(|one, other| one.0 == other.0) {
        let (shard, sku, kind, segment, bucket) = same[0].0;
        let last = same.iter().map(|(.., offset)| *offset).max();
        let last = last.expect("a chunk is never empty");
        if deltas.last().is_none_or(|delta| delta.shard != shard) {
            deltas.push(Delta {
                shard,
                partition: partition.clone(),
                prev: chain.get(&shard).copied(),
                last,
                cells: BTreeMap::new(),
            });
        }
        let delta = deltas.last_mut().expect("pushed");
        delta.last = delta.last.max(last);
        let cell = Cell {
            sku: sku.to_owned(),
            kind,
            segment: segment.to_owned(),
            bucket,
        };
        let n = same.iter().map(|(_, n, _)| n).sum();
        delta.cells.insert(cell, n);
    }
    deltas
}

pub(super) fn stage(topics: &Topics, record: &Record) -> Stage {
    match topics.source(&record.position.partition.topic) {
        event::Source::Events => Stage::Event,
        event::Source::Profiles(_) => Stage::Profile,
    }
}

/// A record that cannot be used, as it goes to `dlq`.
pub fn letter(
    (dlq, group): (&Arc<str>, &str),
    record: &Record,
    (stage, reject): (Stage, &Reject),
) -> Outgoing {
    let failure = Failure {
        group,
        // Connect numbers its tasks; members of a group have no number.
        member: "0",
        stage: stage.text(),
        code: reject.code(),
        message: &reject.to_string(),
        causes: "",
    };
    dead(record, &failure, dlq)
}

/// Buries what cannot be used; counts each letter once, when it is acknowledged, and those that wait until then.
pub async fn bury<L: Log>(
    graves: &mut Graves,
    log: &L,
    (dlq, group): (&Arc<str>, &str),
    rejects: &[(&Record, Stage, &Reject)],
) -> Result<(), Error> {
    if rejects.is_empty() {
        return Ok(());
    }
    let mut waiting: BTreeMap<Stage, usize> = BTreeMap::new();
    for (_, stage, _) in rejects {
        *waiting.entry(*stage).or_default() += 1;
    }
    for (stage, letters) in &waiting {
        metrics::dlq_waiting(*stage, *letters);
    }
    let letters = rejects.iter().map(|(record, stage, reject)| {
        let letter = letter((dlq, group), record, (*stage, reject));
        (record.position.clone(), letter)
    });
    let buried = graves.bury(log, letters.collect()).await;
    for nth in buried.new {
        let (record, stage, reject) = rejects[nth];
        metrics::dlq(stage, reject.code(), 1);
        metrics::records(&record.position.partition.topic, RecordOutcome::Dlq, 1);
    }
    let left = buried.left;
    if let Err(source) = buried.outcome {
        return Err(Error::Dlq { left, source });
    }
    for stage in waiting.into_keys() {
        metrics::dlq_waiting(stage, 0);
    }
    Ok(())
}

/// A request as a record of its lane, keyed by the user.
pub fn request_record(topics: &Topics, request: &Request) -> Outgoing {
    Outgoing {
        topic: topics.lane(request.lane),
        key: Some(Bytes::copy_from_slice(request.user.0.as_bytes())),
        value: Some(Bytes::from(
            serde_json::to_vec(request).expect("a request is plain data"),
        )),
        headers: Vec::new(),
        time: None,
    }
}

/// A record on `recall-updates`, keyed `ns/user`; no value deletes it.
pub fn update_record(topics: &Topics, ns: &str, user: &UserId, value: Option<String>) -> Outgoing {
    Outgoing {
        topic: topics.recall_updates.clone(),
        key: Some(Bytes::from(format!("{ns}/{user}"))),
        value: value.map(Bytes::from),
        headers: Vec::new(),
        time: None,
    }
}
