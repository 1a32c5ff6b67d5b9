//! Which names were shown to whom, and when each SKU of them was bought: [`shown`].
//!
//! A purchase counts for the newest showing of its product to this user that it came after: each showing stands until the
//! next one. Where impressions name lists, only what they name was shown; else each published list counts as shown from
//! the time on which it stood.
//!
//! Invariant: no list earns from what it has seen, nor from what came before it was shown; a SKU earns once a showing.

use std::collections::BTreeMap;

use nearshore_core::learn::off_policy::{ShownName, ShownPlace};
use nearshore_core::user::event::{Accepted, Change, Event, Item, Kind, UserId};
use nearshore_core::user::record::Timestamp;

use super::updates::{LoggedList, LoggedName, Updates};

/// What was shown, and what the log says of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shown {
    /// The names shown.
    pub(super) names: Vec<ShownName>,
    /// Whether impressions say what was shown.
    pub(super) by_impressions: bool,
    /// Impressions of a list that is not among those with candidates.
    pub(super) of_other_lists: u64,
    /// Impressions of a SKU that is not in the list that they name, or in another place.
    pub(super) misplaced: u64,
    /// First and last time of a showing.
    pub(super) span: Option<(Timestamp, Timestamp)>,
}

/// One name shown to one user.
struct Showing<'a> {
    at: Timestamp,
    list: &'a LoggedList,
    name: &'a LoggedName,
    /// Which places were seen.
    seen: Vec<bool>,
    /// Delay of the first purchase of each place.
    bought: Vec<Option<i64>>,
}

impl<'a> Showing<'a> {
    fn new(at: Timestamp, list: &'a LoggedList, name: &'a LoggedName, seen: bool) -> Self {
        Self {
            at,
            list,
            name,
            seen: vec![seen; name.places.len()],
            bought: vec![None; name.places.len()],
        }
    }

    /// Whether a record came after it.
    fn is_before(&self, record: &Accepted) -> bool {
        let has_seen = self.list.seen.as_ref();
        let has_seen = has_seen.is_some_and(|seen| seen.contains(&record.position));
        self.at < record.time && !has_seen
    }

    fn place(&self, sku: &str) -> Option<usize> {
        let mut places = self.name.places.iter();
        places.position(|(candidate, _)| self.name.skus[*candidate] == sku)
    }

    fn finished(self, user: u32, end: Timestamp, places: usize) -> ShownName {
        let places = self.name.places.iter().zip(self.bought).take(places);
        ShownName {
            user,
            elapsed: end.0.saturating_sub(self.at.0).max(0),
            logged: self.list.selection,
            candidates: self.name.candidates.clone(),
            places: places
                .map(|((candidate, propensity), delay)| ShownPlace {
                    candidate: *candidate,
                    propensity: *propensity,
                    delay,
                })
                .collect(),
        }
    }
}

/// Finds what was shown and bought.
pub(super) fn shown(updates: &Updates, records: &[Accepted], places: usize) -> Shown {
    let mut of_user: BTreeMap<&UserId, Vec<&Accepted>> = BTreeMap::new();
    for record in records {
        if updates.lists.contains_key(&record.user) {
            of_user.entry(&record.user).or_default().push(record);
        }
    }
    let mut found = Shown {
        by_impressions: of_user
            .values()
            .flatten()
            .any(|it| impression(it).is_some()),
        ..Shown::default()
    };
    let end = records.iter().map(|record| record.time).max();
    let end = end.unwrap_or_default();
    for (user, (id, lists)) in (0..).zip(&updates.lists) {
        let records = of_user.remove(id).unwrap_or_default();
        of_one((user, end, places), (lists, records), &mut found);
    }
    found
}

/// The event of an impression that names its list.
fn impression(record: &Accepted) -> Option<&Event> {
    match &record.change {
        Change::Event(event) if event.kind == Kind::Impression && event.shown_in.is_some() => {
            Some(event)
        }
        _ => None,
    }
}

