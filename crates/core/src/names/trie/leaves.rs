//! Permitted leaves and masses of leaves, counted and summed over a range of leaves.
//!
//! Decides how sums are computed. Invariant: a sum adds in leaf order within words of 64 leaves and then word by word,
//! never by differences. So it does not depend on earlier patches, and a rare name keeps its digits beside a common
//! one.

use std::ops::Range;

use fixedbitset::FixedBitSet;

use super::Trie;

/// Leaves per word.
const WORD: usize = 64;

/// Greatest magnitude of an exponent, so that no mass is zero or infinite.
const EXPONENT_MAX: f64 = 300.0;

/// The permitted leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permitted {
    words: Vec<u64>,
}

/// A non-negative mass per leaf.
#[derive(Clone, Debug, PartialEq)]
pub struct Masses {
    /// `[leaves]`.
    leaf: Vec<f64>,
    /// Sums of 64 leaves.
    word: Vec<f64>,
}

/// One user's factors of single leaves, sorted by leaf.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Own(Vec<(u32, f64)>);

impl Permitted {
    /// Permits the leaves of `pus`. PUs that the trie lacks are dropped; PUs beyond the end of the set are forbidden.
    pub fn new(trie: &Trie, pus: &FixedBitSet) -> Self {
        let blocks = pus.as_slice();
        let bit = |pu: u32| {
            let block = blocks.get(pu as usize / WORD).copied().unwrap_or(0);
            (block as u64) >> (pu % WORD as u32) & 1
        };
        let word = |pus: &[u32]| {
            let bits = pus.iter().enumerate();
            bits.fold(0, |word, (at, pu)| word | bit(*pu) << at)
        };
        Self {
            words: trie.pu.chunks(WORD).map(word).collect(),
        }
    }

    /// Changes the set of `before` into that of `after`, as [`Permitted::new`] would make it, in time proportional to
    /// the difference.
    pub fn patch(&mut self, trie: &Trie, before: &FixedBitSet, after: &FixedBitSet) {
        let (before, after) = (before.as_slice(), after.as_slice());
        for at in 0..before.len().max(after.len()) {
            let block = |set: &[usize]| set.get(at).copied().unwrap_or(0);
            let mut differs = block(before) ^ block(after);
            while differs != 0 {
                let bit = differs.trailing_zeros();
                differs &= differs - 1;
                self.set(trie, (at * WORD) as u32 + bit, block(after) >> bit & 1 == 1);
            }
        }
    }

    /// Permits or forbids one PU; no effect if the trie lacks it.
    pub fn set(&mut self, trie: &Trie, pu: u32, permitted: bool) {
        let Some(leaf) = trie.leaf(pu) else { return };
        let word = &mut self.words[leaf as usize / WORD];
        let bit = leaf as usize % WORD;
        *word = *word & !(1 << bit) | u64::from(permitted) << bit;
    }

    /// Whether a leaf is permitted.
    pub fn contains(&self, leaf: u32) -> bool {
        self.words[leaf as usize / WORD] >> (leaf as usize % WORD) & 1 == 1
    }

    /// Number of permitted leaves in a range.
    pub fn count(&self, leaves: &Range<u32>) -> u32 {
        let words = spans(leaves).map(|(word, mask)| (self.words[word] & mask).count_ones());
        words.sum()
    }

    /// The first permitted leaf of a range.
    pub fn first(&self, leaves: &Range<u32>) -> Option<u32> {
        let mut bits = spans(leaves).map(|(word, mask)| (word, self.words[word] & mask));
        let (word, bits) = bits.find(|(_, bits)| *bits != 0)?;
        Some((word * WORD) as u32 + bits.trailing_zeros())
    }
}

impl Masses {
    /// The masses `exp(log_mass(PU))`, scaled so that the greatest is 1.
    pub fn new(trie: &Trie, log_mass: impl Fn(u32) -> f64) -> Self {
        let mut leaf: Vec<f64> = trie.pu.iter().map(|pu| log_mass(*pu)).collect();
        let max = leaf.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for log in &mut leaf {
            *log = (*log - max).max(-EXPONENT_MAX).exp();
        }
        Self::of(leaf)
    }

