//! An arm as it is configured: [`Arm`].
//!
//! Values only; whether they go together is checked where the configuration is read.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Digests, Endpoint};
use crate::names::writing::Decoding;

/// An arm: model, prompt, weights and thresholds by which lists are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Id, as in lists and metrics.
    pub id: String,
    /// Number of this deployed configuration; rises and is never reused.
    pub epoch: u64,
    /// Share of users, relative to the other arms.
    #[serde(default = "one")]
    pub share: u32,
    /// Namespaces whose lists it makes; if empty, all that no other arm names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Template file (minijinja), relative to the configuration file.
    pub template: String,
    /// GGUF file or folder of safetensors; with `endpoint` the server's name of the model.
    pub model: String,
    /// What the model's files must hash to; `None` loads any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Digests>,
    /// Folder of an adapter as PEFT writes it, which is merged into the model's weights when they are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// The server that has the model; `None` runs the model here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// How a model that runs here writes, in the mode `free`; `None` is the defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<Decoding>,
    /// Model of `nearshore match --fit`, relative to the configuration file: which names are meant by what was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matcher: Option<String>,
    /// `constrained`: only names of the catalogue are searched; `head`: nothing is searched, and the head of
    /// `artefact` is a term; `free`: the model writes, here or at `endpoint`, and names are matched.
    #[serde(default = "constrained")]
    pub mode: String,
    /// Token budget of the rendered prompt.
    #[serde(default = "budget")]
    pub prompt_tokens: usize,
    /// Names per list.
    #[serde(default = "twenty")]
    pub names: usize,
    /// Weight per score term, set by hand; empty is demand alone. Not together with `artefact`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, f64>,
    /// Folder that `nearshore align` wrote, relative to the configuration file: weights, tables and reference prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artefact: Option<String>,
    /// File of frozen calibration prompts, relative to the configuration file: the mean of the model's logits over them
    /// is subtracted before its term is computed. `None` subtracts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Least score of a name, theta; `None` keeps all. Scores are sums of weighted terms, so it goes with the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub theta: Option<f64>,
}

impl Arm {
    /// Whether its model writes freely, and names are matched.
    pub fn is_free(&self) -> bool {
        self.mode == "free"
    }
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
