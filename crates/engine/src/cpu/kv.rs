//! Keys and values of a user: of a shared prefix, of the rest of the prompt, and of trie nodes by slot.
//!
//! Decides the layout. Prompt positions lie in blocks of [`BLOCK`], counted from the prompt's start, so attention adds
//! in the same order with and without a shared prefix; a block that a prefix fills only partly is copied. Invariant:
//! nodes are appended and never moved, so a node can refer to its ancestors by slot. It does not know tokens or tries.

use std::sync::Arc;

/// Prompt positions per block.
pub(crate) const BLOCK: usize = 64;

/// Sizes of one model's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub heads: usize,
    /// Width of a head.
    pub width: usize,
    /// Bytes of one number.
    pub number: usize,
}

impl Sizes {
    /// Width of a row of keys or values over all heads.
    pub fn row(&self) -> usize {
        self.heads * self.width
    }

    fn block(&self) -> usize {
        self.row() * BLOCK
    }

    /// Bytes of keys and values of one position over all layers.
    pub fn position(&self) -> usize {
        2 * self.layers * self.row() * self.number
    }
}

/// Consecutive prompt positions that start at a block.
#[derive(Clone, Debug)]
struct Run {
    sizes: Sizes,
    /// Per layer `[blocks][heads][width][BLOCK]`: transposed, so that the scores of a block are one product.
    keys: Vec<Vec<f32>>,
    /// Per layer `[blocks][heads][BLOCK][width]`.
    values: Vec<Vec<f32>>,
}

impl Run {
    fn new(sizes: Sizes) -> Self {
        let empty = vec![Vec::new(); sizes.layers];
        Self {
            sizes,
            keys: empty.clone(),
            values: empty,
        }
    }

    fn write(&mut self, layer: usize, at: usize, key: &[f32], value: &[f32]) {
        let Sizes { heads, width, .. } = self.sizes;
        let (block, column) = (at / BLOCK, at % BLOCK);
        let blocks = (block + 1) * self.sizes.block();
        let (keys, values) = (&mut self.keys[layer], &mut self.values[layer]);
        if keys.len() < blocks {
            keys.resize(blocks, 0.0);
            values.resize(blocks, 0.0);
        }
        for head in 0..heads {
            let base = (block * heads + head) * width * BLOCK;
            for (i, key) in key[head * width..][..width].iter().enumerate() {
                keys[base + i * BLOCK + column] = *key;
            }
            let value = &value[head * width..][..width];
            values[base + column * width..][..width].copy_from_slice(value);
        }
    }

    fn copy_block(&mut self, from: &Self, block: usize) {
        let range = block * self.sizes.block()..(block + 1) * self.sizes.block();
        for layer in 0..self.sizes.layers {
            self.keys[layer].extend_from_slice(&from.keys[layer][range.clone()]);
            self.values[layer].extend_from_slice(&from.values[layer][range.clone()]);
        }
    }
}

/// Keys and values of the beginning of prompts, read-only and shared.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    /// The tokens of the beginning.
    pub tokens: Vec<u32>,
    run: Arc<Run>,
}

/// Keys and values of one user.
#[derive(Clone, Debug)]
pub struct Cache {
    sizes: Sizes,
    /// The prefix, and how many whole blocks of it are used.
    shared: Option<(Arc<Run>, usize)>,
    tail: Run,
    /// Number of prompt positions that are computed.
    len: usize,
    /// Per layer `[slots][row]`.
    node_keys: Vec<Vec<f32>>,
    node_values: Vec<Vec<f32>>,
    slots: usize,
}

impl Cache {
    /// Creates an empty cache.
    pub fn new(sizes: Sizes) -> Self {
        let empty = vec![Vec::new(); sizes.layers];
        Self {
            sizes,
            shared: None,
            tail: Run::new(sizes),
            len: 0,
            node_keys: empty.clone(),
            node_values: empty,
            slots: 0,
        }
    }

    /// Creates a cache that starts with the first `len` positions of `prefix`.
    pub(crate) fn after(sizes: Sizes, prefix: &Prefix, len: usize) -> Self {
        assert!(
            len <= prefix.tokens.len(),
            "a prefix is shared up to its length"
        );
        let mut cache = Self::new(sizes);
        let blocks = len / BLOCK;
        if !len.is_multiple_of(BLOCK) {
            cache.tail.copy_block(&prefix.run, blocks);
        }
        cache.shared = Some((Arc::clone(&prefix.run), blocks));
        cache.len = len;
        cache
    }

