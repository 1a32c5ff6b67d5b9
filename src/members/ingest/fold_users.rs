//! From users' records to stored states: [`FoldUsers`].
//!
//! Invariant: a state leaves the cache before it is planned and returns when it is stored, so after an error no
//! half-written state is left there. A user that another member wrote meanwhile is loaded and planned again.

use std::collections::BTreeMap;

use super::IngestSettings;
use super::earned::{EarnedCounts, earned_by, shown_lists};
use super::effects::Effects;
use super::fences::check_fences;
use super::lists::stored_lists;
use super::states::States;
use super::write::{Planned, Write, Written};
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::list::hits::ShownList;
use nearshore_core::ports::log::{Batch, Log};
use nearshore_core::ports::store::{Folded, Store};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::event::{Accepted, UserId};
use nearshore_core::user::plan::{Plan, PlanContext, StoredList, plan};
use nearshore_core::user::record::Timestamp;

/// Users per write: enough to share a round trip, few enough that the next ones are planned during it.
const USERS_PER_WRITE: usize = 64;

/// Records by user.
pub(super) type Users = BTreeMap<UserId, Vec<Accepted>>;

/// Stored lists of users, read before the users are planned.
struct Lists {
    /// Of those whose profile may change: what it forbids is removed from the list.
    edited: BTreeMap<UserId, StoredList>,
    /// Of sampled buyers: what they bought is compared with the list.
    shown: BTreeMap<UserId, ShownList>,
}

/// What folding the users of some batches needs.
pub(super) struct FoldUsers<'a, L, S> {
    pub(super) log: &'a L,
    pub(super) store: &'a S,
    pub(super) settings: &'a IngestSettings,
    /// Records before this time are history.
    pub(super) history_before: Timestamp,
    /// One snapshot for all users of the call.
    pub(super) snapshot: &'a Snapshot,
    /// Where the records come from, with the ends of their partitions.
    pub(super) batches: &'a [&'a Batch],
    pub(super) states: &'a mut States,
    pub(super) effects: &'a mut Effects,
    pub(super) earned: &'a mut EarnedCounts,
}

impl<L: Log, S: Store> FoldUsers<'_, L, S> {
    /// Folds until every user is stored or unchanged.
    pub(super) async fn run(mut self, mut users: Users) -> Result<(), Error> {
        while !users.is_empty() {
            users = self.pass(users).await?;
        }
        Ok(())
    }

    /// Folds each user once and returns those that another member wrote meanwhile. While the store writes some users,
    /// the next ones are planned.
    async fn pass(&mut self, users: Users) -> Result<Users, Error> {
        let (store, ns) = (self.store, &self.settings.ns);
        let (loaded, shown) = futures::join!(
            self.states.load(store, ns, users.keys()),
            shown_lists(store, self.settings, self.history_before, &users),
        );
        loaded?;
        let lists = Lists {
            edited: stored_lists(store, ns, &users).await?,
            shown,
        };
        let mut overtaken = Users::new();
        let mut users = users.into_iter();
        let mut previous: Option<Write> = None;
        loop {
            let chunk: Vec<_> = users.by_ref().take(USERS_PER_WRITE).collect();
            let current = match chunk.is_empty() {
                true => None,
                false => {
                    let plans = self.plan(chunk, &lists).await?;
                    Some(Write::start(store, ns, plans).await)
                }
            };
            match std::mem::replace(&mut previous, current) {
                Some(write) => self.settle(write.finish().await?, &mut overtaken),
                None if previous.is_none() => return Ok(overtaken),
                None => {}
            }
        }
    }

    async fn plan(
        &mut self,
        users: Vec<(UserId, Vec<Accepted>)>,
        lists: &Lists,
    ) -> Result<Vec<Planned>, Error> {
        let rulebook = PlanContext {
            snapshot: self.snapshot,
            policy: &self.settings.policy,
            ns: &self.settings.ns,
            window: self.settings.window,
            triggers: self.settings.triggers,
            history_before: self.history_before,
            units_max: self.settings.units_max,
            complete_since: &self.settings.complete_since,
        };
        let mut plans = Vec::with_capacity(users.len());
        for (user, records) in users {
            let loaded = self.states.take(&user);
            check_fences(self.log, &loaded, self.batches).await?;
            let plan = plan(loaded, &records, lists.edited.get(&user), &rulebook);
            let earned = lists
                .shown
                .get(&user)
                .map(|list| earned_by(list, &records, &plan, self.snapshot, self.history_before));
            plans.push(Planned {
                user,
                records,
                plan,
                earned,
            });
        }
        Ok(plans)
    }

    /// Accepts plans that are stored or change nothing; the other users are to be planned again.
    fn settle(&mut self, written: Written, overtaken: &mut Users) {
        for (planned, outcome) in written {
            let Planned {
                user,
                records,
                mut plan,
                earned,
            } = planned;
            match outcome {
                None => self.accept(user, &records, plan),
                Some(Folded::Stored { ver }) => {
                    plan.held.ver = ver;
                    self.accept(user, &records, plan);
                    if let Some((kind, earned)) = earned {
                        self.earned.collect(kind, earned);
                    }
                }
                // Its state is not in the cache: the next pass loads it, with the tombstone applied.
                Some(Folded::Stale | Folded::Erased { .. }) => {
                    metrics::state_conflicts(1);
                    overtaken.insert(user, records);
                }
            }
        }
    }

    fn accept(&mut self, user: UserId, records: &[Accepted], mut plan: Plan) {
        let stored = std::mem::take(&mut plan.held);
        self.effects.collect(&user, records, plan);
        self.states.put(user, stored);
    }
}
