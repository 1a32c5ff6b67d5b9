//! Tombstones of erased users, and every key that is left of a user in any namespace.
//!
//! Invariant: a tombstone only rises. [`RedisStore::traces`] scans all keys, so it also finds those of namespaces
//! that are no longer registered; it changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::cmd;

use super::RedisStore;
use super::scripts::{Effect, call};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Error;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

/// A key that has a user's hash tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace {
    /// The key.
    pub key: String,
    /// When the key expires; `None` = never.
    pub ttl: Option<Duration>,
}

impl RedisStore {
    /// Every key of a user, sorted; scans all keys of all primaries.
    pub async fn traces(&self, user: &UserId) -> Result<Vec<Trace>, Error> {
        let pattern = keys::of_user(user)?;
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let (page, next) = self.scan_keys(&pattern, cursor).await?;
            found.extend(page);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        // A scan may return a key twice.
        found.sort();
        found.dedup();
        let ttls = found.iter().map(|key| {
            let mut ttl = cmd("PTTL");
            ttl.arg(key);
            ttl
        });
        let ttls = self.link().run(ttls.collect(), 1).await?;
        let mut traces = Vec::with_capacity(found.len());
        for (key, ttl) in found.into_iter().zip(ttls) {
            let ms: i64 = self.read(ttl)?;
            // -2: the key is gone by now. -1: it never expires.
            if ms != -2 {
                let ttl = u64::try_from(ms).ok().map(Duration::from_millis);
                traces.push(Trace { key, ttl });
            }
        }
        Ok(traces)
    }

    /// Every namespace that has a state, profile or list of some user, sorted; scans all keys of all primaries.
    pub async fn namespaces_with_keys(&self) -> Result<Vec<String>, Error> {
        let (mut found, mut cursor) = (BTreeSet::new(), None);
        loop {
            let (page, next) = self.scan_keys("*:{*}:*", cursor).await?;
            let parts = page.iter().filter_map(|key| keys::part(key));
            found.extend(parts.map(|(ns, _)| ns.to_owned()));
            cursor = next;
            if cursor.is_none() {
                return Ok(found.into_iter().collect());
            }
        }
    }

    /// A page of erased users with the time of their last erase, and the cursor of the next page.
    pub async fn erased(
        &self,
        cursor: Option<String>,
    ) -> Result<(Vec<(UserId, Timestamp)>, Option<String>), Error> {
        let (found, next) = self.scan_keys(keys::TOMBSTONES, cursor).await?;
        let gets = found.iter().map(|key| {
            let mut get = cmd("GET");
            get.arg(key);
            get
        });
        let times = self.link().run(gets.collect(), 1).await?;
        let mut users = Vec::with_capacity(found.len());
        for (key, time) in found.iter().zip(times) {
            let time: Option<i64> = self.read(time)?;
            if let (Some(user), Some(time)) = (keys::user_of_tombstone(key), time) {
                users.push((user, Timestamp(time)));
            }
        }
        Ok((users, next))
    }

    /// When a user was last erased.
    pub async fn erased_at(&self, user: &UserId) -> Result<Option<Timestamp>, Error> {
        let mut get = cmd("GET");
        get.arg(keys::tombstone(user)?);
        let at: Option<i64> = self.read(self.link().one(get).await?)?;
        Ok(at.map(Timestamp))
    }

    /// Raises tombstones; returns the times in force.
    pub async fn erase(&self, users: &[(UserId, Timestamp)]) -> Result<Vec<Timestamp>, Error> {
        let mut cmds = Vec::with_capacity(users.len());
        for (user, at) in users {
            let mut erase = call(Effect::Erase, &[keys::tombstone(user)?]);
            erase.arg(at.0);
            cmds.push(erase);
        }
        let answers = self.link().run(cmds, 1).await?;
        let time = |answer| self.read::<i64>(answer).map(Timestamp);
        answers.into_iter().map(time).collect()
    }
}
