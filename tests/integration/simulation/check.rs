//! Compares the facts after a history with a single-threaded reading of the log.
//!
//! It knows the topics and the store, not how the members work.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use nearshore_core::list::document::{Document, StoredAudit, Update};
use nearshore_core::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use nearshore_core::list::prompt::{Arm, Template};
use nearshore_core::ports::store::{Store, Stored};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::shop::demand::Demand;
use nearshore_core::shop::rules::{Rule, Table};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{Accepted, Change, Item, Kind, UserId, decode_user};
use nearshore_core::user::record::{Fences, Record, Timestamp};
use nearshore_core::user::trigger::{Policy, Weights};
use serde_json::json;

use super::gate::PublishedList;
use super::history::{History, SKUS, USERS, WINDOW, quiet_period};

/// A policy under which every event requests a list, so that at rest every list must have seen every event.
pub fn policy() -> Policy {
    let weights = Weights {
        purchase: 1.0,
        cart: 1.0,
        search: 1.0,
        click: 1.0,
        view: 1.0,
        impression: 1.0,
        profile: 1.0,
    };
    Policy {
        weights,
        quiet_period: quiet_period(),
        claim_every: std::time::Duration::ZERO,
        claims_per_day: 10_000,
        ..Policy::default()
    }
}

/// Six products of two SKUs; the last is for adults.
pub fn snapshot() -> Snapshot {
    let mut catalogue = Catalogue::default();
    for nth in 0..SKUS {
        let adult = nth / 2 == SKUS / 2 - 1;
        let value = json!({
            "pu": format!("PRODUCT {}", nth / 2),
            "category": if adult { "adult" } else { "all" },
            "title": format!("product {nth}"),
            "stock": 5,
        });
        let sku = serde_json::from_value(complete(&format!("s{nth}"), value)).expect("a SKU");
        catalogue.apply(format!("s{nth}"), Some(sku));
    }
    let rule: Rule = serde_json::from_value(json!({
        "id": "adults",
        "when": { "field": "age", "below": 18 },
        "forbid": { "categories": ["adult"] },
        "required": true,
    }))
    .expect("a rule");
    let catalogue = Arc::new(catalogue);
    let rules = Arc::new(Table::compile(&[rule], &[], &catalogue));
    let demand = Arc::new(Demand::build(
        std::iter::empty(),
        &catalogue,
        &Default::default(),
        Timestamp(0),
    ));
    let parts = SnapshotParts {
        catalogue,
        rules,
        demand,
        merchant: Arc::default(),
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: 4,
        selection: &Default::default(),
    };
    serving_snapshot(parts, fallbacks)
}

fn complete(sku: &str, mut value: serde_json::Value) -> serde_json::Value {
    let pu = value["pu"].clone();
    value["sku"] = json!(sku);
    value["pu_id"] = pu;
    value["price"] = json!(null);
    value["attributes"] = json!({});
    value
}

/// The only arm and its template.
pub fn arm() -> (Arm, Template) {
    let arm = serde_json::from_value(json!({
        "id": "table", "epoch": 1, "template": "t.j2", "model": "none", "names": 3,
        "weights": {"model": 1.0},
    }));
    let template = Template::load(
        "{{ events | length }} events\n---assistant---\nNext:",
        "t.j2",
    );
    (arm.expect("an arm"), template.expect("a template"))
}

/// What a single-threaded reading makes of the log.
#[derive(Default)]
struct Facts {
    /// Per user: the newest events that are later than the last erase, by (time, position).
    windows: BTreeMap<UserId, BTreeSet<(Timestamp, nearshore_core::user::record::Position)>>,
    profiles: BTreeMap<UserId, (Timestamp, nearshore_core::user::record::Position)>,
    erases: BTreeMap<UserId, Timestamp>,
    fences: BTreeMap<UserId, Fences>,
    counts: BTreeMap<(String, Kind, i64), u64>,
    /// Purchase records by SKU, bucket and user.
    bought: BTreeMap<(String, i64), BTreeMap<UserId, u64>>,
}

