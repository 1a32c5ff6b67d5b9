//! Partitions that stopped with an alarm: [`StoppedPartitions`].
//!
//! Invariant: no batch of a stopped partition is handled until the partition is assigned anew, so its offsets stay
//! where they are.

use std::collections::BTreeSet;

use crate::members::error::Error;
use crate::metrics;
use nearshore_core::ports::log::Batch;
use nearshore_core::user::record::Partition;

/// Partitions that stopped because their cause of failure does not pass.
#[derive(Default)]
pub(super) struct StoppedPartitions(BTreeSet<Partition>);

impl StoppedPartitions {
    /// Stops a partition and says why in the log.
    pub(super) fn stop(&mut self, partition: &Partition, why: &Error) {
        tracing::error!(
            %partition,
            error = %why,
            "partition stopped; its offsets stay where they are; fix the cause, then restart the member"
        );
        self.0.insert(partition.clone());
        metrics::stopped(self.0.len());
    }

    /// Releases partitions that were assigned anew or revoked.
    pub(super) fn release(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.0.remove(partition);
        }
        metrics::stopped(self.0.len());
    }

    /// The batches whose partitions are not stopped.
    pub(super) fn running<'a>(&self, batches: &'a [Batch]) -> Vec<&'a Batch> {
        batches
            .iter()
            .filter(|batch| !self.0.contains(&batch.partition))
            .collect()
    }

    /// All stopped partitions.
    pub(super) fn partitions(&self) -> &BTreeSet<Partition> {
        &self.0
    }
}
