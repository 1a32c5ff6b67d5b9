//! Llama 1 to 3, SmolLM2 and other models built alike.

use super::{Family, PLAIN};

pub(super) const LLAMA: Family = Family {
    name: "llama",
    architecture: Some("llama"),
    model_type: "llama",
    reads_attention_bias: true,
    gguf_pairs_adjacent: true,
    ..PLAIN
};
