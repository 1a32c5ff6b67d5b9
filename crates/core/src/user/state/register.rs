//! The register: which SKUs the user bought, when and how often, further back than the window.
//!
//! It has one total order, by (time, SKU), and keeps the end of it: eviction takes the least purchases and raises a
//! floor, and what is at or below the floor is never kept again. An erase removes a prefix of the same order. Of one SKU
//! in one 7-day bucket the newest [`Limits::times`] times are kept.
//!
//! Invariant: purchases and floor are a function of the set of records later than the last erase, whatever their order:
//! the floor is the greatest purchase from which on the limits are exceeded, and more records only raise it. The
//! counting positions, which no dump shows, are not: they say which record was counted as a buyer, and with a user's
//! records in one partition that is the first of them. It does not know the catalogue.

use std::sync::Arc;

use super::WindowEvent;
use crate::shop::demand::BUCKET_MS;
use crate::user::event::{Item, Kind};
use crate::user::record::{Position, Timestamp};

/// How much a register keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// SKUs.
    pub(crate) skus: usize,
    /// Entries: different times of different SKUs.
    pub(crate) entries: usize,
    /// Times of one SKU in one 7-day bucket.
    pub(crate) times: usize,
}

/// The limits of every stored register. Other limits give other states for the same records.
pub(crate) const LIMITS: Limits = Limits {
    skus: 200,
    entries: 512,
    times: 7,
};

/// Purchases of one SKU at one time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Record time.
    pub(super) time: Timestamp,
    /// SKU id.
    pub(super) sku: Arc<str>,
    /// Number of records, at least 1.
    pub(super) count: u32,
    /// Position of the record that was counted as a buyer of this SKU and 7-day bucket, if one was.
    pub(super) counting: Option<Position>,
}

impl Entry {
    pub(super) fn key(&self) -> (Timestamp, &str) {
        (self.time, &self.sku)
    }

    fn bucket(&self) -> i64 {
        bucket_of(self.time)
    }
}

/// Purchases of one SKU at one time, as [`Register::purchases`] lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Purchase<'a> {
    /// Record time.
    pub time: Timestamp,
    /// SKU id.
    pub sku: &'a str,
    /// Number of records, at least 1.
    pub count: u32,
}

/// One SKU, as [`Register::skus`] lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bought<'a> {
    /// SKU id.
    pub sku: &'a str,
    /// Time of the last purchase.
    pub last: Timestamp,
    /// Number of purchase records in the register.
    pub count: u32,
}

/// What a user bought: the newest purchases of the newest SKUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Register {
    /// Sorted by (time, SKU), each key once.
    entries: Vec<Entry>,
    /// The greatest purchase that was evicted since the last erase.
    floor: Option<(Timestamp, Arc<str>)>,
    /// Number of different SKUs in `entries`.
    skus: usize,
}

