//! Hugging Face folders: `config.json`, one or more safetensors files, `tokenizer.json`.
//!
//! Invariant: a part comes from the one file that holds it, widened to `f32`. It does not know what
//! the tensors are for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::Error;
use super::load::{Geometry, Part, Source, refuse};
use super::text::Text;

/// An open folder.
pub struct Folder {
    path: PathBuf,
    config: Value,
    files: Vec<PathBuf>,
    tensors: MmapedSafetensors,
    names: BTreeMap<String, ()>,
}

impl Folder {
    /// Reads `config.json` and maps the weights.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let config = read_json(&path.join("config.json"))?;
        let mut files: Vec<PathBuf> = fs::read_dir(path)
            .map_err(|e| refuse(path, e.to_string()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|file| {
                file.extension()
                    .is_some_and(|ending| ending == "safetensors")
            })
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(refuse(path, "no .safetensors file"));
        }
        for file in &files {
            // Singly first, so that the error names the file.
            map(std::slice::from_ref(file)).map_err(|e| refuse(file, e.to_string()))?;
        }
        let tensors = map(&files).map_err(|e| refuse(path, e.to_string()))?;
        let names = tensors
            .tensors()
            .into_iter()
            .map(|(name, _)| (name, ()))
            .collect();
        let path = path.to_owned();
        Ok(Self {
            path,
            config,
            files,
            tensors,
            names,
        })
    }

    fn key(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.key(key).ok_or_else(|| self.wrong(key, "missing"))?;
        let size = value
            .as_u64()
            .ok_or_else(|| self.wrong(key, "not a whole number"))?;
        Ok(size as usize)
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        self.key(key).map_or(Ok(default), |_| self.size(key))
    }

    fn wrong(&self, key: &str, what: &str) -> Error {
        refuse(&self.path.join("config.json"), format!("key {key}: {what}"))
    }

    /// What this engine would silently compute wrongly must be absent.
    fn refuse_unknown(&self) -> Result<(), Error> {
        let kind = self
            .key("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if kind != "llama" {
            return Err(self.wrong(
                "model_type",
                &format!("{kind:?} is not supported; llama is"),
            ));
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.key(key).and_then(Value::as_bool) == Some(true) {
                return Err(self.wrong(key, "biases are not supported"));
            }
        }
        let activation = self
            .key("hidden_act")
            .and_then(Value::as_str)
            .unwrap_or("silu");
        if activation != "silu" {
            return Err(self.wrong("hidden_act", &format!("{activation:?} is not supported")));
        }
        let rope = self.key("rope_scaling").or(self.key("rope_parameters"));
        let kind = rope.and_then(|rope| rope.get("rope_type").or(rope.get("type")));
        match (rope, kind.and_then(Value::as_str)) {
            (None, _) | (Some(_), Some("default")) => Ok(()),
            (Some(_), _) => Err(self.wrong("rope_scaling", "scaling is not supported")),
        }
    }

    fn rope_base(&self) -> f32 {
        let nested = self
            .key("rope_parameters")
            .and_then(|rope| rope.get("rope_theta"));
        let base = self.key("rope_theta").or(nested).and_then(Value::as_f64);
        base.unwrap_or(10_000.0) as f32
    }
}

fn map(files: &[PathBuf]) -> candle_core::Result<MmapedSafetensors> {
    // SAFETY: model files are written before a worker starts and not changed under it; a file cut
    // short meanwhile kills the process by a signal, as it would any program that maps it.
    unsafe { MmapedSafetensors::multi(files) }
}

/// A JSON file, or an error that names it.
pub(super) fn read_json(path: &Path) -> Result<Value, Error> {
    let bytes = fs::read(path).map_err(|e| refuse(path, e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| refuse(path, e.to_string()))
}

impl Source for Folder {
    fn geometry(&self) -> Result<Geometry, Error> {
        self.refuse_unknown()?;
        let hidden = self.size("hidden_size")?;
        let heads = self.size("num_attention_heads")?.max(1);
        let epsilon = self.key("rms_norm_eps").and_then(Value::as_f64);
        Ok(Geometry {
            hidden,
            layers: self.size("num_hidden_layers")?,
            heads,
            kv_heads: self.size_or("num_key_value_heads", heads)?,
            head_dim: self.size_or("head_dim", hidden / heads)?,
            feed_forward: self.size("intermediate_size")?,
            vocabulary: self.size("vocab_size")?,
            context: self.size("max_position_embeddings")?,
            epsilon: epsilon.ok_or_else(|| self.wrong("rms_norm_eps", "missing"))? as f32,
            rope_base: self.rope_base(),
        })
    }

    fn name(&self, part: Part) -> String {
        let (layer, name) = match part {
            Part::Embedding => return "model.embed_tokens.weight".into(),
            Part::Head => return "lm_head.weight".into(),
            Part::Norm => return "model.norm.weight".into(),
            Part::AttentionNorm(layer) => (layer, "input_layernorm"),
            Part::Query(layer) => (layer, "self_attn.q_proj"),
            Part::Key(layer) => (layer, "self_attn.k_proj"),
            Part::Value(layer) => (layer, "self_attn.v_proj"),
            Part::Output(layer) => (layer, "self_attn.o_proj"),
            Part::FeedNorm(layer) => (layer, "post_attention_layernorm"),
            Part::Gate(layer) => (layer, "mlp.gate_proj"),
            Part::Up(layer) => (layer, "mlp.up_proj"),
            Part::Down(layer) => (layer, "mlp.down_proj"),
        };
        format!("model.layers.{layer}.{name}.weight")
    }

    fn has(&self, part: Part) -> bool {
        let tied = self.key("tie_word_embeddings").and_then(Value::as_bool) == Some(true);
        !(part == Part::Head && tied) && self.names.contains_key(&self.name(part))
    }

    fn tensor(&mut self, part: Part) -> Result<Tensor, Error> {
        let name = self.name(part);
        let read = self.tensors.load(&name, &Device::Cpu);
        read.and_then(|tensor| tensor.to_dtype(DType::F32))
            .map_err(|e| refuse(&self.path, format!("tensor {name}: {e}")))
    }

    fn text(&self) -> Result<Text, Error> {
        Text::from_folder(&self.path)
    }

    fn identity(&self) -> Result<Vec<Vec<u8>>, Error> {
        let mut parts = vec![self.config.to_string().into_bytes()];
        let tokenizer = self.path.join("tokenizer.json");
        parts.push(fs::read(&tokenizer).map_err(|e| refuse(&tokenizer, e.to_string()))?);
        for file in &self.files {
            use std::io::Read as _;
            let wrong = |e: std::io::Error| refuse(file, e.to_string());
            let mut head = Vec::new();
            let open = fs::File::open(file).map_err(wrong)?;
            open.take(1 << 20).read_to_end(&mut head).map_err(wrong)?;
            parts.push(head);
        }
        Ok(parts)
    }
}
