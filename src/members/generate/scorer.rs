//! What generate asks of a model: [`Scorer`].
//!
//! Invariant: answers come in the order of the questions. It does not know what is asked.

use std::sync::Arc;

use crate::metrics;
use nearshore_core::names::scoring::{Ended, Names, ScoreRequest, ScoreResponse};
use nearshore_engine as engine;
use nearshore_engine::thread::Handle;

/// Whoever answers a batch of questions: the engine's thread, or a table in the simulation.
pub trait Scorer: Send + Sync {
    /// Makes `names` the catalogue, as soon as they are ready; only the first are waited for.
    fn set_names(
        &self,
        names: Arc<Names>,
    ) -> impl Future<Output = Result<(), engine::Error>> + Send;

    /// Scorer in the order of `asks`.
    fn generate(
        &self,
        asks: Vec<ScoreRequest>,
    ) -> impl Future<Output = Result<Vec<ScoreResponse>, engine::Error>> + Send;
}

impl Scorer for Handle {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        self.offer_names(names).await
    }

    async fn generate(&self, asks: Vec<ScoreRequest>) -> Result<Vec<ScoreResponse>, engine::Error> {
        Handle::generate(self, asks).await
    }
}

/// Scorer of one model. A prompt over its context costs nobody else their list: then each is asked alone.
pub(super) async fn of<A: Scorer>(
    engine: &A,
    asks: Vec<ScoreRequest>,
) -> Result<Vec<ScoreResponse>, engine::Error> {
    let outcome = engine.generate(asks.clone()).await;
    let Err(engine::Error::TooLong { .. }) = outcome else {
        return outcome;
    };
    let mut answers = Vec::with_capacity(asks.len());
    for ask in asks {
        match engine.generate(vec![ask]).await {
            Ok(answer) => answers.extend(answer),
            Err(error @ engine::Error::TooLong { .. }) => {
                metrics::engine_error(&error);
                answers.push(ScoreResponse {
                    ended: Ended::TooLong,
                    ..ScoreResponse::default()
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answers)
}
