//! Reads the folder of a sentence encoder.
//!
//! Decides which folders are refused: another family, another activation, another pooling than the mean, a tensor of
//! another shape. Invariant: a setting that would change vectors is followed or refused by its key, and every error
//! names the file and what to do. It does not know how vectors are computed.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::{PostProcessorWrapper, Tokenizer};

use super::forward::{Bert, Dense, Layer, Norm, Sizes};
use crate::Error;
use crate::formats::folder::files::{read_json, read_text};
use crate::formats::map::Map;
use crate::formats::tensor::Kind;

/// What a folder holds.
pub(super) struct Loaded {
    pub(super) vocabulary: Vocabulary,
    /// The most tokens of a text.
    pub(super) positions: usize,
    pub(super) bert: Bert,
    pub(super) hash: String,
}

/// The tokenizer, without what it adds to a text, and the ids of the tokens that begin and end a text.
pub(super) struct Vocabulary {
    pub(super) tokenizer: Tokenizer,
    pub(super) begin: u32,
    pub(super) end: u32,
    /// `tokenizer.json`, for errors.
    pub(super) file: PathBuf,
}

/// Reads and checks a folder.
pub(super) fn load(folder: &Path) -> Result<Loaded, Error> {
    let file = folder.join("config.json");
    if !file.exists() {
        return Err(Error::load(
            folder,
            "is no folder of a sentence encoder: it must hold config.json, tokenizer.json and model.safetensors; \
             scripts/fetch-encoder fetches one",
        ));
    }
    let all = read_json(&file)?;
    let config = Config {
        file: &file,
        all: &all,
    };
    let sizes = config.sizes()?;
    pooling(folder)?;
    let (vocabulary, text) = vocabulary(folder, sizes.vocabulary)?;
    let weights = folder.join("model.safetensors");
    if !weights.exists() {
        let what = "is missing: save the encoder as safetensors (transformers: save_pretrained), in one file";
        return Err(Error::load(&weights, what));
    }
    let map = Map::open(&weights)?;
    let tensors = SafeTensors::deserialize(map.bytes()).map_err(|e| {
        let what =
            format!("is no whole safetensors file ({e}): cut short or damaged; fetch it again");
        Error::load(&weights, what)
    })?;
    let bert = Tensors {
        file: &weights,
        all: &tensors,
    }
    .bert(&sizes)?;
    let mut hash = Sha256::new();
    // JSON values print with sorted keys, so the layout of the file does not matter.
    for bytes in [all.to_string().as_bytes(), text.as_bytes(), map.bytes()] {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    Ok(Loaded {
        vocabulary,
        positions: sizes.positions,
        bert,
        hash: hex::encode(&hash.finalize()[..8]),
    })
}

/// Refuses a folder that says that its vectors are not the mean over the tokens.
fn pooling(folder: &Path) -> Result<(), Error> {
    let file = folder.join("1_Pooling").join("config.json");
    if !file.exists() {
        return Ok(());
    }
    let all = read_json(&file)?;
    let modes = all.as_object().into_iter().flatten();
    let mut on = modes
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true));
    match on.find(|(key, _)| *key != "pooling_mode_mean_tokens") {
        None => Ok(()),
        Some((key, _)) => Err(Error::load(
            &file,
            format!("key {key}: only the mean over tokens is supported; take all-MiniLM-L6-v2"),
        )),
    }
}

