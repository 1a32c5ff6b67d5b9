//! The mapping file: which products titles have, as JSON lines that people read and edit.
//!
//! The first line has the labels that are cut off, each other line a product, or the product of one SKU. Invariant:
//! `read(write(map)) == map`; a file with a line that cannot be used is refused whole, with the line; no key is in two
//! products. It does not know how products were proposed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::propose::key_of;
use super::title::{Labels, NAME_MAX, Untitled};
use crate::text::normalise;

/// Layout of the file.
const VERSION: u32 = 1;

/// A product.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its id, which stays when it is renamed.
    pub pu_id: String,
    /// Its name.
    pub pu: String,
    /// The category of most of its SKUs; only for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Keys of titles that are this product. Moving one to another line moves its SKUs.
    pub keys: Vec<String>,
    /// Number of SKUs when the map was made.
    #[serde(default)]
    pub skus: usize,
    /// From 0 to 1: how alike its titles are; 0.5 and less if it may be another product.
    #[serde(default)]
    pub confidence: f64,
    /// Keys of products that this one may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsure: Vec<String>,
    /// One of its titles.
    #[serde(default)]
    pub example: String,
}

impl Line {
    fn by_key(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.keys.iter().map(move |key| (key.as_str(), self))
    }

    /// The line without what a new run counts again.
    pub(super) fn emptied(&self) -> Self {
        Self {
            skus: 0,
            confidence: 0.0,
            unsure: Vec::new(),
            ..self.clone()
        }
    }

    /// Adds what a new run found; name and id stay.
    pub(super) fn add(&mut self, found: Self) {
        let keys: BTreeSet<String> = self.keys.drain(..).chain(found.keys).collect();
        self.keys = keys.into_iter().collect();
        let all = (self.skus + found.skus).max(1) as f64;
        let sum = self.confidence * self.skus as f64 + found.confidence * found.skus as f64;
        self.confidence = (sum / all * 100.0).round() / 100.0;
        self.skus += found.skus;
        self.unsure.extend(found.unsure);
        if self.example.is_empty() {
            self.example = found.example;
        }
    }
}

/// The product of one SKU, whatever its title.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its id.
    pub pu_id: String,
    /// Its name.
    pub pu: String,
}

/// The whole map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map {
    /// What is cut off titles.
    pub labels: Labels,
    /// Products.
    pub lines: Vec<Line>,
    /// Products of SKUs that a person set.
    pub skus: BTreeMap<String, Named>,
}

/// A line that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct MapError {
    /// The line, from 1.
    pub line: usize,
    what: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    naming: u32,
    brands: BTreeSet<String>,
    tails: BTreeSet<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfSku {
    sku: String,
    pu: String,
    #[serde(default)]
    pu_id: Option<String>,
}

/// The id of a product by the key that it was first proposed for.
pub(super) fn id_of(key: &str) -> String {
    format!("n-{}", &hex::encode(Sha256::digest(key.as_bytes()))[..12])
}

impl Map {
    /// The map as text; the same map gives the same text.
    pub fn write(&self) -> String {
        let json =
            |value: Result<String, serde_json::Error>| value.expect("texts and numbers are JSON");
        let Labels { brands, tails } = self.labels.clone();
        let mut text = json(serde_json::to_string(&Head {
            naming: VERSION,
            brands,
            tails,
        }));
        text.push('\n');
        for line in &self.lines {
            text += &json(serde_json::to_string(line));
            text.push('\n');
        }
        for (sku, Named { pu, pu_id }) in self.skus.clone() {
            text += &json(serde_json::to_string(&OfSku {
                sku,
                pu,
                pu_id: Some(pu_id),
            }));
            text.push('\n');
        }
        text
    }

