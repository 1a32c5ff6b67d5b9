//! SmolLM 3: each fourth layer has no rotary positions.

use super::{Family, PLAIN, Positions};

pub(super) const SMOLLM3: Family = Family {
    name: "smollm3",
    architecture: Some("smollm3"),
    model_type: "smollm3",
    reads_attention_bias: true,
    tied: true,
    rope_base: 2_000_000.0,
    gguf_pairs_adjacent: true,
    positions: Positions::NoneInEvery(4),
    ..PLAIN
};
