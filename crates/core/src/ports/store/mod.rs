//! The store: Redis behind six traits, cut by who needs them, with a double in memory that keeps the same contract.
//!
//! One primitive: a conditional write in an atomic script guards each value. Invariant: a write that is a duplicate,
//! a replay, late, or by a member that lost its partition, changes nothing. The store compares and sets; it decides
//! nothing.
//!
//! Code that is generic over the store says `S: Store` and needs no other import. Code that calls a method of one known
//! store imports the method's trait.

mod arms;
mod counts;
mod durability;
mod namespaces;
mod stock;
mod users;

use super::keys;
use crate::user::event::UserId;

pub use arms::{Arms, ShownDoc};
pub use counts::{Added, Cell, Counts, Delta};
pub use durability::{Durability, Lineage};
pub use namespaces::Namespaces;
pub use stock::{Availability, Block, Stock, StockRecord};
pub use users::{
    Claim, ClaimOutcome, Claimed, FoldWrite, Folded, ListEdit, Peek, Publish, Published, Stored,
    Users,
};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer in time; the write may still arrive and is fenced.
    #[error("no answer from {addr} within {limit:?}")]
    Timeout {
        /// Address of the store.
        addr: String,
        /// How long the caller waited.
        limit: std::time::Duration,
    },
    /// The connection broke or Redis refuses for now (READONLY, LOADING, OOM, CLUSTERDOWN).
    #[error("{addr}: {reason}")]
    Unavailable {
        /// Address of the store.
        addr: String,
        /// Text of Redis' error.
        reason: String,
    },
    /// A stored value that this version cannot read; never overwritten, except by an erase.
    #[error(
        "the value of {key} cannot be used: {reason}; it is left as it is: restore it, or delete the key"
    )]
    Corrupt {
        /// The key, a user's id masked.
        key: String,
        /// The user whose value it is, if it is of no consequence to others. `None` for what users share, and for a
        /// state that a newer version wrote: the states of other users will be no different.
        user: Option<UserId>,
        /// Why it cannot be used.
        reason: String,
    },
    /// Fewer replicas than `redis.min_replicas` acknowledged the writes.
    #[error(
        "{found} of {wanted} replicas acknowledged; check the replicas, or lower redis.min_replicas"
    )]
    NotReplicated {
        /// How many acknowledged.
        found: u32,
        /// How many must acknowledge.
        wanted: u32,
    },
    /// The primaries are of another [`Lineage`] than the caller expects: writes may be lost, and nothing was written.
    #[error(
        "{addr} failed over or restarted; acknowledged writes may be lost and are written again"
    )]
    Regressed {
        /// Address of the store.
        addr: String,
    },
    /// Redis refuses for good: ACL, wrong type, wrong configuration.
    #[error("{addr} refuses: {reason}")]
    Refused {
        /// Address of the store.
        addr: String,
        /// Text of Redis' error, or what is wrong and what to do.
        reason: String,
    },
}

/// What a caller should do after an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again: every write is fenced.
    Retry,
    /// Ask for the checkpoints and read again from there ([`Durability::checkpoints`]).
    Rewind,
    /// Stop the partition with an alarm.
    Stop,
}

impl From<keys::Invalid> for Error {
    fn from(invalid: keys::Invalid) -> Self {
        Self::Refused {
            addr: "store".into(),
            reason: invalid.to_string(),
        }
    }
}

impl Error {
    /// What a caller should do.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Timeout { .. } | Self::Unavailable { .. } | Self::NotReplicated { .. } => {
                Remedy::Retry
            }
            Self::Regressed { .. } => Remedy::Rewind,
            Self::Corrupt { .. } | Self::Refused { .. } => Remedy::Stop,
        }
    }
}

/// The whole store. Batches are answered in order; items of a batch are independent of each other.
pub trait Store: Users + Counts + Arms + Stock + Namespaces + Durability + Clone + 'static {}

impl<T: Users + Counts + Arms + Stock + Namespaces + Durability + Clone + 'static> Store for T {}
