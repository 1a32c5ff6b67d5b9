//! Arranges a ranked list by the merchant's pins and by the most names of one category: [`Merchant::arrange`].
//!
//! Invariant: only permitted products, none twice, at most `n`; names that are not pinned keep their order; each
//! permitted pin is on the list as long as it has room for all of them. A pin counts towards the most names of its
//! category, and is never left out because of it: the merchant named it. It does not know scores.

use std::collections::{BTreeMap, BTreeSet};

use fixedbitset::FixedBitSet;

use super::{Merchant, Place};
use crate::shop::catalogue::PuIx;

impl Merchant {
    /// The best `n` names of a ranking with pins in their places and at most `category_max` names of a category.
    ///
    /// `ranked`: best first. Give the whole ranking, or more names than `n`: in place of a name whose category is full
    /// the next one comes up, and the list is shorter if there is none. `permitted`: what rules, needs and stock leave
    /// for this user; a pin need not be in `ranked`.
    pub(crate) fn arrange(&self, ranked: &[PuIx], n: usize, permitted: &FixedBitSet) -> Vec<PuIx> {
        let allowed = |pu: PuIx| permitted.contains(pu.at());
        let pins = self.pins.iter().filter(|(pu, _)| allowed(*pu)).take(n);
        let pins: Vec<(PuIx, Place)> = pins.copied().collect();
        let pinned: BTreeSet<PuIx> = pins.iter().map(|(pu, _)| *pu).collect();
        let mut room = Room::new(self, &pinned);
        let mut seen = BTreeSet::new();
        // What comes by its rank: names that are not pinned, and pins that may stand higher than they must.
        let by_rank = ranked.iter().copied().filter(|pu| {
            allowed(*pu) && seen.insert(*pu) && (pinned.contains(pu) || room.take(*pu))
        });
        // A pin with a position stands there, whatever its rank.
        let at_position = |pu: &PuIx| {
            pins.iter()
                .any(|(pin, place)| pin == pu && place.is_fixed())
        };
        let mut by_rank = by_rank.filter(|pu| !at_position(pu));
        let mut reserved = reserve(&pins, n);
        let mut arranged = Vec::with_capacity(n);
        let mut placed = BTreeSet::new();
        for place in 0..n {
            let next = match reserved.remove(&place).filter(|pu| !placed.contains(pu)) {
                Some(pu) => Some(pu),
                None => by_rank.find(|pu| !placed.contains(pu)),
            };
            // Where nothing comes by rank any more, the pins that are left move up.
            if let Some(pu) = next {
                placed.insert(pu);
                arranged.push(pu);
            }
        }
        arranged
    }
}

impl Place {
    /// Whether it is one place, not the first so many.
    fn is_fixed(self) -> bool {
        matches!(self, Self::At(_))
    }
}

/// The place of each pin, from 0, all different: a position as configured, or the last free place within `top`. Where
/// these are taken or beyond the list, the last free place before, else the first one behind.
fn reserve(pins: &[(PuIx, Place)], n: usize) -> BTreeMap<usize, PuIx> {
    let mut reserved: BTreeMap<usize, PuIx> = BTreeMap::new();
    let last = |place: Place| match place {
        Place::At(place) | Place::Top(place) => place.min(n).saturating_sub(1),
    };
    // Positions first: a top leaves a choice, a position does not.
    let (fixed, others): (Vec<_>, Vec<_>) = pins
        .iter()
        .copied()
        .partition(|(_, place)| place.is_fixed());
    for (pu, place) in fixed.into_iter().chain(others) {
        let last = last(place);
        let mut places = (0..=last).rev().chain(last + 1..n);
        if let Some(free) = places.find(|place| !reserved.contains_key(place)) {
            reserved.insert(free, pu);
        }
    }
    reserved
}

/// How many more names of each category a list has room for.
struct Room<'a> {
    merchant: &'a Merchant,
    taken: BTreeMap<u32, usize>,
}

impl<'a> Room<'a> {
    fn new(merchant: &'a Merchant, pinned: &BTreeSet<PuIx>) -> Self {
        let mut room = Self {
            merchant,
            taken: BTreeMap::new(),
        };
        for pu in pinned {
            if let Some(category) = room.category(*pu) {
                *room.taken.entry(category).or_default() += 1;
            }
        }
        room
    }

    fn category(&self, pu: PuIx) -> Option<u32> {
        self.merchant.categories.get(pu.at()).copied().flatten()
    }

    /// Takes a place of the PU's category; false if it has none left.
    fn take(&mut self, pu: PuIx) -> bool {
        let (Some(max), Some(category)) = (self.merchant.category_max, self.category(pu)) else {
            return true;
        };
        let taken = self.taken.entry(category).or_default();
        if *taken >= max.get() {
            return false;
        }
        *taken += 1;
        true
    }
}
