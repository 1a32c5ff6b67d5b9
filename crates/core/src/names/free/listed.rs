//! Reads a written list: JSON or lines, whole or cut off, with whatever chatter is around it.
//!
//! Decides what is an entry. Invariant: any text gives a list of at most [`ENTRIES_MAX`] entries of at most
//! [`CHARS_MAX`] characters each, and never an error: what cannot be read is left out. It does not know products.

use super::{json, lines};

/// Bytes of a text that are read.
const BYTES_MAX: usize = 64 << 10;

/// Entries of a text that are read.
pub(super) const ENTRIES_MAX: usize = 200;

/// Most characters of an entry; a longer one is no name.
pub(super) const CHARS_MAX: usize = 200;

/// The end of what a model thinks before it answers.
const THOUGHT: (&str, &str) = ("<think>", "</think>");

/// One entry of a written list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its text, without numbering and marks; at most [`CHARS_MAX`] characters.
    pub text: String,
    /// What is before an explanation, if the text may have one: "milk" of "milk: every week".
    pub head: Option<String>,
    /// Whether it was longer, and was cut.
    pub too_long: bool,
}

/// A written list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Entries in the order of the text. They may be empty or repeat each other.
    pub entries: Vec<Entry>,
    /// Lines that are no entries, such as an introduction.
    pub chatter: usize,
    /// Whether the text ends in the middle of an entry, which was left out, or is longer than what is read.
    pub is_cut: bool,
}

impl Entry {
    /// An entry of a text that was trimmed.
    pub(super) fn new(text: &str, head: Option<&str>) -> Self {
        let too_long = text.chars().nth(CHARS_MAX).is_some();
        Self {
            text: text.chars().take(CHARS_MAX).collect(),
            head: head.filter(|_| !too_long).map(str::to_owned),
            too_long,
        }
    }
}

/// Reads a written list. `is_cut`: the writer was stopped, so that the last entry may be a part of one.
pub fn read(text: &str, is_cut: bool) -> Listed {
    let end = text.floor_char_boundary(BYTES_MAX);
    let is_cut = is_cut || end < text.len();
    let Some(text) = answer(&text[..end]) else {
        return Listed {
            is_cut,
            ..Listed::default()
        };
    };
    let mut listed = json::read(text).unwrap_or_else(|| lines::read(text, is_cut));
    listed.is_cut |= is_cut;
    if listed.entries.len() > ENTRIES_MAX {
        listed.entries.truncate(ENTRIES_MAX);
        listed.is_cut = true;
    }
    listed
}

/// The text after what was thought aloud; `None` if the thinking did not end.
fn answer(text: &str) -> Option<&str> {
    let (begin, end) = THOUGHT;
    match text.rfind(end) {
        Some(at) => Some(&text[at + end.len()..]),
        None if text.trim_start().starts_with(begin) => None,
        None => Some(text),
    }
}
