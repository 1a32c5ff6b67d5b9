//! Knows which keys exist, from `config/nearshore.toml`, which is also the reference for readers.
//!
//! Invariant: a key is known only if it is in that file. A line `#key = value` (no space after `#`) shows an optional
//! key; `# words` is prose. A test compares the file with [`super::Config`].

use std::collections::BTreeMap;

use toml::{Table, Value};

/// Text of the reference.
pub const TEXT: &str = include_str!("../../config/nearshore.toml");

/// Tables with keys of free choice.
const FREE: [&str; 11] = [
    "kafka.properties",
    "kafka.consumer",
    "kafka.producer",
    "kafka.secret_files",
    "kafka.incarnations",
    "inputs.fields",
    "inputs.set",
    "inputs.types",
    "rules.forbid.attributes",
    "needs.not_again_within",
    // The terms are checked by their own list.
    "arms.weights",
];

/// What may be written at one place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Known {
    /// A value; here that of the reference.
    Leaf(Value),
    /// A table of these keys.
    Table(BTreeMap<String, Known>),
    /// An array of such tables.
    Many(Box<Known>),
    /// A table with any keys.
    Free,
}

impl Known {
    /// The whole reference, optional keys included.
    pub(super) fn all() -> Self {
        let table = shown(TEXT).expect("a test parses the embedded reference");
        Self::table(&table, "")
    }

    fn table(table: &Table, path: &str) -> Self {
        let children = table.iter().map(|(key, value)| {
            let path = dotted(path, key);
            (key.clone(), Self::value(value, &path))
        });
        Self::Table(children.collect())
    }

    fn value(value: &Value, path: &str) -> Self {
        if FREE.contains(&path) {
            return Self::Free;
        }
        match value {
            Value::Table(table) => Self::table(table, path),
            Value::Array(items) if items.iter().any(Value::is_table) => {
                let tables = items.iter().filter_map(Value::as_table);
                let merged = tables.map(|table| Self::table(table, path));
                Self::Many(Box::new(
                    merged.fold(Self::Table(BTreeMap::new()), Self::merge),
                ))
            }
            leaf => Self::Leaf(leaf.clone()),
        }
    }

    /// Merges two examples of one table: the keys of both are known.
    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Table(mut first), Self::Table(second)) => {
                for (key, known) in second {
                    let merged = match first.remove(&key) {
                        Some(before) => before.merge(known),
                        None => known,
                    };
                    first.insert(key, merged);
                }
                Self::Table(first)
            }
            (Self::Many(first), Self::Many(second)) => Self::Many(Box::new(first.merge(*second))),
            (first, _) => first,
        }
    }

    /// The child of that name, if this is a table that has it.
    pub(super) fn child(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Table(children) => children.get(key),
            Self::Many(item) => item.child(key),
            Self::Leaf(_) | Self::Free => None,
        }
    }

    /// Names of the children.
    pub(super) fn keys(&self) -> Vec<&str> {
        match self {
            Self::Table(children) => children.keys().map(String::as_str).collect(),
            Self::Many(item) => item.keys(),
            Self::Leaf(_) | Self::Free => Vec::new(),
        }
    }

    /// Dotted paths of all keys under this one that can be set by one value.
    pub(super) fn settable(&self, path: &str) -> Vec<String> {
        match self {
            Self::Table(children) => children
                .iter()
                .flat_map(|(key, child)| child.settable(&dotted(path, key)))
                .collect(),
            Self::Leaf(_) | Self::Free | Self::Many(_) => vec![path.to_owned()],
        }
    }

    /// What is known at a dotted path.
    pub(super) fn at(&self, path: &str) -> Option<&Self> {
        path.split('.')
            .try_fold(self, |known, key| known.child(key))
    }
}

/// The reference with its optional keys uncommented.
pub(super) fn shown(text: &str) -> Result<Table, toml::de::Error> {
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n").parse()
}

/// `path.key`.
pub(super) fn dotted(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_terms_of_weights_by_hand_are_not_limited_to_those_of_the_reference() {
        assert_eq!(Known::all().at("arms.weights"), Some(&Known::Free));
    }
}
