//! The stock role: keeps the sold-out sets up to date from the catalogue stream, for all namespaces.
//!
//! Invariant: an offset becomes committable when its effect is acknowledged. A record that is applied twice changes
//! nothing, because each set has a fence per source partition.

use std::sync::Arc;

use crate::map::{Mapper, Outcome};
use crate::members::checkpoints::Checkpoints;
use crate::members::clock::wall_clock;
use crate::members::dlq::{DeadLetterWriter, Rejected};
use crate::members::error::Error;
use crate::metrics::{self, RecordOutcome, Stage};
use nearshore_core::ports::log::{Delivery, Log};
use nearshore_core::ports::store::{Availability, StockRecord, Store};
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::naming::{self, Naming};
use nearshore_core::user::event;
use nearshore_core::user::record::{Record, Resume};
use nearshore_kafka::KafkaSettings;

/// Its consumer group: one for all namespaces, because stock belongs to none of them.
pub(crate) fn group(kafka: &KafkaSettings) -> String {
    kafka.group("stock")
}

/// Name under which its checkpoints are stored.
const READER: &str = "nearshore:stock";

/// One member of the group [`group`].
pub struct Stock<L, S> {
    log: L,
    store: S,
    group: String,
    topics: Topics,
    limits: event::Limits,
    naming: Option<Arc<Naming>>,
    checkpoints: Checkpoints<S>,
    dead_letters: DeadLetterWriter,
    mapper: Mapper,
}

/// What a record says of its SKU, or what it was mapped to says of theirs; all of it or nothing.
fn stock_records(
    record: &Record,
    mapped: Option<Outcome>,
    how: (&event::Limits, Option<&Naming>),
) -> Result<Vec<StockRecord>, event::Reject> {
    match mapped {
        None => Ok(vec![stock_record(record, how)?]),
        Some(made) => made?.iter().map(|made| stock_record(made, how)).collect(),
    }
}

/// What a record says of its SKU.
fn stock_record(
    record: &Record,
    (limits, named): (&event::Limits, Option<&Naming>),
) -> Result<StockRecord, event::Reject> {
    let (sku, value) = naming::decode_sku(named, record, limits)?;
    Ok(StockRecord {
        sku,
        partition: record.position.partition.clone(),
        offset: record.position.offset,
        availability: match value {
            // A list that was made before may still name it.
            None => Availability::Delisted,
            Some(sku) if sku.stock <= 0 => Availability::SoldOut,
            Some(_) => Availability::InStock,
        },
        time: record.time,
    })
}

impl<L: Log, S: Store> Stock<L, S> {
    /// Creates a member that has no partition yet; `group` is its consumer group, as dead letters name it.
    pub fn new(log: L, store: S, group: String, topics: Topics, limits: event::Limits) -> Self {
        Self {
            log,
            group,
            checkpoints: Checkpoints::new(store.clone(), READER),
            store,
            mapper: Mapper::new(&topics),
            topics,
            limits,
            naming: None,
            dead_letters: DeadLetterWriter::default(),
        }
    }

    /// SKUs that have only titles get the products of this map, or else are refused.
    pub(crate) fn named(self, naming: Option<Arc<Naming>>) -> Self {
        Self { naming, ..self }
    }

    /// The log, to wait for deliveries.
    pub fn log(&mut self) -> &mut L {
        &mut self.log
    }

    /// Ends the member and returns its log, to be closed.
    pub fn into_log(self) -> L {
        self.log
    }

    /// Applies a delivery. After an error call it again with the same one.
    pub async fn handle(&mut self, delivery: &Delivery) -> Result<(), Error> {
        let batch = match delivery {
            Delivery::Assigned(partitions) => {
                self.checkpoints.assigned(partitions);
                return Ok(());
            }
            Delivery::Revoked { partitions, .. } => {
                self.checkpoints.revoked(partitions);
                self.dead_letters.forget(partitions);
                return Ok(());
            }
            Delivery::Batch(batch) => batch,
        };
        self.store = self.checkpoints.store(&self.log).await?;
        let mut ops = Vec::new();
        let mut rejects = Vec::new();
        let topic = &batch.partition.topic;
        let mapped = self
            .mapper
            .records(topic, &batch.records, &self.limits)
            .await?;
        let stage = match &mapped {
            Some(_) => Stage::Map,
            None => Stage::Catalog,
        };
        let mut mapped = mapped.map(Vec::into_iter);
        let named = self.naming.as_deref();
        for record in &batch.records {
            let mapped = mapped.as_mut().map(|mapped| mapped.next());
            match stock_records(record, mapped.flatten(), (&self.limits, named)) {
                Ok(made) if made.is_empty() => metrics::records(topic, RecordOutcome::Ignored, 1),
                Ok(made) => ops.extend(made),
                Err(reject) => rejects.push(Rejected {
                    record,
                    stage,
                    reject,
                }),
            }
        }
        self.dead_letters
            .write_rejects(&self.log, &self.topics.dlq, &self.group, &rejects)
            .await?;
        if !ops.is_empty() {
            self.store.stock(&ops).await?;
            self.store.flush().await?;
            metrics::records(
                &batch.partition.topic,
                RecordOutcome::Folded,
                ops.len() as u64,
            );
            let out = ops
                .iter()
                .filter(|op| op.availability != Availability::InStock)
                .count() as u64;
            let oldest = batch.records.iter().map(|record| record.time).min();
            metrics::stock_to_filter(wall_clock().since(oldest.unwrap_or_default()));
            metrics::stock(metrics::StockChange::Out, out);
            metrics::stock(metrics::StockChange::In, ops.len() as u64 - out);
        }
        self.dead_letters.forget([&batch.partition]);
        if let Some(last) = batch.records.last() {
            let resume = Resume::after(last.position.offset);
            self.checkpoints.done(&batch.partition, resume);
        }
        Ok(())
    }

    /// Commits what is handled.
    pub async fn commit(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.commit(&self.log).await?)
    }

    /// Why the stored checkpoints cannot be used, for people; `None` if they can.
    pub fn unusable_checkpoints(&self) -> Option<&str> {
        self.checkpoints.unusable()
    }

    /// Fails with an error that [`Error::rewinds`] if the store lost writes since it was last verified.
    pub async fn check_store(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.check_store(&self.log).await?)
    }

    /// Rewinds the log to what the store still has. Call it after an error that [`Error::rewinds`], and drop the batch
    /// in hand: it is delivered again.
    pub async fn rewind(&mut self) -> Result<(), Error> {
        Ok(self.checkpoints.rewind(&mut self.log).await?)
    }
}
