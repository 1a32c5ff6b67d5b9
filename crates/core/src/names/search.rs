//! Exact top N of a [`Trie`]: says which nodes to score next and is fed the scores.
//!
//! Decides the score of a name and the order of the search. At a node with more than one permitted
//! child the children share its probability: softmax over the permitted children of
//! `weight · (logit − mean) + ln(measure of the child)`; an only child costs nothing. So the scores
//! are a distribution over the permitted names. What is known of names beside the model is one mass
//! per leaf, the [`Prior`]; a child's measure is the sum over its leaves, and with `weight` 0 the
//! scores are the prior itself, whatever the shape of the trie.
//!
//! Invariant: best first, with every node expanded whose score reaches the n-th best name found; a
//! name's score depends on the question alone, not on `n`, nor on what was asked in which wave; so the
//! answer equals brute force, ties by PU. It does not know who computes logits, nor how.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::names::trie::{Masses, Node, Own, Permitted, Trie};

/// Rounding of a bound against a score, in nats: a node is beaten only by more than this.
const ROUNDING: f64 = 1e-9;

/// Nodes that a wave asks for at least, if there are so many: small waves cost a pass each.
const WIDTH_MIN: usize = 8;

/// Share of the names wanted whose rank a node must have to be asked for early. Counted over real prompts,
/// top 50: with
/// all ranks 8 % more tokens than with 85 of 100, with 50 of 100 4 % fewer in half as many waves again.
const RANKS: (usize, usize) = (85, 100);

/// What is known of names before the model runs.
#[derive(Clone, Debug)]
pub struct Prior {
    /// A mass per leaf.
    pub masses: Arc<Masses>,
    /// What one user changes of it.
    pub own: Own,
    /// Whether a child's measure is the sum over its leaves, as of a demand; otherwise their mean:
    /// then a subtree does not gain by the number of its names, and equal masses are no prior at all.
    pub sums: bool,
}

/// What is searched for.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Permitted leaves; `None` permits all.
    pub permitted: Option<Arc<Permitted>>,
    /// How many names.
    pub n: usize,
    /// Weight of the model's logits; 0 asks the model nothing.
    pub weight: f64,
    /// Terms beside the model. Without it and with weight 0 all names are alike.
    pub prior: Option<Prior>,
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
    /// The node of the trie.
    pub node: Node,
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
    /// The means' edges alone: what the model says to everyone; 0 without means.
    pub baseline: f64,
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

/// Sums of edges down to a node, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    score: f64,
    model: f64,
    baseline: f64,
}

/// More than one permitted name, not yet told apart.
#[derive(Clone, Debug)]
struct Open {
    sums: Sums,
    /// Child of the expanded node `parent`; the node that branches may be further down, for what is
    /// permitted may leave single children between.
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

/// Asked for, not yet fed.
#[derive(Clone, Debug)]
struct Flying {
    sums: Sums,
    id: u32,
    children: Vec<Node>,
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search<'a> {
    trie: &'a Trie,
    question: Question,
    open: BinaryHeap<Open>,
    /// The n best so far, the worst on top.
    found: BinaryHeap<Reverse<Found>>,
    flying: Vec<Flying>,
    /// Nodes asked for so far.
    asked: u32,
    /// Log measure of all permitted names.
    whole: f64,
}

impl<'a> Search<'a> {
    /// A search of `trie` that stands at its root.
    pub fn new(trie: &'a Trie, question: Question) -> Self {
        let mut search = Self {
            trie,
            question,
            open: BinaryHeap::new(),
            found: BinaryHeap::new(),
            flying: Vec::new(),
            asked: 0,
            whole: 0.0,
        };
        let root = trie.root();
        search.whole = search.log_measure(&root);
        let first = search.placed(Open {
            sums: Sums::default(),
            top: root,
            parent: None,
        });
        search.open.extend(first);
        search
    }

    /// The nodes to score next, of at most `rows_max` chain tokens unless one node alone has more;
    /// `None` when the n best are proven. Each wave must be [fed](Self::feed) before the next.
    pub fn next_wave(&mut self, rows_max: usize) -> Option<Wave> {
        assert!(self.flying.is_empty(), "a wave is fed before the next");
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
            let open = self.open.pop().expect("it was just seen");
            let children = self.permitted_children(&node);
            let Some(tokens) = self.asks(&children) else {
                let nothing = vec![0.0; children.len()];
                self.expand((&open.sums, open.parent), &children, (&nothing, &nothing));
                continue;
            };
            rows += chain.len();
            wave.nodes.push(Expand {
                parent: open.parent,
                id: self.asked,
                node,
                chain,
                children: tokens,
            });
            self.flying.push(Flying {
                sums: open.sums,
                id: self.asked,
                children,
            });
            self.asked += 1;
        }
        (!wave.nodes.is_empty()).then_some(wave)
    }

