//! Fits the matcher to labelled texts, measures it, and matches texts.
//!
//! Invariant: a label of a product that the catalogue lacks is an error, not a text of what is not sold. It does not
//! know where results are printed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nearshore_core::names::matcher::{
    Example, FitOptions, Fitted, Matcher, Measures, Memory, Model, fit,
};
use nearshore_core::text::normalise;
use nearshore_core::text::vectors::Vectors;
use nearshore_engine::encoder::Encoder;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Problem, rows};

/// Texts that are encoded at once.
const BATCH: usize = 256;

/// Products with all their surfaces.
#[derive(Debug, Default)]
pub(crate) struct Shop {
    /// Name and id of each product.
    products: Vec<(String, String)>,
    by_id: BTreeMap<String, u32>,
    /// Products of each name.
    by_name: BTreeMap<String, Vec<u32>>,
    surfaces: Vec<(u32, String)>,
}

/// A product that a text may mean.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Meant {
    /// Its name.
    pub(crate) pu: String,
    /// Its id.
    pub(crate) pu_id: String,
    /// Probability, before calibration.
    pub(crate) chance: f64,
}

/// What a text means.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Matched {
    /// The text.
    pub(crate) text: String,
    /// The product, if it is likely enough.
    pub(crate) pu: Option<String>,
    /// Its id.
    pub(crate) pu_id: Option<String>,
    /// Calibrated probability that the first product is meant.
    pub(crate) probability: f64,
    /// The likeliest products.
    pub(crate) first: Vec<Meant>,
}

impl Shop {
    /// Reads catalogues: rows of `pu`, `pu_id` and `title`, as in the topic `catalog`; and aliases: rows of `pu` and
    /// `alias`.
    pub(crate) fn read(catalogue: &[PathBuf], aliases: &[PathBuf]) -> Result<Self, Problem> {
        let mut shop = Self::default();
        for path in catalogue {
            rows::read(path, &mut |row| {
                let pu = row.needed("pu")?;
                let id = row.text("pu_id")?.unwrap_or_else(|| pu.clone());
                let product = shop.product(&pu, &id);
                if let Some(title) = row.text("title")? {
                    shop.surfaces.push((product, title));
                }
                Ok(())
            })?;
        }
        for path in aliases {
            rows::read(path, &mut |row| {
                let product = shop
                    .find(&row.needed("pu")?)
                    .map_err(|what| row.problem(what))?;
                shop.surfaces.push((product, row.needed("alias")?));
                Ok(())
            })?;
        }
        if shop.products.is_empty() {
            return Err(Problem::Whole("the catalogue has no product".into()));
        }
        Ok(shop)
    }

    fn product(&mut self, pu: &str, id: &str) -> u32 {
        let (pu, id) = (normalise(pu).into_owned(), normalise(id).into_owned());
        if let Some(known) = self.by_id.get(&id) {
            return *known;
        }
        let product = self.products.len() as u32;
        self.by_id.insert(id.clone(), product);
        self.by_name.entry(pu.clone()).or_default().push(product);
        self.surfaces.push((product, pu.clone()));
        self.products.push((pu, id));
        product
    }

    /// The product of an id or a name.
    fn find(&self, text: &str) -> Result<u32, String> {
        let text = normalise(text);
        if let Some(product) = self.by_id.get(&*text) {
            return Ok(*product);
        }
        match self.by_name.get(&*text).map(Vec::as_slice) {
            Some([product]) => Ok(*product),
            Some(_) => Err(format!(
                "several products are named {text:?}; give the id of one"
            )),
            None => Err(format!(
                "the catalogue has no product {text:?}; leave \"pu\" out if it is not sold"
            )),
        }
    }

