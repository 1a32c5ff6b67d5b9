//! The weights of an arm's terms, by how much of a user's history is visible.
//!
//! Invariant: every bucket names known terms only, with finite weights, and the model's weight is never negative: the
//! search's bound needs that. It does not know where weights come from.

use std::collections::BTreeMap;

use super::{DEMAND, HEAD, MODEL, Need, TERMS, term};

/// Least visible history, in distinct products bought, of each bucket.
pub const BUCKETS: [usize; 6] = [0, 1, 3, 6, 10, 20];

/// The bucket of a user with this much visible history.
pub fn bucket_of(visible: usize) -> usize {
    BUCKETS
        .iter()
        .rposition(|least| *least <= visible)
        .unwrap_or(0)
}

/// Weight per term, for each bucket of visible history, and what the model adds to a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    terms: [BTreeMap<String, f64>; BUCKETS.len()],
    gains: Gains,
}

/// What the model adds to a list in each bucket of visible history: Recall@10 with it, less that without it.
pub type Gains = [f64; BUCKETS.len()];

/// The gain of a model that was not measured: one in a hundred of a user's next products. It orders the arms of a model
/// whose gain is known beside one whose weight was set by hand, and no more.
const UNMEASURED_GAIN: f64 = 0.01;

/// Why weights cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// No term has this name.
    #[error("{name:?} is not a term; the terms are {}", known())]
    Unknown {
        /// The name.
        name: String,
    },
    /// A number that no weight can be.
    #[error("{name} = {weight}: a weight is a finite number{}", if *model { ", and the model's is at least 0" } else { "" })]
    Value {
        /// The term.
        name: String,
        /// Its weight.
        weight: f64,
        /// Whether it is the model's.
        model: bool,
    },
    /// A term whose tables only an artefact has.
    #[error("{name} needs tables that `nearshore align` makes: name its folder as `artefact`")]
    Artefact {
        /// The term.
        name: String,
    },
    /// Nothing is weighed.
    #[error("all weights are 0, so all names would score the same; make one positive")]
    Nothing,
}

fn known() -> String {
    let weighed = TERMS.iter().filter(|term| term.need() != Need::Policy);
    let names: Vec<&str> = weighed.map(|term| term.name()).collect();
    names.join(", ")
}

impl Default for Weights {
    /// Demand alone: no other term has a weight before it was measured.
    fn default() -> Self {
        Self::constant(&[(DEMAND.to_owned(), 1.0)].into())
    }
}

impl Weights {
    /// The same weights for every user.
    pub(crate) fn constant(weights: &BTreeMap<String, f64>) -> Self {
        Self {
            terms: std::array::from_fn(|_| weights.clone()),
            gains: [UNMEASURED_GAIN; BUCKETS.len()],
        }
    }

    /// Weights set by hand in an arm's configuration; without any, demand alone.
    pub fn by_hand(weights: &BTreeMap<String, f64>) -> Result<Self, WeightError> {
        if weights.is_empty() {
            return Ok(Self::default());
        }
        check(weights)?;
        let needs_artefact = |name: &&String| {
            let of_artefact = [Need::Artefact, Need::Table, Need::Head];
            term(name).is_some_and(|term| of_artefact.contains(&term.need()))
        };
        if let Some(name) = weights.keys().find(needs_artefact) {
            return Err(WeightError::Artefact { name: name.clone() });
        }
        Self::beside_artefact(weights)
    }

    /// Weights set by hand for an arm whose artefact has the tables: its own weights are not used.
    pub fn beside_artefact(weights: &BTreeMap<String, f64>) -> Result<Self, WeightError> {
        check(weights)?;
        if weights.values().all(|weight| *weight == 0.0) {
            return Err(WeightError::Nothing);
        }
        Ok(Self::constant(weights))
    }

    /// Weights of each bucket, in the order of [`BUCKETS`].
    pub fn by_bucket(terms: [BTreeMap<String, f64>; BUCKETS.len()]) -> Result<Self, WeightError> {
        terms.iter().try_for_each(check)?;
        let gains = [UNMEASURED_GAIN; BUCKETS.len()];
        Ok(Self { terms, gains })
    }

    /// The same weights with the gains that were measured.
    #[must_use]
    pub fn with_gains(self, gains: Gains) -> Self {
        Self { gains, ..self }
    }

    /// What the model is expected to add to the list of a user with this much visible history: the gain in Recall@10 that
    /// `nearshore align` measured, or [`UNMEASURED_GAIN`]; 0 where it has no weight.
    pub fn gain(&self, visible: usize) -> f64 {
        self.gain_of_bucket(bucket_of(visible))
    }

    /// The mean of [`Weights::gain`] over the buckets, for a user whose history is not known.
    pub fn mean_gain(&self) -> f64 {
        let all = (0..BUCKETS.len()).map(|bucket| self.gain_of_bucket(bucket));
        all.sum::<f64>() / BUCKETS.len() as f64
    }

