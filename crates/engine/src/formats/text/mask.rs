//! Stand-ins for the signs in a user's words, so that neither a chat template nor a tokenizer reads markup in them.
//!
//! Decides what is hidden: all but letters, digits, white space and quotation marks, because every special token has
//! another sign. A stand-in is a character for private use that occurs nowhere else. Invariant: showing what was hidden
//! gives the same text, and letters, white space and the number of characters are as in the text. It does not know
//! templates or tokens.

use std::collections::BTreeSet;

/// The signs of one prompt and their stand-ins.
pub(super) struct Mask {
    /// Sign and stand-in, sorted by sign.
    pairs: Vec<(char, char)>,
}

impl Mask {
    /// Chooses stand-ins for the signs of `texts`, and for `also`, that occur neither in them nor in `template`.
    pub(super) fn new(texts: &[&str], template: &str, also: &[char]) -> Self {
        let chars = || texts.iter().flat_map(|text| text.chars());
        let signs: BTreeSet<char> = chars()
            .filter(|c| is_sign(*c) || also.contains(c))
            .collect();
        let taken: BTreeSet<char> = (chars().chain(template.chars()))
            .filter(|c| is_private(*c))
            .collect();
        let free = ('\u{f0000}'..='\u{ffffd}').chain('\u{100000}'..='\u{10fffd}');
        let free = free.filter(|c| !taken.contains(c));
        Self {
            pairs: signs.into_iter().zip(free).collect(),
        }
    }

    /// Whether there is nothing to hide.
    pub(super) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The text with stand-ins for its signs.
    pub(super) fn hide(&self, text: &str) -> String {
        let stand_in = |c: char| match self.pairs.binary_search_by_key(&c, |(sign, _)| *sign) {
            Ok(at) => self.pairs[at].1,
            // There are more kinds of signs than characters for private use: this is no text of a language.
            Err(_) if is_sign(c) => char::REPLACEMENT_CHARACTER,
            Err(_) => c,
        };
        text.chars().map(stand_in).collect()
    }

    /// The text with its signs again.
    pub(super) fn show(&self, text: &str) -> String {
        // Stand-ins are chosen in ascending order.
        let sign = |c: char| {
            let at = self
                .pairs
                .binary_search_by_key(&c, |(_, stand_in)| *stand_in);
            at.map_or(c, |at| self.pairs[at].0)
        };
        text.chars()
            .map(|c| if is_private(c) { sign(c) } else { c })
            .collect()
    }
}

/// Whether a character may be part of markup. Quotation marks stay, so that `tojson` escapes them.
fn is_sign(c: char) -> bool {
    !c.is_alphanumeric() && !c.is_whitespace() && !matches!(c, '"' | '\'' | '\\')
}

fn is_private(c: char) -> bool {
    c >= '\u{f0000}'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signs_are_hidden_and_letters_are_not() {
        let mask = Mask::new(&["<|im_end|> Hi, \"you\"\n"], "\u{f0000}", &['i']);
        let hidden = mask.hide("<|im_end|> Hi, \"you\"\n");
        assert!(
            !hidden.contains(['<', '|', '_', '>', ',', 'i', '\u{f0000}']),
            "{hidden}"
        );
        assert!(
            hidden.contains(" H") && hidden.contains(" \"you\"\n"),
            "{hidden}"
        );
        assert_eq!(mask.show(&hidden), "<|im_end|> Hi, \"you\"\n");
    }

    proptest! {
        #[test]
        fn a_hidden_text_has_no_markup_and_is_shown_as_it_was(
            text in "(<|\\||>|\\[|\u{f0000}|\u{f0001}|\u{10fffd}|\\PC|\n){0,40}",
        ) {
            let mask = Mask::new(&[&text], "{{ '<s>' }}", &[]);
            let hidden = mask.hide(&text);
            prop_assert!(!hidden.contains(['<', '|', '>', '[']));
            prop_assert_eq!(hidden.chars().count(), text.chars().count());
            prop_assert_eq!(mask.show(&hidden), text);
        }
    }
}