    /// Names of the products.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.products.iter().map(|(name, _)| name.as_str())
    }

    /// Number of products.
    pub(crate) fn len(&self) -> usize {
        self.products.len()
    }

    /// The matcher; with an encoder also by meaning.
    pub(crate) fn matcher(&self, encoder: Option<&Encoder>) -> anyhow::Result<Matcher> {
        let surfaces = self
            .surfaces
            .iter()
            .map(|(product, text)| (*product, text.as_str()));
        let texts = self.surfaces.iter().map(|(_, text)| text.as_str());
        let vectors = encoder.map(|encoder| encoded(encoder, texts)).transpose()?;
        Ok(Matcher::with_vectors(surfaces, vectors.as_ref()))
    }

    /// Labelled texts: rows of `text`, `pu` (absent if it is not sold) and `kind`.
    pub(crate) fn labels(
        &self,
        paths: &[PathBuf],
        encoder: Option<&Encoder>,
    ) -> anyhow::Result<Vec<Example>> {
        let mut examples = Vec::new();
        for path in paths {
            rows::read(path, &mut |row| {
                let pu = row.text("pu")?;
                let product = pu.map(|pu| self.find(&pu)).transpose();
                examples.push(Example {
                    text: row.needed("text")?,
                    vector: None,
                    product: product.map_err(|what| row.problem(what))?,
                    kind: row.text("kind")?.unwrap_or_else(|| "texts".into()),
                });
                Ok(())
            })?;
        }
        if let Some(encoder) = encoder {
            let vectors = encoded(
                encoder,
                examples.iter().map(|example| example.text.as_str()),
            )?;
            for example in &mut examples {
                example.vector = vector(&vectors, &example.text);
            }
        }
        Ok(examples)
    }

    /// What texts mean.
    pub(crate) fn matched(
        &self,
        (matcher, model): (&Matcher, &Model),
        texts: &[String],
        (encoder, top): (Option<&Encoder>, usize),
    ) -> anyhow::Result<Vec<Matched>> {
        let all = texts.iter().map(String::as_str);
        let vectors = encoder.map(|encoder| encoded(encoder, all)).transpose()?;
        let mut memory = Memory::default();
        let matched = texts.iter().map(|text| {
            let vector = vectors.as_ref().and_then(|vectors| vector(vectors, text));
            let answer = matcher.answer(model, (text, vector.as_deref()), &mut memory);
            let product = |product: u32| self.products[product as usize].clone();
            let accepted = model.accepts(&answer).map(|(found, _)| product(found));
            let first = answer.ranked.iter().take(top).map(|(found, chance)| {
                let (pu, pu_id) = product(*found);
                Meant {
                    pu,
                    pu_id,
                    chance: *chance,
                }
            });
            Matched {
                text: text.clone(),
                pu: accepted.clone().map(|(pu, _)| pu),
                pu_id: accepted.map(|(_, id)| id),
                probability: answer.probability,
                first: first.collect(),
            }
        });
        Ok(matched.collect())
    }
}

fn vector(vectors: &Vectors, text: &str) -> Option<Vec<f32>> {
    vectors.get(text).map(|vector| vector.numbers().collect())
}

