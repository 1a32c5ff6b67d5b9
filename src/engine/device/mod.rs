//! The same model as [`forward`](super::forward), in tensor operations of any device: the CUDA path.
//!
//! Decides the order of few large operations per layer: linear layers on packed rows, attention on
//! padded ones in an arena that is never reordered (decision 14). Invariant: nothing but candle's
//! tensor operations, so that the CPU, which has them too, can be held against it. It is not
//! batch-invariant bit by bit. It does not know prompts, tries or searches.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim, swiglu};
use candle_nn::rotary_emb::rope_thd;

mod arena;
mod head;
mod plan;
#[cfg(test)]
mod tests;

pub use arena::{Cache, Prefix};
pub use head::Wanted;

use arena::{Arena, Seat};

use super::extras::Extras;
use super::forward::Pass;
use super::kv::Sizes;
use super::load::{Geometry, LayerWeights, Weights};
use plan::{Family, Plan, Rows};

/// A model whose weights lie on a device.
pub struct Network {
    geometry: Geometry,
    device: Device,
    dtype: DType,
    embedding: Tensor,
    head: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
    /// Cosine and sine of each position and pair, `[context, head_dim / 2]`.
    angles: (Tensor, Tensor),
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
    /// Norms of heads: ones `[width]`, and the weight of each query and key head `[1, heads, width]`.
    norms: Option<(Tensor, Tensor)>,
}

/// `x · wᵀ` of weights `[out, in]`.
struct Linear(Tensor);

impl Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.0.t()?)
    }
}

impl Network {
    /// Moves weights to `device` as `dtype`; layers may be [pushed](Self::push) later.
    pub fn new(weights: Weights, device: &Device, dtype: DType) -> Result<Self> {
        let place = |x: &Tensor| x.to_device(device)?.to_dtype(dtype)?.contiguous();
        let (cos, sin) = angles(&weights.geometry)?;
        let mut network = Self {
            embedding: place(&weights.embedding)?,
            head: place(&weights.head)?,
            norm: place(&weights.norm)?,
            angles: (place(&cos)?, place(&sin)?),
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
    pub fn push(&mut self, layer: &LayerWeights) -> Result<()> {
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
        } = &layer.extras;
        let norms = norms.as_ref().map(|norms| {
            let (query, key) = (norms.query.as_slice(), norms.key.as_slice());
            let queries = std::iter::repeat_n(query, norms.heads);
            let heads = queries.chain(std::iter::repeat_n(key, norms.kv_heads));
            let weights: Vec<f32> = heads.flatten().copied().collect();
            let weights = Tensor::from_vec(weights, (1, (), query.len()), &Device::Cpu)?;
            let ones = Tensor::ones(query.len(), self.dtype, &self.device)?;
            Ok::<_, candle_core::Error>((ones, place(&weights)?))
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
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the weights are.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Memory that the layers' weights take.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter();
        let linears = layers.flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        let numbers: usize = linears.map(|linear| linear.0.elem_count()).sum();
        numbers * self.dtype.size_in_bytes()
    }

    /// Sizes of keys and values.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            layers: self.geometry.layers,
            heads: self.geometry.kv_heads,
            width: self.geometry.head_dim,
        }
    }

    /// Computes the rows, adds their keys and values to `caches`, and returns the hidden state
    /// before the head of each wanted row: `[wanted, hidden]`, f32, on the device.
    pub fn forward(&self, pass: &Pass, caches: &mut [Cache]) -> Result<Tensor> {
        self.seat(pass, caches)?;
        let plan = plan::plan(pass, caches, (&self.device, self.dtype))?;
        let ids = Tensor::new(pass.tokens.as_slice(), &self.device)?;
        let mut hidden = self.embedding.index_select(&ids, 0)?;
        let last = self.layers.len() - 1;
        for (nth, layer) in self.layers.iter().enumerate() {
            let normed = self.normed(&hidden, &layer.attention_norm)?;
            let qkv = plus(layer.qkv.forward(&normed)?, layer.bias.as_ref())?;
            let step = Step {
                network: self,
                plan: &plan,
                caches,
                layer: nth,
            };
            // Of the last layer only keys and values are needed from the other rows.
            let mixed = step.attend(&qkv, nth == last)?;
            if nth == last {
                hidden = hidden.index_select(&plan.wanted, 0)?;
            }
            let output = plus(layer.output.forward(&mixed)?, layer.output_bias.as_ref())?;
            hidden = (hidden + output)?;
            let normed = self.normed(&hidden, &layer.feed_norm)?;
            let gated = swiglu(&layer.gate_up.forward(&normed)?)?;
            hidden = (hidden + layer.down.forward(&gated)?)?;
        }
        self.normed(&hidden, &self.norm)?.to_dtype(DType::F32)
    }

    /// Gives a place in one arena to all caches that have none.
    fn seat(&self, pass: &Pass, caches: &mut [Cache]) -> Result<()> {
        let standing = caches.iter().filter(|cache| cache.seat().is_none());
        let users = standing.count();
        if users == 0 {
            return Ok(());
        }
        let rows = pass.spans.iter().map(|span| span.rows.len()).max();
        let arena = Arena::new(self.sizes(), users, rows.unwrap_or(0), &self.embedding)?;
        let arena = Arc::new(arena);
        let standing = caches.iter_mut().filter(|cache| cache.seat().is_none());
        for (place, cache) in standing.enumerate() {
            cache.sit(Seat {
                arena: Arc::clone(&arena),
                place,
            });
        }
        Ok(())
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(x, weight, self.geometry.epsilon)
    }
}

/// Attention of one layer.
struct Step<'a> {
    network: &'a Network,
    plan: &'a Plan,
    caches: &'a [Cache],
    layer: usize,
}

