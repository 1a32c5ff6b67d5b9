//! A decoder whose weights can be trained: forward pass in candle's autograd.
//!
//! Decides which models can be trained, and which of their numbers: all of them, or two small matrices beside a few
//! products (LoRA). Invariant: a row's hidden state is that of the engine's own pass in f32, within rounding; tests
//! compare them. It does not know names, losses or steps.

use candle_core::{Device, Result, Tensor, Var};

use super::ops::{frozen, rms_norm, rotate, softmax};
use super::options::{Lora, Target, Trained};
use super::rows::Rows;
use crate::formats::geometry::{Geometry, Part};
use crate::formats::rope::Rope;
use crate::formats::weights::{LayerWeights, Weights};
use nearshore_core::learn::bootstrap::Random;

/// A number of tensors that are trained, by name.
#[derive(Default)]
pub(super) struct Parameters {
    /// What each is called in the file that is written.
    pub(super) names: Vec<String>,
    pub(super) vars: Vec<Var>,
}

impl Parameters {
    fn add(&mut self, name: String, first: &Tensor) -> Result<Tensor> {
        // A copy: the tensor may be a part of another one.
        let var = Var::from_tensor(&first.copy()?)?;
        let tensor = var.as_tensor().clone();
        self.names.push(name);
        self.vars.push(var);
        Ok(tensor)
    }
}

/// A product with weights `[out, in]`.
struct Linear {
    weight: Tensor,
    is_trained: bool,
    bias: Option<Tensor>,
    /// A `[rank, in]`, B `[out, rank]`, and the factor on their product.
    beside: Option<(Tensor, Tensor, f64)>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = match self.is_trained {
            true => x.matmul(&self.weight.t()?)?,
            false => frozen(x, &self.weight)?,
        };
        if let Some((a, b, scale)) = &self.beside {
            let small = x.matmul(&a.t()?)?;
            y = (y + (small.matmul(&b.t()?)? * *scale)?)?;
        }
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Tensor>,
    key_norm: Option<Tensor>,
    feed_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A model in training.
pub(super) struct Network {
    geometry: Geometry,
    device: Device,
    embedding: Tensor,
    head: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
    parameters: Parameters,
    trained: Trained,
    random: Random,
}

/// Why a model of these sizes cannot be trained; `None` if it can.
pub(super) fn refuses(geometry: &Geometry) -> Option<String> {
    let partial = geometry.rotated < geometry.head_dim;
    let cases = [
        (geometry.needs_cpu(), geometry.needs_cpu().is_some()),
        (Some("fused projections"), geometry.family.fused),
        (Some("heads of which a part is rotated"), partial),
        (Some("a query scalar"), geometry.score_scale() != 1.0),
    ];
    let what = cases.into_iter().find(|(_, is)| *is)?.0?;
    let family = geometry.family.name;
    Some(format!(
        "this {family} has {what}, which training does not support"
    ))
}

impl Network {
    /// A network of no layers yet; [`push`](Self::push) adds them. `base` has none of its own.
    pub(super) fn new(
        base: &Weights,
        trained: &Trained,
        device: &Device,
        seed: u64,
    ) -> Result<Self> {
        let mut parameters = Parameters::default();
        let mut place = |name: &str, x: &Tensor| -> Result<Tensor> {
            let x = x.to_device(device)?;
            match trained {
                Trained::Full => parameters.add(name.to_owned(), &x),
                Trained::Lora(_) => Ok(x),
            }
        };
        let embedding = place("model.embed_tokens.weight", &base.embedding)?;
        let head = match base.geometry.tied {
            true => embedding.clone(),
            false => place("lm_head.weight", &base.head)?,
        };
        let norm = place("model.norm.weight", &base.norm)?;
        Ok(Self {
            geometry: base.geometry.clone(),
            device: device.clone(),
            embedding,
            head,
            norm,
            layers: Vec::new(),
            parameters,
            trained: trained.clone(),
            random: Random::new(seed),
        })
    }

