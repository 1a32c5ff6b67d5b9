//! GGUF files: names of keys and tensors, and the order of their rotary pairs.
//!
//! Invariant: what is not understood of a file that may change its results is refused. It does not
//! know what the tensors are for.

use std::path::Path;

pub mod header;

use self::header::{Header, Value};
use super::load::map::Map;
use super::load::rope::{Rope, Scaling};
use super::load::{Entry, Family, Geometry, Part, Source, refuse};
use super::text::Text;
use crate::Error;

/// An open GGUF file.
pub struct Gguf {
    map: Map,
    header: Header,
    family: Family,
}

impl Gguf {
    /// Reads header and metadata.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let map = Map::open(path)?;
        let header = header::decode(map.bytes()).map_err(|e| refuse(path, e))?;
        let keys = Keys {
            path,
            header: &header,
        };
        let architecture = keys.text("general.architecture")?;
        let family = Family::named(architecture).ok_or_else(|| {
            let what = format!(
                "key general.architecture: {architecture:?} is not supported; llama, qwen2 and qwen3 are"
            );
            refuse(path, what)
        })?;
        if keys.size_or("split.count", 1)? > 1 {
            let what =
                "key split.count: a part of a split model; merge it with llama-gguf-split --merge";
            return Err(refuse(path, what));
        }
        Ok(Self {
            map,
            header,
            family,
        })
    }

    fn keys(&self) -> Keys<'_> {
        Keys {
            path: self.map.path(),
            header: &self.header,
        }
    }

    /// A key of the architecture.
    fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.family.name())
    }

    /// Settings that would change results, and that we do not have.
    fn refuse_unknown(&self, layers: usize, context: usize) -> Result<(), Error> {
        let keys = self.keys();
        for key in ["expert_count", "nextn_predict_layers"] {
            let key = self.own(key);
            if keys.size_or(&key, 0)? > 0 {
                return Err(keys.wrong(&key, "is not supported"));
            }
        }
        let key = self.own("attention.sliding_window");
        let window = keys.size_or(&key, 0)?;
        if window > 0 && window < context && layers > 0 {
            let what = format!("a sliding window of {window} is not supported; full attention is");
            return Err(keys.wrong(&key, &what));
        }
        let key = self.own("attention.causal");
        if keys.size_or(&key, 1)? != 1 {
            return Err(keys.wrong(&key, "only causal models are supported"));
        }
        Ok(())
    }

    fn scaling(&self, context: usize) -> Result<Scaling, Error> {
        let keys = self.keys();
        let kind = keys.text_or(&self.own("rope.scaling.type"), "none")?;
        if self.header.tensors.contains_key(DIVISORS) {
            if kind != "none" {
                let what = format!("{kind:?} together with tensor {DIVISORS} is not supported");
                return Err(keys.wrong(&self.own("rope.scaling.type"), &what));
            }
            let divisors = self.divisors()?;
            return Ok(Scaling::Divisors(divisors));
        }
        let factor = keys.number_or(&self.own("rope.scaling.factor"), 1.0)?;
        match kind {
            // Older files have the factor alone, or under this name.
            "none" => match keys.number_or(&self.own("rope.scale_linear"), factor)? {
                1.0 => Ok(Scaling::None),
                factor => Ok(Scaling::Linear { factor }),
            },
            "linear" => Ok(Scaling::Linear { factor }),
            "yarn" => {
                let key = self.own("rope.scaling.original_context_length");
                let original = keys.size_or(&key, context)? as f64;
                let extra = keys.number_or(&self.own("rope.scaling.attn_factor"), 1.0)?;
                let fast = self.own("rope.scaling.yarn_beta_fast");
                let slow = self.own("rope.scaling.yarn_beta_slow");
                Ok(Scaling::Yarn {
                    factor,
                    original,
                    fast: keys.number_or(&fast, 32.0)?,
                    slow: keys.number_or(&slow, 1.0)?,
                    attention: Scaling::yarn_attention(factor) * extra,
                    truncate: true,
                })
            }
            other => {
                let what = format!("{other:?} is not supported; none, linear and yarn are");
                Err(keys.wrong(&self.own("rope.scaling.type"), &what))
            }
        }
    }

    fn divisors(&self) -> Result<Vec<f32>, Error> {
        let wrong = |what: String| refuse(self.map.path(), format!("tensor {DIVISORS}: {what}"));
        let entry = self.header.tensors.get(DIVISORS);
        let (Some(entry), Some(bytes)) = (entry, self.bytes(DIVISORS)) else {
            return Err(wrong("missing".into()));
        };
        entry.kind.numbers(bytes).map_err(wrong)
    }
}

/// Llama 3's scaling, one divisor per pair.
const DIVISORS: &str = "rope_freqs.weight";

