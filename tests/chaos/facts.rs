//! A single-threaded fold of the topics, written from the design without code of the product: per user the window,
//! profile, erased_at and fences; counts per SKU; the records that must be in `dlq`; the SKUs that are sold out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::site::{Site, WINDOW};
use crate::topics::{Entry, Event, Place, event_of, profile_of, user_of};

/// Seven days, milliseconds.
const BUCKET: i64 = 604_800_000;

/// What a good record says of a user.
#[derive(Clone, Debug)]
pub enum Change {
    Event(Event),
    Profile(Map<String, Value>),
    Erase,
}

/// A user as of the whole log.
#[derive(Default)]
pub struct Known {
    /// All records, by place.
    pub records: BTreeMap<Place, (i64, Change)>,
    /// Time of the last erase.
    pub erased_at: i64,
    /// The newest events after it, oldest first.
    pub window: Vec<(i64, Place, Event)>,
    /// The newest profile after it.
    pub profile: Option<(i64, Place, Map<String, Value>)>,
    /// Highest offset per partition.
    pub fences: BTreeMap<(String, i32), i64>,
}

impl Known {
    /// Whether nothing is known of the user: erased and silent since, or unknown.
    pub fn vacant(&self) -> bool {
        self.window.is_empty() && self.profile.is_none()
    }

    /// The erased_at and the profile as of these seen offsets.
    pub fn as_of(&self, seen: &BTreeMap<(String, i32), i64>) -> (i64, Option<Map<String, Value>>) {
        let seen = || {
            let under = |place: &Place| {
                seen.get(&(place.0.clone(), place.1))
                    .is_some_and(|fence| *fence >= place.2)
            };
            self.records.iter().filter(move |(place, _)| under(place))
        };
        let erases = seen().filter(|(_, (_, change))| matches!(change, Change::Erase));
        let erased_at = erases.map(|(_, (time, _))| *time).max().unwrap_or(0);
        let profiles = seen().filter_map(|(place, (time, change))| match change {
            Change::Profile(profile) if *time > erased_at => Some(((*time, place), profile)),
            _ => None,
        });
        let newest = profiles.max_by(|a, b| a.0.cmp(&b.0));
        (erased_at, newest.map(|(_, profile)| profile.clone()))
    }
}

/// The facts of a run.
#[derive(Default)]
pub struct Facts {
    pub users: BTreeMap<String, Known>,
    /// Counts by SKU, type and bucket.
    pub counts: BTreeMap<(String, String, i64), i64>,
    /// Least and most buyers by SKU and bucket.
    pub buyers: BTreeMap<(String, i64), (i64, i64)>,
    /// Records that cannot be used, with their reject codes.
    pub poison: BTreeMap<Place, &'static str>,
    /// Number of records of both topics.
    pub records: usize,
    pub sold_out: BTreeSet<String>,
}

impl Facts {
    /// Folds the topics.
    pub fn of(site: &Site, (events, profiles, catalog): (&[Entry], &[Entry], &[Entry])) -> Self {
        let mut facts = Self {
            records: events.len() + profiles.len(),
            ..Self::default()
        };
        for entry in events.iter().chain(profiles) {
            let change = user_of(entry).and_then(|user| {
                let change = if entry.place.0 == site.events {
                    Change::Event(event_of(entry)?)
                } else {
                    profile_of(entry)?.map_or(Change::Erase, Change::Profile)
                };
                Ok((user, change))
            });
            match change {
                Ok((user, change)) => facts.add(entry, user, change),
                Err(code) => {
                    facts.poison.insert(entry.place.clone(), code);
                }
            }
        }
        for known in facts.users.values_mut() {
            settle(known);
        }
        facts.buyers = buyers(&facts.users);
        // The last record of a key counts: the topic is compacted, and a key has one partition.
        for entry in catalog {
            let gone = match &entry.value {
                None => true,
                Some(value) => {
                    let value: Value = serde_json::from_slice(value).unwrap_or_default();
                    value["stock"].as_i64().unwrap_or(0) <= 0
                }
            };
            if gone {
                facts.sold_out.insert(entry.key_text());
            } else {
                facts.sold_out.remove(&entry.key_text());
            }
        }
        facts
    }

    fn add(&mut self, entry: &Entry, user: String, change: Change) {
        if let Change::Event(Event {
            kind, item, qty, ..
        }) = &change
            && item.0 == "sku"
        {
            let n = if kind == "purchase" {
                qty.cast_signed()
            } else {
                1
            };
            let cell = (item.1.clone(), kind.clone(), entry.time.div_euclid(BUCKET));
            *self.counts.entry(cell).or_default() += n;
        }
        let known = self.users.entry(user).or_default();
        let fence = known
            .fences
            .entry((entry.place.0.clone(), entry.place.1))
            .or_insert(-1);
        *fence = (*fence).max(entry.place.2);
        known
            .records
            .insert(entry.place.clone(), (entry.time, change));
    }
}

/// A user counts once per SKU and bucket; one who was erased, up to once per record.
fn buyers(users: &BTreeMap<String, Known>) -> BTreeMap<(String, i64), (i64, i64)> {
    let mut all: BTreeMap<(String, i64), (i64, i64)> = BTreeMap::new();
    for known in users.values() {
        let mut own: BTreeMap<(String, i64), i64> = BTreeMap::new();
        for (time, change) in known.records.values() {
            if let Change::Event(Event { kind, item, .. }) = change
                && kind == "purchase"
                && item.0 == "sku"
            {
                let bucket = time.div_euclid(BUCKET);
                *own.entry((item.1.clone(), bucket)).or_default() += 1;
            }
        }
        let erased = known.erased_at > 0;
        for (key, records) in own {
            let (least, most) = all.entry(key).or_default();
            *least += i64::from(!erased);
            *most += if erased { records } else { 1 };
        }
    }
    all
}

/// Derives erased_at, window and profile from the records.
fn settle(known: &mut Known) {
    let erases = known.records.values();
    let erases = erases.filter(|(_, change)| matches!(change, Change::Erase));
    known.erased_at = erases.map(|(time, _)| *time).max().unwrap_or(0);
    let mut window = Vec::new();
    for (place, (time, change)) in &known.records {
        if *time <= known.erased_at {
            continue;
        }
        match change {
            Change::Event(event) => window.push((*time, place.clone(), event.clone())),
            Change::Profile(profile) => {
                let newer = known.profile.as_ref();
                if newer.is_none_or(|(at, other, _)| (*at, other) < (*time, place)) {
                    known.profile = Some((*time, place.clone(), profile.clone()));
                }
            }
            Change::Erase => {}
        }
    }
    window.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let surplus = window.len().saturating_sub(WINDOW);
    known.window = window.split_off(surplus);
}
