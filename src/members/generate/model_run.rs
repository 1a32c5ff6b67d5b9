//! One question to the models, beside the turns: [`ModelRun`].
//!
//! Invariant: it advances only while it is polled, and loses nothing when a poll is given up, so that turns may look
//! whether it is done. It stays in hand until its lists are published. It knows neither store nor log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::scoring::{FinishedJob, Job, TimedResponse};
use nearshore_core::queue::lanes::Work;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Partition;

/// What the models answered.
#[derive(Default)]
pub(super) struct Answers {
    /// The complete score responses, a place per job.
    pub(super) responses: Vec<Option<TimedResponse>>,
    /// Place of each arm that was asked, the time that its model took, and for how many users.
    pub(super) spent: Vec<(usize, Duration, usize)>,
}

/// One question to the models. It owns the requests of its users until it is done.
pub(super) struct ModelRun {
    jobs: Vec<Job>,
    /// Never locked: the mutex makes it shareable between threads, because turns borrow the member that owns it.
    answers: Mutex<BoxFuture<'static, Answers>>,
    answered: Option<Answers>,
    /// The lists, once the answers are in; their jobs are no longer in `jobs`.
    lists: Option<Vec<FinishedJob>>,
}

impl ModelRun {
    /// Asks; nothing happens before the first poll.
    pub(super) fn new(jobs: Vec<Job>, answers: BoxFuture<'static, Answers>) -> Self {
        Self {
            jobs,
            answers: Mutex::new(answers),
            answered: None,
            lists: None,
        }
    }

    /// Waits until the models have answered. May be given up and called again.
    pub(super) async fn wait(&mut self) {
        if self.answered.is_none() && self.lists.is_none() {
            let answers = self.answers.get_mut();
            self.answered = Some(answers.unwrap_or_else(PoisonError::into_inner).await);
        }
    }

    /// Whether the models have answered. Does not wait.
    pub(super) fn is_answered(&mut self) -> bool {
        self.wait().now_or_never().is_some()
    }

    /// Makes the lists by `finish`, once, and returns them; `None` while the models have not answered.
    pub(super) fn lists(
        &mut self,
        finish: impl FnOnce(Vec<Job>, Answers) -> Vec<FinishedJob>,
    ) -> Option<&[FinishedJob]> {
        if let Some(answers) = self.answered.take() {
            self.lists = Some(finish(std::mem::take(&mut self.jobs), answers));
            self.drop_revoked();
        }
        self.lists.as_deref()
    }

    /// The requests of its users.
    pub(super) fn works(&self) -> impl Iterator<Item = &Work> {
        let finished = self.lists.iter().flatten().map(|list| &list.job.work);
        self.jobs.iter().map(|job| &job.work).chain(finished)
    }

    /// Forgets positions of revoked partitions, and lists without a position left: their new owner makes them. An update
    /// of such a list could land behind the new owner's, and nobody would find it if this process then died.
    pub(super) fn revoke(&mut self, partitions: &[Partition]) {
        let finished = self
            .lists
            .iter_mut()
            .flatten()
            .map(|list| &mut list.job.work);
        let works = self
            .jobs
            .iter_mut()
            .map(|job| &mut job.work)
            .chain(finished);
        for work in works {
            work.positions
                .retain(|it| !partitions.contains(&it.partition));
        }
        self.drop_revoked();
    }

    /// Drops finished lists of revoked requests. Those that the models are answering are dropped when they are finished,
    /// because answers are found by their places.
    fn drop_revoked(&mut self) {
        if let Some(lists) = &mut self.lists {
            lists.retain(|list| !list.job.work.positions.is_empty());
        }
    }

    /// Takes a user's finished list out, and hands the requests back.
    pub(super) fn take(&mut self, user: &UserId) -> Vec<Work> {
        let Some(lists) = &mut self.lists else {
            return Vec::new();
        };
        let theirs = lists.extract_if(.., |list| list.job.work.request.user == *user);
        theirs.map(|list| list.job.work).collect()
    }
}
