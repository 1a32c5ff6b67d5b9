//! The store: Redis behind one trait, [`Store`], with a memory double that keeps the same contract.
//!
//! One primitive: a conditional write in an atomic script guards each value. Invariant: a duplicate, a
//! replay, a zombie's or a late write changes nothing. It does not decide; it compares and sets.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::queue::claims::UserStatus;
use crate::user::event::{Kind, UserId};
use crate::user::record::{Fences, Offset, Partition, Resume, Timestamp};
use crate::user::state::{Activity, Held, Pending, UserState};

use super::keys;

/// One conditional write of a user.
#[derive(Clone, Debug)]
pub struct FoldWrite {
    /// Whose.
    pub user: UserId,
    /// Version the write was made from; 0 = nothing was stored.
    pub expected: u64,
    /// The new state; its `erased_at` must not be before the tombstone, or the write is refused as [`Folded::Erased`].
    /// A `erased_at` above the tombstone raises it, and takes list and older profile with it (in this namespace).
    pub state: UserState,
    /// The new activity.
    pub activity: Activity,
    /// Whether `state.profile` differs from what is stored.
    pub profile_changed: bool,
    /// What becomes of the list in the same step.
    pub list: ListEdit,
}

/// What a fold does to the user's list, in the same atomic step.
#[derive(Clone, Debug, PartialEq)]
pub enum ListEdit {
    /// Nothing.
    Keep,
    /// A first-seen user's own fallback: claim 0, only if there is no list.
    First {
        /// The recall document.
        doc: String,
        /// Audit JSON.
        audit: String,
        /// Record time.
        at: Timestamp,
    },
    /// The stored list without newly forbidden products; refused as [`Folded::Stale`] unless its claim is still this.
    Strip {
        /// Claim of the list that was edited.
        claim: u64,
        /// The document without them.
        doc: String,
    },
}

/// What became of a [`FoldWrite`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    /// Stored, under this version.
    Stored {
        /// The new version.
        ver: u64,
    },
    /// Someone else wrote: reload, drop what is folded, fold again.
    Stale,
    /// The user was erased as of then, by another namespace: apply [`crate::user::fold::erase`], then write again.
    Erased {
        /// The tombstone's time.
        at: Timestamp,
    },
}

/// The start of a generation.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Whose.
    pub user: UserId,
    /// `due` of the request, for the user's cost.
    pub due: Timestamp,
    /// Version of the state by which it was decided to take, from [`Peek::ver`].
    pub expected: u64,
}

/// What became of a take.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimOutcome {
    /// Done.
    Claimed(Box<Claimed>),
    /// The state has moved on since it was looked at: look again.
    Stale,
    /// No state is stored.
    NoState,
}

impl ClaimOutcome {
    /// What was taken, if anything.
    pub fn claimed(self) -> Option<Claimed> {
        match self {
            Self::Claimed(claimed) => Some(*claimed),
            Self::Stale | Self::NoState => None,
        }
    }
}

/// What a take returns: the state that the list is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// State with profile, tombstone applied.
    pub state: UserState,
    /// The number of this take; a list is published only under it.
    pub claim: u64,
    /// What was pending before.
    pub pending: Option<Pending>,
}

/// A list with its guards, as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The recall document (JSON).
    pub doc: String,
    /// Take that it was made from; 0 for a first fallback.
    pub claim: u64,
    /// What it has seen.
    pub seen: Fences,
    /// Epoch of its arm.
    pub epoch: u64,
    /// When it was made (source time of the request).
    pub at: Timestamp,
    /// Audit JSON.
    pub audit: String,
}

/// One conditional publish.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Whose.
    pub user: UserId,
    /// The list; `list.claim` must be over the stored list's and not over the state's.
    pub list: Stored,
    /// Life of the state it was made from; must be the stored one's.
    pub erased_at: Timestamp,
    /// Also over a list of a higher epoch (`refresh --force`).
    pub force: bool,
    /// Only where there is no list of the model (a failed generation's fallback): keeps a model list, marks it stale.
    pub only_if_absent: bool,
}

/// What became of a [`Publish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// It is the list now.
    Stored,
    /// A list of this claim or a later one is there.
    Older,
    /// The user was erased or is of another erased_at.
    Erased,
    /// The state is gone or its claim is lower: the take was lost.
    NoState,
    /// The stored list is of a later arm epoch.
    Epoch,
    /// `only_if_absent`, and there is a list: kept.
    Kept,
}

/// What a reader sees before deciding to take.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peek {
    /// The list, if any.
    pub list: Option<Stored>,
    /// Fences of the state; empty if there is none.
    pub fences: Fences,
    /// Claim of the state.
    pub claim: u64,
    /// Version of the state; 0 if there is none.
    pub ver: u64,
    /// What is pending.
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

