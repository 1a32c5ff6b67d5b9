//! From users' records to stored states: some users are planned while the ones before are written.
//!
//! Invariant: a state leaves the cache before it is planned and comes back when it is stored, so after an error nothing
//! half-written stays behind; whoever was overtaken is loaded and planned again.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::FutureExt;
use futures::future::{BoxFuture, MaybeDone, maybe_done};

use super::records::{give_back, write_of};
use super::{After, Ingest};
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::{self, FoldWrite, Folded, Store};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{Accepted, UserId};
use nearshore_core::user::plan::{Plan, Rulebook, StoredList, plan};

/// Users of one write: enough to share a round trip, few enough that the next are planned while it is made.
const AT_ONCE: usize = 64;

/// One user's records and what becomes of them.
struct Planned {
    user: UserId,
    records: Vec<Accepted>,
    plan: Plan,
}

/// Some users' plans, each with what the store answered if it was asked.
type Written = Vec<(Planned, Option<Folded>)>;
/// On its way, and its outcome kept until it is asked for.
type Writing = MaybeDone<BoxFuture<'static, Result<Written, store::Error>>>;

/// Writes the plans that change something; what the store answered to each of these.
async fn written<S: Store>(
    store: S,
    ns: String,
    mut plans: Vec<Planned>,
) -> Result<Written, store::Error> {
    let change = plans.iter_mut().filter(|planned| planned.plan.changed);
    let writes: Vec<FoldWrite> = change
        .map(|planned| write_of(&planned.user, &mut planned.plan))
        .collect();
    let outcomes = match writes.is_empty() {
        true => Vec::new(),
        false => store.fold(&ns, &writes).await?,
    };
    let mut stored = writes.into_iter().zip(outcomes);
    let settled = plans.into_iter().map(|mut planned| {
        if !planned.plan.changed {
            return (planned, None);
        }
        let (write, outcome) = stored.next().expect("an outcome for each write");
        give_back(write, &mut planned.plan);
        (planned, Some(outcome))
    });
    Ok(settled.collect())
}

impl<L: Log, S: Store> Ingest<L, S> {
    /// Some users at a time: while Redis writes these, the next are planned.
    pub(super) async fn fold_users(
        &mut self,
        mut todo: BTreeMap<UserId, Vec<Accepted>>,
        batches: &[&Batch],
        after: &mut After,
    ) -> Result<(), Error> {
        let snapshot = self.snapshot.load_full();
        while !todo.is_empty() {
            self.load(todo.keys()).await?;
            let lists = self.lists(&todo).await?;
            let mut rest = std::mem::take(&mut todo).into_iter();
            let mut before: Option<Writing> = None;
            loop {
                let some: Vec<_> = rest.by_ref().take(AT_ONCE).collect();
                let mut next = if some.is_empty() {
                    None
                } else {
                    let plans = self.plans(some, (&snapshot, &lists), batches).await?;
                    let (store, ns) = (self.store.clone(), self.settings.ns.clone());
                    Some(maybe_done(written(store, ns, plans).boxed()))
                };
                if let Some(next) = &mut next {
                    // On its way, before anything is waited for.
                    let _ = futures::poll!(next);
                }
                match before.take() {
                    Some(mut before) => {
                        (&mut before).await;
                        let outcomes = Pin::new(&mut before).take_output();
                        self.settle(outcomes.expect("it was awaited")?, &mut todo, after);
                    }
                    None if next.is_none() => break,
                    None => {}
                }
                before = next;
            }
        }
        Ok(())
    }

    async fn plans(
        &mut self,
        some: Vec<(UserId, Vec<Accepted>)>,
        (snapshot, lists): (&Snapshot, &BTreeMap<UserId, StoredList>),
        batches: &[&Batch],
    ) -> Result<Vec<Planned>, Error> {
        let mut plans = Vec::with_capacity(some.len());
        for (user, records) in some {
            // Taken out until it is stored: after an error nothing half-written stays behind.
            let (_, held) = self.cache.pop(&user).unwrap_or_default();
            self.below_end(&held, batches).await?;
            let book = Rulebook {
                snapshot,
                policy: &self.settings.policy,
                ns: &self.settings.ns,
                window: self.settings.window,
                triggers: self.settings.triggers,
                complete_since: &self.settings.complete_since,
            };
            let plan = plan(held, &records, lists.get(&user), &book);
            plans.push(Planned {
                user,
                records,
                plan,
            });
        }
        Ok(plans)
    }

    /// Takes over what is stored or changes nothing; whoever was overtaken is to be planned again.
    fn settle(
        &mut self,
        written: Written,
        todo: &mut BTreeMap<UserId, Vec<Accepted>>,
        after: &mut After,
    ) {
        for (planned, outcome) in written {
            let Planned {
                user,
                records,
                mut plan,
            } = planned;
            match outcome {
                None => self.keep(user, plan, after),
                Some(Folded::Stored { ver }) => {
                    plan.held.ver = ver;
                    self.keep(user, plan, after);
                }
                // Not in the cache any more: the next round loads it, the tombstone applied.
                Some(Folded::Stale | Folded::Erased { .. }) => {
                    metrics::state_conflicts(1);
                    todo.insert(user, records);
                }
            }
        }
    }
}
