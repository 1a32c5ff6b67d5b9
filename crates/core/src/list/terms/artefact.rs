//! An artefact: what `nearshore align` learned from a shop's log, as a folder of files.
//!
//! Decides the content of the files and whether they are what was written. Invariant: an artefact is read whole or
//! refused: a file that is missing, cut short or changed, a newer schema, a term of another definition. Equal content
//! gives an equal hash. It does not know where files are, nor the catalogue that is served.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::learn::choice::{ChoiceError, ChoiceModel};
use crate::learn::neighbours::NeighbourTable;
use crate::learn::product_table::ProductTable;
use crate::learn::repeat::RepeatTable;
use crate::learn::walk::WalkTable;
use crate::list::terms::{BUCKETS, Gains, WeightError, Weights, term};
use crate::names::head::Head;
use crate::text::DecodeError;
use crate::text::vectors::Vectors;

/// Schema number of an artefact.
const SCHEMA: u32 = 1;

/// File with weights, and the hashes of the other files.
pub const MANIFEST: &str = "artefact.json";

/// File with the tables of terms.
const TABLES: &str = "tables.json";

/// File with the reference prompts, in the form of `nearshore calibrate`.
const REFERENCES: &str = "references.json";

/// File with vectors of texts: of the catalogue's names, and of profile values that several users have.
const VECTORS: &str = "vectors.nstv";

/// File with the model's table of products.
const TABLE: &str = "table.nspt";

/// File with the head.
const HEAD: &str = "head.nshd";

/// File with the choice of SKUs under a name.
const CHOICE: &str = "choice.json";

/// File with the neighbours of SKUs, a JSON document a line. Members do not read it.
pub(crate) const NEIGHBOURS: &str = "neighbours.jsonl";

/// Reason why an artefact cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArtefactError {
    /// A file that is not the JSON that align writes.
    #[error("{file}: {source}; run `nearshore align` again")]
    Json {
        /// The file.
        file: &'static str,
        /// Position and cause.
        source: serde_json::Error,
    },
    /// Another release wrote it.
    #[error("{MANIFEST} has schema {found}, this release reads {SCHEMA}; {}", advice(*found))]
    Schema {
        /// Schema found.
        found: u32,
    },
    /// A file is not the one that was written.
    #[error(
        "{file} is not the file that `nearshore align` wrote: it is missing, cut short or changed; copy the folder again"
    )]
    Changed {
        /// The file.
        file: String,
    },
    /// A term whose definition changed.
    #[error(
        "its weights were fitted to version {fitted} of the term {name:?}, this release has {known}; run `nearshore align` again"
    )]
    Term {
        /// The term.
        name: String,
        /// Version that weights were fitted to.
        fitted: u32,
        /// Version of this release, or none.
        known: String,
    },
    /// A choice of SKUs that cannot be used.
    #[error("{CHOICE}: {0}; run `nearshore align` again")]
    Choice(#[from] ChoiceError),
    /// Weights that cannot be used.
    #[error("{MANIFEST}: {0}")]
    Weights(#[from] WeightError),
    /// Weights for another number of buckets.
    #[error("{MANIFEST}: weights for {found} buckets of visible history, not {}; run `nearshore align` again", BUCKETS.len())]
    Buckets {
        /// Number found.
        found: usize,
    },
    /// Tables that contradict each other.
    #[error("{TABLES}: {0}; run `nearshore align` again")]
    Tables(String),
    /// A file of vectors or of a table that this release cannot read.
    #[error("{file}: {source}; run `nearshore align` again")]
    Bytes {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        source: DecodeError,
    },
}

fn advice(found: u32) -> &'static str {
    match found > SCHEMA {
        true => "upgrade nearshore, or run its `align` again",
        false => "run `nearshore align` again",
    }
}

/// How an artefact was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Release of nearshore.
    pub release: String,
    /// Time up to which the log was read, milliseconds since 1970.
    pub until: i64,
    /// Number of users in the log.
    pub users: usize,
    /// Number of purchases in the log.
    pub purchases: usize,
    /// Seed of splits and samples.
    pub seed: u64,
}

