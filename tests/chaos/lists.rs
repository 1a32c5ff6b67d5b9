//! What `recall-updates` and the stored lists say: claims and covers, safety, erases, how often users were taken.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::checker::{Evidence, Row, Wrong, fences};
use crate::facts::Known;
use crate::site::{Site, shelf};
use crate::topics::{Place, place};

/// One list, as told or as stored.
struct Told {
    claim: u64,
    seen: BTreeMap<(String, i32), i64>,
    doc: Value,
    audit: Value,
}

/// Lists told of each user in the topic's order; `None` is a tombstone. Bare documents of stripped lists have no
/// guards and are left out.
fn told(evidence: &Evidence, site: &Site) -> BTreeMap<String, Vec<Option<Told>>> {
    let mut users: BTreeMap<String, Vec<Option<Told>>> = BTreeMap::new();
    for entry in &evidence.updates {
        let key = entry.key_text();
        let Some(user) = key.strip_prefix(&format!("{}/", site.ns)) else {
            continue;
        };
        let lists = users.entry(user.to_owned()).or_default();
        let Some(value) = &entry.value else {
            lists.push(None);
            continue;
        };
        let value: Value = serde_json::from_slice(value).unwrap_or_default();
        if let Some(claim) = value["claim"].as_u64() {
            lists.push(Some(Told {
                claim,
                seen: fences(value["seen"].as_str().unwrap_or_default()),
                doc: value["doc"].clone(),
                audit: value["audit"].clone(),
            }));
        }
    }
    users
}

