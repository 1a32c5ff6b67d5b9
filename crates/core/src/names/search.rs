//! Exact search for the top N names of a [`Trie`]: chooses the nodes to score next and takes their logits.
//!
//! Decides the score of a name and the order of the search. A score is a sum: the weight times the model's term, plus the
//! log-weight of the name by all other terms, the [`Terms`]. The model's term is the sum, over the nodes on the name's
//! path that have more than one permitted child, of the log softmax of `logit − mean` over these children; a single child
//! costs nothing, nor does a choice between names with the same tokens. No edge is over 0. So the model's path down to a
//! node plus the greatest log-weight of the permitted names below is a bound of their scores.
//!
//! Invariant: best first, with every node expanded whose bound reaches the n-th best name found. A name's score depends
//! on the question alone, not on `n` nor on the division into waves, so the answer equals brute force, ties by PU. It
//! does not know how logits are computed.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use crate::names::trie::{LogWeights, Node, Own, Permitted, Trie};

/// Rounding error of a bound against a score, in nats: a node is beaten only by more than this.
const ROUNDING: f64 = 1e-9;

/// Least number of nodes in a wave, if that many are open: each wave costs a forward pass, however small.
const WIDTH_MIN: usize = 8;

/// Share of the wanted names within whose ranks a node is expanded early, before it is proven necessary. Counted over
/// real prompts, top 50: all ranks take 8 % more tokens than 85 of 100; 50 of 100 take 4 % fewer tokens in 1.5 times as
/// many waves.
const RANKS: (usize, usize) = (85, 100);

/// Number of leaves that are skipped together if none of them can be among the best.
const STEP: usize = 64;

/// The sum of all terms beside the model's, per leaf.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Log-weights that other users may share.
    pub weights: Arc<LogWeights>,
    /// Log-weights of one user, added to them.
    pub own: Own,
}

/// Input of a search.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Permitted leaves; `None` permits all.
    pub permitted: Option<Arc<Permitted>>,
    /// Number of names wanted.
    pub n: usize,
    /// Weight of the model's term, at least 0; with 0 the model is not run.
    pub weight: f64,
    /// The other terms; `None` adds nothing.
    pub terms: Option<Terms>,
}

/// Nodes whose children need logits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wave {
    /// Best first.
    pub nodes: Vec<Expand>,
}

/// One node of a [`Wave`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expand {
    /// The expanded node whose tokens precede this one's chain; `None`: the prompt.
    pub parent: Option<u32>,
    /// Number of this node in the search: 0, 1, … in the order of the waves.
    pub id: u32,
    /// The node of the trie.
    pub node: Node,
    /// Tokens to forward after the parent's; empty if the logits are those of the prompt's last token.
    pub chain: Vec<u32>,
    /// First token of each permitted child: the logits needed, in this order.
    pub children: Vec<u32>,
}

/// One name found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// PU of the name.
    pub pu: u32,
    /// Sum of the weighted terms.
    pub score: f64,
    /// The model's term without its weight; 0 if the model was not run.
    pub model: f64,
}

impl Eq for Found {}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Found {
    /// The better name is greater: by score, then by lower PU.
    fn cmp(&self, other: &Self) -> Ordering {
        (self.score.total_cmp(&other.score)).then(other.pu.cmp(&self.pu))
    }
}

/// A node with more than one permitted name, not yet expanded.
#[derive(Clone, Debug)]
struct Open {
    /// No name under the node has a greater score.
    bound: f64,
    /// Sum of the model's edges down to the node.
    model: f64,
    /// Child of the expanded node `parent`. The node that branches may be further down, with single permitted children
    /// between.
    top: Node,
    parent: Option<u32>,
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
        let by_place = other.top.leaves.start.cmp(&self.top.leaves.start);
        self.bound.total_cmp(&other.bound).then(by_place)
    }
}

/// A node in a wave whose logits are not fed yet.
#[derive(Clone, Debug)]
struct InFlight {
    model: f64,
    id: u32,
    children: Vec<Node>,
}

/// State of a search.
#[derive(Clone, Debug)]
pub struct Search<'a> {
    trie: &'a Trie,
    question: Question,
    open: BinaryHeap<Open>,
    /// The n best names so far, the worst on top.
    found: BinaryHeap<Reverse<Found>>,
    in_flight: Vec<InFlight>,
    /// Number of nodes in waves so far.
    expanded: u32,
}

