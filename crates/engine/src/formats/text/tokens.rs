//! The tokenizer, with and without special tokens.
//!
//! Decides which tokens are reserved: those with which a model marks turns, tools and thoughts. Invariant: a user's
//! words become ordinary tokens, never a reserved one, and a text without reserved tokens in it becomes what the
//! tokenizers library makes of it. It does not know chat templates.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::{
    AddedToken, ModelWrapper, OffsetReferential, OffsetType, PreTokenizerWrapper, Tokenizer,
};

use super::mask::Mask;
use crate::Error;

/// A tokenizer, and how it reads users' words.
pub(super) struct Tokens {
    whole: Tokenizer,
    /// The same tokenizer, which reads reserved tokens as words.
    plain: Tokenizer,
    /// `plain` for what follows other text: without the space that it puts before the first word of a text only.
    inner: Option<Tokenizer>,
    reserved: HashSet<u32>,
    /// Texts of the reserved tokens.
    texts: Vec<String>,
    /// The token of what has no other.
    unknown: Option<u32>,
    /// Characters to hide so that every reserved token has one, beside signs.
    pub hidden: Vec<char>,
}

impl Tokens {
    /// Sorts out the reserved tokens; errors name `path`.
    pub(super) fn new(path: &Path, mut whole: Tokenizer) -> Result<Self, Error> {
        let wrong = |e: tokenizers::Error| Error::load(path, format!("the tokenizer fails: {e}"));
        // A prompt is neither truncated nor padded here: the prompt template's budget limits its length.
        whole.with_padding(None);
        whole.with_truncation(None).map_err(wrong)?;
        let added = whole.get_added_tokens_decoder();
        let reserved: Vec<(u32, AddedToken)> = added
            .into_iter()
            // Qwen's `<think>` and `<tool_call>` act like special tokens, but are not marked as special.
            .filter(|(_, token)| {
                token.special || (token.content.starts_with('<') && token.content.len() > 1)
            })
            .filter(|(_, token)| !token.content.is_empty())
            .collect();
        let mut plain = whole.clone();
        let special = reserved
            .iter()
            .map(|(_, token)| token.clone().special(true));
        plain.add_special_tokens(special).map_err(wrong)?;
        plain.set_encode_special_tokens(true);
        let inner = without_first_space(&plain).map_err(|e| wrong(e.into()))?;
        let unknown = match whole.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.as_deref(),
            ModelWrapper::WordLevel(model) => Some(model.unk_token.as_str()),
            ModelWrapper::WordPiece(model) => Some(model.unk_token.as_str()),
            ModelWrapper::Unigram(_) => None,
        };
        let unknown = unknown.and_then(|token| whole.token_to_id(token));
        let texts: Vec<String> = reserved
            .iter()
            .map(|(_, token)| token.content.clone())
            .collect();
        let bare = texts
            .iter()
            .filter(|text| Mask::new(&[text], "", &[]).is_empty());
        let hidden = bare.filter_map(|text| text.chars().find(|c| c.is_alphanumeric()));
        Ok(Self {
            hidden: hidden.collect(),
            reserved: reserved.into_iter().map(|(id, _)| id).collect(),
            texts,
            unknown,
            inner,
            plain,
            whole,
        })
    }

    /// The tokenizer as the model's files describe it.
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.whole
    }

    /// Whether a token marks turns, tools or thoughts.
    pub(super) fn is_reserved(&self, id: u32) -> bool {
        self.reserved.contains(&id)
    }

    /// Encodes a text of the model's own; reserved tokens in it are recognised.
    pub(super) fn own(&self, text: &str) -> Result<Vec<u32>, Error> {
        encode(&self.whole, text)
    }

    /// Encodes words of users or the catalogue, at the start of a text.
    pub(super) fn words(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.ordinary(text, true)
    }

    /// Encodes a prompt whose users' words are hidden by `mask`: what is reserved in `laid` is the template's.
    pub(super) fn prompt(&self, laid: &str, mask: &Mask) -> Result<Vec<u32>, Error> {
        let shown = mask.show(laid);
        let own = self.reserved_in(laid);
        let same = |(a, b): (&(u32, usize, usize), &(u32, usize, usize))| a.0 == b.0;
        let in_shown = self.reserved_in(&shown);
        if own.len() == in_shown.len() && own.iter().zip(&in_shown).all(same) {
            let tokens = self.own(&shown)?;
            let is_own = |id: &&u32| self.reserved.contains(id) && Some(**id) != self.unknown;
            let reserved = tokens.iter().filter(is_own).count();
            let own = own
                .iter()
                .filter(|(id, ..)| Some(*id) != self.unknown)
                .count();
            if reserved == own {
                return Ok(tokens);
            }
        }
        // A user's words have the text of a reserved token: what is between the template's tokens is encoded apart.
        let mut tokens = Vec::new();
        let mut at = 0;
        for (id, from, to) in own {
            tokens.extend(self.ordinary(&mask.show(&laid[at..from]), at == 0)?);
            tokens.push(id);
            at = to;
        }
        tokens.extend(self.ordinary(&mask.show(&laid[at..]), at == 0)?);
        Ok(tokens)
    }

    /// Reserved tokens in a text with their places, in order.
    fn reserved_in(&self, text: &str) -> Vec<(u32, usize, usize)> {
        let added = self.whole.get_added_vocabulary();
        let split = added.extract_and_normalize(self.whole.get_normalizer(), text);
        let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let ids = pieces.into_iter().filter_map(|(_, (from, to), tokens)| {
            let id = tokens.as_ref()?.first()?.id;
            self.reserved.contains(&id).then_some((id, from, to))
        });
        ids.collect()
    }

    /// Encodes words without reserved tokens.
    fn ordinary(&self, text: &str, is_first: bool) -> Result<Vec<u32>, Error> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let inner = self.inner.as_ref().unwrap_or(&self.plain);
        let tokens = encode(if is_first { &self.plain } else { inner }, text)?;
        let is_reserved = |id: &u32| self.reserved.contains(id);
        if !tokens.iter().any(is_reserved) {
            return Ok(tokens);
        }
        // Models without merges (Unigram) know a reserved token as a word, too: it is encoded in two pieces.
        let mut cuts: Vec<usize> = Vec::new();
        for reserved in &self.texts {
            let first = reserved.chars().next().map_or(0, char::len_utf8);
            cuts.extend(
                text.match_indices(reserved.as_str())
                    .map(|(at, _)| at + first),
            );
        }
        if cuts.is_empty() {
            // It is the token of what has no other.
            return Ok(tokens);
        }
        cuts.push(text.len());
        cuts.sort_unstable();
        cuts.dedup();
        let (mut tokens, mut at) = (Vec::new(), 0);
        for cut in cuts {
            let tokenizer = if is_first && at == 0 {
                &self.plain
            } else {
                inner
            };
            tokens.extend(encode(tokenizer, &text[at..cut])?);
            at = cut;
        }
        tokens.retain(|id| !is_reserved(id) || Some(*id) == self.unknown);
        Ok(tokens)
    }
}

