//! From claimed users to finished lists, by the model of each user's arm: [`Scoring`].
//!
//! Invariant: each job becomes a list without the model, in the order of the jobs. A list with the model is made only
//! of a complete score response; whatever a model does, the list without it stays. It does not know what the store
//! holds, nor where lists go.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::FutureExt;

use super::cost::UserCosts;
use super::count::{count_batch, count_dropped};
use super::in_flight::InFlight;
use super::model_run::{Answers, ModelRun};
use super::ranking::BoundRanking;
use super::scorer::{Scorer, score_each};
use super::user_texts::UserTexts;
use super::{GenerateSettings, LoadedArm};
use crate::members::error::Error;
use crate::metrics;
use nearshore_core::list::compose::{
    ClaimedUser, FinishedList, ListContext, PreparedRequest, fallback, finish, prepare,
};
use nearshore_core::list::document::{Model, Source, Stage};
use nearshore_core::list::prompt::{Arm, Calibrations};
use nearshore_core::names::scoring::{Ended, Names, ScoreRequest, ScoreResponse};
use nearshore_core::names::sum::best;
use nearshore_core::ports::store::{Claimed, Store};
use nearshore_core::queue::lanes::Work;
use nearshore_core::shop::arms::{arm_of, arms_for};
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::user::record::Timestamp;
use nearshore_core::user::trigger::Request;
use nearshore_engine::Info;

/// The arms with their models, what a user costs them, and the lists that they are making.
pub(super) struct Scoring<S, A> {
    /// Never empty. A question to the models outlives the turn that asks it, so it shares them.
    arms: Arc<[LoadedArm<A>]>,
    /// Configurations of `arms`, in the same order, for the hash of users.
    configs: Vec<Arm>,
    settings: GenerateSettings,
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// The serving snapshot when names were last handed to the engines.
    synced: Arc<Snapshot>,
    /// Version of the names that all engines have.
    names_version: Option<u64>,
    /// What each arm ranks by, bound to the catalogue of those names.
    rankings: Vec<BoundRanking>,
    user_texts: UserTexts,
    costs: UserCosts,
    in_flight: InFlight<S>,
}

/// A claimed user on the way to a list.
pub(super) struct Job {
    pub(super) work: Work,
    /// Serving snapshot with the demand of the user's namespace.
    pub(super) snapshot: Arc<Snapshot>,
    /// Place of the user's arm.
    pub(super) arm: usize,
    pub(super) claimed: Claimed,
    pub(super) prepared: PreparedRequest,
    /// When the user was claimed, by the clock.
    pub(super) claimed_at: Timestamp,
}

/// A complete score response of a job, with the time that the model took for the batch.
pub(super) struct TimedResponse {
    response: ScoreResponse,
    generated: Duration,
}

/// A job with its finished list, of the model or a fallback.
pub(super) struct FinishedJob {
    pub(super) job: Job,
    /// Id and epoch of the user's arm.
    pub(super) arm: (String, u64),
    /// `None` if the model left none: the list without it stays.
    pub(super) list: Option<FinishedList>,
    /// Time of the model for the batch; zero without it.
    pub(super) generated: Duration,
}

impl FinishedJob {
    pub(super) fn ns(&self) -> &str {
        &self.job.work.request.ns
    }
}

/// A score request for each set of calibration prompts, or one without any.
fn warming(calibrations: &Calibrations) -> Vec<ScoreRequest> {
    let request = ScoreRequest {
        prompt: "warm".into(),
        n: 1,
        ..ScoreRequest::default()
    };
    let sets = calibrations.sets().map(|set| ScoreRequest {
        calibration: Some(Arc::clone(set)),
        ..request.clone()
    });
    let requests: Vec<ScoreRequest> = sets.collect();
    match requests.is_empty() {
        true => vec![request],
        false => requests,
    }
}

