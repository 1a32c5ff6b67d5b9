//! Plans the write of one user for a batch: folds the records, triggers requests, counts events, edits the list.
//!
//! Invariant: planning twice from the same stored user gives the same plan. Planning again from the state that the plan
//! stored changes nothing and repeats only a pending request. It does not know the store nor the log; the caller
//! retries.

use std::collections::BTreeMap;

use crate::list::document::{Document, Stage, StoredAudit};
use crate::list::fallback::{for_user, of_segment};
use crate::shop::count_kind::CountKind;
use crate::shop::snapshot::Snapshot;
use crate::user::event::UserId;
use crate::user::event::{Accepted, Change, Item, Kind, Profile};
use crate::user::fold::{Step, fold, fold_again};
use crate::user::record::{Fences, Partition, Position, Timestamp};
use crate::user::state::{Activity, LoadedUser, UserState};
use crate::user::trigger::{ACTIVITY_ENOUGH, Policy, Request, TriggerContext, trigger};

/// Input of [`plan`] beside the user.
pub struct PlanContext<'a> {
    /// The serving snapshot.
    pub snapshot: &'a Snapshot,
    /// When lists are requested.
    pub policy: &'a Policy,
    /// Namespace of the state.
    pub ns: &'a str,
    /// Events kept per user.
    pub window: usize,
    /// False while a backfill catches up.
    pub triggers: bool,
    /// Records before this time are history: see [`Policy::history_after`].
    pub history_before: Timestamp,
    /// Most units that one purchase adds to the counts of its SKU.
    pub units_max: u32,
    /// Time from which a partition's events are complete, for partitions whose log no longer had all events.
    pub complete_since: &'a BTreeMap<Partition, Timestamp>,
}

/// A user's stored list.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredList {
    /// Claim number that it was made from.
    pub claim: u64,
    /// Its stage.
    pub stage: Stage,
    /// Epoch of its arm.
    pub epoch: u64,
    /// Its seen offsets.
    pub seen: Fences,
    /// The document.
    pub doc: Document,
    /// Its audit.
    pub audit: StoredAudit,
}

/// What one record adds to one cell of the counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// Its position: counts have their own fences.
    pub position: Position,
    /// Record time, which chooses the bucket.
    pub time: Timestamp,
    /// SKU id.
    pub sku: String,
    /// What is counted.
    pub kind: CountKind,
    /// Count: the quantity of a purchase, at most [`PlanContext::units_max`]; else 1.
    pub n: u64,
    /// Segment of the profile at fold time.
    pub segment: String,
}

/// Edit of the stored list, made in the same step as the write of the state.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Edit {
    /// No edit.
    #[default]
    Keep,
    /// Replaces the stored list, if its claim number is still this one, by one without newly forbidden products.
    Strip(Box<StoredList>),
}

/// Everything to do for one user.
#[derive(Debug, Default)]
pub struct Plan {
    /// State and activity after the records; `ver` and `claim` are still the stored ones.
    pub held: LoadedUser,
    /// Whether the state must be written.
    pub changed: bool,
    /// Whether the profile differs from the stored one.
    pub profile_changed: bool,
    /// Requests to send once the write is acknowledged.
    pub requests: Vec<Request>,
    /// What to count, in record order, including records that the state had folded before.
    pub counted: Vec<Counted>,
    /// Effect of each record, in order.
    pub steps: Vec<Step>,
    /// Event kind of each record, in order; none for a profile or an erase.
    pub kinds: Vec<Option<Kind>>,
    /// Number of events whose SKU is not in the catalogue; they are folded by id.
    pub unknown: u64,
    /// Edit of the list.
    pub edit: Edit,
    /// Whether the user's record on `recall-updates` must be deleted.
    pub erased: bool,
}

/// Plans the write of one user from records in the order given.
pub fn plan(
    loaded: LoadedUser,
    records: &[Accepted],
    list: Option<&StoredList>,
    book: &PlanContext,
) -> Plan {
    let first = loaded.ver == 0;
    let mut requested = false;
    // Most batches have events alone, which change no profile: then the profile is not cloned.
    let has_profile_record = records
        .iter()
        .any(|record| !matches!(record.change, Change::Event(_)));
    let before = has_profile_record.then(|| loaded.state.profile.clone());
    let erased_elsewhere = loaded.erased_elsewhere;
    let held = after_foreign_erase(loaded);
    let mut plan = Plan {
        held,
        ..Plan::default()
    };
    let mut folded_at = None;
    for record in records {
        let step = fold_next(&mut plan.held.state, record, &mut folded_at, book.window);
        if let (Change::Event(_), Some(since)) = (
            &record.change,
            book.complete_since.get(&record.position.partition),
        ) {
            // The maximum over the partitions seen, so the order of records does not matter.
            let complete_since = &mut plan.held.state.complete_since;
            *complete_since = (*complete_since).max(*since);
        }
        let context = TriggerContext {
            policy: book.policy,
            ns: book.ns,
            first: first && !requested,
            is_history: record.time < book.history_before,
            // A profile sent again unchanged alters neither prompt nor rules nor segment.
            profile_matters: step == Step::ProfileChanged,
            enabled: book.triggers,
        };
        if let Some(request) = trigger(&mut plan.held, record, step, &context) {
            requested = true;
            plan.requests.push(request);
        }
        plan.changed |= step != Step::Duplicate;
        plan.erased |= erases(&plan.held, record, step);
        if let Some(counted) = counted(record, &plan.held, book) {
            let known = book.snapshot.catalogue.by_sku(&counted.sku);
            plan.unknown += u64::from(known.is_none());
            let buyer = buyer(&counted, &plan);
            plan.counted.push(counted);
            plan.counted.extend(buyer);
        }
        plan.steps.push(step);
        plan.kinds.push(match &record.change {
            Change::Event(event) => Some(event.kind),
            Change::Profile(_) | Change::Erase => None,
        });
    }
    plan.erased |= erased_elsewhere && plan.changed;
    // An erase elsewhere took values out of the loaded profile that are still in the stored one.
    let erased_within = erased_elsewhere && plan.changed && plan.held.state.profile.is_some();
    plan.profile_changed =
        erased_within || before.is_some_and(|before| plan.held.state.profile != before);
    if let Some(last) = records.last() {
        plan.edit = edit(&plan, list, &last.user, last.time, book.snapshot);
    }
    plan
}

