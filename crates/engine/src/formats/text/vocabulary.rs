//! The tokenizer in a GGUF's metadata.
//!
//! Decides how text is split before merges apply: by the kind that the file names, as llama.cpp and
//! the model's own `tokenizer.json` do it. Invariant: a kind that is not known is refused, for a wrong
//! split is silent. It does not know chat templates.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer};

use crate::Error;
use crate::formats::gguf::Keys;
use crate::formats::gguf::header::Value;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What `tokenizer.ggml.pre` decides.
struct Splitting {
    /// Expressions, each splitting what those before it left.
    splits: &'static [&'static str],
    /// Whether text is composed first.
    composed: bool,
    /// Whether a piece that is a token is taken as it is.
    whole_first: bool,
    /// Whether a text begins with the first token where the file does not say.
    begins: bool,
}

const KNOWN: &str = "smollm, gpt-2, default, qwen2, llama-bpe";

fn splitting(kind: &str) -> Option<Splitting> {
    let plain = Splitting {
        splits: &[GPT2],
        composed: false,
        whole_first: false,
        begins: false,
    };
    Some(match kind {
        "gpt-2" => plain,
        "smollm" => Splitting {
            splits: &[r"\p{N}", GPT2],
            ..plain
        },
        "default" => Splitting {
            splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            ..plain
        },
        "qwen2" | "deepseek-r1-qwen" => Splitting {
            splits: &[QWEN2],
            composed: true,
            ..plain
        },
        "llama-bpe" | "llama3" | "llama-v3" => Splitting {
            splits: &[LLAMA3],
            whole_first: true,
            begins: true,
            ..plain
        },
        "smaug-bpe" => Splitting {
            splits: &[LLAMA3],
            ..plain
        },
        _ => return None,
    })
}

/// A tokenizer, and whether a text begins with the first token.
pub fn from_gguf(keys: &Keys) -> Result<(Tokenizer, bool), Error> {
    let model = keys.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        let what = format!(
            "{model:?} vocabularies (SentencePiece and others) are not supported in a GGUF; load the \
             model from its Hugging Face folder, whose tokenizer.json is"
        );
        return Err(keys.wrong("tokenizer.ggml.model", &what));
    }
    let key = "tokenizer.ggml.pre";
    if keys.get(key).is_none() {
        let what = "is missing, and with it how text is split; convert the model again with a \
                    llama.cpp of May 2024 or later";
        return Err(keys.wrong(key, what));
    }
    let kind = keys.text(key)?;
    let splitting = splitting(kind).ok_or_else(|| {
        let what = format!("{kind:?} is not supported; {KNOWN} are");
        keys.wrong(key, &what)
    })?;
    let tokens = keys.texts("tokenizer.ggml.tokens")?;
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary(keys, tokens)?, merges(keys)?)
        .ignore_merges(splitting.whole_first)
        .build()
        .map_err(|e| keys.wrong("tokenizer.ggml.merges", &e.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let wrong = |e: tokenizers::Error| keys.wrong(key, &e.to_string());
    if splitting.composed {
        tokenizer.with_normalizer(Some(NFC)).map_err(wrong)?;
    }
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for expression in splitting.splits {
        let pattern = SplitPattern::Regex((*expression).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(wrong)?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    add_tokens(keys, tokens, &mut tokenizer)?;
    let begins = match keys.get("tokenizer.ggml.add_bos_token") {
        None => splitting.begins,
        Some(said) => *said == Value::Integer(1),
    };
    Ok((tokenizer, begins))
}

fn vocabulary(keys: &Keys, tokens: &[String]) -> Result<Vocab, Error> {
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(other) = vocabulary.insert(token.clone(), id as u32) {
            let what = format!("{token:?} is token {other} and token {id}");
            return Err(keys.wrong("tokenizer.ggml.tokens", &what));
        }
    }
    Ok(vocabulary)
}

fn merges(keys: &Keys) -> Result<Merges, Error> {
    let key = "tokenizer.ggml.merges";
    let pair = |merge: &String| {
        let parts = merge.split_once(' ');
        let parts = parts.filter(|(_, second)| !second.contains(' '));
        parts.map(|(first, second)| (first.to_owned(), second.to_owned()))
    };
    let each = keys.texts(key)?.iter().map(|merge| {
        pair(merge).ok_or_else(|| keys.wrong(key, &format!("{merge:?} is no pair of tokens")))
    });
    each.collect()
}

/// Tokens that are found in a text before it is split: controls, which are special, and the user's.
fn add_tokens(keys: &Keys, tokens: &[String], tokenizer: &mut Tokenizer) -> Result<(), Error> {
    const UNKNOWN: i64 = 2;
    const CONTROL: i64 = 3;
    const USER: i64 = 4;
    let mut special = HashSet::new();
    for key in ["bos", "eos", "eot", "eom", "padding", "seperator"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        if keys.get(&key).is_some() {
            special.insert(keys.size(&key)?);
        }
    }
    let key = "tokenizer.ggml.token_type";
    let types: &[i64] = match keys.get(key) {
        None => &[],
        Some(Value::Integers(types)) if types.len() == tokens.len() => types,
        Some(_) => {
            let what = format!("is no list of {} whole numbers", tokens.len());
            return Err(keys.wrong(key, &what));
        }
    };
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let kind = types.get(id).copied().unwrap_or(1);
        let special = special.contains(&id) || kind == UNKNOWN || kind == CONTROL;
        if !token.is_empty() && (special || kind == USER) {
            added.push(AddedToken::from(token.clone(), special).normalized(false));
        }
    }
    let wrong = |e: tokenizers::Error| keys.wrong(key, &e.to_string());
    tokenizer.add_tokens(added).map_err(wrong)?;
    Ok(())
}
