//! [`RedisStore`]: the store on one Redis primary or on a Redis Cluster.
//!
//! Invariant: every write is one script on one slot, so it happens as a whole or not at all, and its guard is stored
//! beside the value that it guards. Reads go to primaries only. The store decides nothing. Users are in [`users`];
//! counts, stock and blocks in [`shared`]; namespaces and the layout in [`register`]; scans and checks in [`survey`];
//! checkpoints in [`checkpoints`]; erases in [`erased`]; what lists earned in [`arms`]; neighbours of SKUs in
//! [`neighbours`]; what rights all this needs in [`rights`].

mod arms;
mod checkpoints;
mod connect;
mod erased;
mod faults;
mod link;
pub mod metrics;
mod neighbours;
mod register;
mod rights;
mod scripts;
mod sentinel;
mod settings;
mod shared;
mod survey;
mod tls;
mod users;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value};

pub use erased::Trace;
pub use rights::{Use, acl, sentinel_acl};
pub use settings::RedisSettings;
pub use survey::Check;

use self::link::Link;
use self::scripts::Guard;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{
    Added, Block, Cell, Claim, ClaimOutcome, Counts, Delta, Durability, Error, FoldWrite, Folded,
    Lineage, Namespaces, Peek, Publish, Published, Stock, StockRecord, Users,
};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Offset, Partition, Resume, Timestamp};
use nearshore_core::user::state::LoadedUser;

/// A store on Redis. Clones are handles to the same connection.
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
    /// Lineage in which this handle's writes have effect; `None` = in any.
    guard: Option<Arc<Guard>>,
}

struct Inner {
    settings: RedisSettings,
    link: Link,
    /// A connection for WAIT alone, which blocks the connection that it is sent on.
    waiter: Link,
}

impl RedisStore {
    /// Creates a store that connects at its first call; wrong settings fail at once.
    pub fn new(settings: RedisSettings) -> Result<Self, Error> {
        Ok(Self {
            inner: Arc::new(Inner {
                link: Link::new(&settings, Duration::ZERO)?,
                waiter: Link::new(&settings, settings.replicas_max)?,
                settings,
            }),
            guard: None,
        })
    }

    fn link(&self) -> &Link {
        &self.inner.link
    }

    /// Runs conditional writes, which have effect only in this handle's lineage, if it has one.
    async fn run(&self, cmds: Vec<Cmd>, per: usize) -> Result<Vec<Value>, Error> {
        self.link().run_by(self.guard.as_deref(), cmds, per).await
    }

    /// Converts what is stored under a key to the expected type.
    fn read_of<T: FromRedisValue>(&self, key: &str, value: Value) -> Result<T, Error> {
        redis::from_redis_value(value).map_err(|error| corrupt(key, error))
    }

    /// Converts an answer to the expected type.
    fn read<T: FromRedisValue>(&self, value: Value) -> Result<T, Error> {
        redis::from_redis_value(value).map_err(|error| self.link().unexpected(error))
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisStore({})", self.link().addr())
    }
}

impl Users for RedisStore {
    async fn load(&self, ns: &str, users: &[UserId]) -> Result<Vec<LoadedUser>, Error> {
        self.load_users(ns, users).await
    }

    async fn fold(&self, ns: &str, writes: &[FoldWrite]) -> Result<Vec<Folded>, Error> {
        self.fold_users(ns, writes).await
    }

    async fn claim(&self, ns: &str, claims: &[Claim]) -> Result<Vec<ClaimOutcome>, Error> {
        self.claim_users(ns, claims).await
    }

    async fn peek(&self, ns: &str, users: &[UserId]) -> Result<Vec<Peek>, Error> {
        self.peek_users(ns, users).await
    }

    async fn publish(&self, ns: &str, lists: &[Publish]) -> Result<Vec<Published>, Error> {
        self.publish_lists(ns, lists).await
    }

    async fn discard(&self, ns: &str, user: &UserId, at: Timestamp) -> Result<(), Error> {
        self.discard_user(ns, user, at).await
    }
}

impl Counts for RedisStore {
    async fn add(&self, ns: &str, deltas: &[Delta]) -> Result<Vec<Added>, Error> {
        self.add_deltas(ns, deltas).await
    }

    async fn count_fences(
        &self,
        ns: &str,
        partition: &Partition,
    ) -> Result<BTreeMap<u8, Offset>, Error> {
        self.fences_of(ns, partition).await
    }