impl<S: Store, A: Scorer> Scoring<S, A> {
    /// Scoring by these arms, of which there must be one at least. The engines have no names yet.
    pub(super) fn new(
        store: S,
        snapshot: Arc<ArcSwap<Snapshot>>,
        mut arms: Vec<LoadedArm<A>>,
        settings: GenerateSettings,
    ) -> Self {
        // Taken from the arms, so that an artefact's memory is freed when another takes its place.
        let first =
            |loaded: &mut LoadedArm<A>| BoundRanking::new(std::mem::take(&mut loaded.ranking));
        Self {
            rankings: arms.iter_mut().map(first).collect(),
            configs: arms.iter().map(|loaded| loaded.arm.clone()).collect(),
            costs: UserCosts::new(arms.len()),
            arms: arms.into(),
            user_texts: UserTexts::new(settings.texts.clone()),
            settings,
            synced: snapshot.load_full(),
            snapshot,
            names_version: None,
            in_flight: InFlight::new(store),
        }
    }

    pub(super) fn costs(&self) -> &UserCosts {
        &self.costs
    }

    /// Cancels the lists of users who were erased since they were claimed.
    pub(super) async fn cancel_erased(&self) {
        self.in_flight.cancel_erased().await;
    }

    /// What the model of a user's arm is expected to add in a second of its time, by how much of the user's history is
    /// visible; by the mean of all users where that is not known. Only the order of users depends on it.
    pub(super) fn gain(&self, arm: usize, visible: Option<usize>) -> f64 {
        let weights = self.rankings[arm].terms().0;
        let gain = visible.map_or_else(|| weights.mean_gain(), |visible| weights.gain(visible));
        let cost = self.costs.of_arm(arm).as_secs_f64();
        if cost > 0.0 { gain / cost } else { gain }
    }

    /// Whether the model of the user's arm may have a part in a list, however much history is visible.
    pub(super) fn may_ask(&self, request: &Request) -> bool {
        self.rankings[self.arm(request)].terms().0.ask_model()
    }

    /// Writes the arms' costs per user to the store, now and then.
    pub(super) async fn write_costs(&mut self, store: &S, now: Timestamp) -> Result<(), Error> {
        self.costs.write(store, &self.configs, now).await
    }

    /// Hands the catalogue's names to the engines when they changed. A failure leaves an engine its old names: indices
    /// are stable, so that its answers are still right, and the next turn tries again.
    pub(super) async fn sync_names(&mut self) {
        let snapshot = self.snapshot.load_full();
        self.synced = snapshot.clone();
        self.user_texts.sync(&snapshot.catalogue).await;
        let version = snapshot.catalogue.names_version();
        if self.names_version == Some(version) {
            self.renew();
            return;
        }
        let names = Arc::new(Names {
            version,
            names: snapshot.catalogue.names(),
        });
        for loaded in self.arms.iter() {
            if let Err(error) = loaded.engine.set_names(names.clone()).await {
                metrics::engine_error(&error);
                tracing::error!(
                    arm = loaded.arm.id,
                    version,
                    %error,
                    "engine did not load the catalogue's names; it keeps the old ones; next try in the next turn"
                );
                return;
            }
        }
        self.names_version = Some(version);
        for (ranking, loaded) in self.rankings.iter_mut().zip(self.arms.iter()) {
            ranking.bind(loaded, &snapshot.catalogue);
        }
    }

    /// Takes what was renewed since the last turn.
    fn renew(&mut self) {
        for (ranking, loaded) in self.rankings.iter_mut().zip(self.arms.iter()) {
            ranking.renew(loaded, &self.synced.catalogue);
        }
    }

    /// The snapshot to claim users by: the newest one whose names the engines have. By a newer one, a user would be
    /// permitted only products that the engines do not know yet, and get no list of the model.
    pub(super) fn serving(&self) -> Arc<Snapshot> {
        let newest = self.snapshot.load_full();
        match Some(newest.catalogue.names_version()) == self.names_version {
            true => newest,
            false => self.synced.clone(),
        }
    }

