//! Register and plans of namespaces in memory, as `crates/redis/src/register.rs` keeps them in Redis.

use super::MemoryStore;
use nearshore_core::ports::keys;
use nearshore_core::ports::store::Error;

impl MemoryStore {
    pub(super) fn get_plan(&self, ns: &str) -> Result<Option<String>, Error> {
        keys::namespace(ns)?;
        let inner = self.lock();
        Ok(inner.spaces.get(ns).and_then(|space| space.plan.clone()))
    }

    pub(super) fn put_plan(
        &self,
        ns: &str,
        plan: &str,
        expected: Option<&str>,
    ) -> Result<bool, Error> {
        keys::namespace(ns)?;
        let mut inner = self.lock();
        let stored = &mut inner.spaces.entry(ns.into()).or_default().plan;
        let matches = stored.as_deref() == expected;
        if matches {
            *stored = Some(plan.into());
        }
        Ok(matches)
    }

    pub(super) fn put_registered(&self, ns: &str, note: Option<&str>) -> Result<(), Error> {
        keys::namespace(ns)?;
        let enrolled = &mut self.lock().enrolled;
        match note {
            Some(note) => enrolled.insert(ns.into(), note.into()),
            None => enrolled.remove(ns),
        };
        Ok(())
    }
}
