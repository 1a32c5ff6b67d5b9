//! What speaks for a product, and what for none of them, as numbers for the model.
//!
//! Decides which agreements count. Invariant: every number is finite and from 0 to 1, in the order of [`NAMES`]. It does
//! not know weights.

use super::align::{aligned, likeness};
use super::form::Form;
use super::index::{Agreement, Query};

/// Names of the numbers that speak for a product; a model is for these.
pub(super) const NAMES: [&str; 22] = [
    "grams",
    "grams^2",
    "grams_first",
    "words",
    "words_first",
    "bm25",
    "covered",
    "part",
    "begins",
    "same",
    "same_words",
    "aligned",
    "aligned_back",
    "likeness",
    "both",
    "meaning",
    "meaning^2",
    "meaning_first",
    "grams*meaning",
    "said",
    "said_back",
    "said_first",
];
pub(super) const COUNT: usize = NAMES.len();

/// Names of the numbers that speak for none: their sum with weights is compared with those of the products.
pub(super) const NONE_NAMES: [&str; 3] = ["none", "unknown", "length"];
pub(super) const NONE_COUNT: usize = NONE_NAMES.len();

/// Places of the numbers that are compared between products, with the places of the differences.
const COMPARED: [(usize, usize); 4] = [(0, 2), (3, 4), (15, 17), (19, 21)];

/// A product that may be meant.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) product: u32,
    pub(super) evidence: [f64; COUNT],
}

/// What speaks for one product.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Evidence {
    agreement: Agreement,
    part: f32,
    begins: bool,
    same: bool,
    same_words: bool,
    aligned: f32,
    aligned_back: f32,
    likeness: f32,
    meaning: f32,
    said: f32,
    said_back: f32,
}

impl Evidence {
    /// By one surface: how it agrees, the share of the text that it is, the cosine of the vectors, and what words stand
    /// for.
    pub(super) fn of(
        agreement: Agreement,
        part: Option<(f32, bool)>,
        (meaning, (said, said_back)): (f32, (f32, f32)),
    ) -> Self {
        let (part, begins) = part.unwrap_or_default();
        Self {
            agreement,
            part,
            begins,
            meaning,
            said,
            said_back,
            ..Self::default()
        }
    }

    /// A first order, for choosing what is compared letter by letter.
    pub(super) fn rough(&self) -> f32 {
        let a = &self.agreement;
        a.grams
            + 0.5 * a.words
            + 0.3 * a.bm25
            + 0.3 * a.covered
            + self.part
            + 2.0 * self.meaning
            + self.said
            + 0.5 * self.said_back
    }

    /// Takes what another surface of the product says better.
    pub(super) fn widen(&mut self, other: &Self) {
        let (a, b) = (&mut self.agreement, &other.agreement);
        a.grams = a.grams.max(b.grams);
        a.words = a.words.max(b.words);
        a.bm25 = a.bm25.max(b.bm25);
        a.covered = a.covered.max(b.covered);
        self.part = self.part.max(other.part);
        self.begins |= other.begins;
        self.meaning = self.meaning.max(other.meaning);
        self.said = self.said.max(other.said);
        self.said_back = self.said_back.max(other.said_back);
    }

    /// Adds the comparison of text and surface, each a form with its words in a line.
    pub(super) fn letters(
        mut self,
        (text, text_line): (&Form, &str),
        (surface, surface_line): (&Form, &str),
    ) -> Self {
        self.same = text == surface;
        self.same_words = self.same || text.sorted() == surface.sorted();
        self.aligned = aligned(&text.words, &surface.words);
        self.aligned_back = aligned(&surface.words, &text.words);
        self.likeness = likeness(text_line, surface_line);
        self
    }

    /// The numbers, in the order of [`NAMES`]; those that compare products are still 0.
    pub(super) fn values(&self) -> [f64; COUNT] {
        let is = |holds: bool| f32::from(u8::from(holds));
        let Agreement {
            grams,
            words,
            bm25,
            covered,
        } = self.agreement;
        [
            grams,
            grams * grams,
            0.0,
            words,
            0.0,
            bm25,
            covered,
            self.part,
            is(self.begins),
            is(self.same),
            is(self.same_words),
            self.aligned,
            self.aligned_back,
            self.likeness,
            self.aligned * self.aligned_back,
            self.meaning,
            self.meaning * self.meaning,
            0.0,
            grams * self.meaning,
            self.said,
            self.said_back,
            0.0,
        ]
        .map(f64::from)
    }
}

/// Adds by how much each product is ahead of the best other one, or behind it.
pub(super) fn compare(candidates: &mut [Candidate]) {
    for (value, ahead) in COMPARED {
        let mut values: Vec<f64> = candidates.iter().map(|c| c.evidence[value]).collect();
        values.sort_by(|a, b| b.total_cmp(a));
        let (best, second) = (values.first().copied(), values.get(1).copied());
        for candidate in candidates.iter_mut() {
            let own = candidate.evidence[value];
            let other = if Some(own) == best { second } else { best };
            candidate.evidence[ahead] = own - other.unwrap_or(0.0);
        }
    }
}

/// What speaks for no product, in the order of [`NONE_NAMES`].
pub(super) fn none(query: &Query, form: &Form) -> [f64; NONE_COUNT] {
    let length = form.words.len() as f64;
    [1.0, f64::from(query.unknown), libm::log(1.0 + length) / 4.0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_compared_with_the_best_other_one() {
        let of = |grams: f64| {
            let mut evidence = [0.0; COUNT];
            evidence[0] = grams;
            Candidate {
                product: 0,
                evidence,
            }
        };
        let mut candidates = [of(0.5), of(0.9), of(0.25)];
        compare(&mut candidates);
        let ahead: Vec<f64> = candidates.iter().map(|c| c.evidence[2]).collect();
        assert_eq!(ahead, [0.5 - 0.9, 0.4, 0.25 - 0.9]);
        let mut alone = [of(0.5)];
        compare(&mut alone);
        assert_eq!(alone[0].evidence[2], 0.5);
    }

    #[test]
    fn places_of_compared_numbers_are_those_of_their_names() {
        for (value, ahead) in COMPARED {
            assert_eq!(NAMES[ahead], format!("{}_first", NAMES[value]));
        }
    }

    #[test]
    fn the_same_name_has_all_that_letters_can_say() {
        let (text, surface) = (Form::of("Chips, potato"), Form::of("potato chip"));
        let lines = (text.spaced(), surface.spaced());
        let evidence = Evidence::default().letters((&text, &lines.0), (&surface, &lines.1));
        assert!(evidence.same_words && !evidence.same);
        assert_eq!((evidence.aligned, evidence.aligned_back), (1.0, 1.0));
        assert!(evidence.values().iter().all(|x| (0.0..=1.0).contains(x)));
    }
}
