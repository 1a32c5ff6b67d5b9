//! Characters that cannot be seen themselves and change how their neighbours are drawn: joiners, variation selectors,
//! tags of flags.
//!
//! Decides where such a character is kept: where it changes what a person sees. The rules are those of RFC 5892,
//! appendix A (contextual rules of joiners) and of UAX 29, GB11 (emoji sequences), widened by what Bengali, Malayalam
//! and Persian are commonly written with. It does not know anything of blanks.

use icu_properties::props::{Alphabetic, EmojiPresentation, ExtendedPictographic, JoiningType};
use icu_properties::{CodePointMapData, CodePointSetData};
use unicode_normalization::char::canonical_combining_class;

/// Zero-width non-joiner.
const ZWNJ: char = '\u{200c}';
/// Zero-width joiner.
const ZWJ: char = '\u{200d}';
/// Canonical combining class of a virama, the sign that joins two consonants of an Indic script.
const VIRAMA: u8 = 9;
/// The black flag, with which the flags of England, Scotland and Wales begin.
const FLAG: char = '\u{1f3f4}';
/// The flags that consist of tags, by their letters.
const FLAGS: [&str; 3] = ["gbeng", "gbsct", "gbwls"];
/// End of a sequence of tags.
const END: char = '\u{e007f}';

/// Whether a character is drawn, or changes what is drawn, in some place.
pub(super) fn may_be_drawn(c: char) -> bool {
    matches!(
        c,
        ZWNJ | ZWJ | '\u{fe0e}' | '\u{fe0f}' | '\u{180b}'..='\u{180f}'
    ) || is_tag(c)
}

/// Whether the character at this place changes what is drawn; true for characters that are seen themselves.
pub(super) fn is_kept(text: &[char], at: usize) -> bool {
    let before = || at.checked_sub(1).map(|before| text[before]);
    match text[at] {
        ZWNJ => splits(text, at),
        ZWJ => joins(text, at),
        // Text form: seen where the emoji form is the usual one.
        '\u{fe0e}' => before().is_some_and(is_emoji_by_default),
        // Emoji form: seen where the text form is the usual one, and in keycaps.
        '\u{fe0f}' => before().is_some_and(|c| match c {
            '0'..='9' | '#' | '*' => text.get(at + 1) == Some(&'\u{20e3}'),
            c => is_pictograph(c) && !is_emoji_by_default(c),
        }),
        '\u{180b}'..='\u{180f}' => before().is_some_and(|c| ('\u{1820}'..='\u{18aa}').contains(&c)),
        c if is_tag(c) => is_in_flag(text, at),
        _ => true,
    }
}

/// Whether a non-joiner separates two letters that would be joined.
fn splits(text: &[char], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).map(|before| text[before]) else {
        return false;
    };
    let after = text.get(at + 1).copied();
    let letter_after = after.is_some_and(is_letter);
    (is_virama(before) && letter_after)
        || (is_letter(before) && after.is_some_and(is_virama))
        || (joins_forward(text, at) && joins_backward(text, at))
}

/// Whether a joiner changes the form of a letter beside it, or joins two emoji.
fn joins(text: &[char], at: usize) -> bool {
    let Some(before) = at.checked_sub(1).map(|before| text[before]) else {
        return false;
    };
    let after = text.get(at + 1).copied();
    // At the end of a word, too: Malayalam writes its final consonants so.
    is_virama(before)
        || (is_letter(before) && after.is_some_and(is_virama))
        || (after.is_some_and(is_pictograph) && ends_in_pictograph(&text[..at]))
        || (is_letter_or_mark(before) && joins_forward(text, at) != joins_backward(text, at))
}

/// Whether the last letter before this place joins with what follows it. Marks do not separate letters.
fn joins_forward(text: &[char], at: usize) -> bool {
    let mut before = text[..at].iter().rev().map(|c| joining(*c));
    let letter = before.find(|joining| *joining != JoiningType::Transparent);
    matches!(
        letter,
        Some(JoiningType::DualJoining | JoiningType::LeftJoining | JoiningType::JoinCausing)
    )
}

/// Whether the first letter after this place joins with what precedes it.
fn joins_backward(text: &[char], at: usize) -> bool {
    let mut after = text[at + 1..].iter().map(|c| joining(*c));
    let letter = after.find(|joining| *joining != JoiningType::Transparent);
    matches!(
        letter,
        Some(JoiningType::DualJoining | JoiningType::RightJoining | JoiningType::JoinCausing)
    )
}

/// Whether a text ends with an emoji, its variation selectors, skin tones and tags included.
fn ends_in_pictograph(text: &[char]) -> bool {
    let extends = |c: &&char| {
        matches!(**c, '\u{fe0e}' | '\u{fe0f}' | '\u{1f3fb}'..='\u{1f3ff}') || is_tag(**c)
    };
    let last = text.iter().rev().find(|c| !extends(c));
    last.is_some_and(|c| is_pictograph(*c))
}

