//! Prompts that were computed, kept for later batches: [`Prompts`].
//!
//! A prompt that begins as an earlier one, a user's own of before or another's with the same profile, takes the keys and
//! values of that beginning. The idea is SGLang's RadixAttention (Zheng et al. 2024, arXiv:2312.07104); ours needs no
//! tree: prompts are sorted by their tokens, so the one that shares the longest beginning with another is next to its
//! place in the order, and blocks of positions are shared by reference.
//!
//! Decides what is dropped over the limit: what was stored longest ago. A beginning that is in use lives on in the
//! prompts that took it. Invariant: keys and values of a position depend on the tokens up to it alone, bit for bit, so
//! what is kept changes times and never lists; the bytes of all kept blocks are within the limit. It does not know
//! users.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::backend::Prefix;
use super::constrained::common_len;

/// Computed prompts within a number of bytes.
#[derive(Default)]
pub(crate) struct Prompts {
    bytes_max: usize,
    /// Bytes of a block.
    block: usize,
    kept: BTreeMap<Arc<[u32]>, Kept>,
    /// The prompts by age, oldest first.
    ages: BTreeMap<u64, Arc<[u32]>>,
    next: u64,
    /// How many kept prompts have each block.
    blocks: HashMap<usize, usize>,
}

struct Kept {
    prefix: Prefix,
    age: u64,
}

impl Prompts {
    /// Keeps blocks of `block` bytes each, of at most `bytes_max` together.
    pub(crate) fn new(bytes_max: usize, block: usize) -> Self {
        Self {
            bytes_max,
            block,
            ..Self::default()
        }
    }

    /// Whether a prompt could be kept at all.
    pub(crate) fn keeps(&self) -> bool {
        self.bytes_max > 0
    }

    /// Bytes of all kept keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.len() * self.block
    }

    /// The prompt that shares the longest beginning with `tokens`, and its length; `None` if none shares any.
    pub(crate) fn nearest(&self, tokens: &[u32]) -> Option<(&Prefix, usize)> {
        let before = (Bound::Unbounded, Bound::Included(tokens));
        let after = (Bound::Excluded(tokens), Bound::Unbounded);
        let before = self.kept.range::<[u32], _>(before).next_back();
        let after = self.kept.range::<[u32], _>(after).next();
        let both = before.into_iter().chain(after);
        let shared = both.map(|(other, kept)| (&kept.prefix, common_len(other, tokens)));
        shared
            .filter(|(_, shared)| *shared > 0)
            .max_by_key(|(_, shared)| *shared)
    }

    /// Keeps a prompt; drops the oldest ones over the limit. Prefixes of a device are not kept.
    pub(crate) fn insert(&mut self, prefix: Prefix) {
        let Some(blocks) = prefix.blocks() else {
            return;
        };
        if blocks.len() * self.block > self.bytes_max {
            return;
        }
        let tokens: Arc<[u32]> = prefix.tokens.as_slice().into();
        self.remove(&tokens);
        for block in blocks {
            *self.blocks.entry(block).or_default() += 1;
        }
        let age = self.next;
        self.next += 1;
        self.ages.insert(age, Arc::clone(&tokens));
        self.kept.insert(tokens, Kept { prefix, age });
        while self.bytes() > self.bytes_max {
            let Some(oldest) = self.ages.values().next().cloned() else {
                break;
            };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, tokens: &[u32]) {
        let Some(kept) = self.kept.remove(tokens) else {
            return;
        };
        self.ages.remove(&kept.age);
        for block in kept.prefix.blocks().unwrap_or_default() {
            let Some(count) = self.blocks.get_mut(&block) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.blocks.remove(&block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::kv::{BLOCK, Cache, Sizes};

    const SIZES: Sizes = Sizes {
        layers: 1,
        heads: 1,
        width: 2,
        number: size_of::<f32>(),
    };

    /// Computes a prompt after what is kept of it: each position's key is the sum of the tokens up to it.
    fn computed(prompts: &Prompts, tokens: &[u32]) -> (Prefix, usize) {
        let (mut cache, known) = match prompts.nearest(&tokens[..tokens.len() - 1]) {
            Some((prefix, known)) => (prefix.host_cache(SIZES, known), known),
            None => (Cache::new(SIZES), 0),
        };
        let mut sum: u32 = tokens[..known].iter().sum();
        for (position, token) in tokens.iter().enumerate().skip(known) {
            sum += token;
            cache.write_prompt(0, position, &[sum as f32, 0.0], &[0.0, sum as f32]);
        }
        cache.advance(tokens.len() - known, 0);
        (Prefix::of_host(cache, tokens.to_vec()), known)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn what_is_kept_is_the_longest_beginning_with_its_own_numbers_within_the_limit(
            prompts in prop::collection::vec(prop::collection::vec(0u32..3, 1..6), 1..40),
            blocks_max in 1usize..40,
        ) {
            let block = SIZES.block();
            let mut kept = Prompts::new(blocks_max * block, block);
            let mut order: Vec<Vec<u32>> = Vec::new();
            for prompt in prompts {
                // Each letter is 40 tokens, so that prompts part within blocks and at any of them.
                let tokens: Vec<u32> = prompt.iter().flat_map(|letter| [*letter; 40]).collect();
                let (prefix, known) = computed(&kept, &tokens);
                let head = &tokens[..tokens.len() - 1];
                let longest = order.iter().filter(|other| kept.kept.contains_key(&other[..]));
                let longest = longest.map(|other| common_len(other, head)).max();
                prop_assert_eq!(known, longest.unwrap_or(0));
                let cache = prefix.host_cache(SIZES, tokens.len());
                let mut sum = 0;
                for (position, token) in tokens.iter().enumerate() {
                    sum += token;
                    let (keys, values) = cache.block(0, 0, position / BLOCK);
                    prop_assert_eq!(keys[position % BLOCK], sum as f32);
                    prop_assert_eq!(values[position % BLOCK * 2 + 1], sum as f32);
                }
                kept.insert(prefix);
                order.retain(|other| *other != tokens);
                order.push(tokens);
                prop_assert!(kept.bytes() <= blocks_max * block);
                // The newest are kept, and of those nothing is forgotten between two that are kept.
                let is_kept: Vec<bool> = (order.iter())
                    .map(|other| kept.kept.contains_key(&other[..]))
                    .collect();
                let first = is_kept.iter().position(|kept| *kept).unwrap_or(order.len());
                let fits = order[first..].iter().all(|it| it.len().div_ceil(BLOCK) <= blocks_max);
                prop_assert!(!fits || is_kept[first..].iter().all(|kept| *kept));
                prop_assert_eq!(kept.ages.len(), kept.kept.len());
            }
        }
    }

    #[test]
    fn without_a_limit_nothing_is_kept() {
        let mut kept = Prompts::new(0, SIZES.block());
        assert!(!kept.keeps());
        let (prefix, _) = computed(&kept, &[1, 2, 3]);
        kept.insert(prefix);
        assert_eq!((kept.bytes(), kept.kept.len()), (0, 0));
        assert!(kept.nearest(&[1, 2]).is_none());
    }
}
