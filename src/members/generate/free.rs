//! An arm whose model writes names, elsewhere or here: [`FreeScorer`]; and the model of any arm: [`ArmScorer`].
//!
//! Invariant: whatever a server does, each request is answered, at the latest when the client's limits end; a request
//! without a usable answer has [`Ended::Failed`] and costs nobody else anything. It decides no name: what was written is
//! read, matched and filled up in `core/names/free`, whoever wrote it.

use std::sync::Arc;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Scorer;
use crate::metrics;
use nearshore_core::names::free::{Words, read, respond};
use nearshore_core::names::matcher::{Memory, Model};
use nearshore_core::names::scoring::{Ended, Names, ScoreRequest, ScoreResponse};
use nearshore_core::names::writing::{Decoding, WriteRequest};
use nearshore_engine as engine;
use nearshore_engine::thread::Handle;
use nearshore_remote::{Client, Error};

/// The model of an arm.
pub enum ArmScorer {
    /// It scores names.
    Scores(Handle),
    /// It writes names.
    Writes(FreeScorer),
}

impl ArmScorer {
    /// The thread of a model that runs here.
    pub fn handle(&self) -> Option<&Handle> {
        match self {
            Self::Scores(handle) => Some(handle),
            Self::Writes(free) => match &free.writer {
                Writer::Here(handle, _) => Some(handle),
                Writer::Elsewhere(_) => None,
            },
        }
    }

    /// The client of a model that is elsewhere, to see whether its server answers.
    pub fn client(&self) -> Option<&Client> {
        match self {
            Self::Scores(_) => None,
            Self::Writes(free) => match &free.writer {
                Writer::Here(..) => None,
                Writer::Elsewhere(client) => Some(client),
            },
        }
    }
}

impl Scorer for ArmScorer {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        match self {
            Self::Scores(handle) => Scorer::set_names(handle, names).await,
            Self::Writes(free) => free.set_names(names).await,
        }
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        match self {
            Self::Scores(handle) => handle.generate(requests).await,
            Self::Writes(free) => free.generate(requests).await,
        }
    }
}

/// What writes the texts of an arm.
pub enum Writer {
    /// A model that a server has.
    Elsewhere(Client),
    /// A model that runs here, and how it chooses its tokens.
    Here(Handle, Decoding),
}

/// Has names written by a model, and matches them.
pub struct FreeScorer {
    arm: Arc<str>,
    writer: Writer,
    model: Arc<Model>,
    known: Arc<Mutex<Known>>,
}

/// A text that was written about one user.
struct Text {
    /// The start of the answer in the prompt, and what follows it.
    text: String,
    is_cut: bool,
    /// How it was written: a response without names.
    told: ScoreResponse,
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
    pub fn new(arm: &str, writer: Writer, model: Arc<Model>) -> Self {
        Self {
            arm: arm.into(),
            writer,
            model,
            known: Arc::default(),
        }
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

    /// Asks a server about one user.
    async fn ask(&self, client: &Client, request: ScoreRequest) -> (ScoreResponse, Option<Error>) {
        if request.cancel.is_cancelled() {
            return (ended(Ended::Cancelled), None);
        }
        // A request about nobody only warms the model up: here it finds out whether the server is there.
        if is_about_nobody(&request) {
            return match client.models().await {
                Ok(_) => (ended(Ended::Complete), None),
                Err(error) => (ended(Ended::Failed), Some(error)),
            };
        }
        let completion = match client.complete(&request.prompt.user).await {
            Ok(_) if request.cancel.is_cancelled() => return (ended(Ended::Cancelled), None),
            Ok(completion) => completion,
            Err(error) => return (ended(Ended::Failed), Some(error)),
        };
        let text = Text {
            text: completion.text,
            is_cut: completion.is_cut,
            told: ScoreResponse {
                prompt_tokens: completion.prompt_tokens,
                ..ScoreResponse::default()
            },
        };
        (self.matched(request, text).await, None)
    }

    /// Asks a server about each user.
    async fn ask_each(&self, client: &Client, requests: Vec<ScoreRequest>) -> Vec<ScoreResponse> {
        let asked = requests
            .into_iter()
            .map(|request| self.ask(client, request));
        let (responses, errors): (Vec<_>, Vec<_>) = join_all(asked).await.into_iter().unzip();
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
        responses
    }

    /// Has a text about each user written here.
    async fn write_each(
        &self,
        (handle, decoding): (&Handle, Decoding),
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        let write = |request: &ScoreRequest| WriteRequest {
            prompt: request.prompt.clone(),
            decoding: match is_about_nobody(request) {
                true => Decoding {
                    max_tokens: 1,
                    ..decoding
                },
                false => decoding,
            },
            cancel: request.cancel.clone(),
        };
        let texts = handle.write(requests.iter().map(write).collect()).await?;
        let each = requests
            .into_iter()
            .zip(texts)
            .map(|(request, text)| async move {
                let told = ScoreResponse {
                    ended: text.ended,
                    prompt_tokens: text.prompt_tokens,
                    shared_tokens: text.shared_tokens,
                    forwarded: text.tokens,
                    waves: text.passes,
                    ..ScoreResponse::default()
                };
                if text.ended != Ended::Complete || is_about_nobody(&request) {
                    return told;
                }
                let text = Text {
                    text: request.prompt.assistant.trim_end().to_owned() + &text.text,
                    is_cut: text.is_cut,
                    told,
                };
                self.matched(request, text).await
            });
        Ok(join_all(each).await)
    }

    /// The response by what was written.
    async fn matched(&self, request: ScoreRequest, text: Text) -> ScoreResponse {
        let known = self.known.lock().built.clone();
        let Some((version, words)) = known else {
            return ended(Ended::Failed);
        };
        let matched = spawn_blocking(move || respond_to(text, &request, &words));
        // It panics only by a fault of ours, which is one user's alone.
        let Ok(response) = matched.await else {
            return ended(Ended::Failed);
        };
        if let Some(written) = &response.written {
            metrics::written(&self.arm, written);
        }
        ScoreResponse {
            names: version,
            ..response
        }
    }
}

fn ended(ended: Ended) -> ScoreResponse {
    ScoreResponse {
        ended,
        ..ScoreResponse::default()
    }
}

/// Whether a request only warms the model up.
fn is_about_nobody(request: &ScoreRequest) -> bool {
    request.permitted.is_none()
}

/// The response by what was written. A list on which nothing was accepted is no answer: it would be the mixture's.
fn respond_to(text: Text, request: &ScoreRequest, words: &Words) -> ScoreResponse {
    let listed = read(&text.text, text.is_cut);
    let mut memory = Memory::default();
    let written = words.accept(&listed, request.permitted.as_deref(), &mut memory);
    let ended = match written.accepted.is_empty() {
        true => Ended::Failed,
        false => Ended::Complete,
    };
    let ScoreResponse { named, written, .. } = respond(request, written, words.len());
    ScoreResponse {
        named,
        written,
        ended,
        ..text.told
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
        match &self.writer {
            Writer::Elsewhere(client) => Ok(self.ask_each(client, requests).await),
            Writer::Here(handle, decoding) => self.write_each((handle, *decoding), requests).await,
        }
    }
}
