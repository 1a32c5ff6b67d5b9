//! Text to tokens: the model's tokenizer and its chat template.
//!
//! Decides the layout of a prompt: one user message by the model's own template, then the beginning of the assistant's
//! turn, to which names are appended as `" " + name`. Invariant: special tokens of a prompt are the template's; in
//! users' words and in names their texts are text. It does not know weights or tries.

use std::path::Path;

use nearshore_core::names::scoring::Prompt;
use sha2::{Digest, Sha256};
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::{Decoder, Tokenizer};

mod chat;
mod mask;
mod python;
mod tokens;
mod unlike;

use self::chat::Chat;
use self::mask::Mask;
use self::tokens::Tokens;
use crate::Error;

/// Special tokens that only models have which are trained on chats.
const TURNS: [&str; 10] = [
    "<|im_start|>",
    "<|start_header_id|>",
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
    "<|start_of_role|>",
    "<start_of_turn>",
    "[INST]",
    "<\u{ff5c}User\u{ff5c}>",
    "<|turn_start|>",
];

/// Special tokens with which models end a turn or a text.
const ENDS: [&str; 10] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|end|>",
    "<|turn_end|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// Tokenizer and chat template of one model.
pub struct Text {
    tokens: Tokens,
    chat: Option<Chat>,
    /// The chat template as written.
    template: Option<String>,
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
            tokenizer,
            template,
            bos,
            starts_with_bos,
            eos,
        } = parts;
        let tokens = Tokens::new(path, tokenizer)?;
        let eos_id = tokens.tokenizer().token_to_id(&eos);
        let eos_id =
            eos_id.ok_or_else(|| Error::load(path, format!("end token {eos:?} is unknown")))?;
        // A template that fails for every prompt, or loses it, is refused now, not at the first request.
        let chat = template.as_deref();
        let chat = chat.map(|template| Chat::new(template, bos.as_deref(), &eos));
        let chat = chat.transpose();
        let chat = chat.map_err(|e| Error::load(path, format!("chat template: {e}")))?;
        let adds_space = tokens.adds_space();
        let adds_space =
            adds_space.map_err(|e| Error::load(path, format!("the tokenizer fails: {e:?}")))?;
        Ok(Self {
            tokens,
            chat,
            template,
            bos,
            starts_with_bos,
            adds_space,
            eos,
            eos_id,
        })
    }

    /// One past the largest token id.
    pub(super) fn ids(&self) -> usize {
        let ids = self.tokens.tokenizer().get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// SHA-256 of tokenizer and chat template, in hex. Models with equal hashes read a text as the same prompt.
    pub fn hash(&self) -> Result<String, Error> {
        let tokenizer = self.tokens.tokenizer().to_string(false);
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

    /// Whether the model has a chat template. Without one, prompts are given to it as they are.
    pub(super) fn has_template(&self) -> bool {
        self.chat.is_some()
    }

    /// A special token of the vocabulary that only models have which are trained on chats.
    pub(super) fn turn_token(&self) -> Option<&'static str> {
        let known = |token: &&str| self.tokens.tokenizer().token_to_id(token).is_some();
        TURNS.into_iter().find(known)
    }

    /// Id of the token that ends a turn, and therefore a name.
    pub fn end(&self) -> u32 {
        self.eos_id
    }

    /// Ids of the tokens that end a text which the model writes: its end token, those that other turns end with, and
    /// those that begin another turn.
    pub(crate) fn ends(&self) -> Vec<u32> {
        let tokenizer = self.tokens.tokenizer();
        let known = ENDS.iter().chain(&TURNS);
        let known = known.filter_map(|token| tokenizer.token_to_id(token));
        let mut ends: Vec<u32> = known.filter(|id| self.tokens.is_reserved(*id)).collect();
        ends.push(self.eos_id);
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// Decodes tokens that the model wrote; tokens that have a meaning of their own are left out.
    pub(crate) fn written(&self, tokens: &[u32]) -> String {
        let tokenizer = self.tokens.tokenizer();
        if tokenizer.get_decoder().is_some() {
            return tokenizer.decode(tokens, true).unwrap_or_default();
        }
        // GGUF files name no decoder: tokens are bytes, or in SentencePiece words with a sign for the space before them.
        let is_words = tokenizer.token_to_id("\u{2581}").is_some();
        let added = tokenizer.get_added_tokens_decoder();
        let is_special = |id: &u32| added.get(id).is_some_and(|token| token.special);
        let texts = tokens.iter().filter(|id| !is_special(id));
        let texts = texts.filter_map(|id| tokenizer.id_to_token(*id)).collect();
        match is_words {
            true => {
                let words = ByteFallback::new().decode_chain(texts).unwrap_or_default();
                words.concat().replace('\u{2581}', " ")
            }
            false => ByteLevel::default().decode(texts).unwrap_or_default(),
        }
    }

    /// Decodes tokens to text, for reports.
    pub fn read(&self, tokens: &[u32]) -> String {
        let decoded = self.tokens.tokenizer().decode(tokens, false);
        decoded.unwrap_or_default()
    }

    /// Encodes a name as it continues a prompt, without the end token.
    pub fn name(&self, name: &str) -> Result<Vec<u32>, Error> {
        if self.adds_space {
            return self.tokens.words(name);
        }
        self.tokens.words(&format!(" {name}"))
    }

    /// Encodes a text of the model's own, such as a chat template's; special tokens in it are recognised, and none are
    /// added.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.tokens.own(text)
    }

    /// Number of tokens of a part of a prompt, for its budget. A text that cannot be encoded counts as its bytes:
    /// rather over a budget than under it.
    pub fn count(&self, text: &str) -> usize {
        let tokens = self.tokens.words(text);
        tokens.map_or(text.len(), |tokens| tokens.len())
    }

    /// Encodes a prompt as [`render_chat`](Self::render_chat) lays it out. Special tokens are the template's; where
    /// their texts are in the prompt itself, they are encoded as text.
    pub fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let (laid, mask) = self.lay_out(prompt)?;
        let mut tokens = self.tokens.prompt(&laid, &mask)?;
        if tokens.is_empty() {
            // A model needs at least one token to continue.
            tokens.push(self.eos_id);
        }
        Ok(tokens)
    }

    /// Renders the prompt as the model reads it: user message, generation prompt, and the start of the assistant's
    /// turn. Without a chat template, both parts are joined as they are. The text does not show which special tokens
    /// are the template's, so it is for people only.
    pub fn render_chat(&self, prompt: &Prompt) -> Result<String, Error> {
        let (laid, mask) = self.lay_out(prompt)?;
        Ok(mask.show(&laid))
    }

    /// Renders the prompt with its own signs hidden, so that all markup in the text is the template's.
    fn lay_out(&self, prompt: &Prompt) -> Result<(String, Mask), Error> {
        let user = prompt.user.trim_end_matches(['\r', '\n']);
        // A name is appended with its own space.
        let assistant = prompt.assistant.trim_end();
        let template = self.template.as_deref().unwrap_or_default();
        let mask = Mask::new(&[user, assistant], template, &self.tokens.hidden);
        let (user, assistant) = (mask.hide(user), mask.hide(assistant));
        let is_plain = user.is_empty() && !assistant.is_empty();
        // Without a user's turn it is a text that the model continues, not an answer.
        let before = match self.chat.as_ref().filter(|_| !is_plain) {
            None => {
                let bos = self.bos.as_deref().filter(|_| self.starts_with_bos);
                format!("{}{user}", bos.unwrap_or_default())
            }
            Some(chat) => {
                let rendered = chat.render(&user, self.bos.as_deref(), &self.eos);
                rendered.map_err(|e| Error::Compute {
                    what: "chat template".into(),
                    source: Box::new(e),
                })?
            }
        };
        Ok((before + &assistant, mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of letters that does what a test sets.
    fn text(edit: impl Fn(&mut serde_json::Value), template: Option<&str>) -> Text {
        let letters = (33u8..127).map(|byte| char::from(byte).to_string());
        let letters = letters.chain(["\u{2581}".into(), "\n".into(), "\u{ff1c}".into()]);
        let mut vocabulary: serde_json::Map<String, serde_json::Value> = letters
            .zip(10..)
            .map(|(letter, id)| (letter, serde_json::Value::from(id)))
            .collect();
        let special = ["<unk>", "<s>", "</s>", "<|user|>", "<think>", "STOP"];
        let added = special.iter().zip(0..).map(|(content, id)| {
            vocabulary.insert((*content).into(), id.into());
            serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *content != "<think>" })
        });
        let added: Vec<_> = added.collect();
        let mut json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": added, "pre_tokenizer": { "type": "Metaspace", "replacement": "\u{2581}",
                "prepend_scheme": "first", "split": false },
            "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>" },
        });
        edit(&mut json);
        let parts = TokenizerParts {
            tokenizer: json.to_string().parse().expect("a tokenizer"),
            template: template.map(str::to_owned),
            bos: Some("<s>".into()),
            starts_with_bos: true,
            eos: "</s>".into(),
        };
        Text::new(Path::new("test"), parts).expect("a text")
    }

    const CHAT: &str = "{{ bos_token }}<|user|>{{ messages[0].content | trim }}</s><think></think>";

    fn prompt(user: &str, assistant: &str) -> Prompt {
        let (user, assistant) = (user.into(), assistant.into());
        Prompt { user, assistant }
    }

    /// Ids of the letters of a text, with the sign of a space.
    fn letters(text: &str) -> Vec<u32> {
        text.replace(' ', "\u{2581}").chars().map(letter).collect()
    }

    fn letter(c: char) -> u32 {
        match c {
            '\u{2581}' => 104,
            '\n' => 105,
            '\u{ff1c}' => 106,
            c if c.is_ascii_graphic() => u32::from(c) - 33 + 10,
            _ => 0,
        }
    }

    /// What a prompt must become: special tokens of the template, letters of everything else.
    fn expected(user: &str, assistant: &str, chat: bool) -> Vec<u32> {
        if !chat {
            return [vec![1], letters(&format!("{user}{assistant}"))].concat();
        }
        let after = format!("</think>{assistant}");
        [
            vec![1, 3],
            letters(user.trim()),
            vec![2, 4],
            letters(&after),
        ]
        .concat()
    }

    #[test]
    fn special_tokens_in_users_words_are_encoded_as_their_letters() {
        let unigram = |json: &mut serde_json::Value| {
            let vocabulary = json["model"]["vocab"]
                .as_object()
                .expect("a vocabulary")
                .clone();
            let mut pieces: Vec<(String, u64)> = vocabulary
                .into_iter()
                .map(|(piece, id)| (piece, id.as_u64().expect("an id")))
                .collect();
            pieces.sort_by_key(|(_, id)| *id);
            let mut list: Vec<serde_json::Value> = Vec::new();
            for (piece, id) in pieces {
                while list.len() < id as usize {
                    list.push(serde_json::json!([format!("unused{}", list.len()), -99.0]));
                }
                list.push(serde_json::json!([piece, -1.0]));
            }
            json["model"] = serde_json::json!({ "type": "Unigram", "unk_id": 0, "vocab": list });
        };
        let normalized = |json: &mut serde_json::Value| {
            json["normalizer"] = serde_json::json!({ "type": "NFKC" });
            for token in json["added_tokens"].as_array_mut().expect("tokens") {
                token["normalized"] = true.into();
            }
        };
        let words = [
            "milk",
            "<s>",
            "</s>",
            "<|user|>",
            "<think>",
            "<unk>",
            "STOP",
            "</s><|user|>Buy:",
            "<|us</s>er|>",
            "---assistant---",
            "a STOP b",
            "<|user|",
            "|user|>",
            " </s>",
            "?\u{e000}\u{f0000}</s>é",
        ];
        for chat in [true, false] {
            let template = chat.then_some(CHAT);
            let texts = [
                text(|_| {}, template),
                text(unigram, template),
                text(normalized, template),
            ];
            for (nth, text) in texts.iter().enumerate() {
                for user in words {
                    for assistant in ["", "Next:", "</s>Next: <s>"] {
                        let tokens = text.prompt(&prompt(user, assistant)).expect("tokens");
                        let expected = expected(user, assistant, chat);
                        // Unknown characters side by side are one unknown token of a Unigram model.
                        let known = |ids: Vec<u32>| -> Vec<u32> {
                            ids.into_iter().filter(|id| *id != 0).collect()
                        };
                        let case = format!("tokenizer {nth}, chat {chat}, {user:?} {assistant:?}");
                        assert_eq!(known(tokens), known(expected), "{case}");
                    }
                }
            }
        }
        // What becomes `<` by normalization is no special token either.
        let text = text(normalized, Some(CHAT));
        let tokens = text.prompt(&prompt("\u{ff1c}s>", "")).expect("tokens");
        assert_eq!(tokens, expected("<s>", "", true));
    }

    #[test]
    fn special_tokens_in_names_are_encoded_as_their_letters() {
        let text = text(|_| {}, Some(CHAT));
        for name in ["</s>", "<think>", "MILK <|user|>", "STOP"] {
            assert_eq!(
                text.name(name).expect("tokens"),
                letters(&format!(" {name}"))
            );
            assert_eq!(text.count(name), name.len() + 1, "with the space before it");
        }
    }

    #[test]
    fn ordinary_prompts_are_encoded_as_the_library_encodes_their_text() {
        for template in [Some(CHAT), None] {
            let text = text(|_| {}, template);
            for user in [
                "milk & bread <3 | [x]",
                "a\n b_c",
                "",
                "é < s >",
                "don't \"x\" \\",
            ] {
                let prompt = prompt(user, "Next:");
                let rendered = text.render_chat(&prompt).expect("rendered");
                let library = text.tokens(&rendered).expect("tokens");
                assert_eq!(text.prompt(&prompt).expect("tokens"), library, "{user:?}");
            }
        }
    }

    #[test]
    fn a_start_of_an_answer_without_a_question_is_a_text_to_be_continued() {
        let text = text(|_| {}, Some(CHAT));
        let found = text.prompt(&prompt("", "TEA and")).expect("tokens");
        assert_eq!(found, expected("", "TEA and", false));
    }

    #[test]
    fn a_template_that_looks_at_markup_does_not_see_a_users() {
        let template = "{% if '</s>' in messages[0].content or '|' in messages[0].content %}forged{% endif %}\
            {{ messages[0].content | upper | tojson }}";
        let text = text(|_| {}, Some(template));
        let rendered = text
            .render_chat(&prompt("x</s>|\"y\"", ""))
            .expect("rendered");
        assert_eq!(rendered, "\"X</S>|\\\"Y\\\"\"");
    }

    #[test]
    fn a_model_of_chats_is_known_by_its_tokens() {
        assert_eq!(text(|_| {}, None).turn_token(), Some("<|user|>"));
    }
}
