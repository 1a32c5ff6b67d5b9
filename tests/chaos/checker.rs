//! The verdict: compares Redis and the topics with the single-threaded facts, invariant by invariant.
//!
//! Invariant: it reads only Kafka and Redis, with its own decoders. A violation names the user, what was found and what
//! was expected.

use std::collections::{BTreeMap, BTreeSet};

use crate::blob;
use crate::dump::{Dump, Keys};
use crate::facts::{Facts, Known};
use crate::lists;
use crate::site::Site;
use crate::topics::{Entry, Place, Reader};

/// The kind of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    Lost,
    Stale,
    Doubled,
    Leaked,
    Other,
}

/// The result of one invariant: a row of the report.
pub struct Row {
    pub number: u32,
    pub name: &'static str,
    pub checked: usize,
    pub wrong: Vec<(Wrong, String)>,
    pub note: String,
}

impl Row {
    pub fn new(number: u32, name: &'static str) -> Self {
        Self {
            number,
            name,
            checked: 0,
            wrong: Vec::new(),
            note: String::new(),
        }
    }

    /// Adds the result of one comparison.
    pub fn check(&mut self, found: Result<(), (Wrong, String)>) {
        self.checked += 1;
        if let Err(wrong) = found {
            self.wrong.push(wrong);
        }
    }
}

/// Everything that the checker read.
pub struct Evidence {
    pub facts: Facts,
    pub dump: Dump,
    pub updates: Vec<Entry>,
    pub requests: Vec<Entry>,
    pub dead_letters: Vec<Entry>,
    /// Values of the records that must be in `dlq`.
    pub originals: BTreeMap<Place, Option<Vec<u8>>>,
    pub lag: BTreeMap<String, i64>,
    /// Number of faults of members, brokers and stores: each may repeat a claim.
    pub disturbances: u64,
}

impl Evidence {
    /// Reads topics and Redis; it blocks.
    pub fn read(site: &Site, ports: &[u16], disturbances: u64) -> anyhow::Result<Self> {
        let reader = Reader::new(&site.brokers);
        let events = reader.all(&site.events)?;
        let profiles = reader.all(&site.profiles)?;
        let catalog = reader.all(&site.catalog)?;
        let mut requests = Vec::new();
        for lane in &site.lanes {
            requests.extend(reader.all(lane)?);
        }
        let facts = Facts::of(site, (&events, &profiles, &catalog));
        let poison = events.into_iter().chain(profiles);
        let originals = poison
            .filter(|entry| facts.poison.contains_key(&entry.place))
            .map(|entry| (entry.place, entry.value))
            .collect();
        let mut lag = BTreeMap::new();
        for (group, topics) in groups(site) {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            lag.insert(group.clone(), reader.lag(&group, &topics)?.values().sum());
        }
        Ok(Self {
            dump: Dump::of(&site.ns, ports)?,
            updates: reader.all(&site.updates)?,
            dead_letters: reader.all(&site.dlq)?,
            requests,
            originals,
            facts,
            lag,
            disturbances,
        })
    }

    /// Checks all invariants.
    pub fn verdict(&self, site: &Site) -> Vec<Row> {
        vec![
            self.seen_all(),
            self.folded(),
            self.counted(),
            lists::monotone(self, site),
            lists::erased(self, site),
            lists::safe(self, site),
            lists::coalesced(self, site),
            self.silent(),
            self.stocked(),
        ]
    }

    fn keys(&self, user: &str) -> &Keys {
        static NONE: std::sync::LazyLock<Keys> = std::sync::LazyLock::new(Keys::default);
        self.dump.users.get(user).unwrap_or(&NONE)
    }

    /// 1: every list has seen every record of the state.
    fn seen_all(&self) -> Row {
        let mut row = Row::new(
            1,
            "no event is lost: every list has seen every accepted record",
        );
        for (user, known) in &self.facts.users {
            if !known.vacant() {
                row.check(has_seen_all(user, known, self.keys(user)));
            }
        }
        row
    }

    /// 2: window, profile, erased_at and fences.
    fn folded(&self) -> Row {
        let mut row = Row::new(
            2,
            "the fold is a set function: states equal a single-threaded fold",
        );
        for (user, known) in &self.facts.users {
            row.check(same_state(user, known, self.keys(user)));
        }
        for (user, keys) in &self.dump.users {
            if !self.facts.users.contains_key(user) && !keys.state.is_empty() {
                row.check(Err((
                    Wrong::Other,
                    format!("{user} has a state and no record"),
                )));
            }
        }
        row
    }

