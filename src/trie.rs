//! The catalogue's names as token paths in flat arrays.
//!
//! Decides the shape of the tree that a search walks: path-compressed, a node branches or is a
//! leaf; a node's label is the run of tokens from its parent. Every PU has a leaf of its own: names
//! that tokenise alike become children without a label of one node, ordered by PU, between which
//! only the terms beside the model can tell. Leaves lie in depth-first order, so a subtree is a run
//! of leaves.
//!
//! Invariant: [`Trie::pu`] over all leaves is a permutation of the PUs; siblings start with
//! different tokens, or have no label at all. It does not know tokenizers, models or stock.

use std::collections::VecDeque;
use std::ops::Range;

use fixedbitset::FixedBitSet;

/// Where a walk stands: a node and the leaves under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    id: u32,
    /// Leaves under the node, in depth-first order.
    pub leaves: Range<u32>,
}

/// Names as a radix tree. 12 bytes per edge and 4 per token of a label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trie {
    /// `[nodes + 1]`: children of node `v` are the nodes `first_child[v]..first_child[v + 1]`.
    first_child: Vec<u32>,
    /// `[nodes + 1]`: label of node `v` is `tokens[label[v]..label[v + 1]]`.
    label: Vec<u32>,
    /// `[nodes]`: first leaf under node `v`; the last is before its next sibling's first.
    first_leaf: Vec<u32>,
    /// Labels, one after the other.
    tokens: Vec<u32>,
    /// `[leaves]`: leaf -> PU.
    pu: Vec<u32>,
}

/// A run of sorted names that share their first `depth` tokens: a node to be.
struct Run {
    names: Range<usize>,
    depth: usize,
}

impl Trie {
    /// Builds the trie of `names`, one token sequence per PU in PU order. `end` is appended to each,
    /// so that a name may be the beginning of another, and is dropped where a name contains it.
    pub fn build(names: &[Vec<u32>], end: u32) -> Self {
        let mut sorted: Vec<(Vec<u32>, u32)> = names
            .iter()
            .zip(0..)
            .map(|(tokens, pu)| {
                let kept = tokens.iter().copied().filter(|token| *token != end);
                (kept.chain([end]).collect(), pu)
            })
            .collect();
        sorted.sort_unstable();
        let mut trie = Self {
            label: vec![0],
            ..Self::default()
        };
        // Breadth first, so that siblings get adjacent numbers.
        let mut waiting = VecDeque::from([Run {
            names: 0..sorted.len(),
            depth: 0,
        }]);
        let mut next = 1;
        while let Some(run) = waiting.pop_front() {
            trie.first_child.push(next);
            trie.first_leaf.push(run.names.start as u32);
            let children = trie.grow(&sorted, &run);
            next += children.len() as u32;
            waiting.extend(children);
        }
        trie.first_child.push(next);
        trie.pu = sorted.into_iter().map(|(_, pu)| pu).collect();
        trie
    }

    /// Appends the label of one run's node; returns the runs of its children.
    fn grow(&mut self, sorted: &[(Vec<u32>, u32)], run: &Run) -> Vec<Run> {
        let names = &sorted[run.names.clone()];
        let (Some((first, _)), Some((last, _))) = (names.first(), names.last()) else {
            self.label.push(self.tokens.len() as u32);
            return Vec::new();
        };
        // Sorted, so what the first and the last share, all share.
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        self.tokens.extend_from_slice(&first[run.depth..shared]);
        self.label.push(self.tokens.len() as u32);
        if names.len() == 1 {
            return Vec::new();
        }
        let mut children = Vec::new();
        let mut from = 0;
        while from < names.len() {
            let width = match names[from].0.get(shared) {
                Some(token) => names[from..].partition_point(|(name, _)| name[shared] == *token),
                // All are equal to their last token: a leaf each.
                None => 1,
            };
            children.push(Run {
                names: run.names.start + from..run.names.start + from + width,
                depth: shared,
            });
            from += width;
        }
        children
    }

    /// The node that all names are under; a leaf if there is one name.
    pub fn root(&self) -> Node {
        Node {
            id: 0,
            leaves: 0..self.pu.len() as u32,
        }
    }

