//! The forward pass of [`cpu::forward`](crate::cpu::forward) on any device: the path for CUDA.
//!
//! Decides the order of a few large steps per layer: products of packed rows by candle, everything between them by
//! [`Ops`] (decision 14). Keys and values lie in one chunk per pass and never move. Invariant: every step runs on the
//! CPU too, so that tests can compare it with the CPU's own path. A row's result is not bit for bit independent of the
//! other rows. It does not know prompts, tries or searches, nor what models that [need the CPU](Geometry::needs_cpu)
//! have.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::ops::rms_norm;

mod cache;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(test)]
mod emulated;
mod head;
#[cfg_attr(
    not(any(test, feature = "cuda")),
    expect(dead_code, reason = "only CUDA and tests launch kernels")
)]
mod kernels;
mod ops;
mod plain;
mod plan;
#[cfg(test)]
mod tests;

pub(crate) use cache::{Cache, Prefix};
pub(crate) use head::Wanted;

use cache::{Chunk, Run};
use ops::{Ops, Turning};
use plan::{Layout, Plan};

use crate::cpu::extras::Extras;
use crate::cpu::forward::Pass;
use crate::cpu::kv::Sizes;
use crate::formats::geometry::Geometry;
use crate::formats::rope::Rope;
use crate::formats::weights::{LayerWeights, Weights};

/// Opens a CUDA device by its number; its stream and memory are set up for many small steps.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_device(number: usize) -> Result<Device> {
    cuda::device(number)
}

/// A model whose weights are on a device.
pub(crate) struct Network {
    geometry: Geometry,
    device: Device,
    dtype: DType,
    embedding: Tensor,
    head: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
    /// For each way of rotating, cosine and sine of each position and pair, `[context, head_dim / 2]`, f32.
    angles: Vec<(Tensor, Tensor)>,
    ops: Ops,
}

struct Layer {
    attention_norm: Tensor,
    qkv: Linear,
    output: Linear,
    feed_norm: Tensor,
    gate_up: Linear,
    down: Linear,
    /// `[q + k + v]`, added to their product.
    bias: Option<Tensor>,
    /// `[hidden]`, added to the output's product.
    output_bias: Option<Tensor>,
    /// Norms of query heads and of key heads, `[2, width]` f32.
    norms: Option<Tensor>,
}

/// `x · wᵀ` of weights `[out, in]`.
struct Linear(Tensor);

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.0.t()?)
    }
}

impl Network {
    /// Moves weights to `device` as `dtype`; more layers may be [pushed](Self::push).
    pub(crate) fn new(weights: Weights, device: &Device, dtype: DType) -> Result<Self> {
        let place = |x: &Tensor| x.to_device(device)?.to_dtype(dtype)?.contiguous();
        let geometry = &weights.geometry;
        let angles = (geometry.ropes.iter()).map(|rope| {
            let (cos, sin) = angles(rope, geometry.context)?;
            Ok((cos.to_device(device)?, sin.to_device(device)?))
        });
        let mut network = Self {
            embedding: place(&weights.embedding)?,
            head: place(&weights.head)?,
            norm: place(&weights.norm)?,
            angles: angles.collect::<Result<_>>()?,
            ops: Ops::new(&weights.geometry, device, dtype)?,
            geometry: weights.geometry,
            device: device.clone(),
            dtype,
            layers: Vec::new(),
        };
        for layer in &weights.layers {
            network.push(layer)?;
        }
        Ok(network)
    }

    /// Adds the next layer.
    pub(crate) fn push(&mut self, layer: &LayerWeights) -> Result<()> {
        let place = |x: &Tensor| {
            x.to_device(&self.device)?
                .to_dtype(self.dtype)?
                .contiguous()
        };
        let row = |x: &Vec<f32>| place(&Tensor::new(x.as_slice(), &Device::Cpu)?);
        let Extras {
            bias,
            output_bias,
            norms,
            // A model that needs the CPU is refused before.
            result_norms: _,
        } = &layer.extras;
        let norms = norms.as_ref().map(|norms| {
            let both = [norms.query.as_slice(), norms.key.as_slice()].concat();
            Tensor::from_vec(both, (2, norms.query.len()), &self.device)
        });
        let layer = Layer {
            attention_norm: place(&layer.attention_norm)?,
            qkv: Linear(place(&layer.qkv)?),
            output: Linear(place(&layer.output)?),
            feed_norm: place(&layer.feed_norm)?,
            gate_up: Linear(place(&layer.gate_up)?),
            down: Linear(place(&layer.down)?),
            bias: bias.as_ref().map(row).transpose()?,
            output_bias: output_bias.as_ref().map(row).transpose()?,
            norms: norms.transpose()?,
        };
        self.layers.push(layer);
        Ok(())
    }