/// Reads the accepted records.
fn facts(records: &[Accepted]) -> Facts {
    let mut facts = Facts::default();
    for record in records {
        facts
            .fences
            .entry(record.user.clone())
            .or_default()
            .raise(&record.position);
        if record.change == Change::Erase {
            let erased_at = facts.erases.entry(record.user.clone()).or_default();
            *erased_at = (*erased_at).max(record.time);
        }
    }
    for record in records {
        let erased_at = facts.erases.get(&record.user).copied().unwrap_or_default();
        let at = (record.time, record.position.clone());
        match &record.change {
            Change::Event(event) => {
                if let Item::Sku(sku) = &event.item {
                    let n = if event.kind == Kind::Purchase {
                        u64::from(event.qty)
                    } else {
                        1
                    };
                    let bucket = record
                        .time
                        .0
                        .div_euclid(nearshore_core::shop::demand::BUCKET_MS);
                    *facts
                        .counts
                        .entry((sku.clone(), event.kind, bucket))
                        .or_default() += n;
                    if event.kind == Kind::Purchase {
                        let users = facts.bought.entry((sku.clone(), bucket)).or_default();
                        *users.entry(record.user.clone()).or_default() += 1;
                    }
                }
                if record.time > erased_at {
                    facts
                        .windows
                        .entry(record.user.clone())
                        .or_default()
                        .insert(at);
                }
            }
            Change::Profile(_) if record.time > erased_at => {
                let profile = facts
                    .profiles
                    .entry(record.user.clone())
                    .or_insert_with(|| at.clone());
                *profile = profile.clone().max(at);
            }
            Change::Profile(_) | Change::Erase => {}
        }
    }
    for window in facts.windows.values_mut() {
        while window.len() > WINDOW {
            window.pop_first();
        }
    }
    facts
}

/// Checks all facts of a history at rest; `Err` says what is wrong.
pub fn all<S: Store>(history: &History<S>) -> Result<(), String> {
    let mut records: Vec<Record> = history.cluster.records(&history.topics.user_events);
    records.extend(history.cluster.records(&history.topics.profile_changes));
    let decode = |record: &Record| {
        let source = history.topics.source(&record.position.partition.topic);
        decode_user(record, source, &Default::default()).ok()
    };
    let accepted: Vec<Accepted> = records.iter().filter_map(decode).collect();
    let dead = records.len() - accepted.len();
    let facts = facts(&accepted);
    states(history, &facts)?;
    lists(history, &facts)?;
    erased_updates(history, &facts)?;
    counts(history, &facts)?;
    dead_letters(history, (&records, dead))?;
    claims(history)?;
    coalescing(history)?;
    updates(history)?;
    committed(history)
}

fn users<S: Store>(history: &History<S>) -> Vec<UserId> {
    (0..USERS)
        .map(|nth| UserId(history.user(nth).into()))
        .collect()
}

/// Polls a call to its end: one poll on a double, more on a real store.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::yield_now(),
        }
    }
}

fn states<S: Store>(history: &History<S>, facts: &Facts) -> Result<(), String> {
    let loaded =
        now(history.store.load(&history.ns, &users(history))).map_err(|e| e.to_string())?;
    for (user, loaded) in users(history).iter().zip(loaded) {
        let state = &loaded.state;
        let window: BTreeSet<_> = state
            .window
            .iter()
            .map(|seen| (seen.time, seen.position.clone()))
            .collect();
        let profile = state.profile.as_ref().map(|p| (p.time, p.position.clone()));
        let expected = (
            facts.windows.get(user).cloned().unwrap_or_default(),
            facts.profiles.get(user).cloned(),
            facts.erases.get(user).copied().unwrap_or_default(),
            facts.fences.get(user).cloned().unwrap_or_default(),
        );
        let found = (window, profile, state.erased_at, state.fences.clone());
        if found != expected {
            return Err(format!(
                "state of {user}: found {found:?}\nexpected {expected:?}"
            ));
        }
        if let Some(pending) = &loaded.activity.pending {
            return Err(format!("{user} still has a pending request: {pending:?}"));
        }
    }
    Ok(())
}

fn lists<S: Store>(history: &History<S>, facts: &Facts) -> Result<(), String> {
    let snapshot = history.snapshot.load_full();
    let loaded =
        now(history.store.load(&history.ns, &users(history))).map_err(|e| e.to_string())?;
    let peeks = now(history.store.peek(&history.ns, &users(history))).map_err(|e| e.to_string())?;
    for ((user, peek), loaded) in users(history).iter().zip(peeks).zip(loaded) {
        let seen: Vec<_> = facts
            .windows
            .get(user)
            .into_iter()
            .flatten()
            .map(|(_, p)| p)
            .collect();
        let profile = facts.profiles.get(user).map(|(_, position)| position);
        if seen.is_empty() && profile.is_none() {
            if let Some(list) = peek.list {
                return Err(format!(
                    "{user} is erased or unknown and has list {}",
                    list.doc
                ));
            }
            continue;
        }
        let Some(list) = peek.list else {
            return Err(format!("{user} has no list"));
        };
        let doc = Document::parse(&list.doc).map_err(|e| format!("list of {user}: {e}"))?;
        if !doc.source.is_exposure() {
            return Err(format!(
                "{user} has only a fallback of claim {}, the state's is {}: {}",
                list.claim, loaded.claim, list.doc
            ));
        }
        if let Some(missed) = seen
            .into_iter()
            .chain(profile)
            .find(|p| !list.seen.contains(p))
        {
            return Err(format!(
                "list of {user} has seen {}, not {missed}",
                list.seen
            ));
        }
        let verdict = snapshot.judge(loaded.state.profile.as_ref().map(|p| &p.profile), list.at);
        let mut stripped = doc.clone();
        if snapshot.strip(&mut stripped, &verdict) {
            return Err(format!(
                "list of {user} has a forbidden product: {}",
                list.doc
            ));
        }
        let names: BTreeSet<&str> = doc.pus.iter().map(|pu| pu.name.as_str()).collect();
        if names.len() != doc.pus.len() || names.is_empty() {
            return Err(format!(
                "list of {user} is empty or has a name twice: {}",
                list.doc
            ));
        }
    }
    Ok(())
}

