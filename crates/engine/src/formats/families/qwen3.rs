//! Qwen 3, dense: norms on query heads and key heads.

use super::{Family, PLAIN};

pub(super) const QWEN3: Family = Family {
    name: "qwen3",
    architecture: Some("qwen3"),
    model_type: "qwen3",
    head_dim: Some(128),
    reads_attention_bias: true,
    head_norms: true,
    ..PLAIN
};
