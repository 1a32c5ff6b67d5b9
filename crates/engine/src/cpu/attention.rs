//! Attention of packed rows of many users, over prompt blocks and trie ancestors, on the CPU.
//!
//! Decides the order of the work: per user and key head, rows in tiles; each prompt block is read once per tile; a
//! row's scores over its prompt and its ancestors share one softmax. Invariant: a row's result depends on its own
//! user's keys and values alone, which are added in the order of positions, then slots. It does not know projections,
//! nor how the [`Cache`] is filled.

use std::ops::Range;

use super::kernel::{self, Tile};
use super::kv::{BLOCK, Cache};

/// Rows of a tile: the scores of 16 rows of 3 heads over 512 positions fit into the L2 cache.
const ROWS: usize = 16;

/// The keys and values that one query row sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Number of prompt positions, counted from the first.
    pub prompt: usize,
    /// Slots of nodes, ancestors first and the row itself last; empty for a row of the prompt.
    pub slots: Vec<u32>,
}

/// Rows of one user in a packed pass.
#[derive(Clone, Debug)]
pub struct Span {
    /// Index of the user's cache.
    pub cache: usize,
    /// The user's rows in the pass.
    pub rows: Range<usize>,
}

impl Sight {
    /// Number of the first positions that a row does not see through a window of `window` positions.
    fn hidden(&self, window: Option<usize>) -> usize {
        // Slots follow the prompt: a node's ancestors are the positions before it.
        let seen = self.prompt + self.slots.len();
        window.map_or(0, |window| seen.saturating_sub(window))
    }
}

/// Sizes of the queries.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key heads.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
}

impl Heads {
    fn row(&self) -> usize {
        self.queries * self.width
    }

    fn group(&self) -> usize {
        self.queries / self.keys
    }
}

/// Queries of one pass: `[rows, heads · width]`, rotated, with a [`Sight`] per row.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Sizes.
    pub heads: Heads,
    /// Values, row-major.
    pub values: &'a [f32],
    /// What each row sees.
    pub sights: &'a [Sight],
    /// Number of positions that a row sees at most, itself included; `None`: all before it.
    pub window: Option<usize>,
}

/// `[rows, heads · width]`: softmax(q · kᵀ / √width) · v of every row of every span.
pub fn attend(queries: Queries, spans: &[Span], caches: &[Cache], layer: usize) -> Vec<f32> {
    let heads = queries.heads;
    let mut out = vec![0f32; queries.sights.len() * heads.row()];
    let mut scratch = Scratch::default();
    for span in spans {
        for head in 0..heads.keys {
            let mut from = span.rows.start;
            while from < span.rows.end {
                let rows = from..span.rows.end.min(from + ROWS);
                let keys = Keys {
                    cache: &caches[span.cache],
                    layer,
                    head,
                };
                scratch.tile(queries, rows.clone(), keys, &mut out);
                from = rows.end;
            }
        }
    }
    out
}

/// One tile: rows of one user and one key head.
struct Work<'a> {
    sights: &'a [Sight],
    cache: &'a Cache,
    layer: usize,
    head: usize,
    /// Query heads per key head.
    group: usize,
    /// Width of a head.
    width: usize,
    /// The most prompt positions that a row sees.
    prompt: usize,
    /// Number of blocks of these positions.
    blocks: usize,
    /// Number of the first blocks that no row sees.
    hidden: usize,
    /// Number of positions that a row sees at most.
    window: Option<usize>,
    /// Number of scores of a query: over the blocks, then over the ancestors.
    stride: usize,
}

impl Work<'_> {
    /// Every query of the tile, with the sight of its row.
    fn queries(&self) -> impl Iterator<Item = (usize, &Sight)> {
        let count = self.sights.len() * self.group;
        (0..count).map(|query| (query, &self.sights[query / self.group]))
    }
}

/// Buffers that are reused from tile to tile.
#[derive(Default)]
struct Scratch {
    /// `[rows · group, width]`.
    query: Vec<f32>,
    /// `[rows · group, stride]`.
    scores: Vec<f32>,
    /// `[rows · group, width]`.
    result: Vec<f32>,
}

