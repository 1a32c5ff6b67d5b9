//! A model file or folder -> [`Opened`]: sizes, tokenizer, and the weights layer by layer.
//!
//! Decides which models can be run: families of [`families`](super::families). A tensor or key that
//! is missing, left over, of another shape or of another kind is an error that names the file and the tensor or key; it
//! is found in the headers before any weight is read. The formats ([`gguf`](super::gguf), [`folder`](super::folder))
//! only say what keys and tensors are called. Invariant: one layer is in memory at a time. It does not know how a
//! forward pass runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::adapter::Adapter;
use super::folder::Folder;
use super::geometry::{Geometry, Part};
use super::gguf::Gguf;
use super::loading::Loading;
use super::misfit;
use super::source::Source;
use super::tensor::Kind;
use super::text::Text;
use super::weights::{LayerWeights, Weights};
use crate::cpu::extras::{Extras, HeadNorms, ResultNorms};
use crate::cpu::token_rows::TokenRows;
use crate::{Error, Info};

/// A model whose headers are read and checked. Weights are read from their files when they are asked for.
pub(crate) struct Opened {
    path: PathBuf,
    source: Box<dyn Source>,
    geometry: Geometry,
    adapter: Option<Adapter>,
}

/// Checks a model file or folder without reading its weights: headers, tokenizer and chat template.
pub fn inspect(path: &Path) -> Result<Loading, Error> {
    let opened = open(path)?;
    let text = opened.text()?;
    Ok(opened.loading(&text))
}

/// Opens a GGUF file, or a folder with `config.json`, safetensors and `tokenizer.json`.
pub(crate) fn open(path: &Path) -> Result<Opened, Error> {
    let source: Box<dyn Source> = if path.is_dir() {
        Box::new(Folder::open(path)?)
    } else {
        if let Some(what) = misfit::file(path) {
            return Err(Error::load(path, what));
        }
        Box::new(Gguf::open(path)?)
    };
    let geometry = source.geometry()?;
    geometry.check().map_err(|e| Error::load(path, e))?;
    let opened = Opened {
        path: path.to_owned(),
        source,
        geometry,
        adapter: None,
    };
    opened.check_tensors()?;
    Ok(opened)
}

/// Like [`open`], with an adapter's folder whose matrices are added to the weights as they are read.
pub(crate) fn open_adapted(path: &Path, adapter: Option<&Path>) -> Result<Opened, Error> {
    let mut opened = open(path)?;
    if let Some(adapter) = adapter {
        let adapter = Adapter::open(adapter)?;
        adapter.check(&opened.geometry, &opened.base_revision()?)?;
        opened.adapter = Some(adapter);
    }
    Ok(opened)
}

impl Opened {
    /// Sizes and constants.
    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Reads tokenizer and chat template; checks the token ids against the vocabulary's size.
    pub(crate) fn text(&self) -> Result<Text, Error> {
        let text = self.source.text()?;
        let (found, rows) = (text.ids(), self.geometry.vocabulary);
        if found > rows {
            let what = format!(
                "the tokenizer has ids up to {}, the embedding only {rows} rows: they are of different models",
                found - 1
            );
            return Err(Error::load(&self.path, what));
        }
        Ok(text)
    }

    /// The adapter, if there is one.
    pub(crate) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Name and revision. The revision is a hash; it changes with the header, tokenizer or any tensor, and with the
    /// adapter.
    pub(crate) fn info(&self) -> Result<Info, Error> {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        let (mut name, mut revision) = (name.to_string_lossy().into_owned(), self.base_revision()?);
        if let Some(adapter) = &self.adapter {
            let both = Sha256::digest(format!("{revision} {}", adapter.revision()));
            name = format!("{name} + {}", adapter.name());
            revision = hex::encode(&both[..8]);
        }
        Ok(Info {
            name,
            revision,
            dtype: "f32".into(),
            device: "cpu".into(),
        })
    }

    /// The revision of the model without an adapter.
    pub(crate) fn base_revision(&self) -> Result<String, Error> {
        let mut revision = Sha256::new();
        let mut add = |bytes: &[u8]| {
            revision.update((bytes.len() as u64).to_le_bytes());
            revision.update(bytes);
        };
        self.source.identity(&mut add)?;
        // Fine-tuning keeps the headers and often the embedding, so a sample of every tensor is hashed: 64 pieces of
        // 64 bytes.
        for (name, _, _) in self.source.tensors() {
            let bytes = self.source.bytes(name).unwrap_or_default();
            let stride = (bytes.len() / 64).max(64);
            for piece in bytes.chunks(stride) {
                add(&piece[..piece.len().min(64)]);
            }
        }
        Ok(hex::encode(&revision.finalize()[..8]))
    }

