//! Entries of a list in JSON: strings of an array, or names of its objects; also of JSON that is cut off.
//!
//! Decides which strings are names. Invariant: only strings that are closed are entries. It does not need the JSON to
//! be valid: it follows brackets and strings, and passes over everything else.

use super::listed::{ENTRIES_MAX, Entry, Listed};

/// Keys whose value names a product.
const KEYS: [&str; 7] = [
    "name",
    "product",
    "product_name",
    "title",
    "item",
    "pu",
    "text",
];

/// Open brackets that are followed; what is nested deeper is no list of names.
const DEPTH_MAX: usize = 32;

/// An open bracket.
enum Open {
    Array,
    /// With the key whose value comes next, and whether the object named its product already.
    Object {
        key: Option<String>,
        is_named: bool,
    },
}

/// Reads the first JSON of a text that has an entry; `None` if there is none.
pub(super) fn read(text: &str) -> Option<Listed> {
    let starts = text.match_indices(['[', '{']).map(|(at, _)| at);
    // Few: a text of nothing but brackets must not be read from each of them.
    for at in starts.take(8) {
        let rest = text[at + 1..].trim_start();
        let may_begin = rest.starts_with(['"', '{', '[']);
        if may_begin && let Some(listed) = read_from(&text[at..]) {
            return Some(listed);
        }
    }
    None
}

fn read_from(text: &str) -> Option<Listed> {
    let mut stack: Vec<Open> = Vec::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = 0;
    let mut is_cut = true;
    while let Some(next) = text[at..].chars().next() {
        at += next.len_utf8();
        match next {
            '[' => stack.push(Open::Array),
            '{' => stack.push(Open::Object {
                key: None,
                is_named: false,
            }),
            ']' | '}' => {
                stack.pop();
            }
            ',' => end_value(&mut stack),
            '"' => {
                let Some(end) = closing(&text[at..]) else {
                    break;
                };
                let string = &text[at - 1..=at + end];
                at += end + 1;
                let is_key = text[at..].trim_start().starts_with(':');
                entries.extend(string_at(&mut stack, string, is_key));
            }
            _ => {}
        }
        if stack.is_empty() {
            is_cut = false;
            break;
        }
        if stack.len() > DEPTH_MAX || entries.len() > ENTRIES_MAX {
            break;
        }
    }
    (!entries.is_empty()).then_some(Listed {
        entries,
        chatter: 0,
        is_cut,
    })
}

/// A comma ends a value, so that the next string of an object is a key again.
fn end_value(stack: &mut [Open]) {
    if let Some(Open::Object { key, .. }) = stack.last_mut() {
        *key = None;
    }
}

/// What a string is where it stands: a key, an entry, or neither.
fn string_at(stack: &mut [Open], string: &str, is_key: bool) -> Option<Entry> {
    let arrays = stack.iter().filter(|open| matches!(open, Open::Array));
    let arrays = arrays.count();
    let text = || serde_json::from_str::<String>(string).ok();
    match stack.last_mut()? {
        // Arrays in objects of the array are attributes.
        Open::Array if arrays == 1 => text().map(|text| Entry::new(text.trim(), None)),
        Open::Array => None,
        Open::Object { key, .. } if key.is_none() && is_key => {
            *key = text();
            None
        }
        Open::Object { key, is_named } => {
            let known = |key: &String| KEYS.contains(&key.trim().to_lowercase().as_str());
            let names = !*is_named && key.as_ref().is_some_and(known);
            let text = text().filter(|_| names)?;
            *is_named = true;
            Some(Entry::new(text.trim(), None))
        }
    }
}

/// Where the string that begins before this text ends.
fn closing(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })
}
