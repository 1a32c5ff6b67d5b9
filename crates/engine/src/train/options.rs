//! What is trained and how.
//!
//! Values only. Invariant: options that [`TuneOptions::check`] passes can be computed. It does not know models.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use crate::formats::geometry::Part;

/// A product of a layer that LoRA can change.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    Display,
    EnumString,
    VariantNames,
    JsonSchema,
)]
#[allow(missing_docs)] // Each is the projection of that name.
pub enum Target {
    #[serde(rename = "q_proj")]
    #[strum(serialize = "q_proj")]
    Query,
    #[serde(rename = "k_proj")]
    #[strum(serialize = "k_proj")]
    Key,
    #[serde(rename = "v_proj")]
    #[strum(serialize = "v_proj")]
    Value,
    #[serde(rename = "o_proj")]
    #[strum(serialize = "o_proj")]
    Output,
    #[serde(rename = "gate_proj")]
    #[strum(serialize = "gate_proj")]
    Gate,
    #[serde(rename = "up_proj")]
    #[strum(serialize = "up_proj")]
    Up,
    #[serde(rename = "down_proj")]
    #[strum(serialize = "down_proj")]
    Down,
}

impl Target {
    /// Every product.
    pub const ALL: [Self; 7] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// What PEFT and `transformers` call it.
    pub(super) fn module(self) -> String {
        self.to_string()
    }

    /// Its tensor.
    pub(super) fn part(self, layer: usize) -> Part {
        match self {
            Self::Query => Part::Query(layer),
            Self::Key => Part::Key(layer),
            Self::Value => Part::Value(layer),
            Self::Output => Part::Output(layer),
            Self::Gate => Part::Gate(layer),
            Self::Up => Part::Up(layer),
            Self::Down => Part::Down(layer),
        }
    }

    /// The bias that some models add to it.
    pub(super) fn bias(self, layer: usize) -> Option<Part> {
        match self {
            Self::Query => Some(Part::QueryBias(layer)),
            Self::Key => Some(Part::KeyBias(layer)),
            Self::Value => Some(Part::ValueBias(layer)),
            Self::Output => Some(Part::OutputBias(layer)),
            Self::Gate | Self::Up | Self::Down => None,
        }
    }
}

/// Two small matrices beside each of some products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lora {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// The product of both is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Which products have them.
    pub targets: Vec<Target>,
    /// The first layer that has them; training is faster where the layers before it are left alone.
    pub first_layer: usize,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 12,
            alpha: 24.0,
            targets: Target::ALL.to_vec(),
            first_layer: 0,
        }
    }
}

impl Lora {
    pub(super) fn has(&self, target: Target, layer: usize) -> bool {
        layer >= self.first_layer && self.targets.contains(&target)
    }

    pub(super) fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// Which numbers of a model are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Trained {
    /// An adapter; the model stays as it is.
    Lora(Lora),
    /// All of them.
    Full,
}

/// How a model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TuneOptions {
    /// Which numbers are trained.
    pub trained: Trained,
    /// Weight of the model's path score beside the mixture's.
    pub weight: f64,
    /// Products drawn from the mixture for the normaliser of a case.
    pub samples: usize,
    /// Most products of a case whose normaliser is exact: all of them, none drawn.
    pub exact_max: usize,
    /// Most steps.
    pub steps: usize,
    /// Cases of a step.
    pub batch: usize,
    /// Length of the longest step.
    pub rate: f64,
    /// Steps until the rate is reached; it falls by a cosine to a tenth after that.
    pub warm_up: usize,
    /// Greatest length of a step's gradient; longer ones are shortened to it.
    pub clip: f64,
    /// How much of each number a step of rate 1 takes away.
    pub decay: f64,
    /// Steps from one look at the tune cases to the next, which also writes a checkpoint.
    pub checkpoint_every: usize,
    /// Looks without a better result after which training stops.
    pub patience: usize,
    /// Seed of first numbers, order of cases and draws.
    pub seed: u64,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self {
            trained: Trained::Lora(Lora::default()),
            weight: 1.0,
            samples: 64,
            exact_max: 128,
            steps: 600,
            batch: 8,
            rate: 2e-4,
            warm_up: 30,
            clip: 1.0,
            decay: 0.01,
            checkpoint_every: 50,
            patience: 4,
            seed: 1,
        }
    }
}