impl Register {
    /// Purchases, sorted by (time, SKU).
    pub fn purchases(&self) -> impl Iterator<Item = Purchase<'_>> {
        self.entries.iter().map(|entry| Purchase {
            time: entry.time,
            sku: &entry.sku,
            count: entry.count,
        })
    }

    /// Every SKU once, sorted by id.
    pub fn skus(&self) -> impl Iterator<Item = Bought<'_>> {
        let mut all: Vec<Purchase<'_>> = self.purchases().collect();
        all.sort_unstable_by_key(|purchase| (purchase.sku, purchase.time));
        let mut skus: Vec<Bought<'_>> = Vec::with_capacity(self.skus);
        for Purchase { time, sku, count } in all {
            match skus.last_mut().filter(|last| last.sku == sku) {
                Some(known) => {
                    known.last = time;
                    known.count = known.count.saturating_add(count);
                }
                None => skus.push(Bought {
                    sku,
                    last: time,
                    count,
                }),
            }
        }
        skus.into_iter()
    }

    /// Whether nothing was kept or evicted.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.floor.is_none()
    }

    /// Whether the record at `position` is the one by which the user counts as a buyer of this SKU in the 7-day bucket
    /// of `time`. Ask after the record was folded; the answer for a redelivered record is that of the first delivery,
    /// unless an erase or an eviction took the SKU's last purchase of the bucket in between: then it is false.
    pub(crate) fn is_counting(&self, time: Timestamp, sku: &str, position: &Position) -> bool {
        let mut group = self.group(time, sku);
        group
            .next()
            .is_some_and(|index| self.entries[index].counting.as_ref() == Some(position))
    }

    /// Adds a purchase record that was not folded before. Returns whether that changed the purchases: a floor may rise
    /// alone.
    pub(crate) fn insert(
        &mut self,
        time: Timestamp,
        sku: &str,
        position: &Position,
        limits: &Limits,
    ) -> bool {
        let key = (time, sku);
        let floor = self.floor.as_ref().map(|(time, sku)| (*time, &**sku));
        if floor >= Some(key) {
            return false;
        }
        let index = self.entries.partition_point(|entry| entry.key() < key);
        if let Some(entry) = self.entries.get_mut(index)
            && entry.key() == key
        {
            entry.count = entry.count.saturating_add(1);
            return true;
        }
        let counting = match self.group(time, sku).next() {
            Some(first) => self.entries[first].counting.clone(),
            // What was evicted of the floor's bucket may have been counted.
            None if floor.is_some_and(|(floor, _)| bucket_of(floor) >= bucket_of(time)) => None,
            None => Some(position.clone()),
        };
        let known = self.entries.iter().find(|entry| &*entry.sku == sku);
        let shared: Arc<str> = known.map_or_else(|| sku.into(), |entry| Arc::clone(&entry.sku));
        self.skus += usize::from(known.is_none());
        let entry = Entry {
            time,
            sku: shared,
            count: 1,
            counting,
        };
        self.entries.insert(index, entry);
        let (oldest, times) = {
            let mut group = self.group(time, sku);
            (group.next(), 1 + group.count())
        };
        if let Some(oldest) = oldest.filter(|_| times > limits.times.max(1)) {
            // The SKU has other times, so the number of SKUs stays.
            self.entries.remove(oldest);
            return oldest != index;
        }
        let dropped = self.evict(limits);
        dropped > 1 || floor_of(&self.floor) < Some(key)
    }

    /// Drops purchases at or before an erase. What was evicted before it would have been dropped too.
    pub(crate) fn erase(&mut self, erased_at: Timestamp) {
        let index = self
            .entries
            .partition_point(|entry| entry.time <= erased_at);
        if index > 0 {
            self.entries.drain(..index);
            self.skus = self.skus().count();
        }
        self.floor = self.floor.take().filter(|(time, _)| *time > erased_at);
    }

    /// The register of the purchases in a window, for a state that was stored without one.
    pub(super) fn of_window(window: &[WindowEvent]) -> Self {
        let mut register = Self::default();
        for event in window {
            if let (Kind::Purchase, Item::Sku(sku)) = (event.kind, &event.item) {
                register.insert(event.time, sku, &event.position, &LIMITS);
            }
        }
        register
    }

    /// The register with these entries of so many SKUs; `None` if they are not sorted or not above the floor.
    pub(super) fn of(
        entries: Vec<Entry>,
        floor: Option<(Timestamp, Arc<str>)>,
        skus: usize,
    ) -> Option<Self> {
        let sorted = entries.is_sorted_by(|one, other| one.key() < other.key());
        let above = entries.first().map(Entry::key);
        if !sorted || above.is_some_and(|least| floor_of(&floor) >= Some(least)) {
            return None;
        }
        Some(Self {
            entries,
            floor,
            skus,
        })
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Time and SKU of the greatest purchase that was evicted.
    pub(super) fn floor(&self) -> Option<(Timestamp, &str)> {
        floor_of(&self.floor)
    }

    /// Indices of the entries of a SKU in the bucket of `time`, oldest first.
    fn group(&self, time: Timestamp, sku: &str) -> impl Iterator<Item = usize> {
        let bucket = bucket_of(time);
        let begin = self
            .entries
            .partition_point(|entry| entry.bucket() < bucket);
        let end = self
            .entries
            .partition_point(|entry| entry.bucket() <= bucket);
        (begin..end).filter(move |index| &*self.entries[*index].sku == sku)
    }

    /// Drops the least purchases until the limits hold, and returns how many.
    fn evict(&mut self, limits: &Limits) -> usize {
        let mut drop = 0;
        while self.skus > limits.skus || self.entries.len() - drop > limits.entries {
            let sku = &self.entries[drop].sku;
            let again = self.entries[drop + 1..]
                .iter()
                .any(|entry| entry.sku == *sku);
            self.skus -= usize::from(!again);
            drop += 1;
        }
        if let Some(last) = self.entries.drain(..drop).next_back() {
            self.floor = Some((last.time, last.sku));
        }
        drop
    }
}

fn floor_of(floor: &Option<(Timestamp, Arc<str>)>) -> Option<(Timestamp, &str)> {
    floor.as_ref().map(|(time, sku)| (*time, &**sku))
}

fn bucket_of(time: Timestamp) -> i64 {
    time.0.div_euclid(BUCKET_MS)
}

#[cfg(test)]
#[path = "register_tests.rs"]
pub(crate) mod tests;