fn of_one(
    (user, end, places): (u32, Timestamp, usize),
    (lists, mut records): (&[LoggedList], Vec<&Accepted>),
    found: &mut Shown,
) {
    records.sort_by(|a, b| (a.time, &a.position).cmp(&(b.time, &b.position)));
    let erased = records.iter().filter(|it| it.change == Change::Erase);
    let erased = erased.map(|it| it.time).max();
    let is_after = |time: Timestamp| erased.is_none_or(|erased| time > erased);
    records.retain(|it| is_after(it.time));
    let lists: Vec<&LoggedList> = lists.iter().filter(|it| is_after(it.at)).collect();
    let mut showings = match found.by_impressions {
        true => by_impressions(&lists, &records, found),
        false => published(&lists),
    };
    // In the order in which they were shown; of two at one time, the later claim.
    showings.sort_by_key(|it| (it.at, it.list.claim));
    let mut by_product: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut product_of: BTreeMap<&str, &str> = BTreeMap::new();
    for (nth, showing) in showings.iter().enumerate() {
        let name = showing.name;
        by_product.entry(&name.pu).or_default().push(nth);
        product_of.extend(name.skus.iter().map(|sku| (&**sku, &*name.pu)));
    }
    for record in records {
        let Some(sku) = purchase(record) else {
            continue;
        };
        let of_product = product_of.get(sku);
        let of_product = of_product.and_then(|product| by_product.get(product));
        let mut newest = of_product.into_iter().flatten().rev().copied();
        let Some(nth) = newest.find(|nth| showings[*nth].is_before(record)) else {
            continue;
        };
        let showing = &mut showings[nth];
        let place = showing.place(sku).filter(|place| showing.seen[*place]);
        if let Some(place) = place {
            let delay = record.time.0 - showing.at.0;
            showing.bought[place].get_or_insert(delay);
        }
    }
    for showing in showings {
        let (first, last) = found.span.unwrap_or((showing.at, showing.at));
        found.span = Some((first.min(showing.at), last.max(showing.at)));
        found.names.push(showing.finished(user, end, places));
    }
}

/// The SKU that a record says was bought.
fn purchase(record: &Accepted) -> Option<&str> {
    match &record.change {
        Change::Event(event) if event.kind == Kind::Purchase => match &event.item {
            Item::Sku(sku) => Some(sku),
            Item::Pu(_) | Item::Query(_) => None,
        },
        _ => None,
    }
}

/// All names of all lists, but for the first lists of claims that have a second one.
fn published<'a>(lists: &[&'a LoggedList]) -> Vec<Showing<'a>> {
    let replaced = |nth: usize| {
        let next: Option<&&LoggedList> = lists.get(nth + 1);
        next.is_some_and(|next| next.claim.0 == lists[nth].claim.0)
    };
    let standing = lists.iter().enumerate().filter(|(nth, _)| !replaced(*nth));
    let showings = standing.flat_map(|(_, list)| {
        let names = list.names.iter();
        names.map(|name| Showing::new(list.at, list, name, true))
    });
    showings.collect()
}

/// The names of which impressions tell, from the first one on.
fn by_impressions<'a>(
    lists: &[&'a LoggedList],
    records: &[&Accepted],
    found: &mut Shown,
) -> Vec<Showing<'a>> {
    let mut showings: BTreeMap<(usize, usize), Showing<'a>> = BTreeMap::new();
    for record in records {
        let Some((event, shown_in)) =
            impression(record).and_then(|event| Some((event, event.shown_in.as_ref()?)))
        else {
            continue;
        };
        let Some(nth) = lists.iter().position(|it| it.list_id == shown_in.list_id) else {
            found.of_other_lists += 1;
            continue;
        };
        let list = lists[nth];
        let Some((name, places)) = places_of(list, event, shown_in.position) else {
            found.misplaced += 1;
            continue;
        };
        let showing = showings
            .entry((nth, name))
            .or_insert_with(|| Showing::new(record.time, list, &list.names[name], false));
        places.for_each(|place| showing.seen[place] = true);
    }
    showings.into_values().collect()
}

/// The name of a list of which an event tells, and its places: the one of a SKU, or all or one of a product.
fn places_of(
    list: &LoggedList,
    event: &Event,
    position: Option<u32>,
) -> Option<(usize, std::ops::Range<usize>)> {
    let position = position.map(|it| it as usize - 1);
    let mut names = list.names.iter().enumerate();
    match &event.item {
        Item::Sku(sku) => {
            let place = |name: &LoggedName| {
                let mut places = name.places.iter();
                places.position(|(candidate, _)| name.skus[*candidate] == *sku)
            };
            let (nth, place) = names.find_map(|(nth, name)| Some((nth, place(name)?)))?;
            (position.is_none_or(|it| it == place)).then_some((nth, place..place + 1))
        }
        Item::Pu(pu) => {
            let (nth, name) = names.find(|(_, name)| name.pu == *pu)?;
            let places = name.places.len();
            match position {
                None => Some((nth, 0..places)),
                Some(place) => (place < places).then_some((nth, place..place + 1)),
            }
        }
        Item::Query(_) => None,
    }
}
