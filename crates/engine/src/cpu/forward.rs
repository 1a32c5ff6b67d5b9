//! One forward pass of a decoder over packed rows of many users.
//!
//! Decides the order of a layer's steps: [`Linear`] multiplies, [`attention`] attends, [`Cache`] keeps keys and values.
//! Rows of one pass see each other only through their own user's cache. Invariant: a row's result is equal, bit for
//! bit, with any other rows in the pass. It does not know prompts, tries or searches.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, InplaceOp1, InplaceOp2, Layout, Result, Shape, Storage,
    Tensor, bail,
};

use super::attention::{self, Heads, Queries, Sight, Span};
use super::extras::Extras;
use super::kernel;
use super::kv::{Cache, Sizes};
use super::linear::Linear;
use super::smooth::{self, Maxima};
use super::vocabulary;
use crate::Error;
use crate::formats::families::Gate;
use crate::formats::geometry::Geometry;
use crate::formats::open::Opened;
use crate::formats::rope::Rope;
use crate::formats::weights::{LayerWeights, Weights};
use crate::{Options, Precision};

/// A loaded model.
pub(crate) struct Network {
    geometry: Geometry,
    embedding: Tensor,
    head: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Tensor,
    qkv: Linear,
    output: Linear,
    feed_norm: Tensor,
    gate_up: Linear,
    down: Linear,
    extras: Extras,
}

impl Layer {
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
        let packed = |layer: LayerWeights| {
            Layer::new(&layer, |weight| Linear::packed(weight, options)).map_err(failed)
        };
        let mut weights = model.without_layers()?;
        let count = model.geometry().layers;
        // Layer by layer, so that never all layers are in memory in both forms.
        if options.precision != Precision::Int8 {
            let layers = (0..count).map(|nth| packed(model.layer(nth)?));
            let layers = layers.collect::<std::result::Result<_, _>>()?;
            return Ok(Self::of(&weights, layers));
        }
        let layers = (0..count).map(|nth| model.layer(nth));
        weights.layers = layers.collect::<std::result::Result<_, _>>()?;
        smooth::smooth(&mut weights, samples, options.threads).map_err(failed)?;
        let layers = std::mem::take(&mut weights.layers).into_iter().map(packed);
        let layers = layers.collect::<std::result::Result<_, _>>()?;
        Ok(Self::of(&weights, layers))
    }

    /// The reference: the `f32` weights multiplied by candle's `gemm`; it records the maxima of each product's inputs.
    pub(crate) fn watched(weights: &Weights) -> Result<Self> {
        let layers = (weights.layers.iter())
            .map(|layer| Layer::new(layer, |weight| Linear::watched(weight.clone())));
        Ok(Self::of(weights, layers.collect::<Result<_>>()?))
    }

    fn of(weights: &Weights, layers: Vec<Layer>) -> Self {
        Self {
            layers,
            geometry: weights.geometry.clone(),
            embedding: weights.embedding.clone(),
            head: weights.head.clone(),
            norm: weights.norm.clone(),
        }
    }

    /// The largest magnitude of each input of each layer's products; empty unless they were recorded.
    pub(crate) fn maxima(&self) -> Vec<Maxima> {
        let maxima = |layer: &Layer| Maxima {
            qkv: layer.qkv.maxima(),
            output: layer.output.maxima(),
            gate_up: layer.gate_up.maxima(),
            down: layer.down.maxima(),
        };
        self.layers.iter().map(maxima).collect()
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
        &self.geometry
    }

    /// Sizes of a [`Cache`] for this network.
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            layers: self.geometry.layers,
            heads: self.geometry.kv_heads,
            width: self.geometry.head_dim,
            number: size_of::<f32>(),
        }
    }

    /// Computes the rows, adds their keys and values to `caches`, and returns the hidden state before the head of each
    /// wanted row: `[wanted, hidden]`, row-major.
    pub(crate) fn forward(
        &self,
        pass: &Pass,
        caches: &mut [Cache],
        threads: usize,
    ) -> Result<Vec<f32>> {
        let ids = Tensor::new(pass.tokens.as_slice(), self.embedding.device())?;
        let mut hidden = self.embedding.index_select(&ids, 0)?;
        let scale = self.geometry.embedding_scale();
        if scale != 1.0 {
            hidden.inplace_op1(&Scale(scale))?;
        }
        let ropes = self.geometry.ropes.iter();
        let angles: Vec<Angles> = ropes
            .map(|rope| Angles::new(rope, &pass.positions))
            .collect();
        let last = self.layers.len() - 1;
        let narrow = pass.narrow();
        for (nth, layer) in self.layers.iter().enumerate() {
            let qkv = layer
                .qkv
                .forward(&self.normed(&hidden, &layer.attention_norm)?, threads)?;
            layer.extras.onto_qkv(&qkv)?;
            let view = self.geometry.views[nth];
            let mut queries = self.split(&qkv, pass, &angles[view.rope], nth, caches)?;
            let mut sees = pass;
            if nth == last {
                // In the last layer only keys and values of the other rows are needed.
                let wanted: Vec<u32> = pass.wanted.iter().map(|row| *row as u32).collect();
                let wanted = Tensor::new(wanted, hidden.device())?;
                hidden = hidden.index_select(&wanted, 0)?;
                queries = gather(
                    &queries,
                    &pass.wanted,
                    self.heads().queries * self.heads().width,
                );
                sees = &narrow;
            }
            let seen = Queries {
                heads: self.heads(),
                values: &queries,
                sights: &sees.sights,
                window: view.window,
            };
            let mixed = attention::attend(seen, &sees.spans, caches, nth);
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
        }
        for span in &pass.spans {
            let rows = span.rows.len();
            let (positions, nodes) = if pass.nodes { (0, rows) } else { (rows, 0) };
            caches[span.cache].advance(positions, nodes);
        }
        self.normed(&hidden, &self.norm)?.flatten_all()?.to_vec1()
    }

    /// Logits of some tokens from one hidden state.
    pub(crate) fn logits(&self, hidden: &[f32], tokens: &[u32]) -> Result<Vec<f32>> {
        let (storage, layout) = self.head.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(head)) = &*storage else {
            bail!("head is not f32 on the cpu")
        };
        let width = self.geometry.hidden;
        let row = |token: u32| head.get(layout.start_offset() + token as usize * width..);
        (tokens.iter())
            .map(
                |token| match row(*token).and_then(|rows| rows.get(..width)) {
                    Some(row) => Ok(self.geometry.capped(kernel::dot(hidden, row))),
                    None => bail!("token {token} is not in the vocabulary"),
                },
            )
            .collect()
    }

    /// Logits of the whole vocabulary from each hidden state, on at most `threads` threads of the current pool.
    pub(crate) fn all_logits(&self, hidden: &[&[f32]], threads: usize) -> Result<Vec<Vec<f32>>> {
        let (storage, layout) = self.head.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(head)), Some((from, to))) =
            (&*storage, layout.contiguous_offsets())
        else {
            bail!("head is not contiguous f32 on the cpu")
        };
        let products = vocabulary::products(&head[from..to], hidden, threads);
        let capped = products.into_iter().map(|mut logits| {
            logits
                .iter_mut()
                .for_each(|logit| *logit = self.geometry.capped(*logit));
            logits
        });
        Ok(capped.collect())
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
        pass: &Pass,
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
        let heads = self.heads();
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

/// `x · factor`, in place.
struct Scale(f32);

impl InplaceOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (x, layout.contiguous_offsets()) {
            (CpuStorage::F32(x), Some((from, to))) => {
                kernel::scale(&mut x[from..to], self.0);
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
