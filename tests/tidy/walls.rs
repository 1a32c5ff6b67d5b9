//! The walls: one function each, from a source to what is wrong with it.

use std::collections::BTreeMap;

use super::scan::{Source, closing, identifier, places, word_byte};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const PARAMETERS_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layer {
    Pure,
    Edge,
    Role,
}

/// Which module is in which group, as `lib.rs` lists them.
pub(crate) fn layers(lib: &str) -> BTreeMap<String, Layer> {
    let mut layer = None;
    let mut found = BTreeMap::new();
    for line in lib.lines() {
        if let Some(comment) = line.strip_prefix("// ") {
            layer = match comment.split(':').next() {
                Some("pure") => Some(Layer::Pure),
                Some("edges") => Some(Layer::Edge),
                Some("roles") => Some(Layer::Role),
                _ => layer,
            };
        }
        let module = line
            .strip_prefix("pub mod ")
            .and_then(|rest| rest.strip_suffix(';'));
        if let (Some(module), Some(layer)) = (module, layer) {
            found.insert(module.to_owned(), layer);
        }
    }
    found
}

#[derive(Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) line: usize,
    pub(crate) what: String,
}

fn at(code: &str, byte: usize, what: impl Into<String>) -> Finding {
    Finding {
        line: code[..byte].matches('\n').count() + 1,
        what: what.into(),
    }
}

/// Modules of the crate that a file names, by `crate::x`, `crate::{x, y}` or `super::…::x`.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let code = &source.shipped;
    let mut found = Vec::new();
    for at in places(code, "crate::") {
        let rest = at + "crate::".len();
        if !code[rest..].starts_with('{') {
            found.push((at, identifier(&code[rest..]).to_owned()));
            continue;
        }
        let mut depth = 0;
        let mut start = true;
        for (offset, byte) in code[rest..closing(code, rest)].bytes().enumerate() {
            match byte {
                b'{' => (depth, start) = (depth + 1, true),
                b'}' => depth -= 1,
                b',' => start = true,
                byte if start && depth == 1 && word_byte(byte) => {
                    found.push((at, identifier(&code[rest + offset..]).to_owned()));
                    start = false;
                }
                byte if !byte.is_ascii_whitespace() => start = false,
                _ => {}
            }
        }
    }
    let up = "super::".repeat(source.depth());
    for at in places(code, &up).filter(|at| !code[..*at].ends_with("super::")) {
        found.push((at, identifier(&code[at + up.len()..]).to_owned()));
    }
    found
}

/// Roles -> edges -> pure; never back, never sideways between edges, `config` and `metrics` excepted.
fn layering(source: &Source, layers: &BTreeMap<String, Layer>) -> Vec<Finding> {
    let Some(own) = source.module() else {
        return Vec::new();
    };
    let Some(layer) = layers.get(own) else {
        return Vec::new();
    };
    let allowed = |other: &str, target: Layer| {
        own == other
            || match (layer, target) {
                (_, Layer::Pure) | (Layer::Role, _) => true,
                (Layer::Edge, Layer::Edge) => [own, other]
                    .iter()
                    .any(|m| ["config", "metrics"].contains(m)),
                (Layer::Pure, Layer::Edge) | (Layer::Pure | Layer::Edge, Layer::Role) => false,
            }
    };
    let named = imports(source).into_iter();
    named
        .filter_map(|(place, other)| {
            let target = *layers.get(&other)?;
            let what = format!("{own} ({layer:?}) names {other} ({target:?})");
            (!allowed(&other, target)).then(|| at(&source.shipped, place, what))
        })
        .collect()
}

/// Only `log` names rdkafka, `store` redis, `engine` candle; tests too.
fn owners(source: &Source) -> Vec<Finding> {
    let owned = [
        ("rdkafka", "log"),
        ("rdkafka_sys", "log"),
        ("redis::", "store"),
        ("candle_core", "engine"),
        ("candle_nn", "engine"),
    ];
    let foreign = owned
        .into_iter()
        .filter(|(_, owner)| source.module().is_some_and(|module| module != *owner));
    foreign
        .flat_map(|(name, owner)| {
            // `store::redis::` would be a path of ours, not the crate.
            let outer = places(&source.code, name).filter(|at| !source.code[..*at].ends_with("::"));
            outer.map(move |place| {
                at(
                    &source.code,
                    place,
                    format!("only {owner} names {}", name.trim_end_matches(':')),
                )
            })
        })
        .collect()
}

/// Pure code has no async, IO, clock, environment, global, log line, metric or order of a hash: a map
/// that is only looked up in is marked `// lookup only`.
pub(crate) fn purity(source: &Source, layers: &BTreeMap<String, Layer>) -> Vec<Finding> {
    if source.module().and_then(|module| layers.get(module)) != Some(&Layer::Pure) {
        return Vec::new();
    }
    let words = [
        "async",
        ".await",
        "std::fs",
        "std::env",
        "std::io",
        "std::net",
        "std::process",
        "std::thread",
        "SystemTime",
        "Instant",
        "::now()",
        "tokio",
        "tracing",
        "metrics::",
        "println!",
        "eprintln!",
        "thread_rng",
        "OsRng",
        "static mut",
        "thread_local!",
        "LazyLock",
        "OnceLock",
        "Mutex",
        "RwLock",
        "HashMap",
        "HashSet",
    ];
    // The mark stands at the first use and speaks for the file.
    let marked = source.text.contains("// lookup only");
    words
        .into_iter()
        .flat_map(|word| places(&source.shipped, word).map(move |place| (word, place)))
        .map(|(word, place)| {
            (
                word,
                at(&source.shipped, place, format!("pure code names {word}")),
            )
        })
        .filter(|(word, _)| !(marked && word.starts_with("Hash")))
        .map(|(_, found)| found)
        .collect()
}

