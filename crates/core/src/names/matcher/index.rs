//! An inverted index over names, aliases and titles: which of them share letters and words with a text.
//!
//! Decides which few surfaces are looked at closely. Words and trigrams of letters have weights by rarity; lists of the
//! rarest are read first, best surfaces first, until [`POSTINGS_MAX`] are read, so the time for a text is bounded
//! whatever the catalogue. Invariant: equal catalogues and texts give equal answers. It does not know products.

// For lookup only: their order never reaches an output.
#[expect(clippy::disallowed_types, reason = "lookup only")]
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use fnv::FnvHasher;

use super::form::Form;
use super::lexicon::Said;

/// The most entries of lists that are read for one text, and of one list.
const POSTINGS_MAX: usize = 12_000;
const LIST_MAX: usize = 3_000;

/// Parameters of BM25: how fast repetition of a word loses worth, and how much length counts.
const K1: f32 = 1.2;
const B: f32 = 0.4;

#[expect(clippy::disallowed_types, reason = "lookup only")]
type Map<K> = HashMap<K, u32, BuildHasherDefault<FnvHasher>>;

/// Numbers of features with their weights, ascending by number.
type Weights = Vec<(u32, f32)>;

/// One kind of features: words, or trigrams.
#[derive(Clone, Debug, Default)]
struct Space {
    /// Rarity of each feature.
    rarity: Vec<f32>,
    /// Per feature the surfaces that have it, heaviest first.
    lists: Vec<Vec<(u32, f32)>>,
    /// Per surface its features.
    of: Vec<Weights>,
    /// Rarity of a feature that no surface has.
    unknown: f32,
}

/// The index.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    word_numbers: Map<Box<str>>,
    gram_numbers: Map<u64>,
    words: Space,
    grams: Space,
    /// Words of each surface, with repetition.
    lengths: Vec<f32>,
    length_mean: f32,
}

/// A text as the index reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    words: Weights,
    grams: Weights,
    /// Words that it stands for and does not have.
    said: Weights,
    /// Share of that sum that is of words which no surface has.
    pub(super) unknown: f32,
    /// Its BM25 with itself.
    own: f32,
}

/// How a surface and a text agree, each from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Agreement {
    /// Cosine of trigrams.
    pub(super) grams: f32,
    /// Cosine of words.
    pub(super) words: f32,
    /// BM25 of the text for the surface, as a share of what the text itself would have.
    pub(super) bm25: f32,
    /// Share of the surface's words, by rarity, that the text has.
    pub(super) covered: f32,
}

/// Memory that is used again from text to text.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    scores: Vec<f32>,
    touched: Vec<u32>,
}

impl Index {
    /// The index of surfaces, by their forms.
    pub(super) fn new(forms: &[Form]) -> Self {
        let mut index = Self::default();
        for form in forms {
            let mut words = Weights::new();
            for word in &form.words {
                let next = index.word_numbers.len() as u32;
                let number = *index
                    .word_numbers
                    .entry(word.as_str().into())
                    .or_insert(next);
                count(&mut words, number);
            }
            let mut grams = Weights::new();
            for gram in trigrams(form) {
                let next = index.gram_numbers.len() as u32;
                count(&mut grams, *index.gram_numbers.entry(gram).or_insert(next));
            }
            index.lengths.push(form.words.len() as f32);
            index.words.of.push(words);
            index.grams.of.push(grams);
        }
        index.words.weigh(index.word_numbers.len());
        index.grams.weigh(index.gram_numbers.len());
        let sum: f32 = index.lengths.iter().sum();
        index.length_mean = (sum / index.lengths.len().max(1) as f32).max(1.0);
        index
    }

    /// A text as the index reads it.
    pub(super) fn query(&self, form: &Form, said: &Said<'_>) -> Query {
        let (mut words, mut grams) = (Weights::new(), Weights::new());
        let (mut rarity, mut unknown) = (0.0, 0.0);
        for word in &form.words {
            match self.word_numbers.get(word.as_str()) {
                Some(number) => {
                    rarity += self.words.rarity[*number as usize];
                    count(&mut words, *number);
                }
                None => unknown += self.words.unknown,
            }
        }
        let mut strangers = 0.0;
        for gram in trigrams(form) {
            match self.gram_numbers.get(&gram) {
                Some(number) => count(&mut grams, *number),
                None => strangers += self.grams.unknown * self.grams.unknown,
            }
        }
        let missing = unknown * self.words.unknown;
        rarity += unknown;
        let length = form.words.len() as f32;
        self.words.scale(&mut words, missing);
        self.grams.scale(&mut grams, strangers);
        Query {
            said: self.said(said, &words),
            words,
            grams,
            unknown: if rarity > 0.0 { unknown / rarity } else { 1.0 },
            own: rarity * self.saturated(1.0, length),
        }
    }

