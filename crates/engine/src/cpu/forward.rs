//! One forward pass of a decoder over packed rows of many users.
//!
//! Decides the order of a layer's steps: [`Linear`] multiplies, [`attention`] attends, [`Cache`] keeps keys and values.
//! Rows of one pass see each other only through their own user's cache. Invariant: a row's result is equal, bit for
//! bit, with any other rows in the pass. It does not know prompts, tries or searches.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Device, InplaceOp2, Layout, Result, Shape, Storage, Tensor,
    bail,
};

use super::attention::{self, Heads, Queries, Sight, Span};
use super::beside::{Beside, Smoothed};
use super::extras::Extras;
use super::kernel;
use super::kv::{Cache, Sizes};
use super::linear::Linear;
use super::smooth::{Maxima, Smoothing};
use super::token_rows::TokenRows;
use super::vocabulary;
use crate::Error;
use crate::formats::adapter::Adapter;
use crate::formats::families::Gate;
use crate::formats::geometry::{Geometry, Part};
use crate::formats::open::Opened;
use crate::formats::rope::Rope;
use crate::formats::weights::LayerWeights;
#[cfg(test)]
use crate::formats::weights::Weights;
use crate::{Options, Precision};

/// A loaded model. A copy shares its weights.
#[derive(Clone)]
pub(crate) struct Network {
    ends: Ends,
    layers: Vec<Layer>,
    /// The factors of each layer of int8; empty for others.
    smoothed: Arc<[Smoothed]>,
}

/// What a network has before and after its layers.
#[derive(Clone)]
pub(crate) struct Ends {
    /// Sizes and constants.
    pub geometry: Arc<Geometry>,
    /// `[vocabulary, hidden]`.
    pub embedding: Arc<TokenRows>,
    /// `[vocabulary, hidden]`; the embedding itself if the file ties them.
    pub head: Arc<TokenRows>,
    /// `[hidden]`: norm before the head.
    pub norm: Tensor,
}

/// The weights of one layer, ready to multiply.
#[derive(Clone)]
pub(crate) struct Layer {
    attention_norm: Tensor,
    qkv: Linear,
    output: Linear,
    feed_norm: Tensor,
    gate_up: Linear,
    down: Linear,
    extras: Extras,
}

impl Layer {
    /// The reference: the `f32` weights multiplied by candle's `gemm`; it records the maxima of each product's inputs.
    pub(crate) fn watched(weights: &LayerWeights) -> Result<Self> {
        Self::new(weights, |weight| Linear::watched(weight.clone()))
    }

    /// The largest magnitude of each input of each product; empty unless they were recorded.
    pub(crate) fn maxima(&self) -> Maxima {
        Maxima {
            qkv: self.qkv.maxima(),
            output: self.output.maxima(),
            gate_up: self.gate_up.maxima(),
            down: self.down.maxima(),
        }
    }

    fn new(weights: &LayerWeights, linear: impl Fn(&Tensor) -> Result<Linear>) -> Result<Self> {
        Ok(Self {
            attention_norm: weights.attention_norm.clone(),
            qkv: linear(&weights.qkv)?,
            output: linear(&weights.output)?,
            feed_norm: weights.feed_norm.clone(),
            gate_up: linear(&weights.gate_up)?,
            down: linear(&weights.down)?,
            extras: weights.extras.clone(),
        })
    }
}

/// Rows of one pass: either all of prompts, or all of trie nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pass {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its user's sequence.
    pub positions: Vec<usize>,
    /// What each row sees; the row itself is the last.
    pub sights: Vec<Sight>,
    /// The rows of each user, in order and without gaps.
    pub spans: Vec<Span>,
    /// Whether rows are trie nodes, which are appended as slots; rows of prompts are written at positions.
    pub nodes: bool,
    /// Rows whose hidden state is wanted, ascending.
    pub wanted: Vec<usize>,
}

impl Network {
    /// Packs a model's weights in the precision of `options`. For int8 they are smoothed first, by the activations of
    /// `samples`.
    pub(crate) fn new(
        model: &Opened,
        options: Options,
        samples: &[Vec<u32>],
    ) -> std::result::Result<Self, Error> {
        let failed = |source: candle_core::Error| Error::Compute {
            what: "weights".into(),
            source: Box::new(source),
        };
        let ends = Ends::of(model)?;
        let mut smoothing = match options.precision {
            Precision::Int8 => Some(Smoothing::new(&ends, samples).map_err(failed)?),
            Precision::F32 | Precision::Bf16 => None,
        };
        let (mut layers, mut smoothed) = (Vec::with_capacity(ends.geometry.layers), Vec::new());
        // Layer by layer, so that never all layers are in memory in both forms.
        for nth in 0..ends.geometry.layers {
            let mut weights = model.layer(nth)?;
            if let Some(smoothing) = &mut smoothing {
                let factors = smoothing.smooth(nth, &mut weights, options.threads);
                smoothed.push(factors.map_err(failed)?);
            }
            let packed = Layer::new(&weights, |weight| Linear::packed(weight, options));
            layers.push(packed.map_err(failed)?);
        }
        Ok(Self {
            ends,
            layers,
            smoothed: smoothed.into(),
        })
    }

