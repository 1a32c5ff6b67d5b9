//! The sentence encoder: texts in, vectors out. Texts of like meaning have vectors of a high cosine.
//!
//! Decides what a text's vector is: the mean of the last layer over the tokens of the text, scaled to length 1. A text
//! is cut after [`TOKENS_MAX`] tokens. Invariant: the vector of a text is the same alone, in any batch and on any
//! number of threads, bit for bit. It does not know which texts matter, nor where vectors are kept.

use std::path::Path;

use candle_core::Tensor;

mod files;
mod forward;

use self::files::Vocabulary;
use self::forward::Bert;
use crate::Error;

/// The most tokens of a text; what follows is not read. The model was trained on texts of up to this length.
const TOKENS_MAX: usize = 256;

/// The most token rows of one pass: their values between two layers fit into a core's cache.
const ROWS_MAX: usize = 1024;

/// A sentence encoder of the family BERT.
pub struct Encoder {
    vocabulary: Vocabulary,
    /// The most tokens of a text, with those that begin and end it: at least 3.
    tokens_max: usize,
    bert: Bert,
    hash: String,
}

impl Encoder {
    /// Loads a Hugging Face folder: `config.json`, `tokenizer.json`, `model.safetensors`, and `1_Pooling/config.json`
    /// if there is one.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let loaded = files::load(folder)?;
        Ok(Self {
            vocabulary: loaded.vocabulary,
            tokens_max: TOKENS_MAX.min(loaded.positions),
            bert: loaded.bert,
            hash: loaded.hash,
        })
    }

    /// Numbers of a vector.
    pub fn width(&self) -> usize {
        self.bert.width()
    }

    /// Hash of configuration, tokenizer and weights. Vectors of encoders with different hashes cannot be compared.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The vectors of texts, in their order, each of [`width`](Self::width) numbers and of length 1. The empty text has
    /// a vector, too. Runs on the threads of the current rayon pool.
    pub fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, Error> {
        let tokens = texts.iter().map(|text| self.tokens(text));
        let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
        // Texts of one length need neither padding nor a mask.
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|nth| tokens[*nth].len());
        let mut vectors = vec![Vec::new(); texts.len()];
        for same in order.chunk_by(|a, b| tokens[*a].len() == tokens[*b].len()) {
            let length = tokens[same[0]].len();
            for pass in same.chunks((ROWS_MAX / length).max(1)) {
                let ids: Vec<&[u32]> = pass.iter().map(|nth| &tokens[*nth][..]).collect();
                let made = self.vectors(&ids).map_err(|e| Error::Compute {
                    what: format!("vectors of {} texts of {length} tokens", ids.len()),
                    source: Box::new(e),
                })?;
                for (nth, vector) in pass.iter().zip(made) {
                    vectors[*nth] = vector;
                }
            }
        }
        Ok(vectors)
    }

    /// The first tokens of a text, between the one that begins a text and the one that ends it.
    fn tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        let Vocabulary {
            tokenizer,
            begin,
            end,
            file,
        } = &self.vocabulary;
        let tokens = tokenizer.encode_fast(head(text), false);
        let tokens = tokens.map_err(|e| Error::load(file, e.to_string()))?;
        let inner = tokens.get_ids().iter().take(self.tokens_max - 2);
        let ids = [begin].into_iter().chain(inner).chain([end]);
        Ok(ids.copied().collect())
    }

    /// Vectors of texts that have the same number of tokens.
    fn vectors(&self, ids: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let hidden: Tensor = self.bert.forward(ids)?;
        let (texts, tokens, width) = hidden.dims3()?;
        let rows = hidden.flatten_all()?.to_vec1::<f32>()?;
        let of_text = rows.chunks_exact(tokens * width).take(texts);
        Ok(of_text.map(|rows| pooled(rows, width)).collect())
    }
}

/// The beginning of a text that is surely enough for [`TOKENS_MAX`] tokens: a token has at least one character, but a
/// blank has none, and a word of over 100 characters is one unknown token.
fn head(text: &str) -> &str {
    let end = text.char_indices().nth(TOKENS_MAX * 128);
    end.map_or(text, |(end, _)| &text[..end])
}

/// The mean of rows of `width` numbers, scaled to length 1.
fn pooled(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0f64; width];
    for row in rows.chunks_exact(width) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    // A vector of zeros has no direction; it stays as it is.
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    sum.iter().map(|x| (x * scale) as f32).collect()
}
