//! The neighbours of SKUs as clients read them.
//!
//! Invariant: a document is written whole, and is gone after its time to live unless it is written again. Nothing here is
//! fenced: no decision about a user reads it.

use std::time::Duration;

use redis::{Cmd, cmd};

use super::RedisStore;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Error;

impl RedisStore {
    /// Writes the documents of SKUs, pairs of SKU id and JSON.
    pub async fn put_neighbours(
        &self,
        ns: &str,
        docs: &[(&str, String)],
        ttl: Duration,
    ) -> Result<(), Error> {
        let mut cmds: Vec<Cmd> = Vec::with_capacity(docs.len());
        for (sku, doc) in docs {
            let mut set = cmd("SET");
            set.arg(keys::neighbours(ns, sku)?).arg(doc);
            set.arg("EX").arg(ttl.as_secs().max(1));
            cmds.push(set);
        }
        if cmds.is_empty() {
            return Ok(());
        }
        self.link().run(cmds, 1).await.map(drop)
    }

    /// The document of a SKU.
    pub async fn neighbours(&self, ns: &str, sku: &str) -> Result<Option<String>, Error> {
        let key = keys::neighbours(ns, sku)?;
        let mut get = cmd("GET");
        get.arg(&key);
        self.read_of(&key, self.link().one(get).await?)
    }
}
