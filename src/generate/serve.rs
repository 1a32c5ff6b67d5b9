//! One batch: looked at, taken, asked for, published.
//!
//! Invariant: the model is asked once for all namespaces of a batch: a call each would make live users wait for
//! the call of a backfill. Namespaces with urgent or live users are published first.

use std::collections::BTreeMap;

use super::{Answers, Generate, Job, Listed, Turn};
use crate::event::UserId;
use crate::ingest::Error;
use crate::lanes::Work;
use crate::log::Log;
use crate::store::{Store, Take, Took};
use crate::takes::Need;
use crate::trigger::Lane;

impl<L: Log, S: Store, A: Answers> Generate<L, S, A> {
    pub(super) async fn serve(&self, works: &[Work]) -> Result<Turn, Error> {
        let mut namespaces: BTreeMap<&str, Vec<&Work>> = BTreeMap::new();
        for work in works {
            namespaces.entry(&work.request.ns).or_default().push(work);
        }
        let mut namespaces: Vec<(&str, Vec<&Work>)> = namespaces.into_iter().collect();
        let lane = |works: &[&Work]| works.iter().map(|work| work.request.lane).min();
        // Stable: those of one lane stay in the order of their names.
        namespaces.sort_by_key(|(_, works)| lane(works).unwrap_or(Lane::Backfill));
        let (mut sum, mut jobs, mut parts) = (Turn::default(), Vec::new(), Vec::new());
        for (ns, works) in namespaces {
            let (taken, covered) = self.take_all(ns, works).await?;
            sum.covered += covered;
            sum.takes += taken.len() as u64;
            parts.push((ns, taken.len()));
            jobs.extend(taken);
        }
        let made = self.aloft.begin(&jobs);
        let mut lists = self.make(&jobs).await.into_iter();
        drop(made);
        let mut rest = &jobs[..];
        for (ns, count) in parts {
            let (own, others) = rest.split_at(count);
            let made: Vec<Listed> = lists.by_ref().take(count).collect();
            sum.published += self.publish(ns, own, made).await?;
            rest = others;
        }
        Ok(sum)
    }

    /// Takes those of a namespace who are due; how many are covered already.
    async fn take_all<'a>(
        &self,
        ns: &str,
        mut open: Vec<&'a Work>,
    ) -> Result<(Vec<Job<'a>>, u64), Error> {
        let shop = self.shop.load().of(ns);
        let (mut jobs, mut again, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        // Whoever is folded between the look and the take is looked at again.
        while !open.is_empty() {
            let users: Vec<UserId> = open.iter().map(|work| work.request.user.clone()).collect();
            let peeks = self.store.peek(ns, &users).await?;
            let mut due = Vec::new();
            for (work, peek) in std::mem::take(&mut open).into_iter().zip(peeks) {
                match self.need(work, &peek) {
                    Need::Take => due.push((work, peek.ver)),
                    Need::Covered => again.push((work, peek)),
                    Need::Gone => gone.push((work.request.user.clone(), None)),
                }
            }
            let taken = self.take(ns, &due).await?;
            for ((work, _), took) in due.into_iter().zip(taken) {
                match took {
                    // A request may outlive an erase: then nobody is left to make a list for. Whoever crashed between
                    // publishing their last list and looking at it again has left its record behind.
                    Took::Taken(taken) if taken.state.is_vacant() => {
                        gone.push((work.request.user.clone(), None));
                    }
                    Took::Taken(taken) => jobs.push(self.job(work, *taken, &shop)),
                    Took::Stale => open.push(work),
                    Took::NoState => gone.push((work.request.user.clone(), None)),
                }
            }
        }
        let covered = again.len() as u64;
        self.tell_again(ns, again).await?;
        self.tell(ns, gone).await?;
        Ok((jobs, covered))
    }

    async fn take(&self, ns: &str, due: &[(&Work, u64)]) -> Result<Vec<Took>, Error> {
        if due.is_empty() {
            return Ok(Vec::new());
        }
        let take = |(work, expected): &(&Work, u64)| Take {
            user: work.request.user.clone(),
            due: work.request.due,
            expected: *expected,
        };
        let takes: Vec<Take> = due.iter().map(take).collect();
        Ok(self.store.take(ns, &takes).await?)
    }
}
