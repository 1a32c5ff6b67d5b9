//! Who answers for a model: [`Answers`].
//!
//! Invariant: an answer per question, in their order. It does not know what becomes of it.

use std::sync::Arc;

use crate::engine::{self, thread::Handle};
use crate::naming::{Answer, Ask, Names};

/// Whoever answers a batch of questions: the engine's thread, or a table in the simulation.
pub trait Answers: Send + Sync {
    /// Makes `names` the catalogue, as soon as they are ready; only the first are waited for.
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
        self.offer_names(names).await
    }

    async fn generate(&self, asks: Vec<Ask>) -> Result<Vec<Answer>, engine::Error> {
        Handle::generate(self, asks).await
    }
}
