//! Score request and score response: which names does a model rank best after a prompt?
//!
//! Values only: [`crate::list::compose`] makes requests, and the crate `nearshore_engine` answers them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fixedbitset::FixedBitSet;
use serde::{Deserialize, Serialize};

use super::head::BoundHead;
use super::written::Written;

/// A rendered prompt, chat template not yet applied.
///
/// The parts stay separate until they are tokens: no text of a user can move the border between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// The user's turn. Empty, with a start of the assistant's turn, for a text that the model continues as it is,
    /// without a chat template.
    pub user: String,
    /// The start of the assistant's turn, followed by `" " + name`; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub assistant: String,
}

impl Prompt {
    /// A text that the model continues as it is: what it reads of a product for a head is the product's name.
    pub fn of_text(text: &str) -> Self {
        Self {
            user: String::new(),
            assistant: text.to_owned(),
        }
    }
}

impl From<&str> for Prompt {
    /// A prompt whose assistant's turn starts with the name.
    fn from(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            assistant: String::new(),
        }
    }
}

/// A score request of one user.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// The rendered prompt.
    pub prompt: Prompt,
    /// Permitted PUs, by index into [`Names`]; `None` permits all.
    pub permitted: Option<Arc<FixedBitSet>>,
    /// Number of names wanted.
    pub n: usize,
    /// Score terms beside the model's. A name's score is the weighted sum of its values in all terms, the model's
    /// included.
    pub terms: Vec<Term>,
    /// Weight of the model's own term, at least 0; with 0 the model is not run.
    pub weight: f32,
    /// Calibration prompts: the mean of the model's logits over them is subtracted before its term is computed. `None`
    /// subtracts nothing.
    pub calibration: Option<Arc<Calibration>>,
    /// A head: the model's hidden state after the prompt gives one term more, the last one of the response. `None` adds
    /// nothing.
    pub head: Option<HeadAsk>,
    /// Cancels the request.
    pub cancel: Cancel,
}

/// A head with its weight.
#[derive(Clone, Debug)]
pub struct HeadAsk {
    /// Weight of its term.
    pub weight: f32,
    /// The head, bound to the names.
    pub head: Arc<BoundHead>,
}

impl Default for ScoreRequest {
    /// An empty prompt, all PUs permitted, the model's term alone.
    fn default() -> Self {
        Self {
            prompt: Prompt::default(),
            permitted: None,
            n: 20,
            terms: Vec::new(),
            weight: 1.0,
            calibration: None,
            head: None,
            cancel: Cancel::default(),
        }
    }
}

/// One score term beside the model's: it adds `weight · value` to the score of a PU.
#[derive(Clone, Debug)]
pub struct Term {
    /// Name in audits, such as `demand`.
    pub name: &'static str,
    /// Weight of the term, of any sign; with 0 it has no effect.
    pub weight: f32,
    /// Its values.
    pub values: Values,
}

/// Values of a term per PU, indexed as [`Names`]: natural-log weights, 0 where the term says nothing. They should be
/// finite; one that is not counts as the nearest finite number, and one that is no number as the least.
#[derive(Clone, Debug)]
pub enum Values {
    /// A log-weight per PU, shared by many users; the table is recognised by its address. A PU beyond its end has the
    /// table's least value: a product that is newer than the table must not lead it.
    Shared(Arc<[f32]>),
    /// Log-weights of a few PUs, in any order; 0 for all others. If a PU occurs twice, both are added.
    Sparse(Arc<[(u32, f32)]>),
    /// A log-weight per PU for this user alone; 0 for PUs beyond its end.
    Dense(Arc<[f32]>),
}

/// Calibration prompts, which stand for all users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibration {
    /// Hash of prompts, template and tokenizer: the key under which means are cached.
    pub hash: String,
    /// Rendered prompts.
    pub prompts: Vec<Prompt>,
}

/// Cancels a request from any thread; all clones share one flag.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Cancels the request: the engine stops between two waves.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the request was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The catalogue's names in PU order; a new version replaces the whole list.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Rises with each change.
    pub version: u64,
    /// Normalised names; a name's index is its PU's index.
    pub names: Vec<String>,
}

/// One name of a response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoredName {
    /// Index into [`Names`].
    pub pu: u32,
    /// Sum of the weighted terms, the model's included. It ranks the names of one user; it is not a probability.
    pub score: f32,
    /// The model's term without its weight, with the means over [`ScoreRequest::calibration`] subtracted: over all
    /// permitted names it is a log-probability. 0 if the model was not run.
    pub model: f32,
    /// Value of each term for this name without its weight, in the order of [`ScoreRequest::terms`].
    pub terms: Vec<f32>,
}

/// How a response ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ended {
    /// Every name is proven to be among the best.
    #[default]
    Complete,
    /// The request was cancelled: there are no names.
    Cancelled,
    /// The time limit of the generation passed: there are no names.
    Late,
    /// The prompt exceeds the model's context: there are no names.
    TooLong,
    /// The model gave no answer that can be used: there are no names.
    Failed,
}

/// The score response of one user.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScoreResponse {
    /// Names, best first; fewer than wanted only if fewer are permitted.
    pub named: Vec<ScoredName>,
    /// How it ended; names exist only if complete.
    pub ended: Ended,
    /// Version of the searched [`Names`].
    pub names: u64,
    /// Tokens of the prompt, template included.
    pub prompt_tokens: u32,
    /// Tokens of the prompt shared with the batch and computed once.
    pub shared_tokens: u32,
    /// Trie tokens forwarded for this user.
    pub forwarded: u32,
    /// Forward passes this user took part in.
    pub waves: u32,
    /// What the model wrote, of an arm of the mode `free`.
    pub written: Option<Arc<Written>>,
}