/// The tokenizer without truncation, padding and post-processor, and the text of its file.
fn vocabulary(folder: &Path, rows: usize) -> Result<(Vocabulary, String), Error> {
    let file = folder.join("tokenizer.json");
    let text = read_text(&file)?;
    // The tokenizers library panics if the JSON ends within a decoder, so it is parsed here first.
    let parsed = serde_json::from_str::<Value>(&text);
    parsed.map_err(|e| Error::load(&file, format!("{e}: cut short or damaged; fetch it again")))?;
    let mut tokenizer: Tokenizer = text
        .parse()
        .map_err(|e: tokenizers::Error| Error::load(&file, e.to_string()))?;
    let ids = tokenizer.get_vocab(true).into_values().max();
    if let Some(id) = ids.filter(|id| *id as usize >= rows) {
        let what = format!(
            "has ids up to {id}, config.json only {rows}: they are of different encoders; fetch both again"
        );
        return Err(Error::load(&file, what));
    }
    let special = |token: &str| {
        let id = tokenizer.token_to_id(token);
        id.ok_or_else(|| {
            let what = format!("has no token {token}, as the family BERT has; fetch it again");
            Error::load(&file, what)
        })
    };
    let (begin, end) = (special("[CLS]")?, special("[SEP]")?);
    // What stands in a text is text: "[SEP]" in a name ends nothing.
    tokenizer.set_encode_special_tokens(true);
    // The library panics if a post-processor names a token that it does not describe.
    tokenizer.with_post_processor(None::<PostProcessorWrapper>);
    tokenizer.with_padding(None);
    let untruncated = tokenizer.with_truncation(None);
    untruncated.map_err(|e| Error::load(&file, e.to_string()))?;
    let vocabulary = Vocabulary {
        tokenizer,
        begin,
        end,
        file,
    };
    Ok((vocabulary, text))
}

/// `config.json`.
struct Config<'a> {
    file: &'a Path,
    all: &'a Value,
}

impl Config<'_> {
    fn sizes(&self) -> Result<Sizes, Error> {
        self.only("model_type", "bert", None)?;
        self.only("hidden_act", "gelu", None)?;
        self.only("position_embedding_type", "absolute", Some("absolute"))?;
        let sizes = Sizes {
            width: self.size("hidden_size")?,
            layers: self.size("num_hidden_layers")?,
            heads: self.size("num_attention_heads")?,
            feed_forward: self.size("intermediate_size")?,
            vocabulary: self.size("vocab_size")?,
            positions: self.size("max_position_embeddings")?,
            epsilon: match self.all.get("layer_norm_eps").map(Value::as_f64) {
                None => 1e-12,
                Some(Some(epsilon)) => epsilon as f32,
                Some(None) => return Err(self.wrong("layer_norm_eps", "is not a number")),
            },
        };
        if sizes.positions < 3 {
            let what =
                "a text needs a position for its first token, its last token and one between them";
            return Err(self.wrong("max_position_embeddings", what));
        }
        if !sizes.width.is_multiple_of(sizes.heads) {
            let what = format!("{} heads do not divide {}", sizes.heads, sizes.width);
            return Err(self.wrong("num_attention_heads", &what));
        }
        Ok(sizes)
    }

    /// Refuses any other value of a key, which may be missing if `default` is what it then means.
    fn only(&self, key: &str, value: &str, default: Option<&str>) -> Result<(), Error> {
        let found = self.all.get(key).filter(|value| !value.is_null());
        let text = found.map_or(default, Value::as_str).unwrap_or_default();
        if text == value {
            return Ok(());
        }
        let what = format!("{text:?} is not supported; {value} is, as in all-MiniLM-L6-v2");
        Err(self.wrong(key, &what))
    }

    /// A size from 1 to 2^24; only a wrong file has a larger one.
    fn size(&self, key: &str) -> Result<usize, Error> {
        let size = self.all.get(key).and_then(Value::as_u64);
        size.filter(|size| (1..=1 << 24).contains(size))
            .map(|size| size as usize)
            .ok_or_else(|| self.wrong(key, "missing, or not a whole number over 0"))
    }

    fn wrong(&self, key: &str, what: &str) -> Error {
        Error::load(self.file, format!("key {key}: {what}"))
    }
}

/// The tensors of `model.safetensors`.
struct Tensors<'a> {
    file: &'a Path,
    all: &'a SafeTensors<'a>,
}

