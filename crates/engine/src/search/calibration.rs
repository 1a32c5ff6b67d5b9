//! Calibration: the mean logit of a name's next token over calibration prompts, which stand for everyone.
//!
//! Decides when a mean is computed and how long it is kept. The means of a node are computed when they are first
//! needed, for all its children, permitted or not, by one pass over the tokens from the root to the node, after each
//! prompt. They are kept by token path; the least recently used are dropped first. Invariant: a mean depends on prompts
//! and path alone, so lists are equal from a cold and a warm cache, and across catalogues. Means of log-probabilities
//! would differ from means of logits by one number per node, which the search's softmax removes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::backend::{Cache, Network, Prefix, Row};
use crate::Error;
use crate::cpu::attention::{Sight, Span};
use crate::cpu::forward::Pass;
use nearshore_core::names::scoring::Calibration;

/// The most means kept per calibration, counted in children of all nodes: about 16 MB.
const CHILDREN_MAX: usize = 1 << 20;

/// Tokens of children with their mean logits, ascending by token.
type Node = Arc<[(u32, f32)]>;

/// The computed prompts of one calibration, and the means known so far.
pub(crate) struct CalibrationMeans {
    /// Identifies the calibration.
    pub hash: String,
    /// Keys and values of each prompt.
    prompts: Vec<Prefix>,
    /// Hidden state after each prompt.
    hidden: Vec<Row>,
    known: Mutex<Known>,
}

/// A node whose means are needed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    /// Tokens from the prompt's end to the node.
    pub path: Vec<u32>,
    /// First tokens of all its children, ascending.
    pub children: Vec<u32>,
}

struct Known {
    nodes: LruCache<Vec<u32>, Node>,
    /// Number of children of all nodes.
    children: usize,
}

impl Known {
    /// Inserts the means of a node; drops the least recently used ones over the limit.
    fn insert(&mut self, path: Vec<u32>, node: &Node) {
        self.children += node.len();
        if let Some((_, old)) = self.nodes.push(path, Arc::clone(node)) {
            self.children -= old.len();
        }
        while self.children > CHILDREN_MAX && self.nodes.len() > 1 {
            let Some((_, old)) = self.nodes.pop_lru() else {
                break;
            };
            self.children -= old.len();
        }
    }
}

/// A calibration for one group of users, with caches in which the group computes means.
pub(crate) struct Scratch {
    means: Arc<CalibrationMeans>,
    caches: Vec<Cache>,
    /// Number of rows computed.
    pub forwarded: usize,
}

impl CalibrationMeans {
    /// A calibration whose prompts are computed, each with the hidden state after it; no means yet.
    pub(crate) fn new(calibration: &Calibration, computed: Vec<(Prefix, Row)>) -> Self {
        let (prompts, hidden) = computed.into_iter().unzip();
        Self {
            hash: calibration.hash.clone(),
            prompts,
            hidden,
            known: Mutex::new(Known {
                nodes: LruCache::unbounded(),
                children: 0,
            }),
        }
    }

    /// Number of nodes whose means are known.
    pub(crate) fn len(&self) -> usize {
        self.known().nodes.len()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        // Entries are inserted whole, so the map is valid even if a thread panicked.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The means of a node, if all of `children` are known.
    fn look_up(&self, wanted: &Wanted) -> Option<Node> {
        let node = self.known().nodes.get(&wanted.path).cloned()?;
        let has = |token: &u32| node.binary_search_by_key(token, |(of, _)| *of).is_ok();
        wanted.children.iter().all(has).then_some(node)
    }
}

impl Scratch {
    /// Creates caches after each prompt of `means`.
    pub(crate) fn new(means: Arc<CalibrationMeans>, network: &Network) -> Self {
        let prompts = means.prompts.iter();
        let caches = prompts.map(|prompt| network.cache_after(prompt, prompt.tokens.len()));
        Self {
            caches: caches.collect(),
            means,
            forwarded: 0,
        }
    }

