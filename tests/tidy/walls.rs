//! The rules, one function each: each takes sources and returns findings.

use std::collections::{BTreeMap, BTreeSet};

use super::scan::{Source, closing, identifier, places, word_byte};

const FILE_LINES_MAX: usize = 600;

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

/// Files are at most 600 lines long. Clippy checks functions and their parameters, not files.
fn sizes(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![Finding {
        line: lines,
        what: format!("{lines} lines, at most {FILE_LINES_MAX}"),
    }]
}

/// Whether a format string shows a value of exactly this name.
fn shown(text: &str, name: &str) -> bool {
    let open = format!("{{{name}");
    text.match_indices(&open).any(|(place, _)| {
        let next = text[place + open.len()..].chars().next();
        next.is_some_and(|next| !next.is_alphanumeric() && next != '_')
    })
}

/// Log lines do not name a user: an erase could not remove the id from them.
fn logs(source: &Source) -> Vec<Finding> {
    let code = &source.shipped;
    let levels = ["tracing::error!(", "tracing::warn!(", "tracing::info!("];
    let lines = levels
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

/// Every module begins with `//!` and what it decides.
pub(crate) fn header(source: &Source) -> Vec<Finding> {
    if source.text.starts_with("//! ") {
        return Vec::new();
    }
    let what = "the module does not begin with //! and what it decides".to_owned();
    vec![Finding { line: 1, what }]
}

/// Members do not import each other: what they share is in `src/members` itself.
fn members(source: &Source) -> Vec<Finding> {
    let names = ["ingest", "generate", "stock"];
    let inside = |name: &&&str| {
        let path = source.path.strip_prefix("src/members/");
        path.is_some_and(|path| path.split(['/', '.']).next() == Some(**name))
    };
    let Some(own) = names.iter().find(inside) else {
        return Vec::new();
    };
    let others = names.iter().filter(|name| name != &own);
    others
        .flat_map(|other| {
            let path = format!("members::{other}");
            let found: Vec<usize> = places(&source.shipped, &path).collect();
            found
                .into_iter()
                .map(move |place| (place, format!("{own} imports {other}")))
        })
        .map(|(place, what)| at(&source.shipped, place, what))
        .collect()
}

pub(crate) fn findings(source: &Source) -> Vec<Finding> {
    let mut all = sizes(source);
    all.extend(logs(source));
    all.extend(header(source));
    all.extend(members(source));
    all
}

/// Paths that a file imports, each as parts of an absolute path in its crate.
fn imports(source: &Source) -> Vec<Vec<String>> {
    let code = &source.shipped;
    let own = source.parts();
    let mut found = Vec::new();
    for place in places(code, "use ") {
        let end = code[place..].find(';').map_or(code.len(), |n| place + n);
        for path in tree(&code[place + 4..end]) {
            found.extend(absolute(&own, path));
        }
    }
    for place in places(code, "crate::") {
        let path = code[place..]
            .split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
            .next()
            .unwrap_or_default();
        found.extend(absolute(
            &own,
            path.split("::").map(str::to_owned).collect(),
        ));
    }
    found
}

/// Paths of a use tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn tree(text: &str) -> Vec<Vec<String>> {
    let text = text.trim();
    let Some(open) = text.find('{') else {
        let path = text.split(" as ").next().unwrap_or(text);
        return vec![
            path.split("::")
                .map(|part| part.trim().to_owned())
                .collect(),
        ];
    };
    let head: Vec<String> = text[..open]
        .split("::")
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    let inner = &text[open + 1..text.rfind('}').unwrap_or(text.len())];
    let (mut depth, mut start, mut all) = (0, 0, Vec::new());
    for (place, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let piece = &inner[start..place];
                start = place + 1;
                if !piece.trim().is_empty() {
                    all.extend(
                        tree(piece)
                            .into_iter()
                            .map(|rest| [head.clone(), rest].concat()),
                    );
                }
            }
            _ => {}
        }
    }
    all
}

fn absolute(own: &[String], path: Vec<String>) -> Option<Vec<String>> {
    let ups = path.iter().take_while(|part| *part == "super").count();
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "super" => Some([&own[..own.len().checked_sub(ups)?], &path[ups..]].concat()),
        _ => None,
    }
}