/// The file [`MANIFEST`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    schema: u32,
    /// How it was made.
    pub made: Made,
    /// Version of each term that was fitted.
    terms: BTreeMap<String, u32>,
    /// Weight per term, for each bucket of visible history.
    weights: Vec<BTreeMap<String, f64>>,
    /// What the model adds in each bucket; absent where no model was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gains: Option<Gains>,
    /// SHA-256 of each other file.
    files: BTreeMap<String, String>,
}

/// The file [`TABLES`]: rows and columns are positions in `products`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tables {
    /// PU ids.
    pub products: Vec<String>,
    /// Rates at which products are bought again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<RepeatTable>,
    /// Nearest products.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<NeighbourTable>,
    /// Random walks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub walk: Option<WalkTable>,
    /// Terms that say the same to everyone: a number per product.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, Vec<f32>>,
}

/// An artefact, read or to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Artefact {
    /// Hash of its content, 12 hex digits.
    pub hash: String,
    /// How it was made.
    pub made: Made,
    /// Weights of the terms.
    pub weights: Weights,
    /// Tables of the terms.
    pub tables: Tables,
    /// Text of the reference prompts, if it has any.
    pub references: Option<String>,
    /// Vectors of texts, if an encoder was given.
    pub vectors: Option<Arc<Vectors>>,
    /// The model's table of products, if one was built.
    pub table: Option<Arc<ProductTable>>,
    /// The head, if one was trained.
    pub head: Option<Arc<Head>>,
    /// How SKUs under a name are chosen, if what was learned is better than the default.
    pub choice: Option<Arc<ChoiceModel>>,
}

/// Parts of an artefact that not every one has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Optional<'a> {
    /// Text of the reference prompts.
    pub references: Option<&'a str>,
    /// Vectors of texts.
    pub vectors: Option<&'a Vectors>,
    /// The model's table of products.
    pub table: Option<&'a ProductTable>,
    /// The head on the model's hidden states.
    pub head: Option<&'a Head>,
    /// How SKUs under a name are chosen.
    pub choice: Option<&'a ChoiceModel>,
    /// Documents of the neighbours of SKUs, one a line.
    pub neighbours: Option<&'a str>,
    /// What the model adds in each bucket.
    pub gains: Option<Gains>,
}

/// The files of an artefact with their content, and the hash that names their folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Hash of the content, 12 hex digits.
    pub hash: String,
    /// Content by file name.
    pub content: BTreeMap<&'static str, Vec<u8>>,
}

/// Writes the files of an artefact.
pub fn write(
    made: &Made,
    weights: &[BTreeMap<String, f64>; BUCKETS.len()],
    tables: &Tables,
    optional: Optional<'_>,
) -> Files {
    let mut content = BTreeMap::new();
    content.insert(TABLES, json(tables).into_bytes());
    if let Some(references) = optional.references {
        content.insert(REFERENCES, references.as_bytes().to_vec());
    }
    if let Some(vectors) = optional.vectors {
        content.insert(VECTORS, vectors.encode());
    }
    if let Some(table) = optional.table {
        content.insert(TABLE, table.encode());
    }
    if let Some(head) = optional.head {
        content.insert(HEAD, head.encode());
    }
    if let Some(choice) = optional.choice {
        content.insert(CHOICE, json(choice).into_bytes());
    }
    if let Some(neighbours) = optional.neighbours {
        content.insert(NEIGHBOURS, neighbours.as_bytes().to_vec());
    }
    let used = weights.iter().flat_map(BTreeMap::keys);
    let versions = used.filter_map(|name| Some((name.clone(), term(name)?.version())));
    let manifest = Manifest {
        schema: SCHEMA,
        made: made.clone(),
        terms: versions.collect(),
        weights: weights.to_vec(),
        gains: optional.gains,
        files: content
            .iter()
            .map(|(file, bytes)| ((*file).to_owned(), sha256(bytes)))
            .collect(),
    };
    let manifest = json(&manifest);
    let hash = name_of(&manifest);
    content.insert(MANIFEST, manifest.into_bytes());
    Files { hash, content }
}

