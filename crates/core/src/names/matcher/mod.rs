//! Matches a free text with the products that it may mean, or with none.
//!
//! Decides how likely each product is meant. Every product is known by surfaces: its name, aliases, titles of its SKUs.
//! The [`Index`] finds surfaces that share words or letters with the text, `daachorse` those that are a part of it, and
//! vectors, where they are given, those of like meaning; [`evidence`] says how each agrees, and a fitted [`Model`] makes
//! one calibrated probability of it. Invariant: a text is answered in bounded time whatever its length, equal inputs
//! give equal answers, and nothing below the model's `theta` is answered. It does not know encoders, files or rules.

mod align;
mod calibrate;
mod evidence;
mod fit;
mod form;
mod index;
mod lexicon;
mod logit;
mod measure;
mod model;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use daachorse::CharwiseDoubleArrayAhoCorasick;

use crate::text::vectors::Vectors;
use evidence::{Candidate, Evidence, NONE_COUNT, none};
use index::{Index, Query, Scratch, greatest};
use lexicon::{Lexicon, Said};

pub(crate) use align::partner;
pub use fit::{Example, FitOptions, Fitted, Unfit, fit};
pub(crate) use form::Form;
pub use measure::Measures;
pub use model::{Model, ModelError};

/// Surfaces that are compared with a text by the index, and by vectors.
const SURFACES: usize = 48;
/// Products that are compared letter by letter.
const PRODUCTS: usize = 20;
/// Fewest letters of a surface that is looked for inside of texts.
const INSIDE_MIN: usize = 3;

/// Surfaces that are a part of a text: the share of the text that each is, and whether it begins the text.
type Parts = BTreeMap<u32, (f32, bool)>;

/// One way to say a product.
#[derive(Clone, Debug)]
struct Surface {
    product: u32,
    form: Form,
    /// All words with a space before each and one at the end.
    spaced: String,
}

/// All products by their surfaces.
pub struct Matcher {
    surfaces: Vec<Surface>,
    index: Index,
    /// Finds surfaces inside of a text; its values are places in `inside`.
    finder: Option<CharwiseDoubleArrayAhoCorasick<u32>>,
    inside: Vec<Vec<u32>>,
    /// Vectors of the surfaces, row by row; a surface without one has zeros.
    vectors: Vec<f32>,
    width: usize,
}

/// What may be meant by a text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Products with the probability that each is meant; best first. Before calibration.
    pub ranked: Vec<(u32, f64)>,
    /// The calibrated probability that the first one is meant.
    pub probability: f64,
}

/// Memory that is used again from text to text.
#[derive(Clone, Debug, Default)]
pub struct Memory(Scratch);

