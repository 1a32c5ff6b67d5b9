//! Whether a user moved enough to ask for a list: `(activity, step, policy) -> Option<Request>`.
//!
//! Invariant: it emits iff the policy is moved and `pending` is empty, or older by record time than
//! `due + pending_max`; a redelivered record re-emits iff `pending` names its own position. No clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

use crate::user::event::{Accepted, Change, Kind, Reject, UserId, sane};
use crate::user::fold::Step;
use crate::user::namespace::is_namespace;
use crate::user::record::{Position, Record, Timestamp};
use crate::user::state::{Activity, Held, Pending};

/// Hundredths of a list that a user must have moved by.
pub(crate) const ACTIVITY_ENOUGH: u32 = 100;

/// No honest claim_rate holds a request back longer, for a daily limit ends within a day. One that would comes
/// from a wrong clock and is ignored: a single record must not silence a user for years.
pub(crate) const RATE_LIMIT_MAX: Duration = Duration::from_secs(86_400);

const DAY: i64 = 86_400_000;

/// Most bytes of a request: a user id is the only part of it without a length of its own.
const REQUEST_BYTES_MAX: usize = 1 << 16;

/// Which topic a request goes to.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Lane {
    /// First lists of new and sparse users.
    Urgent,
    /// Everyone else who moved.
    Live,
    /// Sweeps and refreshes.
    Backfill,
}

/// Why a list is asked for.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    IntoStaticStr,
    VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Reason {
    /// First sight of the user.
    First,
    /// Enough events.
    Activity,
    /// A profile change that alters prompt, rules or segment.
    Profile,
    /// The pending request is overdue.
    Overdue,
    /// `sweep`: the list trails the state.
    Sweep,
    /// `refresh`: asked for by a person.
    Refresh,
}

/// A trigger as a record on a `regen-*` topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Format version, 1.
    pub v: u32,
    /// Namespace whose list is asked for.
    pub ns: String,
    /// Whose list.
    pub user: UserId,
    /// Why.
    pub reason: Reason,
    /// The record that asked, `incarnation/topic/partition:offset`; none from a sweep or refresh.
    #[serde(with = "text", default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Position>,
    /// Record time of the source (or of the sweep).
    pub time: Timestamp,
    /// When it may be taken.
    pub due: Timestamp,
    /// Lane it was put on.
    pub lane: Lane,
    /// Its list also replaces one of a higher arm epoch: `refresh --force`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

impl Request {
    /// Reads a record of a `regen-*` topic. Unknown fields are ignored; a higher version is read as far as it is
    /// known. Strict about all that a store, a clock or a rule would stumble over later: these topics are
    /// internal, but a record that ends the process would end each that comes after it.
    pub fn decode(record: &Record) -> Result<Self, Reject> {
        let value = record.value.as_deref().ok_or(Reject::NullValue)?;
        if value.len() > REQUEST_BYTES_MAX {
            return Err(Reject::TooLarge {
                found: value.len(),
                limit: REQUEST_BYTES_MAX,
            });
        }
        if value.first() == Some(&0) {
            return Err(Reject::FramedPayload { part: "value" });
        }
        let text = std::str::from_utf8(value).map_err(|e| Reject::NotUtf8 {
            at: e.valid_up_to(),
            len: value.len(),
        })?;
        let request: Self =
            serde_json::from_str(text).map_err(|error| Reject::MalformedJson(error.to_string()))?;
        if !is_namespace(&request.ns) {
            return Err(Reject::BadNamespace(request.ns.chars().take(64).collect()));
        }
        if request.user.0.is_empty() {
            return Err(Reject::MissingField("user"));
        }
        sane(request.time)?;
        sane(request.due)?;
        Ok(request)
    }
}

/// When to ask. Defaults are those of `config/nearshore.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Weight of each event kind and of a profile change, in lists (1 = asks at once).
    pub weights: Weights,
    /// How long a user must have been asked for before the list is taken.
    #[serde(with = "humantime_serde")]
    pub quiet_period: Duration,
    /// A pending request older than `due` plus this, by record time, is asked again.
    #[serde(with = "humantime_serde")]
    pub pending_max: Duration,
    /// Least time between two takes of a user.
    #[serde(with = "humantime_serde")]
    pub claim_every: Duration,
    /// Most takes of a user on one day (UTC).
    pub claims_per_day: u32,
    /// Fewer events than this in the window = sparse = urgent lane.
    pub sparse_below: usize,
}

/// Weights in lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Weights {
    pub purchase: f64,
    pub cart: f64,
    pub search: f64,
    pub click: f64,
    pub view: f64,
    pub impression: f64,
    pub profile: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            purchase: 1.0,
            cart: 0.5,
            search: 0.5,
            click: 0.2,
            view: 0.1,
            impression: 0.0,
            profile: 1.0,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            weights: Weights::default(),
            quiet_period: Duration::from_secs(30),
            pending_max: Duration::from_secs(600),
            claim_every: Duration::from_secs(60),
            claims_per_day: 50,
            sparse_below: 4,
        }
    }
}

