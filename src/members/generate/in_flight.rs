//! Whose lists are being made, so that nobody goes on making one for a user who was erased meanwhile: [`InFlight`].
//!
//! Invariant: it only spares work. What is published is decided by the erased_at in the store, whatever is called off here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Job;
use nearshore_core::names::scoring::Cancel;
use nearshore_core::ports::store::{self, Store};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;

/// How often it is looked whether one of them was erased.
pub const STORE_CHECK_EVERY: Duration = Duration::from_secs(1);

/// One user's list on its way.
struct One {
    ns: String,
    user: UserId,
    /// Life that was taken: a later one is another user.
    erased_at: Timestamp,
    cancel: Cancel,
}

/// Lists on their way, for somebody who looks after them while the role waits for its model.
#[derive(Clone)]
pub struct InFlight<S> {
    store: S,
    all: Arc<Mutex<Vec<One>>>,
}

/// Until it is dropped, these lists are on their way.
pub(super) struct FinishedList<'a>(&'a Mutex<Vec<One>>);

impl Drop for FinishedList<'_> {
    fn drop(&mut self) {
        locked(self.0).clear();
    }
}

fn locked(all: &Mutex<Vec<One>>) -> MutexGuard<'_, Vec<One>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Store> InFlight<S> {
    pub(super) fn new(store: S) -> Self {
        Self {
            store,
            all: Arc::default(),
        }
    }

    /// The lists of these are on their way now.
    pub(super) fn begin(&self, jobs: &[Job<'_>]) -> FinishedList<'_> {
        let one = |job: &Job<'_>| {
            let ask = job.prepared.ask.as_ref()?;
            Some(One {
                ns: job.work.request.ns.clone(),
                user: job.work.request.user.clone(),
                erased_at: job.claimed.state.erased_at,
                cancel: ask.cancel.clone(),
            })
        };
        *locked(&self.all) = jobs.iter().filter_map(one).collect();
        FinishedList(&self.all)
    }

    /// Calls off the lists of those who were erased since they were taken; how many.
    ///
    /// # Errors
    /// The store's; nobody more is called off then.
    pub async fn look(&self) -> Result<u64, store::Error> {
        let mut spaces: BTreeMap<String, Vec<(UserId, Timestamp, Cancel)>> = BTreeMap::new();
        for one in locked(&self.all).iter() {
            let known = spaces.entry(one.ns.clone()).or_default();
            known.push((one.user.clone(), one.erased_at, one.cancel.clone()));
        }
        let mut gone = 0;
        for (ns, known) in spaces {
            let users: Vec<UserId> = known.iter().map(|(user, ..)| user.clone()).collect();
            let held = self.store.load(&ns, &users).await?;
            for ((_, erased_at, cancel), held) in known.into_iter().zip(held) {
                if held.state.erased_at > erased_at && !cancel.is_cancelled() {
                    cancel.cancel();
                    gone += 1;
                }
            }
        }
        Ok(gone)
    }

    /// [`Self::look`], again and again; it never ends. Beside a turn, which it must not outlive.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(STORE_CHECK_EVERY).await;
            match self.look().await {
                Ok(0) => {}
                Ok(users) => tracing::info!(users, "erased meanwhile: their lists are called off"),
                // The turn has the same trouble, and tells of it.
                Err(error) => tracing::debug!(%error, "who was erased is not known"),
            }
        }
    }
}
