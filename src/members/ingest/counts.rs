//! Adding events to the counts: [`CountChains`].
//!
//! Invariant: the store adds a delta only onto the fence that the delta was cut from, so each event is counted once,
//! however often its batch is handled. A wrong fence here costs one more call, never a wrong count.

use std::collections::BTreeMap;

use nearshore_core::ports::keys;
use nearshore_core::ports::store::{self, Added, Cell, Delta, Store};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::shop::demand::BUCKET_MS;
use nearshore_core::user::plan::Counted;
use nearshore_core::user::record::{Offset, Partition};

/// Fences of the counts as the store last answered, by partition and shard.
#[derive(Default)]
pub(super) struct CountChains(BTreeMap<Partition, BTreeMap<u8, Offset>>);

impl CountChains {
    /// Adds events, all partitions in one call. Cuts the deltas again from the stored fences until all are added.
    pub(super) async fn add<S: Store>(
        &mut self,
        store: &S,
        ns: &str,
        mut counted: BTreeMap<Partition, Vec<Counted>>,
    ) -> Result<(), store::Error> {
        for (partition, events) in &mut counted {
            events.sort_by_key(|event| event.position.offset);
            if !self.0.contains_key(partition) {
                let fences = store.count_fences(ns, partition).await?;
                self.0.insert(partition.clone(), fences);
            }
        }
        loop {
            let mut all = Vec::new();
            for (partition, events) in &counted {
                let fences = self.0.entry(partition.clone()).or_default();
                all.extend(cut(partition, events, fences));
            }
            if all.is_empty() {
                return Ok(());
            }
            let outcomes = store.add(ns, &all).await?;
            for (delta, outcome) in all.into_iter().zip(outcomes) {
                self.settle(delta, outcome);
            }
        }
    }

    /// Remembers the fence that the store has after an [`CountChains::add`].
    fn settle(&mut self, delta: Delta, outcome: Added) {
        let fence = match outcome {
            Added::Stored => Some(delta.last),
            Added::Fence(fence) => fence,
        };
        let fences = self.0.entry(delta.partition).or_default();
        match fence {
            Some(fence) => fences.insert(delta.shard, fence),
            None => fences.remove(&delta.shard),
        };
    }

    /// Forgets the fences of partitions that were assigned or revoked: another member may have added to them.
    pub(super) fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.0.remove(partition);
        }
    }

    /// Forgets all fences.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Cuts those of `events` (sorted by offset) that are above their shard's fence into one delta per shard.
fn cut(partition: &Partition, events: &[Counted], fences: &BTreeMap<u8, Offset>) -> Vec<Delta> {
    // Sorted by shard and cell first: a cell is then built once, however many events are in it.
    type CellKey<'a> = (u8, &'a str, CountKind, &'a str, i64);
    let mut new: Vec<(CellKey<'_>, u64, Offset)> = Vec::with_capacity(events.len());
    for event in events {
        let shard = keys::shard(&event.sku);
        let offset = event.position.offset;
        if fences.get(&shard).copied() >= Some(offset) {
            continue;
        }
        let bucket = event.time.0.div_euclid(BUCKET_MS);
        let key = (shard, &*event.sku, event.kind, &*event.segment, bucket);
        new.push((key, event.n, offset));
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
                prev: fences.get(&shard).copied(),
                last,
                cells: BTreeMap::new(),
            });
        }
        let delta = deltas
            .last_mut()
            .expect("a delta of this shard was just found or pushed");
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
