//! Need terms: words for what people need, each with the products or categories that serve it.
//!
//! Decides which products a need term stands for in a catalogue. Invariant: a term stands for products and categories
//! that the table names and for no others, and no text is a surface of two terms. It does not know how texts are
//! matched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::matcher::Form;
use crate::shop::catalogue::Catalogue;
use crate::text::normalise;

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// The term.
    term: String,
    /// Other ways to say it, in any language.
    #[serde(default)]
    aliases: Vec<String>,
    /// Ids of the products that serve it.
    #[serde(default)]
    products: Vec<String>,
    /// Categories whose products serve it.
    #[serde(default)]
    categories: Vec<String>,
}

/// The table of need terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeedTable {
    lines: Vec<Line>,
}

/// Why a table cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct NeedError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

impl NeedTable {
    /// Reads a table: a JSON object a line, with `term`, and `products` or `categories`; `aliases` are optional.
    pub fn read(text: &str) -> Result<Self, NeedError> {
        let mut lines: Vec<Line> = Vec::new();
        let mut known: BTreeMap<Vec<String>, String> = BTreeMap::new();
        for (nth, row) in text.lines().enumerate() {
            if row.trim().is_empty() {
                continue;
            }
            let wrong = |what: String| NeedError {
                line: nth + 1,
                what,
            };
            let line: Line = serde_json::from_str(row).map_err(|error| wrong(error.to_string()))?;
            let line = Line {
                term: normal(&line.term),
                aliases: line.aliases.iter().map(|alias| normal(alias)).collect(),
                products: line.products.iter().map(|id| normal(id)).collect(),
                categories: line.categories.iter().map(|it| normal(it)).collect(),
            };
            if line.products.is_empty() && line.categories.is_empty() {
                let what = "has no products and no categories; give one of them";
                return Err(wrong(format!("{:?} {what}", line.term)));
            }
            for surface in std::iter::once(&line.term).chain(&line.aliases) {
                let words = Form::of(surface).words;
                if words.is_empty() {
                    return Err(wrong(format!("{surface:?} has no letter and no digit")));
                }
                if let Some(other) = known.insert(words, line.term.clone())
                    && other != line.term
                {
                    let what = "is also said for";
                    return Err(wrong(format!(
                        "{surface:?} {what} {other:?}; give it to one"
                    )));
                }
            }
            if lines.iter().any(|other| other.term == line.term) {
                return Err(wrong(format!("{:?} has a line already", line.term)));
            }
            lines.push(line);
        }
        Ok(Self { lines })
    }

    /// The table as text; equal tables give equal texts.
    pub fn write(&self) -> String {
        let lines = self.lines.iter();
        lines
            .map(|line| serde_json::to_string(line).expect("texts are JSON") + "\n")
            .collect()
    }

    /// Number of terms.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no term.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The name of a term.
    pub(crate) fn name(&self, need: u32) -> &str {
        let line = self.lines.get(need as usize);
        line.map_or("", |line| &line.term)
    }

    /// All ways to say each term.
    pub(super) fn surfaces(&self) -> impl Iterator<Item = (u32, &str)> {
        let lines = (0..).zip(&self.lines);
        lines.flat_map(|(nth, line)| {
            let all = std::iter::once(&line.term).chain(&line.aliases);
            all.map(move |text| (nth, text.as_str()))
        })
    }

    /// The products of each term in a catalogue, ascending.
    pub fn bind(&self, catalogue: &Catalogue) -> NeedProducts {
        let mut of: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); self.lines.len()];
        let mut terms: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (nth, line) in self.lines.iter().enumerate() {
            let products = line.products.iter().filter_map(|id| catalogue.by_pu(id));
            of[nth].extend(products.map(|pu| pu.0));
            for category in &line.categories {
                terms.entry(category).or_default().push(nth);
            }
        }
        for (nth, pu) in (0..).zip(catalogue.pus()) {
            let category = pu.category.as_deref().and_then(|it| terms.get(it));
            for term in category.into_iter().flatten() {
                of[*term].insert(nth);
            }
        }
        let sorted = of.into_iter().map(|set| set.into_iter().collect());
        NeedProducts {
            of: sorted.collect(),
        }
    }

    /// What a catalogue does not have of the products and categories of the table, each with its term.
    pub fn unmatched(&self, catalogue: &Catalogue) -> Vec<(String, String)> {
        let categories: BTreeSet<&str> = catalogue
            .pus()
            .iter()
            .filter_map(|pu| pu.category.as_deref())
            .collect();
        let mut unmatched = Vec::new();
        for line in &self.lines {
            let products = line.products.iter();
            let products = products.filter(|id| catalogue.by_pu(id).is_none());
            let lacking = line.categories.iter();
            let lacking = lacking.filter(|it| !categories.contains(it.as_str()));
            unmatched.extend(
                products
                    .map(|id| format!("no product has the id {id:?}"))
                    .chain(lacking.map(|it| format!("no product has the category {it:?}")))
                    .map(|what| (line.term.clone(), what)),
            );
        }
        unmatched
    }
}

/// The products of each need term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeedProducts {
    of: Vec<Arc<[u32]>>,
}

impl NeedProducts {
    /// The products of a term, ascending; none of one that is not in the table.
    pub(crate) fn of(&self, need: u32) -> &[u32] {
        self.of.get(need as usize).map_or(&[], |products| products)
    }
}

fn normal(text: &str) -> String {
    normalise(text).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shop::catalogue::tests::sku;

    #[test]
    fn a_term_stands_for_its_products_and_those_of_its_categories() {
        let table = NeedTable::read(
            "{\"term\":\"headache\",\"aliases\":[\"头痛\"],\"products\":[\"MILK\",\"none\"],\"categories\":[\"food\"]}\n\n\
             {\"term\":\"itch\",\"categories\":[\"cream\"]}\n",
        )
        .expect("a table");
        let catalogue = Catalogue::load(vec![
            sku("b", "BREAD", json!({})),
            sku("m", "MILK", json!({})),
        ]);
        let bound = table.bind(&catalogue);
        assert_eq!(
            (bound.of(0), bound.of(1), bound.of(9)),
            (&[0, 1][..], &[][..], &[][..])
        );
        assert_eq!(
            (table.len(), table.name(0), table.name(9)),
            (2, "headache", "")
        );
        let said: Vec<String> = table
            .unmatched(&catalogue)
            .into_iter()
            .map(|it| it.1)
            .collect();
        assert_eq!(
            said,
            [
                "no product has the id \"none\"",
                "no product has the category \"cream\""
            ]
        );
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named() {
        for (text, expected) in [
            ("{", "line 1: EOF"),
            ("\n{\"term\":\"a\"}", "line 2: \"a\" has no products"),
            (
                "{\"term\":\"!\",\"products\":[\"x\"]}",
                "line 1: \"!\" has no letter",
            ),
            (
                "{\"term\":\"a\",\"product\":[\"x\"]}",
                "line 1: unknown field",
            ),
            (
                "{\"term\":\"a\",\"products\":[\"x\"]}\n{\"term\":\"b\",\"aliases\":[\"A\"],\"products\":[\"x\"]}",
                "line 2: \"A\" is also said for \"a\"",
            ),
            (
                "{\"term\":\"a\",\"products\":[\"x\"]}\n{\"term\":\"a\",\"products\":[\"y\"]}",
                "line 2: \"a\" has a line already",
            ),
        ] {
            let error = NeedTable::read(text).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
