//! GGUF files: names of keys and tensors, and the order of their rotary pairs.
//!
//! Invariant: a key that changes results is followed, or the file is refused. It does not know what the tensors are
//! for.

use std::path::Path;

pub mod header;
mod keys;
mod sentencepiece;
mod tokenizer;
mod vocabulary;

use self::header::Header;
use self::keys::Keys;
use super::families::{Family, Positions, Windowed};
use super::geometry::{Geometry, Part, View, check_layers};
use super::map::Map;
use super::rope::{Rope, Scaling};
use super::source::Source;
use super::tensor::Entry;
use super::text::Text;
use crate::Error;

/// The tensor with Llama 3's scaling: one divisor per rotary pair.
const DIVISORS: &str = "rope_freqs.weight";

/// An open GGUF file.
pub(super) struct Gguf {
    map: Map,
    header: Header,
    family: &'static Family,
}

impl Gguf {
    /// Opens a file; reads its header.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let map = Map::open(path)?;
        let header = header::decode(map.bytes()).map_err(|e| Error::load(path, e))?;
        let keys = Keys::new(path, &header);
        let name = keys.text("general.architecture")?;
        let family = Family::of_gguf(name);
        let family = family.map_err(|e| keys.wrong("general.architecture", &e))?;
        if keys.size_or("split.count", 1)? > 1 {
            let what = "the file is one part of a split model; merge the parts with llama-gguf-split --merge";
            return Err(keys.wrong("split.count", what));
        }
        Ok(Self {
            map,
            header,
            family,
        })
    }

    fn keys(&self) -> Keys<'_> {
        Keys::new(self.map.path(), &self.header)
    }

    /// Full name of a key of the architecture.
    fn key(&self, key: &str) -> String {
        let architecture = self.family.architecture.unwrap_or(self.family.name);
        format!("{architecture}.{key}")
    }

    /// Refuses settings that would change results and that are not implemented.
    fn refuse_unknown(&self) -> Result<(), Error> {
        let keys = self.keys();
        for key in ["expert_count", "nextn_predict_layers"] {
            let key = self.key(key);
            if keys.size_or(&key, 0)? > 0 {
                return Err(keys.wrong(&key, "is not supported"));
            }
        }
        let key = self.key("attn_logit_softcapping");
        if keys.number_or(&key, 0.0)? != 0.0 {
            return Err(keys.wrong(&key, "soft caps of attention are not supported"));
        }
        let key = self.key("attention.causal");
        if keys.size_or(&key, 1)? != 1 {
            return Err(keys.wrong(&key, "only causal models are supported"));
        }
        Ok(())
    }

    /// What each layer sees and how it rotates.
    fn views(&self, layers: usize, context: usize) -> Result<Vec<View>, Error> {
        let keys = self.keys();
        let key = self.key("attention.sliding_window");
        // 0 says that there is no window.
        let window = match keys.size_or(&key, 0)? {
            0 => usize::MAX,
            window => window,
        };
        let is_windowed: Box<dyn Fn(usize) -> bool> = match self.family.windowed {
            Windowed::All => Box::new(|_| true),
            Windowed::ButEvery(nth) => {
                if window == usize::MAX {
                    return Err(keys.wrong(&key, "is missing"));
                }
                let nth = keys.size_or(&self.key("attention.sliding_window_pattern"), nth)?;
                Box::new(move |layer: usize| nth == 0 || !(layer + 1).is_multiple_of(nth))
            }
            Windowed::Named if window < context => {
                let what = format!(
                    "a sliding window of {window} positions is not supported, because the file does not name the \
                     layers that have it; full attention is"
                );
                return Err(keys.wrong(&key, &what));
            }
            Windowed::Named => Box::new(|_| false),
        };
        let view = |layer: usize| View {
            window: (is_windowed(layer) && window < context).then_some(window),
            rope: match self.family.positions {
                Positions::Same => 0,
                Positions::OwnBaseInWindow(_) => usize::from(is_windowed(layer)),
                Positions::NoneInEvery(nth) => usize::from((layer + 1).is_multiple_of(nth)),
            },
        };
        Ok((0..layers).map(view).collect())
    }

    /// The ways in which layers rotate: that of the model, then that of the layers that differ.
    fn ropes(&self, head_dim: usize, context: usize) -> Result<Vec<Rope>, Error> {
        let keys = self.keys();
        let rope = |key: &str, default: f64, scaling: &Scaling| {
            let base = keys.number_or(&self.key(key), default)?;
            let rope = Rope::new(base, head_dim, scaling);
            rope.map_err(|e| keys.wrong(&self.key("rope"), &e))
        };
        let mut ropes = vec![rope("rope.freq_base", 10_000.0, &self.scaling(context)?)?];
        match self.family.positions {
            Positions::Same => {}
            Positions::NoneInEvery(_) => ropes.push(Rope::none(head_dim)),
            Positions::OwnBaseInWindow(base) => {
                ropes.push(rope("rope.freq_base_swa", base, &Scaling::None)?);
            }
        }
        Ok(ropes)
    }

    /// The divisor of scores is the root of this.
    fn query_scalar(&self, layers: usize, by_hidden: f64, head_dim: usize) -> Result<f64, Error> {
        let keys = self.keys();
        let key = self.key("attention.scale");
        if keys.get(&key).is_some() {
            let scale = keys.number(&key)?;
            if !(scale.is_finite() && scale > 0.0) {
                return Err(keys.wrong(&key, &format!("{scale} is not above 0")));
            }
            return Ok(scale.powi(-2));
        }
        Ok(match self.family.layers_scaled_by_hidden {
            Some(of) if of == layers => by_hidden,
            _ => head_dim as f64,
        })
    }

    fn scaling(&self, context: usize) -> Result<Scaling, Error> {
        let keys = self.keys();
        let kind = keys.text_or(&self.key("rope.scaling.type"), "none")?;
        if self.header.tensors.contains_key(DIVISORS) {
            if kind != "none" {
                let what = format!("{kind:?} together with tensor {DIVISORS} is not supported");
                return Err(keys.wrong(&self.key("rope.scaling.type"), &what));
            }
            let divisors = self.divisors()?;
            return Ok(Scaling::Divisors(divisors));
        }
        let factor = keys.number_or(&self.key("rope.scaling.factor"), 1.0)?;
        match kind {
            // Older files have the factor alone, or the key `rope.scale_linear`.
            "none" => match keys.number_or(&self.key("rope.scale_linear"), factor)? {
                1.0 => Ok(Scaling::None),
                factor => Ok(Scaling::Linear { factor }),
            },
            "linear" => Ok(Scaling::Linear { factor }),
            "yarn" => {
                let key = self.key("rope.scaling.original_context_length");
                let original = keys.size_or(&key, context)? as f64;
                let extra = keys.number_or(&self.key("rope.scaling.attn_factor"), 1.0)?;
                let fast = self.key("rope.scaling.yarn_beta_fast");
                let slow = self.key("rope.scaling.yarn_beta_slow");
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
                Err(keys.wrong(&self.key("rope.scaling.type"), &what))
            }
        }
    }

    fn divisors(&self) -> Result<Vec<f32>, Error> {
        let wrong =
            |what: String| Error::load(self.map.path(), format!("tensor {DIVISORS}: {what}"));
        let entry = self.header.tensors.get(DIVISORS);
        let (Some(entry), Some(bytes)) = (entry, self.bytes(DIVISORS)) else {
            return Err(wrong("missing".into()));
        };
        entry.kind.numbers(bytes).map_err(wrong)
    }
}