    /// Takes the logits of the last wave's children, node after node, and the means of the same logits
    /// over reference prompts; no means are zeros. A constant added to all children of one node, in
    /// either, changes nothing.
    pub fn feed(&mut self, logits: &[f32], means: &[f32]) {
        let zeros = vec![0.0; if means.is_empty() { logits.len() } else { 0 }];
        let (mut logits, mut means) = (logits, if means.is_empty() { &zeros } else { means });
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        for flying in std::mem::take(&mut self.flying) {
            let many = flying.children.len();
            let of_logits: Vec<f64> = wide(&logits[..many]);
            let of_means: Vec<f64> = wide(&means[..many]);
            (logits, means) = (&logits[many..], &means[many..]);
            let at = (&flying.sums, Some(flying.id));
            self.expand(at, &flying.children, (&of_logits, &of_means));
        }
        assert!(logits.is_empty() && means.is_empty(), "one value per child");
    }

    /// Whether the n best are known: nothing is open, nothing asked for.
    pub fn is_proven(&self) -> bool {
        self.open.is_empty() && self.flying.is_empty()
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

    /// Nodes to ask for at once: those among the best of all that is open or found, as many as [`RANKS`] of
    /// the names wanted. So the first waves are as wide as a beam's, and the last take only what is
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

    /// Whether no name under a node of `score` can be among the n best. Not at equality: it might
    /// have the lower PU.
    fn is_beaten(&self, score: f64) -> bool {
        self.found.len() >= self.question.n
            && (self.found.peek()).is_none_or(|worst| worst.0.score > score + ROUNDING)
    }

    /// First tokens of the children, if the model can tell them apart and is listened to.
    fn asks(&self, children: &[Node]) -> Option<Vec<u32>> {
        if self.question.weight == 0.0 {
            return None;
        }
        let tokens = children.iter().map(|child| self.trie.first_token(child));
        tokens.collect()
    }

    /// Shares the node's probability among its children; `id` is what their chains continue.
    fn expand(
        &mut self,
        (at, id): (&Sums, Option<u32>),
        children: &[Node],
        (logits, means): (&[f64], &[f64]),
    ) {
        let weight = self.question.weight;
        let measures: Vec<f64> = children.iter().map(|c| self.log_measure(c)).collect();
        let ratios = logits
            .iter()
            .zip(means)
            .map(|(x, mean)| weight * (x - mean));
        let mut scores: Vec<f64> = ratios.zip(&measures).map(|(x, m)| x + m).collect();
        if weight == 0.0 {
            // The prior itself, not a sum of rounded edges: equal masses are equal scores.
            let prior = measures.iter().map(|measure| measure - self.whole);
            scores = prior.collect();
        } else {
            log_softmax(&mut scores);
            scores.iter_mut().for_each(|edge| *edge += at.score);
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
        for (nth, child) in children.iter().enumerate() {
            let sums = Sums {
                score: scores[nth],
                model: at.model + model[nth],
                baseline: at.baseline + baseline[nth],
            };
            open.extend(self.placed(Open {
                sums,
                top: child.clone(),
                parent: id,
            }));
        }
        self.open.extend(open);
    }

    /// Keeps a name; gives back what has more than one and may be among the best.
    fn placed(&mut self, open: Open) -> Option<Open> {
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
            Some(permitted) => permitted.first(leaves).expect("one was counted"),
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

    /// The node at which what is permitted under `top` first branches, and the tokens down to it.
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

    /// Permitted names under a node.
    fn count(&self, node: &Node) -> u32 {
        match &self.question.permitted {
            None => node.leaves.end - node.leaves.start,
            Some(permitted) => permitted.count(&node.leaves),
        }
    }

    /// What the terms beside the model give a node, in nats.
    pub fn log_measure(&self, node: &Node) -> f64 {
        let permitted = self.question.permitted.as_deref();
        match &self.question.prior {
            Some(prior) => {
                let sum = prior.masses.sum(&node.leaves, permitted, &prior.own);
                // Nobody else speaks at weight 0, so a name's share must be its own.
                let sums = prior.sums || self.question.weight == 0.0;
                let shared = if sums { 1 } else { self.count(node).max(1) };
                // What is too small to tell from nothing is still something.
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
