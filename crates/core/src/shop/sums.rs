//! Integer sums of the cells of counts, which [`Demand`](crate::shop::demand::Demand) is computed from.
//!
//! A bucket without any cell of buyers was counted by a release that had none: the pieces of its purchases take their
//! place.
//!
//! Invariant: the sums do not depend on how cells are split or ordered. It does not know decay.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use fnv::FnvHasher;

use crate::shop::catalogue::{Catalogue, SkuIx};
use crate::shop::count_kind::CountKind;
use crate::shop::demand::Count;
use crate::user::event::Kind;

type Cells<K> = Vec<(K, u64)>;

/// Integer sums of cells, sorted, each key once.
#[derive(Default)]
pub(super) struct Sums<'a> {
    /// Buyers of (PU, bucket) by segment; purchases in buckets without buyers.
    pub(super) bought: BTreeMap<&'a str, Cells<(u32, i64)>>,
    /// Counts of a SKU by counter and bucket.
    pub(super) skus: Cells<(SkuIx, Counter, i64)>,
    /// Events of SKUs that are not in the catalogue.
    pub(super) unknown: u64,
    /// Hash of the cells, equal for equal sums.
    pub(super) digest: u64,
}

/// Counter of a SKU to which an event kind is added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Counter {
    /// Shown.
    Impressions,
    /// Clicked or viewed.
    Clicks,
    /// Pieces bought.
    Purchases,
}

impl<'a> Sums<'a> {
    /// Sums the cells.
    pub(super) fn of(counts: impl Iterator<Item = Count<'a>>, catalogue: &Catalogue) -> Self {
        let mut sums = Self::default();
        let mut pieces: BTreeMap<&str, Cells<(u32, i64)>> = BTreeMap::new();
        let mut with_buyers: BTreeSet<i64> = BTreeSet::new();
        for count in counts {
            let bought = match count.kind {
                CountKind::Buyer => {
                    with_buyers.insert(count.bucket);
                    Some(&mut sums.bought)
                }
                CountKind::Event(Kind::Purchase) => Some(&mut pieces),
                CountKind::Event(_) => None,
            };
            let Some(ix) = catalogue.by_sku(count.sku) else {
                let is_event = count.kind != CountKind::Buyer;
                sums.unknown += if is_event { count.n } else { 0 };
                continue;
            };
            if let Some(bought) = bought {
                let pu = catalogue.pu_of(ix).0;
                let segment = bought.entry(count.segment).or_default();
                segment.push(((pu, count.bucket), count.n));
            }
            if let Some(counter) = counter(count.kind) {
                sums.skus.push(((ix, counter, count.bucket), count.n));
            }
            sums.digest = sums.digest.wrapping_add(digest(&count));
        }
        for (segment, mut cells) in pieces {
            cells.retain(|((_, bucket), _)| !with_buyers.contains(bucket));
            if !cells.is_empty() {
                sums.bought.entry(segment).or_default().append(&mut cells);
            }
        }
        sums.bought.values_mut().for_each(add_up);
        add_up(&mut sums.skus);
        sums
    }
}

/// Sorts cells and sums those with the same key.
fn add_up<K: Ord + Copy>(cells: &mut Cells<K>) {
    cells.sort_unstable();
    cells.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        kept.1 += if same { later.1 } else { 0 };
        same
    });
}

/// The counter of a SKU that a kind of count adds to. A cart leads to a purchase, which is counted itself; a search
/// names no SKU.
fn counter(kind: CountKind) -> Option<Counter> {
    match kind {
        CountKind::Event(Kind::Impression) => Some(Counter::Impressions),
        CountKind::Event(Kind::View | Kind::Click) => Some(Counter::Clicks),
        CountKind::Event(Kind::Purchase) => Some(Counter::Purchases),
        CountKind::Event(Kind::Cart | Kind::Search) | CountKind::Buyer => None,
    }
}

/// A cell's part of the version: linear in `n`, so that it does not depend on how cells are split or ordered.
fn digest(count: &Count<'_>) -> u64 {
    let key = format!(
        "{}\0{}\0{}\0{}",
        count.sku,
        count.kind.as_str(),
        count.segment,
        count.bucket
    );
    let mut hash = FnvHasher::default();
    hash.write(key.as_bytes());
    hash.finish().wrapping_mul(count.n)
}
