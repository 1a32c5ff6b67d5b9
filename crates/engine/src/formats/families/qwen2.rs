//! Qwen 2 and 2.5: biases on q, k, v, none on the output projection.

use super::Family;

pub(super) const QWEN2: Family = Family {
    name: "qwen2",
    head_dim: None,
    qkv_bias: true,
    reads_attention_bias: false,
    head_norms: false,
    gguf_pairs_adjacent: false,
};
