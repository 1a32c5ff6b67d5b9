//! What ingest hands to its edges: writes, deltas, dead letters and records, made of what was decided.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::metrics::{self, EventOutcome, EventType, RecordOutcome, Stage};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Cell, Delta, FoldWrite, ListEdit};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::demand::BUCKET_MS;
use nearshore_core::user::event::{self, Kind, UserId};
use nearshore_core::user::plan::{Counted, Edit, Plan};
use nearshore_core::user::record::{Offset, Partition, Record};

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
            claim: list.claim,
            doc: list.doc.to_json(),
        },
    };
    FoldWrite {
        user: user.clone(),
        expected: plan.held.ver,
        state: std::mem::take(&mut plan.held.state),
        activity: plan.held.activity.clone(),
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
        let shard = keys::shard(&event.sku);
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
