//! What generate asks of a model: [`Answers`].
//!
//! Invariant: answers come in the order of the questions. It does not know what is asked.

use std::sync::Arc;

use crate::engine;
use crate::engine::thread::Handle;
use crate::naming::{Answer, Ask, Names};

/// Whoever answers a batch of questions: the engine's thread, or a table in the simulation.
pub trait Answers: Send + Sync {
    /// Makes `names` the catalogue.
    fn set_names(
        &self,
        names: Arc<Names>,
    ) -> impl Future<Output = Result<(), engine::Error>> + Send;

    /// Answers in the order of `asks`.
    fn generate(
        &self,
        asks: Vec<Ask>,
    ) -> impl Future<Output = Result<Vec<Answer>, engine::Error>> + Send;
}

impl Answers for Handle {
    async fn set_names(&self, names: Arc<Names>) -> Result<(), engine::Error> {
        Handle::set_names(self, names).await
    }

    async fn generate(&self, asks: Vec<Ask>) -> Result<Vec<Answer>, engine::Error> {
        Handle::generate(self, asks).await
    }
}
