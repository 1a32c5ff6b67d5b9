//! The tokens in a GGUF's metadata and their types.
//!
//! Decides nothing. Invariant: every token has one id. It does not know how text becomes tokens.

use tokenizers::models::bpe::Vocab;

use super::header::Value;
use super::keys::Keys;
use crate::Error;

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";

// Types of tokens.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;

/// The id of each token.
pub(super) fn vocabulary(keys: &Keys, tokens: &[String]) -> Result<Vocab, Error> {
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = vocabulary.insert(token.clone(), id as u32) {
            let what = format!("{token:?} is token {other} and token {id}");
            return Err(keys.wrong(TOKENS, &what));
        }
    }
    Ok(vocabulary)
}

/// The type of each token; empty if the file has none, and then all are ordinary.
pub(super) fn types<'a>(keys: &Keys<'a>, tokens: &[String]) -> Result<&'a [i64], Error> {
    match keys.get(TYPES) {
        None => Ok(&[]),
        Some(Value::Integers(types)) if types.len() == tokens.len() => Ok(types),
        Some(_) => {
            let what = format!("is not a list of {} whole numbers", tokens.len());
            Err(keys.wrong(TYPES, &what))
        }
    }
}
