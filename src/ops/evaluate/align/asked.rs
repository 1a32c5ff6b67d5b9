//! What a model that was asked adds to what was fitted: the weights of its own term, or of a head.
//!
//! Invariant: a term has a weight only where the gate gave it one. It does not know how a model is asked.

use std::collections::BTreeMap;

use nearshore_core::learn::model::ModelFit;
use nearshore_core::list::terms::{BUCKETS, Gains, HEAD, MODEL};

use super::Fitted;
use crate::ops::evaluate::head::{FoundHead, HeadOrder};
use crate::ops::evaluate::model::{FittedModel, ModelOptions};

/// What a model is asked for.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Its own term: a search for every name.
    Term(ModelOptions),
    /// Hidden states, for a head.
    Head(HeadOrder),
}

impl Fitted {
    /// Adds the weights of the model's own term.
    pub(super) fn add(&mut self, found: FittedModel) {
        self.weigh(MODEL, &found.fits);
        (self.model, self.references) = (found.fits, found.references);
    }

    /// Adds a head with its weights.
    pub(super) fn add_head(&mut self, found: FoundHead) {
        self.weigh(HEAD, &found.report.buckets);
        self.head = Some(found);
    }

    fn weigh(&mut self, term: &str, fits: &BTreeMap<usize, ModelFit>) {
        for (least, weights) in BUCKETS.iter().zip(&mut self.weights) {
            let weight = fits.get(least).and_then(ModelFit::weight);
            weights.extend(weight.map(|weight| (term.to_owned(), weight)));
        }
    }

    /// What the model adds in each bucket, if it was measured: no less than 0, for it is only asked where it helps.
    pub(super) fn gains(&self) -> Option<Gains> {
        let fits = match &self.head {
            Some(found) => &found.report.buckets,
            None => &self.model,
        };
        let gain = |least: usize| {
            let recall = fits.get(&least)?.recall?;
            Some(recall.mean.max(0.0))
        };
        let measured = fits.values().any(|fit| fit.weight().is_some());
        measured.then(|| BUCKETS.map(|least| gain(least).unwrap_or_default()))
    }
}
