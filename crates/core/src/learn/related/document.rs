//! The neighbours of a SKU as clients read them: one JSON document a SKU.
//!
//! Invariant: the columns of a list have one length, and equal neighbours give equal text. A SKU that too few users
//! bought has the document of its product. It does not know where documents are kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::skus::{Basis, Neighbour};

/// Schema number of a document.
const SCHEMA: u32 = 1;

/// A list of neighbours in columns, best first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Columns {
    /// SKU ids.
    pub skus: Vec<String>,
    /// Probabilities divided by a power of the SKU's share: they compare entries of one list.
    pub scores: Vec<f32>,
    /// The level at which each pair was counted.
    pub basis: Vec<Basis>,
}

/// The neighbours of a SKU, or of a product's SKUs without a document of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NeighbourDoc {
    /// Schema number.
    schema: u32,
    /// SKU id; absent in the document of a product.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// PU id.
    pub pu: String,
    /// End of the log that it was counted from, in milliseconds since 1970.
    pub until: i64,
    /// SKUs of the same product.
    pub substitutes: Columns,
    /// SKUs of other products.
    pub complements: Columns,
}

/// A text that is no document of neighbours.
#[derive(Debug, thiserror::Error)]
pub enum NeighbourDocError {
    /// Not the JSON of a document.
    #[error(
        "the document of neighbours does not parse: {0}; run `nearshore align --neighbours-redis` again"
    )]
    Json(#[from] serde_json::Error),
    /// Another release wrote it.
    #[error(
        "the document of neighbours has schema {0}, this release reads {SCHEMA}; run `nearshore align` again"
    )]
    Schema(u32),
}

impl Columns {
    /// The list of `neighbours`, whose ids `id` knows; scores have four digits.
    pub fn new(neighbours: &[Neighbour], id: impl Fn(u32) -> String) -> Self {
        let mut columns = Self::default();
        for neighbour in neighbours {
            columns.skus.push(id(neighbour.sku));
            let digits = format!("{:.3e}", neighbour.score);
            columns
                .scores
                .push(digits.parse().unwrap_or(neighbour.score));
            columns.basis.push(neighbour.basis);
        }
        columns
    }

    /// Keeps the SKUs that `is_kept` names.
    fn retain(&mut self, is_kept: &impl Fn(&str) -> bool) {
        let kept: Vec<bool> = self.skus.iter().map(|sku| is_kept(sku)).collect();
        let (mut skus, mut scores, mut basis) = (kept.iter(), kept.iter(), kept.iter());
        self.skus.retain(|_| skus.next() == Some(&true));
        self.scores.retain(|_| scores.next() == Some(&true));
        self.basis.retain(|_| basis.next() == Some(&true));
    }

    fn truncate(&mut self, len: usize) {
        self.skus.truncate(len);
        self.scores.truncate(len);
        self.basis.truncate(len);
    }
}

impl NeighbourDoc {
    /// The document of a SKU, or of a product.
    pub fn new(
        (sku, pu): (Option<&str>, &str),
        until: i64,
        [substitutes, complements]: [Columns; 2],
    ) -> Self {
        Self {
            schema: SCHEMA,
            sku: sku.map(str::to_owned),
            pu: pu.to_owned(),
            until,
            substitutes,
            complements,
        }
    }

    /// Reads a document.
    pub fn parse(text: &str) -> Result<Self, NeighbourDocError> {
        /// What every schema has.
        #[derive(Deserialize)]
        struct Form {
            schema: u32,
        }
        let Form { schema } = serde_json::from_str(text)?;
        if schema != SCHEMA {
            return Err(NeighbourDocError::Schema(schema));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The document as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and finite numbers")
    }

    /// The document of a product as that of one of its SKUs.
    pub fn for_sku(&self, sku: &str) -> Self {
        let mut doc = self.clone();
        doc.sku = Some(sku.to_owned());
        doc.substitutes.retain(&|other| other != sku);
        doc
    }

    /// All SKUs that are listed.
    pub fn skus(&self) -> impl Iterator<Item = &String> {
        self.substitutes.skus.iter().chain(&self.complements.skus)
    }

    /// Leaves out SKUs, such as those that are sold out.
    pub fn strip(&mut self, is_gone: impl Fn(&str) -> bool) {
        self.substitutes.retain(&|sku| !is_gone(sku));
        self.complements.retain(&|sku| !is_gone(sku));
    }

    /// Keeps the first entries of both lists.
    pub fn truncate(&mut self, len: usize) {
        self.substitutes.truncate(len);
        self.complements.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc() -> NeighbourDoc {
        let of = |sku, score, basis| Neighbour { sku, score, basis };
        let substitutes = [of(1, 0.123_456, Basis::Sku), of(2, 1e-9, Basis::Product)];
        let lists = [&substitutes[..], &[of(3, 2.0, Basis::Kind)]];
        let lists = lists.map(|list| Columns::new(list, |sku| format!("s{sku}")));
        NeighbourDoc::new((None, "MILK"), 7, lists)
    }

    #[test]
    fn a_document_is_read_as_it_was_written() {
        let text = doc().to_json();
        assert_eq!(
            text,
            r#"{"schema":1,"pu":"MILK","until":7,"substitutes":{"skus":["s1","s2"],"scores":[0.1235,1e-9],"basis":["sku","product"]},"complements":{"skus":["s3"],"scores":[2.0],"basis":["kind"]}}"#
        );
        assert_eq!(NeighbourDoc::parse(&text).expect("it was written"), doc());
        let newer = text.replace("\"schema\":1", "\"schema\":2");
        let error = NeighbourDoc::parse(&newer).expect_err("a newer schema");
        assert!(error.to_string().contains("schema 2"), "{error}");
        assert!(NeighbourDoc::parse("{").is_err());
    }

    #[test]
    fn a_sku_of_a_product_is_no_substitute_of_itself_and_what_is_gone_is_left_out() {
        let mut own = doc().for_sku("s2");
        assert_eq!(
            (own.sku.as_deref(), own.substitutes.skus.len()),
            (Some("s2"), 1)
        );
        own.strip(|sku| sku == "s3");
        assert!(own.complements.skus.is_empty() && own.complements.scores.is_empty());
        own.truncate(0);
        assert_eq!(own.skus().count(), 0);
    }
}
