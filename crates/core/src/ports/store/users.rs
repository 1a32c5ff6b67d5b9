//! What is stored of one user: state, profile and list; the trait [`Users`].

use std::future::Future;

use crate::list::document::{Stage, StoredAudit};
use crate::queue::claims::UserStatus;
use crate::user::event::UserId;
use crate::user::record::{Fences, Timestamp};
use crate::user::state::{Activity, LoadedUser, Pending, UserState};

use super::Error;

/// One conditional write of a user.
#[derive(Clone, Debug)]
pub struct FoldWrite {
    /// The user.
    pub user: UserId,
    /// Version that the write was made from; 0 = nothing was stored.
    pub expected: u64,
    /// The new state. Its `erased_at` must not be before the tombstone, or the write is refused as [`Folded::Erased`].
    /// An `erased_at` above the tombstone raises the tombstone, and deletes the list and the older profile in this
    /// namespace.
    pub state: UserState,
    /// The new activity.
    pub activity: Activity,
    /// Whether `state.profile` differs from the stored profile.
    pub profile_changed: bool,
    /// Change of the list in the same atomic step.
    pub list: ListEdit,
}

/// What a fold does to the user's list, in the same atomic step.
#[derive(Clone, Debug, PartialEq)]
pub enum ListEdit {
    /// Leaves the list as it is.
    Keep,
    /// Removes newly forbidden products from the stored list; refused as [`Folded::Stale`] unless the stored list still
    /// has this claim number and stage.
    Strip {
        /// Claim number of the list that was edited.
        claim: u64,
        /// Its stage.
        stage: Stage,
        /// The document without the forbidden products.
        doc: String,
    },
}

/// Outcome of a [`FoldWrite`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    /// Stored under this version.
    Stored {
        /// The new version.
        ver: u64,
    },
    /// The stored version is another one: load the user again, skip the records that are folded already, fold the rest.
    Stale,
    /// The user was erased as of `at`, by another namespace: apply [`crate::user::fold::erase`], then write again.
    Erased {
        /// The tombstone's time.
        at: Timestamp,
    },
}

/// The start of a generation.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The user.
    pub user: UserId,
    /// `due` of the request, for the user's claim rate.
    pub due: Timestamp,
    /// Version of the state by which the claim was decided, from [`Peek::ver`].
    pub expected: u64,
}

/// Outcome of a [`Claim`].
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimOutcome {
    /// The user is claimed.
    Claimed(Box<Claimed>),
    /// The stored version is another one: peek again.
    Stale,
    /// No state is stored.
    NoState,
}

impl ClaimOutcome {
    /// The claimed user, if the claim succeeded.
    pub fn claimed(self) -> Option<Claimed> {
        match self {
            Self::Claimed(claimed) => Some(*claimed),
            Self::Stale | Self::NoState => None,
        }
    }
}

/// What a claim returns: the state that the list is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// State with profile, tombstone applied.
    pub state: UserState,
    /// The new claim number; the list is published only under it.
    pub claim: u64,
    /// The pending mark before the claim cleared it.
    pub pending: Option<Pending>,
}

/// A list with its guards, as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The recall document (JSON).
    pub doc: String,
    /// Number of the claim that the list was made for; 0 for a fallback that ingest stored in an earlier release.
    pub claim: u64,
    /// Which of the lists of that claim it is.
    pub stage: Stage,
    /// Seen offsets: fences of the state that the list was made from.
    pub seen: Fences,
    /// Epoch of its arm.
    pub epoch: u64,
    /// When it was made (source time of the request).
    pub at: Timestamp,
    /// Its audit; empty if none is kept.
    pub audit: StoredAudit,
}

/// One conditional publish.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The user.
    pub user: UserId,
    /// The list; its claim number and stage must be above the stored list's, its claim number not above the state's.
    pub list: Stored,
    /// `erased_at` of the state that the list was made from; must equal the stored one.
    pub erased_at: Timestamp,
    /// Replaces a list of a higher epoch too (`refresh --force`).
    pub force: bool,
    /// Stores the list only where there is no list of the model (the fallback of a failed generation). A list of the
    /// model is kept and marked stale.
    pub only_if_absent: bool,
}

/// Outcome of a [`Publish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is the list now.
    Stored,
    /// A list of this claim number and stage, or of later ones, is stored.
    Older,
    /// The user was erased, or the stored `erased_at` is another one.
    Erased,
    /// The state is gone or its claim number is lower: the claim was lost.
    NoState,
    /// The stored list is of a later arm epoch.
    Epoch,
    /// `only_if_absent` was set and a list of the model is stored; that list is kept.
    Kept,
}

/// What a reader sees before it decides to claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peek {
    /// The list, if any.
    pub list: Option<Stored>,
    /// Fences of the state; empty if there is none.
    pub fences: Fences,
    /// Claim number of the state.
    pub claim: u64,
    /// Version of the state; 0 if there is none.
    pub ver: u64,
    /// The pending mark.
    pub pending: Option<Pending>,
}

impl Peek {
    /// What decides whether a request still needs a generation.
    pub fn status(&self) -> UserStatus {
        let list = self.list.as_ref().filter(|list| list.claim > 0);
        UserStatus {
            list: list.map(|list| (list.seen.clone(), list.epoch)),
            state: self.fences.clone(),
            pending: self.pending.clone(),
            open: list.is_some_and(|list| list.claim < self.claim),
        }
    }
}

/// States and lists of users: load, fold, claim, peek, publish.
pub trait Users: Send + Sync {
    /// Loads states of users, tombstones applied; [`LoadedUser::default`] (with `erased_at`) where nothing is stored.
    fn load(
        &self,
        ns: &str,
        users: &[UserId],
    ) -> impl Future<Output = Result<Vec<LoadedUser>, Error>> + Send;

    /// Writes states, each iff the stored version is the expected one.
    fn fold(
        &self,
        ns: &str,
        writes: &[FoldWrite],
    ) -> impl Future<Output = Result<Vec<Folded>, Error>> + Send;

    /// Claims users: clears `pending` and `activity`, raises `claim` and `ver`, returns state and profile. Only where
    /// the version is still the expected one: a late claim must not clear a newer request that no other claim would
    /// serve.
    fn claim(
        &self,
        ns: &str,
        claims: &[Claim],
    ) -> impl Future<Output = Result<Vec<ClaimOutcome>, Error>> + Send;

    /// Reads lists, with what decides whether a request still needs a generation.
    fn peek(
        &self,
        ns: &str,
        users: &[UserId],
    ) -> impl Future<Output = Result<Vec<Peek>, Error>> + Send;

    /// Stores lists, each iff its claim number is newer than the stored list's.
    fn publish(
        &self,
        ns: &str,
        lists: &[Publish],
    ) -> impl Future<Output = Result<Vec<Published>, Error>> + Send;

    /// Deletes all that is stored of a user in a namespace, whatever it is, for an erase at `at` that finds a value it
    /// cannot read. A tombstone is raised to `at`, one that cannot be read replaced. The erase is folded afterwards.
    fn discard(
        &self,
        ns: &str,
        user: &UserId,
        at: Timestamp,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}