    async fn counts(&self, ns: &str, shard: u8, since: i64) -> Result<BTreeMap<Cell, u64>, Error> {
        self.cells(ns, shard, since).await
    }

    async fn count_versions(&self, ns: &str) -> Result<BTreeMap<u8, u64>, Error> {
        self.versions(ns).await
    }
}

impl Stock for RedisStore {
    async fn stock(&self, ops: &[StockRecord]) -> Result<(), Error> {
        self.stock_ops(ops).await
    }

    async fn sold_out(&self, skus: &[String]) -> Result<Vec<bool>, Error> {
        self.which_sold_out(skus).await
    }

    async fn block(&self, block: &Block) -> Result<(), Error> {
        self.add_block(block).await
    }

    async fn unblock(&self, id: &str, by: &str, at: Timestamp) -> Result<bool, Error> {
        self.lift_blocks(id, by, at).await
    }

    async fn blocks(&self) -> Result<Vec<Block>, Error> {
        self.all_blocks().await
    }
}

impl Namespaces for RedisStore {
    async fn set_fallback(&self, ns: &str, segment: &str, doc: &str) -> Result<(), Error> {
        self.put_fallback(ns, segment, doc).await
    }

    async fn fallback(&self, ns: &str, segment: &str) -> Result<Option<String>, Error> {
        self.get_fallback(ns, segment).await
    }

    async fn scan(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<UserId>, Option<String>), Error> {
        self.scan_users(ns, cursor).await
    }

    async fn delete(
        &self,
        ns: &str,
        cursor: Option<String>,
    ) -> Result<(u64, Option<String>), Error> {
        self.delete_page(ns, cursor).await
    }

    async fn active(&self) -> Result<Option<String>, Error> {
        self.get_active().await
    }

    async fn set_active(&self, ns: &str, expected: Option<&str>) -> Result<bool, Error> {
        self.put_active(ns, expected).await
    }

    async fn plan(&self, ns: &str) -> Result<Option<String>, Error> {
        self.get_plan(ns).await
    }

    async fn set_plan(&self, ns: &str, plan: &str, expected: Option<&str>) -> Result<bool, Error> {
        self.put_plan(ns, plan, expected).await
    }

    async fn namespaces(&self) -> Result<BTreeMap<String, String>, Error> {
        self.registered().await
    }

    async fn enroll(&self, ns: &str, note: Option<&str>) -> Result<(), Error> {
        self.put_registered(ns, note).await
    }

    async fn set_cost(&self, arm: &str, note: &str) -> Result<(), Error> {
        self.put_cost(arm, note).await
    }

    async fn costs(&self) -> Result<BTreeMap<String, String>, Error> {
        self.get_costs().await
    }

    async fn signal_live_behind(&self, ttl: Duration) -> Result<(), Error> {
        self.put_live_behind(ttl).await
    }

    async fn live_behind(&self) -> Result<bool, Error> {
        self.is_live_behind().await
    }

    async fn signal_history(&self, ns: &str, ttl: Duration) -> Result<(), Error> {
        self.put_history(ns, ttl).await
    }

    async fn in_history(&self, ns: &str) -> Result<bool, Error> {
        self.has_history(ns).await
    }
}

impl Durability for RedisStore {
    async fn flush(&self) -> Result<(), Error> {
        self.wait_for_replicas().await
    }

    async fn lineage(&self) -> Result<Lineage, Error> {
        self.link().lineage().await
    }

    fn under(&self, lineage: &Lineage) -> Self {
        Self {
            inner: self.inner.clone(),
            guard: Some(Arc::new(Guard::new(lineage))),
        }
    }

    async fn checkpoint(&self, reader: &str, done: &[(Partition, Resume)]) -> Result<(), Error> {
        self.put_checkpoint(reader, done).await
    }

    async fn checkpoints(&self, reader: &str) -> Result<BTreeMap<Partition, Resume>, Error> {
        self.get_checkpoints(reader).await
    }
}

/// An [`Error::Corrupt`] for a stored value, its key masked; it is of consequence to the key's user alone.
fn corrupt(key: &str, reason: impl ToString) -> Error {
    // Errors are logged, and a log must not name users. To see ids, enable debug lines.
    tracing::debug!(key, "a stored value cannot be used; it is left as it is");
    Error::Corrupt {
        key: keys::masked(key),
        user: keys::owner(key),
        reason: reason.to_string(),
    }
}
