//! Text to tokens: the model's tokenizer and its chat template.
//!
//! Decides how a prompt is laid out: one user message by the model's own template, then the beginning
//! of the assistant's turn, to which names are appended as `" " + name`. Invariant: neither a prompt
//! nor a name can write a special token. It does not know weights or tries.

use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use minijinja::value::{Value, from_args};
use minijinja::{Environment, ErrorKind, State, context};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use super::Error;
use super::folder::read_json;
use super::load::refuse;

/// The line of a prompt after which the assistant's turn begins.
pub const ASSISTANT: &str = "---assistant---";

/// Tokenizer and chat template of one model.
pub struct Text {
    tokenizer: Tokenizer,
    /// The same, reading special tokens as the text that they are.
    plain: Tokenizer,
    templates: Option<Environment<'static>>,
    /// The chat template as written.
    template: Option<String>,
    bos: Option<String>,
    eos: String,
    end: u32,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let template = self.templates.is_some();
        f.debug_struct("Text")
            .field("eos", &self.eos)
            .field("template", &template)
            .finish()
    }
}

/// What both formats say of a tokenizer.
struct Parts {
    tokenizer: Tokenizer,
    template: Option<String>,
    bos: Option<String>,
    eos: String,
}

impl Text {
    /// From a GGUF's metadata.
    pub(super) fn from_gguf(path: &Path, content: &Content) -> Result<Self, Error> {
        let read = |key: &str| {
            let value = content.metadata.get(key);
            value.and_then(|value| value.to_string().ok()).cloned()
        };
        let mut tokenizer = Tokenizer::from_gguf(content)
            .map_err(|e| refuse(path, format!("key tokenizer.ggml.model: {e}")))?;
        match read("tokenizer.ggml.pre").as_deref() {
            // candle takes these for GPT-2 with a space before the text and digits in runs.
            Some("smollm") => {
                let digits = Digits::new(true);
                let bytes = ByteLevel::new(false, false, true);
                let both = Sequence::new(vec![digits.into(), bytes.into()]);
                tokenizer.with_pre_tokenizer(Some(both));
            }
            Some("gpt-2") => {
                tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, false, true)));
            }
            Some("qwen2" | "llama3" | "smaug-bpe" | "lfm2") => {}
            other => {
                let what = format!("key tokenizer.ggml.pre: {other:?} is not supported");
                return Err(refuse(path, what));
            }
        }
        let id = |key: &str| {
            content
                .metadata
                .get(key)
                .and_then(|value| value.to_u32().ok())
        };
        let token = |key: &str| id(key).and_then(|id| tokenizer.id_to_token(id));
        let missing = || refuse(path, "key tokenizer.ggml.eos_token_id: no such token");
        let parts = Parts {
            template: read("tokenizer.chat_template"),
            bos: token("tokenizer.ggml.bos_token_id"),
            eos: token("tokenizer.ggml.eos_token_id").ok_or_else(missing)?,
            tokenizer,
        };
        Self::new(path, parts)
    }

    /// From `tokenizer.json` and `tokenizer_config.json`.
    pub(super) fn from_folder(path: &Path) -> Result<Self, Error> {
        let file = path.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&file).map_err(|e| refuse(&file, e.to_string()))?;
        let file = path.join("tokenizer_config.json");
        let config = read_json(&file)?;
        let token = |key: &str| {
            let value = config.get(key)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some(text.to_owned())
        };
        let eos = token("eos_token").ok_or_else(|| refuse(&file, "key eos_token: missing"))?;
        let beside = path.join("chat_template.jinja");
        let template = if beside.exists() {
            Some(std::fs::read_to_string(&beside).map_err(|e| refuse(&beside, e.to_string()))?)
        } else {
            default_template(config.get("chat_template"))
        };
        let bos = token("bos_token");
        Self::new(
            &file,
            Parts {
                tokenizer,
                template,
                bos,
                eos,
            },
        )
    }

    fn new(path: &Path, parts: Parts) -> Result<Self, Error> {
        let Parts {
            mut tokenizer,
            template,
            bos,
            eos,
        } = parts;
        // A prompt is not cut or filled up here: the template's budget did that.
        tokenizer.with_padding(None);
        let cut = tokenizer.with_truncation(None);
        cut.map_err(|e| refuse(path, format!("truncation: {e}")))?;
        let end = tokenizer.token_to_id(&eos);
        let end = end.ok_or_else(|| refuse(path, format!("end token {eos:?} is unknown")))?;
        let mut plain = tokenizer.clone();
        plain.set_encode_special_tokens(true);
        let templates = match template.clone() {
            Some(template) => Some(
                environment(template).map_err(|e| refuse(path, format!("chat template: {e}")))?,
            ),
            None => None,
        };
        Ok(Self {
            tokenizer,
            plain,
            templates,
            template,
            bos,
            eos,
            end,
        })
    }

    /// SHA-256 of tokenizer and chat template, in hex: with another, the same text is another prompt.
    pub fn hash(&self) -> Result<String, Error> {
        let tokenizer = self.tokenizer.to_string(false);
        let tokenizer = tokenizer.map_err(|source| Error::Compute {
            what: "hash of the tokenizer".into(),
            source,
        })?;
        let mut hash = Sha256::new();
        hash.update(tokenizer);
        hash.update([0]);
        hash.update(self.template.as_deref().unwrap_or_default());
        Ok(hex::encode(hash.finalize()))
    }

    /// The token that ends a turn, and with it a name.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// What tokens say, for people.
    pub fn read(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    /// Tokens of a name as it continues a prompt; the end token is not among them.
    pub fn name(&self, name: &str) -> Result<Vec<u32>, Error> {
        encode(&self.plain, &format!(" {name}"))
    }

    /// Tokens of a text in which special tokens count, nothing added.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        encode(&self.tokenizer, text)
    }

    /// Tokens of a prompt, by [`render_chat`](Self::render_chat).
    pub fn prompt(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let mut tokens = self.tokens(&self.render_chat(prompt)?)?;
        if tokens.is_empty() {
            // A model needs something to continue.
            tokens.push(self.end);
        }
        Ok(tokens)
    }

    /// The prompt as the model reads it: user message, generation prompt, and what follows the line
    /// [`ASSISTANT`]. Without a chat template both are put together as they are.
    pub fn render_chat(&self, prompt: &str) -> Result<String, Error> {
        let prompt = self.without_special_tokens(prompt);
        let (user, assistant) = split(&prompt);
        let Some(templates) = &self.templates else {
            let bos = self.bos.as_deref().unwrap_or_default();
            return Ok(format!("{bos}{user}{assistant}"));
        };
        let failed = |e: minijinja::Error| Error::Compute {
            what: "chat template".into(),
            source: Box::new(e),
        };
        let template = templates.get_template("chat").map_err(failed)?;
        let rendered = template.render(context! {
            messages => [context! { role => "user", content => user }],
            add_generation_prompt => true,
            bos_token => self.bos.as_deref().unwrap_or_default(),
            eos_token => self.eos,
        });
        Ok(rendered.map_err(failed)? + assistant)
    }

    /// A user's text must not end their own message and speak as someone else.
    fn without_special_tokens(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // One pass may put a new one together from what it leaves: until none is left.
        loop {
            let before = text.len();
            for token in self.tokenizer.get_added_tokens_decoder().values() {
                if token.special && !token.content.is_empty() && text.contains(&token.content) {
                    text = text.replace(&token.content, "");
                }
            }
            if text.len() == before {
                return text;
            }
        }
    }
}

