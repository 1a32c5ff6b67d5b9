//! An arm whose model is elsewhere and writes names: [`FreeScorer`]; and the model of any arm: [`ArmScorer`].
//!
//! Invariant: whatever the server does, each request is answered, at the latest when the client's limits end; a request
//! without a usable answer has [`Ended::Failed`] and costs nobody else anything. It decides no name: what was written is
//! read, matched and filled up in `core/names/free`.

use std::sync::Arc;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Scorer;
use crate::metrics;
use nearshore_core::names::free::{Words, read, respond};
use nearshore_core::names::matcher::{Memory, Model};
use nearshore_core::names::scoring::{Ended, Names, ScoreRequest, ScoreResponse};
use nearshore_engine as engine;
use nearshore_engine::thread::Handle;
use nearshore_remote::{Client, Completion, Error};

/// The model of an arm.
pub enum ArmScorer {
    /// It runs here, in a thread of its own.
    Here(Handle),
    /// A server has it.
    Elsewhere(FreeScorer),
}

impl Scorer for ArmScorer {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        match self {
            Self::Here(handle) => handle.set_names(names).await,
            Self::Elsewhere(free) => free.set_names(names).await,
        }
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        match self {
            Self::Here(handle) => handle.generate(requests).await,
            Self::Elsewhere(free) => free.generate(requests).await,
        }
    }
}

/// Asks a server to write names, and matches them.
pub struct FreeScorer {
    arm: Arc<str>,
    client: Client,
    model: Arc<Model>,
    known: Arc<Mutex<Known>>,
}

/// The catalogue's names as the matcher knows them.
#[derive(Default)]
struct Known {
    wanted: Option<Arc<Names>>,
    built: Option<(u64, Arc<Words>)>,
    building: Option<JoinHandle<()>>,
}

impl FreeScorer {
    /// A scorer of the arm `arm`, without names yet. `model` was fitted without an encoder.
    pub fn new(arm: &str, client: Client, model: Arc<Model>) -> Self {
        Self {
            arm: arm.into(),
            client,
            model,
            known: Arc::default(),
        }
    }

    /// The client, to see whether the server answers.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Makes the matcher of the wanted names in a thread of its own, unless one is being made: batches go on with the
    /// old names, which is safe because a product keeps its index.
    fn build(&self) {
        let mut known = self.known.lock();
        let built = known.built.as_ref().map(|(version, _)| *version);
        let is_building = known.building.as_ref().is_some_and(|it| !it.is_finished());
        let Some(wanted) = known.wanted.clone().filter(|it| Some(it.version) != built) else {
            return;
        };
        if !is_building {
            let (shared, model) = (Arc::clone(&self.known), Arc::clone(&self.model));
            known.building = Some(spawn_blocking(move || {
                let words = Words::new(&wanted.names, model);
                shared.lock().built = Some((wanted.version, Arc::new(words)));
            }));
        }
    }

    /// Asks about one user.
    async fn one(&self, request: ScoreRequest) -> (ScoreResponse, Option<Error>) {
        let ended = |ended| ScoreResponse {
            ended,
            ..ScoreResponse::default()
        };
        if request.cancel.is_cancelled() {
            return (ended(Ended::Cancelled), None);
        }
        // A request about nobody only warms the model up: here it finds out whether the server is there.
        if request.permitted.is_none() {
            return match self.client.models().await {
                Ok(_) => (ended(Ended::Complete), None),
                Err(error) => (ended(Ended::Failed), Some(error)),
            };
        }
        let completion = match self.client.complete(&request.prompt.user).await {
            Ok(_) if request.cancel.is_cancelled() => return (ended(Ended::Cancelled), None),
            Ok(completion) => completion,
            Err(error) => return (ended(Ended::Failed), Some(error)),
        };
        let known = self.known.lock().built.clone();
        let Some((version, words)) = known else {
            return (ended(Ended::Failed), None);
        };
        let matched = spawn_blocking(move || respond_to(&completion, &request, &words));
        // It panics only by a fault of ours, which is one user's alone.
        let Ok(response) = matched.await else {
            return (ended(Ended::Failed), None);
        };
        if let Some(written) = &response.written {
            metrics::written(&self.arm, written);
        }
        let names = version;
        (ScoreResponse { names, ..response }, None)
    }
}

/// The response by what was written. A list on which nothing was accepted is no answer: it would be the mixture's.
fn respond_to(completion: &Completion, request: &ScoreRequest, words: &Words) -> ScoreResponse {
    let listed = read(&completion.text, completion.is_cut);
    let mut memory = Memory::default();
    let written = words.accept(&listed, request.permitted.as_deref(), &mut memory);
    let ended = match written.accepted.is_empty() {
        true => Ended::Failed,
        false => Ended::Complete,
    };
    ScoreResponse {
        ended,
        prompt_tokens: completion.prompt_tokens,
        ..respond(request, written, words.len())
    }
}

impl Scorer for FreeScorer {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        let is_first = {
            let mut known = self.known.lock();
            known.wanted = Some(names);
            known.built.is_none()
        };
        self.build();
        let building = match is_first {
            true => self.known.lock().building.take(),
            false => None,
        };
        match building {
            Some(building) => building.await.map_err(|_| engine::Error::Stopped),
            None => Ok(()),
        }
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        self.build();
        let (responses, errors): (Vec<_>, Vec<_>) =
            join_all(requests.into_iter().map(|request| self.one(request)))
                .await
                .into_iter()
                .unzip();
        let errors: Vec<Error> = errors.into_iter().flatten().collect();
        for error in &errors {
            metrics::remote_error(error);
        }
        if let Some(error) = errors.first() {
            tracing::warn!(
                arm = &*self.arm,
                users = errors.len(),
                %error,
                "the model elsewhere gave no answer; the lists without the model stay"
            );
        }
        Ok(responses)
    }
}