    /// Asks each model once, beside the lists that need none, so that the first user of a model does not wait for cold
    /// caches nor for its calibration prompts.
    pub(super) fn warm(&self) -> ModelRun {
        let arms = Arc::clone(&self.arms);
        let requests = self.rankings.iter();
        let requests: Vec<Vec<ScoreRequest>> = requests
            .map(|ranking| warming(ranking.calibrations()))
            .collect();
        let answers = async move {
            for (loaded, requests) in arms.iter().zip(requests) {
                if let Err(error) = loaded.engine.generate(requests).await {
                    metrics::engine_error(&error);
                    tracing::warn!(
                        arm = loaded.arm.id,
                        %error,
                        "model failed its first score request; it is asked again about the first users"
                    );
                }
            }
            Answers::default()
        };
        ModelRun::new(Vec::new(), answers.boxed())
    }

    /// Epoch of the arm that would make the list.
    pub(super) fn epoch(&self, request: &Request) -> u64 {
        self.arms[self.arm(request)].arm.epoch
    }

    /// Place of the user's arm; without any share the first arm serves all.
    pub(super) fn arm(&self, request: &Request) -> usize {
        let arms = arms_for(&request.ns, &self.configs);
        let arm = arm_of(&request.user.0, &self.settings.arm_seed, &arms);
        arm.and_then(|arm| self.configs.iter().position(|known| known.id == arm.id))
            .unwrap_or(0)
    }

    fn context(&self, arm: usize) -> ListContext<'_> {
        let loaded = &self.arms[arm];
        let Info {
            name,
            revision,
            dtype,
            device,
        } = loaded.info.clone();
        let ranking = &self.rankings[arm];
        let (weights, learned) = ranking.terms();
        ListContext {
            arm: &loaded.arm,
            weights,
            learned,
            texts: ranking.texts(),
            meaning: self.user_texts.context(),
            template: &loaded.template,
            model: Model {
                name,
                revision,
                dtype,
                device,
            },
            calibrations: ranking.calibrations().clone(),
            count: &*loaded.count,
            needs: &self.settings.needs,
            selection: &self.settings.selection,
            candidates: self.settings.candidates,
        }
    }

    /// Prepares the score request of a user for a list of one stage, by the state just read.
    pub(super) fn prepare(
        &self,
        work: Work,
        claimed: Claimed,
        (snapshot, stage): (&Arc<Snapshot>, Stage),
    ) -> Job {
        let arm = self.arm(&work.request);
        let user = ClaimedUser {
            request: &work.request,
            state: &claimed.state,
            claim: claimed.claim,
        };
        let prepared = prepare(&user, (snapshot, stage), &self.context(arm));
        for rule in prepared.unreadable_rules() {
            metrics::rule_unknown(rule);
        }
        if stage == Stage::Mixture {
            metrics::texts_read(prepared.text_counts());
        }
        let without = prepared.without_vector();
        metrics::texts_without_vector(&self.configs[arm].id, without.len());
        if let Some(new_texts) = &self.arms[arm].new_texts {
            new_texts.values(without);
        }
        Job {
            work,
            snapshot: Arc::clone(snapshot),
            arm,
            prepared,
            claimed,
            claimed_at: (self.settings.clock)(),
        }
    }

    /// Makes the lists without a model, one for each job, in their order.
    pub(super) fn mixture(&self, jobs: Vec<Job>) -> Vec<FinishedJob> {
        let contexts: Vec<ListContext> =
            (0..self.arms.len()).map(|arm| self.context(arm)).collect();
        let one = |job: Job| {
            let context = &contexts[job.arm];
            let ranks = |ask: &&ScoreRequest| ask.terms.iter().any(|term| term.weight != 0.0);
            let list = match job.prepared.ask.as_ref().filter(ranks) {
                Some(ask) => {
                    let products = job.snapshot.catalogue.pus().len();
                    finish(&job.prepared, &best(ask, products), &job.snapshot, context)
                }
                // An arm that ranks by the model alone.
                None => fallback(
                    &job.prepared,
                    &job.snapshot,
                    context,
                    "no list of the model yet",
                ),
            };
            count_dropped(&list);
            self.finished(job, Some(list), Duration::ZERO)
        };
        jobs.into_iter().map(one).collect()
    }

    fn finished(&self, job: Job, list: Option<FinishedList>, generated: Duration) -> FinishedJob {
        let arm = &self.arms[job.arm].arm;
        FinishedJob {
            arm: (arm.id.clone(), arm.epoch),
            job,
            list,
            generated,
        }
    }

    /// Asks the models: each arm's once, for its users.
    pub(super) fn ask(&self, jobs: Vec<Job>) -> ModelRun {
        let in_flight = self.in_flight.begin(&jobs);
        let of_arm = |arm| {
            let asks = jobs
                .iter()
                .enumerate()
                .filter(move |(_, job)| job.arm == arm);
            let asks = asks.filter_map(|(place, job)| Some((place, job.prepared.ask.clone()?)));
            let (places, requests): (Vec<usize>, Vec<ScoreRequest>) = asks.unzip();
            (arm, places, requests)
        };
        let questions: Vec<_> = (0..self.arms.len()).map(of_arm).collect();
        let (users, arms, clock) = (jobs.len(), Arc::clone(&self.arms), self.settings.clock);
        let answers = async move {
            let _in_flight = in_flight;
            let mut answers = Answers {
                responses: (0..users).map(|_| None).collect(),
                spent: Vec::new(),
            };
            for (arm, places, requests) in questions {
                if requests.is_empty() {
                    continue;
                }
                let (start, users) = (clock(), requests.len());
                let responses = score_arm(&arms[arm], requests, clock).await;
                if !responses.is_empty() {
                    answers.spent.push((arm, clock().since(start), users));
                }
                for (place, response) in places.into_iter().zip(responses) {
                    answers.responses[place] = response;
                }
            }
            answers
        };
        ModelRun::new(jobs, answers.boxed())
    }

    /// Makes the lists of what the models answered. A job without a complete answer, or of whose names none may be
    /// offered, has no list.
    pub(super) fn with_model(&self, jobs: Vec<Job>, answers: Answers) -> Vec<FinishedJob> {
        for (arm, busy, users) in answers.spent {
            self.costs.note(arm, busy, users);
        }
        let one = |(job, scored): (Job, Option<TimedResponse>)| {
            let made = scored.map(|scored| {
                let context = self.context(job.arm);
                let list = finish(&job.prepared, &scored.response, &job.snapshot, &context);
                count_dropped(&list);
                (list, scored.generated)
            });
            let made = made.filter(|(list, _)| list.document.source == Source::Model);
            let (list, generated) = made.unzip();
            self.finished(job, list, generated.unwrap_or_default())
        };
        jobs.into_iter().zip(answers.responses).map(one).collect()
    }
}