    /// 3: counts.
    fn counted(&self) -> Row {
        let mut row = Row::new(3, "exact counts: counts equal a count of the log");
        let events = self.facts.counts.iter();
        let events = events.map(|(cell, n)| (cell.clone(), (*n, *n)));
        let buyers = self.facts.buyers.iter();
        let buyers = buyers.map(|((sku, bucket), range)| {
            let cell = (sku.clone(), "buyer".to_owned(), *bucket);
            (cell, *range)
        });
        let expected: BTreeMap<_, _> = events.chain(buyers).collect();
        let cells: BTreeSet<_> = expected.keys().chain(self.dump.counts.keys()).collect();
        for cell in cells {
            let (least, most) = expected.get(cell).copied().unwrap_or_default();
            let found = self.dump.counts.get(cell).copied().unwrap_or(0);
            let what = format!(
                "{} {}: {found} counted, {least} to {most} in the log",
                cell.0, cell.1
            );
            row.check(if found < least {
                Err((Wrong::Lost, what))
            } else if found > most {
                Err((Wrong::Doubled, what))
            } else {
                Ok(())
            });
        }
        for what in &self.dump.misplaced {
            row.check(Err((Wrong::Other, format!("misplaced: {what}"))));
        }
        row
    }

    /// 12: every record is folded, fenced or in `dlq`, and committed.
    fn silent(&self) -> Row {
        let mut row = Row::new(
            12,
            "never silent: committed = folded + in dlq, nothing else in dlq",
        );
        let mut found: BTreeMap<Place, &Entry> = BTreeMap::new();
        for dead_letter in &self.dead_letters {
            let of = |name: &str| {
                dead_letter
                    .headers
                    .get(&format!("__connect.errors.{name}"))
                    .cloned()
            };
            let place = (|| {
                Some(Place(
                    of("topic")?,
                    of("partition")?.parse().ok()?,
                    of("offset")?.parse().ok()?,
                ))
            })();
            match place {
                Some(place) => drop(found.insert(place, dead_letter)),
                None => row.check(Err((
                    Wrong::Other,
                    format!("a dead letter without an origin: {}", dead_letter.place),
                ))),
            }
        }
        for (place, code) in &self.facts.poison {
            row.check(match found.remove(place) {
                None => Err((Wrong::Lost, format!("{place} ({code}) is not in dlq"))),
                Some(dead_letter) if Some(&dead_letter.value) != self.originals.get(place) => {
                    Err((Wrong::Other, format!("{place} has other bytes in dlq")))
                }
                Some(_) => Ok(()),
            });
        }
        for place in found.keys() {
            row.check(Err((
                Wrong::Other,
                format!("{place} is in dlq and is a good record"),
            )));
        }
        for (group, lag) in &self.lag {
            row.check(match lag {
                0 => Ok(()),
                lag => Err((
                    Wrong::Lost,
                    format!("{group} is {lag} records behind the end"),
                )),
            });
        }
        row.note = format!(
            "{} records, {} of them bad",
            self.facts.records,
            self.facts.poison.len()
        );
        row
    }

    /// The sold-out sets: a promise without a number.
    fn stocked(&self) -> Row {
        let mut row = Row::new(0, "sold-out sets equal the catalogue's last records");
        for sku in self.facts.sold_out.union(&self.dump.sold_out) {
            let (expected, found) = (
                self.facts.sold_out.contains(sku),
                self.dump.sold_out.contains(sku),
            );
            row.check(if expected == found {
                Ok(())
            } else {
                Err((
                    Wrong::Stale,
                    format!("{sku}: in a set: {found}, sold out: {expected}"),
                ))
            });
        }
        row
    }
}

/// Consumer groups with their topics.
pub fn groups(site: &Site) -> [(String, Vec<String>); 3] {
    [
        (
            site.ingest_group(),
            vec![site.events.clone(), site.profiles.clone()],
        ),
        ("nearshore-generate".into(), site.lanes.to_vec()),
        ("nearshore-stock".into(), vec![site.catalog.clone()]),
    ]
}

/// Parses seen offsets or fences, by partition.
pub fn fences(text: &str) -> BTreeMap<(String, i32), i64> {
    let places = text.split(',').filter_map(crate::topics::place);
    places.map(|place| ((place.0, place.1), place.2)).collect()
}