    /// The network with an adapter that fits it beside its weights, which both share.
    pub(crate) fn beside(&self, adapter: &Adapter, options: Options) -> Self {
        let layer = |(nth, layer): (usize, &Layer)| {
            let smoothed = self.smoothed.get(nth);
            let added = Beside::new(adapter, nth, &self.ends.geometry, smoothed, options);
            Layer {
                qkv: layer.qkv.beside(added.qkv),
                output: layer.output.beside(added.output),
                gate_up: layer.gate_up.beside(added.gate_up),
                down: layer.down.beside(added.down),
                ..layer.clone()
            }
        };
        Self {
            layers: self.layers.iter().enumerate().map(layer).collect(),
            ..self.clone()
        }
    }

    /// The reference of tests: [`Layer::watched`] of each layer.
    #[cfg(test)]
    pub(crate) fn watched(weights: &Weights) -> Result<Self> {
        let layers = weights.layers.iter().map(Layer::watched);
        let rows = |matrix: &Tensor| -> Result<Arc<TokenRows>> {
            let numbers = matrix.flatten_all()?.to_vec1()?;
            Ok(Arc::new(TokenRows::new(numbers, weights.geometry.hidden)))
        };
        let ends = Ends {
            geometry: Arc::new(weights.geometry.clone()),
            embedding: rows(&weights.embedding)?,
            head: rows(&weights.head)?,
            norm: weights.norm.clone(),
        };
        Ok(Self {
            ends,
            layers: layers.collect::<Result<_>>()?,
            smoothed: Arc::default(),
        })
    }

    /// Bytes of the layers' weights.
    pub(crate) fn bytes(&self) -> usize {
        let layers = self.layers.iter();
        let linears = layers.flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        linears.map(Linear::bytes).sum()
    }

    /// How weights are stored and multiplied, for reports.
    pub(crate) fn dtype(&self) -> &'static str {
        self.layers.first().map_or("f32", |layer| layer.qkv.name())
    }

    /// Sizes and constants.
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.ends.geometry
    }

    /// Sizes of a [`Cache`] for this network.
    pub(crate) fn sizes(&self) -> Sizes {
        self.ends.sizes(self.layers.len())
    }

    /// Computes the rows, adds their keys and values to `caches`, and returns the hidden state before the head of each
    /// wanted row: `[wanted, hidden]`, row-major.
    pub(crate) fn forward(
        &self,
        pass: &Pass,
        caches: &mut [Cache],
        threads: usize,
    ) -> Result<Vec<f32>> {
        let step = Step::new(&self.ends.geometry, pass, threads);
        let mut hidden = self.ends.embedded(&pass.tokens)?;
        for (nth, layer) in self.layers.iter().enumerate() {
            hidden = step.layer(nth, layer, hidden, caches, nth)?;
        }
        for span in &pass.spans {
            let rows = span.rows.len();
            let (positions, nodes) = if pass.nodes { (0, rows) } else { (rows, 0) };
            caches[span.cache].advance(positions, nodes);
        }
        step.normed(&hidden, &self.ends.norm)?
            .flatten_all()?
            .to_vec1()
    }

    /// Logits of some tokens from one hidden state.
    pub(crate) fn logits(&self, hidden: &[f32], tokens: &[u32]) -> Result<Vec<f32>> {
        let geometry = &self.ends.geometry;
        (tokens.iter())
            .map(|token| match self.ends.head.row(*token) {
                Some(row) => Ok(geometry.capped(kernel::dot(hidden, row))),
                None => bail!("token {token} is not in the vocabulary"),
            })
            .collect()
    }

    /// Logits of the whole vocabulary from each hidden state, on at most `threads` threads of the current pool.
    pub(crate) fn all_logits(&self, hidden: &[&[f32]], threads: usize) -> Result<Vec<Vec<f32>>> {
        let products = vocabulary::products(self.ends.head.whole(), hidden, threads);
        let capped = products.into_iter().map(|mut logits| {
            logits
                .iter_mut()
                .for_each(|logit| *logit = self.ends.geometry.capped(*logit));
            logits
        });
        Ok(capped.collect())
    }
}

