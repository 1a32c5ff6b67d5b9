//! States in memory: loaded where they are missing, dropped where somebody else may erase them.
//!
//! Invariant: what is here is what this member last stored or loaded; a stale one costs a reload, never a wrong write.

use std::num::NonZeroUsize;

use super::Ingest;
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Partition;
use nearshore_core::user::state::Held;

impl<L: Log, S: Store> Ingest<L, S> {
    /// Drops states that were not needed since the last call but one: the erase of a user may be another member's
    /// to fold, and must not leave them here for ever.
    pub fn grow_old(&mut self) {
        self.age += 1;
        while let Some((_, (age, _))) = self.cache.peek_lru()
            && age + 1 < self.age
        {
            self.cache.pop_lru();
        }
        metrics::state_cached(self.cache.len());
    }

    /// Drops states that records of these partitions made: their erase would be another member's to fold,
    /// and must not leave them here.
    pub(super) fn drop_states(&mut self, partitions: &[Partition]) {
        let theirs = |held: &Held| {
            let mut fences = held.state.fences.iter();
            fences.any(|(partition, _)| partitions.contains(partition))
        };
        let gone: Vec<UserId> = self
            .cache
            .iter()
            .filter(|(_, (_, held))| theirs(held))
            .map(|(user, _)| user.clone())
            .collect();
        for user in gone {
            self.cache.pop(&user);
        }
        metrics::state_cached(self.cache.len());
    }

    /// Loads the states that are not in memory.
    pub(super) async fn load(&mut self, users: impl Iterator<Item = &UserId>) -> Result<(), Error> {
        let users: Vec<&UserId> = users.collect();
        // A batch with more users than the cache holds must still find them all.
        if users.len() > self.cache.cap().get() {
            self.cache
                .resize(NonZeroUsize::new(users.len()).unwrap_or(NonZeroUsize::MIN));
        }
        let all = users.len();
        let missing: Vec<UserId> = users
            .into_iter()
            .filter(|user| !self.cache.contains(user))
            .cloned()
            .collect();
        metrics::state_loads(metrics::Cache::Hit, (all - missing.len()) as u64);
        metrics::state_loads(metrics::Cache::Miss, missing.len() as u64);
        if missing.is_empty() {
            return Ok(());
        }
        let held = self.store.load(&self.settings.ns, &missing).await?;
        for (user, held) in missing.into_iter().zip(held) {
            self.cache.put(user, (self.age, held));
        }
        metrics::state_cached(self.cache.len());
        Ok(())
    }
}