/// The last update of a user that is erased and has no list is a tombstone.
fn erased_updates<S: Store>(history: &History<S>, facts: &Facts) -> Result<(), String> {
    let peeks = now(history.store.peek(&history.ns, &users(history))).map_err(|e| e.to_string())?;
    let updates = history.cluster.records(&history.topics.recall_updates);
    for (user, peek) in users(history).iter().zip(peeks) {
        let key = format!("{}/{user}", history.ns);
        let of_user = updates
            .iter()
            .filter(|record| record.key.as_deref() == Some(key.as_bytes()));
        let last = of_user.last().and_then(|record| record.value.as_deref());
        if let (None, Some(erased_at), Some(value)) = (peek.list, facts.erases.get(user), last) {
            let update = Update::parse(value).map_err(|e| format!("update of {user}: {e}"))?;
            let claim = update.claim;
            return Err(format!(
                "{user} is erased at {erased_at:?}, and list {claim} was published after"
            ));
        }
    }
    Ok(())
}

fn counts<S: Store>(history: &History<S>, facts: &Facts) -> Result<(), String> {
    let mut found: BTreeMap<(String, Kind, i64), u64> = BTreeMap::new();
    let mut buyers: BTreeMap<(String, i64), u64> = BTreeMap::new();
    let shards: BTreeSet<u8> = (0..SKUS)
        .map(|nth| nearshore_core::ports::keys::shard(&format!("s{nth}")))
        .collect();
    for shard in shards {
        let cells = now(history.store.counts(&history.ns, shard, 0)).map_err(|e| e.to_string())?;
        for (cell, n) in cells {
            match cell.kind {
                CountKind::Event(kind) => {
                    *found.entry((cell.sku, kind, cell.bucket)).or_default() += n;
                }
                CountKind::Buyer => *buyers.entry((cell.sku, cell.bucket)).or_default() += n,
            }
        }
    }
    if found != facts.counts {
        return Err(format!("counts {found:?}\nexpected {:?}", facts.counts));
    }
    buyers_are_exact(facts, &buyers)
}

/// A user counts once per SKU and bucket. One who was erased counts anew after the erase, and what a crash delivers
/// again after it does not count: then at most once per record.
fn buyers_are_exact(facts: &Facts, found: &BTreeMap<(String, i64), u64>) -> Result<(), String> {
    if let Some(unknown) = found.keys().find(|key| !facts.bought.contains_key(*key)) {
        return Err(format!("buyers of {unknown:?}, which nobody bought"));
    }
    for (key, users) in &facts.bought {
        let of_one = |(user, records): (&UserId, &u64)| match facts.erases.contains_key(user) {
            true => (0, *records),
            false => (1, 1),
        };
        let sum = |sum: (u64, u64), one: (u64, u64)| (sum.0 + one.0, sum.1 + one.1);
        let (least, most) = users.iter().map(of_one).fold((0, 0), sum);
        let n = found.get(key).copied().unwrap_or_default();
        if !(least..=most).contains(&n) {
            return Err(format!(
                "{n} buyers of {key:?}, not {least} to {most}: {users:?}"
            ));
        }
    }
    Ok(())
}

/// Each record that cannot be decoded is in `dlq` at least once, and nothing else is.
fn dead_letters<S>(
    history: &History<S>,
    (records, dead): (&[Record], usize),
) -> Result<(), String> {
    let mut places = BTreeSet::new();
    for record in history.cluster.records(&history.topics.dlq) {
        let dead_letter = nearshore_kafka::dlq::DeadLetter::read(&record);
        places.insert((dead_letter.topic, dead_letter.partition, dead_letter.offset));
    }
    if places.len() != dead {
        return Err(format!(
            "{} of {} records in dlq, not {dead}",
            places.len(),
            records.len()
        ));
    }
    Ok(())
}