/// Files, functions and parameter lists stay small.
fn sizes(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(Finding {
            line: lines,
            what: format!("{lines} lines, at most {FILE_LINES_MAX}"),
        });
    }
    let code = &source.code;
    for start in places(code, "fn ") {
        let name = identifier(&code[start + 3..]);
        let Some(open) = code[start..].find('(').map(|length| start + length) else {
            continue;
        };
        if name.is_empty() {
            continue;
        }
        let close = closing(code, open);
        let list = &code[open + 1..close];
        // A property test's inputs are no parameters: `fn law(a in any(), b in any())`.
        let parameters = if list.contains(" in ") {
            0
        } else {
            parameters(list)
        };
        if parameters > PARAMETERS_MAX {
            found.push(at(
                code,
                start,
                format!("{name} has {parameters} parameters, at most {PARAMETERS_MAX}"),
            ));
        }
        let end = body_end(code, close);
        let lines = code[start..end].matches('\n').count() + 1;
        if lines > FUNCTION_LINES_MAX {
            found.push(at(
                code,
                start,
                format!("{name} has {lines} lines, at most {FUNCTION_LINES_MAX}"),
            ));
        }
    }
    found
}

/// Parameters beside `self`.
fn parameters(list: &str) -> usize {
    let (mut depth, mut count, mut text) = (0i32, 0, String::new());
    let mut previous = ' ';
    for c in list.chars().chain([',']) {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '>' if previous != '-' => depth -= 1,
            ',' if depth == 0 => {
                let own = text.split(':').next().unwrap_or_default();
                let receiver = places(own, "self").next().is_some();
                count += usize::from(!text.trim().is_empty() && !receiver);
                text.clear();
            }
            _ => {}
        }
        if !(c == ',' && depth == 0) {
            text.push(c);
        }
        previous = c;
    }
    count
}

/// From the end of the parameters to that of the body, or of the declaration.
fn body_end(code: &str, close: usize) -> usize {
    let mut depth = 0i32;
    for (offset, byte) in code[close + 1..].bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return closing(code, close + 1 + offset),
            b';' if depth == 0 => return close + 1 + offset,
            _ => {}
        }
    }
    code.len()
}

/// Nothing half done, nothing that panics on outside input, no test put to sleep without a reason.
fn words(source: &Source) -> Vec<Finding> {
    let everywhere = ["todo!", "unimplemented!", "dbg!", "#[ignore]"];
    let shipped = [".unwrap()", ".unwrap_unchecked("];
    let all = everywhere
        .into_iter()
        .flat_map(|word| places(&source.code, word).map(move |place| (word, place)));
    let ours = shipped
        .into_iter()
        .flat_map(|word| places(&source.shipped, word).map(move |place| (word, place)));
    all.chain(ours)
        .map(|(word, place)| at(&source.code, place, format!("{word} is not for here")))
        .collect()
}

/// Whether a format string shows a value of this name, and not one whose name only begins so.
fn shown(text: &str, name: &str) -> bool {
    let open = format!("{{{name}");
    text.match_indices(&open).any(|(place, _)| {
        let next = text[place + open.len()..].chars().next();
        next.is_some_and(|next| !next.is_alphanumeric() && next != '_')
    })
}

/// A log keeps nobody's id: an erase could not take it out again.
fn logs(source: &Source) -> Vec<Finding> {
    let code = &source.shipped;
    let loud = ["tracing::error!(", "tracing::warn!(", "tracing::info!("];
    let lines = loud
        .into_iter()
        .flat_map(|level| places(code, level).map(move |place| (place, place + level.len() - 1)));
    let mut found = Vec::new();
    for (place, open) in lines {
        let inside = open..closing(code, open);
        for name in ["user", "key"] {
            let (args, text) = (&code[inside.clone()], &source.text[inside.clone()]);
            let field = places(args, name).next().is_some();
            if field || shown(text, name) {
                found.push(at(code, place, format!("a log line names a {name}")));
            }
        }
    }
    found
}

/// Every module opens by saying what it decides.
pub(crate) fn header(source: &Source) -> Vec<Finding> {
    let opens = source.text.starts_with("//! ");
    let what = "the module does not open with //! and what it decides".to_owned();
    if opens {
        Vec::new()
    } else {
        vec![Finding { line: 1, what }]
    }
}

pub(crate) fn findings(source: &Source, layers: &BTreeMap<String, Layer>) -> Vec<Finding> {
    let mut all = layering(source, layers);
    all.extend(owners(source));
    all.extend(purity(source, layers));
    all.extend(sizes(source));
    all.extend(words(source));
    all.extend(logs(source));
    all.extend(header(source));
    all
}
