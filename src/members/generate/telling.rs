//! Telling of lists on `recall-updates`, also after an error: [`Owed`].
//!
//! Invariant: whoever was told of and not looked at again is looked at by the next turn, whoever owns the request by
//! then: a record that landed behind its successor's is nobody else's to find.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Answers, Generate};
use crate::members::error::Error;
use crate::members::outbox::{current, tell_lists};
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;
use nearshore_core::user::event::UserId;

/// Users by namespace whose last record may not be what is stored.
#[derive(Default)]
pub(super) struct Owed(Mutex<BTreeSet<(String, UserId)>>);

impl Owed {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(String, UserId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_namespace(&self) -> BTreeMap<String, Vec<UserId>> {
        let mut all: BTreeMap<String, Vec<UserId>> = BTreeMap::new();
        for (ns, user) in self.lock().iter() {
            all.entry(ns.clone()).or_default().push(user.clone());
        }
        all
    }
}

impl<L: Log, S: Store, A: Answers> Generate<L, S, A> {
    /// Tells of lists, none deletes the user's record.
    pub(super) async fn tell(
        &self,
        ns: &str,
        told: Vec<(UserId, Option<String>)>,
    ) -> Result<(), Error> {
        let owed: Vec<(String, UserId)> = told
            .iter()
            .map(|(user, _)| (ns.to_owned(), user.clone()))
            .collect();
        self.owed.lock().extend(owed.iter().cloned());
        tell_lists(&self.log, &self.store, (&self.settings.topics, ns), told).await?;
        self.owed.lock().retain(|one| !owed.contains(one));
        Ok(())
    }

    /// Tells again what an error left open.
    pub(super) async fn settle(&self) -> Result<(), Error> {
        for (ns, users) in self.owed.by_namespace() {
            let peeks = self.store.peek(&ns, &users).await?;
            let told = users.into_iter().zip(peeks);
            let told = told.map(|(user, peek)| (user, current(&peek)));
            self.tell(&ns, told.collect()).await?;
        }
        Ok(())
    }
}