    /// Adds the next layer.
    pub(super) fn push(&mut self, weights: &LayerWeights) -> Result<()> {
        let geometry = self.geometry.clone();
        let (nth, width) = (self.layers.len(), geometry.head_dim);
        let (queries, keys) = (geometry.heads * width, geometry.kv_heads * width);
        let feed = geometry.feed_forward;
        let bias = weights.extras.bias.as_deref();
        let part = |from: usize, many: usize| bias.map(|bias| &bias[from..from + many]);
        let output_bias = weights.extras.output_bias.as_deref();
        let qkv = |from, many| weights.qkv.narrow(0, from, many);
        let gate_up = |from| weights.gate_up.narrow(0, from, feed);
        let layer = Layer {
            attention_norm: self.row(Part::AttentionNorm(nth), &weights.attention_norm)?,
            query: self.linear(Target::Query, nth, &qkv(0, queries)?, part(0, queries))?,
            key: self.linear(Target::Key, nth, &qkv(queries, keys)?, part(queries, keys))?,
            value: {
                let from = queries + keys;
                self.linear(Target::Value, nth, &qkv(from, keys)?, part(from, keys))?
            },
            output: self.linear(Target::Output, nth, &weights.output, output_bias)?,
            query_norm: match &weights.extras.norms {
                Some(norms) => Some(self.numbers(Part::QueryNorm(nth), &norms.query)?),
                None => None,
            },
            key_norm: match &weights.extras.norms {
                Some(norms) => Some(self.numbers(Part::KeyNorm(nth), &norms.key)?),
                None => None,
            },
            feed_norm: self.row(Part::FeedNorm(nth), &weights.feed_norm)?,
            gate: self.linear(Target::Gate, nth, &gate_up(0)?, None)?,
            up: self.linear(Target::Up, nth, &gate_up(feed)?, None)?,
            down: self.linear(Target::Down, nth, &weights.down, None)?,
        };
        self.layers.push(layer);
        Ok(())
    }

    fn numbers(&mut self, part: Part, numbers: &[f32]) -> Result<Tensor> {
        self.row(part, &Tensor::new(numbers, &Device::Cpu)?)
    }

    /// A tensor that is trained with all others only.
    fn row(&mut self, part: Part, first: &Tensor) -> Result<Tensor> {
        let first = first.to_device(&self.device)?;
        match self.trained {
            Trained::Full => self
                .parameters
                .add(crate::formats::folder::tensor_name(part, false), &first),
            Trained::Lora(_) => Ok(first),
        }
    }

    fn linear(
        &mut self,
        target: Target,
        layer: usize,
        weight: &Tensor,
        bias: Option<&[f32]>,
    ) -> Result<Linear> {
        let weight = weight.to_device(&self.device)?.contiguous()?;
        let bias = match bias {
            None => None,
            Some(bias) => match target.bias(layer) {
                Some(part) => Some(self.numbers(part, bias)?),
                None => None,
            },
        };
        let (weight, beside) = match self.trained.clone() {
            Trained::Full => {
                let name = crate::formats::folder::tensor_name(target.part(layer), false);
                (self.parameters.add(name, &weight)?, None)
            }
            Trained::Lora(lora) if lora.has(target, layer) => {
                let beside = self.beside(&lora, (target, layer), weight.dims2()?)?;
                (weight, Some(beside))
            }
            Trained::Lora(_) => (weight, None),
        };
        Ok(Linear {
            weight,
            is_trained: matches!(self.trained, Trained::Full),
            bias,
            beside,
        })
    }

    /// A at random, as PEFT has it, and B at 0: the model is unchanged at first.
    fn beside(
        &mut self,
        lora: &Lora,
        (target, layer): (Target, usize),
        (out, inputs): (usize, usize),
    ) -> Result<(Tensor, Tensor, f64)> {
        let bound = 1.0 / (inputs as f64).sqrt();
        let random = &mut self.random;
        let a = (0..lora.rank * inputs).map(|_| (bound * (2.0 * random.uniform() - 1.0)) as f32);
        let a = Tensor::from_vec(a.collect::<Vec<_>>(), (lora.rank, inputs), &self.device)?;
        let b = Tensor::zeros((out, lora.rank), a.dtype(), &self.device)?;
        let name = |which| crate::formats::adapter::tensor_name(&target.module(), layer, which);
        let a = self.parameters.add(name("lora_A"), &a)?;
        let b = self.parameters.add(name("lora_B"), &b)?;
        Ok((a, b, lora.scale()))
    }

