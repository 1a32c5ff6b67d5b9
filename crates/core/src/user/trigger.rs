//! Decides when to request a list: `(activity, step, policy) -> Option<Request>`.
//!
//! Invariant: a request is emitted iff activity reaches 100 hundredths of a list and `pending` is empty, or older by
//! record time than `due + pending_max`. A redelivered record emits its request again iff `pending` names its position.
//! No clock is read.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

use crate::user::event::{Accepted, Change, Kind, Reject, UserId, check_year_range};
use crate::user::fold::Step;
use crate::user::namespace::is_namespace;
use crate::user::record::{Position, Record, Timestamp};
use crate::user::state::{Activity, LoadedUser, Pending};

/// Activity at which a list is requested, in hundredths of a list.
pub(crate) const ACTIVITY_ENOUGH: u32 = 100;

/// Activity after the first claim of a user: the next record that counts at all requests a list. The first one is made
/// at the first record of a visit, so it has seen next to nothing of it.
pub const ACTIVITY_AFTER_FIRST: u32 = ACTIVITY_ENOUGH - 1;

/// Longest time that the claim rate delays a request: a daily limit ends within a day. A longer delay comes from a
/// wrong clock and is ignored, because one record must not silence a user for years.
pub(crate) const RATE_LIMIT_MAX: Duration = Duration::from_secs(86_400);

const DAY: i64 = 86_400_000;

/// Most bytes of a request: its user id is the only part without its own limit.
const REQUEST_BYTES_MAX: usize = 1 << 16;

/// Lane of a request: the topic that it is written to.
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
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Lane {
    /// First lists of new and sparse users.
    Urgent,
    /// Lists of all other active users.
    Live,
    /// Sweeps and refreshes.
    Backfill,
}

/// Reason why a list is requested.
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
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Reason {
    /// The user is new, or returned after an erase.
    First,
    /// Enough activity.
    Activity,
    /// A profile change that alters prompt, rules or segment.
    Profile,
    /// The pending request is overdue.
    Overdue,
    /// `sweep`: the list is older than the state.
    Sweep,
    /// `refresh`: requested by an operator.
    Refresh,
}

/// A request for a list, a record on a `regen-*` topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    /// Format version, 1.
    pub v: u32,
    /// Namespace of the list.
    #[schemars(regex(pattern = "^(?!nearshore$)[a-z0-9-]{1,32}$"))]
    pub ns: String,
    /// User of the list.
    pub user: UserId,
    /// Reason.
    pub reason: Reason,
    /// The record that caused the request, `incarnation/topic/partition:offset`; none for a sweep or refresh.
    #[serde(with = "text", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<crate::schema::PositionText>")]
    pub source: Option<Position>,
    /// Record time of the source (or of the sweep).
    pub time: Timestamp,
    /// Time from which it may be claimed.
    pub due: Timestamp,
    /// Its lane.
    pub lane: Lane,
    /// Whether its list replaces one of a higher arm epoch: `refresh --force`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

impl Request {
    /// Decodes a record of a `regen-*` topic. Unknown fields are ignored, and a higher version is read as far as it is
    /// known.
    ///
    /// Strict about everything on which a store, a clock or a rule would fail later. These topics are internal, but a
    /// record that ends one process would end each process that reads it next.
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
        check_year_range(request.time)?;
        check_year_range(request.due)?;
        Ok(request)
    }
}

/// Policy of when to request lists. Defaults are those of `config/nearshore.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Activity per event kind and per profile change, in lists (1 = requests a list at once).
    pub weights: Weights,
    /// Time between a request and its claim, in which more events of the user are folded. A user without a list does not
    /// wait.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub quiet_period: Duration,
    /// A pending request older than `due` plus this, by record time, is sent again.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub pending_max: Duration,
    /// Least time between two claims of a user, from the second of a day on.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub claim_every: Duration,
    /// Most claims of a user on one day (UTC).
    pub claims_per_day: u32,
    /// A record older than this when it is folded is history: it asks once for a list, in the backfill lane.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "crate::schema::DurationText")]
    pub history_after: Duration,
    /// A user with fewer events than this in the window is sparse: requests go to the urgent lane.
    pub sparse_below: usize,
}

/// Activity per event, in lists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
            history_after: Duration::from_secs(3600),
            sparse_below: 4,
        }
    }
}

