//! From briefs to lists: what each arm's model answers, and lists of it.
//!
//! Invariant: a list per job, in their order, whatever a model does: where it gives none, the fallback stands in with the
//! reason. Asking and finishing are two steps, so that lists are finished while the model answers the next batch.

use std::time::Duration;

use super::count::{count_batch, count_dropped};
use super::{FinishedJob, Generate, Job, Scorer, scorer};
use crate::metrics;
use nearshore_core::list::compose::{ListContext, fallback, finish};
use nearshore_core::names::scoring::{Ended, ScoreRequest, ScoreResponse};
use nearshore_core::ports::log::Log;
use nearshore_core::ports::store::Store;

/// A complete answer, with the time that the model took for its batch.
pub(super) type Answered = Option<(ScoreResponse, Duration)>;

impl<L: Log, S: Store, A: Scorer> Generate<L, S, A> {
    /// What the models answer, per job.
    pub(super) async fn ask(&self, jobs: &[Job<'_>]) -> Vec<Answered> {
        let mut answered: Vec<Answered> = jobs.iter().map(|_| None).collect();
        for arm in 0..self.arms.len() {
            let mine: (Vec<usize>, Vec<ScoreRequest>) = jobs
                .iter()
                .enumerate()
                .filter(|(_, job)| job.arm == arm && !job.work.late)
                .filter_map(|(nth, job)| Some((nth, job.prepared.ask.clone()?)))
                .unzip();
            for (nth, answer) in self.ask_arm(arm, mine).await {
                answered[nth] = Some(answer);
            }
        }
        answered
    }

    /// Asks one arm's model; nothing if it fails.
    async fn ask_arm(
        &self,
        arm: usize,
        (places, asks): (Vec<usize>, Vec<ScoreRequest>),
    ) -> Vec<(usize, (ScoreResponse, Duration))> {
        if asks.is_empty() {
            return Vec::new();
        }
        let loaded = &self.arms[arm];
        let start = (self.settings.clock)();
        match scorer::of(&loaded.engine, asks).await {
            Ok(answers) => {
                let generated = (self.settings.clock)().since(start);
                count_batch(&loaded.arm.id, &answers, generated);
                self.costs.note(arm, generated, answers.len());
                let (complete, others): (Vec<_>, Vec<_>) = places
                    .into_iter()
                    .zip(answers)
                    .partition(|(_, answer)| answer.ended == Ended::Complete);
                if !others.is_empty() {
                    tracing::warn!(
                        arm = loaded.arm.id,
                        users = others.len(),
                        "late, called off or too long; fallbacks stand in"
                    );
                }
                let timed = |(nth, answer)| (nth, (answer, generated));
                complete.into_iter().map(timed).collect()
            }
            Err(error) => {
                metrics::engine_error(&error);
                tracing::error!(arm = loaded.arm.id, %error, users = places.len(), "generation failed; fallbacks stand in");
                Vec::new()
            }
        }
    }

    /// Finishes a list per job, in their order: the model's, or the fallback with its reason.
    pub(super) fn lists<'a>(
        &'a self,
        jobs: Vec<Job<'a>>,
        answered: Vec<Answered>,
    ) -> Vec<FinishedJob<'a>> {
        let contexts: Vec<ListContext> =
            (0..self.arms.len()).map(|arm| self.context(arm)).collect();
        let one = |(job, answered): (Job<'a>, Answered)| {
            let context = &contexts[job.arm];
            let (list, generated) = match answered {
                Some((response, generated)) => {
                    let list = finish(&job.prepared, &response, &job.snapshot, context);
                    count_dropped(&list);
                    (list, generated)
                }
                None => {
                    let reason = match job.work.late {
                        true => "waited too long for the model",
                        false => "generation failed",
                    };
                    let list = fallback(&job.prepared, &job.snapshot, context, reason);
                    (list, Duration::ZERO)
                }
            };
            let arm = &self.arms[job.arm].arm;
            FinishedJob {
                job,
                arm,
                list,
                generated,
            }
        };
        jobs.into_iter().zip(answered).map(one).collect()
    }
}