    /// Sizes and constants.
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Type of the weights.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the layers' weights.
    pub(crate) fn bytes(&self) -> usize {
        let layers = self.layers.iter();
        let linears = layers.flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        let numbers: usize = linears.map(|linear| linear.0.elem_count()).sum();
        numbers * self.dtype.size_in_bytes()
    }

    /// Sizes of keys and values.
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            layers: self.geometry.layers,
            heads: self.geometry.kv_heads,
            width: self.geometry.head_dim,
            number: self.dtype.size_in_bytes(),
        }
    }

    /// Computes the rows, adds their keys and values to `caches`, and returns the hidden state before the head of each
    /// wanted row: `[wanted, hidden]`, f32, on the device.
    pub(crate) fn forward(&self, pass: &Pass, caches: &mut [Cache]) -> Result<Tensor> {
        let chunk = self.append(pass, caches)?;
        let plan = self.plan(pass, caches)?;
        let ids = Tensor::new(pass.tokens.as_slice(), &self.device)?;
        let mut hidden = self.embedding.index_select(&ids, 0)?;
        let first = self.layers.first().map(|layer| &layer.attention_norm);
        let first = first.unwrap_or(&self.norm);
        let mut normed = rms_norm(&hidden, first, self.geometry.epsilon)?;
        let last = self.layers.len() - 1;
        for (nth, layer) in self.layers.iter().enumerate() {
            let turning = Turning {
                bias: layer.bias.as_ref(),
                norms: layer.norms.as_ref(),
                angles: &self.angles[self.geometry.views[nth].rope],
                positions: &plan.positions,
            };
            let qkv = layer.qkv.forward(&normed)?;
            let mut queries = self.ops.turn(&qkv, &turning, &chunk, nth)?;
            let mut side = &plan.all;
            // In the last layer only keys and values of the other rows are needed.
            if let Some(wanted) = plan.wanted.as_ref().filter(|_| nth == last) {
                queries = queries.index_select(wanted, 0)?;
                hidden = hidden.index_select(wanted, 0)?;
                side = &plan.few;
            }
            let mixed = self.ops.attend(&queries, &plan, side, nth)?;
            let output = layer.output.forward(&mixed)?;
            let bias = layer.output_bias.as_ref();
            (hidden, normed) = (self.ops).add_norm(&hidden, &output, bias, &layer.feed_norm)?;
            let gated = self.ops.gate(&layer.gate_up.forward(&normed)?)?;
            let down = layer.down.forward(&gated)?;
            let next = self.layers.get(nth + 1);
            let next = next.map_or(&self.norm, |layer| &layer.attention_norm);
            (hidden, normed) = self.ops.add_norm(&hidden, &down, None, next)?;
        }
        normed.to_dtype(DType::F32)
    }

    /// Waits until the device has done all launched work.
    pub(crate) fn wait(&self) -> Result<()> {
        self.device.synchronize()
    }

    /// Allocates the chunk of a pass, and appends its rows to the caches of their users.
    fn append(&self, pass: &Pass, caches: &mut [Cache]) -> Result<Arc<Chunk>> {
        let rows = pass.tokens.len();
        let chunk = Arc::new(Chunk::new(self.sizes(), rows, &self.device, self.dtype)?);
        for span in &pass.spans {
            let run = Run {
                chunk: Arc::clone(&chunk),
                first: span.rows.start,
                len: span.rows.len(),
            };
            caches[span.cache].append(run, pass.nodes);
        }
        Ok(chunk)
    }

    fn plan(&self, pass: &Pass, caches: &[Cache]) -> Result<Plan> {
        let layout = Layout {
            device: &self.device,
            group: self.geometry.heads / self.geometry.kv_heads,
            tiles: self.ops.tiles(),
            address: &|tensor| self.ops.address(tensor),
        };
        plan::plan(pass, caches, &layout)
    }
}

/// Cosine and sine of every position of a context, f32.
fn angles(rope: &Rope, positions: usize) -> Result<(Tensor, Tensor)> {
    let each = (0..positions).flat_map(|position| rope.angles(position));
    let (sin, cos): (Vec<f32>, Vec<f32>) = each.unzip();
    let shape = (positions, rope.frequencies.len());
    let of = |all| Tensor::from_vec(all, shape, &Device::Cpu);
    Ok((of(cos)?, of(sin)?))
}