    /// Turns the cache of a whole prompt, whose tokens are `tokens`, into a prefix for other prompts.
    pub(crate) fn into_prefix(self, tokens: Vec<u32>) -> Prefix {
        assert_eq!(self.len, tokens.len(), "every position is computed");
        let mut run = Run::new(self.sizes);
        if let Some((shared, blocks)) = &self.shared {
            for block in 0..*blocks {
                run.copy_block(shared, block);
            }
        }
        for layer in 0..self.sizes.layers {
            run.keys[layer].extend_from_slice(&self.tail.keys[layer]);
            run.values[layer].extend_from_slice(&self.tail.values[layer]);
        }
        Prefix {
            tokens,
            run: Arc::new(run),
        }
    }

    /// Number of prompt positions that are computed.
    pub fn known(&self) -> usize {
        self.len
    }

    /// Number of node slots in use, which is the slot of the next node token.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes of its own keys and values, without those of a shared prefix.
    pub fn bytes(&self, sizes: Sizes) -> usize {
        let shared = self.shared.as_ref().map_or(0, |(_, blocks)| blocks * BLOCK);
        (self.len - shared + self.slots) * sizes.position()
    }

    /// Frees all node slots.
    pub(crate) fn forget_nodes(&mut self) {
        for layer in self.node_keys.iter_mut().chain(&mut self.node_values) {
            layer.clear();
        }
        self.slots = 0;
    }

    /// Writes a prompt position of one layer; call [`advance`](Self::advance) after the last layer.
    pub fn write_prompt(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let first = self.shared.as_ref().map_or(0, |(_, blocks)| blocks * BLOCK);
        self.tail.write(layer, position - first, key, value);
    }

    /// Appends a node token of one layer; call [`advance`](Self::advance) after the last layer.
    pub fn push_node(&mut self, layer: usize, key: &[f32], value: &[f32]) {
        self.node_keys[layer].extend_from_slice(key);
        self.node_values[layer].extend_from_slice(value);
    }

    /// Counts positions and nodes that all layers have written.
    pub fn advance(&mut self, positions: usize, nodes: usize) {
        self.len += positions;
        self.slots += nodes;
    }

    /// Keys `[width][BLOCK]` and values `[BLOCK][width]` of one prompt block and head.
    pub fn block(&self, layer: usize, head: usize, block: usize) -> (&[f32], &[f32]) {
        let (run, block) = match &self.shared {
            Some((shared, blocks)) if block < *blocks => (&**shared, block),
            Some((_, blocks)) => (&self.tail, block - blocks),
            None => (&self.tail, block),
        };
        let size = self.sizes.width * BLOCK;
        let from = (block * self.sizes.heads + head) * size;
        (
            &run.keys[layer][from..from + size],
            &run.values[layer][from..from + size],
        )
    }

    /// Key and value of one node slot and head, each `[width]`.
    pub fn node(&self, layer: usize, head: usize, slot: usize) -> (&[f32], &[f32]) {
        let from = slot * self.sizes.row() + head * self.sizes.width;
        let range = from..from + self.sizes.width;
        (
            &self.node_keys[layer][range.clone()],
            &self.node_values[layer][range],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        layers: 2,
        heads: 2,
        width: 4,
        number: size_of::<f32>(),
    };

    fn fill(cache: &mut Cache, to: usize) {
        let from = cache.known();
        for layer in 0..SIZES.layers {
            for position in from..to {
                let row: Vec<f32> = (0..SIZES.row())
                    .map(|i| (layer * 10_000 + position * 10 + i) as f32)
                    .collect();
                cache.write_prompt(layer, position, &row, &row);
            }
        }
        cache.advance(to - from, 0);
    }

    #[test]
    fn a_cache_after_a_prefix_equals_one_without_a_prefix() {
        let mut whole = Cache::new(SIZES);
        fill(&mut whole, 200);
        let mut first = Cache::new(SIZES);
        fill(&mut first, 150);
        for shared in [0, 1, 63, 64, 65, 128, 150] {
            let prefix = first.clone().into_prefix(vec![0; 150]);
            let mut cache = Cache::after(SIZES, &prefix, shared);
            fill(&mut cache, 200);
            for (layer, head, block) in [(0, 0, 0), (1, 1, 1), (0, 1, 2), (1, 0, 3)] {
                let (keys, values) = cache.block(layer, head, block);
                let (all_keys, all_values) = whole.block(layer, head, block);
                let known = (200 - block * BLOCK).min(BLOCK);
                for i in 0..SIZES.width {
                    let row = i * BLOCK..i * BLOCK + known;
                    assert_eq!(keys[row.clone()], all_keys[row], "shared {shared}");
                }
                let rows = ..known * SIZES.width;
                assert_eq!(values[rows], all_values[rows], "shared {shared}");
            }
            let again = cache.into_prefix(vec![0; 200]);
            assert_eq!(again.tokens.len(), 200);
        }
    }
}
