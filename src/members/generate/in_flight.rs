//! The lists that are being made, to be cancelled when their users are erased: [`InFlight`].
//!
//! Invariant: it only saves work. Whether a list is published is decided by the `erased_at` in the store, whatever is
//! cancelled here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::scoring::Job;
use nearshore_core::names::scoring::Cancel;
use nearshore_core::ports::store::{self, Store};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

/// How often the store should be asked whether one of the users was erased.
pub const ERASE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// One list that is being made.
struct Entry {
    ns: String,
    user: UserId,
    /// `erased_at` of the claimed state: a later one is of another user under the same id.
    erased_at: Timestamp,
    cancel: Cancel,
}

/// The lists in flight.
pub(super) struct InFlight<S> {
    store: S,
    entries: Arc<Mutex<Vec<Entry>>>,
}

/// Removes the lists from those in flight when it is dropped.
pub(super) struct Guard(Arc<Mutex<Vec<Entry>>>);

impl Drop for Guard {
    fn drop(&mut self) {
        locked(&self.0).clear();
    }
}

fn locked(entries: &Mutex<Vec<Entry>>) -> MutexGuard<'_, Vec<Entry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Store> InFlight<S> {
    pub(super) fn new(store: S) -> Self {
        Self {
            store,
            entries: Arc::default(),
        }
    }

    /// Puts the lists of these jobs in flight, until the guard is dropped.
    pub(super) fn begin(&self, jobs: &[Job]) -> Guard {
        let entry = |job: &Job| {
            let request = job.prepared.ask.as_ref()?;
            Some(Entry {
                ns: job.work.request.ns.clone(),
                user: job.work.request.user.clone(),
                erased_at: job.claimed.state.erased_at,
                cancel: request.cancel.clone(),
            })
        };
        *locked(&self.entries) = jobs.iter().filter_map(entry).collect();
        Guard(Arc::clone(&self.entries))
    }

    /// Cancels the lists of users who were erased since they were claimed. After a store error no more are cancelled.
    pub(super) async fn cancel_erased(&self) {
        match self.cancel().await {
            Ok(0) => {}
            Ok(users) => {
                tracing::info!(
                    users,
                    "users were erased while their lists were made; the lists are cancelled"
                );
            }
            // The next turn meets the same error, and reports it.
            Err(error) => {
                tracing::debug!(%error, "erased users could not be read; next try in {ERASE_CHECK_EVERY:?}");
            }
        }
    }

    async fn cancel(&self) -> Result<u64, store::Error> {
        let mut namespaces: BTreeMap<String, Vec<(UserId, Timestamp, Cancel)>> = BTreeMap::new();
        for entry in locked(&self.entries).iter() {
            let lists = namespaces.entry(entry.ns.clone()).or_default();
            lists.push((entry.user.clone(), entry.erased_at, entry.cancel.clone()));
        }
        let mut cancelled = 0;
        for (ns, lists) in namespaces {
            let users: Vec<UserId> = lists.iter().map(|(user, ..)| user.clone()).collect();
            let loaded = self.store.load(&ns, &users).await?;
            for ((_, erased_at, cancel), loaded) in lists.into_iter().zip(loaded) {
                if loaded.state.erased_at > erased_at && !cancel.is_cancelled() {
                    cancel.cancel();
                    cancelled += 1;
                }
            }
        }
        Ok(cancelled)
    }
}
