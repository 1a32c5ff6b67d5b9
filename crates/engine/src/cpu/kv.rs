//! Keys and values of a user: of the prompt in blocks, and of trie nodes by slot.
//!
//! Decides the layout. Prompt positions lie in blocks of [`BLOCK`], counted from the prompt's start, so attention adds
//! in the same order whoever computed a block. Blocks are shared by prompts that begin alike; one that is written is
//! copied first if others have it. Invariant: nodes are appended and never moved, so a node can refer to its ancestors
//! by slot. It does not know tokens or tries.

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

    /// Keys, or values, of a block in one layer.
    fn of_layer(&self) -> usize {
        self.row() * BLOCK
    }

    /// Bytes of a block over all layers.
    pub(crate) fn block(&self) -> usize {
        self.position() * BLOCK
    }

    /// Bytes of keys and values of one position over all layers.
    pub fn position(&self) -> usize {
        2 * self.layers * self.row() * self.number
    }
}

/// Consecutive prompt positions, over all layers.
#[derive(Clone, Debug)]
struct Block {
    /// `[layers][heads][width][BLOCK]`: transposed, so that the scores of a block are one product.
    keys: Vec<f32>,
    /// `[layers][heads][BLOCK][width]`.
    values: Vec<f32>,
}

impl Block {
    fn new(sizes: &Sizes) -> Self {
        let empty = vec![0f32; sizes.layers * sizes.of_layer()];
        Self {
            keys: empty.clone(),
            values: empty,
        }
    }
}

/// Keys and values of the beginning of prompts, read-only and shared.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    /// Number of its positions.
    len: usize,
    blocks: Vec<Arc<Block>>,
}

impl Prefix {
    /// What tells its blocks from others, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = usize> {
        self.blocks.iter().map(|block| Arc::as_ptr(block).addr())
    }
}

/// Keys and values of one user.
#[derive(Clone, Debug)]
pub struct Cache {
    sizes: Sizes,
    /// The prompt's.
    blocks: Vec<Arc<Block>>,
    /// Number of positions in whole blocks that came from a prefix.
    shared: usize,
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
            blocks: Vec::new(),
            shared: 0,
            len: 0,
            node_keys: empty.clone(),
            node_values: empty,
            slots: 0,
        }
    }

    /// Creates a cache that starts with the first `len` positions of `prefix`.
    pub(crate) fn after(sizes: Sizes, prefix: &Prefix, len: usize) -> Self {
        assert!(len <= prefix.len, "a prefix is shared up to its length");
        Self {
            blocks: prefix.blocks[..len.div_ceil(BLOCK)].to_vec(),
            shared: len / BLOCK * BLOCK,
            len,
            ..Self::new(sizes)
        }
    }

    /// Turns the cache of a whole prompt into a prefix for other prompts.
    pub(crate) fn into_prefix(self) -> Prefix {
        Prefix {
            len: self.len,
            blocks: self.blocks,
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
        (self.len - self.shared + self.slots) * sizes.position()
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
        let Sizes { heads, width, .. } = self.sizes;
        let (nth, column) = (position / BLOCK, position % BLOCK);
        while self.blocks.len() <= nth {
            self.blocks.push(Arc::new(Block::new(&self.sizes)));
        }
        let block = Arc::make_mut(&mut self.blocks[nth]);
        for head in 0..heads {
            let base = (layer * heads + head) * width * BLOCK;
            for (i, key) in key[head * width..][..width].iter().enumerate() {
                block.keys[base + i * BLOCK + column] = *key;
            }
            let value = &value[head * width..][..width];
            block.values[base + column * width..][..width].copy_from_slice(value);
        }
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
        let size = self.sizes.width * BLOCK;
        let from = (layer * self.sizes.heads + head) * size;
        let block = &self.blocks[block];
        (
            &block.keys[from..from + size],
            &block.values[from..from + size],
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
            let prefix = first.clone().into_prefix();
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
            // Whole blocks are shared, a block in part is copied.
            let (of_prefix, own) = (prefix.blocks(), cache.into_prefix());
            let same = of_prefix.zip(own.blocks()).take_while(|(a, b)| a == b);
            assert_eq!(same.count(), shared / BLOCK, "shared {shared}");
            assert_eq!(own.blocks().count(), 200usize.div_ceil(BLOCK));
        }
    }
}