/// Vectors of texts, each once.
pub(super) fn encoded<'a>(
    encoder: &Encoder,
    texts: impl Iterator<Item = &'a str>,
) -> anyhow::Result<Vectors> {
    let texts: BTreeSet<String> = texts.map(|text| normalise(text).into_owned()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut vectors = Vectors::new(encoder.hash(), encoder.width());
    for batch in texts.chunks(BATCH) {
        for (text, numbers) in batch.iter().zip(encoder.encode(batch)?) {
            vectors.insert(text, &numbers)?;
        }
    }
    Ok(vectors)
}

/// Fits a model and measures it on the texts that are held out.
pub(crate) fn fitted(
    matcher: &Matcher,
    examples: &[Example],
    options: &FitOptions,
) -> Result<Fitted, Problem> {
    Ok(fit(matcher, examples, options)?)
}

/// Measures as a table.
pub(crate) fn text(fitted: &Fitted) -> String {
    let mut lines = vec![
        format!(
            "fitted to {} texts; theta {:.3} for a precision of {}",
            fitted.fitted_to, fitted.model.theta, fitted.model.precision
        ),
        "of texts that were held out:".to_owned(),
        format!(
            "  {:<16} {:>6} {:>8} {:>6} {:>6} {:>9} {:>8} {:>7} {:>6} {:>6}",
            "kind",
            "sold",
            "not sold",
            "@1",
            "@20",
            "precision",
            "answered",
            "false",
            "AUROC",
            "error"
        ),
    ];
    let all = ("all".to_owned(), fitted.all.clone());
    for (kind, m) in std::iter::once(&all)
        .map(|(k, m)| (k, m))
        .chain(&fitted.kinds)
    {
        lines.push(line(kind, m));
    }
    lines.push(
        "@1, @20: the right product is the first, among the first 20. precision: of answers. answered: of texts that are sold. \
         false: answered of what is not sold. error: of probabilities."
            .to_owned(),
    );
    lines.join("\n")
}

fn line(kind: &str, m: &Measures) -> String {
    let share =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{share:.3}"));
    format!(
        "  {kind:<16} {:>6} {:>8} {:>6} {:>6} {:>9} {:>8} {:>7} {:>6} {:>6}",
        m.sold,
        m.not_sold,
        share(m.first),
        share(m.first_20),
        share(m.precision),
        share(m.coverage),
        share(m.false_accepts),
        share(m.auroc),
        share(m.calibration_error)
    )
}

/// Reads a model.
pub(crate) fn model(path: &Path) -> Result<Model, Problem> {
    let text = crate::files::read(path)?;
    Model::read(&text).map_err(|error| Problem::Whole(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop(aliases: &str, labels: &str) -> Result<(Shop, Vec<Example>), String> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let catalogue = file(
            "skus.jsonl",
            "{\"sku\":\"1\",\"pu\":\"Tea\",\"pu_id\":\"t1\",\"title\":\"Green tea 20 bags\"}\n\
             {\"sku\":\"2\",\"pu\":\"Tea\",\"pu_id\":\"t2\"}\n{\"sku\":\"3\",\"pu\":\"Soap\"}\n",
        );
        let (aliases, labels) = (file("aliases.csv", aliases), file("labels.csv", labels));
        let read = || {
            let shop = Shop::read(&[catalogue], &[aliases])?;
            let labels = shop.labels(&[labels], None)?;
            anyhow::Ok((shop, labels))
        };
        let prefix = format!("{}/", folder.path().display());
        read().map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn labels_name_products_by_name_or_id_and_without_one_are_not_sold() {
        let labels = "text,pu,kind\ngreen tea,t1,a\nhand soap,Soap,\ncar,,\n";
        let (shop, labels) = shop("pu,alias\nSoap,hand wash\n", labels).expect("read");
        let products: Vec<Option<u32>> = labels.iter().map(|label| label.product).collect();
        assert_eq!(products, [Some(0), Some(2), None]);
        assert_eq!(
            (labels[0].kind.as_str(), labels[2].kind.as_str()),
            ("a", "texts")
        );
        assert_eq!(shop.len(), 3);
        assert!(shop.surfaces.contains(&(2, "hand wash".to_owned())));
    }

    #[test]
    fn a_label_or_alias_that_cannot_be_used_is_named() {
        let head = "text,pu\n";
        for (aliases, labels, expected) in [
            (
                "",
                "x,Beer",
                "labels.csv:2: the catalogue has no product \"Beer\"; leave",
            ),
            (
                "",
                "x,Tea",
                "labels.csv:2: several products are named \"Tea\"",
            ),
            ("", ",Soap", "labels.csv:2: \"text\" is missing"),
            (
                "pu,alias\nBeer,ale\n",
                "",
                "aliases.csv:2: the catalogue has no product",
            ),
            (
                "pu,alias\nSoap,\n",
                "",
                "aliases.csv:2: \"alias\" is missing",
            ),
        ] {
            let error = shop(aliases, &format!("{head}{labels}\n")).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
