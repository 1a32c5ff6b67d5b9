//! Claiming the users of a batch, one namespace at a time: [`Claims`].
//!
//! Invariant: a user is claimed only by the version of the state by which the request was found to need a list. A
//! request whose claim was stale is checked again, so that each request ends as a job, as covered, or as one of a user
//! without stored data. A request that the stored list has seen is not claimed again, also if that list is the one
//! without the model: it then waits for the model under the claim of that list. It keeps nothing between two calls: a
//! claim that an error leaves unused is replaced by the next claim of the same user.

use std::collections::BTreeMap;

use super::scorer::Scorer;
use super::scoring::{Job, Scoring};
use crate::members::error::Error;
use nearshore_core::list::document::Stage;
use nearshore_core::ports::store::{Claim, ClaimOutcome, Peek, Store};
use nearshore_core::queue::asking::Ask;
use nearshore_core::queue::claims::{Need, need};
use nearshore_core::queue::lanes::Work;
use nearshore_core::user::event::UserId;
use nearshore_core::user::trigger::Lane;

/// Claims users, and prepares their score requests by the serving snapshot.
pub(super) struct Claims;

/// What became of the requests of one namespace.
#[derive(Default)]
pub(super) struct NamespaceClaims<'a> {
    /// Users who were claimed.
    pub(super) jobs: Vec<Job>,
    /// Requests that the stored list has seen already.
    pub(super) covered: Vec<(&'a Work, Peek)>,
    /// Those of them whose list is the one without the model, and whose arm may ask it.
    pub(super) asks: Vec<Ask>,
    /// Users of whom nothing is stored: erased, or expired.
    pub(super) vacant: Vec<UserId>,
}

impl<'a> NamespaceClaims<'a> {
    /// Notes a request that the stored list has seen.
    fn cover<S: Store, A: Scorer>(&mut self, scoring: &Scoring<S, A>, work: &'a Work, peek: Peek) {
        let list = peek.list.as_ref();
        let unasked = list.filter(|list| list.stage == Stage::Mixture);
        if let Some(list) = unasked.filter(|_| scoring.may_ask(&work.request)) {
            self.asks.push(Ask {
                work: work.clone(),
                claim: list.claim,
                gain: scoring.gain(scoring.arm(&work.request), None),
            });
        }
        self.covered.push((work, peek));
    }
}

impl Claims {
    /// Claims those users of a namespace whose requests need a list.
    pub(super) async fn claim<'a, S: Store, A: Scorer>(
        &self,
        store: &S,
        scoring: &Scoring<S, A>,
        ns: &str,
        mut open: Vec<&'a Work>,
    ) -> Result<NamespaceClaims<'a>, Error> {
        let snapshot = scoring.serving().of(ns);
        let mut all = NamespaceClaims::default();
        while !open.is_empty() {
            let users: Vec<UserId> = open.iter().map(|work| work.request.user.clone()).collect();
            let peeks = store.peek(ns, &users).await?;
            let mut due = Vec::new();
            for (work, peek) in std::mem::take(&mut open).into_iter().zip(peeks) {
                let (status, epoch) = (peek.status(), scoring.epoch(&work.request));
                match need(&work.request, &work.sources, (&status, epoch)) {
                    Need::Claim => due.push((work, peek.ver)),
                    Need::Covered => all.cover(scoring, work, peek),
                    Need::Gone => all.vacant.push(work.request.user.clone()),
                }
            }
            let outcomes = claim_versions(store, ns, &due).await?;
            for ((work, _), outcome) in due.into_iter().zip(outcomes) {
                match outcome {
                    // A request may outlive an erase. There is no user left to make a list for, but perhaps an
                    // update: of a member which published the user's last list and crashed before it compared the two.
                    ClaimOutcome::Claimed(claimed) if claimed.state.is_vacant() => {
                        all.vacant.push(work.request.user.clone());
                    }
                    ClaimOutcome::Claimed(claimed) => {
                        let of = (&snapshot, Stage::Mixture);
                        all.jobs.push(scoring.prepare(work.clone(), *claimed, of));
                    }
                    // The user's state was written between peek and claim.
                    ClaimOutcome::Stale => open.push(work),
                    ClaimOutcome::NoState => all.vacant.push(work.request.user.clone()),
                }
            }
        }
        Ok(all)
    }
}

/// Claims users, each by the version of the state that was read.
async fn claim_versions<S: Store>(
    store: &S,
    ns: &str,
    due: &[(&Work, u64)],
) -> Result<Vec<ClaimOutcome>, Error> {
    if due.is_empty() {
        return Ok(Vec::new());
    }
    let claim = |(work, version): &(&Work, u64)| Claim {
        user: work.request.user.clone(),
        due: work.request.due,
        expected: *version,
    };
    let claims: Vec<Claim> = due.iter().map(claim).collect();
    Ok(store.claim(ns, &claims).await?)
}

/// Splits a batch by namespace: those with urgent requests first, then live, then backfill; within a lane by name.
pub(super) fn by_namespace(works: &[Work]) -> Vec<(&str, Vec<&Work>)> {
    let mut namespaces: BTreeMap<&str, Vec<&Work>> = BTreeMap::new();
    for work in works {
        namespaces.entry(&work.request.ns).or_default().push(work);
    }
    let mut namespaces: Vec<(&str, Vec<&Work>)> = namespaces.into_iter().collect();
    let lane = |works: &[&Work]| works.iter().map(|work| work.request.lane).min();
    // Stable, so that namespaces of one lane keep the order of their names.
    namespaces.sort_by_key(|(_, works)| lane(works).unwrap_or(Lane::Backfill));
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearshore_core::user::record::Timestamp;
    use nearshore_core::user::trigger::{Reason, Request};

    fn work(ns: &str, user: &str, lane: Lane) -> Work {
        let request = Request {
            v: 1,
            ns: ns.into(),
            user: UserId(user.into()),
            reason: Reason::Activity,
            source: None,
            time: Timestamp(0),
            due: Timestamp(0),
            lane,
            force: false,
        };
        Work {
            request,
            positions: Vec::new(),
            sources: Vec::new(),
            arrived: Timestamp(0),
            ready: Timestamp(0),
        }
    }

    #[test]
    fn namespaces_with_urgent_and_live_users_are_claimed_first() {
        let works = [
            work("a", "1", Lane::Backfill),
            work("c", "2", Lane::Live),
            work("b", "3", Lane::Live),
            work("d", "4", Lane::Backfill),
            work("d", "5", Lane::Urgent),
        ];
        let order = by_namespace(&works).into_iter().map(|(ns, works)| {
            let users = works.iter().map(|work| work.request.user.0.to_string());
            (ns, users.collect::<Vec<_>>().join(" "))
        });
        let expected = [("d", "4 5"), ("b", "3"), ("c", "2"), ("a", "1")];
        let expected = expected.map(|(ns, users)| (ns, users.to_owned()));
        assert_eq!(order.collect::<Vec<_>>(), expected);
    }
}
