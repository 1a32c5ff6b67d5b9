//! A question to a model and its answer: which of these names come next, best first?
//!
//! Values only: who asks is [`crate::compose`], who answers is [`crate::engine`].

use std::sync::Arc;

use fixedbitset::FixedBitSet;

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