impl TuneOptions {
    /// What cannot be computed; `None` if all can.
    pub(super) fn problem(&self, layers: usize) -> Option<String> {
        let positive = [
            ("samples", self.samples),
            ("steps", self.steps),
            ("batch", self.batch),
            ("checkpoint_every", self.checkpoint_every),
            ("patience", self.patience),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Some(format!("{name} is 0; it must be at least 1"));
        }
        let above = [
            ("weight", self.weight),
            ("rate", self.rate),
            ("clip", self.clip),
        ];
        for (name, value) in above {
            if !(value.is_finite() && value > 0.0) {
                return Some(format!("{name} is {value}; it must be above 0"));
            }
        }
        if !(0.0..1.0).contains(&(self.decay * self.rate)) {
            return Some(format!(
                "decay is {}; it must be at least 0 and below 1 / rate",
                self.decay
            ));
        }
        let Trained::Lora(lora) = &self.trained else {
            return None;
        };
        if lora.rank == 0 || lora.targets.is_empty() {
            return Some("an adapter of rank 0, or of no products, changes nothing".into());
        }
        if !(lora.alpha.is_finite() && lora.alpha > 0.0) {
            return Some(format!("alpha is {}; it must be above 0", lora.alpha));
        }
        (lora.first_layer >= layers).then(|| {
            format!(
                "first_layer is {}, and the model has {layers} layers",
                lora.first_layer
            )
        })
    }

    /// The rate of step `nth`, counted from 0.
    pub(super) fn rate_at(&self, nth: usize) -> f64 {
        if nth < self.warm_up {
            return self.rate * (nth + 1) as f64 / self.warm_up as f64;
        }
        let rest = self.steps.saturating_sub(self.warm_up).max(1);
        let done = ((nth - self.warm_up) as f64 / rest as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.rate * (0.1 + 0.9 * cosine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_greatest_and_falls_to_a_tenth() {
        let options = TuneOptions {
            rate: 1.0,
            warm_up: 4,
            steps: 104,
            ..TuneOptions::default()
        };
        let rates = [0, 1, 3, 4, 54, 104, 500].map(|nth| options.rate_at(nth));
        let expected = [0.25, 0.5, 1.0, 1.0, 0.55, 0.1, 0.1];
        for (rate, expected) in rates.iter().zip(expected) {
            assert!((rate - expected).abs() < 1e-9, "{rates:?}");
        }
    }

    #[test]
    fn options_that_cannot_be_computed_are_refused_by_name() {
        let plain = TuneOptions::default();
        let lora = |lora| TuneOptions {
            trained: Trained::Lora(lora),
            ..TuneOptions::default()
        };
        let cases = [
            (
                TuneOptions {
                    steps: 0,
                    ..plain.clone()
                },
                "steps",
            ),
            (
                TuneOptions {
                    rate: f64::NAN,
                    ..plain.clone()
                },
                "rate",
            ),
            (
                TuneOptions {
                    decay: -1.0,
                    ..plain.clone()
                },
                "decay",
            ),
            (
                lora(Lora {
                    rank: 0,
                    ..Lora::default()
                }),
                "rank 0",
            ),
            (
                lora(Lora {
                    alpha: 0.0,
                    ..Lora::default()
                }),
                "alpha",
            ),
            (
                lora(Lora {
                    first_layer: 3,
                    ..Lora::default()
                }),
                "first_layer",
            ),
        ];
        for (options, expected) in cases {
            let problem = options.problem(3).expect(expected);
            assert!(problem.contains(expected), "{problem}");
        }
        assert_eq!(plain.problem(3), None);
    }
}
