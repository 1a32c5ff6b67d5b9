//! What is noted of namespaces as a whole, in memory: as `redis/register.rs` does it.

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
        let held = &mut inner.spaces.entry(ns.into()).or_default().plan;
        let agreed = held.as_deref() == expected;
        if agreed {
            *held = Some(plan.into());
        }
        Ok(agreed)
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