    /// Words that a text stands for, weighed as its own words are, by their probability.
    fn said(&self, said: &Said<'_>, words: &Weights) -> Weights {
        let own = words
            .iter()
            .map(|(number, weight)| weight / self.words.rarity[*number as usize]);
        let unit = own.fold(0.0, f32::max).max(0.1);
        let numbers = said.others().filter_map(|(word, chance)| {
            let number = *self.word_numbers.get(word)?;
            Some((number, unit * chance * self.words.rarity[number as usize]))
        });
        numbers.collect()
    }

    /// How rare a word is.
    pub(super) fn rarity(&self, word: &str) -> f32 {
        let number = self.word_numbers.get(word);
        number.map_or(self.words.unknown, |number| {
            self.words.rarity[*number as usize]
        })
    }

    /// The surfaces that agree most with a text, at most so many, best first; approximate, see the module's head.
    pub(super) fn nearest(&self, query: &Query, many: usize, scratch: &mut Scratch) -> Vec<u32> {
        scratch.scores.resize(self.lengths.len(), 0.0);
        let of_words = query
            .words
            .iter()
            .chain(&query.said)
            .map(|(n, w)| (&self.words.lists[*n as usize], *w));
        let of_grams = query
            .grams
            .iter()
            .map(|(n, w)| (&self.grams.lists[*n as usize], *w));
        let mut lists: Vec<(&Vec<(u32, f32)>, f32)> = of_words.chain(of_grams).collect();
        lists.sort_by_key(|(list, _)| list.len());
        let mut left = POSTINGS_MAX;
        for (list, weight) in lists {
            let read = list.len().min(LIST_MAX).min(left);
            left -= read;
            for (surface, value) in &list[..read] {
                let score = &mut scratch.scores[*surface as usize];
                if *score == 0.0 {
                    scratch.touched.push(*surface);
                }
                *score += weight * value;
            }
        }
        let best = greatest(&scratch.scores, &scratch.touched, many);
        for surface in scratch.touched.drain(..) {
            scratch.scores[surface as usize] = 0.0;
        }
        best
    }

    /// How a surface and a text agree.
    pub(super) fn agreement(&self, query: &Query, surface: u32) -> Agreement {
        let at = surface as usize;
        let (mut bm25, mut covered) = (0.0, 0.0);
        let own: f32 = self.words.of[at]
            .iter()
            .map(|(n, _)| self.words.rarity[*n as usize])
            .sum();
        let words = shared(&query.words, &self.words.of[at], |number| {
            let rarity = self.words.rarity[number as usize];
            bm25 += rarity * self.saturated(1.0, self.lengths[at]);
            covered += rarity;
        });
        let of = |part: f32, whole: f32| {
            if whole > 0.0 {
                (part / whole).min(1.0)
            } else {
                0.0
            }
        };
        Agreement {
            grams: shared(&query.grams, &self.grams.of[at], |_| {}).min(1.0),
            words: words.min(1.0),
            bm25: of(bm25, query.own),
            covered: of(covered, own),
        }
    }

    /// Worth of a word that is there so often in a text of so many words.
    fn saturated(&self, times: f32, length: f32) -> f32 {
        times * (K1 + 1.0) / (times + K1 * (1.0 - B + B * length / self.length_mean))
    }
}

impl Space {
    /// Turns counts per surface into weights by rarity, each surface's of length 1, and makes the lists.
    fn weigh(&mut self, features: usize) {
        let mut having = vec![0u32; features];
        for (number, _) in self.of.iter().flatten() {
            having[*number as usize] += 1;
        }
        let all = self.of.len() as f32;
        let rarity = |having: f32| libm::logf(1.0 + (all - having + 0.5) / (having + 0.5));
        self.rarity = having.iter().map(|having| rarity(*having as f32)).collect();
        self.unknown = rarity(0.0);
        let mut of = std::mem::take(&mut self.of);
        for weights in &mut of {
            self.scale(weights, 0.0);
        }
        let sizes = having
            .iter()
            .map(|having| Vec::with_capacity(*having as usize));
        self.lists = sizes.collect();
        for (surface, weights) in of.iter().enumerate() {
            for (number, weight) in weights {
                self.lists[*number as usize].push((surface as u32, *weight));
            }
        }
        for list in &mut self.lists {
            list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        }
        self.of = of;
    }