impl Scratch {
    fn tile(&mut self, queries: Queries, rows: Range<usize>, keys: Keys, out: &mut [f32]) {
        let heads = queries.heads;
        let (group, width) = (heads.group(), heads.width);
        let sights = &queries.sights[rows.clone()];
        let prompt = sights.iter().map(|sight| sight.prompt).max().unwrap_or(0);
        let ancestors = sights
            .iter()
            .map(|sight| sight.slots.len())
            .max()
            .unwrap_or(0);
        let blocks = prompt.div_ceil(BLOCK);
        let hidden = sights.iter().map(|sight| sight.hidden(queries.window));
        let hidden = (hidden.min().unwrap_or(0) / BLOCK).min(blocks);
        let stride = blocks * BLOCK + ancestors;
        let Keys { cache, layer, head } = keys;
        let work = Work {
            sights,
            cache,
            layer,
            head,
            group,
            width,
            prompt,
            blocks,
            hidden,
            window: queries.window,
            stride,
        };
        // The query heads of a group are contiguous in a row.
        let place = |row: usize| row * heads.row() + head * group * width;
        self.query.clear();
        for row in rows.clone() {
            self.query
                .extend_from_slice(&queries.values[place(row)..][..group * width]);
        }
        self.scores.clear();
        self.scores.resize(rows.len() * group * stride, 0.0);
        self.result.clear();
        self.result.resize(rows.len() * group * width, 0.0);
        self.score(&work);
        self.softmax(&work);
        self.mix(&work);
        for (row, result) in rows.zip(self.result.chunks_exact(group * width)) {
            out[place(row)..][..group * width].copy_from_slice(result);
        }
    }

    /// Scores of all queries against all blocks, and of each against its ancestors.
    fn score(&mut self, work: &Work) {
        let shape = Tile {
            rows: work.sights.len() * work.group,
            depth: work.width,
            width: BLOCK,
            a_stride: work.width,
            c_stride: work.stride,
        };
        for block in work.hidden..work.blocks {
            let (keys, _) = work.cache.block(work.layer, work.head, block);
            kernel::tile(shape, &self.query, keys, &mut self.scores[block * BLOCK..]);
        }
        for (query, sight) in work.queries() {
            let from = query * work.stride + work.blocks * BLOCK;
            for (score, slot) in self.scores[from..].iter_mut().zip(&sight.slots) {
                let (key, _) = work.cache.node(work.layer, work.head, *slot as usize);
                *score = kernel::dot(&self.query[query * work.width..][..work.width], key);
            }
        }
    }

    /// Turns scores into weights whose sum is 1; positions that a row does not see get 0.
    fn softmax(&mut self, work: &Work) {
        let scale = 1.0 / (work.width as f32).sqrt();
        for (query, sight) in work.queries() {
            let scores = &mut self.scores[query * work.stride..][..work.stride];
            let (prompt, nodes) = scores.split_at_mut(work.blocks * BLOCK);
            let hidden = sight.hidden(work.window);
            let (seen, unseen) = prompt.split_at_mut(sight.prompt);
            let (before, seen) = seen.split_at_mut(hidden.min(sight.prompt));
            let nodes = &mut nodes[..sight.slots.len()];
            let (far, nodes) = nodes.split_at_mut(hidden.saturating_sub(sight.prompt));
            for hidden in [before, unseen, far] {
                hidden.fill(0.0);
            }
            let max = kernel::greatest(seen).max(kernel::greatest(nodes));
            let sum =
                kernel::exponentials(seen, scale, max) + kernel::exponentials(nodes, scale, max);
            kernel::scale(seen, 1.0 / sum);
            kernel::scale(nodes, 1.0 / sum);
        }
    }

    /// Adds weighted values: block after block, then ancestors.
    fn mix(&mut self, work: &Work) {
        let Work {
            group,
            width,
            stride,
            ..
        } = *work;
        for block in work.hidden..work.blocks {
            let (_, values) = work.cache.block(work.layer, work.head, block);
            // Positions that a row does not see have weight 0; adding 0 changes no bit of a sum that started at 0.
            let shape = Tile {
                rows: work.sights.len() * group,
                depth: (work.prompt - block * BLOCK).min(BLOCK),
                width,
                a_stride: stride,
                c_stride: width,
            };
            let weights = &self.scores[block * BLOCK..];
            kernel::tile(shape, weights, values, &mut self.result);
        }
        for (query, sight) in work.queries() {
            let from = query * stride + work.blocks * BLOCK;
            for (weight, slot) in self.scores[from..].chunks(1).zip(&sight.slots) {
                let (_, value) = work.cache.node(work.layer, work.head, *slot as usize);
                let shape = Tile {
                    rows: 1,
                    depth: 1,
                    width,
                    a_stride: 1,
                    c_stride: width,
                };
                kernel::tile(shape, weight, value, &mut self.result[query * width..]);
            }
        }
    }
}

