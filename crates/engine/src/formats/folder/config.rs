//! `config.json`: sizes and settings of a model.
//!
//! Invariant: a setting that changes results is either followed or refused by its key. It does not know tensors.

use std::path::PathBuf;

use serde_json::Value;

use crate::Error;
use crate::formats::families::{Family, Gate, Positions, Windowed};
use crate::formats::geometry::{Geometry, View, check_layers};
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
        let family = Family::of_folder(name);
        let family = family.map_err(|e| Error::load(&file, format!("key model_type: {e}")))?;
        Ok(Self { file, all, family })
    }

    /// The family that the configuration names.
    pub(super) fn family(&self) -> &'static Family {
        self.family
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
        check_layers(layers).map_err(|e| self.wrong("num_hidden_layers", &e))?;
        self.refuse_unknown()?;
        let (hidden, heads) = (
            self.size("hidden_size")?,
            self.size("num_attention_heads")?.max(1),
        );
        // The defaults of the `transformers` library if the file does not have the key.
        let head_dim = self.family.head_dim.unwrap_or(hidden / heads);
        let head_dim = self.size_or("head_dim", head_dim)?;
        let scaling = self.scaling(context)?;
        let rotated = self.rotated(head_dim)?;
        let ropes = self.ropes(head_dim, rotated, &scaling)?;
        let views = self.views(layers, context)?;
        let query_scalar = match self.family.query_scalar {
            Some(scalar) => self.positive("query_pre_attn_scalar")?.unwrap_or(scalar),
            None => head_dim as f64,
        };
        let logit_cap = self.positive("final_logit_softcapping")?;
        let bias = self.flag("attention_bias")? && self.family.reads_attention_bias;
        let epsilon = self.number("rms_norm_eps")?;
        let epsilon = epsilon.ok_or_else(|| self.wrong("rms_norm_eps", "missing"))?;
        let context = match scaling {
            Scaling::Yarn {
                factor, original, ..
            } => context.max((factor * original).min(f64::from(1 << 24)) as usize),
            // Longer prompts have other divisors at all positions.
            Scaling::LongRope { .. } => context.min(self.original_context(context)?),
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
            rotated,
            ropes,
            views,
            query_scalar,
            logit_cap: logit_cap.map(|cap| cap as f32),
            qkv_bias: self.family.qkv_bias || bias,
            output_bias: bias,
            head_norms: self.family.head_norms,
            tied: self.flag_or("tie_word_embeddings", self.family.tied)?,
        })
    }

    /// Refuses settings that would change results and that are not implemented.
    fn refuse_unknown(&self) -> Result<(), Error> {
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
        let (key, expected) = match self.family.gate {
            Gate::Silu => ("hidden_act", "silu"),
            Gate::GeluTanh => ("hidden_activation", "gelu_pytorch_tanh"),
        };
        let activation = self.text_or(key, expected)?;
        if activation != expected {
            let what = format!("{activation:?} is not supported; {expected} is");
            return Err(self.wrong(key, &what));
        }
        if self.key("attn_logit_softcapping").is_some() {
            let what = "soft caps of attention are not supported";
            return Err(self.wrong("attn_logit_softcapping", what));
        }
        if self.flag("use_bidirectional_attention")? {
            let what = "only causal models are supported";
            return Err(self.wrong("use_bidirectional_attention", what));
        }
        Ok(())
    }

    /// What each layer sees and how it rotates.
    fn views(&self, layers: usize, context: usize) -> Result<Vec<View>, Error> {
        let windowed = self.windowed(layers)?;
        let rotates = self.rotates(layers)?;
        let any = windowed.iter().any(|is| *is);
        let says_none = self.all.get("sliding_window") == Some(&Value::Null);
        let window = match self.key("sliding_window") {
            Some(_) => match self.size("sliding_window")? {
                0 => return Err(self.wrong("sliding_window", "a window of 0 positions")),
                window => window,
            },
            None if !any || (says_none && self.family.windowed == Windowed::All) => usize::MAX,
            None => return Err(self.wrong("sliding_window", "missing")),
        };
        let own_base = matches!(self.family.positions, Positions::OwnBaseInWindow(_));
        let view = |(is_windowed, rotates): (bool, bool)| View {
            window: (is_windowed && window < context).then_some(window),
            rope: usize::from(if own_base { is_windowed } else { !rotates }),
        };
        Ok(windowed.into_iter().zip(rotates).map(view).collect())
    }

    /// Which layers have the window: those that `layer_types` names, or those of the family.
    fn windowed(&self, layers: usize) -> Result<Vec<bool>, Error> {
        let by = |is: &dyn Fn(usize) -> bool| Ok((0..layers).map(is).collect());
        if self.family.windowed == Windowed::All {
            return by(&|_| true);
        }
        if let Some(types) = self.key("layer_types") {
            let kind = |kind: &Value| match kind.as_str() {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => Err(self.wrong("layer_types", &format!("{kind} is not supported"))),
            };
            let types = types.as_array().filter(|types| types.len() == layers);
            let types = types.ok_or_else(|| {
                self.wrong("layer_types", &format!("is not a list of {layers} types"))
            })?;
            let windowed: Vec<bool> = types.iter().map(kind).collect::<Result<_, _>>()?;
            let is_named = self.family.windowed == Windowed::Named;
            if is_named && windowed.contains(&true) && !self.flag("use_sliding_window")? {
                let what = "is not true, but layer_types names layers with a window";
                return Err(self.wrong("use_sliding_window", what));
            }
            return Ok(windowed);
        }
        match self.family.windowed {
            Windowed::ButEvery(nth) => {
                let key = match self.key("_sliding_window_pattern") {
                    Some(_) => "_sliding_window_pattern",
                    None => "sliding_window_pattern",
                };
                let nth = self.size_or(key, nth)?.max(1);
                by(&|layer| !(layer + 1).is_multiple_of(nth))
            }
            Windowed::Named if self.flag("use_sliding_window")? => {
                if self.family.positions != Positions::Same {
                    return Err(
                        self.wrong("layer_types", "missing, and use_sliding_window is true")
                    );
                }
                let from = self.size_or("max_window_layers", 28)?;
                by(&|layer| layer >= from)
            }
            _ => by(&|_| false),
        }
    }

    /// Which layers have rotary positions.
    fn rotates(&self, layers: usize) -> Result<Vec<bool>, Error> {
        let Positions::NoneInEvery(nth) = self.family.positions else {
            return Ok(vec![true; layers]);
        };
        let key = "no_rope_layers";
        let Some(named) = self.key(key) else {
            let nth = self.size_or("no_rope_layer_interval", nth)?.max(1);
            return Ok((1..=layers)
                .map(|layer| !layer.is_multiple_of(nth))
                .collect());
        };
        let named = named.as_array().filter(|named| named.len() >= layers);
        let named = named.ok_or_else(|| self.wrong(key, "is not a list of a number per layer"))?;
        let rotates = |value: &Value| match value.as_u64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(self.wrong(key, &format!("{value} is neither 0 nor 1"))),
        };
        named.iter().take(layers).map(rotates).collect()
    }

    /// The ways in which layers rotate: that of the model, then that of the layers that differ.
    fn ropes(
        &self,
        head_dim: usize,
        rotated: usize,
        scaling: &Scaling,
    ) -> Result<Vec<Rope>, Error> {
        let wrong = |key: &'static str| move |e: String| self.wrong(key, &e);
        let rope = Rope::new(self.rope_base()?, rotated, scaling);
        let mut ropes = vec![rope.map_err(wrong("rope_scaling"))?.of_part(head_dim)];
        match self.family.positions {
            Positions::Same => {}
            Positions::NoneInEvery(_) => ropes.push(Rope::none(head_dim)),
            Positions::OwnBaseInWindow(base) => {
                let named = self.key("rope_parameters");
                let named = named.and_then(|rope| rope.get("sliding_attention"));
                if let Some(named) = named
                    && named.get("rope_type").is_some_and(|kind| kind != "default")
                {
                    let what = "scaling in layers with a window is not supported";
                    return Err(self.wrong("rope_parameters", what));
                }
                let named = named.and_then(|rope| rope.get("rope_theta")?.as_f64());
                let key = "rope_local_base_freq";
                let base = named.or(self.number(key)?).unwrap_or(base);
                let rope = Rope::new(base, head_dim, &Scaling::None);
                ropes.push(rope.map_err(wrong(key))?);
            }
        }
        Ok(ropes)
    }

    /// Width of the part of each head that has rotary positions.
    fn rotated(&self, head_dim: usize) -> Result<usize, Error> {
        let key = "partial_rotary_factor";
        let nested = self.rope().and_then(|(_, rope)| rope.get(key)?.as_f64());
        let part = nested.or(self.number(key)?).unwrap_or(1.0);
        if part == 1.0 {
            return Ok(head_dim);
        }
        if !self.family.fused || !(0.1..1.0).contains(&part) {
            let what = format!("rotating {part} of each head is not supported");
            return Err(self.wrong(key, &what));
        }
        Ok((head_dim as f64 * part) as usize)
    }

    /// Positions of the training before the context was made longer.
    fn original_context(&self, context: usize) -> Result<usize, Error> {
        let key = "original_max_position_embeddings";
        let nested = self.rope().and_then(|(_, rope)| rope.get(key)?.as_u64());
        match nested {
            Some(original) => Ok(original as usize),
            None => self.size_or(key, context),
        }
    }

    /// Divisors for prompts up to the original context, and the factor on cosine and sine.
    fn longrope(&self, key: &str, rope: &Value, context: usize) -> Result<Scaling, Error> {
        let divisors = rope.get("short_factor").and_then(Value::as_array);
        let divisors =
            divisors.map(|all| all.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        let divisors = divisors.flatten();
        let divisors =
            divisors.ok_or_else(|| self.wrong(key, "short_factor is not a list of numbers"))?;
        let number = |name: &str| rope.get(name).and_then(Value::as_f64);
        let original = self.original_context(context)? as f64;
        let factor = number("factor").unwrap_or(context as f64 / original);
        let attention = match number("attention_factor") {
            Some(attention) => attention,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        Ok(Scaling::LongRope {
            divisors,
            attention,
        })
    }

    /// Key and value of `rope_scaling`, as earlier versions of the library write it, or `rope_parameters` of later
    /// ones.
    fn rope(&self) -> Option<(&'static str, &Value)> {
        let of = |key: &'static str| {
            let rope = self.key(key)?;
            // Where layers with a window have parameters of their own, the others' are named beside them.
            Some((key, rope.get("full_attention").unwrap_or(rope)))
        };
        of("rope_scaling").or_else(|| of("rope_parameters"))
    }

    fn rope_base(&self) -> Result<f64, Error> {
        let nested = ["rope_parameters", "rope_scaling"].map(|key| {
            let rope = self.key(key)?;
            let rope = rope.get("full_attention").unwrap_or(rope);
            rope.get("rope_theta").filter(|value| !value.is_null())
        });
        let [later, earlier] = nested;
        match self.key("rope_theta").or(later).or(earlier) {
            None => Ok(self.family.rope_base),
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
            "longrope" | "su" if self.family.fused => self.longrope(key, rope, context),
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

    /// A number above 0, if the file has the key.
    fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.number(key)? {
            Some(number) if !(number.is_finite() && number > 0.0) => {
                Err(self.wrong(key, &format!("{number} is not above 0")))
            }
            number => Ok(number),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, Error> {
        self.flag_or(key, false)
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool, Error> {
        let flag = self.key(key).map(Value::as_bool);
        flag.unwrap_or(Some(default))
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
