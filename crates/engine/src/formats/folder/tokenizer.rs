//! The tokenizer and chat template of a Hugging Face folder.
//!
//! Decides which chat template a folder means, as `transformers` does. Invariant: a damaged file is an error that names
//! it, never a panic, and templates among which none is the default are refused. It does not know how a chat template
//! is rendered.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::Tokenizer;

use super::files::{read_json, read_text};
use crate::Error;
use crate::formats::text::{Text, TokenizerParts};

/// Reads `tokenizer.json`, `tokenizer_config.json`, and the chat template from where it is.
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
    let template = template(path, &config)?;
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

/// The folder's chat template: of `chat_template.jinja` with what is in `additional_chat_templates`, else of
/// `tokenizer_config.json`, else of `chat_template.json`, which `transformers` reads for models with a processor.
fn template(path: &Path, config: &Value) -> Result<Option<String>, Error> {
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    let folder = path.join("additional_chat_templates");
    if folder.is_dir() {
        let wrong = |e: std::io::Error| Error::load(&folder, e.to_string());
        for entry in std::fs::read_dir(&folder).map_err(wrong)? {
            let file = entry.map_err(wrong)?.path();
            if file.extension().is_some_and(|ending| ending == "jinja") {
                let name = file.file_stem().unwrap_or_default().to_string_lossy();
                named.insert(name.into_owned(), read_text(&file)?);
            }
        }
    }
    let file = path.join("chat_template.jinja");
    if file.exists() {
        named.insert("default".into(), read_text(&file)?);
    }
    if !named.is_empty() {
        return default_of(&folder, named).map(Some);
    }
    let file = path.join("tokenizer_config.json");
    if let Some(template) = templates(&file, config.get("chat_template"))? {
        return Ok(Some(template));
    }
    let file = path.join("chat_template.json");
    match file.exists() {
        true => templates(&file, read_json(&file)?.get("chat_template")),
        false => Ok(None),
    }
}

/// The template of a key `chat_template`: a text, a list of named templates, or templates by name.
fn templates(file: &Path, value: Option<&Value>) -> Result<Option<String>, Error> {
    let wrong = |what: &str| Error::load(file, format!("key chat_template: {what}"));
    let mut named = BTreeMap::new();
    match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.clone())),
        Some(Value::Object(all)) => {
            for (name, template) in all {
                let template = template.as_str();
                let template = template.ok_or_else(|| wrong("a named template is no text"))?;
                named.insert(name.clone(), template.to_owned());
            }
        }
        Some(Value::Array(all)) => {
            for one in all {
                let (name, template) = (one["name"].as_str(), one["template"].as_str());
                let (Some(name), Some(template)) = (name, template) else {
                    return Err(wrong(
                        "a list, whose items must have the texts name and template",
                    ));
                };
                named.insert(name.to_owned(), template.to_owned());
            }
        }
        Some(_) => return Err(wrong("neither a text nor a list of named templates")),
    }
    default_of(file, named).map(Some)
}

/// The template called `default`.
fn default_of(path: &Path, mut named: BTreeMap<String, String>) -> Result<String, Error> {
    named.remove("default").ok_or_else(|| {
        let found: Vec<String> = named.into_keys().map(|name| format!("{name:?}")).collect();
        let what = format!(
            "chat templates: none is called \"default\"; there are {}. Write the one to use into a file \
             chat_template.jinja of the model's folder",
            if found.is_empty() { "none".into() } else { found.join(", ") }
        );
        Error::load(path, what)
    })
}
