//! Trains a head: what a frozen model's hidden states add to the mixture of the other terms.
//!
//! The score of a product is the dot product of two projections of low rank, of the user's hidden state and of that of
//! the product's name. The mixture's log score is an offset, so the head learns only what the mixture lacks; it begins
//! at 0, which is the mixture itself. Training stops where cases that it does not learn from, the *tune* cases, get
//! worse. Invariant: equal cases in equal order, options and seed give an equal head, bit for bit, and a head is never
//! worse than no head on the tune cases. It does not know what is shown of users, nor whether the head gets a weight:
//! see [`gate`](super::gate) and [`model`](super::model).

mod objective;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap::Random;
use crate::names::head::{Head, Origin, Projection};
use objective::{Data, Parameters, Standard};

/// A case: a user at a cut.
#[derive(Clone, Debug)]
pub struct HeadCase {
    /// Hidden state at the end of the user's prompt.
    pub hidden: Vec<f32>,
    /// Products that may be listed, ascending.
    pub products: Vec<u32>,
    /// The mixture's score of each of them.
    pub offset: Vec<f32>,
    /// Places among them of what was bought; at least one.
    pub targets: Vec<u32>,
    /// Whether it decides when to stop, and is not learned from.
    pub is_tune: bool,
}

/// How a head is trained.
#[derive(Clone, Debug)]
pub struct HeadOptions {
    /// Numbers of a key.
    pub rank: usize,
    /// Strengths with which all numbers are drawn to 0, of which the tune cases choose one.
    pub ridges: Vec<f64>,
    /// Length of a step.
    pub rate: f64,
    /// Cases of a step.
    pub batch: usize,
    /// Most passes over all cases.
    pub epochs: usize,
    /// Passes without a better result on tune cases after which training stops.
    pub patience: usize,
    /// Fewest cases to learn from.
    pub cases_min: usize,
    /// Fewest tune cases.
    pub tune_min: usize,
    /// Seed of the first numbers and of the order of cases.
    pub seed: u64,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self {
            rank: 16,
            ridges: vec![1e-4, 1e-3, 1e-2],
            rate: 0.002,
            batch: 64,
            epochs: 40,
            patience: 4,
            cases_min: 100,
            tune_min: 20,
            seed: 1,
        }
    }
}

/// Why no head can be trained.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HeadError {
    /// Too few cases to learn from.
    #[error(
        "only {found} cases to train a head on, fewer than {least}: ask about more users, or wait for a longer log"
    )]
    Cases {
        /// Number found.
        found: usize,
        /// Fewest.
        least: usize,
    },
    /// Too few cases to stop by.
    #[error(
        "only {found} tune cases, fewer than {least}: nothing would stop a head from learning its cases by heart; ask about \
         more users"
    )]
    Tune {
        /// Number found.
        found: usize,
        /// Fewest.
        least: usize,
    },
    /// Hidden states of different models, or a case without targets.
    #[error("case {case}: {what}")]
    Input {
        /// Number of the case.
        case: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The loss is no number.
    #[error(
        "the loss is {loss} in pass {epoch}: the hidden states or the mixture's scores are too large for training; nothing \
         is written"
    )]
    Loss {
        /// The loss.
        loss: f64,
        /// Number of the pass.
        epoch: usize,
    },
}

/// How training went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeadFit {
    /// Cases learned from.
    pub cases: usize,
    /// Cases that decided when to stop.
    pub tune_cases: usize,
    /// Passes of the head that is used; 0 if none was better than no head.
    pub epochs: usize,
    /// Strength with which its numbers were drawn to 0.
    pub ridge: f64,
    /// Mean log-probability of what was bought on tune cases, less that without the head, in nats.
    pub tune_nats: f64,
}

/// A trained head, before it has read names.
#[derive(Clone, Debug)]
pub struct FittedHead {
    /// How training went.
    pub fit: HeadFit,
    users: Projection,
    names: Projection,
}

impl FittedHead {
    /// The head with names that the model has read.
    pub fn head(self, origin: Origin, read: impl Iterator<Item = (String, Vec<f32>)>) -> Head {
        Head::new(origin, (self.users, self.names), read)
    }
}

/// Trains a head on cases; `names` has the hidden state of each product's name.
pub fn fit(
    names: &[Vec<f32>],
    cases: &[HeadCase],
    options: &HeadOptions,
) -> Result<FittedHead, HeadError> {
    check(names, cases, options)?;
    let learned = cases.iter().filter(|case| !case.is_tune);
    let users = Standard::of(learned.map(|case| &case.hidden[..]));
    let of_names = Standard::of(names.iter().map(Vec::as_slice));
    let data = Data::new(names, cases, (&users, &of_names));
    let (train, tune): (Vec<usize>, Vec<usize>) =
        (0..cases.len()).partition(|nth| !cases[*nth].is_tune);
    let mut best: Option<(Trained, f64)> = None;
    for ridge in &options.ridges {
        let trained = train_at(&data, (&train, &tune), *ridge, options)?;
        if best
            .as_ref()
            .is_none_or(|(best, _)| trained.nats > best.nats)
        {
            best = Some((trained, *ridge));
        }
    }
    let width = data.width();
    let none = || (Trained::none(options, width), 0.0);
    let (trained, ridge) = best.unwrap_or_else(none);
    let fit = HeadFit {
        cases: train.len(),
        tune_cases: tune.len(),
        epochs: trained.epochs,
        ridge,
        tune_nats: trained.nats,
    };
    Ok(FittedHead {
        users: users.folded(&trained.parameters.users, options.rank),
        names: of_names.folded(&trained.parameters.names, options.rank),
        fit,
    })
}

