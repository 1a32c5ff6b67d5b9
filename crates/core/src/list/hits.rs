//! What lists earn: whether a purchase was on the buyer's stored list, and on the fallback in its place: [`earned`].
//!
//! Decides which purchases count, and what a hit is. A purchase counts if this delivery folds it, it is not history, and
//! the list was stored before it happened. It is a hit if its product (PU) is on the list. The fallback is compared over
//! the same purchases and over as many products as the list has: a longer one would hit more often for no merit.
//!
//! Invariant: a purchase counts once, for a record that is delivered again is a [`Step::Duplicate`]. A SKU that the
//! catalogue does not have is a miss of both. It does not know whether the user saw the list.

use std::collections::BTreeSet;
use std::ops::AddAssign;

use crate::list::document::{Document, Shown, Source};
use crate::list::fallback::of_segment;
use crate::shop::arms::bucket;
use crate::shop::catalogue::PuIx;
use crate::shop::snapshot::Snapshot;
use crate::user::event::{Accepted, Change, Event, Kind, Profile};
use crate::user::fold::Step;
use crate::user::record::Timestamp;

/// Seed of the hash by which users are sampled. It is no arm's, so a sample has users of each arm by its share.
const SAMPLE_SEED: &str = "nearshore-hits";

/// A list as it is stored, which clients read.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownList {
    /// The list.
    pub doc: Document,
    /// Epoch of its arm.
    pub epoch: u64,
    /// When it was stored, by the store's clock.
    pub stored_at: Timestamp,
}

/// Which lists: those of an arm in one epoch, by source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListKind {
    /// Id of the arm; empty for a fallback that no arm made, of an earlier release.
    pub arm: String,
    /// Epoch of the arm.
    pub epoch: u64,
    /// Source of the list.
    pub source: Source,
}

/// Counts about lists of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Earned {
    /// Lists stored.
    pub lists: u64,
    /// Purchases by sampled users who had such a list.
    pub purchases: u64,
    /// Those of them whose product was on the list.
    pub hits: u64,
    /// Those of them whose product was on the fallback.
    pub fallback_hits: u64,
}

impl AddAssign for Earned {
    fn add_assign(&mut self, other: Self) {
        self.lists += other.lists;
        self.purchases += other.purchases;
        self.hits += other.hits;
        self.fallback_hits += other.fallback_hits;
    }
}

/// Input of [`earned`] beside the list and the records.
pub struct HitContext<'a> {
    /// The serving snapshot: its fallback is the comparison, its catalogue gives the product of a SKU.
    pub snapshot: &'a Snapshot,
    /// The user's profile after the records, which chooses the segment of the fallback.
    pub profile: Option<&'a Profile>,
    /// Records before this time are history and do not count.
    pub history_before: Timestamp,
}

impl ShownList {
    /// The kind under which its purchases count.
    pub fn kind(&self) -> ListKind {
        ListKind {
            arm: self.doc.arm.clone(),
            epoch: self.epoch,
            source: self.doc.source,
        }
    }
}

/// Whether a user is in the sample: `share` of all users, chosen by a hash, always the same ones. `share` is 0 to 1.
pub fn is_sampled(user: &str, share: f64) -> bool {
    f64::from(bucket(SAMPLE_SEED, user)) < share * 10_000.0
}

/// The purchase that a record tells of, if it is not history.
pub fn live_purchase(record: &Accepted, history_before: Timestamp) -> Option<&Event> {
    match &record.change {
        Change::Event(event) if event.kind == Kind::Purchase => {
            (record.time >= history_before).then_some(event)
        }
        Change::Event(_) | Change::Profile(_) | Change::Erase => None,
    }
}

/// What a list earned by a user's records; `steps` says what the fold did with each.
pub fn earned(
    list: &ShownList,
    records: &[Accepted],
    steps: &[Step],
    context: &HitContext,
) -> Earned {
    let counts =
        |(record, step): (&Accepted, &Step)| *step == Step::Folded && list.stored_at < record.time;
    let counted = records.iter().zip(steps).filter(|pair| counts(*pair));
    let bought: Vec<(Timestamp, Option<PuIx>)> = counted
        .filter_map(|(record, _)| {
            let purchase = live_purchase(record, context.history_before)?;
            let pu = context.snapshot.catalogue.pu_of_item(&purchase.item);
            Some((record.time, pu))
        })
        .collect();
    let Some(at) = bought.iter().map(|(time, _)| *time).max() else {
        return Earned::default();
    };
    let (listed, fallback) = compared(&list.doc, at, context);
    let among = |pus: &BTreeSet<PuIx>| {
        let found = bought.iter().filter_map(|(_, pu)| pu.as_ref());
        found.filter(|pu| pus.contains(pu)).count() as u64
    };
    Earned {
        lists: 0,
        purchases: bought.len() as u64,
        hits: among(&listed),
        fallback_hits: among(&fallback),
    }
}

/// The products of the list, and as many of the fallback that the user would get in its place. Both without what is
/// sold out or forbidden now: clients filter the list by stock as the fallback is.
fn compared(
    list: &Document,
    at: Timestamp,
    context: &HitContext,
) -> (BTreeSet<PuIx>, BTreeSet<PuIx>) {
    let snapshot = context.snapshot;
    let verdict = snapshot.judge(context.profile, at);
    let mut list = list.clone();
    snapshot.strip(&mut list, &verdict);
    let segment = snapshot.rules.segment(context.profile, at);
    let fallback = of_segment(snapshot, segment, &verdict);
    let shown = fallback.iter().flat_map(|doc| &doc.pus);
    let known = |shown: &Shown| snapshot.catalogue.by_pu(&shown.pu);
    let listed = list.pus.iter().filter_map(known).collect();
    (
        listed,
        shown.take(list.pus.len()).filter_map(known).collect(),
    )
}

#[cfg(test)]
#[path = "hits_tests.rs"]
mod tests;