/// Between two erases claim numbers and stages rise and seen offsets do not fall, except where the store lost writes.
fn claims<S>(history: &History<S>) -> Result<(), String> {
    let of = |list: &PublishedList| (list.claim, list.stage);
    history.gate.journal(|journal| {
        let mut before: BTreeMap<(&str, &UserId, Timestamp), Vec<&PublishedList>> = BTreeMap::new();
        for (nth, list) in journal.published.iter().enumerate() {
            if journal.losses.contains(&nth) {
                before.clear();
            }
            let lists = before
                .entry((&*list.ns, &list.user, list.erased_at))
                .or_default();
            let mut older = lists
                .iter()
                .filter(|older| older.between.1 < list.between.0);
            let falls = |older: &&&PublishedList| {
                of(older) >= of(list) || !list.seen.contains_all(&older.seen)
            };
            if let Some(older) = older.find(falls) {
                return Err(format!(
                    "list {:?} of {} ({}) after {:?} ({})",
                    of(list),
                    list.user,
                    list.seen,
                    of(older),
                    older.seen
                ));
            }
            if lists.iter().any(|other| of(other) == of(list)) {
                return Err(format!("list {:?} of {} twice", of(list), list.user));
            }
            lists.push(list);
        }
        Ok(())
    })
}

/// Claims per user: one per request, and one more per event that may repeat a claim.
fn coalescing<S>(history: &History<S>) -> Result<(), String> {
    let mut requested: BTreeMap<UserId, u64> = BTreeMap::new();
    for lane in history.topics.lanes() {
        // A requeued request is one request; its copy has headers.
        let records = history.cluster.records(&lane).into_iter();
        for record in records.filter(|record| record.headers.is_empty()) {
            let user = record
                .key
                .as_deref()
                .and_then(|key| std::str::from_utf8(key).ok());
            *requested
                .entry(UserId(user.unwrap_or_default().into()))
                .or_default() += 1;
        }
    }
    history.gate.journal(|journal| {
        for (user, claims) in &journal.claims {
            // What a store lost is requested and made again.
            let again = 1 + journal.losses.len() as u64;
            let requests = requested.get(user).unwrap_or(&0);
            let bound = requests * again + history.disturbances + journal.faults;
            if *claims > bound {
                return Err(format!("{claims} claims of {user}, more than {bound}"));
            }
        }
        Ok(())
    })
}

/// The last record of each user on `recall-updates` is the stored list, or a tombstone if there is none.
fn updates<S: Store>(history: &History<S>) -> Result<(), String> {
    let mut last: BTreeMap<Vec<u8>, Option<String>> = BTreeMap::new();
    for record in history.cluster.records(&history.topics.recall_updates) {
        let value = record
            .value
            .map(|value| String::from_utf8_lossy(&value).into_owned());
        last.insert(record.key.unwrap_or_default().to_vec(), value);
    }
    let peeks = now(history.store.peek(&history.ns, &users(history))).map_err(|e| e.to_string())?;
    for (user, peek) in users(history).iter().zip(peeks) {
        let key = format!("{}/{user}", history.ns).into_bytes();
        let published = last.remove(&key).flatten();
        let is_stored = match (&published, &peek.list) {
            (Some(published), Some(list)) => is_update_of(published, list)?,
            (published, list) => published.is_none() && list.is_none(),
        };
        if !is_stored {
            let stored = peek.list;
            return Err(format!(
                "recall-updates has {published:?} of {user}, stored is {stored:?}"
            ));
        }
    }
    Ok(())
}

/// Whether an update is of this list, with its audit in all digits.
fn is_update_of(update: &str, list: &Stored) -> Result<bool, String> {
    let update = Update::parse(update.as_bytes()).map_err(|error| error.to_string())?;
    let document = Document::parse(&list.doc).map_err(|error| error.to_string())?;
    let of_list = (list.claim, list.epoch, &list.seen, &document);
    let is_same = of_list == (update.claim, update.epoch, &update.seen, &update.doc);
    Ok(is_same && StoredAudit::pack(&update.audit) == list.audit)
}

/// Everything is done: the committed offsets are the ends.
fn committed<S: Store>(history: &History<S>) -> Result<(), String> {
    for group in history.groups() {
        let lag = history.cluster.lag(&group);
        if lag > 0 {
            return Err(format!("{group} is {lag} records behind its end"));
        }
    }
    Ok(())
}
