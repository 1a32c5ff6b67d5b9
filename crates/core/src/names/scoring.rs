//! A question to a model and its answer: which of these names come next, best first?
//!
//! Values only: who asks is [`crate::list::compose`], who answers is [`nearshore_engine`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fixedbitset::FixedBitSet;

/// One user's question.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// The rendered prompt, chat template not yet applied.
    pub prompt: String,
    /// Permitted PUs by index into [`Names`]; `None` permits all.
    pub permitted: Option<Arc<FixedBitSet>>,
    /// How many names, best first.
    pub n: usize,
    /// Log-linear terms beside the model's; their weighted sum is a log-weight per PU.
    pub terms: Vec<Term>,
    /// Weight of the model's own term.
    pub weight: f32,
    /// Prompts whose mean is what the model says to everyone; its term is reduced by it. `None`: by
    /// nothing.
    pub calibration: Option<Arc<Calibration>>,
    /// Whether someone has called the question off.
    pub cancel: Cancel,
}

impl Default for ScoreRequest {
    /// An empty prompt, everything permitted, the model alone.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            permitted: None,
            n: 20,
            terms: Vec::new(),
            weight: 1.0,
            calibration: None,
            cancel: Cancel::default(),
        }
    }
}

/// One leaf term of the score.
#[derive(Clone, Debug)]
pub struct Term {
    /// Name as it appears in audits: `demand`, `lift`, `repeat`.
    pub name: &'static str,
    /// Lambda, mu, ...; a term of weight 0 is as good as absent.
    pub weight: f32,
    /// What it says of each PU.
    pub values: Values,
}

/// What a term says of PUs, indexed as [`Names`].
#[derive(Clone, Debug)]
pub enum Values {
    /// A mass per PU, > 0 where permitted, whose logarithm counts: one table for many users, known
    /// again by its place in memory. With it a subtree weighs as its names together.
    Mass(Arc<[f32]>),
    /// Log-weights of a few PUs, by no order; of all others it is 0.
    Sparse(Arc<[(u32, f32)]>),
    /// A log-weight per PU for this user alone; PUs beyond its end have 0.
    Dense(Arc<[f32]>),
}

/// Eight prompts, or some, that stand for everyone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibration {
    /// Hash of prompts, template and tokenizer: by it means are kept.
    pub hash: String,
    /// Rendered prompts, chat template not yet applied.
    pub prompts: Vec<String>,
}

/// Calls a question off, from anywhere; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// The answer is no longer wanted: the engine stops between two waves.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was called off.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
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
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoredName {
    /// Index into [`Names`].
    pub pu: u32,
    /// Natural-log probability under the renormalised mixture.
    pub score: f32,
    /// Sum of the model's renormalised edge log-probabilities alone.
    pub model: f32,
    /// The same of the means over [`ScoreRequest::calibration`]: what the model says to everyone; `model - baseline` is
    /// what it says of this user. 0 without a calibration.
    pub baseline: f32,
    /// What each term says of this name, unweighted, in the order of [`ScoreRequest::terms`]: of a mass its log
    /// share of all names, of the others the log-weight.
    pub terms: Vec<f32>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Every name is proven.
    #[default]
    Complete,
    /// [`ScoreRequest::cancel`] was used: there are no names.
    Cancelled,
    /// The generation's time was over: there are no names.
    Late,
    /// The prompt is over the model's context: there are no names.
    TooLong,
}

/// One user's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreResponse {
    /// Best first; fewer than asked only if fewer are permitted.
    pub named: Vec<ScoredName>,
    /// Whether it is an answer at all.
    pub ended: Ended,
    /// Version of the [`Names`] that were searched.
    pub names: u64,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that were shared with the batch and computed once.
    pub shared_tokens: u32,
    /// Trie tokens forwarded for this user.
    pub forwarded: u32,
    /// Forward passes this user took part in.
    pub waves: u32,
}
