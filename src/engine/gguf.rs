//! GGUF files: names of keys and tensors, and the order of their rotary pairs.
//!
//! Invariant: what leaves here is dequantised and has the pairs of a Hugging Face folder. It does not
//! know what the tensors are for.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};

use super::Error;
use super::load::{Geometry, Part, Source, refuse};
use super::text::Text;

/// An open GGUF file.
pub struct Gguf {
    path: PathBuf,
    file: BufReader<File>,
    content: Content,
}

impl Gguf {
    /// Reads header and metadata.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|e| refuse(path, e.to_string()))?;
        let mut file = BufReader::new(file);
        let content = Content::read(&mut file)
            .map_err(|e| refuse(path, format!("not a readable GGUF file: {e}")))?;
        let path = path.to_owned();
        Ok(Self {
            path,
            file,
            content,
        })
    }

    fn value(&self, key: &str) -> Result<&Value, Error> {
        let found = self.content.metadata.get(key);
        found.ok_or_else(|| refuse(&self.path, format!("key {key} is missing")))
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        let wrong = |e: candle_core::Error| refuse(&self.path, format!("key {key}: {e}"));
        let value = self.value(key)?;
        Ok(value
            .to_u64()
            .or_else(|_| value.to_u32().map(u64::from))
            .map_err(wrong)? as usize)
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        if self.content.metadata.contains_key(key) {
            self.size(key)
        } else {
            Ok(default)
        }
    }

    fn number(&self, key: &str) -> Result<f32, Error> {
        let wrong = |e: candle_core::Error| refuse(&self.path, format!("key {key}: {e}"));
        self.value(key)?.to_f32().map_err(wrong)
    }

    /// GGUF keeps a Llama's rotary pairs side by side; we want them in halves, as they were.
    fn in_halves(&self, tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
        let (rows, columns) = tensor.dims2()?;
        let split = tensor.reshape((heads, rows / heads / 2, 2, columns))?;
        split
            .transpose(1, 2)?
            .contiguous()?
            .reshape((rows, columns))
    }
}

impl Source for Gguf {
    fn geometry(&self) -> Result<Geometry, Error> {
        let architecture = self.value("general.architecture")?;
        let architecture = architecture
            .to_string()
            .map_err(|e| refuse(&self.path, e.to_string()))?;
        if architecture != "llama" {
            let what = format!("architecture {architecture:?} is not supported; llama is");
            return Err(refuse(&self.path, what));
        }
        let scaling = self.content.metadata.get("llama.rope.scaling.type");
        let scaled =
            scaling.is_some_and(|value| value.to_string().is_ok_and(|kind| kind != "none"));
        if scaled || self.content.tensor_infos.contains_key("rope_freqs.weight") {
            return Err(refuse(
                &self.path,
                "key llama.rope.scaling.type: scaling is not supported",
            ));
        }
        if self.size_or("llama.expert_count", 0)? > 0 {
            return Err(refuse(
                &self.path,
                "key llama.expert_count: experts are not supported",
            ));
        }
        let hidden = self.size("llama.embedding_length")?;
        let heads = self.size("llama.attention.head_count")?.max(1);
        let head_dim = self.size_or("llama.attention.key_length", hidden / heads)?;
        let rotated = self.size_or("llama.rope.dimension_count", head_dim)?;
        if rotated != head_dim {
            let what = format!("key llama.rope.dimension_count: {rotated} of {head_dim} rotated");
            return Err(refuse(&self.path, what));
        }
        let tokens = self.value("tokenizer.ggml.tokens")?.to_vec();
        let tokens =
            tokens.map_err(|e| refuse(&self.path, format!("tokenizer.ggml.tokens: {e}")))?;
        let rope_base = match self.content.metadata.contains_key("llama.rope.freq_base") {
            true => self.number("llama.rope.freq_base")?,
            false => 10_000.0,
        };
        Ok(Geometry {
            hidden,
            layers: self.size("llama.block_count")?,
            heads,
            kv_heads: self.size_or("llama.attention.head_count_kv", heads)?,
            head_dim,
            feed_forward: self.size("llama.feed_forward_length")?,
            vocabulary: tokens.len(),
            context: self.size("llama.context_length")?,
            epsilon: self.number("llama.attention.layer_norm_rms_epsilon")?,
            rope_base,
        })
    }

    fn name(&self, part: Part) -> String {
        let (layer, name) = match part {
            Part::Embedding => return "token_embd.weight".into(),
            Part::Head => return "output.weight".into(),
            Part::Norm => return "output_norm.weight".into(),
            Part::AttentionNorm(layer) => (layer, "attn_norm"),
            Part::Query(layer) => (layer, "attn_q"),
            Part::Key(layer) => (layer, "attn_k"),
            Part::Value(layer) => (layer, "attn_v"),
            Part::Output(layer) => (layer, "attn_output"),
            Part::FeedNorm(layer) => (layer, "ffn_norm"),
            Part::Gate(layer) => (layer, "ffn_gate"),
            Part::Up(layer) => (layer, "ffn_up"),
            Part::Down(layer) => (layer, "ffn_down"),
        };
        format!("blk.{layer}.{name}.weight")
    }

    fn has(&self, part: Part) -> bool {
        self.content.tensor_infos.contains_key(&self.name(part))
    }

    fn tensor(&mut self, part: Part) -> Result<Tensor, Error> {
        let name = self.name(part);
        let geometry = self.geometry()?;
        let read = self
            .content
            .tensor(&mut self.file, &name, &Device::Cpu)
            .and_then(|tensor| tensor.dequantize(&Device::Cpu));
        let wrong = |e: candle_core::Error| refuse(&self.path, format!("tensor {name}: {e}"));
        let tensor = read.map_err(wrong)?;
        match part {
            Part::Query(_) => self.in_halves(&tensor, geometry.heads).map_err(wrong),
            Part::Key(_) => self.in_halves(&tensor, geometry.kv_heads).map_err(wrong),
            _ => Ok(tensor),
        }
    }

    fn text(&self) -> Result<Text, Error> {
        Text::from_gguf(&self.path, &self.content)
    }

    fn identity(&self) -> Result<Vec<Vec<u8>>, Error> {
        let wrong = |e: std::io::Error| refuse(&self.path, e.to_string());
        let mut file = File::open(&self.path).map_err(wrong)?;
        let mut header = Vec::new();
        let length = self.content.tensor_data_offset;
        (&mut file)
            .take(length)
            .read_to_end(&mut header)
            .map_err(wrong)?;
        // Fine-tuning keeps the header: a sample of the weights tells two models apart.
        let mut sample = Vec::new();
        file.seek(SeekFrom::Start(length)).map_err(wrong)?;
        file.take(1 << 20).read_to_end(&mut sample).map_err(wrong)?;
        Ok(vec![header, sample])
    }
}
