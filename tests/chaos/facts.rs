//! What a single thread makes of the topics, written from the design and with nothing of the product: per user the
//! window, profile, erased_at and fences; sums per SKU; what must lie in `dlq`; what is sold out.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::site::{Site, WINDOW};
use crate::topics::{Entry, Event, Place, event_of, profile_of, user_of};

/// Seven days, milliseconds.
const BUCKET: i64 = 604_800_000;

/// One record of a user that is none of poison.
#[derive(Clone, Debug)]
pub enum Said {
    Event(Event),
    Profile(Map<String, Value>),
    Erase,
}

/// A user, as the log tells.
#[derive(Default)]
pub struct Known {
    /// Everything, by place.
    pub records: BTreeMap<Place, (i64, Said)>,
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
    /// Nobody: erased, and silent since.
    pub fn vacant(&self) -> bool {
        self.window.is_empty() && self.profile.is_none()
    }

    /// What was seen under these fences: erased_at and profile.
    pub fn as_of(&self, seen: &BTreeMap<(String, i32), i64>) -> (i64, Option<Map<String, Value>>) {
        let seen = || {
            let under = |place: &Place| {
                seen.get(&(place.0.clone(), place.1))
                    .is_some_and(|fence| *fence >= place.2)
            };
            self.records.iter().filter(move |(place, _)| under(place))
        };
        let erases = seen().filter(|(_, (_, said))| matches!(said, Said::Erase));
        let erased_at = erases.map(|(_, (time, _))| *time).max().unwrap_or(0);
        let profiles = seen().filter_map(|(place, (time, said))| match said {
            Said::Profile(profile) if *time > erased_at => Some(((*time, place), profile)),
            _ => None,
        });
        let newest = profiles.max_by(|a, b| a.0.cmp(&b.0));
        (erased_at, newest.map(|(_, profile)| profile.clone()))
    }
}

/// All of it.
#[derive(Default)]
pub struct Facts {
    pub users: BTreeMap<String, Known>,
    /// SKU, type and bucket to a sum.
    pub counts: BTreeMap<(String, String, i64), i64>,
    /// What cannot be used, with its code.
    pub poison: BTreeMap<Place, &'static str>,
    /// Records of both topics.
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
            let said = user_of(entry).and_then(|user| {
                let said = if entry.place.0 == site.events {
                    Said::Event(event_of(entry)?)
                } else {
                    profile_of(entry)?.map_or(Said::Erase, Said::Profile)
                };
                Ok((user, said))
            });
            match said {
                Ok((user, said)) => facts.take(entry, user, said),
                Err(code) => {
                    facts.poison.insert(entry.place.clone(), code);
                }
            }
        }
        for known in facts.users.values_mut() {
            settle(known);
        }
        // Of a compacted topic the last record of a key counts, and a key has one partition.
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

    fn take(&mut self, entry: &Entry, user: String, said: Said) {
        if let Said::Event(Event {
            kind, item, qty, ..
        }) = &said
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
            .insert(entry.place.clone(), (entry.time, said));
    }
}

fn settle(known: &mut Known) {
    let erases = known.records.values();
    let erases = erases.filter(|(_, said)| matches!(said, Said::Erase));
    known.erased_at = erases.map(|(time, _)| *time).max().unwrap_or(0);
    let mut window = Vec::new();
    for (place, (time, said)) in &known.records {
        if *time <= known.erased_at {
            continue;
        }
        match said {
            Said::Event(event) => window.push((*time, place.clone(), event.clone())),
            Said::Profile(profile) => {
                let newer = known.profile.as_ref();
                if newer.is_none_or(|(at, other, _)| (*at, other) < (*time, place)) {
                    known.profile = Some((*time, place.clone(), profile.clone()));
                }
            }
            Said::Erase => {}
        }
    }
    window.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let surplus = window.len().saturating_sub(WINDOW);
    known.window = window.split_off(surplus);
}
