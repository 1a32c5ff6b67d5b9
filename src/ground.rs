//! f(P,G): a free name becomes a PU with a score, or nothing.
//!
//! Invariant: a name of the catalogue grounds to itself with 1; the answer is a function of the set of names
//! and the text; nothing under the threshold is returned. It does not know who asks, stock or rules.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use unicode_normalization::UnicodeNormalization;

use crate::catalogue::PuIx;

/// What a free name was matched to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grounded {
    /// The PU.
    pub pu: PuIx,
    /// Likeness, 0..=1; 1 if the names are the same but for case, punctuation and spaces.
    pub score: f64,
}

/// A catalogue's names made ready to be matched.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// As given.
    exact: BTreeMap<String, PuIx>,
    /// Normalised; of several, the first in the order of the names.
    plain: BTreeMap<String, PuIx>,
    names: Vec<Name>,
    /// Names that contain a trigram, ascending.
    postings: BTreeMap<[char; 3], Vec<u32>>,
}

#[derive(Clone, Debug)]
struct Name {
    text: String,
    words: BTreeSet<String>,
    trigrams: usize,
}

impl Index {
    /// Indexes names in PU order ([`crate::catalogue::Catalogue::names`]).
    pub fn build(names: &[String]) -> Self {
        let mut index = Self::default();
        for (at, name) in names.iter().enumerate() {
            let ix = PuIx(at as u32);
            index.exact.entry(name.clone()).or_insert(ix);
            let text = normalise(name);
            let trigrams = trigrams(&text);
            for trigram in &trigrams {
                index.postings.entry(*trigram).or_default().push(ix.0);
            }
            index.names.push(Name {
                words: words(&text),
                trigrams: trigrams.len(),
                text: name.clone(),
            });
            let first = index.plain.entry(text).or_insert(ix);
            if *name < index.names[first.at()].text {
                *first = ix;
            }
        }
        index
    }

    /// The PU that a free name most likely means; `None` if none is as like as `theta`.
    ///
    /// Likeness is the mean of two Jaccard indices, of words and of letter trigrams: words alone miss a
    /// misspelling, trigrams alone confuse vitamin C with vitamin D. Ties go to the shorter name, then to the
    /// first in the order of the names.
    pub fn ground(&self, free: &str, theta: f64) -> Option<Grounded> {
        let text = normalise(free);
        let alike = || self.plain.get(&text).filter(|_| !text.is_empty());
        if let Some(pu) = self.exact.get(free).or_else(alike) {
            let score = 1.0;
            return (score >= theta).then_some(Grounded { pu: *pu, score });
        }
        let (words, trigrams) = (words(&text), trigrams(&text));
        let mut shared = vec![0u32; self.names.len()];
        for trigram in &trigrams {
            for at in self.postings.get(trigram).into_iter().flatten() {
                shared[*at as usize] += 1;
            }
        }
        let likely = shared.iter().enumerate().filter(|(_, shared)| **shared > 0);
        let scored = likely.map(|(at, shared)| {
            let name = &self.names[at];
            let both = words.intersection(&name.words).count();
            let by_words = jaccard(both, words.len(), name.words.len());
            let by_letters = jaccard(*shared as usize, trigrams.len(), name.trigrams);
            (at, 0.5 * (by_words + by_letters))
        });
        let (at, score) = scored.max_by(|a, b| self.order(*a, *b))?;
        (score >= theta).then_some(Grounded {
            pu: PuIx(at as u32),
            score,
        })
    }

    fn order(&self, a: (usize, f64), b: (usize, f64)) -> Ordering {
        let (one, other) = (&self.names[a.0].text, &self.names[b.0].text);
        a.1.total_cmp(&b.1)
            .then_with(|| other.chars().count().cmp(&one.chars().count()))
            .then_with(|| other.cmp(one))
    }
}

/// Lower case, compatibility forms composed, everything but letters and digits a single space.
pub fn normalise(name: &str) -> String {
    let folded: String = name.nfkc().flat_map(char::to_lowercase).nfkc().collect();
    let words = folded.split(|c: char| !c.is_alphanumeric());
    let kept: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    kept.join(" ")
}

/// A closing s is dropped on both sides, so that a plural is the same word.
fn words(text: &str) -> BTreeSet<String> {
    let stem = |word: &str| match word.strip_suffix('s') {
        Some(stem) if stem.len() >= 3 => stem.to_owned(),
        _ => word.to_owned(),
    };
    text.split(' ')
        .filter(|word| !word.is_empty())
        .map(stem)
        .collect()
}

