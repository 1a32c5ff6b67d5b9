//! `config.json`: sizes and settings of a model.
//!
//! Invariant: a setting that changes results is either followed or refused by its key. It does not know tensors.

use std::path::PathBuf;

use serde_json::Value;

use crate::Error;
use crate::formats::families::Family;
use crate::formats::geometry::Geometry;
use crate::formats::rope::{Rope, Scaling};

/// The `config.json` of a model whose family can be run.
pub(super) struct Config {
    file: PathBuf,
    all: Value,
    family: &'static Family,
}

impl Config {
    /// The configuration `all` that was read from `file`.
    pub(super) fn new(file: PathBuf, all: Value) -> Result<Self, Error> {
        let name = all.get("model_type").and_then(Value::as_str);
        let name = name.unwrap_or_default();
        let Some(family) = Family::named(name) else {
            let what = format!("key model_type: {}", Family::unsupported(name));
            return Err(Error::load(&file, what));
        };
        Ok(Self { file, all, family })
    }

    /// The configuration as text, its keys sorted.
    pub(super) fn text(&self) -> String {
        self.all.to_string()
    }

    /// Sizes and settings of the model.
    pub(super) fn geometry(&self) -> Result<Geometry, Error> {
        let (layers, context) = (
            self.size("num_hidden_layers")?,
            self.size("max_position_embeddings")?,
        );
        self.refuse_unknown(layers, context)?;
        let (hidden, heads) = (
            self.size("hidden_size")?,
            self.size("num_attention_heads")?.max(1),
        );
        // The defaults of the `transformers` library if the file does not have the key.
        let head_dim = self.family.head_dim.unwrap_or(hidden / heads);
        let head_dim = self.size_or("head_dim", head_dim)?;
        let scaling = self.scaling(context)?;
        let rope = Rope::new(self.rope_base()?, head_dim, &scaling);
        let rope = rope.map_err(|e| self.wrong("rope_scaling", &e))?;
        let bias = self.flag("attention_bias")? && self.family.reads_attention_bias;
        let epsilon = self.number("rms_norm_eps")?;
        let epsilon = epsilon.ok_or_else(|| self.wrong("rms_norm_eps", "missing"))?;
        let context = match scaling {
            Scaling::Yarn {
                factor, original, ..
            } => context.max((factor * original).min(f64::from(1 << 24)) as usize),
            _ => context,
        };
        Ok(Geometry {
            family: self.family,
            hidden,
            layers,
            heads,
            kv_heads: self.size_or("num_key_value_heads", heads)?,
            head_dim,
            feed_forward: self.size("intermediate_size")?,
            vocabulary: self.size("vocab_size")?,
            context,
            epsilon: epsilon as f32,
            rope,
            qkv_bias: self.family.qkv_bias || bias,
            output_bias: bias,
            head_norms: self.family.head_norms,
            tied: self.flag("tie_word_embeddings")?,
        })
    }

    /// Refuses settings that would change results and that are not implemented.
    fn refuse_unknown(&self, layers: usize, context: usize) -> Result<(), Error> {
        if let Some(quantization) = self.key("quantization_config") {
            let method = quantization.get("quant_method").and_then(Value::as_str);
            let what = format!(
                "{} weights are not supported; use the model's 16-bit weights or a GGUF",
                method.unwrap_or("quantised")
            );
            return Err(self.wrong("quantization_config", &what));
        }
        if self.flag("mlp_bias")? {
            return Err(self.wrong(
                "mlp_bias",
                "biases of the feed-forward layer are not supported",
            ));
        }
        let activation = self.text_or("hidden_act", "silu")?;
        if activation != "silu" {
            let what = format!("{activation:?} is not supported; silu is");
            return Err(self.wrong("hidden_act", &what));
        }
        if let Some(part) = self.number("partial_rotary_factor")?
            && part != 1.0
        {
            let what =
                format!("rotating {part} of each head is not supported; rotating whole heads is");
            return Err(self.wrong("partial_rotary_factor", &what));
        }
        self.refuse_window(layers, context)
    }