/// Whether a tag belongs to the flag of a country of the United Kingdom. No other flag consists of tags, and in any
/// other place tags are a way to hide a text.
fn is_in_flag(text: &[char], at: usize) -> bool {
    let Some(start) = text[..at].iter().rposition(|c| !is_tag(*c)) else {
        return false;
    };
    let tags: String = text[start + 1..]
        .iter()
        .take_while(|c| is_tag(**c))
        .filter_map(|c| char::from_u32(u32::from(*c).wrapping_sub(0xe0000)))
        .collect();
    let named = tags.strip_suffix('\u{7f}');
    text[start] == FLAG && named.is_some_and(|named| FLAGS.contains(&named))
}

fn is_tag(c: char) -> bool {
    ('\u{e0020}'..=END).contains(&c)
}

fn is_virama(c: char) -> bool {
    canonical_combining_class(c) == VIRAMA
}

fn is_letter(c: char) -> bool {
    CodePointSetData::new::<Alphabetic>().contains(c)
}

fn is_letter_or_mark(c: char) -> bool {
    is_letter(c) || joining(c) == JoiningType::Transparent || joining(c) == JoiningType::JoinCausing
}

fn is_pictograph(c: char) -> bool {
    CodePointSetData::new::<ExtendedPictographic>().contains(c)
}

fn is_emoji_by_default(c: char) -> bool {
    CodePointSetData::new::<EmojiPresentation>().contains(c)
}

fn joining(c: char) -> JoiningType {
    match c {
        // A joiner does not join a joiner: of several, the first one counts.
        ZWJ => JoiningType::NonJoining,
        c => CodePointMapData::<JoiningType>::new().get(c),
    }
}

#[cfg(test)]
mod tests {
    use super::super::normalise;

    #[test]
    fn a_joiner_stays_where_it_changes_what_is_drawn() {
        for text in [
            // Persian: "I want", "book's", and the abbreviation heh.
            "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
            "\u{6a9}\u{62a}\u{627}\u{628}\u{200c}\u{647}\u{627}",
            "\u{647}\u{200d}.",
            // Devanagari: ka, virama, (non-)joiner, ssa.
            "\u{915}\u{94d}\u{200c}\u{937}",
            "\u{915}\u{94d}\u{200d}\u{937}",
            // Bengali: ra, joiner, virama, ya, as in RAM.
            "\u{9b0}\u{200d}\u{9cd}\u{9af}\u{9be}\u{9ae}",
            // Malayalam: a final consonant.
            "\u{d05}\u{d35}\u{d28}\u{d4d}\u{200d}",
            // Sinhala: sri.
            "\u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
            // Emoji: a family, a health worker of a skin tone, a burning heart, keycap 1, the flag of Scotland.
            "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
            "\u{1f468}\u{1f3fd}\u{200d}\u{2695}\u{fe0f}",
            "\u{2764}\u{fe0f}\u{200d}\u{1f525}",
            "1\u{fe0f}\u{20e3}",
            "\u{2615}\u{fe0e}",
            "\u{1f3f4}\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}",
            // Mongolian: a vowel set apart.
            "\u{182a}\u{180e}\u{1820}",
        ] {
            assert_eq!(normalise(text), text, "{text:?}");
        }
    }

    #[test]
    fn a_joiner_is_removed_where_nothing_is_drawn_differently() {
        for (text, expected) in [
            ("TEA\u{200d}POT", "TEAPOT"),
            ("Auf\u{200c}lage", "Auflage"),
            // The letter before does not join, or both join anyhow.
            (
                "\u{6a9}\u{627}\u{631}\u{200c}\u{647}\u{627}",
                "\u{6a9}\u{627}\u{631}\u{647}\u{627}",
            ),
            ("\u{645}\u{200d}\u{6cc}", "\u{645}\u{6cc}"),
            ("\u{645}\u{6cc}\u{200c}", "\u{645}\u{6cc}"),
            ("\u{645}\u{6cc}\u{200c} \u{62e}", "\u{645}\u{6cc} \u{62e}"),
            // Of two, the first is kept.
            (
                "\u{915}\u{94d}\u{200d}\u{200d}\u{937}",
                "\u{915}\u{94d}\u{200d}\u{937}",
            ),
            ("\u{1f468}\u{200d}", "\u{1f468}"),
            ("\u{1f468}\u{200d} MILK", "\u{1f468} MILK"),
            ("\u{2615}\u{fe0f}", "\u{2615}"),
            ("1\u{fe0f}", "1"),
            ("\u{1f3f4}\u{e0068}\u{e0069}\u{e007f}", "\u{1f3f4}"),
            (
                "\u{1f3f4}\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}",
                "\u{1f3f4}",
            ),
        ] {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }
}
