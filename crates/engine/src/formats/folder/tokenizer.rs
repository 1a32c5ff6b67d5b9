//! The tokenizer and chat template of a Hugging Face folder.
//!
//! Invariant: a damaged file is an error that names it, never a panic. It does not know how a chat template is
//! rendered.

use std::path::Path;

use tokenizers::Tokenizer;

use super::files::{read_json, read_text};
use crate::Error;
use crate::formats::text::{Text, TokenizerParts};

/// Reads `tokenizer.json`, `tokenizer_config.json` and, if there is one, `chat_template.jinja`.
pub(super) fn text(path: &Path) -> Result<Text, Error> {
    let file = path.join("tokenizer.json");
    let text = read_text(&file)?;
    // The tokenizers library panics if the JSON ends within a decoder, so it is parsed here first.
    let parsed = serde_json::from_str::<serde_json::Value>(&text);
    parsed.map_err(|e| Error::load(&file, e.to_string()))?;
    let tokenizer: Tokenizer = text
        .parse()
        .map_err(|e: tokenizers::Error| Error::load(&file, e.to_string()))?;
    let file = path.join("tokenizer_config.json");
    let config = read_json(&file)?;
    let token = |key: &str| {
        let value = config.get(key)?;
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        Some(text.to_owned())
    };
    let eos = token("eos_token").ok_or_else(|| Error::load(&file, "key eos_token: missing"))?;
    let template_file = path.join("chat_template.jinja");
    let template = if template_file.exists() {
        Some(read_text(&template_file)?)
    } else {
        default_template(config.get("chat_template"))
    };
    let bos = token("bos_token");
    // The tokenizer's own post-processing says whether a text starts with the BOS token.
    let json = path.join("tokenizer.json");
    let empty = tokenizer.encode("", true);
    let empty = empty.map_err(|e| Error::load(&json, e.to_string()))?;
    let first = empty.get_tokens().first();
    let starts_with_bos = first.is_some_and(|first| Some(first) == bos.as_ref());
    Text::new(
        &file,
        TokenizerParts {
            tokenizer,
            template,
            bos,
            starts_with_bos,
            eos,
        },
    )
}

/// The default template: `chat_template` is a text, or a list of named templates.
fn default_template(value: Option<&serde_json::Value>) -> Option<String> {
    let value = value?;
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let named = value.as_array()?;
    let default = named.iter().find(|one| one["name"] == "default")?;
    Some(default["template"].as_str()?.to_owned())
}