/// One cell of the counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// SKU id.
    pub sku: String,
    /// What was done.
    pub kind: Kind,
    /// Segment of the profile at fold time.
    pub segment: String,
    /// 7-day bucket of record time: `time / 7 d`.
    pub bucket: i64,
}

/// A chained delta of one shard: applied iff the stored fence equals `prev`.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Shard, 0..=255.
    pub shard: u8,
    /// Source partition.
    pub partition: Partition,
    /// Fence that the owner believes is stored; `None` = none yet.
    pub prev: Option<Offset>,
    /// Fence afterwards.
    pub last: Offset,
    /// What is added.
    pub cells: BTreeMap<Cell, u64>,
}

/// What became of a [`Delta`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// Applied.
    Stored,
    /// The stored fence is another: cut again from there.
    Fence(Option<Offset>),
}

/// One record of the stock stream, for a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockOp {
    /// SKU id.
    pub sku: String,
    /// Source partition.
    pub partition: Partition,
    /// Source offset; at or below the set's fence it is ignored.
    pub offset: Offset,
    /// What the record says of it.
    pub shelf: Shelf,
    /// Record time.
    pub time: Timestamp,
}

/// Whether a SKU can be bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// In stock.
    In,
    /// Sold out.
    Out,
    /// No longer in the catalogue. In the sets like one that is sold out, until no list can name it:
    /// a list's time to live of record time later.
    Gone,
}

/// A block or unblock by a person.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Block {
    /// A SKU id or a PU id.
    pub id: String,
    /// Whether `id` is a PU.
    pub pu: bool,
    /// SKUs to take out at once (of the PU, or the SKU itself).
    pub skus: Vec<String>,
    /// Why.
    pub reason: String,
    /// Who, as the shell says.
    pub by: String,
    /// When, wall clock of the operator (audit only).
    pub at: Timestamp,
}

/// Which history of writes the primaries hold: another one after a failover or a restart, when writes that
/// were acknowledged may be gone. It never returns; it may also change where nothing was lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lineage(pub Arc<str>);

/// What the store can answer instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer in time; the write may still land and is fenced.
    #[error("no answer from {addr} within {limit:?}")]
    Timeout {
        /// Whom was asked.
        addr: String,
        /// How long was waited.
        limit: std::time::Duration,
    },
    /// The connection broke or Redis refuses for now (READONLY, LOADING, OOM, CLUSTERDOWN).
    #[error("{addr}: {reason}")]
    Unavailable {
        /// Whom was asked.
        addr: String,
        /// Redis' words.
        reason: String,
    },
    /// A stored value that this version cannot read; never overwritten.
    #[error("{key} does not decode: {reason}")]
    Corrupt {
        /// The key, a user's id masked.
        key: String,
        /// Why.
        reason: String,
    },
    /// Fewer replicas than `redis.min_replicas` acknowledged the writes.
    #[error("{found} of {wanted} replicas acknowledged")]
    NotReplicated {
        /// How many did.
        found: u32,
        /// How many must.
        wanted: u32,
    },
    /// The primaries are of another [`Lineage`] than the caller looked at: writes may be gone, and nothing was written.
    #[error("{addr} is not the store it was; acknowledged writes may be gone")]
    Regressed {
        /// Whom was asked.
        addr: String,
    },
    /// Redis refuses for good: ACL, wrong type, wrong configuration.
    #[error("{addr} refuses: {reason}")]
    Refused {
        /// Whom was asked.
        addr: String,
        /// Redis' words.
        reason: String,
    },
}

/// What a caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again: every write is fenced.
    Retry,
    /// Look where the store stands and read again from there ([`crate::ports::store::Store::checkpoints`]).
    Rewind,
    /// Stop the partition with an alarm.
    Stop,
}

