//! State of a user: [`UserState`] with window, register, fences and versioned binary form, and the activity beside it.
//!
//! Invariant: `window` is sorted by (time, position), and contains no position twice and nothing at or before
//! `erased_at`. It does not know how the state is computed ([`crate::user::fold`]).

use std::collections::BTreeMap;

use crate::user::event::{Item, Kind, Profile};
use crate::user::record::{Fences, Position, Timestamp};

mod blob;
mod register;
mod text;

pub use blob::{VERSION_CURRENT, VERSION_OLDEST, decode, encode};
pub(crate) use register::LIMITS;
pub use register::{Bought, Purchase, Register};
pub use text::canonical;

/// Reason why stored bytes do not decode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a later release: the caller must stop, and never overwrite it.
    #[error(
        "version {found} is newer than {known}, the newest that this release reads; upgrade it"
    )]
    Newer {
        /// Version found.
        found: u8,
        /// Newest version known.
        known: u8,
    },
    /// Bytes that no version writes.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// One event in the window.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowEvent {
    /// Kafka timestamp.
    pub time: Timestamp,
    /// Position of the event in the log.
    pub position: Position,
    /// What the user did.
    pub kind: Kind,
    /// Product or query of the event.
    pub item: Item,
    /// Quantity.
    pub qty: u32,
    /// Price of one piece.
    pub price: Option<f64>,
}

/// The profile with its record's time and position; the greatest (time, position) wins.
#[derive(Clone, Debug, PartialEq)]
pub struct Profiled {
    /// Kafka timestamp of the profile's record.
    pub time: Timestamp,
    /// Position of that record.
    pub position: Position,
    /// The profile.
    pub profile: Profile,
    /// Fields whose value the record did not send, because it had not changed: time and position of the record that the
    /// value in `profile` is from.
    pub kept: BTreeMap<String, (Timestamp, Position)>,
}

/// Folded state of a user. Canonical: a function of the set of records folded, but for the register's counting positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserState {
    /// The newest events, oldest first.
    pub window: Vec<WindowEvent>,
    /// Purchases by SKU, further back than the window. Stored from version 4 on.
    pub register: Register,
    /// The highest folded offset per partition.
    pub fences: Fences,
    /// Time of the last erase; 0 if never.
    pub erased_at: Timestamp,
    /// Time from which the user's events are complete; 0 if no event is missing. Stored from version 3 on.
    pub complete_since: Timestamp,
    /// The profile; stored beside the blob under its own key, without a TTL.
    pub profile: Option<Profiled>,
}

impl UserState {
    /// Whether the state has no event and no profile.
    pub fn is_vacant(&self) -> bool {
        self.window.is_empty() && self.profile.is_none()
    }
}

/// A request that was sent for this user and is not yet claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The record that caused the request; `None` for a sweep or a refresh.
    pub source: Option<Position>,
    /// Time from which it may be claimed.
    pub due: Timestamp,
}

/// When a user's lists were claimed, which limits how often. Times are those of requests, so no clock is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClaimRate {
    /// `due` of the last claim; 0 if never.
    pub last: Timestamp,
    /// Day of `last`: days since 1970.
    pub day: i64,
    /// Claims on that day.
    pub claims: u32,
}

/// Activity stored beside the blob: not canonical, changed by triggers and claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Activity {
    /// The pending request, if any.
    pub pending: Option<Pending>,
    /// Activity since the last claim, in hundredths of a list (a purchase is 100), so that sums are exact.
    pub score: u32,
    /// When lists were claimed.
    pub claim_rate: ClaimRate,
}

/// A user as loaded from the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadedUser {
    /// The canonical part.
    pub state: UserState,
    /// The part beside the blob.
    pub activity: Activity,
    /// Version for compare-and-set; 0 if nothing is stored.
    pub ver: u64,
    /// Claim number of the last claim; 0 if never.
    pub claim: u64,
    /// Another namespace erased the user later than the stored state: the state is as if that erase had been folded
    /// here, and the next write deletes the list.
    pub erased_elsewhere: bool,
}
