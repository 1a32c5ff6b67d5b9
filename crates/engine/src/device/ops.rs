//! The steps of a forward pass that are not products of matrices.
//!
//! Decides which implementation runs: [`Kernels`] on a CUDA device, `plain` on the CPU, which tests compare with the
//! CPU's own path. Invariant: both compute the same, with sums in f32. It does not know layers.

use candle_core::{DType, Device, Result, Tensor};

use super::cache::Chunk;
use super::kernels::Kernels;
use super::plain;
use super::plan::{Plan, Side, Tiles};
use crate::formats::geometry::Geometry;

/// Steps for one model on one device.
pub(crate) struct Ops {
    pub(super) kernels: Option<Kernels>,
    pub(super) shape: Shape,
}

/// Sizes and constants of a model that the steps need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub width: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Added to mean squares.
    pub epsilon: f32,
}

/// The inputs of [`Ops::turn`].
pub(crate) struct Turning<'a> {
    /// Biases `[(heads + 2 · kv heads) · width]`, in the type of the weights.
    pub bias: Option<&'a Tensor>,
    /// Norms of query heads and of key heads, `[2, width]` f32.
    pub norms: Option<&'a Tensor>,
    /// Cosine and sine of each position and pair, `[context, width / 2]` f32.
    pub angles: &'a (Tensor, Tensor),
    /// Position of each row, `[rows]`.
    pub positions: &'a Tensor,
}

impl Ops {
    /// Steps for a model of this geometry; for a CUDA device kernels are compiled.
    pub(super) fn new(geometry: &Geometry, device: &Device, dtype: DType) -> Result<Self> {
        let shape = Shape {
            heads: geometry.heads,
            kv_heads: geometry.kv_heads,
            width: geometry.head_dim,
            hidden: geometry.hidden,
            epsilon: geometry.epsilon,
        };
        let kernels = match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let compile = |definitions, names: &[&'static str]| {
                    let compiled = super::cuda::Compiled::new(device, definitions, names)?;
                    Ok(Box::new(compiled) as Box<dyn super::kernels::Launcher>)
                };
                Some(Kernels::compile(shape, dtype, compile)?)
            }
            _ => None,
        };
        #[cfg(not(feature = "cuda"))]
        let _ = dtype;
        Ok(Self { kernels, shape })
    }

    /// Size of attention's tiles.
    pub(crate) fn tiles(&self) -> Tiles {
        match &self.kernels {
            Some(kernels) => kernels.tiles(),
            None => Tiles(plain::TILE),
        }
    }

    /// Address of a tensor on a CUDA device; 0 on the CPU, where it is not used.
    pub(super) fn address(&self, tensor: &Tensor) -> Result<u64> {
        (self.kernels.as_ref()).map_or(Ok(0), |kernels| kernels.address(tensor))
    }

    /// `[rows, (heads + 2 · kv heads) · width]` -> queries `[rows, heads · width]`; keys and values are written into
    /// `chunk`. Biases are added, heads are normed and rotated.
    pub(super) fn turn(
        &self,
        qkv: &Tensor,
        by: &Turning,
        chunk: &Chunk,
        layer: usize,
    ) -> Result<Tensor> {
        match &self.kernels {
            Some(kernels) => kernels.turn(qkv, by, chunk, layer),
            None => plain::turn(self.shape, qkv, by, chunk, layer),
        }
    }

    /// Attention of queries `[rows, heads · width]`, the rows of one side of a plan, in one layer.
    pub(super) fn attend(
        &self,
        queries: &Tensor,
        plan: &Plan,
        side: &Side,
        layer: usize,
    ) -> Result<Tensor> {
        match &self.kernels {
            Some(kernels) => kernels.attend(queries, plan, side, layer),
            None => plain::attend(self.shape, queries, plan, side, layer),
        }
    }

    /// `x + y + bias` and its norm times `weight`, `[rows, hidden]` each.
    pub(crate) fn add_norm(
        &self,
        x: &Tensor,
        y: &Tensor,
        bias: Option<&Tensor>,
        weight: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        match &self.kernels {
            Some(kernels) => kernels.add_norm(x, y, bias, weight),
            None => plain::add_norm(self.shape, x, y, bias, weight),
        }
    }

    /// `[rows, 2 · width]` (gate, up) -> `[rows, width]`.
    pub(super) fn gate(&self, x: &Tensor) -> Result<Tensor> {
        match &self.kernels {
            Some(kernels) => kernels.gate(x),
            None => plain::gate(x),
        }
    }

    /// Logits of tokens after rows of `hidden` `[rows, hidden]` f32. Each list is `[row, first token, one past the
    /// last]`, indices into `tokens`.
    pub(super) fn score(
        &self,
        hidden: &Tensor,
        head: &Tensor,
        lists: &[[u32; 3]],
        tokens: &[u32],
    ) -> Result<Vec<f32>> {
        match &self.kernels {
            Some(kernels) => kernels.score(hidden, head, lists, tokens),
            None => plain::score(hidden, head, lists, tokens),
        }
    }
}