impl From<keys::Misfit> for Error {
    fn from(misfit: keys::Misfit) -> Self {
        Self::Refused {
            addr: "store".into(),
            reason: misfit.to_string(),
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

/// The store. Batches are answered in order; items of a batch are independent of each other.
pub trait Store: Send + Sync + Clone + 'static {
    /// States of users, tombstones applied; [`Held::default`] (with `erased_at`) where nothing is stored.
    fn load(
        &self,
        ns: &str,
        users: &[UserId],
    ) -> impl Future<Output = Result<Vec<Held>, Error>> + Send;

    /// Conditional writes of states.
    fn fold(
        &self,
        ns: &str,
        writes: &[FoldWrite],
    ) -> impl Future<Output = Result<Vec<Folded>, Error>> + Send;

    /// Clears `pending` and `moved`, raises `claim` and `ver`, returns state and profile; where the version is still
    /// the expected one, so that a late take cannot clear what was asked since and leave nobody to serve it.
    fn claim(
        &self,
        ns: &str,
        claims: &[Claim],
    ) -> impl Future<Output = Result<Vec<ClaimOutcome>, Error>> + Send;

    /// Lists with what is needed to decide whether a request is covered.
    fn peek(
        &self,
        ns: &str,
        users: &[UserId],
    ) -> impl Future<Output = Result<Vec<Peek>, Error>> + Send;

    /// Conditional publishes.
    fn publish(
        &self,
        ns: &str,
        lists: &[Publish],
    ) -> impl Future<Output = Result<Vec<Published>, Error>> + Send;

    /// Chained deltas of counts.
    fn add(
        &self,
        ns: &str,
        deltas: &[Delta],
    ) -> impl Future<Output = Result<Vec<Added>, Error>> + Send;

    /// Count fences of a partition, by shard; absent where nothing was added.
    fn count_fences(
        &self,
        ns: &str,
        partition: &Partition,
    ) -> impl Future<Output = Result<BTreeMap<u8, Offset>, Error>> + Send;

    /// All cells of a shard whose bucket is at least `since`.
    fn counts(
        &self,
        ns: &str,
        shard: u8,
        since: i64,
    ) -> impl Future<Output = Result<BTreeMap<Cell, u64>, Error>> + Send;

    /// A digest of each shard's fences, to see which shards changed.
    fn count_versions(
        &self,
        ns: &str,
    ) -> impl Future<Output = Result<BTreeMap<u8, u64>, Error>> + Send;

    /// Applies stock records in order; a blocked SKU stays out.
    fn stock(&self, ops: &[StockOp]) -> impl Future<Output = Result<(), Error>> + Send;

    /// For each SKU, whether it is out of stock, gone or blocked.
    fn sold_out(&self, skus: &[String]) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// Takes products out for everyone, audited.
    fn block(&self, block: &Block) -> impl Future<Output = Result<(), Error>> + Send;

    /// Undoes a block; a SKU that is really out of stock stays out. False if there was none.
    fn unblock(
        &self,
        id: &str,
        by: &str,
        at: Timestamp,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// All blocks in force.
    fn blocks(&self) -> impl Future<Output = Result<Vec<Block>, Error>> + Send;

    /// Writes a segment's fallback document.
    fn set_fallback(
        &self,
        ns: &str,
        segment: &str,
        doc: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads a segment's fallback document.
    fn fallback(
        &self,
        ns: &str,
        segment: &str,
    ) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// A page of users with a state, and the cursor of the next page; `None` at the end. Users may repeat.
    fn scan(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> impl Future<Output = Result<(Vec<UserId>, Option<String>), Error>> + Send;

    /// One step of deleting a namespace: how many keys went, and the cursor of the next step, `None` at the end.
    /// Whether `ns` may go is the caller's to know.
    fn delete(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> impl Future<Output = Result<(u64, Option<String>), Error>> + Send;

    /// The served namespace.
    fn active(&self) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// Makes `ns` the served namespace iff it is `expected` now.
    fn set_active(
        &self,
        ns: &str,
        expected: Option<&str>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// The plan of the namespace's backfill, as it was written down.
    fn plan(&self, ns: &str) -> impl Future<Output = Result<Option<String>, Error>> + Send;

    /// Writes the plan down iff it is `expected` now.
    fn set_plan(
        &self,
        ns: &str,
        plan: &str,
        expected: Option<&str>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// All namespaces that were ever filled and not retired, each with what is noted of it (JSON).
    fn namespaces(&self) -> impl Future<Output = Result<BTreeMap<String, String>, Error>> + Send;

    /// Notes a namespace, or with `None` takes it off the register.
    fn enroll(
        &self,
        ns: &str,
        note: Option<&str>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Tells every process that live is behind its objective; it passes by itself after `ttl`.
    fn say_live_behind(&self, ttl: Duration) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether some process says that live is behind its objective.
    fn live_behind(&self) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Notes what an arm's model costs, for whoever reckons what a backfill would take (JSON).
    fn note_cost(&self, _arm: &str, _note: &str) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

    /// What was noted last of each arm.
    fn costs(&self) -> impl Future<Output = Result<BTreeMap<String, String>, Error>> + Send {
        async { Ok(BTreeMap::new()) }
    }

    /// Resolves when everything written before is acknowledged by `redis.min_replicas` replicas.
    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Which history of writes the primaries hold now.
    fn lineage(&self) -> impl Future<Output = Result<Lineage, Error>> + Send;

    /// A handle whose conditional writes (users, counts, stock, checkpoints) have effect only in this lineage; in
    /// another one they are [`Error::Regressed`], however late they land.
    fn under(&self, lineage: &Lineage) -> Self;

    /// Notes on every primary that all that a reader's records before these positions ask for is written. Call it when
    /// that is acknowledged. A position is only ever raised.
    fn checkpoint(
        &self,
        reader: &str,
        done: &[(Partition, Resume)],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// How far a reader's records are written for sure: of each partition the least that any primary has noted; a
    /// partition that one of them knows nothing of is left out.
    fn checkpoints(
        &self,
        reader: &str,
    ) -> impl Future<Output = Result<BTreeMap<Partition, Resume>, Error>> + Send;
}