impl Matcher {
    /// A matcher for surfaces, each of a product; a surface without a letter or a digit matches nothing.
    pub fn new<'a>(surfaces: impl IntoIterator<Item = (u32, &'a str)>) -> Self {
        Self::with_vectors(surfaces, None)
    }

    /// The same; surfaces with vectors are also found by meaning.
    pub fn with_vectors<'a>(
        texts: impl IntoIterator<Item = (u32, &'a str)>,
        vectors: Option<&Vectors>,
    ) -> Self {
        let mut seen = BTreeSet::new();
        let width = vectors.map_or(0, Vectors::width);
        let mut matrix = Vec::new();
        let mut surfaces = Vec::new();
        for (product, text) in texts {
            let form = Form::of(text);
            let spaced = form.spaced();
            if form.words.is_empty() || !seen.insert((product, spaced.clone())) {
                continue;
            }
            if let Some(vectors) = vectors {
                match vectors.get(text) {
                    Some(vector) => matrix.extend(vector.numbers()),
                    None => matrix.extend(std::iter::repeat_n(0.0, width)),
                }
            }
            surfaces.push(Surface {
                product,
                form,
                spaced,
            });
        }
        let forms: Vec<Form> = surfaces
            .iter()
            .map(|surface| surface.form.clone())
            .collect();
        let (finder, inside) = finder(&surfaces);
        Self {
            index: Index::new(&forms),
            surfaces,
            finder,
            inside,
            vectors: matrix,
            width,
        }
    }

    /// Number of distinct surfaces.
    pub fn len(&self) -> usize {
        self.surfaces.len()
    }

    /// Whether no product can be matched.
    pub fn is_empty(&self) -> bool {
        self.surfaces.is_empty()
    }

    /// Numbers of a vector; 0 without vectors.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The products that a text may mean, with their probabilities; none if it shares nothing with any of them.
    /// `vector` must be of the encoder of the surfaces' vectors.
    pub fn answer(
        &self,
        model: &Model,
        (text, vector): (&str, Option<&[f32]>),
        memory: &mut Memory,
    ) -> Answer {
        let (candidates, none) = self.candidates(model.lexicon(), (text, vector), memory);
        model.answer(&candidates, &none)
    }

    /// The products that a text may mean, with what speaks for each, and what speaks for none.
    fn candidates(
        &self,
        lexicon: &Lexicon,
        (text, vector): (&str, Option<&[f32]>),
        memory: &mut Memory,
    ) -> (Vec<Candidate>, [f64; NONE_COUNT]) {
        let form = Form::of(text);
        let spaced = form.spaced();
        let said = lexicon.said(&form.words);
        let query = self.index.query(&form, &said);
        let vector = vector.filter(|vector| vector.len() == self.width && self.width > 0);
        let cosines = vector.map(|vector| self.cosines(vector));
        let mut surfaces = self.index.nearest(&query, SURFACES, &mut memory.0);
        if let Some(cosines) = &cosines {
            let all: Vec<u32> = (0..cosines.len() as u32).collect();
            surfaces.extend(greatest(cosines, &all, SURFACES));
        }
        let parts = self.parts(&spaced);
        surfaces.extend(parts.keys());
        surfaces.sort_unstable();
        surfaces.dedup();
        let close = self.close((&query, &said), &surfaces, (&parts, cosines.as_deref()));
        let mut found: Vec<Candidate> = close
            .into_iter()
            .map(|(best, evidence)| {
                let surface = &self.surfaces[best as usize];
                let evidence = evidence.letters((&form, &spaced), (&surface.form, &surface.spaced));
                Candidate {
                    product: surface.product,
                    evidence: evidence.values(),
                }
            })
            .collect();
        evidence::compare(&mut found);
        (found, none(&query, &form))
    }

    /// The closest products among those of the surfaces: the best surface of each, with the greatest agreements of all.
    fn close(
        &self,
        (query, said): (&Query, &Said<'_>),
        surfaces: &[u32],
        (parts, cosines): (&Parts, Option<&[f32]>),
    ) -> Vec<(u32, Evidence)> {
        let mut products: BTreeMap<u32, (f32, u32, Evidence)> = BTreeMap::new();
        for at in surfaces {
            let agreement = self.index.agreement(query, *at);
            let cosine = cosines.map_or(0.0, |cosines| cosines[*at as usize]);
            let name = &self.surfaces[*at as usize].form.words;
            let rarity = |word: &str| self.index.rarity(word);
            let said = (said.of_name(name, rarity), said.of_text(name, rarity));
            let evidence = Evidence::of(agreement, parts.get(at).copied(), (cosine, said));
            let rough = evidence.rough();
            let product = self.surfaces[*at as usize].product;
            match products.get_mut(&product) {
                None => {
                    products.insert(product, (rough, *at, evidence));
                }
                Some(known) => {
                    known.2.widen(&evidence);
                    if rough > known.0 {
                        (known.0, known.1) = (rough, *at);
                    }
                }
            }
        }
        let mut close: Vec<(f32, u32, Evidence)> = products.into_values().collect();
        close.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        close.truncate(PRODUCTS);
        close
            .into_iter()
            .map(|(_, at, evidence)| (at, evidence))
            .collect()
    }

    /// Surfaces that are whole words of a text: the share of the text that each is, and whether it begins the text.
    fn parts(&self, spaced: &str) -> Parts {
        let mut parts = BTreeMap::new();
        let Some(finder) = &self.finder else {
            return parts;
        };
        for found in finder.find_overlapping_iter(spaced) {
            let share = (found.end() - found.start()) as f32 / spaced.len() as f32;
            for surface in &self.inside[found.value() as usize] {
                let part = parts.entry(*surface).or_insert((share, false));
                part.1 |= found.start() == 0;
            }
        }
        parts
    }

    /// The words of the surfaces of each product.
    fn names(&self) -> BTreeMap<u32, Vec<&[String]>> {
        let mut names: BTreeMap<u32, Vec<&[String]>> = BTreeMap::new();
        for surface in &self.surfaces {
            names
                .entry(surface.product)
                .or_default()
                .push(&surface.form.words);
        }
        names
    }

    /// Cosine of a vector with that of each surface.
    fn cosines(&self, vector: &[f32]) -> Vec<f32> {
        let rows = self.vectors.chunks_exact(self.width);
        rows.map(|row| dot(row, vector).clamp(0.0, 1.0)).collect()
    }
}

/// What finds surfaces inside of texts, with the surfaces of each pattern.
fn finder(surfaces: &[Surface]) -> (Option<CharwiseDoubleArrayAhoCorasick<u32>>, Vec<Vec<u32>>) {
    let mut patterns: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for (at, surface) in surfaces.iter().enumerate() {
        if surface.spaced.len() >= INSIDE_MIN + 2 {
            patterns.entry(&surface.spaced).or_default().push(at as u32);
        }
    }
    let numbered = patterns.keys().zip(0u32..);
    // Patterns are distinct and not empty; a catalogue too large for the automaton is matched without it.
    let finder = CharwiseDoubleArrayAhoCorasick::with_values(numbered).ok();
    (finder, patterns.into_values().collect())
}

/// The sum of products, in eight lanes that the compiler can compute at once.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a_eights, b_eights) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_eights
        .remainder()
        .iter()
        .zip(b_eights.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_eights.zip(b_eights) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}