/// A tokenizer without the space that it puts before the first word of a text; `None` if it puts none.
fn without_first_space(tokenizer: &Tokenizer) -> Result<Option<Tokenizer>, serde_json::Error> {
    let Some(pre) = tokenizer.get_pre_tokenizer() else {
        return Ok(None);
    };
    let mut pre = serde_json::to_value(pre)?;
    if !never_first(&mut pre) {
        return Ok(None);
    }
    let pre: PreTokenizerWrapper = serde_json::from_value(pre)?;
    let mut inner = tokenizer.clone();
    inner.with_pre_tokenizer(Some(pre));
    Ok(Some(inner))
}

/// Changes every `"prepend_scheme": "first"` to `"never"`; returns whether there was one.
fn never_first(value: &mut serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let mut changed = false;
            for (key, value) in fields {
                if key == "prepend_scheme" && value == "first" {
                    *value = "never".into();
                    changed = true;
                } else {
                    changed |= never_first(value);
                }
            }
            changed
        }
        Value::Array(items) => items
            .iter_mut()
            .fold(false, |changed, item| never_first(item) | changed),
        _ => false,
    }
}

pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
    Ok(encoding(tokenizer, text)?.get_ids().to_vec())
}

fn encoding(tokenizer: &Tokenizer, text: &str) -> Result<tokenizers::Encoding, Error> {
    // `encode_fast` computes no offsets into the text, which are not needed and take half of the time.
    let encoded = tokenizer.encode_fast(text, false);
    encoded.map_err(|source| Error::Compute {
        what: "tokens".into(),
        source,
    })
}

impl Tokens {
    /// Whether the tokenizer encodes a text as if a space came before it, as SentencePiece does.
    pub(super) fn adds_space(&self) -> Result<bool, Error> {
        let (bare, spaced) = (encode(&self.plain, "a")?, encode(&self.plain, " a")?);
        // By its id: `encode_fast` leaves the texts of tokens empty.
        let first = bare.first().and_then(|id| self.plain.id_to_token(*id));
        let marked = first.is_some_and(|token| token.starts_with('\u{2581}'));
        Ok(marked || bare == spaced)
    }
}