/// Trigrams of each word with its borders, so that the order of words does not count.
fn trigrams(text: &str) -> BTreeSet<[char; 3]> {
    let mut all = BTreeSet::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let chars: Vec<char> = [' '; 2]
            .into_iter()
            .chain(word.chars())
            .chain([' '])
            .collect();
        all.extend(chars.windows(3).map(|three| [three[0], three[1], three[2]]));
    }
    all
}

fn jaccard(both: usize, one: usize, other: usize) -> f64 {
    match one + other - both {
        0 => 0.0,
        either => both as f64 / either as f64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 9] = [
        "VITAMIN C TABLETS",
        "VITAMIN D TABLETS",
        "ADULT ANALGESICS",
        "FLUID MILK WHITE ONLY",
        "APPLES GALA (BULK&BAG)",
        "APPLES FUJI (BULK&BAG)",
        "YOGURT NOT MULTI-PACKS",
        "Café crème",
        "BANANAS",
    ];

    fn check(free: &str, expected: Option<&str>) {
        let index = Index::build(&NAMES.map(str::to_owned));
        let found = index.ground(free, 0.4);
        let name = found.map(|found| NAMES[found.pu.at()]);
        assert_eq!(name, expected, "{free:?} gave {found:?}");
    }

    #[test]
    fn a_free_name_finds_the_product_it_means() {
        check("vitamin C tablet", Some("VITAMIN C TABLETS"));
        check("tablets, vitamin d", Some("VITAMIN D TABLETS"));
        check("analgesics for adults", Some("ADULT ANALGESICS"));
        check("Gala apples", Some("APPLES GALA (BULK&BAG)"));
        check("white fluid milk", Some("FLUID MILK WHITE ONLY"));
        check("cafe\u{301} cre\u{300}me", Some("Café crème"));
        check("BANANA", Some("BANANAS"));
    }

    #[test]
    fn what_is_like_nothing_grounds_to_nothing() {
        for free in ["garden hose", "", "  ", "!?", "vita", "milkshake"] {
            check(free, None);
        }
        assert_eq!(Index::build(&[]).ground("milk", 0.0), None);
    }

    #[test]
    fn theta_is_the_least_likeness_and_equal_names_score_one() {
        let index = Index::build(&NAMES.map(str::to_owned));
        let found = index
            .ground("vitamin  c--TABLETS", 1.0)
            .expect("the same name");
        assert_eq!((found.pu, found.score), (PuIx(0), 1.0));
        let near = index.ground("vitamin C tablet", 0.0).expect("near");
        assert!(near.score > 0.5 && near.score < 1.0);
        assert!(
            index
                .ground("vitamin C tablet", near.score + 1e-9)
                .is_none()
        );
    }

    #[test]
    fn ties_go_to_the_shorter_name_then_to_the_first_in_order() {
        for (names, expected) in [
            (["MILK B", "MILK A"], "MILK A"),
            (["MILK A", "MILK B"], "MILK A"),
            (["B B MILK", "MILK B"], "MILK B"),
            (["MILK B", "B B MILK"], "MILK B"),
        ] {
            let index = Index::build(&names.map(str::to_owned));
            let found = index
                .ground("milk", 0.1)
                .or_else(|| index.ground("bb b", 0.1));
            assert_eq!(found.map(|found| names[found.pu.at()]), Some(expected));
        }
    }

    proptest! {
        #[test]
        fn a_name_grounds_to_itself_and_the_order_of_names_does_not_matter(
            names in prop::collection::btree_set("[A-Za-z &é()-]{1,12}", 1..20),
            free in "[A-Za-z &-]{0,12}",
        ) {
            let names: Vec<String> = names.into_iter().collect();
            let backward: Vec<String> = names.iter().rev().cloned().collect();
            let (index, other) = (Index::build(&names), Index::build(&backward));
            for name in &names {
                let found = index.ground(name, 1.0).expect("itself");
                prop_assert_eq!((&names[found.pu.at()], found.score), (name, 1.0));
            }
            let found = index.ground(&free, 0.2).map(|found| (&names[found.pu.at()], found.score));
            let same = other.ground(&free, 0.2).map(|found| (&backward[found.pu.at()], found.score));
            prop_assert_eq!(found, same);
            prop_assert!(found.is_none_or(|(_, score)| (0.2..=1.0).contains(&score)));
        }
    }
}
