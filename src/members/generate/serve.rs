//! The batches of a turn: looked at, taken, asked for, published.
//!
//! Invariant: the model is asked once for all namespaces of a batch: a call each would make live users wait for
//! the call of a backfill. Namespaces with urgent or live users are published first. While the model works, whatever can be
//! done for the batches beside it is done, so that a quick model does not wait for Redis and Kafka.

use std::collections::BTreeMap;

use super::make::Answered;
use super::{Generate, Job, Scorer, TURN_MAX, Turn};
use crate::members::error::Error;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::{Claim, ClaimOutcome, Store};
use nearshore_core::queue::claims::Need;
use nearshore_core::queue::lanes::Work;
use nearshore_core::user::event::UserId;
use nearshore_core::user::trigger::Lane;

/// A batch that was taken.
#[derive(Default)]
struct Batch<'a> {
    jobs: Vec<Job<'a>>,
    /// Users whose list covers the request.
    covered: u64,
}

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// Batch after batch: while the model answers one, the one before it is finished and published, and the next is taken.
    /// A model that is slower than it was ends the turn after [`TURN_MAX`]: says how many batches were served.
    pub(super) async fn serve(&self, batches: &[Vec<Work>]) -> Result<(Turn, usize), Error> {
        let (mut sum, mut served) = (Turn::default(), 0);
        let start = (self.settings.clock)();
        let mut batches = batches.iter();
        let (mut asked, mut next) = (None, self.claimed(batches.next()).await?);
        while let Some(claimed) = next.take() {
            served += 1;
            sum.covered += claimed.covered;
            sum.claims += claimed.jobs.len() as u64;
            let model = async {
                let _made = self.in_flight.begin(&claimed.jobs);
                self.ask(&claimed.jobs).await
            };
            let is_late = (self.settings.clock)().since(start) >= TURN_MAX;
            let beside = async {
                let published = self.publish_all(asked.take()).await?;
                let follows = if is_late { None } else { batches.next() };
                Ok::<_, Error>((published, self.claimed(follows).await?))
            };
            // Both are waited for: a generation that was begun is not called off for an error beside it.
            let (answered, beside) = futures::join!(model, beside);
            let (published, follows) = beside?;
            sum.published += published;
            asked = Some((claimed, answered));
            next = follows;
        }
        sum.published += self.publish_all(asked).await?;
        Ok((sum, served))
    }

    /// Takes a batch, namespace by namespace, those with urgent or live users first.
    async fn claimed<'a>(
        &'a self,
        works: Option<&'a Vec<Work>>,
    ) -> Result<Option<Batch<'a>>, Error> {
        let Some(works) = works else { return Ok(None) };
        let mut namespaces: BTreeMap<&str, Vec<&Work>> = BTreeMap::new();
        for work in works {
            namespaces.entry(&work.request.ns).or_default().push(work);
        }
        let mut namespaces: Vec<(&str, Vec<&Work>)> = namespaces.into_iter().collect();
        let lane = |works: &[&Work]| works.iter().map(|work| work.request.lane).min();
        // Stable: those of one lane stay in the order of their names.
        namespaces.sort_by_key(|(_, works)| lane(works).unwrap_or(Lane::Backfill));
        let mut batch = Batch::default();
        for (ns, works) in namespaces {
            let (claimed, covered) = self.take_all(ns, works).await?;
            batch.covered += covered;
            batch.jobs.extend(claimed);
        }
        Ok(Some(batch))
    }

    async fn publish_all<'a>(
        &'a self,
        asked: Option<(Batch<'a>, Vec<Answered>)>,
    ) -> Result<u64, Error> {
        let Some((Batch { jobs, .. }, answered)) = asked else {
            return Ok(0);
        };
        let finished = self.lists(jobs, answered);
        self.publisher
            .publish(&self.log, &self.store, &finished)
            .await
    }

    /// Takes those of a namespace who are due; how many are covered already.
    async fn take_all<'a>(
        &'a self,
        ns: &str,
        mut open: Vec<&'a Work>,
    ) -> Result<(Vec<Job<'a>>, u64), Error> {
        let snapshot = self.snapshot.load().of(ns);
        let (mut jobs, mut again, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        // Whoever is folded between the look and the take is looked at again.
        while !open.is_empty() {
            let users: Vec<UserId> = open.iter().map(|work| work.request.user.clone()).collect();
            let peeks = self.store.peek(ns, &users).await?;
            let mut due = Vec::new();
            for (work, peek) in std::mem::take(&mut open).into_iter().zip(peeks) {
                match self.need(work, &peek) {
                    Need::Claim => due.push((work, peek.ver)),
                    Need::Covered => again.push((work, peek)),
                    Need::Gone => gone.push(work.request.user.clone()),
                }
            }
            let claimed = self.claim(ns, &due).await?;
            for ((work, _), took) in due.into_iter().zip(claimed) {
                match took {
                    // A request may outlive an erase: then nobody is left to make a list for. Whoever crashed between
                    // publishing their last list and looking at it again has left its record behind.
                    ClaimOutcome::Claimed(claimed) if claimed.state.is_vacant() => {
                        gone.push(work.request.user.clone());
                    }
                    ClaimOutcome::Claimed(claimed) => {
                        jobs.push(self.job(work, *claimed, &snapshot))
                    }
                    ClaimOutcome::Stale => open.push(work),
                    ClaimOutcome::NoState => gone.push(work.request.user.clone()),
                }
            }
        }
        let covered = again.len() as u64;
        let (log, store) = (&self.log, &self.store);
        self.publisher.send_again(log, store, ns, again).await?;
        self.publisher.delete(log, store, ns, gone).await?;
        Ok((jobs, covered))
    }

    async fn claim(&self, ns: &str, due: &[(&Work, u64)]) -> Result<Vec<ClaimOutcome>, Error> {
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let claim = |(work, expected): &(&Work, u64)| Claim {
            user: work.request.user.clone(),
            due: work.request.due,
            expected: *expected,
        };
        let claims: Vec<Claim> = due.iter().map(claim).collect();
        Ok(self.store.claim(ns, &claims).await?)
    }
}