/// Decides whether a folded record requests a list; changes only `loaded.activity`.
///
/// Called once per record, after [`crate::user::fold::fold`]. While `context.enabled` is false (a backfill catches up),
/// activity grows but nothing is requested.
pub(crate) fn trigger(
    loaded: &mut LoadedUser,
    record: &Accepted,
    step: Step,
    context: &TriggerContext,
) -> Option<Request> {
    let (weight, reason) = match step {
        Step::Passed => return None,
        Step::Duplicate => return repeated(loaded, record, context),
        Step::Erased if loaded.state.is_vacant() => {
            // No data is left to make a list from, and nothing of an erased user is kept, not even the claim rate.
            loaded.activity = Activity::default();
            return None;
        }
        // Events later than the erase remain, but the erase deleted the list.
        Step::Erased => (ACTIVITY_ENOUGH, Reason::Activity),
        Step::ProfileChanged if context.profile_matters => {
            (hundredths(context.policy.weights.profile), Reason::Profile)
        }
        Step::ProfileChanged => (0, Reason::Profile),
        Step::Folded => (
            event_weight(&record.change, &context.policy.weights),
            Reason::Activity,
        ),
    };
    let first = context.first || has_returned(loaded);
    let activity = &mut loaded.activity;
    activity.score = activity.score.saturating_add(weight);
    if first {
        activity.score = activity.score.max(ACTIVITY_ENOUGH);
    }
    let reason = match &activity.pending {
        None if activity.score < ACTIVITY_ENOUGH => return None,
        None if first => Reason::First,
        None => reason,
        // Days of record time pass in a second of a replay: nothing is overdue there.
        Some(_) if context.is_history => return None,
        Some(pending) if record.time <= pending.due.after(context.policy.pending_max) => {
            return None;
        }
        Some(_) => Reason::Overdue,
    };
    if !context.enabled {
        return None;
    }
    let due = match reason {
        // There is no list yet: nothing is won by waiting for what the user does next.
        Reason::First => record.time,
        _ => due(activity, record.time, context.policy),
    };
    activity.pending = Some(Pending {
        source: Some(record.position.clone()),
        due,
    });
    let lane = lane(loaded, first, context);
    Some(request(record, context, RequestParts { reason, due, lane }))
}

/// The request of a redelivered record, if it is still pending: it may have been lost between the write of the state
/// and its own. A claim since then has cleared `pending`, and has seen the record.
fn repeated(loaded: &LoadedUser, record: &Accepted, context: &TriggerContext) -> Option<Request> {
    let pending = loaded.activity.pending.as_ref()?;
    if !context.enabled || pending.source.as_ref() != Some(&record.position) {
        return None;
    }
    let reason = match record.change {
        Change::Event(_) | Change::Erase => Reason::Activity,
        Change::Profile(_) => Reason::Profile,
    };
    let (due, lane) = (pending.due, lane(loaded, context.first, context));
    Some(request(record, context, RequestParts { reason, due, lane }))
}

/// Whether the record is the first of an erased user since the erase: the user has no list, like a new one.
fn has_returned(loaded: &LoadedUser) -> bool {
    loaded.state.erased_at > Timestamp::default() && loaded.activity == Activity::default()
}

struct RequestParts {
    reason: Reason,
    due: Timestamp,
    lane: Lane,
}

fn request(record: &Accepted, context: &TriggerContext, parts: RequestParts) -> Request {
    Request {
        v: 1,
        ns: context.ns.into(),
        user: record.user.clone(),
        reason: parts.reason,
        source: Some(record.position.clone()),
        time: record.time,
        due: parts.due,
        lane: parts.lane,
        force: false,
    }
}

/// Requests of history go to the backfill lane: users who are here now come first, and nobody of a crowd that is due at
/// once has waited too long. The first live record of such a user is overdue and asks again, in its own lane.
fn lane(loaded: &LoadedUser, first: bool, context: &TriggerContext) -> Lane {
    if context.is_history {
        Lane::Backfill
    } else if first || loaded.state.window.len() < context.policy.sparse_below {
        Lane::Urgent
    } else {
        Lane::Live
    }
}

fn due(activity: &Activity, time: Timestamp, policy: &Policy) -> Timestamp {
    let quiet = time.after(policy.quiet_period);
    let claim_rate = &activity.claim_rate;
    let every = match claim_rate.claims {
        0 => return quiet,
        // A first list is made at the first record of a visit, and must not delay the one that has seen the visit.
        1 => Duration::ZERO,
        _ => policy.claim_every,
    };
    let mut due = quiet.max(claim_rate.last.after(every));
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
        return 0; // an unchanged profile
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

/// Converts a weight to hundredths. Rounded once per record, then summed as integers: ten views of 0.1 are exactly one
/// list.
fn hundredths(weight: f64) -> u32 {
    (weight * 100.0).round() as u32 // Saturates; NaN and negative weights become 0.
}

/// Input of [`trigger`] beside user and record.
#[derive(Clone, Debug)]
pub(crate) struct TriggerContext<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Namespace of the request.
    pub ns: &'a str,
    /// Whether the user is new.
    pub first: bool,
    /// Whether the record is history: older than the policy's `history_after` when it is folded.
    pub is_history: bool,
    /// Whether a changed profile alters prompt, rules or segment.
    pub profile_matters: bool,
    /// False while a backfill catches up.
    pub enabled: bool,
}

/// Records a claim of a request with this `due`: counts it in the claim rate, clears `pending` and the activity, of which
/// a user's first claim leaves [`ACTIVITY_AFTER_FIRST`].
///
/// Claims are counted on the day of the latest `due`; a claim with an older `due` (a sweep's) counts on that day too.
pub fn claimed(activity: &mut Activity, due: Timestamp) {
    let claim_rate = &mut activity.claim_rate;
    let is_first = claim_rate.claims == 0;
    if is_first || day(due) > claim_rate.day {
        claim_rate.day = day(due);
        claim_rate.claims = 0;
    }
    claim_rate.last = claim_rate.last.max(due);
    claim_rate.claims = claim_rate.claims.saturating_add(1);
    activity.pending = None;
    activity.score = if is_first { ACTIVITY_AFTER_FIRST } else { 0 };
}

mod text {
    //! Serialises a position as text in JSON.
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
