//! Text to tokens: the model's tokenizer and its chat template.
//!
//! Decides how a prompt is laid out: one user message by the model's own template, then the beginning
//! of the assistant's turn, to which names are appended as `" " + name`. Invariant: neither a prompt
//! nor a name can write a special token. It does not know weights or tries.

use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

mod chat;
mod vocabulary;

use self::chat::Chat;
use super::folder::{read_json, read_text};
use super::gguf::Keys;
use super::load::refuse;
use crate::Error;

/// The line of a prompt after which the assistant's turn begins.
pub const ASSISTANT: &str = "---assistant---";

/// Tokenizer and chat template of one model.
pub struct Text {
    tokenizer: Tokenizer,
    /// The same, reading special tokens as the text that they are.
    plain: Tokenizer,
    chat: Option<Chat>,
    /// The chat template as written.
    template: Option<String>,
    /// Tokens that a user's text must not write.
    reserved: Vec<String>,
    bos: Option<String>,
    /// Whether a text without a template begins with `bos`.
    begins: bool,
    /// Whether the tokenizer puts a space before a text by itself.
    spaces: bool,
    eos: String,
    end: u32,
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let template = self.chat.is_some();
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
    begins: bool,
    eos: String,
}

impl Text {
    /// From a GGUF's metadata.
    pub(super) fn from_gguf(keys: &Keys) -> Result<Self, Error> {
        let (tokenizer, begins) = vocabulary::from_gguf(keys)?;
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
        let end = "tokenizer.ggml.eos_token_id";
        let template = match keys.get("tokenizer.chat_template") {
            Some(_) => Some(keys.text("tokenizer.chat_template")?.to_owned()),
            None => None,
        };
        let parts = Parts {
            template,
            bos: token("tokenizer.ggml.bos_token_id")?,
            eos: token(end)?.ok_or_else(|| keys.wrong(end, "is missing"))?,
            begins,
            tokenizer,
        };
        Self::new(keys.path(), parts)
    }

    /// From `tokenizer.json` and `tokenizer_config.json`.
    pub(super) fn from_folder(path: &Path) -> Result<Self, Error> {
        let file = path.join("tokenizer.json");
        let text = read_text(&file)?;
        // The tokenizer's own reader panics where JSON breaks off within a decoder.
        let whole = serde_json::from_str::<serde_json::Value>(&text);
        whole.map_err(|e| refuse(&file, e.to_string()))?;
        let tokenizer: Tokenizer = text
            .parse()
            .map_err(|e: tokenizers::Error| refuse(&file, e.to_string()))?;
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
            Some(read_text(&beside)?)
        } else {
            default_template(config.get("chat_template"))
        };
        let bos = token("bos_token");
        // The tokenizer's own post-processing says whether a text begins with it.
        let json = path.join("tokenizer.json");
        let empty = tokenizer.encode("", true);
        let empty = empty.map_err(|e| refuse(&json, e.to_string()))?;
        let first = empty.get_tokens().first();
        let begins = first.is_some_and(|first| Some(first) == bos.as_ref());
        Self::new(
            &file,
            Parts {
                tokenizer,
                template,
                bos,
                begins,
                eos,
            },
        )
    }

    fn new(path: &Path, parts: Parts) -> Result<Self, Error> {
        let Parts {
            mut tokenizer,
            template,
            bos,
            begins,
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
        let bad_template = |e| refuse(path, format!("chat template: {e:#}"));
        let chat = template.clone().map(Chat::new).transpose();
        let chat = chat.map_err(bad_template)?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut reserved: Vec<String> = added
            .values()
            // Qwen's `<think>` and `<tool_call>` steer it like special tokens, but are not called so.
            .filter(|token| token.special || token.content.starts_with('<'))
            .map(|token| token.content.clone())
            .filter(|token| !token.is_empty())
            .collect();
        reserved.sort();
        let spaces = puts_spaces(&plain);
        let spaces = spaces.map_err(|e| refuse(path, format!("the tokenizer fails: {e:?}")))?;
        let text = Self {
            tokenizer,
            plain,
            chat,
            template,
            reserved,
            bos,
            begins,
            spaces,
            eos,
            end,
        };
        // A template that fails for every prompt should not wait for the first user.
        if let Some(chat) = &text.chat {
            chat.render("a", text.bos(), &text.eos)
                .map_err(bad_template)?;
        }
        Ok(text)
    }

    fn bos(&self) -> &str {
        self.bos.as_deref().unwrap_or_default()
    }

    /// One past the largest token id.
    pub fn ids(&self) -> usize {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
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
        if self.spaces {
            return encode(&self.plain, name);
        }
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
        let Some(chat) = &self.chat else {
            let bos = if self.begins { self.bos() } else { "" };
            return Ok(format!("{bos}{user}{assistant}"));
        };
        let rendered = chat.render(user, self.bos(), &self.eos);
        let rendered = rendered.map_err(|e| Error::Compute {
            what: "chat template".into(),
            source: Box::new(e),
        })?;
        Ok(rendered + assistant)
    }

    /// A user's text must not end their own message and speak as someone else.
    fn without_special_tokens(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // One pass may put a new one together from what it leaves: until none is left.
        loop {
            let before = text.len();
            for token in &self.reserved {
                if text.contains(token) {
                    text = text.replace(token, "");
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
    Ok(encoding(tokenizer, text)?.get_ids().to_vec())
}

/// Whether a text is taken as if a space came before it: SentencePiece's way.
fn puts_spaces(tokenizer: &Tokenizer) -> Result<bool, Error> {
    let (bare, spaced) = (encoding(tokenizer, "a")?, encoding(tokenizer, " a")?);
    let first = bare.get_tokens().first();
    let marked = first.is_some_and(|token| token.starts_with('\u{2581}'));
    Ok(marked || bare.get_ids() == spaced.get_ids())
}

fn encoding(tokenizer: &Tokenizer, text: &str) -> Result<tokenizers::Encoding, Error> {
    // Offsets into the text are of no use here, and cost half of the time.
    let encoded = tokenizer.encode_fast(text, false);
    encoded.map_err(|source| Error::Compute {
        what: "tokens".into(),
        source,
    })
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
}