    /// Figures of loading that the headers give, and what may be wrong; seconds and memory are 0.
    pub(crate) fn loading(&self, text: &Text) -> Loading {
        let mut kinds = BTreeMap::<Kind, usize>::new();
        let mut parameters = 0;
        for (_, _, entry) in self.source.tensors() {
            *kinds.entry(entry.kind).or_default() += 1;
            parameters += entry.shape.iter().product::<usize>() as u64;
        }
        let kinds = kinds
            .into_iter()
            .map(|(kind, count)| format!("{kind:?} {count}"));
        let geometry = &self.geometry;
        let cached = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * size_of::<f32>();
        Loading {
            family: geometry.family.name.into(),
            format: self.source.format().into(),
            kinds: kinds.collect::<Vec<_>>().join(", "),
            parameters,
            file_bytes: self.source.size(),
            cache_bytes_per_token: cached as u64,
            warnings: self.no_template(text).into_iter().collect(),
            ..Loading::default()
        }
    }

    /// Warns of a model that is trained on chats and has no chat template.
    fn no_template(&self, text: &Text) -> Option<String> {
        if text.has_template() {
            return None;
        }
        let token = text.turn_token();
        let by_token = token.map(|token| format!("its vocabulary has the token {token}"));
        let by_name = || {
            let name = chat_name(&self.path)?;
            Some(format!("its name has {name:?}"))
        };
        let why = by_token.or_else(by_name)?;
        Some(format!(
            "no chat template: prompts are given to the model as plain text, and it seems to be trained on chats, for \
             {why}; add the chat_template.jinja of its repository to the folder, or use a GGUF with \
             tokenizer.chat_template; ignore this if it is a base model"
        ))
    }

    /// A matrix with a row for each token, in the type of the file. Adapters leave it as it is.
    pub(crate) fn token_rows(&self, part: Part) -> Result<TokenRows, Error> {
        let name = self.source.name(part);
        let (Some((file, entry)), Some(bytes)) =
            (self.source.tensor(&name), self.source.bytes(&name))
        else {
            return Err(Error::load(&self.path, format!("tensor {name} is missing")));
        };
        let rows = TokenRows::encoded(entry.kind, bytes, self.geometry.hidden);
        rows.map_err(|e| Error::load(file, format!("tensor {name}: {e}")))
    }

    /// Reads the norm before the head.
    pub(crate) fn norm(&self) -> Result<Tensor, Error> {
        self.stack(&[Part::Norm], &[self.geometry.hidden])
    }

    /// Reads the weights before and after the layers; `layers` is empty.
    pub(crate) fn without_layers(&self) -> Result<Weights, Error> {
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
            norm: self.norm()?,
            layers: Vec::new(),
        })
    }

    /// Reads the weights of one layer.
    pub(crate) fn layer(&self, layer: usize) -> Result<LayerWeights, Error> {
        let Geometry {
            hidden,
            heads,
            kv_heads,
            head_dim,
            feed_forward,
            ..
        } = self.geometry;
        let qkv_width = (heads + 2 * kv_heads) * head_dim;
        let (qkv, gate_up) = match self.geometry.family.fused {
            true => (vec![Part::QueryKeyValue(layer)], vec![Part::GateUp(layer)]),
            false => (
                vec![Part::Query(layer), Part::Key(layer), Part::Value(layer)],
                vec![Part::Gate(layer), Part::Up(layer)],
            ),
        };
        Ok(LayerWeights {
            attention_norm: self.stack(&[Part::AttentionNorm(layer)], &[hidden])?,
            qkv: self.stack(&qkv, &[qkv_width, hidden])?,
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
            let mut query = self.numbers(&[Part::QueryNorm(layer)])?;
            let scale = geometry.score_scale();
            query.iter_mut().for_each(|weight| *weight *= scale);
            Some(HeadNorms {
                query,
                key: self.numbers(&[Part::KeyNorm(layer)])?,
                heads: geometry.heads,
                kv_heads: geometry.kv_heads,
                epsilon: geometry.epsilon,
            })
        } else {
            None
        };
        let result_norms = if geometry.family.result_norms {
            Some(ResultNorms {
                output: self.numbers(&[Part::OutputNorm(layer)])?,
                down: self.numbers(&[Part::DownNorm(layer)])?,
                epsilon: geometry.epsilon,
            })
        } else {
            None
        };
        Ok(Extras {
            bias: bias.transpose()?,
            output_bias: output_bias.transpose()?,
            norms,
            result_norms,
        })
    }

    /// Reads tensors with the same columns as one: their rows one after the other.
    fn stack(&self, parts: &[Part], shape: &[usize]) -> Result<Tensor, Error> {
        let numbers = self.numbers(parts)?;
        let wrong = |e: candle_core::Error| {
            let name = self.source.name(parts[0]);
            Error::load(&self.path, format!("tensor {name}: {e}"))
        };
        Tensor::from_vec(numbers, shape, &Device::Cpu).map_err(wrong)
    }

    /// Reads the numbers of tensors, one after the other.
    fn numbers(&self, parts: &[Part]) -> Result<Vec<f32>, Error> {
        let mut all = Vec::new();
        for part in parts {
            let name = self.source.name(*part);
            let (Some((file, entry)), Some(bytes)) =
                (self.source.tensor(&name), self.source.bytes(&name))
            else {
                return Err(Error::load(&self.path, format!("tensor {name} is missing")));
            };
            let numbers = entry.kind.numbers(bytes);
            let mut numbers =
                numbers.map_err(|e| Error::load(file, format!("tensor {name}: {e}")))?;
            if !numbers.iter().all(|x| x.is_finite()) {
                let what =
                    format!("tensor {name} has values that are not finite: the file is damaged");
                return Err(Error::load(file, what));
            }
            if part.is_norm() && self.source.has_norms_less_one() {
                numbers.iter_mut().for_each(|weight| *weight += 1.0);
            }
            if self.source.has_adjacent_pairs() {
                numbers = match part {
                    Part::Query(_) | Part::QueryBias(_) => {
                        pairs_to_halves(numbers, self.geometry.heads, self.geometry.head_dim)
                    }
                    Part::Key(_) | Part::KeyBias(_) => {
                        pairs_to_halves(numbers, self.geometry.kv_heads, self.geometry.head_dim)
                    }
                    _ => numbers,
                };
            }
            if let Some(adapter) = &self.adapter {
                let added = adapter.add_to(*part, &mut numbers);
                added.map_err(|e| Error::load(file, format!("tensor {name}: {e}")))?;
            }
            spread_rotated(&mut numbers, *part, &self.geometry);
            if parts.len() == 1 {
                return Ok(numbers);
            }
            all.append(&mut numbers);
        }
        Ok(all)
    }

    /// Checks that every tensor of the model is there in its shape, and no other tensor.
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
                return Err(Error::load(&self.path, format!("tensor {name} is missing")));
            };
            if entry.shape != shape {
                let found = &entry.shape;
                let what = format!("tensor {name} has shape {found:?}, not {shape:?}");
                return Err(Error::load(file, what));
            }
            left.remove(name.as_str());
        }
        match left
            .into_iter()
            .find(|(name, _)| !self.source.is_ignored(name))
        {
            None => Ok(()),
            Some((name, file)) => {
                let family = self.geometry.family.name;
                let what = format!(
                    "tensor {name} is not part of a {family} of {} layers with these settings; \
                     without it the results would be wrong",
                    self.geometry.layers
                );
                Err(Error::load(file, what))
            }
        }
    }
}