    /// These masses times `exp(log(PU))`, for one user.
    pub fn tilted(&self, trie: &Trie, log: impl Fn(u32) -> f64) -> Self {
        let factor = |pu: &u32| log(*pu).clamp(-EXPONENT_MAX, EXPONENT_MAX).exp();
        let leaves = self.leaf.iter().zip(&trie.pu);
        Self::of(leaves.map(|(mass, pu)| mass * factor(pu)).collect())
    }

    fn of(leaf: Vec<f64>) -> Self {
        let word = leaf.chunks(WORD).map(|word| word.iter().sum()).collect();
        Self { leaf, word }
    }

    /// Mass of the permitted leaves of a range, multiplied by the factors in `factors`; `None` permits all.
    pub fn sum(&self, leaves: &Range<u32>, permitted: Option<&Permitted>, factors: &Own) -> f64 {
        let factors = factors.of(leaves);
        let mut next = 0;
        let mut sum = 0.0;
        for (word, mask) in spans(leaves) {
            let bits = permitted.map_or(mask, |permitted| permitted.words[word] & mask);
            let from = next;
            let end = ((word + 1) * WORD) as u32;
            while factors.get(next).is_some_and(|(leaf, _)| *leaf < end) {
                next += 1;
            }
            let factors = &factors[from..next];
            sum += match (bits, factors) {
                (0, _) => 0.0,
                (u64::MAX, []) => self.word[word],
                (bits, []) => self.word_sum(word, bits),
                (bits, factors) => self.sum_with_factors(word, bits, factors),
            };
        }
        sum
    }

    fn word_sum(&self, word: usize, bits: u64) -> f64 {
        let leaves = &self.leaf[word * WORD..];
        ones(bits).map(|bit| leaves[bit]).sum()
    }

    fn sum_with_factors(&self, word: usize, bits: u64, factors: &[(u32, f64)]) -> f64 {
        let mut factors = factors.iter().peekable();
        let leaves = ones(bits).map(|bit| word * WORD + bit);
        let masses = leaves.map(|leaf| {
            while factors.next_if(|(at, _)| (*at as usize) < leaf).is_some() {}
            let factor = factors.next_if(|(at, _)| *at as usize == leaf);
            self.leaf[leaf] * factor.map_or(1.0, |(_, factor)| *factor)
        });
        masses.sum()
    }
}

impl Own {
    /// The factors `exp(log)` of PUs. If a PU is named twice, both count; a PU that the trie lacks is dropped.
    pub fn new(trie: &Trie, logs: impl Iterator<Item = (u32, f64)>) -> Self {
        let mut factors: Vec<(u32, f64)> = logs
            .filter_map(|(pu, log)| Some((trie.leaf(pu)?, log)))
            .collect();
        factors.sort_by_key(|(leaf, _)| *leaf);
        factors.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0.0 };
            same
        });
        for (_, log) in &mut factors {
            *log = log.clamp(-EXPONENT_MAX, EXPONENT_MAX).exp();
        }
        Self(factors)
    }

    /// Whether there are no factors.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, leaves: &Range<u32>) -> &[(u32, f64)] {
        let from = self.0.partition_point(|(leaf, _)| *leaf < leaves.start);
        let to = self.0.partition_point(|(leaf, _)| *leaf < leaves.end);
        &self.0[from..to]
    }
}

/// The words that a range of leaves touches, each with a mask of its leaves.
fn spans(leaves: &Range<u32>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let (start, end) = (leaves.start as usize, leaves.end as usize);
    (start / WORD..end.div_ceil(WORD)).map(move |word| {
        let first = word * WORD;
        let low = u64::MAX << start.saturating_sub(first).min(WORD - 1);
        let high = u64::MAX >> (first + WORD).saturating_sub(end).min(WORD - 1);
        (word, low & high)
    })
}

/// Indices of the set bits, ascending.
fn ones(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = bits.trailing_zeros() as usize;
        bits &= bits.checked_sub(1)?;
        Some(bit)
    })
}
