//! The double's sets of sold-out SKUs, and their blocks.
//!
//! Invariant: a record at or below the set's fence of its partition changes nothing, and a blocked SKU stays sold out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Inner;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Availability, Block, StockRecord};
use nearshore_core::user::record::{Offset, Partition, Timestamp};

/// How long a delisted SKU stays in its set: the default of `redis.list_ttl`.
const LIST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    pub(super) out: BTreeSet<String>,
    fences: BTreeMap<Partition, Offset>,
    blocked: BTreeMap<String, Blocked>,
    gone: BTreeMap<String, Timestamp>,
}

impl Set {
    /// Applies a record; false if it was applied before. `again`: the record before it has its position and was applied.
    fn apply(&mut self, op: &StockRecord, again: bool) -> bool {
        if !again && self.fences.get(&op.partition) >= Some(&op.offset) {
            return false;
        }
        self.fences.insert(op.partition.clone(), op.offset);
        let out = op.availability != Availability::InStock;
        if let Some(blocked) = self.blocked.get_mut(&op.sku) {
            blocked.out = out;
        } else if out {
            self.out.insert(op.sku.clone());
        } else {
            self.out.remove(&op.sku);
        }
        if op.availability == Availability::Delisted {
            self.gone.insert(op.sku.clone(), op.time);
        } else {
            self.gone.remove(&op.sku);
        }
        true
    }

    /// Removes SKUs that were delisted so long ago that no list can name them.
    fn prune(&mut self, now: Timestamp) {
        let (out, blocked) = (&mut self.out, &self.blocked);
        self.gone.retain(|sku, time| {
            let keep = now.since(*time) <= LIST_TTL || blocked.contains_key(sku);
            if !keep {
                out.remove(sku);
            }
            keep
        });
    }
}

#[derive(Clone, Debug)]
struct Blocked {
    out: bool,
    by: BTreeSet<String>,
}

impl Inner {
    pub(super) fn stock(&mut self, ops: &[StockRecord]) {
        let mut newest: BTreeMap<u8, Timestamp> = BTreeMap::new();
        let mut last: BTreeMap<u8, (&Partition, Offset)> = BTreeMap::new();
        for op in ops {
            let nth = keys::set(&op.sku);
            let position = (&op.partition, op.offset);
            let again = last.get(&nth) == Some(&position);
            if self.sets.entry(nth).or_default().apply(op, again) {
                last.insert(nth, position);
                let time = newest.entry(nth).or_default();
                *time = op.time.max(*time);
            }
        }
        for (nth, time) in newest {
            self.sets.entry(nth).or_default().prune(time);
        }
    }

    pub(super) fn block(&mut self, block: &Block) {
        let name = keys::block(&block.id, block.pu);
        self.blocks.insert(name.clone(), block.clone());
        for sku in &block.skus {
            let set = self.sets.entry(keys::set(sku)).or_default();
            let out = set.out.contains(sku);
            let blocked = set.blocked.entry(sku.clone()).or_insert_with(|| Blocked {
                out,
                by: BTreeSet::new(),
            });
            blocked.by.insert(name.clone());
            set.out.insert(sku.clone());
        }
    }

    pub(super) fn unblock(&mut self, name: &str) -> bool {
        for set in self.sets.values_mut() {
            let out = &mut set.out;
            set.blocked.retain(|sku, blocked| {
                let lifted = blocked.by.remove(name) && blocked.by.is_empty();
                if lifted && !blocked.out {
                    out.remove(sku);
                }
                !lifted
            });
        }
        self.blocks.remove(name).is_some()
    }
}