fn has_seen_all(user: &str, known: &Known, keys: &Keys) -> Result<(), (Wrong, String)> {
    if keys.recall.is_empty() {
        return Err((Wrong::Lost, format!("{user} has no list")));
    }
    let doc: serde_json::Value = serde_json::from_str(&keys.recall_text("doc")).unwrap_or_default();
    if doc["source"] != "model" {
        let why = doc["reason"].as_str().unwrap_or("no reason");
        return Err((Wrong::Stale, format!("{user} has only a fallback: {why}")));
    }
    let seen = fences(&keys.recall_text("seen"));
    let window = known.window.iter().map(|(_, place, _)| place);
    let profile = known.profile.iter().map(|(_, place, _)| place);
    let missed = window.chain(profile).find(|place| {
        seen.get(&(place.0.clone(), place.1))
            .is_none_or(|fence| *fence < place.2)
    });
    match missed {
        None => Ok(()),
        Some(place) => Err((
            Wrong::Stale,
            format!(
                "{user}: the list (claim {}) has not seen {place}; pending {:?}, state's claim {}",
                keys.recall_text("claim"),
                keys.state_text("pending"),
                keys.state_text("claim")
            ),
        )),
    }
}

fn same_state(user: &str, known: &Known, keys: &Keys) -> Result<(), (Wrong, String)> {
    let Some(bytes) = keys.state.get("blob") else {
        if known.vacant() && known.erased_at > 0 {
            return Ok(());
        }
        return Err((Wrong::Lost, format!("{user} has no state")));
    };
    let stored =
        blob::read(bytes).map_err(|error| (Wrong::Other, format!("{user}: blob: {error}")))?;
    let found: BTreeMap<_, _> = stored
        .fences
        .iter()
        .map(|it| ((it.0.clone(), it.1), it.2))
        .collect();
    // The state of a user that is erased and silent may have expired; records from before the erase need no fence.
    let expired = known.vacant()
        && found
            .iter()
            .all(|(at, fence)| known.fences.get(at).is_some_and(|it| fence <= it));
    if found != known.fences && !expired {
        let low = known
            .fences
            .iter()
            .any(|(at, fence)| found.get(at).is_none_or(|it| it < fence));
        let wrong = if low { Wrong::Lost } else { Wrong::Other };
        return Err((
            wrong,
            format!("{user}: fences {found:?}, not {:?}", known.fences),
        ));
    }
    let window: Vec<_> = stored
        .window
        .iter()
        .map(|event| (event.time, &event.place))
        .collect();
    let expected: Vec<_> = known
        .window
        .iter()
        .map(|(time, place, _)| (*time, place))
        .collect();
    if window != expected {
        let lost = expected.iter().find(|it| !window.contains(it));
        let more = window.iter().find(|it| !expected.contains(it));
        let wrong = if lost.is_some() {
            Wrong::Lost
        } else {
            Wrong::Other
        };
        return Err((
            wrong,
            format!("{user}: the window lacks {lost:?} and has {more:?} too many"),
        ));
    }
    for (found, (_, _, event)) in stored.window.iter().zip(&known.window) {
        let same = found.kind == event.kind
            && found.item == event.item
            && found.qty == event.qty
            && found.price == event.price;
        if !same {
            return Err((Wrong::Other, format!("{user}: {found:?} is not {event:?}")));
        }
    }
    same_rest(user, known, keys)
}

/// Compares erased_at, profile and pending.
fn same_rest(user: &str, known: &Known, keys: &Keys) -> Result<(), (Wrong, String)> {
    if keys.state_text("erased_at") != known.erased_at.to_string() {
        let erased_at = keys.state_text("erased_at");
        return Err((
            Wrong::Other,
            format!("{user}: erased_at {erased_at}, not {}", known.erased_at),
        ));
    }
    let profile = keys
        .profile
        .as_deref()
        .map(serde_json::from_str::<serde_json::Value>);
    let found = profile.and_then(Result::ok);
    let expected = known.profile.as_ref().map(|(time, place, profile)| {
        serde_json::json!({"time": time, "position": place.to_string(), "profile": profile})
    });
    if found != expected {
        return Err((
            Wrong::Lost,
            format!("{user}: profile {found:?}, not {expected:?}"),
        ));
    }
    let pending = keys.state_text("pending");
    if !pending.is_empty() {
        return Err((
            Wrong::Stale,
            format!("{user} still has a pending request: {pending}"),
        ));
    }
    Ok(())
}
