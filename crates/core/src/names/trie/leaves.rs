//! Permitted leaves and log-weights of leaves: counts and maxima over a range of leaves.
//!
//! Decides how a maximum is found: word by word of 64 leaves, whose greatest is known. Invariant: it is, bit for bit, the
//! log-weight of one permitted leaf of the range, and none is greater; a word that a user adds to or takes from is read
//! leaf by leaf. It does not know what the log-weights mean.

use std::ops::Range;

use fixedbitset::FixedBitSet;

use super::Trie;

/// Leaves per word.
const WORD: usize = 64;

/// The permitted leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permitted {
    words: Vec<u64>,
}

/// A log-weight per leaf: the sum of all terms beside the model's.
#[derive(Clone, Debug, PartialEq)]
pub struct LogWeights {
    /// `[leaves]`.
    leaf: Vec<f64>,
    /// The greatest of 64 leaves.
    word: Vec<f64>,
}

/// One user's log-weights of single leaves, sorted by leaf.
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

    /// The permitted leaves of a range, ascending.
    pub fn ones(&self, leaves: &Range<u32>) -> impl Iterator<Item = u32> + use<'_> {
        spans(leaves).flat_map(|(word, mask)| {
            let bits = ones(self.words[word] & mask);
            bits.map(move |bit| (word * WORD + bit) as u32)
        })
    }
}

impl LogWeights {
    /// The log-weights `value(PU)`, which must be finite.
    pub fn new(trie: &Trie, value: impl Fn(u32) -> f64) -> Self {
        Self::of(trie.pu.iter().map(|pu| value(*pu)).collect())
    }

    /// A copy for one user: `value(PU, log-weight)` in place of each log-weight.
    pub fn map(&self, trie: &Trie, value: impl Fn(u32, f64) -> f64) -> Self {
        let leaves = self.leaf.iter().zip(&trie.pu);
        Self::of(leaves.map(|(own, pu)| value(*pu, *own)).collect())
    }

    fn of(leaf: Vec<f64>) -> Self {
        let word = leaf.chunks(WORD).map(|word| greatest(word.iter().copied()));
        let word = word.collect();
        Self { leaf, word }
    }

    /// Log-weight of a leaf, with that of `own` added.
    pub fn at(&self, leaf: u32, own: &Own) -> f64 {
        self.leaf[leaf as usize] + own.at(leaf)
    }

    /// The greatest of the permitted leaves of a range, with the log-weights of `own` added; `None` permits all. Minus
    /// infinity if no leaf is permitted.
    pub fn max(&self, leaves: &Range<u32>, permitted: Option<&Permitted>, own: &Own) -> f64 {
        let own = own.of(leaves);
        let mut next = 0;
        let mut max = f64::NEG_INFINITY;
        for (word, mask) in spans(leaves) {
            let bits = permitted.map_or(mask, |permitted| permitted.words[word] & mask);
            let from = next;
            let end = ((word + 1) * WORD) as u32;
            while own.get(next).is_some_and(|(leaf, _)| *leaf < end) {
                next += 1;
            }
            max = match (bits, &own[from..next]) {
                (0, _) => max,
                (u64::MAX, []) => max.max(self.word[word]),
                // No leaf of the word exceeds the word's greatest, unless the user adds to it.
                (_, []) if self.word[word] <= max => max,
                (bits, []) => max.max(self.word_max(word, bits)),
                (bits, own) => max.max(self.word_max_with(word, bits, own)),
            };
        }
        max
    }

    fn word_max(&self, word: usize, bits: u64) -> f64 {
        let leaves = &self.leaf[word * WORD..];
        greatest(ones(bits).map(|bit| leaves[bit]))
    }

    fn word_max_with(&self, word: usize, bits: u64, own: &[(u32, f64)]) -> f64 {
        let mut own = own.iter().peekable();
        let leaves = ones(bits).map(|bit| word * WORD + bit);
        greatest(leaves.map(|leaf| {
            while own.next_if(|(at, _)| (*at as usize) < leaf).is_some() {}
            let more = own.next_if(|(at, _)| *at as usize == leaf);
            self.leaf[leaf] + more.map_or(0.0, |(_, more)| *more)
        }))
    }
}

impl Own {
    /// The log-weights of PUs. If a PU is named twice, both are added; a PU that the trie lacks is dropped.
    pub fn new(trie: &Trie, logs: impl Iterator<Item = (u32, f64)>) -> Self {
        let leaves = logs.filter_map(|(pu, log)| Some((trie.leaf(pu)?, log)));
        let mut own: Vec<(u32, f64)> = leaves.collect();
        // Stable, so that the logs of one PU are added in their order.
        own.sort_by_key(|(leaf, _)| *leaf);
        own.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0.0 };
            same
        });
        Self(own)
    }

    /// Whether there are no log-weights.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn at(&self, leaf: u32) -> f64 {
        let found = self.0.binary_search_by_key(&leaf, |(of, _)| *of);
        found.map_or(0.0, |at| self.0[at].1)
    }

    fn of(&self, leaves: &Range<u32>) -> &[(u32, f64)] {
        let from = self.0.partition_point(|(leaf, _)| *leaf < leaves.start);
        let to = self.0.partition_point(|(leaf, _)| *leaf < leaves.end);
        &self.0[from..to]
    }
}

/// The greatest of some finite numbers; minus infinity if there are none.
fn greatest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(f64::NEG_INFINITY, f64::max)
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
