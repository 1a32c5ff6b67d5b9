//! Telling of lists on `recall-updates`, also after an error: [`Outbox`].
//!
//! Invariant: whoever was told of and not looked at again is looked at by the next turn, whoever owns the request by
//! then: a record that landed behind its successor's is nobody else's to find.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Generate, Scorer};
use crate::members::error::Error;
use crate::members::outbox::{current, publish_updates};
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;
use nearshore_core::user::event::UserId;

/// Users by namespace whose last record may not be what is stored.
#[derive(Default)]
pub(super) struct Outbox(Mutex<BTreeSet<(String, UserId)>>);

impl Outbox {
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

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// Tells of lists, none deletes the user's record.
    pub(super) async fn tell(
        &self,
        ns: &str,
        told: Vec<(UserId, Option<String>)>,
    ) -> Result<(), Error> {
        let outbox: Vec<(String, UserId)> = told
            .iter()
            .map(|(user, _)| (ns.to_owned(), user.clone()))
            .collect();
        self.outbox.lock().extend(outbox.iter().cloned());
        publish_updates(&self.log, &self.store, (&self.settings.topics, ns), told).await?;
        self.outbox.lock().retain(|one| !outbox.contains(one));
        Ok(())
    }

    /// Tells again what an error left open.
    pub(super) async fn settle(&self) -> Result<(), Error> {
        for (ns, users) in self.outbox.by_namespace() {
            let peeks = self.store.peek(&ns, &users).await?;
            let told = users.into_iter().zip(peeks);
            let told = told.map(|(user, peek)| (user, current(&peek)));
            self.tell(&ns, told.collect()).await?;
        }
        Ok(())
    }
}