/// Called once per record, after [`crate::user::fold::fold`]; changes only `held.activity`.
///
/// Nothing is asked while `ask.enabled` is false (a backfill catches up), but `moved` grows.
pub(crate) fn trigger(
    held: &mut Held,
    record: &Accepted,
    step: Step,
    ask: &TriggerContext,
) -> Option<Request> {
    let (weight, reason) = match step {
        Step::Passed => return None,
        Step::Duplicate => return again(held, record, ask),
        Step::Erased if held.state.is_vacant() => {
            // Nobody is left to make a list for, and nothing of them may be kept, their claim_rate included.
            held.activity = Activity::default();
            return None;
        }
        // What is younger than the erase stayed, but their list went with it.
        Step::Erased => (ACTIVITY_ENOUGH, Reason::Activity),
        Step::ProfileChanged if ask.profile_matters => {
            (hundredths(ask.policy.weights.profile), Reason::Profile)
        }
        Step::ProfileChanged => (0, Reason::Profile),
        Step::Folded => (
            event_weight(&record.change, &ask.policy.weights),
            Reason::Activity,
        ),
    };
    let first = ask.first || returned(held);
    let activity = &mut held.activity;
    activity.score = activity.score.saturating_add(weight);
    if first {
        activity.score = activity.score.max(ACTIVITY_ENOUGH);
    }
    let reason = match &activity.pending {
        None if activity.score < ACTIVITY_ENOUGH => return None,
        None if first => Reason::First,
        None => reason,
        Some(out) if record.time <= out.due.after(ask.policy.pending_max) => return None,
        Some(_) => Reason::Overdue,
    };
    if !ask.enabled {
        return None;
    }
    let due = due(activity, record.time, ask.policy);
    activity.pending = Some(Pending {
        source: Some(record.position.clone()),
        due,
    });
    let lane = lane(held, first, ask.policy);
    Some(request(record, ask, Asked { reason, due, lane }))
}

/// Delivered again: the request may have been lost between the state's write and its own, so it is asked
/// again if it is still out. A take since then has cleared `pending`, and has seen the record.
fn again(held: &Held, record: &Accepted, ask: &TriggerContext) -> Option<Request> {
    let out = held.activity.pending.as_ref()?;
    if !ask.enabled || out.source.as_ref() != Some(&record.position) {
        return None;
    }
    let reason = match record.change {
        Change::Event(_) | Change::Erase => Reason::Activity,
        Change::Profile(_) => Reason::Profile,
    };
    let (due, lane) = (out.due, lane(held, ask.first, ask.policy));
    Some(request(record, ask, Asked { reason, due, lane }))
}

/// The first thing heard of an erased user since: they have no list, like one never seen.
fn returned(held: &Held) -> bool {
    held.state.erased_at > Timestamp::default() && held.activity == Activity::default()
}

struct Asked {
    reason: Reason,
    due: Timestamp,
    lane: Lane,
}

fn request(record: &Accepted, ask: &TriggerContext, asked: Asked) -> Request {
    Request {
        v: 1,
        ns: ask.ns.into(),
        user: record.user.clone(),
        reason: asked.reason,
        source: Some(record.position.clone()),
        time: record.time,
        due: asked.due,
        lane: asked.lane,
        force: false,
    }
}

fn lane(held: &Held, first: bool, policy: &Policy) -> Lane {
    if first || held.state.window.len() < policy.sparse_below {
        Lane::Urgent
    } else {
        Lane::Live
    }
}

fn due(activity: &Activity, time: Timestamp, policy: &Policy) -> Timestamp {
    let quiet = time.after(policy.quiet_period);
    let claim_rate = &activity.claim_rate;
    if claim_rate.claims == 0 {
        return quiet;
    }
    let mut due = quiet.max(claim_rate.last.after(policy.claim_every));
    if day(due) <= claim_rate.day && claim_rate.claims >= policy.claims_per_day.max(1) {
        due = Timestamp((claim_rate.day + 1).saturating_mul(DAY));
    }
    if due > quiet.after(RATE_LIMIT_MAX) {
        return quiet;
    }
    due
}

fn day(time: Timestamp) -> i64 {
    time.0.div_euclid(DAY)
}

fn event_weight(change: &Change, weights: &Weights) -> u32 {
    let Change::Event(event) = change else {
        return 0; // the same profile once more
    };
    hundredths(match event.kind {
        Kind::Impression => weights.impression,
        Kind::View => weights.view,
        Kind::Click => weights.click,
        Kind::Cart => weights.cart,
        Kind::Purchase => weights.purchase,
        Kind::Search => weights.search,
    })
}

/// Rounded once per record, then summed as integers: ten views of 0.1 are exactly one list.
fn hundredths(weight: f64) -> u32 {
    (weight * 100.0).round() as u32 // saturates; NaN and negative weights are 0
}

/// What a trigger needs beside user and record.
#[derive(Clone, Debug)]
pub(crate) struct TriggerContext<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Namespace that asks.
    pub ns: &'a str,
    /// First sight of the user.
    pub first: bool,
    /// Whether a changed profile alters prompt, rules or segment.
    pub profile_matters: bool,
    /// False while a backfill catches up.
    pub enabled: bool,
}

/// The claim_rate after a take of a request that was due then; [`Activity::pending`] and `moved` are cleared.
///
/// Takes are counted on the day of the latest `due`: an older one (a sweep's) counts on that day too.
pub fn claimed(activity: &mut Activity, due: Timestamp) {
    let claim_rate = &mut activity.claim_rate;
    if claim_rate.claims == 0 || day(due) > claim_rate.day {
        claim_rate.day = day(due);
        claim_rate.claims = 0;
    }
    claim_rate.last = claim_rate.last.max(due);
    claim_rate.claims = claim_rate.claims.saturating_add(1);
    activity.pending = None;
    activity.score = 0;
}

mod text {
    //! A position as its text, in JSON.
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::user::record::Position;

    pub(super) fn serialize<S: Serializer>(p: &Option<Position>, s: S) -> Result<S::Ok, S::Error> {
        match p {
            Some(position) => s.collect_str(position),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Position>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|t| t.parse().map_err(D::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
#[path = "trigger_tests.rs"]
mod tests;