impl<'a> Search<'a> {
    /// Starts a search at the root of `trie`.
    pub fn new(trie: &'a Trie, question: Question) -> Self {
        let mut search = Self {
            trie,
            question,
            open: BinaryHeap::new(),
            found: BinaryHeap::new(),
            in_flight: Vec::new(),
            expanded: 0,
        };
        let root = trie.root();
        if search.question.weight > 0.0 {
            let first = search.keep_or_open(0.0, root, None);
            search.open.extend(first);
        } else {
            search.keep_all(&root.leaves, 0.0);
        }
        search
    }

    /// The nodes to score next, with at most `rows_max` chain tokens unless one node alone has more; `None` once the n
    /// best are proven. Each wave must be [fed](Self::feed) before the next.
    pub fn next_wave(&mut self, rows_max: usize) -> Option<Wave> {
        assert!(self.in_flight.is_empty(), "a wave is fed before the next");
        let mut wave = Wave::default();
        let mut rows = 0;
        let width = self.width();
        while wave.nodes.len() < width {
            let Some(best) = self.open.peek() else { break };
            if self.is_beaten(best.bound) {
                self.open.clear();
                break;
            }
            let (node, chain) = self.descend(&best.top);
            if !wave.nodes.is_empty() && rows + chain.len() > rows_max {
                break;
            }
            let open = self.open.pop().expect("the heap was just peeked");
            let children = self.permitted_children(&node);
            let Some(tokens) = self.first_tokens(&children) else {
                self.keep_all(&node.leaves, open.model);
                continue;
            };
            rows += chain.len();
            wave.nodes.push(Expand {
                parent: open.parent,
                id: self.expanded,
                node,
                chain,
                children: tokens,
            });
            self.in_flight.push(InFlight {
                model: open.model,
                id: self.expanded,
                children,
            });
            self.expanded += 1;
        }
        (!wave.nodes.is_empty()).then_some(wave)
    }

    /// Takes the logits of the last wave's children, node after node, and the means of the same logits over calibration
    /// prompts; empty means count as zeros. A constant added to all children of one node changes nothing, in either.
    pub fn feed(&mut self, logits: &[f32], means: &[f32]) {
        let zeros = vec![0.0; if means.is_empty() { logits.len() } else { 0 }];
        let (mut logits, mut means) = (logits, if means.is_empty() { &zeros } else { means });
        for node in std::mem::take(&mut self.in_flight) {
            let count = node.children.len();
            let values = logits[..count].iter().zip(&means[..count]);
            let mut edges: Vec<f64> = values
                .map(|(logit, mean)| f64::from(*logit) - f64::from(*mean))
                .collect();
            log_softmax(&mut edges);
            (logits, means) = (&logits[count..], &means[count..]);
            for (child, edge) in node.children.into_iter().zip(edges) {
                let open = self.keep_or_open(node.model + edge, child, Some(node.id));
                self.open.extend(open);
            }
        }
        assert!(logits.is_empty() && means.is_empty(), "one value per child");
    }

    /// Whether the n best are proven: no node is open or in flight.
    pub fn is_proven(&self) -> bool {
        self.open.is_empty() && self.in_flight.is_empty()
    }

    /// The best names, best first; complete once [`next_wave`](Self::next_wave) returned `None`.
    pub fn into_answer(self) -> Vec<Found> {
        // Ascending order of `Reverse` is best first.
        self.found
            .into_sorted_vec()
            .into_iter()
            .map(|Reverse(found)| found)
            .collect()
    }

    /// Number of nodes for the next wave: the open nodes whose rank among all open nodes and found names is within
    /// [`RANKS`] of the names wanted. So the first waves are as wide as a beam's, and the last have only the nodes
    /// still to be proven.
    fn width(&self) -> usize {
        let rank = self.question.n * RANKS.0 / RANKS.1;
        let open = self.open.iter().map(|open| open.bound);
        let found = self.found.iter().map(|found| found.0.score);
        let mut scores: Vec<f64> = open.chain(found).collect();
        if rank == 0 || scores.len() <= rank {
            return self.open.len().max(WIDTH_MIN);
        }
        let (_, last, _) = scores.select_nth_unstable_by(rank - 1, |a, b| b.total_cmp(a));
        let last = *last;
        let among = self.open.iter().filter(|open| open.bound >= last);
        among.count().max(WIDTH_MIN)
    }

