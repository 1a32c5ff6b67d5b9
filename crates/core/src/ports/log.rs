//! The log as its users see it: the trait [`Log`], what it delivers, how it fails.
//!
//! Invariant of every implementation: a consumer hands out each partition's records in offset order, and nothing of a
//! partition after its revoke. A log does not know what records say.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::user::record::{Offset, Partition, Record, Resume, Timestamp};

/// What a consumer hands over.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// These partitions are ours from now on; `resume` is where reading starts, where known.
    Assigned(Vec<Partition>),
    /// These are no longer ours: drop what is in hand of them. `lost`: without a chance to commit.
    Revoked {
        /// The partitions.
        partitions: Vec<Partition>,
        /// True when the group went on without us.
        lost: bool,
    },
    /// Records of one partition, in offset order, never empty.
    Batch(Batch),
}

impl Delivery {
    /// Whether it says that this partition came or went.
    pub fn moves(&self, partition: &Partition) -> bool {
        match self {
            Self::Revoked { partitions, .. } | Self::Assigned(partitions) => {
                partitions.contains(partition)
            }
            Self::Batch(_) => false,
        }
    }
}

/// Records of one partition.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Their partition.
    pub partition: Partition,
    /// In offset order, without gaps but those of compaction and transactions.
    pub records: Vec<Record>,
    /// End offset (high watermark) of the partition as last seen: a fence at or above it outlived its log.
    pub end: Offset,
}

/// A position that a group has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The partition.
    pub partition: Partition,
    /// Where the group resumes.
    pub resume: Resume,
    /// By [`Log::commit`]; otherwise an operator or a tool set it, and nothing may have been done before it.
    pub ours: bool,
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Topic.
    pub topic: std::sync::Arc<str>,
    /// Key.
    pub key: Option<Bytes>,
    /// Value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order.
    pub headers: Vec<(String, Bytes)>,
    /// Timestamp to carry (dlq keeps the original's); `None` = now.
    pub time: Option<Timestamp>,
}

/// What the log can answer instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker did not acknowledge in time; the record may still arrive.
    #[error("no acknowledgement from {topic} within {limit:?}")]
    Timeout {
        /// Topic written to.
        topic: String,
        /// How long was waited.
        limit: std::time::Duration,
    },
    /// The partition is not (or no longer) ours; the new owner does the work again.
    #[error("{partition} is not assigned to this member")]
    NotAssigned {
        /// The partition.
        partition: Partition,
    },
    /// The broker refuses for good: authorisation, unknown topic.
    #[error("{what}: {reason}")]
    Refused {
        /// What was tried.
        what: String,
        /// The broker's words.
        reason: String,
    },
    /// The broker refuses this record for what it is: too large, or of a time that the topic does not take.
    #[error("{what}: {reason}")]
    Unfit {
        /// What was tried.
        what: String,
        /// The broker's words.
        reason: String,
    },
    /// The client cannot go on: fatal error, or its thread is gone.
    #[error("log client stopped: {0}")]
    Stopped(String),
}

/// What a caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again: every effect is fenced.
    Retry,
    /// Drop the work: somebody else does it.
    Drop,
    /// End the role.
    Stop,
}

impl Error {
    /// What a caller should do.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Timeout { .. } => Remedy::Retry,
            Self::NotAssigned { .. } => Remedy::Drop,
            Self::Refused { .. } | Self::Unfit { .. } | Self::Stopped(_) => Remedy::Stop,
        }
    }
}

/// Commits what is still ours; a partition that is not, is left to its new owner. The log refuses a commit
/// as a whole, so what is foreign is taken out until the rest goes through.
pub async fn commit_ours<L: Log>(log: &L, mut done: Vec<(Partition, Resume)>) -> Result<(), Error> {
    while !done.is_empty() {
        match log.commit(&done).await {
            Err(Error::NotAssigned { partition }) => {
                let before = done.len();
                done.retain(|(known, _)| *known != partition);
                if done.len() == before {
                    return Err(Error::NotAssigned { partition });
                }
            }
            outcome => return outcome,
        }
    }
    Ok(())
}

/// One member of a consumer group, with a producer beside it.
pub trait Log: Send + Sync {
    /// The next delivery; waits for one. Cancel-safe: nothing is lost when the future is dropped.
    fn next(&mut self) -> impl Future<Output = Result<Delivery, Error>> + Send;

    /// The next assignment or revoke, while the role has no room for records: they stay. Cancel-safe.
    fn notice(&mut self) -> impl Future<Output = Result<Delivery, Error>> + Send;

    /// From now on batches of these topics wait, and those of others do not wait behind them; with none, all go on. What is
    /// held back is delivered in order when it is not any more. A log for which order is nobody's loss may ignore it.
    fn pause(&mut self, _topics: &[Arc<str>]) {}

    /// Makes `resume` the committed position of each partition, now.
    fn commit(
        &self,
        done: &[(Partition, Resume)],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// The group's positions of these partitions; one without a position is left out.
    fn committed(
        &self,
        of: &[Partition],
    ) -> impl Future<Output = Result<Vec<Committed>, Error>> + Send;

    /// Reading of partitions of ours goes on from these positions (or from the log's first record after them): what
    /// waits of them is taken back, and nothing read before is delivered any more. One that is not ours is ignored.
    fn rewind(
        &mut self,
        to: &[(Partition, Resume)],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// End offset of a partition as the log has it now, not as it was when a batch was read.
    fn end(&self, partition: &Partition) -> impl Future<Output = Result<Offset, Error>> + Send;

    /// Writes records; resolves when *all* are acknowledged by the broker (delivery report).
    fn send(&self, records: Vec<Outgoing>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Leaves the group and ends the client; bounded in time.
    fn close(self) -> impl Future<Output = ()> + Send;
}
