//! Text to tokens: the model's tokenizer and its chat template.
//!
//! Decides the layout of a prompt: one user message by the model's own template, then the beginning of the assistant's
//! turn, to which names are appended as `" " + name`. Invariant: neither a prompt nor a name can contain a special
//! token. It does not know weights or tries.

use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

mod chat;
mod python;

use self::chat::Chat;
use crate::Error;

/// The line of a prompt after which the assistant's turn starts.
pub(crate) const ASSISTANT: &str = "---assistant---";

/// Tokenizer and chat template of one model.
pub struct Text {
    tokenizer: Tokenizer,
    /// The same tokenizer, which reads special tokens as plain text.
    plain: Tokenizer,
    chat: Option<Chat>,
    /// The chat template as written.
    template: Option<String>,
    /// Texts of tokens that a user's text must not contain.
    reserved: Vec<String>,
    bos: Option<String>,
    /// Whether a prompt without a chat template starts with `bos`.
    starts_with_bos: bool,
    /// Whether the tokenizer itself puts a space before a text.
    adds_space: bool,
    eos: String,
    eos_id: u32,
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

/// What a format tells of a tokenizer.
pub(super) struct TokenizerParts {
    pub tokenizer: Tokenizer,
    /// The chat template, if the model has one.
    pub template: Option<String>,
    /// Text of the token that starts a text, if the tokenizer has one.
    pub bos: Option<String>,
    /// Whether a text without a chat template starts with it.
    pub starts_with_bos: bool,
    /// Text of the token that ends a turn.
    pub eos: String,
}

impl Text {
    /// Checks the parts and puts them together; errors name `path`.
    pub(super) fn new(path: &Path, parts: TokenizerParts) -> Result<Self, Error> {
        let TokenizerParts {
            mut tokenizer,
            template,
            bos,
            starts_with_bos,
            eos,
        } = parts;
        // A prompt is neither truncated nor padded here: the prompt template's budget limits its length.
        tokenizer.with_padding(None);
        let set = tokenizer.with_truncation(None);
        set.map_err(|e| Error::load(path, format!("truncation: {e}")))?;
        let eos_id = tokenizer.token_to_id(&eos);
        let eos_id =
            eos_id.ok_or_else(|| Error::load(path, format!("end token {eos:?} is unknown")))?;
        let mut plain = tokenizer.clone();
        plain.set_encode_special_tokens(true);
        let bad_template = |e| Error::load(path, format!("chat template: {e}"));
        // A template that fails for every prompt, or loses it, is refused now, not at the first request.
        let chat = template.as_deref();
        let chat = chat.map(|template| Chat::new(template, bos.as_deref(), &eos));
        let chat = chat.transpose().map_err(bad_template)?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut reserved: Vec<String> = added
            .values()
            // Qwen's `<think>` and `<tool_call>` act like special tokens, but are not marked as special.
            .filter(|token| token.special || token.content.starts_with('<'))
            .map(|token| token.content.clone())
            .filter(|token| !token.is_empty())
            .collect();
        reserved.sort();
        let adds_space = adds_space(&plain);
        let adds_space =
            adds_space.map_err(|e| Error::load(path, format!("the tokenizer fails: {e:?}")))?;
        Ok(Self {
            tokenizer,
            plain,
            chat,
            template,
            reserved,
            bos,
            starts_with_bos,
            adds_space,
            eos,
            eos_id,
        })
    }

    fn bos(&self) -> &str {
        self.bos.as_deref().unwrap_or_default()
    }

    /// One past the largest token id.
    pub(super) fn ids(&self) -> usize {
        let ids = self.tokenizer.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// SHA-256 of tokenizer and chat template, in hex. Models with equal hashes read a text as the same prompt.
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

    /// Id of the token that ends a turn, and therefore a name.
    pub fn end(&self) -> u32 {
        self.eos_id
    }

    /// Decodes tokens to text, for reports.
    pub fn read(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    /// Encodes a name as it continues a prompt, without the end token.
    pub fn name(&self, name: &str) -> Result<Vec<u32>, Error> {
        if self.adds_space {
            return encode(&self.plain, name);
        }
        encode(&self.plain, &format!(" {name}"))
    }

    /// Encodes a text; special tokens in it are recognised, none are added.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        encode(&self.tokenizer, text)
    }

    /// Encodes a prompt as [`render_chat`](Self::render_chat) lays it out.
    pub fn prompt(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let mut tokens = self.tokens(&self.render_chat(prompt)?)?;
        if tokens.is_empty() {
            // A model needs at least one token to continue.
            tokens.push(self.eos_id);
        }
        Ok(tokens)
    }

    /// Renders the prompt as the model reads it: user message, generation prompt, and the text after the line
    /// [`ASSISTANT`]. Without a chat template, both texts are joined as they are.
    pub fn render_chat(&self, prompt: &str) -> Result<String, Error> {
        let prompt = self.without_special_tokens(prompt);
        let (user, assistant) = split(&prompt);
        let Some(chat) = &self.chat else {
            let bos = if self.starts_with_bos { self.bos() } else { "" };
            return Ok(format!("{bos}{user}{assistant}"));
        };
        let rendered = chat.render(user, self.bos.as_deref(), &self.eos);
        let rendered = rendered.map_err(|e| Error::Compute {
            what: "chat template".into(),
            source: Box::new(e),
        })?;
        Ok(rendered + assistant)
    }

    /// Removes special tokens, so that a user's text cannot end its own message and start one in another role.
    fn without_special_tokens(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // Removing one token may join the text around it to another token, so this repeats until none is left.
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

/// Splits a prompt at the line [`ASSISTANT`]; line ends around that line are dropped.
fn split(prompt: &str) -> (&str, &str) {
    let mut at = 0;
    for line in prompt.split_inclusive('\n') {
        if line.trim_end() == ASSISTANT {
            let (user, assistant) = (&prompt[..at], &prompt[at + line.len()..]);
            // A name is appended with its own space.
            return (user.trim_end_matches(['\r', '\n']), assistant.trim_end());
        }
        at += line.len();
    }
    (prompt.trim_end_matches(['\r', '\n']), "")
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Error> {
    Ok(encoding(tokenizer, text)?.get_ids().to_vec())
}

/// Whether the tokenizer encodes a text as if a space came before it, as SentencePiece does.
fn adds_space(tokenizer: &Tokenizer) -> Result<bool, Error> {
    let (bare, spaced) = (encoding(tokenizer, "a")?, encoding(tokenizer, " a")?);
    let first = bare.get_tokens().first();
    let marked = first.is_some_and(|token| token.starts_with('\u{2581}'));
    Ok(marked || bare.get_ids() == spaced.get_ids())
}

fn encoding(tokenizer: &Tokenizer, text: &str) -> Result<tokenizers::Encoding, Error> {
    // `encode_fast` computes no offsets into the text, which are not needed and take half of the time.
    let encoded = tokenizer.encode_fast(text, false);
    encoded.map_err(|source| Error::Compute {
        what: "tokens".into(),
        source,
    })
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