    /// Whether the caches are for this calibration.
    pub(crate) fn is_for(&self, means: &Arc<CalibrationMeans>) -> bool {
        Arc::ptr_eq(&self.means, means)
    }

    /// Returns the means of nodes by path; computes those that are not known, in passes of about `rows_max` rows.
    pub(crate) fn of(
        &mut self,
        wanted: BTreeSet<Wanted>,
        network: &Network,
        threads: usize,
        rows_max: usize,
    ) -> Result<BTreeMap<Vec<u32>, Node>, Error> {
        let mut found = BTreeMap::new();
        let mut missing: Vec<Wanted> = Vec::new();
        for wanted in wanted {
            match self.means.look_up(&wanted) {
                Some(node) => drop(found.insert(wanted.path, node)),
                None => missing.push(wanted),
            }
        }
        let rows_max = (rows_max / self.caches.len().max(1)).max(1);
        while !missing.is_empty() {
            let mut paths = Paths::default();
            let fits = |wanted: &&Wanted| paths.add(&wanted.path) <= rows_max;
            let count = missing.iter().take_while(fits).count().max(1);
            let rest = missing.split_off(count);
            let now = std::mem::replace(&mut missing, rest);
            let nodes = self.compute(&now, network, threads)?;
            let mut known = self.means.known();
            for (wanted, node) in now.into_iter().zip(nodes) {
                known.insert(wanted.path.clone(), &node);
                found.insert(wanted.path, node);
            }
        }
        Ok(found)
    }

    fn compute(
        &mut self,
        wanted: &[Wanted],
        network: &Network,
        threads: usize,
    ) -> Result<Vec<Node>, Error> {
        let mut paths = Paths::default();
        for wanted in wanted {
            paths.add(&wanted.path);
        }
        let ends: Vec<usize> = (wanted.iter())
            .filter(|wanted| !wanted.path.is_empty())
            .map(|wanted| paths.rows[&wanted.path[..]])
            .collect();
        let mut pass = Pass {
            nodes: true,
            ..Pass::default()
        };
        for (nth, cache) in self.caches.iter_mut().enumerate() {
            cache.forget_nodes();
            paths.add_to(&mut pass, nth, cache.known(), &ends);
        }
        let hidden = match pass.tokens.len() {
            0 => Vec::new(),
            rows => {
                self.forwarded += rows;
                let hidden = network.forward(&pass, &mut self.caches, threads);
                hidden.map_err(super::constrained::failed)?
            }
        };
        let mut place = BTreeMap::new();
        for (at, row) in unique(&ends).into_iter().enumerate() {
            place.insert(row, at);
        }
        let row = |prompt: usize, wanted: &Wanted| -> &Row {
            if wanted.path.is_empty() {
                return &self.means.hidden[prompt];
            }
            let at = prompt * place.len() + place[&paths.rows[&wanted.path[..]]];
            &hidden[at]
        };
        let all: Vec<(&Row, &[u32])> = (wanted.iter())
            .flat_map(|wanted| {
                let prompts = 0..self.caches.len();
                let children = wanted.children.as_slice();
                prompts
                    .map(|prompt| (row(prompt, wanted), children))
                    .collect::<Vec<_>>()
            })
            .collect();
        let logits = network.logits(&all).map_err(super::constrained::failed)?;
        let mut nodes = Vec::with_capacity(wanted.len());
        let mut rest = logits.as_slice();
        for wanted in wanted {
            let mut sums = vec![0f64; wanted.children.len()];
            for _ in 0..self.caches.len() {
                let (logits, others) = rest.split_at(sums.len());
                rest = others;
                let each = sums.iter_mut().zip(logits);
                each.for_each(|(sum, logit)| *sum += f64::from(*logit));
            }
            let mean = |sum: f64| (sum / self.caches.len() as f64) as f32;
            let means = sums.into_iter().map(mean);
            nodes.push(wanted.children.iter().copied().zip(means).collect());
        }
        Ok(nodes)
    }
}

/// The tokens of some paths as rows; paths that share a beginning share its rows.
#[derive(Default)]
pub(crate) struct Paths {
    /// The row of each path's last token.
    pub rows: BTreeMap<Vec<u32>, usize>,
    /// Per row: its token, and the rows of its path, the row itself last.
    tokens: Vec<(u32, Vec<u32>)>,
}

impl Paths {
    /// Adds a path; returns the number of rows.
    pub(crate) fn add(&mut self, path: &[u32]) -> usize {
        let mut ancestors: Vec<u32> = Vec::new();
        for (depth, token) in path.iter().enumerate() {
            let row = match self.rows.get(&path[..=depth]) {
                Some(row) => *row,
                None => {
                    let row = self.tokens.len();
                    let sight = ancestors.iter().copied().chain([row as u32]).collect();
                    self.tokens.push((*token, sight));
                    self.rows.insert(path[..=depth].to_vec(), row);
                    row
                }
            };
            ancestors.push(row as u32);
        }
        self.tokens.len()
    }

