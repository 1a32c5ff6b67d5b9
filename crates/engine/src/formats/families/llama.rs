//! Llama 1 to 3, SmolLM2 and other models built alike.

use super::Family;

pub(super) const LLAMA: Family = Family {
    name: "llama",
    head_dim: None,
    qkv_bias: false,
    reads_attention_bias: true,
    head_norms: false,
    gguf_pairs_adjacent: true,
};
