//! What is stored of namespaces as wholes: layout, register, plans, costs, and the signal that live is behind.
//!
//! Invariant: of two processes that write a plan at once, one is refused; the signal expires by itself. This module
//! does not know what the notes contain.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::cmd;

use super::RedisStore;
use super::scripts::{Effect, call};
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Error;
use nearshore_core::user::event::UserId;

impl RedisStore {
    /// Refuses a Redis that was filled in another layout, and marks an empty one with this build's layout. Call it
    /// before the first write and before a namespace is enrolled.
    pub async fn check_layout(&self) -> Result<(), Error> {
        if self.layout().await?.is_none() {
            let mut mark = cmd("SET");
            mark.arg(keys::LAYOUT).arg(keys::LAYOUT_VERSION).arg("NX");
            self.link().one(mark).await?;
            // Another process may have written its own number first.
            self.layout().await?;
        }
        Ok(())
    }

    /// The layout of this Redis, which is this build's; `None` if nothing was stored yet. Changes nothing.
    pub(super) async fn layout(&self) -> Result<Option<u32>, Error> {
        // Before the mark: a process that starts on an empty Redis writes the mark, then enrolls its namespace. In the
        // other order this one could miss the mark, see the namespace, and refuse.
        let namespaces = self.registered().await?.len();
        let mut get = cmd("GET");
        get.arg(keys::LAYOUT);
        let found: Option<String> = self.read(self.link().one(get).await?)?;
        layout_of(found.as_deref(), namespaces).map_err(|reason| Error::Refused {
            addr: self.link().addr().into(),
            reason,
        })
    }

    /// The id of this Redis; `fresh` becomes it if it has none.
    pub async fn installation(&self, fresh: &str) -> Result<String, Error> {
        let mut set = cmd("SET");
        set.arg(keys::INSTALLATION).arg(fresh).arg("NX");
        self.link().one(set).await?;
        let known = self.known_installation().await?;
        // A Redis that lost everything between the two steps is asked again by the caller's next call.
        Ok(known.unwrap_or_else(|| fresh.into()))
    }

    /// The id of this Redis, if a process ran with it before. Changes nothing.
    pub async fn known_installation(&self) -> Result<Option<String>, Error> {
        let mut get = cmd("GET");
        get.arg(keys::INSTALLATION);
        self.read(self.link().one(get).await?)
    }

    pub(super) async fn get_plan(&self, ns: &str) -> Result<Option<String>, Error> {
        let mut get = cmd("GET");
        get.arg(keys::plan(ns)?);
        self.read(self.link().one(get).await?)
    }

    pub(super) async fn put_plan(
        &self,
        ns: &str,
        plan: &str,
        expected: Option<&str>,
    ) -> Result<bool, Error> {
        // The same script as for a promotion: a text replaces the one that was read.
        let mut set = call(Effect::Active, &[keys::plan(ns)?]);
        set.arg(expected.unwrap_or_default()).arg(plan);
        self.read(self.link().one(set).await?)
    }

    pub(super) async fn registered(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut all = cmd("HGETALL");
        all.arg(keys::NAMESPACES);
        self.read(self.link().one(all).await?)
    }

    pub(super) async fn put_registered(&self, ns: &str, note: Option<&str>) -> Result<(), Error> {
        keys::namespace(ns)?;
        let put = match note {
            Some(note) => {
                let mut put = cmd("HSET");
                put.arg(keys::NAMESPACES).arg(ns).arg(note);
                put
            }
            None => {
                let mut put = cmd("HDEL");
                put.arg(keys::NAMESPACES).arg(ns);
                put
            }
        };
        self.link().one(put).await.map(drop)
    }

    pub(super) async fn get_costs(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut all = cmd("HGETALL");
        all.arg(keys::COSTS);
        self.read(self.link().one(all).await?)
    }

    pub(super) async fn put_cost(&self, arm: &str, note: &str) -> Result<(), Error> {
        let mut put = cmd("HSET");
        put.arg(keys::COSTS).arg(arm).arg(note);
        self.link().one(put).await.map(drop)
    }

    pub(super) async fn put_live_behind(&self, ttl: Duration) -> Result<(), Error> {
        self.put_signal(keys::LIVE_BEHIND, ttl).await
    }

