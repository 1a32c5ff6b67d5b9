//! What the fold keeps of a user: [`UserState`] with its fences, and its versioned binary form.
//!
//! Invariant: `window` is sorted by (time, position), holds no position twice and nothing at or
//! before `erased_at`. It does not know how it came about ([`crate::user::fold`]).

use crate::user::event::{Item, Kind, Profile};
use crate::user::record::{Fences, Position, Timestamp};

mod blob;
mod text;

pub use blob::{VERSION_BEFORE, VERSION_CURRENT, VERSION_OLDEST, decode, encode};
pub use text::canonical;

/// Why stored bytes are not a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Codec {
    /// Written by a later program: stop, and never overwrite it.
    #[error("version {found} is newer than {known}, the newest known here")]
    Newer {
        /// Version found.
        found: u8,
        /// Newest version known.
        known: u8,
    },
    /// Not what any version writes.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// One event in the window.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowEvent {
    /// Kafka timestamp.
    pub time: Timestamp,
    /// Where the event stands in the log.
    pub position: Position,
    /// What was done.
    pub kind: Kind,
    /// To what.
    pub item: Item,
    /// How many.
    pub qty: u32,
    /// Price of one.
    pub price: Option<f64>,
}

/// The profile as a register: the greatest (time, position) wins.
#[derive(Clone, Debug, PartialEq)]
pub struct Profiled {
    /// Kafka timestamp of the record that brought it.
    pub time: Timestamp,
    /// Where that record stands.
    pub position: Position,
    /// The profile.
    pub profile: Profile,
}

/// A user as the fold sees them. Canonical: a function of the set of records folded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserState {
    /// The newest events, oldest first.
    pub window: Vec<WindowEvent>,
    /// The highest folded offset per partition.
    pub fences: Fences,
    /// Time of the last erase; 0 if never.
    pub erased_at: Timestamp,
    /// Time since which the user's events are complete; 0 if all that ever were are. Stored from version 3 on.
    pub complete_since: Timestamp,
    /// The profile; stored beside the blob under a key of its own, without a TTL.
    pub profile: Option<Profiled>,
}

impl UserState {
    /// Whether nothing is known of the user: no event, no profile.
    pub fn is_vacant(&self) -> bool {
        self.window.is_empty() && self.profile.is_none()
    }
}

/// A request is out for this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The record that asked; `None` when a sweep or a refresh did.
    pub source: Option<Position>,
    /// When it may be taken.
    pub due: Timestamp,
}

/// How often and when lists were taken, for the claim_rate of one user. Times are those of requests, so no clock enters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimRate {
    /// `due` of the last take; 0 if never.
    pub last: Timestamp,
    /// Day of `last`: days since 1970.
    pub day: i64,
    /// Takes on that day.
    pub claims: u32,
}

/// What stands beside the blob: not canonical, changed by triggers and takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activity {
    /// The request that is out, if any.
    pub pending: Option<Pending>,
    /// How far the user moved since the last take, in hundredths (a purchase is 100), so that sums are exact.
    pub score: u32,
    /// When lists were taken.
    pub claim_rate: ClaimRate,
}

/// A user as the store holds them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// The canonical part.
    pub state: UserState,
    /// The part beside the blob.
    pub activity: Activity,
    /// Version for compare-and-set; 0 when nothing is stored.
    pub ver: u64,
    /// Number of the last take; 0 if never.
    pub claim: u64,
    /// A tombstone that another namespace raised is later than what is stored: the state is as if it had been
    /// folded here, and the next write takes the list along.
    pub reborn: bool,
}
