//! Cache of user states: [`States`].
//!
//! Invariant: an entry is what this member last stored or loaded. A stale entry costs a reload and never causes a wrong
//! write, because every write names the version that it was made from. No state stays for ever: another member may fold
//! the user's erase, and this member would never hear of it.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::metrics;
use nearshore_core::ports::store::{self, Store};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Partition;
use nearshore_core::user::state::LoadedUser;

/// States of users in memory, least recently used first to go.
pub(super) struct States {
    /// Each state with the age at which it was put here.
    cache: LruCache<UserId, (u32, LoadedUser)>,
    /// Number of calls of [`States::drop_unused`].
    age: u32,
}

impl States {
    /// Creates an empty cache of this many users.
    pub(super) fn new(users: NonZeroUsize) -> Self {
        Self {
            cache: LruCache::new(users),
            age: 0,
        }
    }

    /// Loads the states that are not in memory.
    pub(super) async fn load<S: Store>(
        &mut self,
        store: &S,
        ns: &str,
        users: impl Iterator<Item = &UserId>,
    ) -> Result<(), store::Error> {
        let users: Vec<&UserId> = users.collect();
        // A batch with more users than the cache has room for must still find all of them here.
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
        let loaded = store.load(ns, &missing).await?;
        for (user, loaded) in missing.into_iter().zip(loaded) {
            self.put(user, loaded);
        }
        metrics::state_cached(self.cache.len());
        Ok(())
    }

    /// Takes a state out until it is stored again, so that after an error no half-written state is left here.
    pub(super) fn take(&mut self, user: &UserId) -> LoadedUser {
        let (_, loaded) = self.cache.pop(user).unwrap_or_default();
        loaded
    }

    /// Puts a state in that was loaded, stored or not changed.
    pub(super) fn put(&mut self, user: UserId, loaded: LoadedUser) {
        self.cache.put(user, (self.age, loaded));
    }

    /// Drops states that were not needed since the last call but one.
    pub(super) fn drop_unused(&mut self) {
        self.age += 1;
        while let Some((_, (age, _))) = self.cache.peek_lru()
            && age + 1 < self.age
        {
            self.cache.pop_lru();
        }
        metrics::state_cached(self.cache.len());
    }

    /// Drops states into which records of these partitions were folded: another member folds the next ones.
    pub(super) fn drop_folded_from(&mut self, partitions: &[Partition]) {
        let folded_from = |loaded: &LoadedUser| {
            let mut fences = loaded.state.fences.iter();
            fences.any(|(partition, _)| partitions.contains(partition))
        };
        let users: Vec<UserId> = self
            .cache
            .iter()
            .filter(|(_, (_, loaded))| folded_from(loaded))
            .map(|(user, _)| user.clone())
            .collect();
        for user in users {
            self.cache.pop(&user);
        }
        metrics::state_cached(self.cache.len());
    }

    /// Drops all states.
    pub(super) fn clear(&mut self) {
        self.cache.clear();
    }
}
