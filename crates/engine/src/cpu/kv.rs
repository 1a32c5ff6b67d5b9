//! Keys and values: of a shared prefix once, of a user's tail, and of trie nodes by slot.
//!
//! Decides the layout. Prompt positions lie in blocks of [`BLOCK`] counted from the prompt's start,
//! whoever computed them, so attention adds in the same order whether a prefix was shared or not;
//! a block that a shared prefix fills only partly is copied. Nodes are appended and never moved or
//! reordered: a node knows its ancestors' slots. It does not know tokens or tries.

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
    /// Width of a key row over all heads.
    pub fn row(&self) -> usize {
        self.heads * self.width
    }

    fn block(&self) -> usize {
        self.row() * BLOCK
    }

    /// Bytes of keys and values of one position, all layers.
    pub fn position(&self) -> usize {
        2 * self.layers * self.row() * self.number
    }
}

/// Consecutive prompt positions from a block's start on.
#[derive(Clone, Debug)]
struct Run {
    sizes: Sizes,
    /// Per layer `[blocks][heads][width][BLOCK]`: transposed, so scores of a block are one product.
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

/// A computed beginning of prompts, read-only and shared.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    /// Its tokens.
    pub tokens: Vec<u32>,
    run: Arc<Run>,
}

/// Keys and values of one user.
#[derive(Clone, Debug)]
pub struct Cache {
    sizes: Sizes,
    /// Whole blocks taken from a prefix, and how many.
    shared: Option<(Arc<Run>, usize)>,
    own: Run,
    /// Prompt positions known.
    len: usize,
    /// Per layer `[slots][row]`.
    node_keys: Vec<Vec<f32>>,
    node_values: Vec<Vec<f32>>,
    slots: usize,
}

impl Cache {
    /// An empty cache.
    pub fn new(sizes: Sizes) -> Self {
        let empty = vec![Vec::new(); sizes.layers];
        Self {
            sizes,
            shared: None,
            own: Run::new(sizes),
            len: 0,
            node_keys: empty.clone(),
            node_values: empty,
            slots: 0,
        }
    }

    /// A cache that starts with the first `len` positions of `prefix`.
    pub(crate) fn after(sizes: Sizes, prefix: &Prefix, len: usize) -> Self {
        assert!(
            len <= prefix.tokens.len(),
            "a prefix is shared as far as it goes"
        );
        let mut cache = Self::new(sizes);
        let blocks = len / BLOCK;
        if !len.is_multiple_of(BLOCK) {
            cache.own.copy_block(&prefix.run, blocks);
        }
        cache.shared = Some((Arc::clone(&prefix.run), blocks));
        cache.len = len;
        cache
    }

    /// The whole prompt as a prefix for others; `tokens` are its tokens.
    pub(crate) fn into_prefix(self, tokens: Vec<u32>) -> Prefix {
        assert_eq!(self.len, tokens.len(), "every position was computed");
        let mut run = Run::new(self.sizes);
        if let Some((shared, blocks)) = &self.shared {
            for block in 0..*blocks {
                run.copy_block(shared, block);
            }
        }
        for layer in 0..self.sizes.layers {
            run.keys[layer].extend_from_slice(&self.own.keys[layer]);
            run.values[layer].extend_from_slice(&self.own.values[layer]);
        }
        Prefix {
            tokens,
            run: Arc::new(run),
        }
    }

    /// Prompt positions known.
    pub fn known(&self) -> usize {
        self.len
    }

    /// Node slots in use: the next forwarded node token gets this slot.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bytes of its own keys and values.
    pub fn bytes(&self, sizes: Sizes) -> usize {
        let shared = self.shared.as_ref().map_or(0, |(_, blocks)| blocks * BLOCK);
        (self.len - shared + self.slots) * sizes.position()
    }

    /// Drops all node slots.
    pub(crate) fn forget_nodes(&mut self) {
        for layer in self.node_keys.iter_mut().chain(&mut self.node_values) {
            layer.clear();
        }
        self.slots = 0;
    }

    /// Writes a prompt position of one layer; [`advance`](Self::advance) after the last layer.
    pub fn write_prompt(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let first = self.shared.as_ref().map_or(0, |(_, blocks)| blocks * BLOCK);
        self.own.write(layer, position - first, key, value);
    }

    /// Appends a node token of one layer; [`advance`](Self::advance) after the last layer.
    pub fn push_node(&mut self, layer: usize, key: &[f32], value: &[f32]) {
        self.node_keys[layer].extend_from_slice(key);
        self.node_values[layer].extend_from_slice(value);
    }

    /// Counts what all layers have written.
    pub fn advance(&mut self, positions: usize, nodes: usize) {
        self.len += positions;
        self.slots += nodes;
    }

    /// Keys `[width][BLOCK]` and values `[BLOCK][width]` of one prompt block and head.
    pub fn block(&self, layer: usize, head: usize, block: usize) -> (&[f32], &[f32]) {
        let (run, block) = match &self.shared {
            Some((shared, blocks)) if block < *blocks => (&**shared, block),
            Some((_, blocks)) => (&self.own, block - blocks),
            None => (&self.own, block),
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
    fn a_cache_after_a_prefix_equals_one_that_computed_it_all() {
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
