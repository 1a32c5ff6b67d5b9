//! Sizes and constants of a model, and the tensors that a model of these sizes has.
//!
//! Decides which sizes are possible. Invariant: every size of a checked geometry is above 0 and below a limit, so that
//! a damaged file cannot ask for absurd memory. It does not know files.

use super::families::{Family, Gate};
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
    /// Width of the part of each head that has rotary positions: its first values.
    pub rotated: usize,
    /// Rotary positions: the ways in which layers rotate heads.
    pub ropes: Vec<Rope>,
    /// What each layer sees and how it rotates.
    pub views: Vec<View>,
    /// The divisor of scores is the root of this; the head width in most models.
    pub query_scalar: f64,
    /// Logits are `cap · tanh(logit / cap)` if there is a cap.
    pub logit_cap: Option<f32>,
    /// Whether q, k, v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether each query head and key head has a norm.
    pub head_norms: bool,
    /// Whether the output head is the embedding.
    pub tied: bool,
}

/// What the attention of one layer sees, and how it rotates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Number of positions that a row sees, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Which of the model's [`ropes`](Geometry::ropes).
    pub rope: usize,
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
    /// Query, key and value projections in one tensor.
    QueryKeyValue(usize),
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
    /// Norm of attention's result.
    OutputNorm(usize),
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
    /// Gate and up projections in one tensor.
    GateUp(usize),
    /// Down projection.
    Down(usize),
    /// Norm of the gated layer's result.
    DownNorm(usize),
}

impl Part {
    /// Whether the tensor is the weight of a norm.
    pub(super) fn is_norm(self) -> bool {
        use Part::{AttentionNorm, DownNorm, FeedNorm, KeyNorm, Norm, OutputNorm, QueryNorm};
        matches!(
            self,
            Norm | AttentionNorm(_)
                | OutputNorm(_)
                | QueryNorm(_)
                | KeyNorm(_)
                | FeedNorm(_)
                | DownNorm(_)
        )
    }
}

/// Checks a number of layers, of which lists are made before the other sizes are checked.
pub(super) fn check_layers(layers: usize) -> Result<(), String> {
    match layers {
        1..=LAYERS_MAX => Ok(()),
        _ => Err(format!("{layers} layers are not within 1 to {LAYERS_MAX}")),
    }
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
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv_heads) = (self.heads, self.kv_heads);
            return Err(format!(
                "{heads} query heads are not a multiple of {kv_heads} key heads"
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head width {} is odd", self.head_dim));
        }
        if self.rotated < self.head_dim {
            let (rotated, width) = (self.rotated, self.head_dim);
            if !rotated.is_multiple_of(2) || rotated == 0 {
                return Err(format!("{rotated} rotated values of a head are not pairs"));
            }
            if self.head_norms || self.qkv_bias {
                return Err(format!(
                    "rotating {rotated} of {width} values of heads with norms or biases is not supported"
                ));
            }
        }
        if self.score_scale() != 1.0 && !self.head_norms {
            return Err("a query scalar without norms of heads is not supported".into());
        }
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            return Err(format!(
                "norm epsilon {} is not a finite number from 0 on",
                self.epsilon
            ));
        }
        Ok(())
    }

    /// What embeddings are multiplied by; 1 in most families.
    pub(crate) fn embedding_scale(&self) -> f32 {
        match self.family.scales_embedding {
            true => (self.hidden as f32).sqrt(),
            false => 1.0,
        }
    }

    /// What a query is multiplied by, because attention divides scores by the root of the head width.
    pub(crate) fn score_scale(&self) -> f32 {
        (self.head_dim as f64 / self.query_scalar).sqrt() as f32
    }

    /// A logit under the soft cap, if there is one.
    pub(crate) fn capped(&self, logit: f32) -> f32 {
        self.logit_cap
            .map_or(logit, |cap| cap * (logit / cap).tanh())
    }

    /// Why the model can run on the CPU only, if so.
    pub(crate) fn needs_cpu(&self) -> Option<&'static str> {
        let has_window = self.views.iter().any(|view| view.window.is_some());
        let cases = [
            (has_window, "sliding windows"),
            (self.family.result_norms, "norms of results"),
            (self.family.gate != Gate::Silu, "a gate other than SiLU"),
            (self.family.scales_embedding, "scaled embeddings"),
            (self.logit_cap.is_some(), "soft caps"),
        ];
        let found = cases.into_iter().find(|(is, _)| *is);
        found.map(|(_, what)| what)
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
                (Part::Output(layer), vec![hidden, queries]),
                (Part::FeedNorm(layer), vec![hidden]),
            ]);
            let feed = self.feed_forward;
            if self.family.fused {
                parts.push((Part::QueryKeyValue(layer), vec![queries + 2 * keys, hidden]));
                parts.push((Part::GateUp(layer), vec![2 * feed, hidden]));
            } else {
                parts.extend([
                    (Part::Query(layer), vec![queries, hidden]),
                    (Part::Key(layer), vec![keys, hidden]),
                    (Part::Value(layer), vec![keys, hidden]),
                    (Part::Gate(layer), vec![feed, hidden]),
                    (Part::Up(layer), vec![feed, hidden]),
                ]);
            }
            parts.push((Part::Down(layer), vec![hidden, feed]));
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
            if self.family.result_norms {
                parts.push((Part::OutputNorm(layer), vec![hidden]));
                parts.push((Part::DownNorm(layer), vec![hidden]));
            }
            if self.head_norms {
                parts.push((Part::QueryNorm(layer), vec![width]));
                parts.push((Part::KeyNorm(layer), vec![width]));
            }
        }
        parts
    }
}
