//! Why a call of a member fails, and what its caller does about it: [`Error`].
//!
//! Invariant: each cause says whether the same call may succeed later. Waiting is the caller's.

use crate::members::checkpoints;
use nearshore_core::ports::{log, store};
use nearshore_core::user::record::{Offset, Partition};

/// Why a call fails; see [`Error::retry`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] log::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The topic `dlq` does not accept dead letters now: unreachable, missing, not permitted, or its limit too low.
    #[error("{left} dead letters wait for the dlq: {source}")]
    Dlq {
        /// Number of dead letters that are not written yet.
        left: usize,
        /// The first refusal.
        source: log::Error,
    },
    /// Records cannot be mapped now.
    #[error(transparent)]
    Map(#[from] crate::map::Error),
    /// A fence is at or above the end of its partition: the topic was recreated, or this is another cluster.
    #[error(
        "a user was folded up to offset {} of {partition}, which ends at offset {}; \
         if the topic was recreated, raise kafka.incarnations.\"{}\"",
        fence.0, end.0, partition.topic
    )]
    FenceAboveEnd {
        /// The partition that was read.
        partition: Partition,
        /// Fence in the stored state.
        fence: Offset,
        /// End offset of the partition.
        end: Offset,
    },
}

impl Error {
    /// Whether the same call may succeed later. If not, the partition stops with an alarm.
    pub fn retry(&self) -> bool {
        match self {
            Self::Log(error) => error.remedy() == log::Remedy::Retry,
            Self::Store(error) => error.remedy() == store::Remedy::Retry,
            // A missing topic or right may be added any moment, and nothing is lost by waiting.
            Self::Dlq { source, .. } => !matches!(source, log::Error::Stopped(_)),
            Self::Map(_) => true,
            Self::FenceAboveEnd { .. } => false,
        }
    }

    /// Logs the error and what follows from it. Lines about one service, whoever writes them, are limited together.
    pub fn warn(&self, consequence: &str) {
        match self {
            Self::Store(error) => tracing::warn!(target: "redis", %error, "{consequence}"),
            Self::Log(_) | Self::Dlq { .. } => {
                tracing::warn!(target: "kafka", error = %self, "{consequence}");
            }
            Self::FenceAboveEnd { .. } | Self::Map(_) => {
                tracing::warn!(error = %self, "{consequence}");
            }
        }
    }

    /// Whether a stored value cannot be used. It passes when somebody restores or deletes the value.
    pub fn is_of_a_value(&self) -> bool {
        matches!(self, Self::Store(store::Error::Corrupt { .. }))
    }

    /// Whether the store lost writes, so that the member must rewind.
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