impl Ends {
    fn of(model: &Opened) -> std::result::Result<Self, Error> {
        let embedding = Arc::new(model.token_rows(Part::Embedding)?);
        let head = match model.geometry().tied {
            true => Arc::clone(&embedding),
            false => Arc::new(model.token_rows(Part::Head)?),
        };
        Ok(Self {
            geometry: Arc::new(model.geometry().clone()),
            embedding,
            head,
            norm: model.norm()?,
        })
    }

    /// Sizes of a [`Cache`] for some layers.
    pub(crate) fn sizes(&self, layers: usize) -> Sizes {
        Sizes {
            layers,
            heads: self.geometry.kv_heads,
            width: self.geometry.head_dim,
            number: size_of::<f32>(),
        }
    }

    /// The rows of `tokens` before the first layer, `[tokens, hidden]`.
    pub(crate) fn embedded(&self, tokens: &[u32]) -> Result<Tensor> {
        let mut rows = match self.embedding.gather(tokens) {
            Ok(rows) => rows,
            Err(token) => bail!("token {token} is not in the vocabulary"),
        };
        let scale = self.geometry.embedding_scale();
        if scale != 1.0 {
            kernel::scale(&mut rows, scale);
        }
        Tensor::from_vec(rows, (tokens.len(), self.geometry.hidden), &Device::Cpu)
    }
}

/// A pass on its way through the layers.
pub(crate) struct Step<'a> {
    geometry: &'a Geometry,
    pass: &'a Pass,
    /// The wanted rows alone.
    narrow: Pass,
    /// One for each rope of the model.
    angles: Vec<Angles>,
    threads: usize,
}

impl<'a> Step<'a> {
    /// Prepares what all layers need.
    pub(crate) fn new(geometry: &'a Geometry, pass: &'a Pass, threads: usize) -> Self {
        let ropes = geometry.ropes.iter();
        Self {
            geometry,
            pass,
            narrow: pass.narrow(),
            angles: (ropes.map(|rope| Angles::new(rope, &pass.positions))).collect(),
            threads,
        }
    }

    /// Computes the `nth` layer of the model, whose keys and values are layer `kept` of `caches`: `[rows, hidden]` ->
    /// `[rows, hidden]`, after the last layer `[wanted, hidden]`.
    pub(crate) fn layer(
        &self,
        nth: usize,
        layer: &Layer,
        mut hidden: Tensor,
        caches: &mut [Cache],
        kept: usize,
    ) -> Result<Tensor> {
        let (pass, threads) = (self.pass, self.threads);
        let qkv = layer
            .qkv
            .forward(&self.normed(&hidden, &layer.attention_norm)?, threads)?;
        layer.extras.onto_qkv(&qkv)?;
        let view = self.geometry.views[nth];
        let mut queries = self.split(&qkv, &self.angles[view.rope], kept, caches)?;
        let mut sees = pass;
        if nth + 1 == self.geometry.layers {
            // In the last layer only keys and values of the other rows are needed.
            let wanted: Vec<u32> = pass.wanted.iter().map(|row| *row as u32).collect();
            let wanted = Tensor::new(wanted, hidden.device())?;
            hidden = hidden.index_select(&wanted, 0)?;
            queries = gather(
                &queries,
                &pass.wanted,
                self.heads().queries * self.heads().width,
            );
            sees = &self.narrow;
        }
        let seen = Queries {
            heads: self.heads(),
            values: &queries,
            sights: &sees.sights,
            window: view.window,
        };
        let mixed = attention::attend(seen, &sees.spans, caches, kept);
        let mixed = Tensor::from_vec(mixed, (sees.sights.len(), ()), hidden.device())?;
        let mixed = layer.output.forward(&mixed, threads)?;
        layer.extras.onto_output(&mixed)?;
        hidden.inplace_op2(&mixed, &AddTo)?;
        let normed = self.normed(&hidden, &layer.feed_norm)?;
        let gated = layer
            .gate_up
            .forward(&normed, threads)?
            .apply_op1_no_bwd(&Gated(self.geometry.family.gate))?;
        let down = layer.down.forward(&gated, threads)?;
        layer.extras.onto_down(&down)?;
        hidden.inplace_op2(&down, &AddTo)?;
        Ok(hidden)
    }

    fn heads(&self) -> Heads {
        Heads {
            queries: self.geometry.heads,
            keys: self.geometry.kv_heads,
            width: self.geometry.head_dim,
        }
    }

    fn normed(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(
            weight,
            &RmsNorm {
                epsilon: self.geometry.epsilon,
            },
        )
    }

