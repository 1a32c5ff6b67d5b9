//! One user's records of a batch become one write: fold, trigger, counts, and what becomes of the list.
//!
//! Invariant: planning twice from the same stored user gives the same plan; planning again from the
//! state that the plan stored changes nothing and asks only for what is still pending. It does not
//! know the store nor the log; retries are the role's.

use std::collections::BTreeMap;

use crate::list::document::Document;
use crate::list::fallback;
use crate::shop::rules::Verdict;
use crate::shop::snapshot::Snapshot;
use crate::user::event::UserId;
use crate::user::event::{Accepted, Change, Item, Kind, Profile};
use crate::user::fold::{Step, fold};
use crate::user::record::{Fences, Partition, Position, Timestamp};
use crate::user::state::{Activity, Held};
use crate::user::trigger::{ACTIVITY_ENOUGH, Policy, Reason, Request, TriggerContext, trigger};

/// What planning needs beside the user.
pub struct Rulebook<'a> {
    /// The shop as of now.
    pub snapshot: &'a Snapshot,
    /// When to ask.
    pub policy: &'a Policy,
    /// Namespace that folds.
    pub ns: &'a str,
    /// Events kept per user.
    pub window: usize,
    /// False while a backfill catches up.
    pub triggers: bool,
    /// Time from which the events of a partition are complete, where the log no longer had all of them.
    pub complete_since: &'a BTreeMap<Partition, Timestamp>,
}

/// The list that is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredList {
    /// Its claim.
    pub claim: u64,
    /// Epoch of its arm.
    pub epoch: u64,
    /// What it has seen.
    pub seen: Fences,
    /// The document.
    pub doc: Document,
    /// Its audit, JSON.
    pub audit: String,
}

/// One event to be counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// Where it stands: counts have fences of their own.
    pub position: Position,
    /// Record time, for the bucket.
    pub time: Timestamp,
    /// SKU id.
    pub sku: String,
    /// What was done.
    pub kind: Kind,
    /// How many: the quantity of a purchase, else 1.
    pub n: u64,
    /// Segment of the profile at fold time.
    pub segment: String,
}

/// What becomes of the list in the step of the write.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Edit {
    /// Nothing.
    #[default]
    Keep,
    /// The user's own copy of the fallback, where there is no list.
    First(Box<Document>, Timestamp),
    /// The stored list, of this claim still, without newly forbidden products.
    Strip(Box<StoredList>),
}

/// What is to be done for one user.
#[derive(Debug, Default)]
pub struct Plan {
    /// State and activity afterwards; `ver` and `claim` are still the stored ones.
    pub held: Held,
    /// Whether anything is to be written.
    pub changed: bool,
    /// Whether the profile differs from the stored one.
    pub profile_changed: bool,
    /// Requests to be sent once the write is acknowledged.
    pub requests: Vec<Request>,
    /// Events to be counted, in record order; also those that the state had folded before.
    pub counted: Vec<Counted>,
    /// What each record did, in order.
    pub steps: Vec<Step>,
    /// What kind of event each was; none for a profile or an erase.
    pub kinds: Vec<Option<Kind>>,
    /// Events whose SKU the catalogue does not know; folded by id all the same.
    pub unknown: u64,
    /// What becomes of the list.
    pub edit: Edit,
    /// The user's record on `recall-updates` is to be deleted.
    pub erased: bool,
}