    /// Adds all rows to a pass, after the `prompt` positions of a cache that has no nodes; wants the rows `ends`.
    pub(crate) fn add_to(&self, pass: &mut Pass, cache: usize, prompt: usize, ends: &[usize]) {
        let from = pass.tokens.len();
        for (token, slots) in &self.tokens {
            pass.tokens.push(*token);
            pass.positions.push(prompt + slots.len() - 1);
            pass.sights.push(Sight {
                prompt,
                slots: slots.clone(),
            });
        }
        pass.wanted
            .extend(unique(ends).iter().map(|row| from + row));
        if pass.tokens.len() > from {
            pass.spans.push(Span {
                cache,
                rows: from..pass.tokens.len(),
            });
        }
    }
}

/// The rows in ascending order, each once.
fn unique(rows: &[usize]) -> Vec<usize> {
    let rows: BTreeSet<usize> = rows.iter().copied().collect();
    rows.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_share_their_beginnings_and_a_row_sees_its_own_path_only() {
        let mut paths = Paths::default();
        for (path, rows) in [
            (&[1, 2][..], 2),
            (&[1, 3], 3),
            (&[1, 2, 4], 4),
            (&[], 4),
            (&[2], 5),
        ] {
            assert_eq!(paths.add(path), rows, "{path:?}");
        }
        let expected = [
            (1, vec![0]),
            (2, vec![0, 1]),
            (3, vec![0, 2]),
            (4, vec![0, 1, 3]),
            (2, vec![4]),
        ];
        assert_eq!(paths.tokens, expected);
        let mut pass = Pass::default();
        paths.add_to(&mut pass, 0, 10, &[1, 3]);
        paths.add_to(&mut pass, 1, 20, &[1, 3]);
        assert_eq!(pass.wanted, [1, 3, 6, 8]);
        assert_eq!(pass.positions, [10, 11, 11, 12, 10, 20, 21, 21, 22, 20]);
    }

    #[test]
    fn the_least_recently_used_means_are_dropped_first() {
        let means = CalibrationMeans::new(&Calibration::default(), Vec::new());
        let node = |count: usize| -> Node { (0..count).map(|token| (token as u32, 0.0)).collect() };
        let half = CHILDREN_MAX / 2;
        let wanted = |path: u32| Wanted {
            path: vec![path],
            children: vec![0],
        };
        means.known().insert(vec![1], &node(half));
        means.known().insert(vec![2], &node(half));
        assert!(means.look_up(&wanted(1)).is_some());
        means.known().insert(vec![3], &node(half));
        let known = [1, 2, 3].map(|path| means.look_up(&wanted(path)).is_some());
        assert_eq!(known, [true, false, true]);
        assert_eq!(means.known().children, 2 * half);
        // The same path with other children replaces the entry.
        means.known().insert(vec![3], &node(1));
        assert_eq!((means.len(), means.known().children), (2, half + 1));
    }
}
