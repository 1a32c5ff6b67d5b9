//! The families of decoders that can be run.
//!
//! Decides what differs between them; all else is read from a model's own file. A new family is one file here and its
//! line in [`ALL`]. It does not know formats or tensors.

mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

/// Every family that can be run.
const ALL: [&Family; 7] = [
    &llama::LLAMA,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &gemma3::GEMMA3,
    &mistral::MISTRAL,
    &smollm3::SMOLLM3,
    &phi3::PHI3,
];

/// A family of decoders: what its members have that their files do not say.
#[derive(Debug, PartialEq)]
pub(crate) struct Family {
    /// What reports call it.
    pub name: &'static str,
    /// The `general.architecture` of a GGUF; `None`: such a model is written as another family's.
    pub architecture: Option<&'static str>,
    /// The `model_type` of `config.json`.
    pub model_type: &'static str,
    /// Width of a head if `config.json` has no `head_dim`; `None`: hidden size / heads, as the `transformers` library
    /// has it.
    pub head_dim: Option<usize>,
    /// Whether q, k, v have biases in every model.
    pub qkv_bias: bool,
    /// Whether the key `attention_bias` of `config.json` adds biases to q, k, v and the output projection.
    pub reads_attention_bias: bool,
    /// Whether q, k and v are one tensor, and gate and up are.
    pub fused: bool,
    /// Whether each query head and key head has a norm.
    pub head_norms: bool,
    /// Whether the results of attention and of the gated layer have norms before they are added.
    pub result_norms: bool,
    /// Whether a folder stores the weights of norms less 1. A GGUF has them whole.
    pub norms_less_one: bool,
    /// Whether embeddings are multiplied by the root of the hidden size.
    pub scales_embedding: bool,
    /// The divisor of scores if `config.json` has none is the root of this; `None`: of the head width.
    pub query_scalar: Option<f64>,
    /// Number of layers of the one model whose divisor is the root of hidden size / heads; its GGUF does not say so.
    pub layers_scaled_by_hidden: Option<usize>,
    /// The function on the gate.
    pub gate: Gate,
    /// Whether the head is the embedding if `config.json` does not say.
    pub tied: bool,
    /// The base of rotary positions if `config.json` does not say.
    pub rope_base: f64,
    /// Which layers have the model's sliding window.
    pub windowed: Windowed,
    /// Which layers have other rotary positions than the model's.
    pub positions: Positions,
    /// Whether the two values of a rotary pair are neighbours in GGUF's q and k, and not half a head apart.
    pub gguf_pairs_adjacent: bool,
}

/// The function on the gate of the gated layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// x · sigmoid(x).
    Silu,
    /// GELU by its approximation with tanh.
    GeluTanh,
}

/// Which layers have the model's sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Windowed {
    /// Those that `config.json` names. A GGUF names none, so one with a window is refused.
    Named,
    /// All layers.
    All,
    /// All but each layer of this number, counted from 1, unless the file has another number.
    ButEvery(usize),
}

/// Which layers have other rotary positions than the model's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Positions {
    /// None.
    Same,
    /// Layers with a window, which have this base unless the file has another, and no scaling.
    OwnBaseInWindow(f64),
    /// Each layer of this number, counted from 1, unless the file names others: it has no positions.
    NoneInEvery(usize),
}

/// A Llama without anything that only some families have; a family says what it adds.
const PLAIN: Family = Family {
    name: "",
    architecture: None,
    model_type: "",
    head_dim: None,
    qkv_bias: false,
    reads_attention_bias: false,
    fused: false,
    head_norms: false,
    result_norms: false,
    norms_less_one: false,
    scales_embedding: false,
    query_scalar: None,
    layers_scaled_by_hidden: None,
    gate: Gate::Silu,
    tied: false,
    rope_base: 10_000.0,
    windowed: Windowed::Named,
    positions: Positions::Same,
    gguf_pairs_adjacent: false,
};

impl Family {
    /// Finds the family of a GGUF's `general.architecture`; the error names those that there are.
    pub(super) fn of_gguf(name: &str) -> Result<&'static Self, String> {
        Self::find(name, |family| family.architecture)
    }

    /// Finds the family of a folder's `model_type`; the error names those that there are.
    pub(super) fn of_folder(name: &str) -> Result<&'static Self, String> {
        Self::find(name, |family| Some(family.model_type))
    }

    fn find(
        name: &str,
        of: impl Fn(&'static Self) -> Option<&'static str>,
    ) -> Result<&'static Self, String> {
        let found = ALL.into_iter().find(|family| of(family) == Some(name));
        found.ok_or_else(|| {
            let names: Vec<&str> = ALL.into_iter().filter_map(of).collect();
            let (last, others) = names.split_last().expect("there are families");
            let others = others.join(", ");
            format!("{name:?} is not supported; {others} and {last} are")
        })
    }

    /// Every family, for tests.
    #[cfg(test)]
    pub(crate) fn all() -> [&'static Self; ALL.len()] {
        ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_found_by_its_own_name_and_an_unknown_name_is_refused_with_all_names() {
        for family in ALL {
            if let Some(name) = family.architecture {
                assert_eq!(Family::of_gguf(name), Ok(family));
            }
            assert_eq!(Family::of_folder(family.model_type), Ok(family));
        }
        let refused = Family::of_gguf("mamba").expect_err("refused");
        assert_eq!(
            refused,
            "\"mamba\" is not supported; llama, qwen2, qwen3, gemma3 and smollm3 are"
        );
        let refused = Family::of_folder("gemma3").expect_err("refused");
        assert!(refused.contains("qwen3, gemma3_text, mistral"), "{refused}");
    }
}
