//! A model file or folder -> [`Opened`]: sizes, tokenizer, and the weights layer by layer.
//!
//! Decides what is a model we can run: Llama, Qwen2 and Qwen3 with full attention. Whatever is
//! missing, left over, of another shape or of another kind is an error that names file and tensor or
//! key, found in the headers before any weight is read; the two formats ([`gguf`](super::gguf),
//! [`folder`](super::folder)) only say how things are called. Invariant: weights are `f32`,
//! `[out, in]`, rotary pairs split in halves; q, k, v and gate, up are fused; one layer is in memory
//! at a time. It does not know how a forward pass runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

pub mod kind;
mod loading;
pub mod map;
mod numbers;
pub mod rope;

pub use self::kind::Entry;
use self::kind::Kind;
pub use self::loading::Loading;
pub use self::map::resident;
use self::rope::Rope;
use super::folder::Folder;
use super::gguf::Gguf;
use super::text::Text;
use crate::cpu::extras::{Extras, HeadNorms};
use crate::{Error, Info};

/// No model has a size above this; a damaged file may.
const SIZE_MAX: usize = 1 << 24;

/// No model has more layers than this.
const LAYERS_MAX: usize = 1 << 12;

/// A kind of decoder that we can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 1-3, SmolLM2 and what else is built alike.
    Llama,
    /// Qwen 2 and 2.5: biases on q, k, v.
    Qwen2,
    /// Qwen 3, dense: norms on query and key heads.
    Qwen3,
}

impl Family {
    /// The family that GGUF's `general.architecture` and `config.json`'s `model_type` call so.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            _ => None,
        }
    }

    /// As [`named`](Self::named) reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Geometry {
    /// What it is.
    pub family: Family,
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
    /// How heads turn.
    pub rope: Rope,
    /// Whether q, k, v have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Whether query and key heads have norms.
    pub head_norms: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
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
    /// Per layer, as far as they were read.
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
    /// What the family adds.
    pub extras: Extras,
}

/// One tensor of a file, by its meaning; the number is the layer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// A format: how a file calls its parts.
pub trait Source: Send {
    /// How the format is called.
    fn format(&self) -> &'static str;
    /// Sizes, or why this is no model of ours.
    fn geometry(&self) -> Result<Geometry, Error>;
    /// The name of a part in this format.
    fn name(&self, part: Part) -> String;
    /// Every tensor, with the file that holds it.
    fn tensors(&self) -> Vec<(&str, &Path, &Entry)>;
    /// One tensor, with the file that holds it.
    fn tensor(&self, name: &str) -> Option<(&Path, &Entry)>;
    /// Whether a tensor that no part is called by may be there all the same.
    fn spare(&self, name: &str) -> bool;
    /// The bytes of a tensor.
    fn bytes(&self, name: &str) -> Option<&[u8]>;
    /// Whether the rotary pairs of q and k lie side by side.
    fn side_by_side(&self) -> bool;
    /// Tokenizer and chat template.
    fn text(&self) -> Result<Text, Error>;
    /// Bytes that change when the model changes, but for those of tensors.
    fn identity(&self, add: &mut dyn FnMut(&[u8])) -> Result<(), Error>;
    /// Bytes of the weight files.
    fn size(&self) -> u64;
}

/// A model whose headers are read and checked; weights stay in their files until asked for.
pub struct Opened {
    path: PathBuf,
    source: Box<dyn Source>,
    geometry: Geometry,
}

/// Opens a GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`.
pub fn open(path: &Path) -> Result<Opened, Error> {
    let source: Box<dyn Source> = if path.is_dir() {
        Box::new(Folder::open(path)?)
    } else {
        Box::new(Gguf::open(path)?)
    };
    let geometry = source.geometry()?;
    check(path, &geometry)?;
    let opened = Opened {
        path: path.to_owned(),
        source,
        geometry,
    };
    opened.check_tensors()?;
    Ok(opened)
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
        ("hidden", geometry.hidden),
        ("heads", geometry.heads),
        ("kv heads", geometry.kv_heads),
        ("head width", geometry.head_dim),
        ("feed-forward", geometry.feed_forward),
        ("vocabulary", geometry.vocabulary),
        ("context", geometry.context),
    ];
    for (name, size) in sizes {
        if size == 0 || size > SIZE_MAX {
            return Err(refuse(path, format!("{name} size {size} cannot be")));
        }
    }
    if geometry.layers == 0 || geometry.layers > LAYERS_MAX {
        let what = format!("{} layers cannot be", geometry.layers);
        return Err(refuse(path, what));
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
    if !(geometry.epsilon.is_finite() && geometry.epsilon >= 0.0) {
        let what = format!("norm epsilon {} is no small number", geometry.epsilon);
        return Err(refuse(path, what));
    }
    Ok(())
}