/// The keys and values of a tile.
#[derive(Clone, Copy)]
struct Keys<'a> {
    cache: &'a Cache,
    layer: usize,
    head: usize,
}

#[cfg(test)]
mod tests {
    use super::super::kv::Sizes;
    use super::*;

    const HEADS: Heads = Heads {
        queries: 6,
        keys: 2,
        width: 8,
    };
    const SIZES: Sizes = Sizes {
        layers: 1,
        heads: 2,
        width: 8,
        number: size_of::<f32>(),
    };

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// A cache of `prompt` positions and `nodes` slots of noise; keys and values differ.
    fn cache(prompt: usize, nodes: usize) -> Cache {
        let mut cache = Cache::new(SIZES);
        for at in 0..prompt + nodes {
            let (key, value) = (noise(16, at as u32), noise(16, !(at as u32)));
            if at < prompt {
                cache.write_prompt(0, at, &key, &value);
            } else {
                cache.push_node(0, &key, &value);
            }
        }
        cache.advance(prompt, nodes);
        cache
    }

    /// Softmax attention by its formula, in f64, from the same noise.
    fn formula(query: &[f32], head: usize, seen: &[usize]) -> Vec<f64> {
        let part = head / 3 * 8..head / 3 * 8 + 8;
        let scores: Vec<f64> = (seen.iter())
            .map(|at| {
                let key = noise(16, *at as u32);
                let products = key[part.clone()].iter().zip(query);
                products
                    .map(|(k, q)| f64::from(*k) * f64::from(*q))
                    .sum::<f64>()
                    / 8f64.sqrt()
            })
            .collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        let mut out = vec![0f64; 8];
        for (at, score) in seen.iter().zip(scores) {
            let value = noise(16, !(*at as u32));
            for (out, value) in out.iter_mut().zip(&value[part.clone()]) {
                *out += score.exp() / sum * f64::from(*value);
            }
        }
        out
    }

    #[test]
    fn attention_agrees_with_its_formula_and_a_row_alone_gives_the_same_bits() {
        let caches = [cache(130, 5), cache(3, 2)];
        let sight = |prompt, slots: &[u32]| Sight {
            prompt,
            slots: slots.to_vec(),
        };
        let mut sights: Vec<Sight> = (100..130).map(|at| sight(at + 1, &[])).collect();
        sights.extend([
            sight(130, &[0, 2, 4]),
            sight(130, &[1]),
            sight(3, &[0, 1]),
            sight(1, &[]),
        ]);
        let values = noise(sights.len() * 48, 77);
        let spans = [
            Span {
                cache: 0,
                rows: 0..32,
            },
            Span {
                cache: 1,
                rows: 32..34,
            },
        ];
        // Windows that hide nothing, blocks, parts of blocks, and ancestors.
        for window in [
            None,
            Some(1000),
            Some(70),
            Some(64),
            Some(7),
            Some(2),
            Some(1),
        ] {
            let queries = Queries {
                heads: HEADS,
                values: &values,
                sights: &sights,
                window,
            };
            compare(queries, &spans, &caches);
        }
    }

    /// Compares every row with the formula, and with the same row alone.
    fn compare(queries: Queries, spans: &[Span], caches: &[Cache]) {
        let Queries {
            values,
            sights,
            window,
            ..
        } = queries;
        let out = attend(queries, spans, caches, 0);
        for (row, sight) in sights.iter().enumerate() {
            let prompt = if row < 32 { 130 } else { 3 };
            let seen: Vec<usize> = (0..sight.prompt)
                .chain(sight.slots.iter().map(|s| prompt + *s as usize))
                .collect();
            let seen = &seen[seen.len() - seen.len().min(window.unwrap_or(usize::MAX))..];
            for head in 0..6 {
                let range = row * 48 + head * 8..row * 48 + head * 8 + 8;
                let exact = formula(&values[range.clone()], head, seen);
                for (ours, exact) in out[range].iter().zip(exact) {
                    assert!(
                        (f64::from(*ours) - exact).abs() < 1e-5,
                        "window {window:?} row {row} head {head}"
                    );
                }
            }
            let queries = Queries {
                values: &values[row * 48..(row + 1) * 48],
                sights: std::slice::from_ref(sight),
                ..queries
            };
            let span = Span {
                cache: usize::from(row >= 32),
                rows: 0..1,
            };
            let alone = attend(queries, &[span], caches, 0);
            assert_eq!(
                alone,
                out[row * 48..(row + 1) * 48],
                "window {window:?} row {row} alone, bit for bit"
            );
        }
    }
}
