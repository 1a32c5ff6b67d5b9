//! Exact search for the top N names of a [`Trie`]: chooses the nodes to score next and takes their logits.
//!
//! Decides the score of a name and the order of the search. At a node with more than one permitted child the children
//! share its probability: softmax over the permitted children of `weight · (logit − mean) + ln(measure of the child)`;
//! a single child has probability 1. So the scores are a distribution over the permitted names. The terms beside the
//! model are one mass per leaf, the [`Prior`]; a child's measure is the sum over its leaves, and with `weight` 0 the
//! scores are the prior itself, whatever the shape of the trie.
//!
//! Invariant: best first, with every node expanded whose score reaches the n-th best name found. A name's score depends
//! on the question alone, not on `n` nor on the division into waves, so the answer equals brute force, ties by PU. It
//! does not know how logits are computed.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::names::trie::{Masses, Node, Own, Permitted, Trie};

/// Rounding error of a bound against a score, in nats: a node is beaten only by more than this.
const ROUNDING: f64 = 1e-9;

/// Least number of nodes in a wave, if that many are open: each wave costs a forward pass, however small.
const WIDTH_MIN: usize = 8;

/// Share of the wanted names within whose ranks a node is expanded early, before it is proven necessary. Counted over
/// real prompts, top 50: all ranks take 8 % more tokens than 85 of 100; 50 of 100 take 4 % fewer tokens in 1.5 times as
/// many waves.
const RANKS: (usize, usize) = (85, 100);

/// Terms beside the model, as masses of names.
#[derive(Clone, Debug)]
pub struct Prior {
    /// A mass per leaf.
    pub masses: Arc<Masses>,
    /// Factors of one user.
    pub own: Own,
    /// Whether a child's measure is the sum over its leaves, as for demand. Otherwise it is their mean: a subtree does
    /// not gain by its number of names, and equal masses have no effect.
    pub sums: bool,
}

/// Input of a search.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Permitted leaves; `None` permits all.
    pub permitted: Option<Arc<Permitted>>,
    /// Number of names wanted.
    pub n: usize,
    /// Weight of the model's logits; with 0 the model is not run.
    pub weight: f64,
    /// Terms beside the model. Without it and with weight 0 all names have the same score.
    pub prior: Option<Prior>,
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
    /// Natural-log probability under the mixture.
    pub score: f64,
    /// Sum of edges by the model alone; 0 if the model was not run.
    pub model: f64,
    /// Sum of edges by the means alone, the baseline of all users; 0 without means.
    pub baseline: f64,
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

/// Sums of edges from the root to a node, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    score: f64,
    model: f64,
    baseline: f64,
}

/// A node with more than one permitted name, not yet expanded.
#[derive(Clone, Debug)]
struct Open {
    sums: Sums,
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
        self.sums.score.total_cmp(&other.sums.score).then(by_place)
    }
}

