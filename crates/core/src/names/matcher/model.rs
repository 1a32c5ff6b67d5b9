//! The fitted model: evidence to one calibrated probability, and theta.
//!
//! Invariant: a model that was read has the evidence of this release, finite weights, and rising steps; any other text
//! is an error. It does not know what it was fitted on.

use std::collections::BTreeSet;
use std::hash::Hasher;

use fnv::FnvHasher;
use serde::{Deserialize, Serialize};

use super::Answer;
use super::calibrate::Calibration;
use super::evidence::{COUNT, Candidate, NAMES, NONE_COUNT, NONE_NAMES};
use super::form::Form;
use super::lexicon::Lexicon;
use super::logit::chances;

/// Layout of the file.
const VERSION: u32 = 1;

/// Hashes of names that are kept: the least of all are a fair sample, which a name that is added changes little.
const NAMES_KEPT: usize = 256;

/// Weights of evidence, calibration and theta.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    version: u32,
    /// Hash of the encoder whose vectors were used, if any.
    pub encoder: Option<String>,
    /// Weight of each kind of evidence, by name.
    weights: Vec<(String, f64)>,
    calibration: Calibration,
    lexicon: Lexicon,
    /// The least calibrated probability at which a product is answered.
    pub theta: f64,
    /// The precision for which theta was chosen.
    pub precision: f64,
    /// The least hashes of the names that it was fitted for; empty in a model of before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
}

/// Why a text is not a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not the JSON of a model.
    #[error("not a model of `nearshore match --fit`: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another release, or changed by hand.
    #[error("{0}; fit it again with `nearshore match --labels FILE --fit FILE`")]
    Other(&'static str),
}

impl Model {
    /// A model of fitted parts; `weights` are in the order of the evidence of products, then of none.
    pub(super) fn new(weights: &[f64], encoder: Option<String>, calibration: Calibration) -> Self {
        let names = NAMES
            .iter()
            .chain(&NONE_NAMES)
            .map(|name| (*name).to_owned());
        Self {
            version: VERSION,
            encoder,
            weights: names.zip(weights.iter().copied()).collect(),
            calibration,
            lexicon: Lexicon::default(),
            theta: 2.0,
            precision: 1.0,
            names: Vec::new(),
        }
    }

    /// Reads a model.
    pub fn read(text: &str) -> Result<Self, ModelError> {
        let model: Self = serde_json::from_str(text)?;
        if model.version != VERSION {
            return Err(ModelError::Other("the model is of another release"));
        }
        let names = model.weights.iter().map(|(name, _)| name.as_str());
        if !names.eq(NAMES.iter().chain(&NONE_NAMES).copied()) {
            return Err(ModelError::Other(
                "the model weighs other evidence than this release has",
            ));
        }
        let steps = &model.calibration.steps;
        let rising = steps
            .windows(2)
            .all(|s| s[0].0 < s[1].0 && s[0].1 <= s[1].1);
        let probable = steps.iter().all(|step| (0.0..=1.0).contains(&step.1));
        if !model.lexicon.is_sound() {
            return Err(ModelError::Other("a probability of the lexicon is none"));
        }
        if !rising || !probable {
            return Err(ModelError::Other(
                "the calibration's steps do not rise from 0 to 1",
            ));
        }
        Ok(model)
    }

    /// The model as text; the same model gives the same text.
    pub fn write(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and texts are JSON") + "\n"
    }

    /// The same model, with a trace of the names that it was fitted for.
    #[must_use]
    pub fn fitted_for<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let hashes: BTreeSet<String> = names.into_iter().map(hash_of_name).collect();
        let names = hashes.into_iter().take(NAMES_KEPT).collect();
        Self { names, ..self }
    }

    /// The share of the names that it was fitted for which are among these; `None` for a model without a trace of them.
    pub fn known<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<f64> {
        if self.names.is_empty() {
            return None;
        }
        let hashes: BTreeSet<String> = names.into_iter().map(hash_of_name).collect();
        let known = self.names.iter().filter(|hash| hashes.contains(*hash));
        Some(known.count() as f64 / self.names.len() as f64)
    }

    /// The product that is meant, with its probability, if that is at least theta.
    pub fn accepts(&self, answer: &Answer) -> Option<(u32, f64)> {
        let (product, _) = answer.ranked.first()?;
        (answer.probability >= self.theta).then_some((*product, answer.probability))
    }

    /// All weights in the order of the evidence.
    fn values(&self) -> Vec<f64> {
        self.weights.iter().map(|(_, weight)| *weight).collect()
    }

    /// Weighs what speaks for each product.
    pub(super) fn answer(&self, candidates: &[Candidate], none: &[f64; NONE_COUNT]) -> Answer {
        let mut answer = ranked(candidates, none, &self.values());
        answer.probability = match answer.ranked.first() {
            Some((_, chance)) => self.calibration.probability(*chance),
            None => 0.0,
        };
        answer
    }

    /// The same model with a theta.
    pub(super) fn with_theta(mut self, theta: f64, precision: f64) -> Self {
        (self.theta, self.precision) = (theta, precision);
        self
    }

    /// The same model with a lexicon.
    pub(super) fn with_lexicon(self, lexicon: Lexicon) -> Self {
        Self { lexicon, ..self }
    }

    /// What words stand for.
    pub(super) fn lexicon(&self) -> &Lexicon {
        &self.lexicon
    }

    pub(super) fn calibrated(&self, chance: f64) -> f64 {
        self.calibration.probability(chance)
    }
}

/// The hash of a name, however it is spelled.
fn hash_of_name(name: &str) -> String {
    let mut hasher = FnvHasher::default();
    hasher.write(Form::of(name).spaced().as_bytes());
    format!("{:016x}", hasher.finish())
}

/// Products by their chances under weights, best first; not calibrated.
pub(super) fn ranked(
    candidates: &[Candidate],
    none: &[f64; NONE_COUNT],
    weights: &[f64],
) -> Answer {
    let rows: Vec<[f64; COUNT]> = candidates
        .iter()
        .map(|candidate| candidate.evidence)
        .collect();
    let chances = chances(&rows, none, weights);
    let products = candidates.iter().map(|candidate| candidate.product);
    let mut ranked: Vec<(u32, f64)> = products.zip(chances).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Answer {
        ranked,
        probability: 0.0,
    }
}
