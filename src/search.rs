//! Exact top N of a [`Trie`]: says which nodes to score next and is fed the scores.
//!
//! Decides the score of a name and the order of the search. At a node with more than one permitted
//! child the children share its probability: softmax over the permitted children of
//! `weight · logit + Σ λ ln(mass under the child)`; an only child costs nothing. So the scores are a
//! distribution over the permitted names, and with `weight` 0 and one λ of 1 they are the demand.
//!
//! Invariant: best first, with every node expanded whose score reaches the n-th best name found; so
//! the answer equals brute force, ties by PU. It does not know who computes logits, nor how.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use fixedbitset::FixedBitSet;

use crate::trie::{Node, Trie};

/// Mass that stands for none: a term may discourage a name, never make its score undefined.
const MASS_MIN: f64 = 1e-30;

/// Nodes that a wave asks for at least, if there are so many: small waves cost a pass each.
const WIDTH_MIN: usize = 8;

/// One leaf term of the score.
#[derive(Clone, Copy, Debug)]
pub struct Leaning<'a> {
    /// Exponent of the mass.
    pub weight: f64,
    /// `[PUs]`, non-negative.
    pub mass: &'a [f32],
}

/// What is searched for.
#[derive(Clone, Debug, Default)]
pub struct Question<'a> {
    /// Permitted PUs, by leaf ([`Trie::by_leaf`]); `None` permits all.
    pub permitted: Option<FixedBitSet>,
    /// How many names.
    pub n: usize,
    /// Weight of the model's logits; 0 asks the model nothing.
    pub weight: f64,
    /// Terms beside the model.
    pub terms: Vec<Leaning<'a>>,
}

/// Nodes whose children want logits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wave {
    /// Best first.
    pub nodes: Vec<Expand>,
}

/// One node of a [`Wave`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand {
    /// The expanded node that this one's chain continues; `None`: the prompt itself.
    pub parent: Option<u32>,
    /// Number of this node in the search: 0, 1, … in the order asked for.
    pub id: u32,
    /// Tokens to forward after the parent's; empty where the prompt's last row says it all.
    pub chain: Vec<u32>,
    /// First token of each permitted child: the logits wanted, in this order.
    pub children: Vec<u32>,
}

/// One name found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its PU.
    pub pu: u32,
    /// Natural-log probability of the mixture.
    pub score: f64,
    /// The model's edges alone; 0 if the model was not asked.
    pub model: f64,
}

impl Eq for Found {}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Found {
    /// The better name is the greater: by score, then by the lower PU.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.score.total_cmp(&other.score)).then(other.pu.cmp(&self.pu))
    }
}

/// A branching node that is not yet expanded.
#[derive(Clone, Debug)]
struct Open {
    score: f64,
    model: f64,
    node: Node,
    parent: Option<u32>,
    chain: Vec<u32>,
}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Open {}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_place = other.node.leaves.start.cmp(&self.node.leaves.start);
        self.score.total_cmp(&other.score).then(by_place)
    }
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search<'a> {
    trie: &'a Trie,
    question: Question<'a>,
    open: BinaryHeap<Open>,
    /// The n best so far, the worst on top.
    found: BinaryHeap<Reverse<Found>>,
    /// Asked for, not yet fed.
    flying: Vec<Open>,
    /// Nodes asked for so far.
    asked: u32,
}

impl<'a> Search<'a> {
    /// A search of `trie` that stands at its root.
    pub fn new(trie: &'a Trie, question: Question<'a>) -> Self {
        let mut search = Self {
            trie,
            question,
            open: BinaryHeap::new(),
            found: BinaryHeap::new(),
            flying: Vec::new(),
            asked: 0,
        };
        let root = Open {
            score: 0.0,
            model: 0.0,
            node: trie.root(),
            parent: None,
            chain: trie.label(&trie.root()).to_vec(),
        };
        search.push(root);
        search
    }

    /// The nodes to score next, of at most `rows_max` chain tokens unless one node alone has more;
    /// `None` when the n best are proven. Each wave must be [fed](Self::feed) before the next.
    pub fn next_wave(&mut self, rows_max: usize) -> Option<Wave> {
        assert!(self.flying.is_empty(), "a wave is fed before the next");
        let mut wave = Wave::default();
        let mut rows = 0;
        while wave.nodes.len() < self.width() {
            let Some(best) = self.open.peek() else { break };
            if self.is_beaten(best.score) {
                self.open.clear();
                break;
            }
            if !wave.nodes.is_empty() && rows + best.chain.len() > rows_max {
                break;
            }
            let open = self.open.pop().expect("it was just seen");
            let children = self.permitted_children(&open.node);
            if !self.asks_model(&children) {
                let logits = vec![0.0; children.len()];
                self.expand(&open, open.parent, &children, &logits);
                continue;
            }
            rows += open.chain.len();
            wave.nodes.push(Expand {
                parent: open.parent,
                id: self.asked,
                chain: open.chain.clone(),
                children: children.iter().map(|c| self.trie.label(c)[0]).collect(),
            });
            self.asked += 1;
            self.flying.push(open);
        }
        (!wave.nodes.is_empty()).then_some(wave)
    }

    /// Takes the logits of the last wave's children, node after node; a constant added to all
    /// children of one node changes nothing.
    pub fn feed(&mut self, logits: &[f32]) {
        let flying = std::mem::take(&mut self.flying);
        let first = self.asked - flying.len() as u32;
        let mut rest = logits;
        for (open, id) in flying.iter().zip(first..) {
            let children = self.permitted_children(&open.node);
            let (own, others) = rest.split_at(children.len());
            rest = others;
            let own: Vec<f64> = own.iter().map(|logit| f64::from(*logit)).collect();
            self.expand(open, Some(id), &children, &own);
        }
        assert!(rest.is_empty(), "one logit per child");
    }

