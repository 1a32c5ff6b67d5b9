//! Checks `recall-updates` and the stored lists: claims and seen offsets, rules, erases, and how often users were
//! claimed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::checker::{Evidence, Row, Wrong, fences};
use crate::facts::Known;
use crate::site::{Site, categories};
use crate::topics::{Place, place};

/// One list of `recall-updates`.
struct Published {
    claim: u64,
    /// 0 without the model, 1 with it.
    stage: u64,
    seen: BTreeMap<(String, i32), i64>,
    doc: Value,
    audit: Value,
}

/// Lists of each user in the order of the topic; `None` is a tombstone. Documents of stripped lists have no claim and
/// are left out.
fn published(evidence: &Evidence, site: &Site) -> BTreeMap<String, Vec<Option<Published>>> {
    let mut users: BTreeMap<String, Vec<Option<Published>>> = BTreeMap::new();
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
            lists.push(Some(Published {
                claim,
                stage: value["doc"]["stage"].as_u64().unwrap_or(1),
                seen: fences(value["seen"].as_str().unwrap_or_default()),
                doc: value["doc"].clone(),
                audit: value["audit"].clone(),
            }));
        }
    }
    users
}

/// The id that a list of this claim, stage and erased_at must have.
fn list_id(ns: &str, user: &str, (claim, stage): (u64, u64), erased_at: i64) -> String {
    let mut hash = Sha256::new();
    let (claim, stage) = (claim.to_string(), stage.to_string());
    for part in [ns, user, &claim, &stage, &erased_at.to_string()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let bytes = hash.finalize();
    bytes[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// 4: with rising claims and stages no seen offset falls, one stage of a claim is one list, and the stored list is the
/// newest that was published.
pub fn monotone(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(
        4,
        "monotone lists: claims, stages and seen offsets rise, one list per claim and stage",
    );
    let mut published = published(evidence, site);
    for (user, known) in &evidence.facts.users {
        let lists = published.remove(user).unwrap_or_default();
        let mut by_claim: BTreeMap<(u64, u64), &Published> = BTreeMap::new();
        for list in lists.iter().flatten() {
            let first = by_claim.entry((list.claim, list.stage)).or_insert(list);
            // A list all of whose products a new profile forbids is replaced by the fallback, under the same claim.
            let replaced = [first.doc["source"].clone(), list.doc["source"].clone()]
                .contains(&"fallback".into());
            let same = first.seen == list.seen
                && (replaced || first.doc["list_id"] == list.doc["list_id"]);
            row.check(if same {
                Ok(())
            } else {
                let what = format!("{user}: claim {} is on two lists", list.claim);
                Err((Wrong::Doubled, what))
            });
        }
        let claims: Vec<&Published> = by_claim.values().copied().collect();
        for pair in claims.windows(2) {
            row.check(not_fallen(user, pair[0], pair[1]));
        }
        let of = |field: &str| -> u64 {
            let keys = evidence.dump.users.get(user);
            let text = keys.map(|keys| keys.recall_text(field));
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let stored = (of("claim"), of("stage"));
        let newest = by_claim.last_key_value().map_or((0, 0), |(key, _)| *key);
        if !known.vacant() {
            row.check(match stored.cmp(&newest) {
                std::cmp::Ordering::Equal => Ok(()),
                std::cmp::Ordering::Less => {
                    let what =
                        format!("{user}: list {newest:?} was published, {stored:?} is stored");
                    Err((Wrong::Stale, what))
                }
                std::cmp::Ordering::Greater => {
                    let what =
                        format!("{user}: list {stored:?} was never published, only {newest:?}");
                    Err((Wrong::Lost, what))
                }
            });
        }
    }
    row
}

/// The newer list has seen at least what the older one has.
fn not_fallen(user: &str, old: &Published, new: &Published) -> Result<(), (Wrong, String)> {
    let lower = old
        .seen
        .iter()
        .find(|(at, fence)| new.seen.get(at).is_none_or(|it| it < fence));
    match lower {
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

/// 6: nothing from before an erase is anywhere.
pub fn erased(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(
        6,
        "erase: nothing from before it in state, list, profile or recall-updates",
    );
    let published = published(evidence, site);
    for (user, known) in &evidence.facts.users {
        if known.erased_at == 0 {
            continue;
        }
        let keys = evidence.dump.users.get(user);
        let tombstone = keys.and_then(|keys| keys.erased).unwrap_or(0);
        row.check(if tombstone == known.erased_at {
            Ok(())
        } else {
            Err((
                Wrong::Leaked,
                format!("{user}: tombstone {tombstone}, not {}", known.erased_at),
            ))
        });
        if known.vacant() {
            let listed = keys.is_some_and(|keys| !keys.recall.is_empty());
            let profiled = keys.is_some_and(|keys| keys.profile.is_some());
            row.check(if listed || profiled {
                let what =
                    format!("{user} is erased: list stored: {listed}, profile stored: {profiled}");
                Err((Wrong::Leaked, what))
            } else {
                Ok(())
            });
            let last = published.get(user).and_then(|lists| lists.last());
            row.check(match last {
                Some(Some(list)) => {
                    let what = format!(
                        "{user} is erased, and list {} was published after",
                        list.claim
                    );
                    Err((Wrong::Leaked, what))
                }
                Some(None) | None => Ok(()),
            });
        }
        for list in published.get(user).into_iter().flatten().flatten() {
            row.check(not_from_before(site, user, known, list));
        }
    }
    row
}

/// A list that was made after an erase has its erased_at and no event from before.
fn not_from_before(
    site: &Site,
    user: &str,
    known: &Known,
    list: &Published,
) -> Result<(), (Wrong, String)> {
    let (erased_at, _) = known.as_of(&list.seen);
    let id = list.doc["list_id"].as_str().unwrap_or_default();
    let made = list.doc["source"] != "fallback";
    if made && id != list_id(&site.ns, user, (list.claim, list.stage), erased_at) {
        let what = format!(
            "{user}: list {} ({id}) was not made with erased_at {erased_at}",
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
                "{user}: list {} shows {text}, from before {erased_at}",
                list.claim
            );
            return Err((Wrong::Leaked, what));
        }
    }
    Ok(())
}

/// Categories that the rules of the run forbid under this profile.
fn forbidden(profile: Option<&Map<String, Value>>) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let of = |name: &str| profile.and_then(|profile| profile.get(name));
    for avoided in of("avoids").and_then(Value::as_array).into_iter().flatten() {
        out.extend(avoided.as_str().map(str::to_owned));
    }
    // The rule is required: a profile without an age counts as that of a minor.
    if of("age").and_then(Value::as_i64).is_none_or(|age| age < 18) {
        out.insert("WINE".into());
    }
    out
}

/// What is wrong with the products of a list, if anything.
fn offends(
    doc: &Value,
    profile: Option<&Map<String, Value>>,
    categories: &BTreeMap<String, &str>,
) -> Option<String> {
    let forbidden = forbidden(profile);
    let names = doc["names"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    let mut seen = BTreeSet::new();
    for name in names {
        let Some(category) = categories.get(name) else {
            return Some(format!("{name} is no product"));
        };
        if forbidden.contains(*category) {
            return Some(format!("{name} is {category}"));
        }
        if !seen.insert(name) {
            return Some(format!("{name} is on it twice"));
        }
    }
    None
}

/// 7: published lists obey the rules under the profile of their claim, stored lists under the latest one.
pub fn safe(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(
        7,
        "safety: no list has what a rule forbids under the profile",
    );
    let categories = categories();
    for (user, lists) in published(evidence, site) {
        let Some(known) = evidence.facts.users.get(&user) else {
            row.check(Err((
                Wrong::Other,
                format!("{user} has a list and no record"),
            )));
            continue;
        };
        // The fallback that replaces a stripped list was chosen under a newer profile than that of its seen offsets.
        let made = |list: &&Published| list.doc["source"] != "fallback";
        for list in lists.iter().flatten().filter(made) {
            let (_, profile) = known.as_of(&list.seen);
            row.check(match offends(&list.doc, profile.as_ref(), &categories) {
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
        row.check(match offends(&doc, profile, &categories) {
            None => Ok(()),
            Some(what) => Err((Wrong::Other, format!("{user}: the stored list: {what}"))),
        });
    }
    row
}

/// 10: one claim per request, and one more per fault that may repeat it.
pub fn coalesced(evidence: &Evidence, site: &Site) -> Row {
    let mut row = Row::new(10, "coalescing: claims <= 1 + requests + faults");
    let mut requested: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in &evidence.requests {
        let value: Value = entry
            .value
            .as_deref()
            .and_then(|v| serde_json::from_slice(v).ok())
            .unwrap_or_default();
        let source = value["source"].as_str().unwrap_or_default().to_owned();
        if value["ns"] == *site.ns {
            requested
                .entry(entry.key_text())
                .or_default()
                .insert(source);
        }
    }
    let (mut claims, mut requests) = (0, 0);
    for (user, keys) in &evidence.dump.users {
        let claim: u64 = keys.state_text("claim").parse().unwrap_or(0);
        let sources = requested
            .get(user)
            .map_or(0, |sources| sources.len() as u64);
        let bound = 1 + sources + evidence.disturbances;
        claims += claim;
        requests += sources;
        row.check(if claim <= bound {
            Ok(())
        } else {
            Err((
                Wrong::Doubled,
                format!("{user}: {claim} claims, {sources} requests, bound {bound}"),
            ))
        });
    }
    row.note = format!("{claims} claims for {requests} requests");
    row
}

/// Checks that positions are parsed right: a misread one would count as one that is not there.
pub fn self_test() -> Result<(), String> {
    let at = Place("t-events".into(), 3, 17);
    match place(&at.to_string()) {
        Some(read) if read == at => Ok(()),
        other => Err(format!("{at} reads as {other:?}")),
    }
}
