//! Lists as clients read them, and counts of what lists earned.

use std::collections::BTreeMap;

use super::MemoryStore;
use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::{Arms, Error, ShownDoc, Users};
use nearshore_core::user::event::UserId;

impl Arms for MemoryStore {
    async fn shown(&self, ns: &str, users: &[UserId]) -> Result<Vec<Option<ShownDoc>>, Error> {
        let peeks = self.peek(ns, users).await?;
        // Memory knows no clock: a list is stored when it was requested.
        let shown = peeks.into_iter().map(|peek| {
            peek.list.map(|list| ShownDoc {
                doc: list.doc,
                epoch: list.epoch,
                stored_at: Some(list.at),
            })
        });
        Ok(shown.collect())
    }

    async fn add_earned(&self, ns: &str, earned: &BTreeMap<ListKind, Earned>) -> Result<(), Error> {
        keys::arms(ns)?;
        let mut inner = self.lock();
        let space = inner.spaces.entry(ns.into()).or_default();
        for (kind, earned) in earned {
            *space.earned.entry(kind.clone()).or_default() += *earned;
        }
        Ok(())
    }

    async fn earned(&self, ns: &str) -> Result<BTreeMap<ListKind, Earned>, Error> {
        keys::arms(ns)?;
        let inner = self.lock();
        let space = inner.spaces.get(ns);
        Ok(space.map(|space| space.earned.clone()).unwrap_or_default())
    }
}
