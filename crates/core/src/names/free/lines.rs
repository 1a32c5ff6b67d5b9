//! Entries of a list in lines: numbered, with bullets, bare, or one line with commas.
//!
//! Decides which lines are entries and which are chatter: where any line has a number or a bullet, the others are
//! chatter. Invariant: every line is an entry, chatter, empty, or a mark of Markdown. It does not know products.

use super::listed::{Entry, Listed};

/// Signs before an item.
const BULLETS: [char; 9] = ['-', '*', '•', '–', '—', '·', '+', '●', '○'];

/// Signs around a name.
const QUOTES: [char; 12] = ['"', '\'', '`', '*', '_', '“', '”', '‘', '’', '«', '»', '「'];

/// What may stand between a name and its explanation.
const BREAKS: [&str; 8] = [": ", " - ", " – ", " — ", " (", "：", "（", " | "];

/// Signs between names of one line.
const COMMAS: [char; 5] = [',', ';', '，', '；', '、'];

/// Reads lines. `is_cut`: the last line may be a part of one, and is left out.
pub(super) fn read(text: &str, is_cut: bool) -> Listed {
    let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
    let mut listed = Listed::default();
    if is_cut && !text.ends_with('\n') && lines.pop().is_some() {
        listed.is_cut = true;
    }
    lines.retain(|line| !line.is_empty() && !is_mark(line));
    let is_marked = lines.iter().any(|line| marked(line).is_some());
    let is_alone = lines.len() == 1 && !is_marked;
    for line in lines {
        match marked(line) {
            Some(rest) => listed.entries.push(entry(rest)),
            None if is_marked || line.ends_with([':', '：']) || line.starts_with('#') => {
                listed.chatter += 1;
            }
            None if is_alone && line.contains(COMMAS) => {
                let parts = line.split(COMMAS).map(str::trim);
                listed.entries.extend(parts.map(entry));
            }
            None => listed.entries.push(entry(line)),
        }
    }
    listed
}

/// A fence of code, a rule, the border of a table, or brackets without anything in them.
fn is_mark(line: &str) -> bool {
    let fence = line.starts_with("```") || line.starts_with("~~~");
    fence || line.chars().all(|c| "-=_|*[]{},".contains(c))
}

/// The rest of a line behind its number or bullet; `None` if it has neither.
fn marked(line: &str) -> Option<&str> {
    // Bold text is not a bullet.
    if let Some(rest) = line.strip_prefix(BULLETS)
        && !line.starts_with("**")
    {
        return Some(numbered(rest.trim_start()).unwrap_or(rest).trim());
    }
    let bold = line.strip_prefix("**").unwrap_or(line);
    numbered(bold).map(str::trim)
}

/// The rest behind "12.", "12)", "(12)", "#12" or "12:".
fn numbered(line: &str) -> Option<&str> {
    let open = line.strip_prefix(['(', '#', '[']).unwrap_or(line);
    let digits = open
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(open.len());
    if !(1..=4).contains(&digits) {
        return None;
    }
    let rest = &open[digits..];
    let behind = rest.strip_prefix(['.', ')', ']', ':', '、', '．'])?;
    // "1.5 l of milk" is a name with a number.
    let is_decimal = rest.starts_with('.') && behind.starts_with(|c: char| c.is_ascii_digit());
    (!is_decimal).then_some(behind)
}

/// The entry of a line without its mark.
fn entry(line: &str) -> Entry {
    let line = line.trim();
    // **name** and an explanation.
    if let Some(bold) = line.strip_prefix("**")
        && let Some((name, rest)) = bold.split_once("**")
        && !rest.trim().is_empty()
    {
        return Entry::new(bare(name), None);
    }
    let text = bare(line);
    let ends = BREAKS.iter().filter_map(|stop| text.find(stop));
    let head = ends.min().map(|end| bare(&text[..end]));
    Entry::new(text, head.filter(|head| !head.is_empty()))
}

/// A text without signs around it.
fn bare(text: &str) -> &str {
    let is_around = |c: char| c.is_whitespace() || QUOTES.contains(&c);
    let text = text.trim_matches(is_around);
    text.trim_end_matches([',', ';', '.', ':', '，', '。', '」'])
        .trim_matches(is_around)
}