/// A node in a wave whose logits are not fed yet.
#[derive(Clone, Debug)]
struct InFlight {
    sums: Sums,
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
    /// Log measure of all permitted names.
    total: f64,
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
            total: 0.0,
        };
        let root = trie.root();
        search.total = search.log_measure(&root);
        let first = search.keep_or_open(Open {
            sums: Sums::default(),
            top: root,
            parent: None,
        });
        search.open.extend(first);
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
            if self.is_beaten(best.sums.score) {
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
                let zeros = vec![0.0; children.len()];
                self.expand(&open.sums, open.parent, &children, &zeros, &zeros);
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
                sums: open.sums,
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
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        for node in std::mem::take(&mut self.in_flight) {
            let count = node.children.len();
            let of_logits: Vec<f64> = wide(&logits[..count]);
            let of_means: Vec<f64> = wide(&means[..count]);
            (logits, means) = (&logits[count..], &means[count..]);
            self.expand(
                &node.sums,
                Some(node.id),
                &node.children,
                &of_logits,
                &of_means,
            );
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
        let open = self.open.iter().map(|open| open.sums.score);
        let found = self.found.iter().map(|found| found.0.score);
        let mut scores: Vec<f64> = open.chain(found).collect();
        if rank == 0 || scores.len() <= rank {
            return self.open.len().max(WIDTH_MIN);
        }
        let (_, last, _) = scores.select_nth_unstable_by(rank - 1, |a, b| b.total_cmp(a));
        let last = *last;
        let among = self.open.iter().filter(|open| open.sums.score >= last);
        among.count().max(WIDTH_MIN)
    }

    /// Whether no name under a node of `score` can be among the n best. At equality one may, by its lower PU.
    fn is_beaten(&self, score: f64) -> bool {
        self.found.len() >= self.question.n
            && (self.found.peek()).is_none_or(|worst| worst.0.score > score + ROUNDING)
    }

    /// First tokens of the children, if the model distinguishes them and has a weight.
    fn first_tokens(&self, children: &[Node]) -> Option<Vec<u32>> {
        if self.question.weight == 0.0 {
            return None;
        }
        let tokens = children.iter().map(|child| self.trie.first_token(child));
        tokens.collect()
    }

    /// Shares a node's probability among its children. `sums` are the node's, `id` its number in the search.
    fn expand(
        &mut self,
        sums: &Sums,
        id: Option<u32>,
        children: &[Node],
        logits: &[f64],
        means: &[f64],
    ) {
        let weight = self.question.weight;
        let measures: Vec<f64> = children.iter().map(|c| self.log_measure(c)).collect();
        let ratios = logits
            .iter()
            .zip(means)
            .map(|(x, mean)| weight * (x - mean));
        let mut scores: Vec<f64> = ratios.zip(&measures).map(|(x, m)| x + m).collect();
        if weight == 0.0 {
            // The prior itself, not a sum of rounded edges, so that equal masses give equal scores.
            let prior = measures.iter().map(|measure| measure - self.total);
            scores = prior.collect();
        } else {
            log_softmax(&mut scores);
            scores.iter_mut().for_each(|edge| *edge += sums.score);
        }
        let [model, baseline] = [logits, means].map(|values| {
            let mut edges = values.to_vec();
            match weight {
                0.0 => edges.fill(0.0),
                _ => log_softmax(&mut edges),
            }
            edges
        });
        let mut open = Vec::with_capacity(children.len());
        for (index, child) in children.iter().enumerate() {
            let sums = Sums {
                score: scores[index],
                model: sums.model + model[index],
                baseline: sums.baseline + baseline[index],
            };
            open.extend(self.keep_or_open(Open {
                sums,
                top: child.clone(),
                parent: id,
            }));
        }
        self.open.extend(open);
    }

    /// Keeps a node that has one permitted name; returns a node that has several and may lead to one of the best.
    fn keep_or_open(&mut self, open: Open) -> Option<Open> {
        if self.is_beaten(open.sums.score) {
            return None;
        }
        match self.count(&open.top) {
            0 => None,
            1 => {
                self.keep(&open);
                None
            }
            _ => Some(open),
        }
    }

    fn keep(&mut self, open: &Open) {
        let leaves = &open.top.leaves;
        let leaf = match &self.question.permitted {
            None => leaves.start,
            Some(permitted) => permitted
                .first(leaves)
                .expect("count found one permitted leaf"),
        };
        let Sums {
            score,
            model,
            baseline,
        } = open.sums;
        let pu = self.trie.pu(leaf);
        self.found.push(Reverse(Found {
            pu,
            score,
            model,
            baseline,
        }));
        if self.found.len() > self.question.n {
            self.found.pop();
        }
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

    /// Log measure of a node by the terms beside the model, in nats.
    pub fn log_measure(&self, node: &Node) -> f64 {
        let permitted = self.question.permitted.as_deref();
        match &self.question.prior {
            Some(prior) => {
                let sum = prior.masses.sum(&node.leaves, permitted, &prior.own);
                // At weight 0 the prior alone decides, so each name must keep its own mass.
                let sums = prior.sums || self.question.weight == 0.0;
                let shared = if sums { 1 } else { self.count(node).max(1) };
                // A mass that underflows to 0 must keep a finite logarithm.
                (sum / f64::from(shared)).max(f64::MIN_POSITIVE).ln()
            }
            None if self.question.weight == 0.0 => f64::from(self.count(node)).ln(),
            None => 0.0,
        }
    }
}

/// `x − ln Σ exp(x)`.
pub fn log_softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
    let norm = max + sum.ln();
    x.iter_mut().for_each(|x| *x -= norm);
}

#[cfg(test)]
mod tests;
