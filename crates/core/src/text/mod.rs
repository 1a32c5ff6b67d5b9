//! Normal form of texts, and their comparison: texts that a person cannot tell apart are one text.
//!
//! Decides what of a text is kept. Line breaks, tabs, control characters and blanks of every width become one space;
//! none is left at the ends. Characters that cannot be seen are removed. A joiner, a variation selector or a tag is
//! kept only where it changes what is drawn: in Persian, in Indic scripts, in Mongolian, in emoji. What is left is in
//! NFC. Letter case, punctuation, full-width forms and look-alike letters are seen, so they are kept as they are.
//!
//! Invariant: normalising twice changes nothing, and the result has no more bytes than NFC of the text. It does not
//! know what a text names.

pub(crate) mod bytes;
mod file;
mod joiners;
pub mod vectors;

use std::borrow::Cow;

use icu_properties::CodePointSetData;
use icu_properties::props::DefaultIgnorableCodePoint;
use unicode_normalization::UnicodeNormalization;

pub use bytes::DecodeError;
pub use file::{Damage, decode, decode_secret};

/// The normal form of a text, see the module's head. Two texts with the same normal form are the same text everywhere:
/// names, categories, ids, attributes, fields and values of profiles, rules, and files.
pub fn normalise(text: &str) -> Cow<'_, str> {
    if is_plain(text) {
        return Cow::Borrowed(text);
    }
    // To remove one character can change what another one does: a joiner has new neighbours, marks are reordered.
    // Each round removes at least one character, and the second one is almost always the last.
    let mut normal = once(text);
    loop {
        let again = once(&normal);
        if again == normal {
            return Cow::Owned(normal);
        }
        normal = again;
    }
}

/// Whether two texts are the same: whether their normal forms are equal.
pub fn same(a: &str, b: &str) -> bool {
    a == b || (!(is_plain(a) && is_plain(b)) && normalise(a) == normalise(b))
}

/// Whether a text is in its normal form.
pub fn is_normal(text: &str) -> bool {
    normalise(text) == text
}

/// The first character of a text that its normal form does not have at this place, by its position from 1; for error
/// texts. `None` if the text is in its normal form.
pub(crate) fn first_change(text: &str) -> Option<(usize, char)> {
    if is_plain(text) {
        return None;
    }
    let normal = normalise(text);
    let mut kept = normal.chars();
    let mut chars = text.chars().enumerate();
    let changed = chars.find(|(_, c)| kept.next() != Some(*c));
    changed.map(|(nth, c)| (nth + 1, c))
}

/// Whether a text is printable ASCII with single spaces inside only, and thus in its normal form.
fn is_plain(text: &str) -> bool {
    let mut before = b' ';
    for byte in text.bytes() {
        let fits = byte.is_ascii_graphic() || (byte == b' ' && before != b' ');
        if !fits {
            return false;
        }
        before = byte;
    }
    before != b' ' || text.is_empty()
}

/// One round of normalising.
fn once(text: &str) -> String {
    let seen: Vec<char> = text.chars().filter_map(shown).nfc().collect();
    let mut kept = String::with_capacity(text.len());
    for (at, c) in seen.iter().enumerate() {
        let blank = *c == ' ' && (kept.is_empty() || kept.ends_with(' '));
        if !blank && joiners::is_kept(&seen, at) {
            kept.push(*c);
        }
    }
    kept.truncate(kept.trim_end_matches(' ').len());
    kept.nfc().collect()
}

/// A character as it is kept, if it is: blanks as a space, and of the ignorable ones those that may be drawn.
fn shown(c: char) -> Option<char> {
    if c.is_ascii_graphic() {
        return Some(c);
    }
    // Braille blank and Hangul fillers have the width of a character and no ink.
    let blank =
        c.is_whitespace() || c.is_control() || matches!(c, '\u{2800}' | '\u{3164}' | '\u{ffa0}');
    if blank {
        return Some(' ');
    }
    if joiners::may_be_drawn(c) {
        return Some(c);
    }
    let annotation = ('\u{fff9}'..='\u{fffb}').contains(&c);
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c);
    (!annotation && !ignorable && !is_noncharacter(c)).then_some(c)
}