    /// Children of `node` in order; none for a leaf.
    pub fn children(&self, node: &Node) -> impl Iterator<Item = Node> + use<'_> {
        let id = node.id as usize;
        let (first, last) = (self.first_child[id], self.first_child[id + 1]);
        let end = node.leaves.end;
        (first..last).map(move |child| {
            let next = if child + 1 < last {
                self.first_leaf[child as usize + 1]
            } else {
                end
            };
            Node {
                id: child,
                leaves: self.first_leaf[child as usize]..next,
            }
        })
    }

    /// Tokens between the parent of `node` and `node`; empty for most roots and for names alike.
    pub fn label(&self, node: &Node) -> &[u32] {
        let id = node.id as usize;
        &self.tokens[self.label[id] as usize..self.label[id + 1] as usize]
    }

    /// The PU of a leaf.
    pub fn pu(&self, leaf: u32) -> u32 {
        self.pu[leaf as usize]
    }

    /// Number of names.
    pub fn leaves(&self) -> usize {
        self.pu.len()
    }

    /// Tokens of the longest path, end token included.
    pub fn depth(&self) -> usize {
        // Breadth first: a parent comes before its children.
        let nodes = self.first_leaf.len();
        let mut depth = vec![0usize; nodes];
        for id in 0..nodes {
            depth[id] += (self.label[id + 1] - self.label[id]) as usize;
            for child in self.first_child[id]..self.first_child[id + 1] {
                depth[child as usize] = depth[id];
            }
        }
        depth.into_iter().max().unwrap_or(0)
    }

    /// A set of PUs as a set of leaves, so that a subtree's share is a run of bits. PUs that the
    /// trie does not hold are dropped, those that the set does not reach are not in it.
    pub fn by_leaf(&self, pus: &FixedBitSet) -> FixedBitSet {
        let mut leaves = FixedBitSet::with_capacity(self.pu.len());
        for (leaf, pu) in self.pu.iter().enumerate() {
            leaves.set(leaf, pus.contains(*pu as usize));
        }
        leaves
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: u32 = 99;

    /// Every path from the root as (tokens, PU), by walking.
    fn paths(trie: &Trie) -> Vec<(Vec<u32>, u32)> {
        fn walk(trie: &Trie, node: &Node, path: &[u32], found: &mut Vec<(Vec<u32>, u32)>) {
            let path = [path, trie.label(node)].concat();
            let mut leaves = node.leaves.start;
            for child in trie.children(node) {
                assert_eq!(child.leaves.start, leaves, "children tile their parent");
                assert!(child.leaves.start < child.leaves.end, "no subtree is empty");
                leaves = child.leaves.end;
                walk(trie, &child, &path, found);
            }
            if leaves == node.leaves.start && !node.leaves.is_empty() {
                assert_eq!(node.leaves.len(), 1, "a node without children is a leaf");
                found.push((path, trie.pu(node.leaves.start)));
            } else {
                assert_eq!(leaves, node.leaves.end, "children tile their parent");
            }
        }
        let mut found = Vec::new();
        walk(trie, &trie.root(), &[], &mut found);
        found
    }

    fn expected(names: &[Vec<u32>]) -> Vec<(Vec<u32>, u32)> {
        let mut all: Vec<_> = names
            .iter()
            .zip(0..)
            .map(|(name, pu)| ([name.as_slice(), &[END]].concat(), pu))
            .collect();
        all.sort();
        all
    }

    proptest! {
        #[test]
        fn the_paths_are_the_names_in_sorted_order(
            names in prop::collection::vec(prop::collection::vec(0u32..3, 0..5), 0..40),
        ) {
            let trie = Trie::build(&names, END);
            prop_assert_eq!(paths(&trie), expected(&names));
            let depth = expected(&names).iter().map(|(path, _)| path.len()).max().unwrap_or(0);
            prop_assert_eq!(trie.depth(), depth);
        }

        #[test]
        fn siblings_start_differently_or_are_alike(
            names in prop::collection::vec(prop::collection::vec(0u32..3, 0..5), 2..40),
        ) {
            let trie = Trie::build(&names, END);
            let mut nodes = vec![trie.root()];
            while let Some(node) = nodes.pop() {
                let children: Vec<Node> = trie.children(&node).collect();
                prop_assert!(children.len() != 1, "a chain is compressed");
                let mut first: Vec<_> = children.iter().map(|c| trie.label(c).first()).collect();
                if first.first() == Some(&None) {
                    prop_assert!(first.iter().all(Option::is_none));
                    prop_assert!(children.iter().all(|child| child.leaves.len() == 1));
                } else {
                    first.dedup();
                    prop_assert_eq!(first.len(), children.len());
                }
                nodes.extend(children);
            }
        }

        #[test]
        fn a_set_of_pus_keeps_its_members_as_leaves(
            names in prop::collection::vec(prop::collection::vec(0u32..3, 0..5), 0..40),
            members in prop::collection::btree_set(0usize..60, 0..40),
        ) {
            let trie = Trie::build(&names, END);
            let leaves = trie.by_leaf(&members.iter().copied().collect());
            let mut back: Vec<usize> = leaves.ones().map(|leaf| trie.pu(leaf as u32) as usize).collect();
            back.sort_unstable();
            let held: Vec<usize> = members.into_iter().filter(|pu| *pu < names.len()).collect();
            prop_assert_eq!(back, held);
        }
    }

    #[test]
    fn a_name_may_be_the_beginning_of_another() {
        let trie = Trie::build(&[vec![1, 2], vec![1], vec![1, 2, 3]], END);
        let found: Vec<u32> = paths(&trie).into_iter().map(|(_, pu)| pu).collect();
        assert_eq!(found, [2, 0, 1]);
    }

    #[test]
    fn an_end_token_inside_a_name_is_dropped() {
        let trie = Trie::build(&[vec![1], vec![1, END, 2]], END);
        assert_eq!(paths(&trie), [(vec![1, 2, END], 1), (vec![1, END], 0)]);
    }

    #[test]
    fn one_name_is_a_leaf_at_the_root_and_none_is_an_empty_root() {
        let one = Trie::build(&[vec![5]], END);
        assert_eq!(one.label(&one.root()), [5, END]);
        assert_eq!(one.children(&one.root()).count(), 0);
        let none = Trie::build(&[], END);
        assert!(none.root().leaves.is_empty());
        assert_eq!(none.children(&none.root()).count(), 0);
    }
}
