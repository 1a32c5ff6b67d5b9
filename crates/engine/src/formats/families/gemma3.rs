//! Gemma 3, text: norms before and after both parts of a layer, windows in five layers of six.

use super::{Family, Gate, PLAIN, Positions, Windowed};

pub(super) const GEMMA3: Family = Family {
    name: "gemma3",
    architecture: Some("gemma3"),
    model_type: "gemma3_text",
    head_dim: Some(256),
    reads_attention_bias: true,
    head_norms: true,
    result_norms: true,
    norms_less_one: true,
    scales_embedding: true,
    query_scalar: Some(256.0),
    // Gemma 3 27B.
    layers_scaled_by_hidden: Some(62),
    gate: Gate::GeluTanh,
    tied: true,
    rope_base: 1_000_000.0,
    windowed: Windowed::ButEvery(6),
    positions: Positions::OwnBaseInWindow(10_000.0),
    ..PLAIN
};