    /// The best names, best first; complete once [`next_wave`](Self::next_wave) said `None`.
    pub fn into_answer(self) -> Vec<Found> {
        // `Reverse` sorts ascending by the reversed order: the best first.
        self.found
            .into_sorted_vec()
            .into_iter()
            .map(|Reverse(found)| found)
            .collect()
    }

    /// Mass of each term over the permitted names: what [`Found`]'s share of a term is relative to.
    pub fn masses(&self) -> Vec<f64> {
        let root = self.trie.root();
        let terms = self.question.terms.iter();
        terms.map(|term| self.mass(term.mass, &root)).collect()
    }

    /// Nodes to ask for at once. Half as many as names are still to be proven: with all of them a
    /// fifth more tokens were forwarded in no fewer waves (2,240 names, top 20 and 50).
    fn width(&self) -> usize {
        let best_open = self
            .open
            .peek()
            .map_or(f64::NEG_INFINITY, |open| open.score);
        let flying = self.flying.first().map_or(best_open, |open| open.score);
        let proven = self.found.iter().filter(|found| found.0.score > flying);
        ((self.question.n - proven.count()) / 2).max(WIDTH_MIN)
    }

    /// Whether no name under a node of `score` can be among the n best. Not at equality: it might
    /// have the lower PU.
    fn is_beaten(&self, score: f64) -> bool {
        self.found.len() >= self.question.n
            && self.found.peek().is_none_or(|worst| worst.0.score > score)
    }

    /// Names alike have no token to tell them apart; weight 0 does not listen.
    fn asks_model(&self, children: &[Node]) -> bool {
        self.question.weight != 0.0 && !self.trie.label(&children[0]).is_empty()
    }

    fn expand(&mut self, open: &Open, id: Option<u32>, children: &[Node], logits: &[f64]) {
        let mut scores: Vec<f64> = logits.iter().map(|l| self.question.weight * l).collect();
        for term in &self.question.terms {
            for (score, child) in scores.iter_mut().zip(children) {
                *score += term.weight * self.mass(term.mass, child).max(MASS_MIN).ln();
            }
        }
        let edges = log_softmax(&scores);
        let model_edges = log_softmax(logits);
        for ((child, edge), model_edge) in children.iter().zip(edges).zip(model_edges) {
            // What the model did not say, at names alike and at weight 0, is no edge of its own.
            let label = self.trie.label(child);
            let model_edge = if self.question.weight == 0.0 {
                0.0
            } else {
                model_edge
            };
            let mut chain = if id == open.parent {
                open.chain.clone()
            } else {
                Vec::new()
            };
            chain.extend_from_slice(label);
            self.push(Open {
                score: open.score + edge,
                model: open.model + model_edge,
                node: child.clone(),
                parent: id,
                chain,
            });
        }
    }

    /// Follows only children down, then keeps what is there: a name, or a branching node.
    fn push(&mut self, mut open: Open) {
        let permitted = self.count(&open.node);
        if permitted == 0 || self.is_beaten(open.score) {
            return;
        }
        if permitted == 1 {
            let leaf = match &self.question.permitted {
                None => open.node.leaves.start,
                Some(bits) => (open.node.leaves.clone())
                    .find(|leaf| bits.contains(*leaf as usize))
                    .expect("one bit of the range was counted"),
            };
            self.keep(Found {
                pu: self.trie.pu(leaf),
                score: open.score,
                model: open.model,
            });
            return;
        }
        if self.question.permitted.is_some() {
            while let Some(only) =
                (self.trie.children(&open.node)).find(|child| self.count(child) == permitted)
            {
                open.chain.extend_from_slice(self.trie.label(&only));
                open.node = only;
            }
        }
        self.open.push(open);
    }

    fn keep(&mut self, found: Found) {
        self.found.push(Reverse(found));
        if self.found.len() > self.question.n {
            self.found.pop();
        }
    }

    fn permitted_children(&self, node: &Node) -> Vec<Node> {
        let children = self.trie.children(node);
        children.filter(|child| self.count(child) > 0).collect()
    }

    /// Permitted names under a node.
    fn count(&self, node: &Node) -> usize {
        match &self.question.permitted {
            None => node.leaves.len(),
            Some(bits) => bits.count_ones(node.leaves.start as usize..node.leaves.end as usize),
        }
    }

    /// Mass of the permitted names under a node, added in leaf order: differences of running sums
    /// would leave rounding noise of the whole catalogue on a rare name.
    fn mass(&self, mass: &[f32], node: &Node) -> f64 {
        let of = |leaf: u32| {
            f64::from(
                mass.get(self.trie.pu(leaf) as usize)
                    .copied()
                    .unwrap_or(0.0),
            )
        };
        match &self.question.permitted {
            None => node.leaves.clone().map(of).sum(),
            Some(bits) => {
                let leaves = node.leaves.clone();
                leaves
                    .filter(|leaf| bits.contains(*leaf as usize))
                    .map(of)
                    .sum()
            }
        }
    }
}

/// `x − ln Σ exp(x)`.
fn log_softmax(x: &[f64]) -> Vec<f64> {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
    let norm = max + sum.ln();
    x.iter().map(|x| x - norm).collect()
}

#[cfg(test)]
mod tests;
