//! Whether writes are replicated and survive a failover: the trait [`Durability`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use crate::user::record::{Partition, Resume};

use super::Error;

/// Which history of writes the primaries hold. It changes after a failover or a restart, when acknowledged writes may
/// be lost. A lineage never comes back; it may also change where nothing was lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lineage(pub Arc<str>);

/// Replication, lineage and checkpoints.
pub trait Durability: Send + Sync {
    /// Resolves when everything written before is acknowledged by `redis.min_replicas` replicas.
    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Which history of writes the primaries hold now.
    fn lineage(&self) -> impl Future<Output = Result<Lineage, Error>> + Send;

    /// A handle whose conditional writes (users, counts, stock, checkpoints) have effect only in this lineage. In
    /// another one they fail with [`Error::Regressed`], however late they arrive.
    fn under(&self, lineage: &Lineage) -> Self
    where
        Self: Sized;

    /// Stores on every primary that all writes for a reader's records before these positions are done. Call it after
    /// those writes are acknowledged. A position only rises.
    fn checkpoint(
        &self,
        reader: &str,
        done: &[(Partition, Resume)],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// How far a reader's records are written for sure: for each partition the lowest position of all primaries. A
    /// partition that one primary does not know is left out.
    fn checkpoints(
        &self,
        reader: &str,
    ) -> impl Future<Output = Result<BTreeMap<Partition, Resume>, Error>> + Send;
}
