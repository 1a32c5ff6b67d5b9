//! The forward pass of BERT over texts of one length, on the CPU.
//!
//! Invariant: a text's result does not depend on the other texts of the pass, bit for bit. Every sum is over one row,
//! or over the tokens of one text. It does not know tokenizers, pooling or files. Source: Devlin et al. 2019, "BERT",
//! as `BertModel` of the transformers library computes it (norms after the residual sums, exact GELU).

use candle_core::{Device, Result, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use crate::cpu::linear::Linear;
use crate::{Options, Precision};

/// Sizes and constants.
pub(super) struct Sizes {
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) feed_forward: usize,
    pub(super) vocabulary: usize,
    pub(super) positions: usize,
    /// Added to the variance in norms.
    pub(super) epsilon: f32,
}

/// The weights.
pub(super) struct Bert {
    pub(super) heads: usize,
    /// `[vocabulary, width]`.
    pub(super) words: Tensor,
    /// `[positions, width]`, with what is added to every token.
    pub(super) positions: Tensor,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

/// Weights of one layer.
pub(super) struct Layer {
    /// `[3 · width, width]`: q, k, v.
    pub(super) qkv: Dense,
    pub(super) output: Dense,
    pub(super) output_norm: Norm,
    pub(super) wide: Dense,
    pub(super) narrow: Dense,
    pub(super) narrow_norm: Norm,
}

/// `x · wᵀ + b`.
pub(super) struct Dense {
    weight: Linear,
    bias: Tensor,
}

/// A layer norm.
pub(super) struct Norm {
    /// `[width]`.
    pub(super) weight: Tensor,
    /// `[width]`.
    pub(super) bias: Tensor,
    pub(super) epsilon: f32,
}

impl Dense {
    /// A layer of contiguous `f32` weights `[out, in]`.
    pub(super) fn new(weight: &Tensor, bias: Vec<f32>) -> Result<Self> {
        let options = Options {
            precision: Precision::F32,
            ..Options::default()
        };
        Ok(Self {
            weight: Linear::packed(weight, options)?,
            bias: Tensor::new(bias, &Device::Cpu)?,
        })
    }

    /// `[rows, in]` -> `[rows, out]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.forward(x, rayon::current_num_threads())?;
        y.broadcast_add(&self.bias)
    }
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

impl Bert {
    /// Numbers of a row.
    pub(super) fn width(&self) -> usize {
        // A table has two dimensions.
        self.words.dims()[1]
    }

    /// `[texts, tokens, width]`: the last layer's rows of texts of one length, which have at least one token.
    pub(super) fn forward(&self, ids: &[&[u32]]) -> Result<Tensor> {
        let (texts, tokens) = (ids.len(), ids.first().map_or(0, |ids| ids.len()));
        let width = self.width();
        let words = Tensor::new(ids.concat(), &Device::Cpu)?;
        let words = self.words.index_select(&words, 0)?;
        let words = words.reshape((texts, tokens, width))?;
        let x = words.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mut x = self.norm.forward(&x.reshape((texts * tokens, width))?)?;
        for layer in &self.layers {
            let seen = self.attend(&layer.qkv.forward(&x)?, texts, tokens)?;
            let summed = (layer.output.forward(&seen)? + x)?;
            let read = layer.output_norm.forward(&summed)?;
            let wide = layer.wide.forward(&read)?.gelu_erf()?;
            let summed = (layer.narrow.forward(&wide)? + read)?;
            x = layer.narrow_norm.forward(&summed)?;
        }
        x.reshape((texts, tokens, width))
    }

    /// `[rows, 3 · width]` -> `[rows, width]`: softmax(q · kᵀ / √head) · v within each text.
    fn attend(&self, qkv: &Tensor, texts: usize, tokens: usize) -> Result<Tensor> {
        let width = self.width();
        let head = width / self.heads;
        let qkv = qkv.reshape((texts, tokens, 3, self.heads, head))?;
        let part = |nth: usize| -> Result<Tensor> {
            let part = qkv.narrow(2, nth, 1)?.squeeze(2)?;
            part.transpose(1, 2)?.contiguous()
        };
        let (query, key, value) = (part(0)?, part(1)?, part(2)?);
        let scores = query.matmul(&key.transpose(2, 3)?.contiguous()?)?;
        let shares = softmax_last_dim(&(scores * (1.0 / (head as f64).sqrt()))?)?;
        let seen = shares.matmul(&value)?.transpose(1, 2)?;
        seen.reshape((texts * tokens, width))
    }
}