    /// Refuses a sliding window that some layer uses: a layer of that type, or one from `max_window_layers` on.
    fn refuse_window(&self, layers: usize, context: usize) -> Result<(), Error> {
        let window = match self.all.get("sliding_window") {
            None => 4096,
            Some(Value::Null) => usize::MAX,
            Some(_) => self.size("sliding_window")?,
        };
        let used = match self.key("layer_types").map(Value::as_array) {
            Some(Some(types)) => {
                if let Some(other) = types.iter().find(|kind| {
                    !["full_attention", "sliding_attention"].contains(&kind.as_str().unwrap_or(""))
                }) {
                    return Err(self.wrong("layer_types", &format!("{other} is not supported")));
                }
                types
                    .iter()
                    .any(|kind| kind.as_str() == Some("sliding_attention"))
            }
            Some(None) => return Err(self.wrong("layer_types", "is not a list")),
            None => {
                self.flag("use_sliding_window")? && self.size_or("max_window_layers", 28)? < layers
            }
        };
        let is_unknown = self.key("sliding_window").is_none() && self.key("layer_types").is_some();
        if used && (window < context || is_unknown) {
            let window = if is_unknown { 0 } else { window };
            let what = format!(
                "a window of {window} positions in a context of {context} is not supported; set \
                 max_position_embeddings to {window} if your prompts are shorter"
            );
            return Err(self.wrong("sliding_window", &what));
        }
        Ok(())
    }

    /// Key and value of `rope_scaling`, as earlier versions of the library write it, or `rope_parameters` of later
    /// ones.
    fn rope(&self) -> Option<(&'static str, &Value)> {
        let of = |key: &'static str| Some((key, self.key(key)?));
        of("rope_scaling").or_else(|| of("rope_parameters"))
    }

    fn rope_base(&self) -> Result<f64, Error> {
        let nested = ["rope_parameters", "rope_scaling"].map(|key| {
            let rope = self.key(key)?;
            rope.get("rope_theta").filter(|value| !value.is_null())
        });
        let [later, earlier] = nested;
        match self.key("rope_theta").or(later).or(earlier) {
            None => Ok(10_000.0),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.wrong("rope_theta", "is not a number")),
        }
    }

    fn scaling(&self, context: usize) -> Result<Scaling, Error> {
        let Some((key, rope)) = self.rope() else {
            return Ok(Scaling::None);
        };
        let kind = rope.get("rope_type").or(rope.get("type"));
        let kind = kind.and_then(Value::as_str).unwrap_or("default");
        let value = |name: &str| rope.get(name).filter(|value| !value.is_null());
        let optional = |name: &str| match value(name).map(Value::as_f64) {
            Some(None) => Err(self.wrong(key, &format!("{name} is not a number"))),
            other => Ok(other.flatten()),
        };
        let number = |name: &str| {
            optional(name)?.ok_or_else(|| self.wrong(key, &format!("{name} is missing")))
        };
        if optional("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
            return Err(self.wrong(key, "partial_rotary_factor is not supported"));
        }
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear {
                factor: number("factor")?,
            }),
            "llama3" => Ok(Scaling::Llama3 {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                original: number("original_max_position_embeddings")?,
            }),
            "yarn" => {
                let factor = number("factor")?;
                let original = optional("original_max_position_embeddings")?;
                if optional("mscale")?.is_some() || optional("mscale_all_dim")?.is_some() {
                    return Err(self.wrong(key, "mscale is not supported"));
                }
                let attention = optional("attention_factor")?;
                Ok(Scaling::Yarn {
                    factor,
                    original: original.unwrap_or(context as f64),
                    fast: optional("beta_fast")?.unwrap_or(32.0),
                    slow: optional("beta_slow")?.unwrap_or(1.0),
                    attention: attention.unwrap_or_else(|| Scaling::yarn_attention(factor)),
                    truncate: value("truncate").and_then(Value::as_bool).unwrap_or(true),
                })
            }
            other => {
                let what = format!("{other:?} is not supported; linear, llama3 and yarn are");
                Err(self.wrong(key, &what))
            }
        }
    }

    fn key(&self, key: &str) -> Option<&Value> {
        self.all.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.key(key).ok_or_else(|| self.wrong(key, "missing"))?;
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(key, "not a whole number"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        self.key(key).map_or(Ok(default), |_| self.size(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        let number = self.key(key).map(Value::as_f64);
        match number {
            Some(None) => Err(self.wrong(key, "is not a number")),
            other => Ok(other.flatten()),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, Error> {
        let flag = self.key(key).map(Value::as_bool);
        flag.unwrap_or(Some(false))
            .ok_or_else(|| self.wrong(key, "is neither true nor false"))
    }

    fn text_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        let text = self.key(key).map(Value::as_str);
        text.unwrap_or(Some(default))
            .ok_or_else(|| self.wrong(key, "is not a text"))
    }

    fn wrong(&self, key: &str, what: &str) -> Error {
        Error::load(&self.file, format!("key {key}: {what}"))
    }
}
