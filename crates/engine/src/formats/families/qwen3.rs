//! Qwen 3, dense: norms on query heads and key heads.

use super::Family;

pub(super) const QWEN3: Family = Family {
    name: "qwen3",
    head_dim: Some(128),
    qkv_bias: false,
    reads_attention_bias: true,
    head_norms: true,
    gguf_pairs_adjacent: false,
};
