//! The tokenizer and chat template in a GGUF's metadata.
//!
//! Decides which tokens are found in a text first, and how a byte-level BPE splits the rest before merges apply
//! (pre-tokenisation): by the kind that the file names, as llama.cpp and the model's own `tokenizer.json` do it.
//! Invariant: an unknown kind is refused, because a wrong split gives wrong tokens without any error. It does not know
//! how a chat template is rendered.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use super::header::Value;
use super::keys::Keys;
use super::sentencepiece;
use super::vocabulary::{CONTROL, NORMAL, TOKENS, TYPES, UNKNOWN, USER_DEFINED, types, vocabulary};
use crate::Error;
use crate::formats::text::{Text, TokenizerParts};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A kind of pre-tokenisation: what `tokenizer.ggml.pre` names.
struct PreTokenizer {
    /// Regular expressions; each splits the pieces that those before it left.
    splits: &'static [&'static str],
    /// Whether text is normalised to NFC first.
    normalizes: bool,
    /// Whether a piece that is a token itself is not merged from smaller tokens.
    ignores_merges: bool,
    /// Whether a text starts with the BOS token if the file does not say.
    starts_with_bos: bool,
}

/// The kinds to name in an error: one name of each.
const SUPPORTED: &str = "smollm, gpt-2, default, qwen2, llama-bpe";

fn pre_tokenizer(kind: &str) -> Option<PreTokenizer> {
    let plain = PreTokenizer {
        splits: &[GPT2],
        normalizes: false,
        ignores_merges: false,
        starts_with_bos: false,
    };
    Some(match kind {
        "gpt-2" => plain,
        "smollm" => PreTokenizer {
            splits: &[r"\p{N}", GPT2],
            ..plain
        },
        "default" => PreTokenizer {
            splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            ..plain
        },
        "qwen2" | "deepseek-r1-qwen" => PreTokenizer {
            splits: &[QWEN2],
            normalizes: true,
            ..plain
        },
        "llama-bpe" | "llama3" | "llama-v3" => PreTokenizer {
            splits: &[LLAMA3],
            ignores_merges: true,
            starts_with_bos: true,
            ..plain
        },
        "smaug-bpe" => PreTokenizer {
            splits: &[LLAMA3],
            ..plain
        },
        _ => return None,
    })
}

/// Reads tokenizer and chat template from the metadata.
pub(super) fn text(keys: &Keys) -> Result<Text, Error> {
    let (tokenizer, starts_with_bos) = tokenizer(keys)?;
    let token = |key: &str| -> Result<Option<String>, Error> {
        if keys.get(key).is_none() {
            return Ok(None);
        }
        let id = keys.size(key)?;
        let token = u32::try_from(id)
            .ok()
            .and_then(|id| tokenizer.id_to_token(id));
        token
            .map(Some)
            .ok_or_else(|| keys.wrong(key, &format!("there is no token {id}")))
    };
    let eos = "tokenizer.ggml.eos_token_id";
    let parts = TokenizerParts {
        template: template(keys)?,
        bos: token("tokenizer.ggml.bos_token_id")?,
        eos: token(eos)?.ok_or_else(|| keys.wrong(eos, "is missing"))?,
        starts_with_bos,
        tokenizer,
    };
    Text::new(keys.path(), parts)
}

/// Reads the chat template; of several named ones the default.
fn template(keys: &Keys) -> Result<Option<String>, Error> {
    for key in ["tokenizer.chat_template", "tokenizer.chat_template.default"] {
        if keys.get(key).is_some() {
            return Ok(Some(keys.text(key)?.to_owned()));
        }
    }
    let key = "tokenizer.chat_templates";
    if keys.get(key).is_none() {
        return Ok(None);
    }
    let what = format!(
        "names the templates {:?}, and none is the default; write the one to use into the key \
         tokenizer.chat_template (gguf-new-metadata --chat-template)",
        keys.texts(key)?
    );
    Err(keys.wrong(key, &what))
}

