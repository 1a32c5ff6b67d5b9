//! Radix tree of the catalogue's names as token paths, in flat arrays.
//!
//! Decides the shape of the tree that a search walks. It is path-compressed: a node branches or is a leaf, and its
//! label is the run of tokens from its parent. Every PU has its own leaf: names with the same tokens become unlabelled
//! children of one node, ordered by PU, which only the terms beside the model distinguish. Leaves are in depth-first
//! order, so a subtree is a range of leaves.
//!
//! Invariant: [`Trie::pu`] over all leaves is a permutation of the PUs; siblings start with different tokens, or have
//! no label at all. A leaf's label after its first token is not stored, because it is never forwarded. It does not know
//! tokenizers, models or stock.

mod leaves;

use std::collections::VecDeque;
use std::ops::Range;

pub use leaves::{LogWeights, Own, Permitted};

/// Marks a node without a label.
const NONE: u32 = u32::MAX;

/// Number of tokens compared at once when names are sorted.
const STRIDE: usize = 4;

/// Token sequences of names, one per PU, in PU order; each ends with the end token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    end: u32,
    flat: Vec<u32>,
    /// End of each sequence in `flat`.
    ends: Vec<u32>,
}

/// A node and the leaves under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    id: u32,
    /// Leaves under the node, in depth-first order.
    pub leaves: Range<u32>,
}

/// Names as a radix tree: 12 bytes per name, 16 per branching node, 4 per token of a branching node's label after the
/// first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trie {
    /// `[nodes]`, breadth first, so that siblings are adjacent: first token of the label, or [`NONE`].
    first: Vec<u32>,
    /// One bit per node: whether it branches.
    branches: Vec<u64>,
    /// Per word of `branches`: number of bits set before it.
    rank: Vec<u32>,
    /// `[branching + 1]`: children of the `b`-th branching node are `first_child[b]..first_child[b + 1]`.
    first_child: Vec<u32>,
    /// `[branching]`: number of leaves under it.
    under: Vec<u32>,
    /// `[branching + 1]`: its label after the first token is `tokens[rest[b]..rest[b + 1]]`.
    rest: Vec<u32>,
    /// Labels of branching nodes without their first tokens, concatenated.
    tokens: Vec<u32>,
    /// `[leaves]`: leaf -> PU.
    pu: Vec<u32>,
    /// `[PUs]`: PU -> leaf.
    leaf: Vec<u32>,
    /// Tokens of the longest name, end token included.
    depth: u32,
}

/// A range of sorted names that share their first `depth` tokens and become one node.
struct Run {
    names: Range<usize>,
    depth: usize,
}

impl Sequences {
    /// No names yet. `end` is appended to each name, so that a name may be a prefix of another.
    pub fn new(end: u32) -> Self {
        let (flat, ends) = (Vec::new(), Vec::new());
        Self { end, flat, ends }
    }

    /// Appends the next PU's name. An end token inside it is dropped.
    pub fn push(&mut self, name: &[u32]) {
        let kept = name.iter().copied().filter(|token| *token != self.end);
        self.flat.extend(kept);
        self.flat.push(self.end);
        self.ends.push(self.flat.len() as u32);
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no names.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One name with its end token.
    pub fn get(&self, index: usize) -> &[u32] {
        let from = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.flat[from as usize..self.ends[index] as usize]
    }

    /// PUs in the order of their tokens, names with the same tokens in PU order: `order[leaf]` is the PU.
    fn sorted(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        // Keys of a few tokens sort as numbers; only names with equal keys are sorted further.
        let mut waiting = vec![(0..self.len(), 0)];
        let mut keyed: Vec<(u128, u32)> = Vec::new();
        while let Some((run, depth)) = waiting.pop() {
            keyed.clear();
            let keys = order[run.clone()].iter();
            keyed.extend(keys.map(|pu| (key(self.get(*pu as usize), depth), *pu)));
            keyed.sort_unstable();
            let mut from = 0;
            for (index, (key, pu)) in keyed.iter().enumerate() {
                order[run.start + index] = *pu;
                let is_last = keyed.get(index + 1).is_none_or(|(next, _)| next != key);
                if is_last {
                    // A key whose last token is 0 belongs to names that ended before it.
                    if index > from && key & u128::from(u32::MAX) != 0 {
                        waiting.push((run.start + from..run.start + index + 1, depth + STRIDE));
                    }
                    from = index + 1;
                }
            }
        }
        order
    }
}

/// The tokens from `depth` on as a number with the same order; 0 after the end.
fn key(name: &[u32], depth: usize) -> u128 {
    (depth..depth + STRIDE).fold(0, |key, at| {
        let token = name
            .get(at)
            .map_or(0, |token| u128::from(token.saturating_add(1)));
        key << 32 | token
    })
}

impl Trie {
    /// Builds the trie of `names`.
    pub fn build(names: &Sequences) -> Self {
        let order = names.sorted();
        // A copy in sorted order, so that neighbours in the order are neighbours in memory.
        let mut sorted = Sequences::new(names.end);
        sorted.flat.reserve_exact(names.flat.len());
        sorted.ends.reserve_exact(names.len());
        for pu in &order {
            sorted.flat.extend_from_slice(names.get(*pu as usize));
            sorted.ends.push(sorted.flat.len() as u32);
        }
        let mut trie = Self {
            rest: vec![0],
            leaf: vec![0; names.len()],
            ..Self::default()
        };
        for (leaf, pu) in order.iter().enumerate() {
            trie.leaf[*pu as usize] = leaf as u32;
        }
        trie.pu = order;
        let lengths = (0..sorted.len()).map(|index| sorted.get(index).len());
        trie.depth = lengths.max().unwrap_or(0) as u32;
        // Breadth first, so that siblings get adjacent numbers.
        let mut waiting = VecDeque::from([Run {
            names: 0..sorted.len(),
            depth: 0,
        }]);
        let mut next = 1;
        while let Some(run) = waiting.pop_front() {
            trie.grow(&sorted, &run, &mut waiting, &mut next);
        }
        trie.first_child.push(next);
        trie.count_ranks();
        trie.shrink();
        trie
    }

