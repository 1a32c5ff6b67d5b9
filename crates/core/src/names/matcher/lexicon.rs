//! Which words of names stand for which words of texts: "renal" for "kidney", learned from labelled texts.
//!
//! Decides how likely each word of a text brings a word of the name with it, by the first of IBM's translation models.
//! Invariant: equal pairs give equal lexicons, in any order up to the last bits, and a word that was seen once is at most
//! half as likely. It does not know products.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Rounds of expectation and maximisation.
const ROUNDS: usize = 6;
/// How often a word is taken to have stood for nothing, beyond what was seen.
const DOUBT: f64 = 1.0;
/// Least probability, and most words, that are kept for a word.
const KEPT_MIN: f64 = 0.08;
const KEPT_MAX: usize = 6;

/// Words of texts with the words of names that they stand for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Lexicon(BTreeMap<String, Vec<(String, f32)>>);

impl Lexicon {
    /// Learns from pairs of the words of a text and the words of a name of its product.
    pub(super) fn learn<'a>(pairs: impl Iterator<Item = (&'a [String], &'a [String])>) -> Self {
        let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
        let mut number = |word: &'a String| {
            let next = numbers.len() as u32 + 1;
            *numbers.entry(word).or_insert(next)
        };
        // 0 stands for no word: what a name says and the text does not.
        let pairs: Vec<(Vec<u32>, Vec<u32>)> = pairs
            .map(|(text, name)| {
                let text = std::iter::once(0)
                    .chain(text.iter().map(&mut number))
                    .collect();
                (text, name.iter().map(&mut number).collect())
            })
            .collect();
        let mut words = vec![""; numbers.len() + 1];
        numbers
            .into_iter()
            .for_each(|(word, number)| words[number as usize] = word);
        let mut chances: BTreeMap<(u32, u32), f64> = BTreeMap::new();
        for round in 0..ROUNDS {
            let mut counts: BTreeMap<(u32, u32), f64> = BTreeMap::new();
            let mut totals = vec![DOUBT; words.len()];
            for (text, name) in &pairs {
                for to in name {
                    let chance = |from: &u32| match round {
                        0 => 1.0,
                        _ => chances.get(&(*from, *to)).copied().unwrap_or(0.0),
                    };
                    let sum: f64 = text.iter().map(chance).sum();
                    for from in text {
                        let part = chance(from) / sum;
                        *counts.entry((*from, *to)).or_default() += part;
                        totals[*from as usize] += part;
                    }
                }
            }
            chances = counts;
            chances
                .iter_mut()
                .for_each(|((from, _), count)| *count /= totals[*from as usize]);
        }
        let mut lexicon: BTreeMap<String, Vec<(String, f32)>> = BTreeMap::new();
        for ((from, to), chance) in chances {
            let (from, to) = (words[from as usize], words[to as usize]);
            // A word stands for itself without having been learned.
            if chance >= KEPT_MIN && from != to && !from.is_empty() {
                lexicon
                    .entry(from.to_owned())
                    .or_default()
                    .push((to.to_owned(), chance as f32));
            }
        }
        for meant in lexicon.values_mut() {
            meant.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            meant.truncate(KEPT_MAX);
        }
        Self(lexicon)
    }

    /// Whether every probability is one.
    pub(super) fn is_sound(&self) -> bool {
        let all = self.0.values().flatten();
        all.into_iter()
            .all(|(_, chance)| (0.0..=1.0).contains(chance))
    }

    /// The words of names that the words of a text stand for.
    pub(super) fn said<'a>(&'a self, words: &'a [String]) -> Said<'a> {
        let mut of_name: BTreeMap<&str, f32> = BTreeMap::new();
        let of_text = words.iter().map(|word| match self.0.get(word) {
            Some(meant) => &meant[..],
            None => &[],
        });
        let of_text: Vec<&[(String, f32)]> = of_text.collect();
        for (to, chance) in of_text.iter().copied().flatten() {
            let most = of_name.entry(to).or_default();
            *most = most.max(*chance);
        }
        of_name.extend(words.iter().map(|word| (word.as_str(), 1.0)));
        Said {
            words,
            of_name,
            of_text,
        }
    }
}

/// What the words of one text stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Said<'a> {
    words: &'a [String],
    of_name: BTreeMap<&'a str, f32>,
    of_text: Vec<&'a [(String, f32)]>,
}

impl Said<'_> {
    /// Words that the text stands for and does not have, with their probabilities.
    pub(super) fn others(&self) -> impl Iterator<Item = (&str, f32)> {
        let all = self.of_name.iter().map(|(word, chance)| (*word, *chance));
        all.filter(|(_, chance)| *chance < 1.0)
    }

    /// Share of a name's words that the text says, by `rarity`.
    pub(super) fn of_name(&self, name: &[String], rarity: impl Fn(&str) -> f32) -> f32 {
        let mut sum = (0.0, 0.0);
        for word in name {
            let weight = rarity(word);
            sum.0 += weight * self.of_name.get(word.as_str()).copied().unwrap_or(0.0);
            sum.1 += weight;
        }
        if sum.1 > 0.0 { sum.0 / sum.1 } else { 0.0 }
    }

    /// Share of the text's words that the name says, by `rarity`.
    pub(super) fn of_text(&self, name: &[String], rarity: impl Fn(&str) -> f32) -> f32 {
        let mut sum = (0.0, 0.0);
        for (word, meant) in self.words.iter().zip(&self.of_text) {
            let weight = rarity(word);
            sum.1 += weight;
            if name.contains(word) {
                sum.0 += weight;
                continue;
            }
            // As likely as the likeliest word, the name could not say it better.
            let best = meant
                .iter()
                .filter(|(to, _)| name.contains(to))
                .map(|(_, chance)| *chance);
            let most = meant.first().map_or(1.0, |(_, chance)| *chance);
            sum.0 += weight * best.fold(0.0, f32::max) / most.max(0.5);
        }
        if sum.1 > 0.0 {
            (sum.0 / sum.1).min(1.0)
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_word_stands_for_what_it_comes_with_and_not_for_its_company() {
        let pairs = [
            ("small kidney", "renal hypoplasia"),
            ("big kidney", "renal enlargement"),
            ("kidney stone", "renal calculus"),
            ("small liver", "hepatic hypoplasia"),
            ("big liver", "hepatic enlargement"),
        ];
        let pairs = pairs.map(|(text, name)| (words(text), words(name)));
        let learn = |pairs: &[(Vec<String>, Vec<String>)]| {
            Lexicon::learn(pairs.iter().map(|(text, name)| (&text[..], &name[..])))
        };
        let lexicon = learn(&pairs);
        let text = words("small kidney");
        let said = lexicon.said(&text);
        let one = |_: &str| 1.0;
        let right = said.of_name(&words("renal hypoplasia"), one);
        for other in [
            "hepatic hypoplasia",
            "renal calculus",
            "hepatic enlargement",
        ] {
            assert!(said.of_name(&words(other), one) < right, "{other}");
            assert!(
                said.of_text(&words(other), one) < said.of_text(&words("renal hypoplasia"), one)
            );
        }
        assert!(said.others().any(|(word, _)| word == "renal"));
        assert!(lexicon.is_sound());
    }

    #[test]
    fn without_pairs_words_stand_for_themselves() {
        let text = words("green tea");
        let lexicon = Lexicon::learn(std::iter::empty());
        let said = lexicon.said(&text);
        assert_eq!(said.of_name(&words("black tea"), |_| 1.0), 0.5);
        assert_eq!(said.of_text(&words("tea"), |_| 1.0), 0.5);
        assert_eq!(said.others().count(), 0);
    }
}