/// Circles of imports between files of different folders.
pub(crate) fn circles(sources: &[Source]) -> Vec<String> {
    let mut all = Vec::new();
    let crates: BTreeSet<&str> = sources.iter().filter_map(Source::home).collect();
    for home in crates {
        let files: BTreeMap<Vec<String>, &Source> = sources
            .iter()
            .filter(|source| source.home() == Some(home))
            .map(|source| (source.parts(), source))
            .collect();
        let target = |path: &[String]| {
            (0..=path.len())
                .rev()
                .find_map(|n| files.get(&path[..n]).map(|it| it.path.as_str()))
        };
        let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for source in files.values() {
            let targets = imports(source);
            let targets = targets.iter().filter_map(|path| target(path));
            edges.insert(
                &source.path,
                targets.filter(|it| *it != source.path).collect(),
            );
        }
        for circle in strong(&edges) {
            let folders: BTreeSet<&str> = circle
                .iter()
                .map(|path| path.rsplit_once('/').map_or("", |(folder, _)| folder))
                .collect();
            if folders.len() > 1 {
                all.push(format!(
                    "import circle: {}",
                    circle.into_iter().collect::<Vec<_>>().join(", ")
                ));
            }
        }
    }
    all
}

/// Groups of files that import each other, directly or not. Quadratic, for a few hundred files.
fn strong<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<BTreeSet<&'a str>> {
    let reach = |from: &'a str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(next) = open.pop() {
            for to in edges.get(next).into_iter().flatten() {
                if seen.insert(*to) {
                    open.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|file| (*file, reach(file))).collect();
    let mut groups: BTreeSet<BTreeSet<&str>> = BTreeSet::new();
    for (file, all) in &reached {
        if all.contains(file) {
            let group = all.iter().filter(|other| reached[*other].contains(file));
            groups.insert(group.copied().collect());
        }
    }
    groups.into_iter().collect()
}

/// Public items of a library crate that no other crate, test or bench names.
pub(crate) fn unused(sources: &[Source]) -> Vec<(String, Finding)> {
    let mut words: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        let own = words.entry(source.unit()).or_default();
        let all = source
            .code
            .split(|c: char| !c.is_alphanumeric() && c != '_');
        own.extend(all.filter(|word| !word.is_empty()));
    }
    let mut found = Vec::new();
    for source in sources.iter().filter(|it| it.is_library()) {
        let own = sources.iter().filter(|it| it.unit() == source.unit());
        let shown: String = own.flat_map(|it| signatures(&it.shipped)).collect();
        for (place, name) in public(&source.shipped) {
            // A type in the signature of another public item has to be public.
            if name.starts_with(char::is_uppercase) && places(&shown, name).count() > 1 {
                continue;
            }
            let mut others = words.iter().filter(|(unit, _)| **unit != source.unit());
            if !others.any(|(_, words)| words.contains(name)) {
                let what = format!("{name} is pub, and no other crate names it");
                found.push((source.path.clone(), at(&source.shipped, place, what)));
            }
        }
    }
    found
}

/// What stands between each `pub` and the end of its declaration.
fn signatures(code: &str) -> Vec<&str> {
    let declared = |place: usize| {
        let rest = &code[place..];
        let end = rest.find(['{', ';']).unwrap_or(rest.len());
        &rest[..end + 1.min(rest.len() - end)]
    };
    // An associated type is as public as the trait that has it.
    let associated = places(code, "type ");
    places(code, "pub ")
        .chain(associated)
        .map(declared)
        .collect()
}

fn public(code: &str) -> Vec<(usize, &str)> {
    let kinds = [
        "fn ", "struct ", "enum ", "trait ", "const ", "static ", "type ",
    ];
    places(code, "pub ")
        .filter_map(|place| {
            let mut rest = &code[place + 4..];
            for word in ["async ", "unsafe ", "const fn "] {
                rest = rest.strip_prefix(word).unwrap_or(rest);
            }
            let head = &code[place + 4..];
            let kind = kinds.iter().find(|kind| rest.starts_with(**kind));
            let name = match kind {
                Some(kind) => identifier(&rest[kind.len()..]),
                None if head.starts_with("const fn ") => identifier(rest),
                None => return None,
            };
            name.bytes().next().filter(|byte| word_byte(*byte))?;
            Some((place, name))
        })
        .collect()
}