    /// Appends the node of a run, and queues the runs of its children.
    fn grow(&mut self, sorted: &Sequences, run: &Run, waiting: &mut VecDeque<Run>, next: &mut u32) {
        let node = self.first.len();
        if node.is_multiple_of(64) {
            self.branches.push(0);
        }
        let token = |name: usize, at: usize| sorted.get(name).get(at).copied();
        let from = run.names.start;
        let label = if run.names.is_empty() {
            None
        } else {
            token(from, run.depth)
        };
        if run.names.len() < 2 {
            self.first.push(label.unwrap_or(NONE));
            return;
        }
        // The names are sorted, so all of them share the prefix that the first and the last share.
        let (first, last) = (sorted.get(from), sorted.get(run.names.end - 1));
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let label = &first[run.depth..shared];
        self.first.push(label.first().copied().unwrap_or(NONE));
        self.tokens.extend(label.iter().skip(1));
        self.rest.push(self.tokens.len() as u32);
        self.branches[node / 64] |= 1 << (node % 64);
        self.under.push(run.names.len() as u32);
        self.first_child.push(*next);
        let mut from = from;
        while from < run.names.end {
            let to = match token(from, shared) {
                Some(child) => partition_point(from..run.names.end, |name| {
                    token(name, shared) == Some(child)
                }),
                // All names of the run are equal: each becomes a leaf.
                None => from + 1,
            };
            waiting.push_back(Run {
                names: from..to,
                depth: shared,
            });
            *next += 1;
            from = to;
        }
    }

    fn count_ranks(&mut self) {
        let mut before = 0;
        for word in &self.branches {
            self.rank.push(before);
            before += word.count_ones();
        }
    }

    fn shrink(&mut self) {
        for array in [
            &mut self.first,
            &mut self.rank,
            &mut self.first_child,
            &mut self.under,
            &mut self.rest,
            &mut self.tokens,
        ] {
            array.shrink_to_fit();
        }
        self.branches.shrink_to_fit();
    }

    /// The root; a leaf if there is one name.
    pub fn root(&self) -> Node {
        Node {
            id: 0,
            leaves: 0..self.pu.len() as u32,
        }
    }

    /// Index of a node among the branching nodes; `None` for a leaf.
    fn branch(&self, id: u32) -> Option<usize> {
        let (word, bit) = (id as usize / 64, id % 64);
        let bits = self.branches[word];
        let before = bits & !(u64::MAX << bit);
        (bits >> bit & 1 == 1).then(|| (self.rank[word] + before.count_ones()) as usize)
    }

    /// Children of `node` in order; none for a leaf.
    pub fn children(&self, node: &Node) -> impl Iterator<Item = Node> + use<'_> {
        let ids = match self.branch(node.id) {
            Some(branch) => self.first_child[branch]..self.first_child[branch + 1],
            None => 0..0,
        };
        let mut from = node.leaves.start;
        ids.map(move |id| {
            let under = self.branch(id).map_or(1, |branch| self.under[branch]);
            let leaves = from..from + under;
            from += under;
            Node { id, leaves }
        })
    }

    /// First token of a node's label; `None` for most roots and for names with the same tokens.
    pub fn first_token(&self, node: &Node) -> Option<u32> {
        let first = self.first[node.id as usize];
        (first != NONE).then_some(first)
    }

    /// Tokens of a node's label; for a leaf only the first.
    pub fn label(&self, node: &Node) -> impl Iterator<Item = u32> + use<'_> {
        let rest = match self.branch(node.id) {
            Some(branch) => {
                &self.tokens[self.rest[branch] as usize..self.rest[branch + 1] as usize]
            }
            None => &[],
        };
        self.first_token(node)
            .into_iter()
            .chain(rest.iter().copied())
    }

    /// The PU of a leaf.
    pub fn pu(&self, leaf: u32) -> u32 {
        self.pu[leaf as usize]
    }

    /// The leaf of a PU; `None` if the trie lacks it.
    pub fn leaf(&self, pu: u32) -> Option<u32> {
        self.leaf.get(pu as usize).copied()
    }

    /// Number of names.
    pub fn leaves(&self) -> usize {
        self.pu.len()
    }

    /// Number of nodes without the root.
    pub fn edges(&self) -> usize {
        self.first.len().saturating_sub(1)
    }

    /// Tokens of the longest path, end token included.
    pub fn depth(&self) -> usize {
        self.depth as usize
    }

    /// Memory of all arrays in bytes.
    pub fn bytes(&self) -> usize {
        let words = [
            &self.first,
            &self.rank,
            &self.first_child,
            &self.under,
            &self.rest,
            &self.tokens,
            &self.pu,
            &self.leaf,
        ];
        words.map(|array| array.len() * 4).iter().sum::<usize>() + self.branches.len() * 8
    }
}

/// The first index of `range` for which `holds` is false, searched in growing steps because most runs are short.
fn partition_point(range: Range<usize>, holds: impl Fn(usize) -> bool) -> usize {
    let (mut known, mut step) = (range.start, 1);
    while known + step < range.end && holds(known + step) {
        known += step;
        step *= 2;
    }
    let (mut low, mut high) = (known + 1, (known + step).min(range.end));
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests;