impl Source for Gguf {
    fn format(&self) -> &'static str {
        "gguf"
    }

    fn geometry(&self) -> Result<Geometry, Error> {
        let keys = self.keys();
        let size = |key: &str| keys.size(&self.key(key));
        let size_or = |key: &str, default| keys.size_or(&self.key(key), default);
        let layers = size("block_count")?;
        let context = size("context_length")?;
        check_layers(layers).map_err(|e| keys.wrong(&self.key("block_count"), &e))?;
        self.refuse_unknown()?;
        let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
        let head_dim = size_or("attention.key_length", hidden / heads.max(1))?;
        for key in ["attention.value_length", "rope.dimension_count"] {
            let found = size_or(key, head_dim)?;
            if found != head_dim {
                let what =
                    format!("{found} is not supported: it differs from the head width {head_dim}");
                return Err(keys.wrong(&self.key(key), &what));
            }
        }
        let cap = self.key("final_logit_softcapping");
        let logit_cap = match keys.number_or(&cap, 0.0)? {
            0.0 => None,
            number if number.is_finite() && number > 0.0 => Some(number as f32),
            number => return Err(keys.wrong(&cap, &format!("{number} is not above 0"))),
        };
        let has = |part| self.header.tensors.contains_key(&self.name(part));
        let embedding = self.header.tensors.get(&self.name(Part::Embedding));
        let rows = embedding.and_then(|entry| entry.shape.first().copied());
        let tokens = keys.texts("tokenizer.ggml.tokens")?.len();
        let (family, epsilon) = (
            self.family,
            keys.number(&self.key("attention.layer_norm_rms_epsilon"))?,
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
            rotated: head_dim,
            ropes: self.ropes(head_dim, context)?,
            views: self.views(layers, context)?,
            query_scalar: self.query_scalar(layers, hidden as f64 / heads as f64, head_dim)?,
            logit_cap,
            qkv_bias: family.qkv_bias || has(Part::QueryBias(0)),
            output_bias: has(Part::OutputBias(0)),
            head_norms: family.head_norms,
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
            Part::QueryKeyValue(layer) => (layer, "attn_qkv.weight"),
            Part::Output(layer) => (layer, "attn_output.weight"),
            Part::QueryBias(layer) => (layer, "attn_q.bias"),
            Part::KeyBias(layer) => (layer, "attn_k.bias"),
            Part::ValueBias(layer) => (layer, "attn_v.bias"),
            Part::OutputBias(layer) => (layer, "attn_output.bias"),
            Part::QueryNorm(layer) => (layer, "attn_q_norm.weight"),
            Part::KeyNorm(layer) => (layer, "attn_k_norm.weight"),
            Part::OutputNorm(layer) => (layer, "post_attention_norm.weight"),
            Part::FeedNorm(layer) => (layer, "ffn_norm.weight"),
            Part::Gate(layer) => (layer, "ffn_gate.weight"),
            // Gate and up as one tensor have the name of up.
            Part::GateUp(layer) | Part::Up(layer) => (layer, "ffn_up.weight"),
            Part::Down(layer) => (layer, "ffn_down.weight"),
            Part::DownNorm(layer) => (layer, "post_ffw_norm.weight"),
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

    fn is_ignored(&self, name: &str) -> bool {
        name == DIVISORS
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let entry = self.header.tensors.get(name)?;
        let data = self.map.bytes().get(self.header.data..)?;
        data.get(entry.from..entry.to)
    }

    fn has_adjacent_pairs(&self) -> bool {
        self.family.gguf_pairs_adjacent
    }

    fn has_norms_less_one(&self) -> bool {
        // llama.cpp's conversion adds the 1.
        false
    }

    fn text(&self) -> Result<Text, Error> {
        tokenizer::text(&self.keys())
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