fn check(names: &[Vec<f32>], cases: &[HeadCase], options: &HeadOptions) -> Result<(), HeadError> {
    let tune = cases.iter().filter(|case| case.is_tune).count();
    let (found, least) = (cases.len() - tune, options.cases_min.max(1));
    if found < least {
        return Err(HeadError::Cases { found, least });
    }
    if tune < options.tune_min.max(1) {
        let least = options.tune_min.max(1);
        return Err(HeadError::Tune { found: tune, least });
    }
    let width = cases[0].hidden.len();
    let is_finite = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
    let same = names
        .iter()
        .all(|name| name.len() == width && is_finite(name));
    for (case, of) in cases.iter().enumerate() {
        let in_range = |targets: &[u32]| targets.iter().all(|it| (*it as usize) < of.offset.len());
        let known = of.products.iter().all(|it| (*it as usize) < names.len());
        let problems = [
            (
                !same || of.hidden.len() != width || width == 0,
                "its hidden state is not as wide as that of the names",
            ),
            (!is_finite(&of.hidden), "its hidden state is not finite"),
            (
                !is_finite(&of.offset),
                "the mixture's score of a product is not finite",
            ),
            (
                of.offset.len() != of.products.len() || !known,
                "its products are not those of the catalogue",
            ),
            (
                of.targets.is_empty() || !in_range(&of.targets),
                "nothing that may be listed was bought",
            ),
        ];
        if let Some((_, what)) = problems.into_iter().find(|(fails, _)| *fails) {
            return Err(HeadError::Input { case, what });
        }
    }
    Ok(())
}

/// The best parameters of a training.
struct Trained {
    parameters: Parameters,
    epochs: usize,
    /// Gain on tune cases over no head.
    nats: f64,
}

impl Trained {
    /// No head: the mixture alone.
    fn none(options: &HeadOptions, width: usize) -> Self {
        Self {
            parameters: Parameters::first(options.rank, width, options.seed),
            epochs: 0,
            nats: 0.0,
        }
    }
}

/// Trains until the tune cases get worse, and returns what was best for them.
fn train_at(
    data: &Data<'_>,
    (train, tune): (&[usize], &[usize]),
    ridge: f64,
    options: &HeadOptions,
) -> Result<Trained, HeadError> {
    let mut best = Trained::none(options, data.width());
    let mut now = best.parameters.clone();
    let without = data.loss(&now, tune);
    let mut steps = Adam::new(&now, options.rate);
    let mut random = Random::new(options.seed);
    let mut order = train.to_vec();
    for epoch in 1..=options.epochs {
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        for batch in order.chunks(options.batch.max(1)) {
            let (loss, gradient) = data.gradient(&now, batch, ridge);
            if !loss.is_finite() {
                return Err(HeadError::Loss { loss, epoch });
            }
            steps.step(&mut now, &gradient);
        }
        let nats = without - data.loss(&now, tune);
        if nats > best.nats {
            best = Trained {
                parameters: now.clone(),
                epochs: epoch,
                nats,
            };
        } else if epoch - best.epochs >= options.patience {
            break;
        }
    }
    Ok(best)
}

/// Steps by first and second moments of the gradient.
///
/// Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015).
struct Adam {
    rate: f64,
    count: i32,
    first: Parameters,
    second: Parameters,
}

impl Adam {
    const DECAY: (f64, f64) = (0.9, 0.999);

    fn new(like: &Parameters, rate: f64) -> Self {
        Self {
            rate,
            count: 0,
            first: like.zeros(),
            second: like.zeros(),
        }
    }

    fn step(&mut self, at: &mut Parameters, gradient: &Parameters) {
        self.count += 1;
        let (slow, slower) = Self::DECAY;
        let (of_first, of_second) = (1.0 - slow.powi(self.count), 1.0 - slower.powi(self.count));
        let moments = self.first.each_mut().zip(self.second.each_mut());
        for ((value, slope), (first, second)) in at.each_mut().zip(gradient.each()).zip(moments) {
            *first = slow * *first + (1.0 - slow) * slope;
            *second = slower * *second + (1.0 - slower) * slope * slope;
            let size = (*second / of_second).sqrt() + 1e-8;
            *value -= self.rate * *first / of_first / size;
        }
    }
}

#[cfg(test)]
mod tests;
