//! The engine: prompts and permitted products in, scored products out. candle lies behind one trait, [`Model`].
//!
//! Invariant: a response has only permitted names of the catalogue that was set last, no name twice, best first. It
//! does not know users, rules or stock: a permitted set is a set of bits.

use std::path::Path;
use std::sync::Arc;

pub mod clocks;
pub mod contract;
pub mod cpu;
mod device;
pub mod encoder;
pub mod formats;
mod heads;
pub mod hidden;
mod place;
mod precision;
pub mod search;
pub mod table;
pub mod thread;
pub mod train;
mod write;

pub use cpu::reasons::on_this_machine;
pub use formats::open::inspect;
pub use place::Place;
pub use precision::{Isa, Options, Precision};
pub use search::explain::Edge;

pub use nearshore_core::names::scoring::{
    Calibration, Cancel, Ended, Names, Prompt, ScoreRequest, ScoreResponse, ScoredName, Term,
    Values,
};
use nearshore_core::names::writing::{WriteRequest, WriteResponse};
use search::index::{Indexed, Indexer};

/// Why the engine gives no response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file or folder cannot be used.
    #[error("{path}: {what}")]
    Load {
        /// File or folder.
        path: String,
        /// The tensor or key, and what is wrong with it.
        what: String,
    },
    /// A prompt with the longest name is over the model's context; the budget of the prompt template should prevent it.
    #[error("prompt of {tokens} tokens is over the context of {limit}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's context.
        limit: usize,
    },
    /// A computation failed.
    #[error("{what}")]
    Compute {
        /// What was computed.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

impl Error {
    /// A [`Load`](Self::Load) error of the file or folder `path`.
    pub(crate) fn load(path: &Path, what: impl Into<String>) -> Self {
        Self::Load {
            path: path.display().to_string(),
            what: what.into(),
        }
    }
}

/// A language model over a set of names. Implementations: candle and a table of scores.
pub trait Model: Send {
    /// Returns a function that indexes names for this model; it may run on any thread.
    fn indexer(&self) -> Indexer;

    /// Makes names that [`indexer`](Self::indexer) indexed the catalogue of later batches.
    fn swap(&mut self, indexed: Indexed);

    /// Indexes `names` on this thread and makes them the catalogue of later batches.
    fn set_names(&mut self, names: Arc<Names>) -> Result<(), Error> {
        let indexed = self.indexer()(names)?;
        self.swap(indexed);
        Ok(())
    }

    /// Scores a batch over the names that were set last; responses are in the order of the requests.
    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<ScoreResponse>, Error>;

    /// Writes a text for each request, whatever the names are; responses are in the order of the requests, and a request
    /// has the same text alone as in a batch.
    fn write(&mut self, requests: &[WriteRequest]) -> Result<Vec<WriteResponse>, Error>;

    /// The hidden state after each prompt, which the model's own logits are made from; all have one width, and a prompt
    /// has the same alone as in a batch.
    fn hidden(&mut self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, Error>;

    /// The model's name and revision for audits and metrics.
    fn info(&self) -> Info;
}

/// The model in a list's audit.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Info {
    /// File or folder name.
    pub name: String,
    /// Hash of configuration, tokenizer and a sample of every tensor.
    pub revision: String,
    /// `f32`, `bf16`, ...
    pub dtype: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
}