impl Step<'_> {
    /// Packed `[rows, q + k + v]` -> packed `[rows, heads · width]`, or of the wanted rows alone.
    fn attend(&self, qkv: &Tensor, wanted: bool) -> Result<Tensor> {
        let mut mixed = Vec::with_capacity(self.plan.families.len());
        for family in &self.plan.families {
            mixed.push(self.family(qkv, family, wanted)?);
        }
        let back = if wanted {
            &self.plan.wanted_back
        } else {
            &self.plan.back
        };
        let mixed = match <[Tensor; 1]>::try_from(mixed) {
            Ok([mixed]) => mixed,
            Err(several) => Tensor::cat(&several, 0)?,
        };
        mixed.index_select(back, 0)
    }

    /// Padded `[places · rows, heads · width]` of one family.
    fn family(&self, qkv: &Tensor, family: &Family, wanted: bool) -> Result<Tensor> {
        let (queries, keys, values) = self.turned(qkv, family, &family.rows)?;
        let from = (family.places.start, family.first);
        family.arena.write(self.layer, from, (&keys, &values))?;
        let rows = if wanted { &family.wanted } else { &family.rows };
        let queries = if wanted {
            self.turned(qkv, family, rows)?.0
        } else {
            queries
        };
        let places = family.places.clone();
        let (keys, values) = family.arena.read(self.layer, places, family.columns)?;
        let geometry = &self.network.geometry;
        let (kv_heads, width) = (geometry.kv_heads, geometry.head_dim);
        let (group, users) = (geometry.heads / kv_heads, family.places.len());
        let own = queries.matmul(&keys.t()?)?;
        let apart = (kv_heads, users, rows.most, group, family.columns);
        let own = own.reshape(apart)?.broadcast_add(&rows.unseen)?;
        let own = own.reshape((kv_heads, users, rows.most * group, family.columns))?;
        let mixed = match self.caches[family.lead].shared(self.layer)? {
            None => softmax_last_dim(&own)?.matmul(&values)?,
            Some((shared_keys, shared_values)) => {
                let all = (kv_heads, users * rows.most * group, ());
                let shared = queries.reshape(all)?.matmul(&shared_keys.t()?)?;
                let shared = shared.reshape((kv_heads, users, rows.most * group, ()))?;
                let known = shared.dim(3)?;
                let weights = softmax_last_dim(&Tensor::cat(&[&shared, &own], 3)?)?;
                let part = |from, many| weights.narrow(3, from, many)?.contiguous();
                let own = part(known, family.columns)?.matmul(&values)?;
                let shared = part(0, known)?.reshape(all)?.matmul(&shared_values)?;
                (own + shared.reshape((kv_heads, users, rows.most * group, width))?)?
            }
        };
        let mixed = mixed.reshape((kv_heads, users, rows.most, group, width))?;
        let mixed = mixed.permute((1, 2, 0, 3, 4))?.contiguous()?;
        mixed.reshape((users * rows.most, geometry.heads * width))
    }

    /// Queries `[kv heads, places, rows · group, width]`, scaled, and keys and values
    /// `[kv heads, places, rows, width]` of padded rows; queries and keys are turned by position.
    fn turned(
        &self,
        qkv: &Tensor,
        family: &Family,
        rows: &Rows,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let geometry = &self.network.geometry;
        let (heads, kv_heads, width) = (geometry.heads, geometry.kv_heads, geometry.head_dim);
        let (users, both) = (family.places.len(), heads + kv_heads);
        let padded = qkv.index_select(&rows.index, 0)?;
        let many = users * rows.most;
        let heads_of = padded.narrow(1, 0, both * width)?.contiguous()?;
        let heads_of = match &self.network.layers[self.layer].norms {
            None => heads_of,
            Some((ones, weights)) => {
                let heads_of = heads_of.reshape((many * both, width))?;
                let normed = rms_norm(&heads_of, ones, geometry.epsilon)?;
                (normed.reshape((many, both, width))?).broadcast_mul(weights)?
            }
        };
        let heads_of = heads_of.reshape((1, many, both, width))?;
        let (cos, sin) = &self.network.angles;
        let turn = |table: &Tensor| table.index_select(&rows.positions, 0);
        let turned = rope_thd(&heads_of, &turn(cos)?, &turn(sin)?)?;
        let queries = turned.narrow(2, 0, heads)?;
        let group = heads / kv_heads;
        let queries = queries.reshape((users, rows.most, kv_heads, group, width))?;
        let queries = queries.permute((2, 0, 1, 3, 4))?.contiguous()?;
        let queries = queries.reshape((kv_heads, users, rows.most * group, width))?;
        let queries = queries.affine(1.0 / (width as f64).sqrt(), 0.0)?;
        let by_head = |x: Tensor| -> Result<Tensor> {
            let x = x.reshape((users, rows.most, kv_heads, width))?;
            x.permute((2, 0, 1, 3))?.contiguous()
        };
        let keys = by_head(turned.narrow(2, heads, kv_heads)?)?;
        let values = by_head(padded.narrow(1, both * width, kv_heads * width)?)?;
        Ok((queries, keys, values))
    }
}

fn plus(x: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => x.broadcast_add(bias),
        None => Ok(x),
    }
}

/// Cosine and sine of every position that the model was made for, f32.
fn angles(geometry: &Geometry) -> Result<(Tensor, Tensor)> {
    let (rope, positions) = (&geometry.rope, geometry.context);
    let of = |turn: fn(f64) -> f64| {
        let row = |position: usize| {
            let speeds = rope.speeds.iter();
            speeds.map(move |speed| (turn(position as f64 * speed) * rope.scale) as f32)
        };
        let all = (0..positions).flat_map(row).collect();
        Tensor::from_vec(all, (positions, rope.speeds.len()), &Device::Cpu)
    };
    Ok((of(f64::cos)?, of(f64::sin)?))
}
