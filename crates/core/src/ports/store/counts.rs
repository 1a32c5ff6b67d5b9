//! How often each SKU was viewed, bought and so on, per segment and week; the trait [`Counts`].

use std::collections::BTreeMap;
use std::future::Future;

use crate::shop::count_kind::CountKind;
use crate::user::record::{Offset, Partition};

use super::Error;

/// One cell of the counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// SKU id.
    pub sku: String,
    /// What is counted.
    pub kind: CountKind,
    /// Segment of the profile at fold time.
    pub segment: String,
    /// 7-day bucket of record time: `time / 7 d`.
    pub bucket: i64,
}

/// A chained delta of one shard: applied iff the stored fence equals `prev`.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Shard, 0..=255.
    pub shard: u8,
    /// Source partition.
    pub partition: Partition,
    /// Fence that the caller expects to be stored; `None` = none yet.
    pub prev: Option<Offset>,
    /// Fence afterwards.
    pub last: Offset,
    /// What is added.
    pub cells: BTreeMap<Cell, u64>,
}

/// Outcome of a [`Delta`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// Applied.
    Stored,
    /// The stored fence is this one: make the delta again from there.
    Fence(Option<Offset>),
}

/// Counts of a namespace, in 256 shards, each guarded by a fence per source partition.
pub trait Counts: Send + Sync {
    /// Adds chained deltas.
    fn add(
        &self,
        ns: &str,
        deltas: &[Delta],
    ) -> impl Future<Output = Result<Vec<Added>, Error>> + Send;

    /// Count fences of a partition, by shard; absent where nothing was added.
    fn count_fences(
        &self,
        ns: &str,
        partition: &Partition,
    ) -> impl Future<Output = Result<BTreeMap<u8, Offset>, Error>> + Send;

    /// All cells of a shard whose bucket is at least `since`.
    fn counts(
        &self,
        ns: &str,
        shard: u8,
        since: i64,
    ) -> impl Future<Output = Result<BTreeMap<Cell, u64>, Error>> + Send;

    /// A digest of each shard's fences; it differs where the shard changed.
    fn count_versions(
        &self,
        ns: &str,
    ) -> impl Future<Output = Result<BTreeMap<u8, u64>, Error>> + Send;
}
