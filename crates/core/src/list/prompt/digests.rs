//! What the files of an arm's model must hash to: [`Digests`].
//!
//! Decides how hashes are written and compared with those that were found. It reads no file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shop::arms::delay_of;

/// SHA-256 in hexadecimal: of a model's file, or of each file of its folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a SHA-256, or for a folder a table of one by file"
)]
pub enum Digests {
    /// Of the one file.
    File(String),
    /// By the file's path in the folder.
    Folder(BTreeMap<String, String>),
}

impl Digests {
    /// What is wrong with them for a model of this name; `None` if they can be compared.
    pub fn problem(&self, model: &str) -> Option<String> {
        if delay_of(model).is_some() {
            return Some(format!("{model} has no file to compare; remove it"));
        }
        let all: Vec<&String> = match self {
            Self::File(digest) => vec![digest],
            Self::Folder(files) if files.is_empty() => {
                return Some("names no file; remove it, or write a hash by file".into());
            }
            Self::Folder(files) => files.values().collect(),
        };
        let hex = |digest: &str| {
            let known = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            digest.len() == 64 && digest.chars().all(known)
        };
        let bad = all.into_iter().find(|digest| !hex(digest))?;
        Some(format!(
            "{bad:?} is not 64 of 0-9 and a-f, as sha256sum prints them"
        ))
    }

    /// Why these files, by path in the folder (or the one file by an empty path), are not the configured ones.
    pub fn refuse(&self, found: &BTreeMap<String, String>) -> Option<String> {
        let configured = match self {
            Self::File(digest) => BTreeMap::from([(String::new(), digest.clone())]),
            Self::Folder(files) => files.clone(),
        };
        let differs = |(name, digest): (&String, &String)| {
            let path = match name.as_str() {
                "" => "it".to_owned(),
                name => format!("its file {name}"),
            };
            match configured.get(name) {
                None => Some(format!(
                    "{path} has SHA-256 {digest} and is not in sha256, so that it could be anything; add or remove it"
                )),
                Some(wanted) if wanted != digest => Some(format!(
                    "{path} has SHA-256 {digest}, and sha256 says {wanted}: it was replaced or is damaged. Fetch the model \
                     again; if this is the one that you mean, write its hash into sha256 and raise the arm's epoch"
                )),
                Some(_) => None,
            }
        };
        let missing = configured.keys().find(|name| !found.contains_key(*name));
        found.iter().find_map(differs).or_else(|| {
            let name = missing?;
            Some(format!(
                "its file {name} is in sha256 and not in the folder; fetch the model again"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: char) -> String {
        std::iter::repeat_n(of, 64).collect()
    }

    fn files(of: &[(&str, char)]) -> BTreeMap<String, String> {
        let each = of.iter().map(|(name, of)| ((*name).into(), digest(*of)));
        each.collect()
    }

    #[test]
    fn another_missing_or_additional_file_is_refused_by_name_and_hash() {
        let model = Digests::Folder(files(&[("config.json", 'a'), ("model.safetensors", 'b')]));
        let refuse = |found: &[(&str, char)]| model.refuse(&files(found));
        let same = [("config.json", 'a'), ("model.safetensors", 'b')];
        assert_eq!(refuse(&same), None);
        let other = refuse(&[("config.json", 'c'), same[1]]).expect("another hash");
        for part in ["its file config.json", &digest('c'), &digest('a')] {
            assert!(other.contains(part), "{other}");
        }
        let missing = refuse(&same[..1]).expect("a file less");
        assert!(
            missing.starts_with("its file model.safetensors"),
            "{missing}"
        );
        let more = refuse(&[same[0], same[1], ("z.jinja", 'd')]).expect("a file more");
        assert!(more.starts_with("its file z.jinja"), "{more}");
        let one = Digests::File(digest('a'));
        assert_eq!(one.refuse(&files(&[("", 'a')])), None);
        let other = one.refuse(&files(&[("", 'b')])).expect("another hash");
        assert!(other.starts_with("it has SHA-256 bbbb"), "{other}");
    }

    #[test]
    fn only_hashes_of_files_can_be_compared() {
        let one = |text: &str| Digests::File(text.into());
        assert_eq!(one(&digest('0')).problem("m.gguf"), None);
        for bad in ["", "abc", &digest('A'), &digest('g')] {
            let problem = one(bad).problem("m.gguf").expect(bad);
            assert!(problem.contains("sha256sum"), "{problem}");
        }
        assert!(
            one(&digest('0'))
                .problem("table:20ms")
                .is_some_and(|problem| problem.contains("no file"))
        );
        assert!(Digests::Folder(BTreeMap::new()).problem("m").is_some());
    }
}
