//! The engine: prompts and permitted PUs in, scored PUs out. candle behind one trait, [`Model`].
//!
//! Invariant: every name returned is a permitted name of the catalogue given last, no name twice,
//! best first. It does not know users, rules or stock, only bits.

use std::path::Path;
use std::sync::Arc;

pub mod clocks;
pub mod contract;
pub mod cpu;
mod device;
pub mod formats;
mod place;
mod precision;
pub mod search;
pub mod table;
pub mod thread;

pub use place::Place;
pub use precision::{Isa, Options, Precision};
pub use search::explain::Edge;

pub use nearshore_core::names::scoring::{
    Calibration, Cancel, Ended, Names, ScoreRequest, ScoreResponse, ScoredName, Term, Values,
};
use search::index::{Indexed, Indexer};

/// What the engine can answer instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model file that cannot be used.
    #[error("{path}: {what}")]
    Load {
        /// File or folder.
        path: String,
        /// What is wrong with which tensor or key.
        what: String,
    },
    /// A prompt longer than the model's context; the template's budget should have cut it.
    #[error("prompt of {tokens} tokens is over the context of {limit}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's context.
        limit: usize,
    },
    /// candle failed.
    #[error("{what}")]
    Compute {
        /// What was computed.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine's thread is gone.
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

/// A language model over a set of names. Two implementations: candle and a table of scores.
pub trait Model: Send {
    /// Makes names ready for this model, away from its thread.
    fn indexer(&self) -> Indexer;

    /// Makes names that were made ready by [`indexer`](Self::indexer) the catalogue, at once.
    fn swap(&mut self, indexed: Indexed);

    /// Makes `names` the catalogue, here and now.
    fn set_names(&mut self, names: Arc<Names>) -> Result<(), Error> {
        let indexed = self.indexer()(names)?;
        self.swap(indexed);
        Ok(())
    }

    /// Scorer a batch, in its order. All answers are over the names set last.
    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<ScoreResponse>, Error>;

    /// How the model is called in audits and metrics.
    fn info(&self) -> Info;
}

/// What a list's audit says of the model.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Info {
    /// File or folder name.
    pub name: String,
    /// Hash of weights' header and tokenizer.
    pub revision: String,
    /// `f32`, `bf16`, ...
    pub dtype: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
}