/// Plans one user's records, in the order given.
pub fn plan(held: Held, records: &[Accepted], list: Option<&StoredList>, book: &Rulebook) -> Plan {
    let first = held.ver == 0;
    let mut asked = false;
    // An event changes no profile, and most batches of a user are events.
    let of_profile = records
        .iter()
        .any(|record| !matches!(record.change, Change::Event(_)));
    let before = of_profile.then(|| held.state.profile.clone());
    let reborn = held.reborn;
    let held = lose_the_list(held);
    let mut plan = Plan {
        held,
        ..Plan::default()
    };
    for record in records {
        let step = fold(&mut plan.held.state, record, book.window);
        if let (Change::Event(_), Some(since)) = (
            &record.change,
            book.complete_since.get(&record.position.partition),
        ) {
            // A maximum over the partitions seen: the order of records does not matter.
            let known = &mut plan.held.state.complete_since;
            *known = (*known).max(*since);
        }
        let ask = TriggerContext {
            policy: book.policy,
            ns: book.ns,
            first: first && !asked,
            // A profile sent again unchanged alters neither prompt nor rules nor segment.
            profile_matters: step == Step::ProfileChanged,
            enabled: book.triggers,
        };
        if let Some(request) = trigger(&mut plan.held, record, step, &ask) {
            asked = true;
            plan.requests.push(request);
        }
        plan.changed |= step != Step::Duplicate;
        plan.erased |= erases(&plan.held, record, step);
        if let Change::Event(event) = &record.change
            && let Item::Sku(sku) = &event.item
        {
            let profile = plan.held.state.profile.as_ref().map(|p| &p.profile);
            plan.unknown += u64::from(book.snapshot.catalogue.by_sku(sku).is_none());
            plan.counted.push(Counted {
                position: record.position.clone(),
                time: record.time,
                sku: sku.clone(),
                kind: event.kind,
                n: if event.kind == Kind::Purchase {
                    u64::from(event.qty)
                } else {
                    1
                },
                segment: book
                    .snapshot
                    .rules
                    .segment(profile, record.time)
                    .to_string(),
            });
        }
        plan.steps.push(step);
        plan.kinds.push(match &record.change {
            Change::Event(event) => Some(event.kind),
            Change::Profile(_) | Change::Erase => None,
        });
    }
    plan.erased |= reborn && plan.changed;
    plan.profile_changed = before.is_some_and(|before| plan.held.state.profile != before);
    if let Some(last) = records.last() {
        plan.edit = edit(&plan, list, (&last.user, last.time), book.snapshot);
    }
    plan
}

/// Where the next write takes the list along, what is left of the user asks for another one; nobody left is
/// somebody unknown.
fn lose_the_list(mut held: Held) -> Held {
    if std::mem::take(&mut held.reborn) {
        if held.state.is_vacant() {
            held.activity = Activity::default();
        } else {
            held.activity.score = held.activity.score.max(ACTIVITY_ENOUGH);
        }
    }
    held
}

/// An erase is told again on redelivery, lest a crash after the write loses the tombstone; but not
/// once the user has come back, for it would hide a list made since.
fn erases(held: &Held, record: &Accepted, step: Step) -> bool {
    let gone = held.state.window.is_empty() && held.state.profile.is_none();
    record.change == Change::Erase && (step == Step::Erased || gone)
}

fn edit(
    plan: &Plan,
    list: Option<&StoredList>,
    (user, at): (&UserId, Timestamp),
    snapshot: &Snapshot,
) -> Edit {
    let state = &plan.held.state;
    let profile: Option<&Profile> = state.profile.as_ref().map(|p| &p.profile);
    let verdict = || snapshot.judge(profile, at);
    let own = |verdict: &Verdict| {
        let list = snapshot.fallback(snapshot.rules.segment(profile, at), verdict)?;
        Some(fallback::for_user(list, user, at))
    };
    // Also who comes back after an erase is seen for the first time.
    let first = plan
        .requests
        .iter()
        .any(|request| request.reason == Reason::First);
    if (plan.held.ver == 0 || first) && !state.is_vacant() {
        let list = own(&verdict());
        return list.map_or(Edit::Keep, |list| Edit::First(Box::new(list), at));
    }
    let Some(list) = list.filter(|_| plan.profile_changed) else {
        return Edit::Keep;
    };
    let verdict = verdict();
    let mut stripped = list.clone();
    if !snapshot.strip(&mut stripped.doc, &verdict) {
        return Edit::Keep;
    }
    if stripped.doc.is_empty() {
        // A list is never a dead end: what is left of it is the fallback.
        stripped.doc = own(&verdict).unwrap_or(stripped.doc);
    }
    Edit::Strip(Box::new(stripped))
}
