//! Which keys exist: read from `config/nearshore.toml`, which is the reference for people too.
//!
//! Invariant: a key is known iff it stands there. A line `#key = value` (no space after `#`) shows an
//! optional key; `# words` is prose. A test holds the file against [`super::Config`].

use std::collections::BTreeMap;

use toml::{Table, Value};

/// The reference itself.
pub const TEXT: &str = include_str!("../../config/nearshore.toml");

/// Tables whose keys the writer chooses.
const FREE: [&str; 7] = [
    "kafka.properties",
    "kafka.consumer",
    "kafka.producer",
    "kafka.secret_files",
    "kafka.incarnations",
    "rules.forbid.attributes",
    "needs.not_again_within",
];

/// What may stand at one place.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Known {
    /// A value; the one of the reference.
    Leaf(Value),
    /// A table of these keys.
    Table(BTreeMap<String, Known>),
    /// An array of such tables.
    Many(Box<Known>),
    /// A table of any keys.
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

    /// Two examples of the same thing show the keys of both.
    fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Table(mut ours), Self::Table(theirs)) => {
                for (key, theirs) in theirs {
                    let merged = match ours.remove(&key) {
                        Some(ours) => ours.merge(theirs),
                        None => theirs,
                    };
                    ours.insert(key, merged);
                }
                Self::Table(ours)
            }
            (Self::Many(ours), Self::Many(theirs)) => Self::Many(Box::new(ours.merge(*theirs))),
            (ours, _) => ours,
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

    /// What stands at a dotted path.
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