    pub(super) async fn is_live_behind(&self) -> Result<bool, Error> {
        self.has_signal(keys::LIVE_BEHIND).await
    }

    pub(super) async fn put_history(&self, ns: &str, ttl: Duration) -> Result<(), Error> {
        self.put_signal(&keys::history(ns)?, ttl).await
    }

    pub(super) async fn has_history(&self, ns: &str) -> Result<bool, Error> {
        self.has_signal(&keys::history(ns)?).await
    }

    /// Writes a key that expires after `ttl`.
    async fn put_signal(&self, key: &str, ttl: Duration) -> Result<(), Error> {
        let ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut set = cmd("SET");
        set.arg(key).arg("1").arg("PX").arg(ms);
        self.link().one(set).await.map(drop)
    }

    async fn has_signal(&self, key: &str) -> Result<bool, Error> {
        let mut exists = cmd("EXISTS");
        exists.arg(key);
        self.read(self.link().one(exists).await?)
    }

    /// Memory of these users' keys on their primaries, in bytes, as `MEMORY USAGE` estimates it.
    pub async fn bytes_of(&self, ns: &str, users: &[UserId]) -> Result<u64, Error> {
        let mut cmds = Vec::with_capacity(users.len() * 3);
        for user in users {
            let keys = keys::user(ns, user)?;
            for key in [keys.state, keys.profile, keys.recall] {
                let mut usage = cmd("MEMORY");
                usage.arg("USAGE").arg(key);
                cmds.push(usage);
            }
        }
        self.sum(cmds, 3).await
    }

    /// Memory of the counts of these shards on their primaries, in bytes, as `MEMORY USAGE` estimates it.
    pub async fn bytes_of_counts(&self, ns: &str, shards: &[u8]) -> Result<u64, Error> {
        let mut sum = 0;
        for &shard in shards {
            let mut members = cmd("SMEMBERS");
            members.arg(keys::count_buckets(ns, shard));
            let buckets: Vec<i64> = self.read(self.link().one(members).await?)?;
            let mut names = vec![keys::count_fence(ns, shard), keys::count_buckets(ns, shard)];
            names.extend(buckets.iter().map(|b| keys::count_bucket(ns, shard, *b)));
            let usage = |key: String| {
                let mut usage = cmd("MEMORY");
                usage.arg("USAGE").arg(key);
                usage
            };
            sum += self.sum(names.into_iter().map(usage).collect(), 1).await?;
        }
        Ok(sum)
    }

    /// Sums the answers; each `per` consecutive commands have keys of one slot.
    async fn sum(&self, cmds: Vec<redis::Cmd>, per: usize) -> Result<u64, Error> {
        let mut sum = 0;
        for answer in self.link().run(cmds, per).await? {
            sum += self.read::<Option<u64>>(answer)?.unwrap_or(0);
        }
        Ok(sum)
    }
}

/// Judges what [`keys::LAYOUT`] holds, beside the number of registered namespaces.
fn layout_of(found: Option<&str>, namespaces: usize) -> Result<Option<u32>, String> {
    let wanted = keys::LAYOUT_VERSION;
    let found = match found {
        None if namespaces == 0 => return Ok(None),
        None => format!("no {} but {namespaces} registered namespaces", keys::LAYOUT),
        Some(text) if text == wanted.to_string() => return Ok(Some(wanted)),
        Some(text) => format!("{} is {text:?}", keys::LAYOUT),
    };
    Err(format!(
        "{found}: it was filled by a build with another layout, and this build reads layout {wanted} only; \
         empty this Redis, or name another database in redis.url, and fill it by `nearshore backfill`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_of_another_layout_is_refused_with_what_was_found() {
        assert_eq!(layout_of(Some("2"), 0), Ok(Some(2)));
        assert_eq!(layout_of(None, 0), Ok(None), "an empty Redis may be marked");
        for (found, namespaces, text) in [
            (Some("1"), 0, "nearshore:layout is \"1\""),
            (Some("x"), 0, "nearshore:layout is \"x\""),
            (None, 3, "no nearshore:layout but 3 registered namespaces"),
        ] {
            let reason = layout_of(found, namespaces).expect_err(text);
            assert!(reason.starts_with(text), "{reason}");
            assert!(reason.contains("nearshore backfill"), "{reason}");
        }
    }
}