impl Source for Gguf {
    fn format(&self) -> &'static str {
        "gguf"
    }

    fn geometry(&self) -> Result<Geometry, Error> {
        let keys = self.keys();
        let size = |key: &str| keys.size(&self.own(key));
        let size_or = |key: &str, other| keys.size_or(&self.own(key), other);
        let layers = size("block_count")?;
        let context = size("context_length")?;
        self.refuse_unknown(layers, context)?;
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_dim = size_or("attention.key_length", hidden / heads.max(1))?;
        for key in ["attention.value_length", "rope.dimension_count"] {
            let found = size_or(key, head_dim)?;
            if found != head_dim {
                let what = format!("{found} where heads are {head_dim} wide is not supported");
                return Err(keys.wrong(&self.own(key), &what));
            }
        }
        let base = keys.number_or(&self.own("rope.freq_base"), 10_000.0)?;
        let scaling = self.scaling(context)?;
        let rope = Rope::new(base, head_dim, &scaling);
        let rope = rope.map_err(|e| keys.wrong(&self.own("rope"), &e))?;
        let has = |part| self.header.tensors.contains_key(&self.name(part));
        let embedding = self.header.tensors.get(&self.name(Part::Embedding));
        let rows = embedding.and_then(|entry| entry.shape.first().copied());
        let tokens = keys.texts("tokenizer.ggml.tokens")?.len();
        let (family, epsilon) = (
            self.family,
            keys.number(&self.own("attention.layer_norm_rms_epsilon"))?,
        );
        Ok(Geometry {
            family,
            hidden,
            layers,
            heads,
            kv_heads: size_or("attention.head_count_kv", heads)?,
            head_dim,
            feed_forward: size("feed_forward_length")?,
            vocabulary: rows.unwrap_or(tokens),
            context,
            epsilon: epsilon as f32,
            rope,
            qkv_bias: family == Family::Qwen2 || has(Part::QueryBias(0)),
            output_bias: has(Part::OutputBias(0)),
            head_norms: family == Family::Qwen3,
            tied: !has(Part::Head),
        })
    }

    fn name(&self, part: Part) -> String {
        let (layer, name) = match part {
            Part::Embedding => return "token_embd.weight".into(),
            Part::Head => return "output.weight".into(),
            Part::Norm => return "output_norm.weight".into(),
            Part::AttentionNorm(layer) => (layer, "attn_norm.weight"),
            Part::Query(layer) => (layer, "attn_q.weight"),
            Part::Key(layer) => (layer, "attn_k.weight"),
            Part::Value(layer) => (layer, "attn_v.weight"),
            Part::Output(layer) => (layer, "attn_output.weight"),
            Part::QueryBias(layer) => (layer, "attn_q.bias"),
            Part::KeyBias(layer) => (layer, "attn_k.bias"),
            Part::ValueBias(layer) => (layer, "attn_v.bias"),
            Part::OutputBias(layer) => (layer, "attn_output.bias"),
            Part::QueryNorm(layer) => (layer, "attn_q_norm.weight"),
            Part::KeyNorm(layer) => (layer, "attn_k_norm.weight"),
            Part::FeedNorm(layer) => (layer, "ffn_norm.weight"),
            Part::Gate(layer) => (layer, "ffn_gate.weight"),
            Part::Up(layer) => (layer, "ffn_up.weight"),
            Part::Down(layer) => (layer, "ffn_down.weight"),
        };
        format!("blk.{layer}.{name}")
    }

    fn tensors(&self) -> Vec<(&str, &Path, &Entry)> {
        let file = self.map.path();
        let all = self.header.tensors.iter();
        all.map(|(name, entry)| (name.as_str(), file, entry))
            .collect()
    }

    fn tensor(&self, name: &str) -> Option<(&Path, &Entry)> {
        Some((self.map.path(), self.header.tensors.get(name)?))
    }

    fn spare(&self, name: &str) -> bool {
        name == DIVISORS
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let entry = self.header.tensors.get(name)?;
        let data = self.map.bytes().get(self.header.data..)?;
        data.get(entry.from..entry.to)
    }

    fn side_by_side(&self) -> bool {
        self.family == Family::Llama
    }

    fn text(&self) -> Result<Text, Error> {
        Text::from_gguf(&self.keys())
    }

    fn identity(&self, add: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let bytes = self.map.bytes();
        add(&bytes[..self.header.data.min(bytes.len())]);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.map.bytes().len() as u64
    }
}

/// Metadata, with errors that name file and key.
pub struct Keys<'a> {
    path: &'a Path,
    header: &'a Header,
}

impl<'a> Keys<'a> {
    /// The file.
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// What is wrong with a key.
    pub fn wrong(&self, key: &str, what: &str) -> Error {
        refuse(self.path, format!("key {key}: {what}"))
    }

    /// A value, if there is one.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.keys.get(key)
    }

    fn value(&self, key: &str) -> Result<&'a Value, Error> {
        self.get(key).ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// A whole number from 0 on.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        match self.value(key)? {
            Value::Integer(size) => usize::try_from(*size)
                .map_err(|_| self.wrong(key, &format!("{size} is out of range"))),
            Value::Integers(all) if all.len() > 1 => {
                Err(self.wrong(key, "layers of different sizes are not supported"))
            }
            _ => Err(self.wrong(key, "is no whole number")),
        }
    }

    /// As [`size`](Self::size), or `other` where the key is missing.
    pub fn size_or(&self, key: &str, other: usize) -> Result<usize, Error> {
        self.get(key).map_or(Ok(other), |_| self.size(key))
    }

    fn number(&self, key: &str) -> Result<f64, Error> {
        match self.value(key)? {
            Value::Float(number) => Ok(*number),
            Value::Integer(number) => Ok(*number as f64),
            _ => Err(self.wrong(key, "is no number")),
        }
    }

    fn number_or(&self, key: &str, other: f64) -> Result<f64, Error> {
        self.get(key).map_or(Ok(other), |_| self.number(key))
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<&'a str, Error> {
        match self.value(key)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(key, "is no text")),
        }
    }

    fn text_or(&self, key: &str, other: &'a str) -> Result<&'a str, Error> {
        self.get(key).map_or(Ok(other), |_| self.text(key))
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<&'a [String], Error> {
        match self.value(key)? {
            Value::Texts(texts) => Ok(texts),
            _ => Err(self.wrong(key, "is no list of texts")),
        }
    }
}
