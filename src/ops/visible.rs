//! Text for terminals: what cannot be seen is escaped.
//!
//! Invariant: names, ids and messages come from outside. A control character in them could move the cursor or colour
//! the terminal, and U+202E shows the characters behind it in reverse; escaped they do neither. What is printed for
//! programs stays JSON with the same meaning.

use std::fmt::Write;

/// Whether a terminal shows nothing for the character, or something else than one character.
fn is_unseen(c: char) -> bool {
    match c {
        ' '..='~' => false,
        // Behind a letter, or the standard library escapes combining marks, too.
        c => String::from_iter(['a', c]).escape_debug().nth(1) == Some('\\'),
    }
}

/// One line of text: escapes what cannot be seen, line ends included.
pub(crate) fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_unseen(c) {
            true => out.extend(c.escape_debug()),
            false => out.push(c),
        }
    }
    out
}

/// Lines of text: escapes what cannot be seen, and keeps the line ends.
pub(crate) fn visible_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(visible).collect();
    lines.join("\n")
}

/// JSON: writes what cannot be seen as `\u` with four digits, which every reader of JSON undoes.
pub(crate) fn visible_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // Between values there may be line ends; within texts JSON allows none.
        if c == '\n' || !is_unseen(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing into a String cannot fail.
            let _infallible = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_escaped_and_letters_of_all_scripts_are_not() {
        for (text, expected) in [
            (
                "Caf\u{e9} \"1\" \\ 日本 नमस्ते e\u{301} €",
                "Caf\u{e9} \"1\" \\ 日本 नमस्ते e\u{301} €",
            ),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("\u{1b}[31m", "\\u{1b}[31m"),
            (
                "\u{200b}\u{feff}\u{9b}\u{7f}",
                "\\u{200b}\\u{feff}\\u{9b}\\u{7f}",
            ),
            ("a\nb\r\t\0", "a\\nb\\r\\t\\0"),
            ("\u{e0041}\u{2028}", "\\u{e0041}\\u{2028}"),
        ] {
            assert_eq!(visible(text), expected, "{text:?}");
        }
        assert_eq!(visible_lines("a\u{202e}\nb\r\n"), "a\\u{202e}\nb\\r\n");
    }

    #[test]
    fn json_stays_json_with_the_same_meaning() {
        let value = serde_json::json!({"a\u{202e}": ["\u{9b}", "\u{e0041}", "日本", "\n"]});
        for text in [
            value.to_string(),
            serde_json::to_string_pretty(&value).expect("JSON"),
        ] {
            let shown = visible_json(&text);
            assert!(!shown.chars().any(|c| c != '\n' && is_unseen(c)), "{shown}");
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"),
                value
            );
        }
    }
}