/// Reads the tokenizer, and whether a text starts with the BOS token.
fn tokenizer(keys: &Keys) -> Result<(Tokenizer, bool), Error> {
    let (mut tokenizer, starts_with_bos) = match keys.text("tokenizer.ggml.model")? {
        "gpt2" => byte_level(keys)?,
        "llama" => sentencepiece::tokenizer(keys)?,
        model => {
            let what = format!(
                "{model:?} vocabularies are not supported in a GGUF, gpt2 (byte-level BPE) and llama (SentencePiece) \
                 are; load the model from its Hugging Face folder, whose tokenizer.json is"
            );
            return Err(keys.wrong("tokenizer.ggml.model", &what));
        }
    };
    let tokens = keys.texts(TOKENS)?;
    add_tokens(keys, tokens, &mut tokenizer)?;
    Ok((tokenizer, starts_with_bos))
}

/// Reads a byte-level BPE, without the tokens that are found before a text is split.
fn byte_level(keys: &Keys) -> Result<(Tokenizer, bool), Error> {
    let key = "tokenizer.ggml.pre";
    if keys.get(key).is_none() {
        let what = "is missing, so how text is split is unknown; convert the model again with a \
                    llama.cpp of May 2024 or later";
        return Err(keys.wrong(key, what));
    }
    let kind = keys.text(key)?;
    let pre = pre_tokenizer(kind).ok_or_else(|| {
        let what = format!("{kind:?} is not supported; {SUPPORTED} are");
        keys.wrong(key, &what)
    })?;
    let tokens = keys.texts(TOKENS)?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary(keys, tokens)?, merges(keys)?)
        .ignore_merges(pre.ignores_merges)
        .build()
        .map_err(|e| keys.wrong("tokenizer.ggml.merges", &e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let wrong = |e: tokenizers::Error| keys.wrong(key, &e.to_string());
    if pre.normalizes {
        tokenizer.with_normalizer(Some(NFC)).map_err(wrong)?;
    }
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for expression in pre.splits {
        let pattern = SplitPattern::Regex((*expression).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(wrong)?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    let starts_with_bos = match keys.get("tokenizer.ggml.add_bos_token") {
        None => pre.starts_with_bos,
        Some(value) => *value == Value::Integer(1),
    };
    Ok((tokenizer, starts_with_bos))
}

fn merges(keys: &Keys) -> Result<Merges, Error> {
    let key = "tokenizer.ggml.merges";
    let pair = |merge: &String| {
        let parts = merge.split_once(' ');
        let parts = parts.filter(|(_, second)| !second.contains(' '));
        parts.map(|(first, second)| (first.to_owned(), second.to_owned()))
    };
    let each = keys.texts(key)?.iter().map(|merge| {
        pair(merge).ok_or_else(|| keys.wrong(key, &format!("{merge:?} is not a pair of tokens")))
    });
    each.collect()
}

/// Adds the tokens that are found in a text before it is split: control tokens, which are special, and user-defined
/// ones.
fn add_tokens(keys: &Keys, tokens: &[String], tokenizer: &mut Tokenizer) -> Result<(), Error> {
    let mut special = HashSet::new();
    // "seperator" is how GGUF spells it.
    for key in ["bos", "eos", "eot", "eom", "padding", "seperator"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        if keys.get(&key).is_some() {
            special.insert(keys.size(&key)?);
        }
    }
    let types = types(keys, tokens)?;
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = types.get(id).copied().unwrap_or(NORMAL);
        let special = special.contains(&id) || kind == UNKNOWN || kind == CONTROL;
        if !token.is_empty() && (special || kind == USER_DEFINED) {
            added.push(AddedToken::from(token.clone(), special).normalized(false));
        }
    }
    let wrong = |e: tokenizers::Error| keys.wrong(TYPES, &e.to_string());
    tokenizer.add_tokens(added).map_err(wrong)?;
    Ok(())
}
