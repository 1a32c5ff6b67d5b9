//! Sizes and constants of a model, and the tensors that a model of these sizes has.
//!
//! Decides which sizes are possible. Invariant: every size of a checked geometry is above 0 and below a limit, so that
//! a damaged file cannot ask for absurd memory. It does not know files.

use super::families::Family;
use super::rope::Rope;

/// The largest size of a model; only a damaged file has a larger one.
const SIZE_MAX: usize = 1 << 24;

/// The most layers of a model.
const LAYERS_MAX: usize = 1 << 12;

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Geometry {
    /// The family of the model.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the gated layer.
    pub feed_forward: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// Rotary positions: how heads are rotated.
    pub rope: Rope,
    /// Whether q, k, v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether each query head and key head has a norm.
    pub head_norms: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
}

/// A tensor of a model by its meaning; the number is its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Token embedding.
    Embedding,
    /// Output head.
    Head,
    /// Last norm.
    Norm,
    /// Norm before attention.
    AttentionNorm(usize),
    /// Query projection.
    Query(usize),
    /// Key projection.
    Key(usize),
    /// Value projection.
    Value(usize),
    /// Projection of the heads' results.
    Output(usize),
    /// Bias of the query projection.
    QueryBias(usize),
    /// Bias of the key projection.
    KeyBias(usize),
    /// Bias of the value projection.
    ValueBias(usize),
    /// Bias of the output projection.
    OutputBias(usize),
    /// Norm of each query head.
    QueryNorm(usize),
    /// Norm of each key head.
    KeyNorm(usize),
    /// Norm before the gated layer.
    FeedNorm(usize),
    /// Gate projection.
    Gate(usize),
    /// Up projection.
    Up(usize),
    /// Down projection.
    Down(usize),
}

impl Geometry {
    /// Checks that the sizes are possible; the error says which one is not.
    pub(super) fn check(&self) -> Result<(), String> {
        let sizes = [
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("kv heads", self.kv_heads),
            ("head width", self.head_dim),
            ("feed-forward", self.feed_forward),
            ("vocabulary", self.vocabulary),
            ("context", self.context),
        ];
        for (name, size) in sizes {
            if size == 0 || size > SIZE_MAX {
                return Err(format!("{name} size {size} is not within 1 to {SIZE_MAX}"));
            }
        }
        if self.layers == 0 || self.layers > LAYERS_MAX {
            return Err(format!(
                "{} layers are not within 1 to {LAYERS_MAX}",
                self.layers
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!(
                "{heads} query heads are not a multiple of {kv_heads} key heads"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head width {} is odd", self.head_dim));
        }
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            return Err(format!(
                "norm epsilon {} is not a finite number from 0 on",
                self.epsilon
            ));
        }
        Ok(())
    }

    /// Lists every tensor that a model of these sizes has, with its shape.
    pub(super) fn parts(&self) -> Vec<(Part, Vec<usize>)> {
        let (hidden, width) = (self.hidden, self.head_dim);
        let (queries, keys) = (self.heads * width, self.kv_heads * width);
        let mut parts = vec![
            (Part::Embedding, vec![self.vocabulary, hidden]),
            (Part::Norm, vec![hidden]),
        ];
        if !self.tied {
            parts.push((Part::Head, vec![self.vocabulary, hidden]));
        }
        for layer in 0..self.layers {
            parts.extend([
                (Part::AttentionNorm(layer), vec![hidden]),
                (Part::Query(layer), vec![queries, hidden]),
                (Part::Key(layer), vec![keys, hidden]),
                (Part::Value(layer), vec![keys, hidden]),
                (Part::Output(layer), vec![hidden, queries]),
                (Part::FeedNorm(layer), vec![hidden]),
                (Part::Gate(layer), vec![self.feed_forward, hidden]),
                (Part::Up(layer), vec![self.feed_forward, hidden]),
                (Part::Down(layer), vec![hidden, self.feed_forward]),
            ]);
            if self.qkv_bias {
                parts.extend([
                    (Part::QueryBias(layer), vec![queries]),
                    (Part::KeyBias(layer), vec![keys]),
                    (Part::ValueBias(layer), vec![keys]),
                ]);
            }
            if self.output_bias {
                parts.push((Part::OutputBias(layer), vec![hidden]));
            }
            if self.head_norms {
                parts.push((Part::QueryNorm(layer), vec![width]));
                parts.push((Part::KeyNorm(layer), vec![width]));
            }
        }
        parts
    }
}
