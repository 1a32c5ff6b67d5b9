//! What ends a try of ingest, and what its caller does about it: [`Error`].
//!
//! Invariant: of each cause it is known whether it may pass. It does not wait.

use crate::members::checkpoints;
use nearshore_core::ports::{log, store};
use nearshore_core::user::record::{Offset, Partition};

/// What ends a try; see [`Error::retry`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Dead letters that the topic `dlq` does not take now: unreachable, missing, closed to us, too small.
    #[error("{left} dead letters wait for the dlq: {source}")]
    Dlq {
        /// How many.
        left: usize,
        /// Why.
        source: log::Error,
    },
    /// A fence above the partition's end: the topic was recreated, or this is another cluster.
    #[error(
        "a user was folded up to {fence:?} of {partition}, which ends at {end:?}; \
         if the topic was recreated, raise kafka.incarnations.\"{}\"", partition.topic
    )]
    FenceAboveEnd {
        /// The partition.
        partition: Partition,
        /// Fence in the state.
        fence: Offset,
        /// End offset of the partition.
        end: Offset,
    },
}

impl Error {
    /// Whether the same call may succeed later; otherwise the partition stops with an alarm.
    pub fn retry(&self) -> bool {
        match self {
            Self::Log(error) => error.remedy() == log::Remedy::Retry,
            Self::Store(error) => error.remedy() == store::Remedy::Retry,
            // What lacks a topic or a right may get it any moment; nothing is lost by waiting.
            Self::Dlq { source, .. } => !matches!(source, log::Error::Stopped(_)),
            Self::FenceAboveEnd { .. } => false,
        }
    }

    /// Whether the store lost writes: the member must rewind.
    pub fn rewinds(&self) -> bool {
        matches!(self, Self::Store(error) if error.remedy() == store::Remedy::Rewind)
    }
}

impl From<checkpoints::Error> for Error {
    fn from(error: checkpoints::Error) -> Self {
        match error {
            checkpoints::Error::Log(error) => Self::Log(error),
            checkpoints::Error::Store(error) => Self::Store(error),
        }
    }
}