impl Geometry {
    /// Every tensor that a model of these sizes has, with its shape.
    fn parts(&self) -> Vec<(Part, Vec<usize>)> {
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

impl Opened {
    /// Sizes and constants.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Tokenizer and chat template, checked against the vocabulary's size.
    pub fn text(&self) -> Result<Text, Error> {
        let text = self.source.text()?;
        let (found, rows) = (text.ids(), self.geometry.vocabulary);
        if found > rows {
            let what = format!(
                "the tokenizer has ids up to {}, the embedding {rows} rows: they are of different models",
                found - 1
            );
            return Err(refuse(&self.path, what));
        }
        Ok(text)
    }

    /// Name and revision.
    pub fn info(&self) -> Result<Info, Error> {
        let mut revision = Sha256::new();
        let mut add = |bytes: &[u8]| {
            revision.update((bytes.len() as u64).to_le_bytes());
            revision.update(bytes);
        };
        self.source.identity(&mut add)?;
        // Fine-tuning keeps the headers, and often the embedding: a sample of every tensor tells.
        for (name, _, _) in self.source.tensors() {
            let bytes = self.source.bytes(name).unwrap_or_default();
            let apart = (bytes.len() / 64).max(64);
            for piece in bytes.chunks(apart) {
                add(&piece[..piece.len().min(64)]);
            }
        }
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        Ok(Info {
            name: name.to_string_lossy().into_owned(),
            revision: hex::encode(&revision.finalize()[..8]),
            dtype: "f32".into(),
            device: "cpu".into(),
        })
    }

    /// What is known of loading before it is done: times and memory are still 0.
    pub fn loading(&self) -> Loading {
        let mut kinds = BTreeMap::<Kind, usize>::new();
        let mut parameters = 0;
        for (_, _, entry) in self.source.tensors() {
            *kinds.entry(entry.kind).or_default() += 1;
            parameters += entry.shape.iter().product::<usize>() as u64;
        }
        let kinds = kinds
            .into_iter()
            .map(|(kind, many)| format!("{kind:?} {many}"));
        let geometry = &self.geometry;
        let cached = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * size_of::<f32>();
        Loading {
            family: geometry.family.name().into(),
            format: self.source.format().into(),
            kinds: kinds.collect::<Vec<_>>().join(", "),
            parameters,
            file_bytes: self.source.size(),
            cache_bytes_per_token: cached as u64,
            ..Loading::default()
        }
    }

    /// What stands before and after the layers, and none of these.
    pub fn ends(&self) -> Result<Weights, Error> {
        let shape = [self.geometry.vocabulary, self.geometry.hidden];
        let embedding = self.stack(&[Part::Embedding], &shape)?;
        let head = match self.geometry.tied {
            true => embedding.clone(),
            false => self.stack(&[Part::Head], &shape)?,
        };
        Ok(Weights {
            geometry: self.geometry.clone(),
            embedding,
            head,
            norm: self.stack(&[Part::Norm], &[self.geometry.hidden])?,
            layers: Vec::new(),
        })
    }

    /// The weights of one layer.
    pub fn layer(&self, layer: usize) -> Result<LayerWeights, Error> {
        let Geometry {
            hidden,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            ..
        } = self.geometry;
        let all = (heads + 2 * kv_heads) * head_dim;
        let qkv = [Part::Query(layer), Part::Key(layer), Part::Value(layer)];
        let gate_up = [Part::Gate(layer), Part::Up(layer)];
        Ok(LayerWeights {
            attention_norm: self.stack(&[Part::AttentionNorm(layer)], &[hidden])?,
            qkv: self.stack(&qkv, &[all, hidden])?,
            output: self.stack(&[Part::Output(layer)], &[hidden, heads * head_dim])?,
            feed_norm: self.stack(&[Part::FeedNorm(layer)], &[hidden])?,
            gate_up: self.stack(&gate_up, &[2 * feed_forward, hidden])?,
            down: self.stack(&[Part::Down(layer)], &[hidden, feed_forward])?,
            extras: self.extras(layer)?,
        })
    }

    fn extras(&self, layer: usize) -> Result<Extras, Error> {
        let geometry = &self.geometry;
        let bias = [
            Part::QueryBias(layer),
            Part::KeyBias(layer),
            Part::ValueBias(layer),
        ];
        let bias = geometry.qkv_bias.then(|| self.numbers(&bias));
        let output = [Part::OutputBias(layer)];
        let output_bias = geometry.output_bias.then(|| self.numbers(&output));
        let norms = if geometry.head_norms {
            Some(HeadNorms {
                query: self.numbers(&[Part::QueryNorm(layer)])?,
                key: self.numbers(&[Part::KeyNorm(layer)])?,
                heads: geometry.heads,
                kv_heads: geometry.kv_heads,
                epsilon: geometry.epsilon,
            })
        } else {
            None
        };
        Ok(Extras {
            bias: bias.transpose()?,
            output_bias: output_bias.transpose()?,
            norms,
        })
    }

    /// Parts one above the other.
    fn stack(&self, parts: &[Part], shape: &[usize]) -> Result<Tensor, Error> {
        let numbers = self.numbers(parts)?;
        let wrong = |e: candle_core::Error| {
            let name = self.source.name(parts[0]);
            refuse(&self.path, format!("tensor {name}: {e}"))
        };
        Tensor::from_vec(numbers, shape, &Device::Cpu).map_err(wrong)
    }

    /// The numbers of parts, one after the other.
    fn numbers(&self, parts: &[Part]) -> Result<Vec<f32>, Error> {
        let mut all = Vec::new();
        for part in parts {
            let name = self.source.name(*part);
            let (Some((file, entry)), Some(bytes)) =
                (self.source.tensor(&name), self.source.bytes(&name))
            else {
                return Err(refuse(&self.path, format!("tensor {name} is missing")));
            };
            let numbers = entry.kind.numbers(bytes);
            let mut numbers = numbers.map_err(|e| refuse(file, format!("tensor {name}: {e}")))?;
            if !numbers.iter().all(|x| x.is_finite()) {
                let what = format!("tensor {name} holds values that are not finite: damaged");
                return Err(refuse(file, what));
            }
            if self.source.side_by_side() {
                numbers = match part {
                    Part::Query(_) | Part::QueryBias(_) => {
                        in_halves(numbers, self.geometry.heads, self.geometry.head_dim)
                    }
                    Part::Key(_) | Part::KeyBias(_) => {
                        in_halves(numbers, self.geometry.kv_heads, self.geometry.head_dim)
                    }
                    _ => numbers,
                };
            }
            if parts.len() == 1 {
                return Ok(numbers);
            }
            all.append(&mut numbers);
        }
        Ok(all)
    }

    /// Every part is there in its shape, and nothing else is.
    fn check_tensors(&self) -> Result<(), Error> {
        let parts = self.geometry.parts();
        let mut left: BTreeMap<&str, &Path> = self
            .source
            .tensors()
            .into_iter()
            .map(|(name, file, _)| (name, file))
            .collect();
        for (part, shape) in parts {
            let name = self.source.name(part);
            let Some((file, entry)) = self.source.tensor(&name) else {
                return Err(refuse(&self.path, format!("tensor {name} is missing")));
            };
            if entry.shape != shape {
                let found = &entry.shape;
                let what = format!("tensor {name} has shape {found:?}, not {shape:?}");
                return Err(refuse(file, what));
            }
            left.remove(name.as_str());
        }
        match left.into_iter().find(|(name, _)| !self.source.spare(name)) {
            None => Ok(()),
            Some((name, file)) => {
                let family = self.geometry.family.name();
                let what = format!(
                    "tensor {name} has no place in a {family} of {} layers with these settings; \
                     without it the model would be another one",
                    self.geometry.layers
                );
                Err(refuse(file, what))
            }
        }
    }
}

/// Pairs (2i, 2i + 1) of every head become pairs (i, i + half): rows of equal length.
fn in_halves(numbers: Vec<f32>, heads: usize, head_dim: usize) -> Vec<f32> {
    let columns = numbers.len() / (heads * head_dim);
    let mut halves = Vec::with_capacity(numbers.len());
    for head in numbers.chunks_exact(head_dim * columns) {
        for parity in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = 2 * pair + parity;
                halves.extend_from_slice(&head[row * columns..(row + 1) * columns]);
            }
        }
    }
    halves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_side_by_side_become_halves_head_by_head() {
        let rows: Vec<f32> = (0..16u8).map(f32::from).collect();
        let halves = in_halves(rows, 2, 4);
        let expected = [
            0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0, 12.0, 13.0, 10.0, 11.0, 14.0, 15.0,
        ];
        assert_eq!(halves, expected);
    }
}