/// Asks one arm's model; nothing at all if it fails.
async fn score_arm<A: Scorer>(
    loaded: &LoadedArm<A>,
    requests: Vec<ScoreRequest>,
    clock: fn() -> Timestamp,
) -> Vec<Option<TimedResponse>> {
    let users = requests.len();
    let start = clock();
    let responses = match score_each(&loaded.engine, requests).await {
        Ok(responses) => responses,
        Err(error) => {
            metrics::engine_error(&error);
            tracing::error!(arm = loaded.arm.id, %error, users, "scoring failed; the lists without the model stay");
            return Vec::new();
        }
    };
    let generated = clock().since(start);
    count_batch(&loaded.arm.id, &responses, generated);
    // What fails at once says nothing of what an answer costs; a text without a name on it took its time.
    let failed_at_once = |it: &ScoreResponse| it.ended == Ended::Failed && it.waves == 0;
    if responses.iter().all(failed_at_once) {
        return Vec::new();
    }
    let is_complete = |response: &ScoreResponse| response.ended == Ended::Complete;
    let incomplete = responses.iter().filter(|it| !is_complete(it)).count();
    if incomplete > 0 {
        tracing::warn!(
            arm = loaded.arm.id,
            users = incomplete,
            "score requests ended early (cancelled, prompt too long, or no usable answer); the lists without the model stay"
        );
    }
    let one = |response| {
        is_complete(&response).then_some(TimedResponse {
            response,
            generated,
        })
    };
    responses.into_iter().map(one).collect()
}
