//! Qwen 2 and 2.5: biases on q, k, v, none on the output projection.

use super::{Family, PLAIN};

pub(super) const QWEN2: Family = Family {
    name: "qwen2",
    architecture: Some("qwen2"),
    model_type: "qwen2",
    qkv_bias: true,
    ..PLAIN
};
