//! The families of decoders that can be run.
//!
//! Decides what differs between them; all else is read from a model's own file. A new family is one file here and its
//! line in [`ALL`]. It does not know formats or tensors.

mod llama;
mod qwen2;
mod qwen3;

/// Every family that can be run.
const ALL: [&Family; 3] = [&llama::LLAMA, &qwen2::QWEN2, &qwen3::QWEN3];

/// A family of decoders: what its members have that their files do not say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// GGUF's `general.architecture`, and the `model_type` of `config.json`.
    pub name: &'static str,
    /// Width of a head if `config.json` has no `head_dim`; `None`: hidden size / heads, as the `transformers` library
    /// has it.
    pub head_dim: Option<usize>,
    /// Whether q, k, v have biases in every model.
    pub qkv_bias: bool,
    /// Whether the key `attention_bias` of `config.json` adds biases to q, k, v and the output projection.
    pub reads_attention_bias: bool,
    /// Whether each query head and key head has a norm.
    pub head_norms: bool,
    /// Whether the two values of a rotary pair are neighbours in GGUF's q and k, and not half a head apart.
    pub gguf_pairs_adjacent: bool,
}

impl Family {
    /// Finds the family of this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|family| family.name == name)
    }

    /// Says why no family of this name is found.
    pub(super) fn unsupported(name: &str) -> String {
        let names = ALL.map(|family| family.name);
        let (last, others) = names.split_last().expect("there are families");
        format!(
            "{name:?} is not supported; {} and {last} are",
            others.join(", ")
        )
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
            assert_eq!(Family::named(family.name), Some(family));
        }
        assert_eq!(Family::named("mamba"), None);
        let refused = Family::unsupported("mamba");
        assert_eq!(
            refused,
            "\"mamba\" is not supported; llama, qwen2 and qwen3 are"
        );
    }
}
