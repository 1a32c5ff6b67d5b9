//! The weights that a forward pass reads.
//!
//! Invariant: weights are `f32`, `[out, in]`; the two values of a rotary pair are half a head apart; q, k, v are one
//! tensor, and so are gate and up. It does not know files.

use candle_core::Tensor;

use super::geometry::Geometry;
use crate::cpu::extras::Extras;

/// All weights of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Sizes and constants.
    pub geometry: Geometry,
    /// `[vocabulary, hidden]`.
    pub embedding: Tensor,
    /// `[vocabulary, hidden]`; the embedding itself if the file ties them.
    pub head: Tensor,
    /// `[hidden]`: norm before the head.
    pub norm: Tensor,
    /// The layers that were read so far.
    pub layers: Vec<LayerWeights>,
}

/// Weights of one layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    /// `[hidden]`.
    pub attention_norm: Tensor,
    /// `[(heads + 2 · kv_heads) · head_dim, hidden]`: q, k, v.
    pub qkv: Tensor,
    /// `[hidden, heads · head_dim]`.
    pub output: Tensor,
    /// `[hidden]`.
    pub feed_norm: Tensor,
    /// `[2 · feed_forward, hidden]`: gate, up.
    pub gate_up: Tensor,
    /// `[hidden, feed_forward]`.
    pub down: Tensor,
    /// Biases and head norms, as the family has them.
    pub extras: Extras,
}