/// Whether Unicode will never assign the code point, such as U+FFFE, a byte-order mark read backwards.
fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_cannot_be_seen_is_removed_and_blanks_become_one_space() {
        for (text, expected) in [
            ("\u{feff}ASPARAGUS", "ASPARAGUS"),
            ("ASPA\u{200b}RA\u{ad}GUS\u{2060}", "ASPARAGUS"),
            ("ASPARAGUS\u{200d}", "ASPARAGUS"),
            ("AS\u{200c}PARAGUS", "ASPARAGUS"),
            ("\u{202e}ASPARAGUS\u{202c}", "ASPARAGUS"),
            ("ASPARAGUS\u{fe0f}\u{e0041}", "ASPARAGUS"),
            ("ASPARA\u{34f}GUS\u{ffff}\u{fff9}", "ASPARAGUS"),
            ("MEAT  SNACKS", "MEAT SNACKS"),
            (" MEAT\u{a0}\t\r\nSNACKS\u{3000}", "MEAT SNACKS"),
            ("MEAT\u{3164}\u{2800}\u{0}SNACKS", "MEAT SNACKS"),
            ("Cafe\u{301}", "Caf\u{e9}"),
            ("Cafe\u{200b}\u{301}", "Caf\u{e9}"),
            ("\u{feff}\u{200b}", ""),
            (" \u{200d} ", ""),
        ] {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_seen_stays() {
        for text in [
            "",
            "RED WINE",
            "red wine",
            "\u{ff32}\u{ff25}\u{ff24}",
            "\u{bd} LITRE\u{2122}",
            "Caf\u{e9} \u{2013} \u{201c}fin\u{201d}",
            "Stra\u{df}e",
            "\u{65e5}\u{672c}\u{8336}",
        ] {
            assert_eq!(normalise(text), text);
            assert!(is_normal(text));
        }
    }

    #[test]
    fn the_same_text_in_two_forms_is_one_text() {
        assert!(same("Caf\u{e9}", "Cafe\u{301} "));
        assert!(same("MEAT SNACKS", "\u{feff}MEAT  SNACKS"));
        assert!(!same("RED WINE", "red wine"));
        assert!(!same("A", "B"));
    }

    #[test]
    fn the_first_changed_character_is_named_with_its_place() {
        assert_eq!(first_change("S\u{feff}1"), Some((2, '\u{feff}')));
        assert_eq!(first_change("S1 "), Some((3, ' ')));
        assert_eq!(first_change("e\u{301}"), Some((1, 'e')));
        assert_eq!(first_change("S1"), None);
    }

    /// Texts of characters whose neighbours matter: joiners, viramas, marks, selectors, tags, emoji, blanks.
    fn tangled() -> impl Strategy<Value = String> {
        let chars: Vec<char> = "a \u{200c}\u{200d}\u{feff}\u{94d}\u{915}\u{93c}\u{645}\u{627}\u{64e}\u{301}\u{fe0f}\u{fe0e}\
            \u{2764}\u{2615}\u{1f468}\u{1f3fd}\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e007f}1\u{20e3}\u{180b}\u{1820}\u{34f}e"
            .chars()
            .collect();
        prop::collection::vec(prop::sample::select(chars), 0..14).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn normalising_again_changes_nothing(text in prop_oneof![any::<String>(), tangled()]) {
            let normal = normalise(&text).into_owned();
            prop_assert_eq!(normalise(&normal), normal.as_str());
            prop_assert!(is_normal(&normal) && same(&normal, &text));
            prop_assert!(normal.len() <= text.nfc().collect::<String>().len());
            prop_assert!(!normal.starts_with(' ') && !normal.ends_with(' ') && !normal.contains("  "));
            prop_assert_eq!(first_change(&text).is_none(), text == normal);
        }
    }
}
