//! Which SKUs cannot be sold, for all namespaces: out of stock, delisted or blocked; the trait [`Stock`].

use std::future::Future;

use schemars::JsonSchema;

use crate::user::record::{Offset, Partition, Timestamp};

use super::Error;

/// One record of the stock stream, for a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockRecord {
    /// SKU id.
    pub sku: String,
    /// Source partition.
    pub partition: Partition,
    /// Source offset; at or below the set's fence the record is ignored.
    pub offset: Offset,
    /// Availability of the SKU as of this record.
    pub availability: Availability,
    /// Record time.
    pub time: Timestamp,
}

/// Whether a SKU can be bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// In stock.
    InStock,
    /// Sold out.
    SoldOut,
    /// No longer in the catalogue. It counts as sold out until no list can name it: a list's time to live of record
    /// time later.
    Delisted,
}

/// A block or unblock by a person.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, JsonSchema)]
pub struct Block {
    /// A SKU id or a PU id.
    pub id: String,
    /// Whether `id` is a PU.
    pub pu: bool,
    /// SKUs that are blocked at once (those of the PU, or the SKU itself).
    pub skus: Vec<String>,
    /// Why.
    pub reason: String,
    /// User name of the operator, as the shell says.
    pub by: String,
    /// When, wall clock of the operator (audit only).
    pub at: Timestamp,
}

/// The sold-out sets and the blocks.
pub trait Stock: Send + Sync {
    /// Applies stock records in order; a blocked SKU stays sold out.
    fn stock(&self, ops: &[StockRecord]) -> impl Future<Output = Result<(), Error>> + Send;

    /// For each SKU, whether it is out of stock, delisted or blocked.
    fn sold_out(&self, skus: &[String]) -> impl Future<Output = Result<Vec<bool>, Error>> + Send;

    /// Blocks products for all users, with a line in the log of blocks.
    fn block(&self, block: &Block) -> impl Future<Output = Result<(), Error>> + Send;

    /// Lifts a block; a SKU that is out of stock stays sold out. False if there was no such block.
    fn unblock(
        &self,
        id: &str,
        by: &str,
        at: Timestamp,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// All blocks in force.
    fn blocks(&self) -> impl Future<Output = Result<Vec<Block>, Error>> + Send;
}