impl Manifest {
    /// Reads [`MANIFEST`].
    pub fn parse(text: &str) -> Result<Self, ArtefactError> {
        /// What every schema has.
        #[derive(Deserialize)]
        struct Form {
            schema: u32,
        }
        let file = MANIFEST;
        let json = |source| ArtefactError::Json { file, source };
        let Form { schema } = serde_json::from_str(text).map_err(json)?;
        if schema != SCHEMA {
            return Err(ArtefactError::Schema { found: schema });
        }
        let manifest: Self = serde_json::from_str(text).map_err(json)?;
        for (name, fitted) in &manifest.terms {
            let known = term(name).map(|term| term.version());
            if known != Some(*fitted) {
                return Err(ArtefactError::Term {
                    name: name.clone(),
                    fitted: *fitted,
                    known: known.map_or("none".into(), |version| version.to_string()),
                });
            }
        }
        Ok(manifest)
    }

    /// Names of the other files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

impl Artefact {
    /// Puts an artefact together from the text of its manifest and the content of the other files, by name.
    pub fn read(text: &str, content: &BTreeMap<String, Vec<u8>>) -> Result<Self, ArtefactError> {
        let manifest = Manifest::parse(text)?;
        for (file, hash) in &manifest.files {
            let same = content
                .get(file)
                .is_some_and(|bytes| sha256(bytes) == *hash);
            if !same {
                return Err(ArtefactError::Changed { file: file.clone() });
            }
        }
        let bytes = content.get(TABLES).map_or(&[][..], Vec::as_slice);
        let tables: Tables = serde_json::from_slice(bytes).map_err(|source| {
            let file = TABLES;
            ArtefactError::Json { file, source }
        })?;
        tables.check()?;
        let found = manifest.weights.len();
        let weights: [BTreeMap<String, f64>; BUCKETS.len()] = (manifest.weights.clone())
            .try_into()
            .map_err(|_| ArtefactError::Buckets { found })?;
        let references = content.get(REFERENCES);
        let references = references.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let bytes = |file: &'static str| {
            let wrong = move |source| ArtefactError::Bytes { file, source };
            (content.get(file).map(Vec::as_slice), wrong)
        };
        let (vectors, wrong) = bytes(VECTORS);
        let vectors = vectors.map(Vectors::decode).transpose().map_err(wrong)?;
        let (table, wrong) = bytes(TABLE);
        let table = table.map(ProductTable::decode).transpose();
        let table = table.map_err(wrong)?;
        let (head, wrong) = bytes(HEAD);
        let head = head.map(Head::decode).transpose().map_err(wrong)?;
        let choice = choice(content)?;
        let weights = Weights::by_bucket(weights)?;
        Ok(Self {
            hash: name_of(text),
            made: manifest.made,
            weights: match manifest.gains {
                Some(gains) => weights.with_gains(gains),
                None => weights,
            },
            tables,
            references,
            vectors: vectors.map(Arc::new),
            table: table.map(Arc::new),
            head: head.map(Arc::new),
            choice: choice.map(Arc::new),
        })
    }
}

/// The choice of SKUs; `None` in an artefact without one.
fn choice(content: &BTreeMap<String, Vec<u8>>) -> Result<Option<ChoiceModel>, ArtefactError> {
    let Some(bytes) = content.get(CHOICE) else {
        return Ok(None);
    };
    let file = CHOICE;
    let model = ChoiceModel::parse(bytes).map_err(|source| ArtefactError::Json { file, source })?;
    model.check()?;
    Ok(Some(model))
}

impl Tables {
    fn check(&self) -> Result<(), ArtefactError> {
        let len = self.products.len();
        let repeat = self.repeat.as_ref().map(|table| table.products());
        let neighbours = self.neighbours.as_ref().map(|table| table.products());
        let walk = self.walk.as_ref().map(|table| table.products());
        let columns = self
            .columns
            .iter()
            .map(|(name, column)| (name.as_str(), Some(column.len())));
        for (what, found) in [
            ("repeat", repeat),
            ("neighbours", neighbours),
            ("walk", walk),
        ]
        .into_iter()
        .chain(columns)
        {
            if found.is_some_and(|found| found != len) {
                let what = format!("{what} is not a table of its {len} products");
                return Err(ArtefactError::Tables(what));
            }
        }
        if len == 0 {
            return Err(ArtefactError::Tables("it has no products".into()));
        }
        Ok(())
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and finite numbers")
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn name_of(manifest: &str) -> String {
    sha256(manifest.as_bytes()).chars().take(12).collect()
}

#[cfg(test)]
#[path = "artefact_tests.rs"]
mod tests;
