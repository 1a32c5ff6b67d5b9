//! Whether a user moved enough to ask for a list: `(mark, step, policy) -> Option<Request>`.
//!
//! Invariant: it emits iff the policy is moved and `pending` is empty, or older by record time than
//! `due + pending_max`; a redelivered record re-emits iff `pending` names its own position. No clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Accepted, UserId};
use crate::fold::Step;
use crate::record::{Position, Timestamp};
use crate::state::{Held, Mark};

/// Which topic a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// First lists of new and sparse users.
    Urgent,
    /// Everyone else who moved.
    Live,
    /// Sweeps and refreshes.
    Backfill,
}

/// Why a list is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// First sight of the user.
    First,
    /// Enough events.
    Moved,
    /// A profile change that alters prompt, rules or segment.
    Profile,
    /// The pending request is overdue.
    Overdue,
    /// `sweep`: the list trails the state.
    Sweep,
    /// `refresh`: asked for by a person; also replaces a list of a higher arm epoch.
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
    pub take_every: Duration,
    /// Most takes of a user on one day (UTC).
    pub takes_per_day: u32,
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
            take_every: Duration::from_secs(60),
            takes_per_day: 50,
            sparse_below: 4,
        }
    }
}

/// Called once per record, after [`crate::fold::fold`]; changes only `held.mark`.
///
/// `first`: nothing was stored of this user before this batch and no record of it asked yet.
/// `enabled`: false while a backfill catches up: `moved` still grows, nothing is asked.
pub fn trigger(held: &mut Held, record: &Accepted, step: Step, ask: &Ask) -> Option<Request> {
    let _ = (held, record, step, ask);
    None
}

/// What a trigger needs beside user and record.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
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

/// The pace after a take of a request that was due then; [`Mark::pending`] and `moved` are cleared.
pub fn taken(mark: &mut Mark, due: Timestamp) {
    let _ = (mark, due);
}

mod text {
    //! A position as its text, in JSON.
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::record::Position;

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
