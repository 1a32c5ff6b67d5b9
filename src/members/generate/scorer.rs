//! What generate needs of a model: [`Scorer`].
//!
//! Invariant: score responses come in the order of the score requests. It does not know what they are about.

use std::sync::Arc;

use crate::metrics;
use nearshore_core::names::scoring::{Ended, Names, ScoreRequest, ScoreResponse};
use nearshore_engine as engine;
use nearshore_engine::thread::Handle;

/// Answers batches of score requests: the engine's thread, or a table in the simulation.
pub trait Scorer: Send + Sync + 'static {
    /// Makes `names` the catalogue, as soon as they are ready; only the first names are waited for.
    fn set_names(
        &self,
        names: Arc<Names>,
    ) -> impl Future<Output = Result<(), engine::Error>> + Send;

    /// Answers each score request, in their order.
    fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> impl Future<Output = Result<Vec<ScoreResponse>, engine::Error>> + Send;
}

impl Scorer for Handle {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.offer_names(names).await
    }

    async fn generate(
        &self,
        requests: Vec<ScoreRequest>,
    ) -> Result<Vec<ScoreResponse>, engine::Error> {
        Handle::score(self, requests).await
    }
}

/// Scores a batch by one model. A prompt that is over the model's context costs no other user a list: each request is
/// then scored alone.
pub(super) async fn score_each<A: Scorer>(
    engine: &A,
    requests: Vec<ScoreRequest>,
) -> Result<Vec<ScoreResponse>, engine::Error> {
    let outcome = engine.generate(requests.clone()).await;
    let Err(engine::Error::TooLong { .. }) = outcome else {
        return outcome;
    };
    let mut responses = Vec::with_capacity(requests.len());
    for request in requests {
        match engine.generate(vec![request]).await {
            Ok(response) => responses.extend(response),
            Err(error @ engine::Error::TooLong { .. }) => {
                metrics::engine_error(&error);
                responses.push(ScoreResponse {
                    ended: Ended::TooLong,
                    ..ScoreResponse::default()
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(responses)
}