/// What a record adds to the counts of its kind: nothing unless it is an event with a SKU.
fn counted(record: &Accepted, held: &LoadedUser, book: &PlanContext) -> Option<Counted> {
    let Change::Event(event) = &record.change else {
        return None;
    };
    let Item::Sku(sku) = &event.item else {
        return None;
    };
    let n = match event.kind {
        Kind::Purchase => u64::from(event.qty.min(book.units_max)),
        Kind::Impression | Kind::View | Kind::Click | Kind::Cart | Kind::Search => 1,
    };
    let profile = held.state.profile.as_ref().map(|p| &p.profile);
    let segment = book.snapshot.rules.segment(profile, record.time);
    Some(Counted {
        position: record.position.clone(),
        time: record.time,
        sku: sku.clone(),
        kind: CountKind::Event(event.kind),
        n,
        segment: segment.to_owned(),
    })
}

/// Folds a record. `folded_at`: where the last one was folded that was no duplicate; what else its source record made
/// follows it.
fn fold_next<'r>(
    state: &mut UserState,
    record: &'r Accepted,
    folded_at: &mut Option<&'r Position>,
    window: usize,
) -> Step {
    if *folded_at == Some(&record.position) {
        return fold_again(state, record, window);
    }
    let step = fold(state, record, window);
    if step != Step::Duplicate {
        *folded_at = Some(&record.position);
    }
    step
}

/// A buyer, if the record was the first of its SKU and 7-day bucket that the user's register kept. The register
/// answers alike for the first delivery, which is folded by now, and for every later one.
fn buyer(counted: &Counted, plan: &Plan) -> Option<Counted> {
    if counted.kind != CountKind::Event(Kind::Purchase) {
        return None;
    }
    let register = &plan.held.state.register;
    let mut same_record = plan.counted.iter().rev();
    let mut same_record = same_record
        .by_ref()
        .take_while(|before| before.position == counted.position);
    // Two lines of one order are one buyer.
    let is_second =
        same_record.any(|before| before.kind == CountKind::Buyer && before.sku == counted.sku);
    let counts = register.is_counting(counted.time, &counted.sku, &counted.position);
    (counts && !is_second).then(|| Counted {
        kind: CountKind::Buyer,
        n: 1,
        ..counted.clone()
    })
}

/// Prepares a user whom another namespace erased, so that the next write deletes the list: remaining state requests
/// another list; without any, the activity is reset as for a new user.
fn after_foreign_erase(mut loaded: LoadedUser) -> LoadedUser {
    if std::mem::take(&mut loaded.erased_elsewhere) {
        if loaded.state.is_vacant() {
            loaded.activity = Activity::default();
        } else {
            loaded.activity.score = loaded.activity.score.max(ACTIVITY_ENOUGH);
        }
    }
    loaded
}

/// Whether a record deletes the user's record on `recall-updates`. A redelivered erase does so again, because a crash
/// after the write may have lost the tombstone; but not once the user has new events, as it would hide a later list.
fn erases(loaded: &LoadedUser, record: &Accepted, step: Step) -> bool {
    let vacant = loaded.state.is_vacant();
    record.change == Change::Erase && (step == Step::Erased || vacant)
}

/// Takes products that a new profile forbids out of the stored list.
fn edit(
    plan: &Plan,
    list: Option<&StoredList>,
    user: &UserId,
    at: Timestamp,
    snapshot: &Snapshot,
) -> Edit {
    let Some(list) = list.filter(|_| plan.profile_changed) else {
        return Edit::Keep;
    };
    let profile: Option<&Profile> = plan.held.state.profile.as_ref().map(|p| &p.profile);
    let verdict = snapshot.judge(profile, at);
    let mut stripped = list.clone();
    if !snapshot.strip(&mut stripped.doc, &verdict) {
        return Edit::Keep;
    }
    if stripped.doc.is_empty() {
        // If nothing of it is left, it becomes the fallback, and is empty only if that is, too.
        let segment = snapshot.rules.segment(profile, at);
        let fallback = of_segment(snapshot, segment, &verdict);
        stripped.doc = fallback.map_or(stripped.doc, |list| for_user(list, user, at));
    }
    Edit::Strip(Box::new(stripped))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