/// A prompt before and after the line [`ASSISTANT`]; a line end between them is neither's.
fn split(prompt: &str) -> (&str, &str) {
    let mut at = 0;
    for line in prompt.split_inclusive('\n') {
        if line.trim_end() == ASSISTANT {
            let (user, assistant) = (&prompt[..at], &prompt[at + line.len()..]);
            // Names bring their own space.
            return (user.trim_end_matches(['\r', '\n']), assistant.trim_end());
        }
        at += line.len();
    }
    (prompt.trim_end_matches(['\r', '\n']), "")
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
    let encoded = tokenizer
        // Offsets into the text are of no use here, and cost half of the time.
        .encode_fast(text, false)
        .map_err(|source| Error::Compute {
            what: "tokens".into(),
            source,
        })?;
    Ok(encoded.get_ids().to_vec())
}

/// `chat_template` is a text, or a list of named ones.
fn default_template(value: Option<&serde_json::Value>) -> Option<String> {
    let value = value?;
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let named = value.as_array()?;
    let default = named.iter().find(|one| one["name"] == "default")?;
    Some(default["template"].as_str()?.to_owned())
}

/// An environment that renders as Hugging Face's does.
fn environment(template: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", |text: String| -> Result<Value, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
    });
    environment.add_template_owned("chat", template)?;
    Ok(environment)
}

/// The methods of Python strings that chat templates call.
fn method(_: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let unknown = || minijinja::Error::from(ErrorKind::UnknownMethod);
    let text = value.as_str().ok_or_else(unknown)?;
    match name {
        "strip" => Ok(text.trim().into()),
        "lstrip" => Ok(text.trim_start().into()),
        "rstrip" => Ok(text.trim_end().into()),
        "upper" => Ok(text.to_uppercase().into()),
        "lower" => Ok(text.to_lowercase().into()),
        "startswith" => Ok(text.starts_with(from_args::<(&str,)>(args)?.0).into()),
        "endswith" => Ok(text.ends_with(from_args::<(&str,)>(args)?.0).into()),
        "split" => {
            let (separator,) = from_args::<(&str,)>(args)?;
            Ok(text.split(separator).map(Value::from).collect())
        }
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_split_at_the_assistants_line() {
        let cases = [
            ("hello\n", ("hello", "")),
            (
                "a\nb\n---assistant---\nThe product is:\n",
                ("a\nb", "The product is:"),
            ),
            ("a ---assistant---\nb", ("a ---assistant---\nb", "")),
            ("a\r\n---assistant---\r\nx: ", ("a", "x:")),
            ("---assistant---", ("", "")),
        ];
        for (prompt, expected) in cases {
            assert_eq!(split(prompt), expected, "{prompt:?}");
        }
    }

    #[test]
    fn templates_use_the_methods_that_python_has() {
        let template = "{% if messages[0]['content'].startswith('a') %}\n\
            {{ messages[0].content.strip() | upper }}\n{% endif %}\n";
        let environment = environment(template.into()).expect("valid");
        let chat = environment.get_template("chat").expect("added");
        let messages = [context! { content => "ab " }];
        assert_eq!(chat.render(context! { messages }).expect("renders"), "AB\n");
    }
}
