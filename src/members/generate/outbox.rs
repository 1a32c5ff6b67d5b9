//! The users whose update an error may have left unsent: [`Outbox`].
//!
//! Invariant: a user stays in it from before their update is sent until the sent update is what the store holds. It
//! outlives the request: the next turn settles it whichever member owns the request by then, for nothing else would
//! find an update that landed behind its successor. It does not know what an update says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nearshore_core::user::event::UserId;

/// Users by namespace whose last update may not be what the store holds. A turn shares it, so it locks.
#[derive(Default)]
pub(super) struct Outbox(Mutex<BTreeSet<(String, UserId)>>);

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(String, UserId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds users before their updates are sent.
    pub(super) fn add(&self, ns: &str, users: &[UserId]) {
        let users = users.iter().map(|user| (ns.to_owned(), user.clone()));
        self.lock().extend(users);
    }

    /// Removes users whose updates were acknowledged and compared with the store.
    pub(super) fn remove(&self, ns: &str, users: &[UserId]) {
        let mut unsettled = self.lock();
        for user in users {
            unsettled.remove(&(ns.to_owned(), user.clone()));
        }
    }

    /// Lists the users in it, by namespace.
    pub(super) fn by_namespace(&self) -> BTreeMap<String, Vec<UserId>> {
        let mut all: BTreeMap<String, Vec<UserId>> = BTreeMap::new();
        for (ns, user) in self.lock().iter() {
            all.entry(ns.clone()).or_default().push(user.clone());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_stays_in_the_outbox_until_removed_in_the_same_namespace() {
        let outbox = Outbox::default();
        let [ann, bob] = ["ann", "bob"].map(|id| UserId(id.into()));
        outbox.add("a", &[ann.clone(), bob.clone()]);
        outbox.add("b", std::slice::from_ref(&ann));
        outbox.add("a", std::slice::from_ref(&ann));
        outbox.remove("a", std::slice::from_ref(&ann));
        let left = BTreeMap::from([("a".to_owned(), vec![bob]), ("b".to_owned(), vec![ann])]);
        assert_eq!(outbox.by_namespace(), left);
    }
}
