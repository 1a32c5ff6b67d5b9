//! Score terms: each says a log-weight of every product for one user, and the weighted sum ranks the products.
//!
//! A new term is one file here and one line in [`TERMS`]. Invariant: a term is part of a score request only if the
//! arm's weights name it with a weight other than 0, and terms keep the order of [`TERMS`], in which answers list them.
//! A term that lacks what it needs says nothing (`None`), which counts as 0 for every product.
//!
//! Source of the form: a log-linear mixture, as the conditional logit of McFadden, "Conditional Logit Analysis of
//! Qualitative Choice Behavior" (1974), which is also how `nearshore align` fits the weights.

pub mod artefact;
mod assortment;
mod bias;
mod bought;
pub mod bound;
mod cosine;
mod demand;
mod head;
mod meant;
mod merchant;
mod neighbours;
mod own;
mod reach;
mod repeat;
mod table;
mod text;
mod texts;
mod walk;
mod weeks;
mod weights;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use own::{OwnProduct, own_products};
pub use texts::{OwnText, Texts, own_texts, profile_texts};
pub use weights::{BUCKETS, Gains, WeightError, Weights, bucket_of};

use crate::list::terms::bound::Learned;
use crate::names::scoring::{Term, Values};
use crate::shop::snapshot::Snapshot;
use crate::user::record::Timestamp;

/// Name of the model's term, which the engine computes while it searches.
pub const MODEL: &str = "model";

/// Name of the term of a head, which the engine computes from the hidden state after the prompt.
pub const HEAD: &str = "head";

/// Name of the term that every arm has unless its weights say otherwise.
pub(crate) const DEMAND: &str = "demand";

/// Name of the term of the user's texts.
pub(crate) const TEXT: &str = "text";

/// Name of the term of the model's table of products.
pub const TABLE: &str = "table";

/// What a term needs to say anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The catalogue, or counts of what is bought: always there.
    Snapshot,
    /// An artefact of `nearshore align`.
    Artefact,
    /// An artefact with a product table.
    Table,
    /// Vectors of texts: of an artefact, or of a sentence encoder.
    Vectors,
    /// A matcher of the users' texts.
    Matcher,
    /// A language model.
    Model,
    /// An artefact with a head, and the language model that it was trained on.
    Head,
    /// The shop's policy: its weight is 1 in every arm, and is never fitted.
    Policy,
}

/// What terms are computed from.
#[derive(Clone, Copy)]
pub struct TermInput<'a> {
    /// The serving snapshot.
    pub snapshot: &'a Snapshot,
    /// The user's segment.
    pub segment: &'a str,
    /// What the user bought, by [`own_products`].
    pub own: &'a [OwnProduct],
    /// Time as of which the list is made.
    pub at: Timestamp,
    /// The arm's artefact, bound to the snapshot's catalogue.
    pub learned: Option<&'a Learned>,
    /// Vectors of texts, bound to the snapshot's catalogue.
    pub texts: Option<&'a Texts>,
    /// The user's texts, by [`own_texts`].
    pub own_texts: &'a [OwnText],
    /// Products that the user's searches and free texts mean, with how much; by [`crate::list::meant`].
    pub meant: &'a [(u32, f32)],
}

/// One score term.
pub trait ScoreTerm: Sync {
    /// Name in configuration, artefacts, audits and reports.
    fn name(&self) -> &'static str;

    /// Number of its definition: weights that were fitted to another one do not fit any more.
    fn version(&self) -> u32 {
        1
    }

    /// What it needs.
    fn need(&self) -> Need;

    /// Its values for one user; `None` if it has nothing to say.
    fn values(&self, input: &TermInput<'_>) -> Option<Values>;
}

/// The model's term: its values are made by the engine, name by name, while it searches.
struct ModelTerm;

impl ScoreTerm for ModelTerm {
    fn name(&self) -> &'static str {
        MODEL
    }

    fn need(&self) -> Need {
        Need::Model
    }

    fn values(&self, _: &TermInput<'_>) -> Option<Values> {
        None
    }
}

/// All terms.
pub const TERMS: &[&dyn ScoreTerm] = &[
    &demand::Demand,
    &assortment::Assortment,
    &weeks::Weeks,
    &reach::Reach,
    &reach::ReachEver,
    &repeat::Repeat,
    &bought::Bought,
    &bought::BoughtAge,
    &bought::BoughtCount,
    &bought::BoughtSku,
    &neighbours::Neighbours,
    &cosine::Cosine,
    &walk::Walk,
    &text::Text,
    &text::Typical,
    &meant::Meant,
    &table::Table,
    &bias::Bias,
    &merchant::Merchant,
    &ModelTerm,
    &head::Head,
];

/// The term of this name.
pub fn term(name: &str) -> Option<&'static dyn ScoreTerm> {
    TERMS.iter().copied().find(|term| term.name() == name)
}

/// The terms of a user's score request, beside the model's.
pub fn score_terms(weights: &BTreeMap<String, f64>, input: &TermInput<'_>) -> Vec<Term> {
    let weighted = TERMS.iter().filter_map(|term| {
        let weight = match term.need() {
            Need::Policy => 1.0,
            _ => *weights.get(term.name())?,
        };
        let values = (weight != 0.0).then(|| term.values(input))??;
        Some(Term {
            name: term.name(),
            weight: weight as f32,
            values,
        })
    });
    weighted.collect()
}

/// Values as one per product, for `len` products.
pub fn table(values: Values, len: usize) -> Arc<[f32]> {
    match values {
        Values::Shared(values) | Values::Dense(values) if values.len() == len => values,
        Values::Shared(values) | Values::Dense(values) => {
            let rest = std::iter::repeat(0.0);
            values.iter().copied().chain(rest).take(len).collect()
        }
        Values::Sparse(values) => {
            let mut table = vec![0.0; len];
            for (pu, value) in values.iter() {
                if let Some(place) = table.get_mut(*pu as usize) {
                    *place += *value;
                }
            }
            table.into()
        }
    }
}

/// The weighted sum of the terms per product, without the model's.
pub fn mixture(weights: &BTreeMap<String, f64>, input: &TermInput<'_>) -> Vec<f32> {
    let len = input.snapshot.catalogue.pus().len();
    let mut sums = vec![0.0; len];
    for term in TERMS {
        let weight = weights.get(term.name()).copied().unwrap_or_default() as f32;
        if weight != 0.0
            && let Some(values) = term.values(input)
        {
            let values = table(values, len);
            let both = sums.iter_mut().zip(values.iter());
            both.for_each(|(sum, value)| *sum += weight * value);
        }
    }
    sums
}
