//! Noticing a log that was replaced under a stored state: [`check_fences`].
//!
//! Invariant: a record is passed as a duplicate only if the log really contains its state's fence.

use crate::members::error::Error;
use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::user::state::LoadedUser;

/// Fails with [`Error::FenceAboveEnd`] if a fence of the state is at or above the end of its partition: the log is not
/// the one that was folded.
///
/// The end in a batch may be older than a write of another owner, so the log is asked before it fails.
pub(super) async fn check_fences<L: Log>(
    log: &L,
    loaded: &LoadedUser,
    batches: &[&Batch],
) -> Result<(), Error> {
    for batch in batches {
        let fence = loaded.state.fences.get(&batch.partition);
        let Some(fence) = fence.filter(|fence| *fence >= batch.end) else {
            continue;
        };
        let end = log.end(&batch.partition).await?;
        if fence >= end {
            return Err(Error::FenceAboveEnd {
                partition: batch.partition.clone(),
                fence,
                end,
            });
        }
    }
    Ok(())
}