    fn gain_of_bucket(&self, bucket: usize) -> f64 {
        let weight = |name: &str| self.terms[bucket].get(name).copied().unwrap_or_default();
        if weight(MODEL) > 0.0 || weight(HEAD) != 0.0 {
            self.gains[bucket]
        } else {
            0.0
        }
    }

    /// The weights for a user with this much visible history.
    pub fn at(&self, visible: usize) -> &BTreeMap<String, f64> {
        &self.terms[bucket_of(visible)]
    }

    /// Whether any user's score has a part of the model.
    pub fn use_model(&self) -> bool {
        let weights = self.terms.iter().filter_map(|weights| weights.get(MODEL));
        weights.into_iter().any(|weight| *weight > 0.0)
    }

    /// Whether any user's score has a part of a head.
    pub fn use_head(&self) -> bool {
        self.use_need(Need::Head)
    }

    /// Whether the model is asked about any user: for its own term, or for a head.
    pub fn ask_model(&self) -> bool {
        self.use_model() || self.use_head()
    }

    /// The same weights without a term.
    #[must_use]
    pub fn without(mut self, term: &str) -> Self {
        for weights in &mut self.terms {
            weights.remove(term);
        }
        self
    }

    /// Whether any user's score has a part of a term that reads vectors of texts.
    pub fn use_vectors(&self) -> bool {
        self.use_need(Need::Vectors)
    }

    /// Whether any user's score has a part of what texts mean.
    pub fn use_matcher(&self) -> bool {
        self.use_need(Need::Matcher)
    }

    /// Whether any user's score has a part of the model's table of products.
    pub fn use_table(&self) -> bool {
        self.use_need(Need::Table)
    }

    fn use_need(&self, need: Need) -> bool {
        let mut weights = self.terms.iter().flatten();
        weights.any(|(name, weight)| {
            *weight != 0.0 && term(name).is_some_and(|term| term.need() == need)
        })
    }
}

fn check(weights: &BTreeMap<String, f64>) -> Result<(), WeightError> {
    for (name, weight) in weights {
        if term(name).is_none_or(|term| term.need() == Need::Policy) {
            return Err(WeightError::Unknown { name: name.clone() });
        }
        let model = name == MODEL;
        if !weight.is_finite() || (model && *weight < 0.0) {
            let (name, weight) = (name.clone(), *weight);
            return Err(WeightError::Value {
                name,
                weight,
                model,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_history_chooses_the_bucket() {
        let buckets = [0, 1, 2, 3, 5, 6, 9, 10, 19, 20, 500].map(bucket_of);
        assert_eq!(buckets, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }

    #[test]
    fn a_model_is_worth_its_measured_gain_where_it_has_a_weight() {
        let of = |weight: f64| BTreeMap::from([(MODEL.to_owned(), weight)]);
        let terms = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0].map(of);
        let weights = Weights::by_bucket(terms).expect("known terms");
        assert_eq!(
            [0, 1].map(|visible| weights.gain(visible)),
            [0.0, UNMEASURED_GAIN]
        );
        let weights = weights.with_gains([0.5, 0.2, 0.1, 0.0, 0.0, 0.0]);
        let gains = [0, 2, 3, 50].map(|visible| weights.gain(visible));
        assert_eq!(gains, [0.0, 0.2, 0.1, 0.0]);
        assert!((weights.mean_gain() - 0.05).abs() < 1e-12);
        assert_eq!(Weights::default().mean_gain(), 0.0);
    }

    #[test]
    fn weights_by_hand_name_known_terms_that_need_no_artefact() {
        let of = |name: &str, weight: f64| Weights::by_hand(&[(name.to_owned(), weight)].into());
        assert_eq!(Weights::by_hand(&BTreeMap::new()), Ok(Weights::default()));
        assert!(of("demand", 1.0).is_ok() && of("model", 0.3).is_ok());
        assert!(of("text", 3.0).expect("a term").use_vectors());
        assert!(!of("text", 0.0).is_ok_and(|weights| weights.use_vectors()));
        assert!(!Weights::default().use_vectors());
        let table = [("table".to_owned(), 0.5)].into();
        let weights = Weights::beside_artefact(&table).expect("a term");
        assert!(weights.use_table() && !weights.use_vectors());
        let both = [("head".to_owned(), 0.5), ("model".to_owned(), 0.5)].into();
        let weights = Weights::beside_artefact(&both).expect("terms");
        assert!(weights.use_head() && weights.use_model() && weights.gain(3) > 0.0);
        let weights = weights.without(MODEL);
        assert!(weights.ask_model() && !weights.use_model() && weights.gain(3) > 0.0);
        assert!(Weights::beside_artefact(&[("demnad".to_owned(), 1.0)].into()).is_err());
        for (name, weight, expected) in [
            ("demnad", 1.0, "is not a term; the terms are demand"),
            ("model", -0.1, "the model's is at least 0"),
            ("demand", f64::NAN, "a finite number"),
            ("repeat", 1.0, "nearshore align"),
            ("table", 1.0, "nearshore align"),
            ("head", 1.0, "nearshore align"),
            ("demand", 0.0, "all weights are 0"),
        ] {
            let error = of(name, weight).expect_err(name).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
