//! The log as members see it: the trait [`Log`], its deliveries, its errors.
//!
//! Invariant of every implementation: a consumer delivers each partition's records in offset order, and none of a
//! partition after its revoke. A log does not know what records contain.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::user::record::{Offset, Partition, Record, Resume, Timestamp};

/// What a consumer delivers.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// These partitions are assigned to this member now.
    Assigned(Vec<Partition>),
    /// These partitions are no longer assigned to this member: drop all unfinished work of them.
    Revoked {
        /// The partitions.
        partitions: Vec<Partition>,
        /// True if the group continued without this member, which had no chance to commit.
        lost: bool,
    },
    /// Records of one partition, in offset order, never empty.
    Batch(Batch),
}

impl Delivery {
    /// Whether it assigns or revokes this partition.
    pub fn changes_owner_of(&self, partition: &Partition) -> bool {
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
    /// The partition of all records.
    pub partition: Partition,
    /// Records in offset order. Gaps come from compaction and transactions only.
    pub records: Vec<Record>,
    /// Last known end offset (high watermark) of the partition. A fence at or above it belongs to an older log.
    pub end: Offset,
}

/// A committed position of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The partition.
    pub partition: Partition,
    /// Where the group resumes.
    pub resume: Resume,
    /// Whether [`Log::commit`] set it. Otherwise an operator or a tool did, and earlier records may be unprocessed.
    pub ours: bool,
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Topic.
    pub topic: Arc<str>,
    /// Key.
    pub key: Option<Bytes>,
    /// Value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers in order.
    pub headers: Vec<(String, Bytes)>,
    /// Timestamp of the record (a dead letter keeps the original's); `None` = now.
    pub time: Option<Timestamp>,
}

/// Why the log did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker did not acknowledge in time; the record may still arrive.
    #[error("no acknowledgement from {topic} within {limit:?}")]
    Timeout {
        /// Topic or service that was asked.
        topic: String,
        /// How long the caller waited.
        limit: std::time::Duration,
    },
    /// No answer in time, and the client knows why: no broker can be reached, or none accepts its TLS or its login.
    #[error("{0}")]
    Unreachable(String),
    /// The partition is not (or no longer) assigned to this member; the new owner does the work again.
    #[error("{partition} is not assigned to this member")]
    NotAssigned {
        /// The partition.
        partition: Partition,
    },
    /// The broker refuses for good: authorisation, unknown topic.
    #[error("{what}: {reason}")]
    Refused {
        /// The operation that failed.
        what: String,
        /// Text of the broker's error.
        reason: String,
    },
    /// The broker refuses this record for its content: it is too large, or the topic does not accept its timestamp.
    #[error("{what}: {reason}")]
    Unfit {
        /// The operation that failed.
        what: String,
        /// Text of the broker's error.
        reason: String,
    },
    /// The client stopped: a fatal error, or its thread has ended.
    #[error("log client stopped: {0}")]
    Stopped(String),
}

/// What a caller should do after an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again: every effect is fenced.
    Retry,
    /// Drop the work: another member does it.
    Drop,
    /// End the role.
    Stop,
}

impl Error {
    /// What a caller should do.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Timeout { .. } | Self::Unreachable(_) => Remedy::Retry,
            Self::NotAssigned { .. } => Remedy::Drop,
            Self::Refused { .. } | Self::Unfit { .. } | Self::Stopped(_) => Remedy::Stop,
        }
    }
}

/// Commits the positions of partitions that are still assigned; the others are left to their new owners. The log
/// refuses a commit as a whole, so refused partitions are removed until the rest is accepted.
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

/// One member of a consumer group, with a producer.
pub trait Log: Send + Sync {
    /// Waits for the next delivery. Cancel-safe: nothing is lost when the future is dropped.
    fn next(&mut self) -> impl Future<Output = Result<Delivery, Error>> + Send;

    /// Waits for the next assignment or revoke; batches stay queued. For a member that has no room for records.
    /// Cancel-safe.
    fn notice(&mut self) -> impl Future<Output = Result<Delivery, Error>> + Send;

    /// Pauses delivery of these topics. Other topics continue. An empty list resumes all. Paused records are
    /// delivered in order after the resume. A log without backpressure may ignore the call.
    fn pause(&mut self, _topics: &[Arc<str>]) {}

    /// Commits a position for each partition, and waits for the answer.
    fn commit(
        &self,
        done: &[(Partition, Resume)],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Committed positions of these partitions; a partition without one is left out.
    fn committed(
        &self,
        of: &[Partition],
    ) -> impl Future<Output = Result<Vec<Committed>, Error>> + Send;

    /// Continues reading assigned partitions from these positions (or from the log's first record after them). Queued
    /// batches of them are dropped, and no record that was read before the call is delivered after it. A partition that
    /// is not assigned is ignored.
    fn rewind(
        &mut self,
        to: &[(Partition, Resume)],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Asks the log for the present end offset of a partition, which may be above that of the last batch.
    fn end(&self, partition: &Partition) -> impl Future<Output = Result<Offset, Error>> + Send;

    /// Writes records; resolves when the broker has acknowledged *all* of them (delivery reports).
    fn send(&self, records: Vec<Outgoing>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Leaves the group and stops the client, within a bounded time.
    fn close(self) -> impl Future<Output = ()> + Send;
}
