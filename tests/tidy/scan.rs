//! Reads sources as text: blanks comments and strings, cuts off tests, finds words and brackets.

/// One source file.
pub(crate) struct Source {
    /// Path relative to the repository.
    pub(crate) path: String,
    pub(crate) text: String,
    /// `text` with comments and strings blanked, line by line the same.
    pub(crate) code: String,
    /// `code` without items under `#[cfg(test)]`; empty for files of tests.
    pub(crate) shipped: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank(text);
        let file = path.rsplit('/').next().unwrap_or(path);
        let test = path.starts_with("tests/")
            || file == "tests.rs"
            || file.ends_with("_tests.rs")
            || path.contains("/tests/");
        let shipped = if test {
            String::new()
        } else {
            without_tests(&code)
        };
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            shipped,
        }
    }

    /// The `src` folder that the file is in; none for tests and benches.
    pub(crate) fn home(&self) -> Option<&str> {
        let end = match self.path.strip_prefix("crates/") {
            Some(rest) => "crates/".len() + rest.find("/src/")? + "/src".len(),
            None => self.path.starts_with("src/").then_some("src".len())?,
        };
        Some(&self.path[..end])
    }

    /// The parts of the module's path in its crate: `user`, `fold` for `crates/core/src/user/fold.rs`.
    pub(crate) fn parts(&self) -> Vec<String> {
        let inner = self.home().map_or("", |home| &self.path[home.len() + 1..]);
        let mut parts: Vec<String> = inner
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        if matches!(
            parts.last().map(String::as_str),
            Some("mod" | "lib" | "main")
        ) {
            parts.pop();
        }
        parts
    }

    /// Whether the file belongs to a library crate of the workspace.
    pub(crate) fn is_library(&self) -> bool {
        self.path.starts_with("crates/") && self.home().is_some()
    }

    /// Folder of the crate, or of its tests or benches, that the file is compiled into.
    pub(crate) fn unit(&self) -> &str {
        let parts = if self.path.starts_with("crates/") {
            3
        } else {
            1
        };
        let ends = self.path.match_indices('/').map(|(at, _)| at);
        let end = ends.take(parts).last().unwrap_or(self.path.len());
        &self.path[..end]
    }
}

/// Replaces comments and the insides of strings by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut here = 0;
    while here < bytes.len() {
        let end = match bytes[here] {
            b'/' if bytes[here..].starts_with(b"//") => line_end(bytes, here),
            b'/' if bytes[here..].starts_with(b"/*") => comment_end(bytes, here),
            b'"' => string_end(bytes, here),
            b'r' | b'b' | b'c' if !part_of_word(bytes, here) => {
                raw_end(bytes, here).unwrap_or(here)
            }
            b'\'' => char_end(bytes, here).unwrap_or(here),
            _ => here,
        };
        for byte in &mut out[here..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        here = end.max(here + 1);
    }
    String::from_utf8(out).expect("only whole characters are blanked")
}

fn part_of_word(bytes: &[u8], here: usize) -> bool {
    here > 0 && word_byte(bytes[here - 1])
}

pub(crate) fn word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn line_end(bytes: &[u8], here: usize) -> usize {
    let rest = bytes[here..].iter().position(|byte| *byte == b'\n');
    rest.map_or(bytes.len(), |length| here + length)
}

fn comment_end(bytes: &[u8], here: usize) -> usize {
    let (mut depth, mut at) = (0, here);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_end(bytes: &[u8], here: usize) -> usize {
    let mut at = here + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// End of `r"…"`, `r#"…"#` or `br"…"`; `None` if no such string begins here.
fn raw_end(bytes: &[u8], here: usize) -> Option<usize> {
    let prefix = bytes[here..]
        .iter()
        .take_while(|byte| b"rbc".contains(byte))
        .count();
    let hashes = bytes[here + prefix..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    let open = here + prefix + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    if !bytes[here..here + prefix].contains(&b'r') {
        return (hashes == 0).then(|| string_end(bytes, open));
    }
    let close: Vec<u8> = [b'"']
        .into_iter()
        .chain(std::iter::repeat_n(b'#', hashes))
        .collect();
    let inside = bytes[open + 1..]
        .windows(close.len())
        .position(|window| window == close);
    Some(inside.map_or(bytes.len(), |length| open + 1 + length + close.len()))
}

/// End of a character literal; `None` for a lifetime.
fn char_end(bytes: &[u8], here: usize) -> Option<usize> {
    if bytes.get(here + 1) == Some(&b'\\') {
        let close = bytes[here + 3..].iter().position(|byte| *byte == b'\'')?;
        return Some(here + 4 + close);
    }
    let width = (1..=4).find(|width| bytes.get(here + 1 + width) == Some(&b'\''))?;
    let one = std::str::from_utf8(&bytes[here + 1..here + 1 + width]).ok()?;
    (one.chars().count() == 1).then_some(here + width + 2)
}

/// The end of the bracket that opens at `open`.
pub(crate) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    code.len()
}

/// Blanks each item under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let body = start + "#[cfg(test)]".len();
        let end = match out[body..].find(['{', ';']) {
            Some(length) if out.as_bytes()[body + length] == b'{' => {
                closing(&out, body + length) + 1
            }
            Some(length) => body + length + 1,
            None => out.len(),
        }
        .min(out.len());
        let blanked: String = out[start..end]
            .chars()
            .map(|c| if c == '\n' { c } else { ' ' })
            .collect();
        // The text may become shorter: a character of several bytes is replaced by one space.
        out.replace_range(start..end, &blanked);
    }
    out
}

/// Places of `word` as a whole word; an end of `word` that is not a letter may touch letters.
pub(crate) fn places<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let end = at + word.len();
            let before = word_byte(word.as_bytes()[0]) && part_of_word(bytes, *at);
            let after = word_byte(word.as_bytes()[word.len() - 1])
                && end < bytes.len()
                && word_byte(bytes[end]);
            !before && !after
        })
}

pub(crate) fn identifier(code: &str) -> &str {
    let end = code
        .bytes()
        .position(|byte| !word_byte(byte))
        .unwrap_or(code.len());
    &code[..end]
}
