//! A SentencePiece vocabulary in a GGUF's metadata: pieces with scores -> a tokenizer that merges.
//!
//! Decides in which order neighbours merge: those whose piece has the greatest score first, then the leftmost, as
//! llama.cpp and SentencePiece do it. A character without a piece becomes its bytes. Invariant: a vocabulary for which
//! merges by rank would not be that order is refused. It does not know which tokens are special.

use std::collections::{HashMap, HashSet};

use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::Sequence;

use super::header::Value;
use super::keys::Keys;
use super::vocabulary::{NORMAL, TOKENS, UNUSED, USER_DEFINED, types, vocabulary};
use crate::Error;

/// The sign of a space in pieces.
const SPACE: &str = "\u{2581}";

const SCORES: &str = "tokenizer.ggml.scores";

/// Reads the tokenizer, without the tokens that are found before a text is split, and whether a text starts with the
/// BOS token.
pub(super) fn tokenizer(keys: &Keys) -> Result<(Tokenizer, bool), Error> {
    let tokens = keys.texts(TOKENS)?;
    let vocabulary = vocabulary(keys, tokens)?;
    for byte in 0..=u8::MAX {
        let piece = format!("<0x{byte:02X}>");
        if !vocabulary.contains_key(&piece) {
            let what = format!("{piece} is missing, so a character without a piece has no tokens");
            return Err(keys.wrong(TOKENS, &what));
        }
    }
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges(keys, tokens)?)
        .byte_fallback(true)
        .build()
        .map_err(|e| keys.wrong(SCORES, &e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let wrong = |e: tokenizers::Error| keys.wrong(TOKENS, &e.to_string());
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    // llama.cpp puts it before the text and after each token that is found before, and so does a normalizer.
    if flag(keys, "tokenizer.ggml.add_space_prefix") {
        steps.push(Prepend::new(SPACE.into()).into());
    }
    steps.push(Replace::new(" ", SPACE).map_err(wrong)?.into());
    tokenizer
        .with_normalizer(Some(Sequence::new(steps)))
        .map_err(wrong)?;
    Ok((tokenizer, flag(keys, "tokenizer.ggml.add_bos_token")))
}

/// A key that is true if it is missing.
fn flag(keys: &Keys, key: &str) -> bool {
    keys.get(key)
        .is_none_or(|value| *value == Value::Integer(1))
}

/// Lists the pairs of pieces that merge, first those of the piece with the greatest score.
fn merges(keys: &Keys, tokens: &[String]) -> Result<Merges, Error> {
    let scores = match keys.get(SCORES) {
        Some(Value::Floats(scores)) if scores.len() == tokens.len() => scores,
        Some(_) => {
            let what = format!("is not a list of {} numbers", tokens.len());
            return Err(keys.wrong(SCORES, &what));
        }
        None => return Err(keys.wrong(SCORES, "is missing")),
    };
    if scores.iter().any(|score| score.is_nan()) {
        return Err(keys.wrong(SCORES, "has a score that is not a number"));
    }
    let types = types(keys, tokens)?;
    let kind = |id: usize| types.get(id).copied().unwrap_or(NORMAL);
    let mut pieces: HashMap<&str, f64> = HashMap::with_capacity(tokens.len());
    // Characters that are cut out before: a piece that has one inside is never merged.
    let mut cut = HashSet::new();
    for (id, (token, score)) in tokens.iter().zip(scores).enumerate() {
        // Control tokens and bytes are never merged.
        match kind(id) {
            NORMAL | UNUSED => _ = pieces.insert(token, *score),
            USER_DEFINED => cut.extend(only(token)),
            _ => {}
        }
    }
    // Score, piece, and where it is cut in two.
    let mut found: Vec<(f64, &str, usize)> = Vec::new();
    for piece in tokens {
        let Some(score) = pieces.get(piece.as_str()) else {
            continue;
        };
        if piece.chars().any(|c| cut.contains(&c)) {
            continue;
        }
        for (at, c) in piece.char_indices() {
            if c.len_utf8() < piece.len() && !pieces.contains_key(&piece[at..at + c.len_utf8()]) {
                let what = format!(
                    "character {c:?} of the piece {piece:?} is no piece itself; such a vocabulary is not supported"
                );
                return Err(keys.wrong(TOKENS, &what));
            }
            let (left, right) = piece.split_at(at);
            if pieces.contains_key(left) && pieces.contains_key(right) {
                found.push((*score, piece, at));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let equal = found
        .windows(2)
        .find(|two| two[0].0 == two[1].0 && two[0].1 != two[1].1);
    if let Some([(score, piece, _), (_, other, _)]) = equal {
        let what = format!(
            "the pieces {piece:?} and {other:?} both have {score}, so the order of merges is unknown; convert the \
             model again from its tokenizer.model, or load its Hugging Face folder"
        );
        return Err(keys.wrong(SCORES, &what));
    }
    let pairs = found.into_iter().map(|(_, piece, at)| piece.split_at(at));
    Ok(pairs
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .collect())
}

/// The character of a token that is only one.
fn only(token: &str) -> Option<char> {
    let mut chars = token.chars();
    chars.next().filter(|_| chars.next().is_none())
}
