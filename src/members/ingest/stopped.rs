//! Partitions that stopped with an alarm: [`StoppedPartitions`].
//!
//! Invariant: no batch of a stopped partition is handled until it is read again from where it stopped, so its offsets
//! stay where they are. It does not know when that is tried.

use std::collections::BTreeMap;

use crate::members::error::Error;
use crate::metrics;
use nearshore_core::ports::log::Batch;
use nearshore_core::user::record::{Partition, Resume};

/// Partitions that stopped because their cause of failure does not pass by itself.
#[derive(Default)]
pub(super) struct StoppedPartitions {
    /// Where each is to be read again.
    stopped: BTreeMap<Partition, Resume>,
    /// Why each stopped, until a batch of it is handled: the same cause is logged once, however often it is tried.
    tried: BTreeMap<Partition, String>,
}

impl StoppedPartitions {
    /// Stops a partition before a batch and says why in the log.
    pub(super) fn stop(&mut self, batch: &Batch, why: &Error) {
        let partition = &batch.partition;
        let why = why.to_string();
        if self.tried.get(partition) != Some(&why) {
            tracing::error!(
                %partition,
                error = why,
                "partition stopped; its offsets stay where they are; it is tried again until the cause is mended"
            );
        }
        self.tried.insert(partition.clone(), why);
        if let Some(first) = batch.records.first() {
            let at = Resume(first.position.offset.0);
            self.stopped.insert(partition.clone(), at);
        }
        metrics::stopped(self.tried.len());
    }

    /// Releases partitions that were assigned anew or revoked.
    pub(super) fn release(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.stopped.remove(partition);
            self.tried.remove(partition);
        }
        metrics::stopped(self.tried.len());
    }

    /// Releases all of them.
    pub(super) fn clear(&mut self) {
        self.stopped.clear();
        self.tried.clear();
        metrics::stopped(0);
    }

    /// Handles all of them again: they are read from [`StoppedPartitions::places`]. The metric stays until a batch of
    /// theirs is handled.
    pub(super) fn resume(&mut self) {
        self.stopped.clear();
    }

    /// A batch of this partition was handled.
    pub(super) fn handled(&mut self, partition: &Partition) {
        if self.tried.remove(partition).is_some() {
            tracing::info!(%partition, "a stopped partition is read again");
            metrics::stopped(self.tried.len());
        }
    }

    /// Where each stopped partition is to be read again.
    pub(super) fn places(&self) -> Vec<(Partition, Resume)> {
        let places = self.stopped.iter();
        places
            .map(|(partition, at)| (partition.clone(), *at))
            .collect()
    }

    /// The causes of all partitions that are stopped, or tried again; `None` if there are none.
    pub(super) fn why(&self) -> Option<String> {
        let each = self
            .tried
            .iter()
            .map(|(partition, why)| format!("{partition}: {why}"));
        let each: Vec<String> = each.collect();
        (!each.is_empty()).then(|| each.join("; "))
    }

    /// The batches whose partitions are not stopped.
    pub(super) fn running<'a>(&self, batches: &'a [Batch]) -> Vec<&'a Batch> {
        batches
            .iter()
            .filter(|batch| !self.stopped.contains_key(&batch.partition))
            .collect()
    }

    /// All stopped partitions.
    pub(super) fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.stopped.keys()
    }
}