    /// Rotates queries and keys, writes keys and values into the caches of `layer`; returns the queries,
    /// `[rows, heads · width]`.
    fn split(
        &self,
        qkv: &Tensor,
        angles: &Angles,
        layer: usize,
        caches: &mut [Cache],
    ) -> Result<Vec<f32>> {
        let (storage, layout) = qkv.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(qkv)), Some((from, until))) =
            (&*storage, layout.contiguous_offsets())
        else {
            bail!("qkv is not contiguous f32 on the cpu")
        };
        let qkv = &qkv[from..until];
        let (pass, heads) = (self.pass, self.heads());
        let (wide, narrow) = (heads.queries * heads.width, heads.keys * heads.width);
        let half = heads.width / 2;
        let mut queries = Vec::with_capacity(pass.tokens.len() * wide);
        let mut key = vec![0f32; narrow];
        for span in &pass.spans {
            let cache = &mut caches[span.cache];
            for row in span.rows.clone() {
                let cos = &angles.cos[row * half..][..half];
                let sin = &angles.sin[row * half..][..half];
                let (q, kv) = qkv[row * (wide + 2 * narrow)..].split_at(wide);
                let (k, v) = kv.split_at(narrow);
                queries.extend_from_slice(q);
                kernel::rotate(&mut queries[row * wide..], cos, sin);
                key.copy_from_slice(k);
                kernel::rotate(&mut key, cos, sin);
                if pass.nodes {
                    cache.push_node(layer, &key, &v[..narrow]);
                } else {
                    cache.write_prompt(layer, pass.positions[row], &key, &v[..narrow]);
                }
            }
        }
        Ok(queries)
    }
}

/// Cosines and sines of each pair's angle in a pass: `[rows, width / 2]` each.
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn new(rope: &Rope, positions: &[usize]) -> Self {
        let each = positions.iter().flat_map(|position| rope.angles(*position));
        let (sin, cos) = each.unzip();
        Self { cos, sin }
    }
}

impl Pass {
    /// Adds `tokens` of a prompt from `position` on; the last one's hidden state is wanted.
    pub(crate) fn add_prompt(&mut self, cache: usize, position: usize, tokens: &[u32]) {
        let from = self.tokens.len();
        for (nth, token) in tokens.iter().enumerate() {
            self.tokens.push(*token);
            self.positions.push(position + nth);
            self.sights.push(Sight {
                prompt: position + nth + 1,
                slots: Vec::new(),
            });
        }
        self.wanted.push(self.tokens.len() - 1);
        self.spans.push(Span {
            cache,
            rows: from..self.tokens.len(),
        });
    }

    /// The spans and sights of the wanted rows alone.
    fn narrow(&self) -> Self {
        let place = |row: usize| self.wanted.partition_point(|wanted| *wanted < row);
        let span = |span: &Span| Span {
            cache: span.cache,
            rows: place(span.rows.start)..place(span.rows.end),
        };
        Self {
            sights: self
                .wanted
                .iter()
                .map(|row| self.sights[*row].clone())
                .collect(),
            spans: self.spans.iter().map(span).collect(),
            ..Self::default()
        }
    }
}

/// The wanted rows alone, `[wanted, width]`.
fn gather(rows: &[f32], wanted: &[usize], width: usize) -> Vec<f32> {
    wanted
        .iter()
        .flat_map(|row| &rows[row * width..][..width])
        .copied()
        .collect()
}

/// `x / sqrt(mean(x²) + epsilon) · weight`, row by row.
struct RmsNorm {
    epsilon: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let mut out = vec![0f32; x.len()];
        kernel::rms_norm(x, weight, self.epsilon, &mut out);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }
}

/// `x += y`. candle's own sum would start a second thread pool, whose threads spin.
struct AddTo;

impl InplaceOp2 for AddTo {
    fn name(&self) -> &'static str {
        "add-to"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let y = slice(y, y_layout)?;
        match (x, x_layout.contiguous_offsets()) {
            (CpuStorage::F32(x), Some((from, to))) => {
                kernel::add(&mut x[from..to], y);
                Ok(())
            }
            _ => bail!("not contiguous f32"),
        }
    }
}

/// `[rows, 2 · width]` (gate, up) -> `[rows, width]`: f(gate) · up.
struct Gated(Gate);

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, both) = layout.shape().dims2()?;
        let x = slice(x, layout)?;
        let mut out = vec![0f32; rows * both / 2];
        for (x, out) in x.chunks_exact(both).zip(out.chunks_exact_mut(both / 2)) {
            let (gate, up) = x.split_at(both / 2);
            match self.0 {
                Gate::Silu => kernel::swiglu(gate, up, out),
                Gate::GeluTanh => kernel::geglu(gate, up, out),
            }
        }
        Ok((CpuStorage::F32(out), (rows, both / 2).into()))
    }
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&values[from..to]),
        _ => bail!("not contiguous f32"),
    }
}