/// The id that a list of this claim and erased_at must have.
fn list_id(ns: &str, user: &str, claim: u64, erased_at: i64) -> String {
    let mut hash = Sha256::new();
    for part in [ns, user, &claim.to_string(), &erased_at.to_string()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let bytes = hash.finalize();
    bytes[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// 4: by rising claim no covers falls, one claim is one list, and what is stored is the newest that was told.
pub fn monotone(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(
        4,
        "monotone lists: claims rise, covers do not fall, one list per claim",
    );
    let mut told = told(evidence, site);
    for (user, known) in &evidence.facts.users {
        let lists = told.remove(user).unwrap_or_default();
        let mut by_claim: BTreeMap<u64, &Told> = BTreeMap::new();
        for list in lists.iter().flatten() {
            let first = by_claim.entry(list.claim).or_insert(list);
            // A list whose last product a profile change forbade became the fallback, under its claim.
            let fallen = [first.doc["source"].clone(), list.doc["source"].clone()]
                .contains(&"fallback".into());
            let same =
                first.seen == list.seen && (fallen || first.doc["list_id"] == list.doc["list_id"]);
            row.look(if same {
                Ok(())
            } else {
                let what = format!("{user}: claim {} stands on two lists", list.claim);
                Err((Wrong::Doubled, what))
            });
        }
        let claims: Vec<&Told> = by_claim.values().copied().collect();
        for pair in claims.windows(2) {
            row.look(not_fallen(user, pair[0], pair[1]));
        }
        let stored = evidence
            .dump
            .users
            .get(user)
            .map(|keys| keys.recall_text("claim"));
        let stored: u64 = stored.and_then(|text| text.parse().ok()).unwrap_or(0);
        let newest = by_claim.last_key_value().map_or(0, |(claim, _)| *claim);
        if !known.vacant() {
            row.look(match stored.cmp(&newest) {
                std::cmp::Ordering::Equal => Ok(()),
                std::cmp::Ordering::Less => {
                    let what = format!("{user}: list {newest} was told, {stored} is stored");
                    Err((Wrong::Stale, what))
                }
                std::cmp::Ordering::Greater => {
                    let what = format!("{user}: list {stored} was never told, only {newest}");
                    Err((Wrong::Lost, what))
                }
            });
        }
    }
    row
}

fn not_fallen(user: &str, old: &Told, new: &Told) -> Result<(), (Wrong, String)> {
    let fallen = old
        .seen
        .iter()
        .find(|(at, fence)| new.seen.get(at).is_none_or(|it| it < fence));
    match fallen {
        None => Ok(()),
        Some((at, fence)) => Err((
            Wrong::Stale,
            format!(
                "{user}: list {} had seen {at:?} to {fence}, list {} only to {:?}",
                old.claim,
                new.claim,
                new.seen.get(at)
            ),
        )),
    }
}

/// 6: nothing of before an erase anywhere.
pub fn erased(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(
        6,
        "erase: nothing of before it in state, list, profile or recall-updates",
    );
    let told = told(evidence, site);
    for (user, known) in &evidence.facts.users {
        if known.erased_at == 0 {
            continue;
        }
        let keys = evidence.dump.users.get(user);
        let stone = keys.and_then(|keys| keys.erased).unwrap_or(0);
        row.look(if stone == known.erased_at {
            Ok(())
        } else {
            Err((
                Wrong::Leaked,
                format!("{user}: tombstone {stone}, not {}", known.erased_at),
            ))
        });
        if known.vacant() {
            let listed = keys.is_some_and(|keys| !keys.recall.is_empty());
            let known_as = keys.is_some_and(|keys| keys.profile.is_some());
            row.look(if listed || known_as {
                let what =
                    format!("{user} is erased: list stored {listed}, profile stored {known_as}");
                Err((Wrong::Leaked, what))
            } else {
                Ok(())
            });
            let last = told.get(user).and_then(|lists| lists.last());
            row.look(match last {
                Some(Some(list)) => {
                    let what = format!("{user} is erased, but list {} was told after", list.claim);
                    Err((Wrong::Leaked, what))
                }
                Some(None) | None => Ok(()),
            });
        }
        for list in told.get(user).into_iter().flatten().flatten() {
            row.look(not_of_before(site, user, known, list));
        }
    }
    row
}

/// A list made after an erase knows of it, and of no event of before.
fn not_of_before(
    site: &Site,
    user: &str,
    known: &Known,
    list: &Told,
) -> Result<(), (Wrong, String)> {
    let (erased_at, _) = known.as_of(&list.seen);
    let id = list.doc["list_id"].as_str().unwrap_or_default();
    if list.doc["source"] == "model" && id != list_id(&site.ns, user, list.claim, erased_at) {
        let what = format!(
            "{user}: list {} ({id}) is not of erased_at {erased_at}",
            list.claim
        );
        return Err((Wrong::Leaked, what));
    }
    for text in list.audit["events"].as_array().into_iter().flatten() {
        let shown = text.as_str().and_then(place);
        let time = shown
            .as_ref()
            .and_then(|place| known.records.get(place))
            .map(|(time, _)| *time);
        if time.is_none_or(|time| time <= erased_at) {
            let what = format!(
                "{user}: list {} shows {text}, of before {erased_at}",
                list.claim
            );
            return Err((Wrong::Leaked, what));
        }
    }
    Ok(())
}

/// Categories that a profile forbids, by the run's rules.
fn forbidden(profile: Option<&Map<String, Value>>) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let of = |name: &str| profile.and_then(|profile| profile.get(name));
    for avoided in of("avoids").and_then(Value::as_array).into_iter().flatten() {
        out.extend(avoided.as_str().map(str::to_owned));
    }
    // Required: who does not say their age is treated as a child.
    if of("age").and_then(Value::as_i64).is_none_or(|age| age < 18) {
        out.insert("WINE".into());
    }
    out
}

fn offends(
    doc: &Value,
    profile: Option<&Map<String, Value>>,
    shelf: &BTreeMap<String, &str>,
) -> Option<String> {
    let forbidden = forbidden(profile);
    let names = doc["names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let mut seen = BTreeSet::new();
    for name in names {
        let Some(category) = shelf.get(name) else {
            return Some(format!("{name} is no product"));
        };
        if forbidden.contains(*category) {
            return Some(format!("{name} is {category}"));
        }
        if !seen.insert(name) {
            return Some(format!("{name} stands twice"));
        }
    }
    None
}

/// 7: under the profile at take for what was told, under the latest for what is stored.
pub fn safe(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(
        7,
        "safety: no list has what the profile forbids or does not tell",
    );
    let shelf = shelf();
    for (user, lists) in told(evidence, site) {
        let Some(known) = evidence.facts.users.get(&user) else {
            row.look(Err((
                Wrong::Other,
                format!("{user} has a list and no record"),
            )));
            continue;
        };
        // What stands in for a stripped list was chosen under a newer profile than its covers tell.
        let made = |list: &&Told| list.doc["source"] == "model";
        for list in lists.iter().flatten().filter(made) {
            let (_, profile) = known.as_of(&list.seen);
            row.look(match offends(&list.doc, profile.as_ref(), &shelf) {
                None => Ok(()),
                Some(what) => Err((Wrong::Other, format!("{user}: list {}: {what}", list.claim))),
            });
        }
    }
    for (user, known) in &evidence.facts.users {
        let Some(keys) = evidence
            .dump
            .users
            .get(user)
            .filter(|keys| !keys.recall.is_empty())
        else {
            continue;
        };
        let doc: Value = serde_json::from_str(&keys.recall_text("doc")).unwrap_or_default();
        let profile = known.profile.as_ref().map(|(_, _, profile)| profile);
        row.look(match offends(&doc, profile, &shelf) {
            None => Ok(()),
            Some(what) => Err((Wrong::Other, format!("{user}: the stored list: {what}"))),
        });
    }
    row
}

/// 10: a take for each request, and one more for what may make somebody do it again.
pub fn coalesced(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(10, "coalescing: takes <= 1 + periods + upheavals");
    let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in &evidence.requests {
        let value: Value = entry
            .value
            .as_deref()
            .and_then(|v| serde_json::from_slice(v).ok())
            .unwrap_or_default();
        let source = value["source"].as_str().unwrap_or_default().to_owned();
        if value["ns"] == *site.ns {
            asked.entry(entry.key_text()).or_default().insert(source);
        }
    }
    let (mut takes, mut periods) = (0, 0);
    for (user, keys) in &evidence.dump.users {
        let taken: u64 = keys.state_text("claim").parse().unwrap_or(0);
        let many = asked.get(user).map_or(0, |sources| sources.len() as u64);
        let bound = 1 + many + evidence.upheavals;
        takes += taken;
        periods += many;
        row.look(if taken <= bound {
            Ok(())
        } else {
            Err((
                Wrong::Doubled,
                format!("{user}: {taken} takes, {many} requests, bound {bound}"),
            ))
        });
    }
    row.note = format!("{takes} takes for {periods} requests");
    row
}

/// So that a misread position cannot pass for one that is not there.
pub fn proven() -> Result<(), String> {
    let at = Place("t-events".into(), 3, 17);
    match place(&at.to_string()) {
        Some(read) if read == at => Ok(()),
        other => Err(format!("{at} reads as {other:?}")),
    }
}