/// The word of a model's name that says that it is trained on chats. Its name is that of the file or folder, of the
/// folder around it, or of the repository in a cache.
fn chat_name(path: &Path) -> Option<String> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let parts: Vec<String> = (path.components().rev())
        .map(|part| part.as_os_str().to_string_lossy().to_lowercase())
        .collect();
    let repository = parts
        .iter()
        .take(4)
        .find(|part| part.starts_with("models--"));
    let names = parts.iter().take(2).chain(repository);
    let words = names.flat_map(|name| name.split(|c: char| !c.is_alphanumeric()));
    let mut words = words.map(str::to_owned);
    words.find(|word| ["instruct", "chat", "it", "sft", "dpo"].contains(&word.as_str()))
}

/// Reorders the rows of every head: pairs (2i, 2i + 1) become pairs (i, i + half). Rows have equal length.
fn pairs_to_halves(numbers: Vec<f32>, heads: usize, head_dim: usize) -> Vec<f32> {
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

/// Reorders the rows of each query head and key head whose first `rotated` values alone have positions: the halves of
/// the rotated part go to the beginnings of the head's halves. Scores are sums over a head, so they stay the same.
pub(crate) fn spread_rotated(numbers: &mut [f32], part: Part, geometry: &Geometry) {
    let Geometry {
        heads,
        kv_heads,
        head_dim,
        rotated,
        ..
    } = *geometry;
    if rotated == head_dim {
        return;
    }
    let (all, turned) = match part {
        Part::Query(_) => (heads, heads),
        Part::Key(_) => (kv_heads, kv_heads),
        Part::QueryKeyValue(_) => (heads + 2 * kv_heads, heads + kv_heads),
        _ => return,
    };
    let columns = numbers.len() / (all * head_dim);
    let (half, pairs) = (head_dim / 2, rotated / 2);
    for head in numbers.chunks_exact_mut(head_dim * columns).take(turned) {
        // The first half of the rest goes between the two halves of the rotated part.
        head[pairs * columns..(half + pairs) * columns].rotate_left(pairs * columns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_pairs_become_halves_head_by_head() {
        let rows: Vec<f32> = (0..16u8).map(f32::from).collect();
        let halves = pairs_to_halves(rows, 2, 4);
        let expected = [
            0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0, 12.0, 13.0, 10.0, 11.0, 14.0, 15.0,
        ];
        assert_eq!(halves, expected);
    }

    #[test]
    fn a_name_of_a_chat_model_is_known_by_its_words() {
        let cases = [
            ("/x/SmolLM2-135M-Instruct.Q4_1.gguf", Some("instruct")),
            ("/x/gemma-2-2b-it/model.gguf", Some("it")),
            (
                "/c/models--Qwen--Qwen2.5-0.5B-Instruct/snapshots/abc",
                Some("instruct"),
            ),
            ("/x/Llama-2-7b-chat-hf", Some("chat")),
            ("/chat/models/x/SmolLM2-135M", None),
            ("/x/italian/bits.gguf", None),
        ];
        for (path, expected) in cases {
            assert_eq!(chat_name(Path::new(path)).as_deref(), expected, "{path}");
        }
    }
}
