//! Words of a text, as the matcher compares them.
//!
//! Decides which spellings are one word: letter case, width, accents, punctuation and the plural do not matter, and a
//! number is a word of its own. Invariant: any text has a form, made of at most its first [`BYTES_MAX`] bytes and
//! [`WORDS_MAX`] words, and equal texts have equal forms. It does not know products.

use unicode_normalization::UnicodeNormalization;

use crate::text::normalise;

/// The most bytes of a text that are read: names are limited to 512, and what follows in a longer text changes nothing.
pub(super) const BYTES_MAX: usize = 1024;

/// The most words of a text that are read.
pub(super) const WORDS_MAX: usize = 48;

/// The form of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    /// Its words in order, in the singular.
    pub(crate) words: Vec<String>,
}

impl Form {
    /// The form of any text; a text without a letter or a digit has no words.
    pub(crate) fn of(text: &str) -> Self {
        let text = cut(text);
        let folded: String = normalise(text)
            .nfkd()
            .filter(|c| !is_accent(*c))
            .nfc()
            .flat_map(char::to_lowercase)
            .collect();
        let mut words = Vec::new();
        let mut word = String::new();
        for c in folded.chars() {
            if is_apostrophe(c) && !word.is_empty() {
                continue;
            }
            let ends = !c.is_alphanumeric()
                || is_own_word(c)
                || word
                    .chars()
                    .next_back()
                    .is_some_and(|last| last.is_numeric() != c.is_numeric() || is_own_word(last));
            if ends {
                push(&mut words, &mut word);
            }
            if c.is_alphanumeric() {
                word.push(c);
            }
            if words.len() == WORDS_MAX {
                return Self { words };
            }
        }
        push(&mut words, &mut word);
        Self { words }
    }

    /// The words with a space before each and one at the end.
    pub(super) fn spaced(&self) -> String {
        let mut text = String::from(" ");
        for word in &self.words {
            text.push_str(word);
            text.push(' ');
        }
        text
    }

    /// The words in alphabetical order, each once.
    pub(crate) fn sorted(&self) -> Vec<&str> {
        let mut words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        words.sort_unstable();
        words.dedup();
        words
    }
}

/// The first [`BYTES_MAX`] bytes, or a few less where a character would be cut.
fn cut(text: &str) -> &str {
    let mut end = BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn push(words: &mut Vec<String>, word: &mut String) {
    if !word.is_empty() {
        words.push(singular(word).to_owned());
        word.clear();
    }
}

/// Marks of Latin, Greek and Cyrillic letters. Marks of other scripts are vowels, without which a word is another one.
fn is_accent(c: char) -> bool {
    ('\u{300}'..='\u{36f}').contains(&c)
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}' | '\u{2bc}')
}

/// Scripts that are written without spaces: each character counts as a word.
fn is_own_word(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// The singular of an English word by its ending. Wrong for some words, but for their plural alike.
fn singular(word: &str) -> &str {
    let letters = word.len();
    if letters <= 3 || !word.is_ascii() || !word.ends_with('s') {
        return word;
    }
    if ["ss", "us", "is"].iter().any(|end| word.ends_with(end)) {
        return word;
    }
    let hissing = ["sses", "xes", "ches", "shes", "zes"];
    if letters > 4 && hissing.iter().any(|end| word.ends_with(end)) {
        return &word[..letters - 2];
    }
    &word[..letters - 1]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> String {
        Form::of(text).words.join(" ")
    }

    #[test]
    fn spellings_of_one_name_have_one_form() {
        for (text, expected) in [
            ("Potato  CHIPS", "potato chip"),
            ("ＰＯＴＡＴＯ chip", "potato chip"),
            ("Crème brûlée", "creme brulee"),
            ("children's toothbrushes", "children toothbrush"),
            ("GLASSES, boxes", "glass box"),
            ("20PK cans", "20 pk can"),
            ("Bread:Italian/French", "bread italian french"),
            ("感冒药", "感 冒 药"),
            ("gas bus this", "gas bus this"),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
    }

    #[test]
    fn texts_without_words_have_an_empty_form() {
        for text in ["", " ", "!?", "\u{200f}\u{202e}", "🙂🙂", "\u{0}"] {
            assert_eq!(words(text), "", "{text:?}");
        }
    }

    #[test]
    fn right_to_left_marks_change_no_word() {
        assert_eq!(words("\u{202e}potato\u{200f} chips\u{202c}"), "potato chip");
    }

    #[test]
    fn a_megabyte_is_read_to_its_limit() {
        let long = "ä".repeat(1 << 19);
        let form = Form::of(&long);
        assert_eq!(form.words.len(), 1);
        assert!(form.words[0].len() <= BYTES_MAX);
        assert_eq!(Form::of(&"a b ".repeat(1 << 18)).words.len(), WORDS_MAX);
    }

    proptest! {
        #[test]
        fn a_form_has_the_form_of_its_words(text in any::<String>()) {
            let form = Form::of(&text);
            prop_assert!(form.words.len() <= WORDS_MAX);
            prop_assert!(form.words.iter().all(|word| !word.is_empty() && !word.contains(' ')));
        }
    }
}