    /// Reads a map.
    pub fn read(text: &str) -> Result<Self, MapError> {
        let mut map = Self::default();
        let mut keys: BTreeMap<String, usize> = BTreeMap::new();
        let mut begun = false;
        for (line, json) in text
            .lines()
            .enumerate()
            .filter(|(_, json)| !json.trim().is_empty())
        {
            let line = line + 1;
            let wrong = |what: String| MapError { line, what };
            if !begun {
                let head = serde_json::from_str::<Head>(json).map_err(|e| {
                    wrong(format!(
                        "not the first line of a map of `nearshore catalog name`: {e}"
                    ))
                })?;
                if head.naming != VERSION {
                    return Err(wrong(format!(
                        "version {} is not known, only {VERSION}",
                        head.naming
                    )));
                }
                map.labels = Labels {
                    brands: head.brands,
                    tails: head.tails,
                };
                begun = true;
                continue;
            }
            map.add(json, &mut |key| keys.insert(key.to_owned(), line))
                .map_err(wrong)?;
        }
        match begun {
            true => Ok(map),
            false => Err(MapError {
                line: 1,
                what: "the file is empty".into(),
            }),
        }
    }

    /// Adds a line; `taken` says on which line a key was before.
    fn add(
        &mut self,
        json: &str,
        taken: &mut dyn FnMut(&str) -> Option<usize>,
    ) -> Result<(), String> {
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if value.get("sku").is_some() {
            let OfSku { sku, pu, pu_id } =
                serde_json::from_value(value).map_err(|e| e.to_string())?;
            let pu = name(&pu)?;
            let pu_id = pu_id.unwrap_or_else(|| pu.clone());
            self.skus.insert(sku, Named { pu_id, pu });
            return Ok(());
        }
        let mut line: Line = serde_json::from_value(value).map_err(|e| e.to_string())?;
        line.pu = name(&line.pu)?;
        if line.pu_id.is_empty() {
            return Err("\"pu_id\" is empty; take any text that no other product has".into());
        }
        for key in &line.keys {
            if let Some(before) = taken(key) {
                return Err(format!(
                    "the key {key:?} is on line {before} as well; leave it on one of them"
                ));
            }
        }
        self.lines.push(line);
        Ok(())
    }

    /// The products by their keys.
    pub(super) fn by_key(&self) -> BTreeMap<&str, &Line> {
        self.lines.iter().flat_map(Line::by_key).collect()
    }
}

/// A product's name in its normal form, if it can be one.
fn name(text: &str) -> Result<String, String> {
    let name = normalise(text).into_owned();
    match name.len() {
        0 => Err("\"pu\" is empty".into()),
        length if length > NAME_MAX => {
            Err(format!("\"pu\" has {length} bytes, at most {NAME_MAX}"))
        }
        _ => Ok(name),
    }
}

/// Gives SKUs their products.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Naming {
    labels: Labels,
    by_key: BTreeMap<String, Named>,
    by_sku: BTreeMap<String, Named>,
}

impl Naming {
    /// By a map.
    pub fn new(map: Map) -> Self {
        let named = |line: Line| {
            let named = Named {
                pu_id: line.pu_id,
                pu: line.pu,
            };
            line.keys.into_iter().map(move |key| (key, named.clone()))
        };
        Self {
            labels: map.labels,
            by_key: map.lines.into_iter().flat_map(named).collect(),
            by_sku: map.skus,
        }
    }

    /// The product of a SKU: the one set for it, or that of its title's key; a title of a new key is a product of its
    /// own, with the id that `nearshore catalog name` will give it. `None` for a SKU without a title.
    pub fn name(&self, row: &Untitled) -> Option<Named> {
        if let Some(named) = self.by_sku.get(&row.sku) {
            return Some(named.clone());
        }
        let core = self.labels.core(row);
        if core.is_empty() {
            return None;
        }
        let key = key_of(&core);
        let known = self.by_key.get(&key).cloned();
        Some(known.unwrap_or_else(|| Named {
            pu_id: id_of(&key),
            pu: core,
        }))
    }
}
