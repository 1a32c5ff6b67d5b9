//! `(state, catalogue, template) -> prompt`: the profile in words and recent events by product name.
//!
//! Invariant: within the declared token budget, by cutting the oldest events first; the same input gives the same bytes.

use serde::{Deserialize, Serialize};

/// An arm: what a list was made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Name, as in lists and metrics.
    pub id: String,
    /// Number of this deployed configuration; never reused, rises.
    pub epoch: u64,
    /// Share of users, relative to the other arms.
    #[serde(default = "one")]
    pub share: u32,
    /// minijinja template file, relative to the configuration file.
    pub template: String,
    /// GGUF file or folder of safetensors.
    pub model: String,
    /// `constrained` (the only one yet).
    #[serde(default = "constrained")]
    pub mode: String,
    /// Token budget of the rendered prompt.
    #[serde(default = "budget")]
    pub prompt_tokens: usize,
    /// Names per list.
    #[serde(default = "twenty")]
    pub names: usize,
    /// Weight of the model's term.
    #[serde(default = "weight")]
    pub model_weight: f64,
    /// Weight of log demand.
    #[serde(default)]
    pub demand_weight: f64,
    /// Least log-probability of a name, theta; none keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub theta: Option<f64>,
}

fn one() -> u32 {
    1
}
fn constrained() -> String {
    "constrained".into()
}
fn budget() -> usize {
    384
}
fn twenty() -> usize {
    20
}
fn weight() -> f64 {
    1.0
}
