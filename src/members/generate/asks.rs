//! The model's part of a turn: which users it is asked about, and what becomes of its answers.
//!
//! Invariant: a request leaves the queue only when the model's list is published, or its refusal is reported and what
//! is stored is sent again. It makes no list without the model.

use std::collections::BTreeMap;
use std::time::Duration;

use super::count::count_running;
use super::model_run::ModelRun;
use super::scorer::Scorer;
use super::scoring::Job;
use super::{Generate, TURN_MAX};
use crate::members::error::Error;
use crate::metrics::Refused;
use nearshore_core::list::document::Stage;
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::{Claimed, Peek, Store};
use nearshore_core::queue::asking::Ask;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::state::LoadedUser;

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// While the model has answered, asks it about the next users and then publishes the lists of its answers, so that
    /// a quick model waits neither for Redis nor for Kafka. Ends when a user is due, whose list needs no model. Returns
    /// how many lists were published.
    pub(super) async fn advance_model(&mut self, now: Timestamp) -> Result<u64, Error> {
        let (mut published, start) = (0, (self.clock)());
        loop {
            self.ask_next(now).await?;
            published += self.publish_answered().await?;
            let is_answered = self.run.as_mut().is_some_and(ModelRun::is_answered);
            let clock = (self.clock)();
            let is_due = self.next_due(clock) == Some(Duration::ZERO);
            if !is_answered || is_due || clock.since(start) >= TURN_MAX {
                return Ok(published);
            }
        }
    }

    /// Takes the model's answers, to be published, and asks it about the next users.
    pub(super) async fn ask_next(&mut self, now: Timestamp) -> Result<(), Error> {
        if self.answered.is_none() && self.run.as_mut().is_some_and(ModelRun::is_answered) {
            self.answered = self.run.take();
        }
        self.ask(now).await?;
        self.end_refused().await?;
        // The first look hands the question to the model, which then works beside what follows.
        let _ = self.run.as_mut().is_some_and(ModelRun::is_answered);
        Ok(())
    }

    /// Asks the model about those who wait for it and are worth most, unless it is still answering.
    async fn ask(&mut self, now: Timestamp) -> Result<(), Error> {
        self.queue.release(now);
        if self.run.is_some() || self.queue.pick(now).is_empty() {
            return Ok(());
        }
        self.store = self.checkpoints.store(&self.log).await?;
        let stored = self.stored_of_picked(now).await?;
        let mut jobs = Vec::new();
        for (ask, stored) in self.queue.take_picked().into_iter().zip(stored) {
            match self.job_of(&ask, stored) {
                Ok(job) => jobs.push(job),
                Err(why) => self.queue.refuse(ask.work, why),
            }
        }
        if !jobs.is_empty() {
            jobs.sort_by(|one, other| one.work.request.ns.cmp(&other.work.request.ns));
            let run = self.scoring.ask(jobs);
            count_running(run.works());
            self.run = Some(run);
        }
        Ok(())
    }

    /// What is stored of the users that the model is asked about next, in their order.
    async fn stored_of_picked(&mut self, now: Timestamp) -> Result<Vec<(LoadedUser, Peek)>, Error> {
        let picked = self.queue.pick(now);
        let mut stored = vec![(LoadedUser::default(), Peek::default()); picked.len()];
        let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, ask) in picked.iter().enumerate() {
            places.entry(&ask.work.request.ns).or_default().push(place);
        }
        for (ns, places) in places {
            let of = |place: &usize| picked[*place].work.request.user.clone();
            let users: Vec<UserId> = places.iter().map(of).collect();
            let (loaded, peeks) =
                futures::try_join!(self.store.load(ns, &users), self.store.peek(ns, &users))?;
            for ((place, loaded), peek) in places.into_iter().zip(loaded).zip(peeks) {
                stored[place] = (loaded, peek);
            }
        }
        Ok(stored)
    }

    /// A user's score request with the model, by the state as it is now.
    ///
    /// Invariant: the list is of the newest claim, which is read with the state. Under an earlier claim it could have
    /// seen what a list of a later one has not, and offsets that a list has seen never fall. The owner of a later claim
    /// may have died before it asked, so a later claim does not end the request.
    fn job_of(&self, ask: &Ask, (loaded, peek): (LoadedUser, Peek)) -> Result<Job, Refused> {
        if loaded.state.is_vacant() {
            return Err(Refused::Gone);
        }
        let by_model = peek.list.filter(|list| list.stage == Stage::Model);
        if by_model.is_some_and(|list| list.claim >= loaded.claim) {
            return Err(Refused::Superseded);
        }
        let claimed = Claimed {
            state: loaded.state,
            claim: loaded.claim,
            pending: loaded.activity.pending,
        };
        let snapshot = self.scoring.serving().of(&ask.work.request.ns);
        let of = (&snapshot, Stage::Model);
        let job = self.scoring.prepare(ask.work.clone(), claimed, of);
        match &job.prepared.ask {
            _ if !job.prepared.asks_model => Err(Refused::NoWeight),
            Some(_) => Ok(job),
            None => Err(Refused::Failed),
        }
    }

    /// Publishes the lists that the model has answered.
    async fn publish_answered(&mut self) -> Result<u64, Error> {
        let Some(run) = &mut self.answered else {
            return Ok(0);
        };
        self.store = self.checkpoints.store(&self.log).await?;
        let scoring = &self.scoring;
        let made = run.lists(|jobs, answers| scoring.with_model(jobs, answers));
        let finished = made.unwrap_or_default();
        let published = self
            .publisher
            .publish(&self.log, &self.store, finished)
            .await?;
        for finished in finished {
            match &finished.list {
                Some(_) => self.queue.done(&finished.job.work),
                None => self
                    .queue
                    .refuse(finished.job.work.clone(), Refused::Failed),
            }
        }
        self.answered = None;
        count_running(self.run.iter().flat_map(ModelRun::works));
        Ok(published)
    }

    /// Ends the requests that got no list of the model. What is stored of their users is sent again: another member may
    /// have published the model's list and crashed before its update.
    async fn end_refused(&mut self) -> Result<(), Error> {
        let mut users: BTreeMap<&str, Vec<UserId>> = BTreeMap::new();
        for (work, _) in self.queue.refused() {
            let of_ns = users.entry(&work.request.ns).or_default();
            of_ns.push(work.request.user.clone());
        }
        for (ns, users) in users {
            let peeks = self.store.peek(ns, &users).await?;
            let (stored, vacant): (Vec<_>, Vec<_>) = users
                .into_iter()
                .zip(peeks)
                .partition(|(_, peek)| peek.list.is_some());
            self.publisher
                .send_stored(&self.log, &self.store, ns, stored)
                .await?;
            let vacant = vacant.into_iter().map(|(user, _)| user);
            self.delete(ns, vacant.collect()).await?;
        }
        self.queue.end_refused();
        Ok(())
    }
}