    /// What is trained.
    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Sizes and constants.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where it is computed.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The path score of each name: over its choices, the sum of the log-probability among what is permitted.
    pub(super) fn scores(&self, rows: &Rows) -> Result<Tensor> {
        if rows.edges.is_empty() {
            return Tensor::zeros(rows.names, candle_core::DType::F32, &self.device);
        }
        let list = |all: &[u32]| Tensor::new(all, &self.device);
        let hidden = self.hidden(rows)?;
        let choices = list(&rows.choice_of_children)?;
        let hidden = hidden.index_select(&list(&rows.choices)?, 0)?;
        let children = self
            .head
            .index_select(&list(&rows.tokens_of_children)?, 0)?;
        let logits = (hidden.index_select(&choices, 0)? * children)?.sum(1)?;
        // The greatest logit of each choice is taken off first, or else a sum could overflow.
        let mut tops = vec![f32::NEG_INFINITY; rows.choices.len()];
        let plain = logits.detach().to_vec1::<f32>()?;
        for (choice, logit) in rows.choice_of_children.iter().zip(plain) {
            tops[*choice as usize] = tops[*choice as usize].max(logit);
        }
        let tops = Tensor::from_vec(tops, rows.choices.len(), &self.device)?;
        let logits = (logits - tops.index_select(&choices, 0)?)?;
        let sums = tops.zeros_like()?.index_add(&choices, &logits.exp()?, 0)?;
        let logs = (logits - sums.log()?.index_select(&choices, 0)?)?;
        let (names, chosen): (Vec<u32>, Vec<u32>) = rows.edges.iter().copied().unzip();
        let edges = logs.index_select(&list(&chosen)?, 0)?;
        let zeros = Tensor::zeros(rows.names, edges.dtype(), &self.device)?;
        zeros.index_add(&list(&names)?, &edges, 0)
    }

    /// The hidden state before the head of each row.
    fn hidden(&self, rows: &Rows) -> Result<Tensor> {
        let mask = rows.mask(&self.device)?;
        let ids = Tensor::new(rows.tokens.as_slice(), &self.device)?;
        let angles = self.geometry.ropes.iter();
        let angles = angles.map(|rope| angles_of(rope, &rows.positions, &self.device));
        let angles: Vec<(Tensor, Tensor)> = angles.collect::<Result<_>>()?;
        let epsilon = self.geometry.epsilon;
        let mut hidden = self.embedding.index_select(&ids, 0)?;
        for (layer, view) in self.layers.iter().zip(&self.geometry.views) {
            let normed = rms_norm(&hidden, &layer.attention_norm, epsilon)?;
            let mixed = self.attend(layer, &normed, &angles[view.rope], &mask)?;
            hidden = (hidden + layer.output.forward(&mixed)?)?;
            let normed = rms_norm(&hidden, &layer.feed_norm, epsilon)?;
            let gate = layer.gate.forward(&normed)?.silu()?;
            let gated = (gate * layer.up.forward(&normed)?)?;
            hidden = (hidden + layer.down.forward(&gated)?)?;
        }
        rms_norm(&hidden, &self.norm, epsilon)
    }

    fn attend(
        &self,
        layer: &Layer,
        x: &Tensor,
        (cos, sin): &(Tensor, Tensor),
        mask: &Tensor,
    ) -> Result<Tensor> {
        let Geometry {
            heads,
            kv_heads,
            head_dim: width,
            epsilon,
            ..
        } = self.geometry;
        let (rows, group) = (x.dim(0)?, heads / kv_heads);
        let turned = |linear: &Linear, heads: usize, norm: &Option<Tensor>| {
            let mut x = linear.forward(x)?.reshape((rows, heads, width))?;
            if let Some(norm) = norm {
                x = rms_norm(&x, norm, epsilon)?;
            }
            rotate(&x, cos, sin)?.transpose(0, 1)?.contiguous()
        };
        // The query heads that share a key head are one after the other.
        let queries = turned(&layer.query, heads, &layer.query_norm)?;
        let queries = queries.reshape((kv_heads, group * rows, width))?;
        let keys = turned(&layer.key, kv_heads, &layer.key_norm)?;
        let values = layer.value.forward(x)?.reshape((rows, kv_heads, width))?;
        let values = values.transpose(0, 1)?.contiguous()?;
        let scores = (queries.matmul(&keys.t()?)? / (width as f64).sqrt())?;
        let scores = scores.reshape((heads, rows, rows))?.broadcast_add(mask)?;
        let shares = softmax(&scores)?.reshape((kv_heads, group * rows, rows))?;
        let mixed = shares.matmul(&values)?.reshape((heads, rows, width))?;
        mixed
            .transpose(0, 1)?
            .contiguous()?
            .reshape((rows, heads * width))
    }
}

/// Cosine and sine of rows at these positions, `[rows, 1, half]` each.
fn angles_of(rope: &Rope, positions: &[usize], device: &Device) -> Result<(Tensor, Tensor)> {
    let each = positions.iter().flat_map(|position| rope.angles(*position));
    let (sin, cos): (Vec<f32>, Vec<f32>) = each.unzip();
    let shape = (positions.len(), 1, rope.frequencies.len());
    let of = |all| Tensor::from_vec(all, shape, device);
    Ok((of(cos)?, of(sin)?))
}
