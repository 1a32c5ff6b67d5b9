//! The engine: prompts and permitted PUs in, scored PUs out. candle behind one trait, [`Model`].
//!
//! Invariant: every name returned is a permitted name of the catalogue given last, no name twice,
//! best first. It does not know users, rules or stock, only bits.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

mod attention;
pub mod constrained;
pub mod contract;
mod folder;
mod forward;
mod gguf;
mod kernel;
mod kv;
mod linear;
mod load;
pub mod table;
pub mod text;
pub mod thread;
pub mod try_names;

/// One user's question.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The rendered prompt, chat template not yet applied.
    pub prompt: String,
    /// Permitted PUs by index into [`Names`]; `None` permits all.
    pub permitted: Option<Arc<FixedBitSet>>,
    /// How many names, best first.
    pub n: usize,
    /// Log-linear terms beside the model's: per term a weight and a non-negative mass per PU
    /// (a demand, a lift); indexed as [`Names`]. Renormalised at each branching node.
    pub terms: Vec<Term>,
    /// Weight of the model's own term.
    pub weight: f32,
}

/// One leaf term of the score.
#[derive(Clone, Debug)]
pub struct Term {
    /// Name as it appears in audits: `demand`, `lift`, `repeat`.
    pub name: &'static str,
    /// Exponent (lambda, mu, ...).
    pub weight: f32,
    /// Mass per PU, `[names]`, > 0 where permitted.
    pub mass: Arc<[f32]>,
}

/// The catalogue's names in PU order; a new version is swapped in whole.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Rises with each change.
    pub version: u64,
    /// Normalised names; the index is the PU's index.
    pub names: Vec<String>,
}

/// One name of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Index into [`Names`].
    pub pu: u32,
    /// Natural-log probability under the renormalised mixture.
    pub score: f32,
    /// Sum of the model's renormalised edge log-probabilities alone.
    pub model: f32,
    /// The same of each term alone, in the order of [`Ask::terms`].
    pub terms: Vec<f32>,
}

/// One user's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Best first; fewer than asked only if fewer are permitted.
    pub named: Vec<Named>,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that were shared with the batch and computed once.
    pub shared_tokens: u32,
    /// Trie tokens forwarded for this user.
    pub forwarded: u32,
    /// Forward passes this user took part in.
    pub waves: u32,
}

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

/// A language model over a set of names. Two implementations: candle and a table of scores.
pub trait Model: Send {
    /// Makes `names` the catalogue; builds the trie.
    fn set_names(&mut self, names: Arc<Names>) -> Result<(), Error>;

    /// Answers a batch, in its order. All answers are over the names set last.
    fn generate(&mut self, asks: &[Ask]) -> Result<Vec<Answer>, Error>;

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
