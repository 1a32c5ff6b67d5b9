//! A model file or folder -> [`Weights`], [`Text`] and [`Info`].
//!
//! Decides what is a model we can run: the Llama family, plain rotary positions, SwiGLU. Whatever is
//! missing, of another shape or of another kind is an error that names file and tensor or key; the
//! two formats ([`gguf`](super::gguf), [`folder`](super::folder)) only say how things are called.
//! Invariant: weights are `f32`, `[out, in]`, rotary pairs split in halves; q, k, v and gate, up are
//! fused. It does not know how a forward pass runs.

use std::path::Path;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::folder::Folder;
use super::gguf::Gguf;
use super::text::Text;
use super::{Error, Info};

/// Sizes and constants of a Llama.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
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
    /// Positions that the model was made for.
    pub context: usize,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// Base of the rotary angles.
    pub rope_base: f32,
}

/// Everything that a forward pass reads.
#[derive(Debug)]
pub struct Weights {
    /// Sizes.
    pub geometry: Geometry,
    /// `[vocabulary, hidden]`.
    pub embedding: Tensor,
    /// `[vocabulary, hidden]`; the embedding where the file ties them.
    pub head: Tensor,
    /// `[hidden]`, before the head.
    pub norm: Tensor,
    /// Per layer.
    pub layers: Vec<LayerWeights>,
}

/// Weights of one layer.
#[derive(Debug)]
pub struct LayerWeights {
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
}

/// One tensor of a file, by its meaning; the number is the layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
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
    /// Norm before the gated layer.
    FeedNorm(usize),
    /// Gate projection.
    Gate(usize),
    /// Up projection.
    Up(usize),
    /// Down projection.
    Down(usize),
}

/// A format: how a file calls its parts.
pub trait Source {
    /// Sizes, or why this is no model of ours.
    fn geometry(&self) -> Result<Geometry, Error>;
    /// The name of a part in this format.
    fn name(&self, part: Part) -> String;
    /// Whether the part is there.
    fn has(&self, part: Part) -> bool;
    /// A part as `f32`, rotary pairs in halves.
    fn tensor(&mut self, part: Part) -> Result<Tensor, Error>;
    /// Tokenizer and chat template.
    fn text(&self) -> Result<Text, Error>;
    /// Bytes that change when the model changes: headers, configuration, tokenizer.
    fn identity(&self) -> Result<Vec<Vec<u8>>, Error>;
}

/// What a path holds.
#[derive(Debug)]
pub struct Loaded {
    /// Weights on the CPU.
    pub weights: Weights,
    /// Tokenizer and chat template.
    pub text: Text,
    /// Name and revision.
    pub info: Info,
}

/// Loads a GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`.
pub fn load(path: &Path) -> Result<Loaded, Error> {
    if path.is_dir() {
        load_from(path, &mut Folder::open(path)?)
    } else {
        load_from(path, &mut Gguf::open(path)?)
    }
}

fn load_from(path: &Path, source: &mut dyn Source) -> Result<Loaded, Error> {
    let geometry = source.geometry()?;
    check(path, &geometry)?;
    let text = source.text()?;
    let mut revision = Sha256::new();
    for part in source.identity()? {
        revision.update((part.len() as u64).to_le_bytes());
        revision.update(&part);
    }
    let mut reader = Reader {
        path,
        source,
        geometry: &geometry,
    };
    let weights = reader.weights()?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    let info = Info {
        name: name.to_string_lossy().into_owned(),
        revision: hex::encode(&revision.finalize()[..8]),
        dtype: "f32".into(),
        device: "cpu".into(),
    };
    Ok(Loaded {
        weights,
        text,
        info,
    })
}

/// A [`Error::Load`] of this path.
pub fn refuse(path: &Path, what: impl Into<String>) -> Error {
    Error::Load {
        path: path.display().to_string(),
        what: what.into(),
    }
}

fn check(path: &Path, geometry: &Geometry) -> Result<(), Error> {
    let sizes = [
        geometry.hidden,
        geometry.layers,
        geometry.heads,
        geometry.kv_heads,
        geometry.head_dim,
        geometry.feed_forward,
        geometry.vocabulary,
        geometry.context,
    ];
    if sizes.contains(&0) {
        return Err(refuse(path, format!("a size is 0: {geometry:?}")));
    }
    if !geometry.heads.is_multiple_of(geometry.kv_heads) {
        let (heads, kv_heads) = (geometry.heads, geometry.kv_heads);
        return Err(refuse(
            path,
            format!("{heads} heads do not share {kv_heads} key heads"),
        ));
    }
    if !geometry.head_dim.is_multiple_of(2) {
        return Err(refuse(
            path,
            format!("head width {} is odd", geometry.head_dim),
        ));
    }
    Ok(())
}

/// Reads parts and checks their shapes.
struct Reader<'a> {
    path: &'a Path,
    source: &'a mut dyn Source,
    geometry: &'a Geometry,
}

impl Reader<'_> {
    fn weights(&mut self) -> Result<Weights, Error> {
        let geometry = self.geometry.clone();
        let (hidden, vocabulary) = (geometry.hidden, geometry.vocabulary);
        let embedding = self.take(Part::Embedding, &[vocabulary, hidden])?;
        let head = if self.source.has(Part::Head) {
            self.take(Part::Head, &[vocabulary, hidden])?
        } else {
            embedding.clone()
        };
        let norm = self.take(Part::Norm, &[hidden])?;
        let layers = (0..geometry.layers)
            .map(|layer| self.layer(layer))
            .collect::<Result<_, _>>()?;
        Ok(Weights {
            geometry,
            embedding,
            head,
            norm,
            layers,
        })
    }

    fn layer(&mut self, layer: usize) -> Result<LayerWeights, Error> {
        let Geometry {
            hidden,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            ..
        } = *self.geometry;
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let qkv = [
            self.take(Part::Query(layer), &[queries, hidden])?,
            self.take(Part::Key(layer), &[keys, hidden])?,
            self.take(Part::Value(layer), &[keys, hidden])?,
        ];
        let gate_up = [
            self.take(Part::Gate(layer), &[feed_forward, hidden])?,
            self.take(Part::Up(layer), &[feed_forward, hidden])?,
        ];
        Ok(LayerWeights {
            attention_norm: self.take(Part::AttentionNorm(layer), &[hidden])?,
            qkv: Tensor::cat(&qkv, 0).map_err(|e| refuse(self.path, e.to_string()))?,
            output: self.take(Part::Output(layer), &[hidden, queries])?,
            feed_norm: self.take(Part::FeedNorm(layer), &[hidden])?,
            gate_up: Tensor::cat(&gate_up, 0).map_err(|e| refuse(self.path, e.to_string()))?,
            down: self.take(Part::Down(layer), &[hidden, feed_forward])?,
        })
    }

    fn take(&mut self, part: Part, shape: &[usize]) -> Result<Tensor, Error> {
        let name = self.source.name(part);
        if !self.source.has(part) {
            return Err(refuse(self.path, format!("tensor {name} is missing")));
        }
        let tensor = self.source.tensor(part)?;
        if tensor.dims() != shape {
            let found = tensor.dims();
            return Err(refuse(
                self.path,
                format!("tensor {name} has shape {found:?}, not {shape:?}"),
            ));
        }
        let wrong = |e: candle_core::Error| refuse(self.path, format!("tensor {name}: {e}"));
        tensor
            .to_device(&Device::Cpu)
            .and_then(|tensor| tensor.contiguous())
            .map_err(wrong)
    }
}