    /// Counts to weights of length 1; `strangers` is the sum of squares of features that nobody has.
    fn scale(&self, counts: &mut Weights, strangers: f32) {
        counts.sort_unstable_by_key(|(number, _)| *number);
        let mut squares = strangers;
        for (number, weight) in counts.iter_mut() {
            *weight = (1.0 + libm::logf(*weight)) * self.rarity[*number as usize];
            squares += *weight * *weight;
        }
        let length = squares.sqrt().max(f32::MIN_POSITIVE);
        counts.iter_mut().for_each(|(_, weight)| *weight /= length);
    }
}

fn count(counts: &mut Weights, number: u32) {
    match counts.iter_mut().find(|(known, _)| *known == number) {
        Some((_, times)) => *times += 1.0,
        None => counts.push((number, 1.0)),
    }
}

/// The sum of products over features that both have, and each of these.
fn shared(a: &Weights, b: &Weights, mut each: impl FnMut(u32)) -> f32 {
    let (mut i, mut j, mut sum) = (0, 0, 0.0);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        match x.0.cmp(&y.0) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                sum += x.1 * y.1;
                each(x.0);
                i += 1;
                j += 1;
            }
        }
    }
    sum
}

/// The trigrams of the words, with a blank before and after each word.
fn trigrams(form: &Form) -> impl Iterator<Item = u64> + '_ {
    form.words.iter().flat_map(|word| {
        let padded = std::iter::once(' ').chain(word.chars()).chain([' ']);
        let mut last = [0u64; 2];
        padded.enumerate().filter_map(move |(nth, c)| {
            let gram = (last[0] << 42) | (last[1] << 21) | u64::from(c);
            last = [last[1], u64::from(c)];
            (nth >= 2).then_some(gram)
        })
    })
}

/// The so many of `touched` with the greatest scores, best first; of equal ones the first surface.
pub(super) fn greatest(scores: &[f32], touched: &[u32], many: usize) -> Vec<u32> {
    // Ascending from worst to best; few enough that insertion is faster than a heap.
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(many + 1);
    for surface in touched {
        let score = scores[*surface as usize];
        if best.len() == many && best.first().is_some_and(|worst| score < worst.0) {
            continue;
        }
        let is_worse =
            |other: &(f32, u32)| other.0 < score || (other.0 == score && other.1 > *surface);
        let at = best.partition_point(is_worse);
        best.insert(at, (score, *surface));
        if best.len() > many {
            best.remove(0);
        }
    }
    best.iter().rev().map(|(_, surface)| *surface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(index: &Index, text: &str) -> Query {
        index.query(&Form::of(text), &Said::default())
    }

    fn forms(texts: &[&str]) -> Vec<Form> {
        texts.iter().map(|text| Form::of(text)).collect()
    }

    #[test]
    fn the_surface_that_shares_most_comes_first() {
        let texts = [
            "potato chips",
            "tortilla chips",
            "green tea",
            "potato salad",
        ];
        let index = Index::new(&forms(&texts));
        let mut scratch = Scratch::default();
        for (text, expected) in [
            ("potato chip", 0),
            ("POTATOE chps", 0),
            ("tea", 2),
            ("salads", 3),
        ] {
            let query = query(&index, text);
            assert_eq!(
                index.nearest(&query, 2, &mut scratch)[0],
                expected,
                "{text}"
            );
            assert!(scratch.touched.is_empty() && scratch.scores.iter().all(|s| *s == 0.0));
        }
    }

    #[test]
    fn a_text_agrees_wholly_with_itself_and_not_with_strangers() {
        let index = Index::new(&forms(&["potato chips", "green tea"]));
        let itself = index.agreement(&query(&index, "Potato Chip"), 0);
        for share in [itself.grams, itself.words, itself.bm25, itself.covered] {
            assert!((share - 1.0).abs() < 1e-5, "{itself:?}");
        }
        let stranger = query(&index, "xyzzy");
        assert_eq!(index.agreement(&stranger, 0), Agreement::default());
        assert_eq!(stranger.unknown, 1.0);
        assert!(
            index
                .nearest(&stranger, 3, &mut Scratch::default())
                .is_empty()
        );
    }

    #[test]
    fn the_greatest_are_in_order_and_ties_go_to_the_first() {
        let scores = [0.5, 0.9, 0.5, 0.1, 0.9];
        assert_eq!(greatest(&scores, &[4, 3, 2, 1, 0], 3), [1, 4, 0]);
        assert_eq!(greatest(&scores, &[0, 1], 5), [1, 0]);
        assert!(greatest(&scores, &[], 5).is_empty());
    }
}