    /// Whether no name with this bound can be among the n best. At equality one may, by its lower PU.
    fn is_beaten(&self, bound: f64) -> bool {
        self.found.len() >= self.question.n
            && (self.found.peek()).is_none_or(|worst| worst.0.score > bound + ROUNDING)
    }

    /// First tokens of the children; `None` if they have the same tokens, so that the model does not distinguish them.
    fn first_tokens(&self, children: &[Node]) -> Option<Vec<u32>> {
        let tokens = children.iter().map(|child| self.trie.first_token(child));
        tokens.collect()
    }

    /// Keeps a node that has one permitted name; returns a node that has several and may lead to one of the best.
    /// `model` is the sum of the model's edges down to it.
    fn keep_or_open(&mut self, model: f64, top: Node, parent: Option<u32>) -> Option<Open> {
        let bound = self.bound(model, &top.leaves);
        if self.is_beaten(bound) {
            return None;
        }
        match self.count(&top) {
            0 => None,
            1 => {
                self.keep_all(&top.leaves, model);
                None
            }
            _ => Some(Open {
                bound,
                model,
                top,
                parent,
            }),
        }
    }

    /// Keeps the permitted names of a range among which the model does not choose.
    fn keep_all(&mut self, leaves: &Range<u32>, model: f64) {
        let permitted = self.question.permitted.clone();
        for from in leaves.clone().step_by(STEP) {
            let run = from..leaves.end.min(from + STEP as u32);
            if self.is_beaten(self.bound(model, &run)) {
                continue;
            }
            match &permitted {
                None => run.for_each(|leaf| self.keep(leaf, model)),
                Some(permitted) => permitted.ones(&run).for_each(|leaf| self.keep(leaf, model)),
            }
        }
    }

    fn keep(&mut self, leaf: u32, model: f64) {
        let terms = self.question.terms.as_ref();
        let terms = terms.map_or(0.0, |terms| terms.weights.at(leaf, &terms.own));
        let found = Found {
            pu: self.trie.pu(leaf),
            score: self.question.weight * model + terms,
            model,
        };
        if self.found.len() < self.question.n {
            self.found.push(Reverse(found));
        } else if let Some(mut worst) = self.found.peek_mut()
            && found > worst.0
        {
            *worst = Reverse(found);
        }
    }

    /// The greatest score that a permitted name of a range can have under the model's path so far. Each operation is the
    /// one that gives a name its score, and none decreases with its operands.
    fn bound(&self, model: f64, leaves: &Range<u32>) -> f64 {
        let permitted = self.question.permitted.as_deref();
        let terms = self.question.terms.as_ref();
        let terms = terms.map_or(0.0, |terms| {
            terms.weights.max(leaves, permitted, &terms.own)
        });
        self.question.weight * model + terms
    }

    /// The first node at or under `top` with several permitted children, and the tokens down to it.
    fn descend(&self, top: &Node) -> (Node, Vec<u32>) {
        let mut chain: Vec<u32> = self.trie.label(top).collect();
        let mut node = top.clone();
        if self.question.permitted.is_some() {
            let permitted = self.count(&node);
            while let Some(only) =
                (self.trie.children(&node)).find(|child| self.count(child) == permitted)
            {
                chain.extend(self.trie.label(&only));
                node = only;
            }
        }
        (node, chain)
    }

    /// Children of `node` that have permitted names.
    pub fn permitted_children(&self, node: &Node) -> Vec<Node> {
        let children = self.trie.children(node);
        children.filter(|child| self.count(child) > 0).collect()
    }

    /// Number of permitted names under a node.
    fn count(&self, node: &Node) -> u32 {
        match &self.question.permitted {
            None => node.leaves.end - node.leaves.start,
            Some(permitted) => permitted.count(&node.leaves),
        }
    }
}

/// `x − ln Σ exp(x)`; no value is over 0.
pub fn log_softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
    let norm = max + sum.ln();
    x.iter_mut().for_each(|x| *x -= norm);
}

#[cfg(test)]
mod tests;