impl Tensors<'_> {
    fn bert(&self, sizes: &Sizes) -> Result<Bert, Error> {
        let Sizes {
            width, positions, ..
        } = *sizes;
        let table = |name: &str, rows: usize| {
            let name = format!("embeddings.{name}.weight");
            self.tensor(&name, &[rows, width])
        };
        let kinds = self.rows("embeddings.token_type_embeddings.weight")?;
        let words = table("word_embeddings", sizes.vocabulary)?;
        let positions = table("position_embeddings", positions)?;
        // Every token is of the first kind, so its row belongs to each position.
        let kind = table("token_type_embeddings", kinds)?;
        let kind = kind.narrow(0, 0, 1);
        let positions = kind.and_then(|kind| positions.broadcast_add(&kind));
        let layers = (0..sizes.layers).map(|layer| self.layer(sizes, layer));
        Ok(Bert {
            heads: sizes.heads,
            words,
            positions: positions.map_err(|e| Error::load(self.file, e.to_string()))?,
            norm: self.norm("embeddings.LayerNorm", sizes)?,
            layers: layers.collect::<Result<_, _>>()?,
        })
    }

    fn layer(&self, sizes: &Sizes, layer: usize) -> Result<Layer, Error> {
        let Sizes {
            width,
            feed_forward,
            ..
        } = *sizes;
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let parts = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        let [output, wide, narrow] = [
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ]
        .map(name);
        Ok(Layer {
            qkv: self.dense(&parts, width, width)?,
            output: self.dense(&[output], width, width)?,
            output_norm: self.norm(&name("attention.output.LayerNorm"), sizes)?,
            wide: self.dense(&[wide], width, feed_forward)?,
            narrow: self.dense(&[narrow], feed_forward, width)?,
            narrow_norm: self.norm(&name("output.LayerNorm"), sizes)?,
        })
    }

    /// Layers of the same input, one above the other: weights `[parts · out, in]`.
    fn dense(&self, parts: &[String], inner: usize, out: usize) -> Result<Dense, Error> {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for part in parts {
            weights.extend(self.numbers(&format!("{part}.weight"), &[out, inner])?);
            biases.extend(self.numbers(&format!("{part}.bias"), &[out])?);
        }
        let rows = parts.len() * out;
        let made = Tensor::from_vec(weights, (rows, inner), &Device::Cpu)
            .and_then(|weights| Dense::new(&weights, biases));
        made.map_err(|e| Error::load(self.file, format!("tensor {}: {e}", parts[0])))
    }

    fn norm(&self, name: &str, sizes: &Sizes) -> Result<Norm, Error> {
        Ok(Norm {
            weight: self.tensor(&format!("{name}.weight"), &[sizes.width])?,
            bias: self.tensor(&format!("{name}.bias"), &[sizes.width])?,
            epsilon: sizes.epsilon,
        })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let numbers = self.numbers(name, shape)?;
        let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu);
        tensor.map_err(|e| self.wrong(name, &e.to_string()))
    }

    fn rows(&self, name: &str) -> Result<usize, Error> {
        let shape = self
            .all
            .tensor(name)
            .map(|view| view.shape().first().copied());
        let rows = shape.map_err(|_| self.missing(name))?;
        rows.filter(|rows| *rows > 0)
            .ok_or_else(|| self.wrong(name, "has no rows; fetch the encoder again"))
    }

    /// A tensor of this shape as 32-bit floats.
    fn numbers(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let view = self.all.tensor(name).map_err(|_| self.missing(name))?;
        if view.shape() != shape {
            let what = format!(
                "has shape {:?}, not {shape:?} as config.json says: they are of different encoders; fetch both again",
                view.shape()
            );
            return Err(self.wrong(name, &what));
        }
        let kind = match view.dtype() {
            Dtype::F32 => Kind::F32,
            Dtype::F16 => Kind::F16,
            Dtype::BF16 => Kind::BF16,
            other => {
                let what = format!("type {other:?} is not supported; F32, F16 and BF16 are");
                return Err(self.wrong(name, &what));
            }
        };
        let numbers = kind
            .numbers(view.data())
            .map_err(|e| self.wrong(name, &e))?;
        if numbers.iter().any(|x| !x.is_finite()) {
            return Err(self.wrong(
                name,
                "has a number that is not finite: damaged; fetch it again",
            ));
        }
        Ok(numbers)
    }

    fn missing(&self, name: &str) -> Error {
        self.wrong(
            name,
            "is missing: the file is of another family than config.json says; fetch both again",
        )
    }

    fn wrong(&self, tensor: &str, what: &str) -> Error {
        Error::load(self.file, format!("tensor {tensor}: {what}"))
    }
}
