//! The explanation of the model's term of a name: every choice on its path through the trie.
//!
//! Computes the edges of given names again, by one pass over their paths after the prompt instead of a search.
//! Invariant: the edges of a name add up to the model's term, within the rounding of floats. It does not know which
//! names are best.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Serialize;

use super::calibration::{Paths, Scratch, Wanted};
use super::constrained::{Constrained, failed, nearest};
use crate::Error;
use crate::cpu::forward::Pass;
use nearshore_core::names::scoring::ScoreRequest;
use nearshore_core::names::search::{Search, log_softmax};
use nearshore_core::names::trie::{Node, Trie};

/// Per path of tokens: each child with its logit.
type Logits = BTreeMap<Vec<u32>, Vec<(u32, f32)>>;

/// One choice of the model on the path to a name.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Edge {
    /// The name's tokens from this choice to the next.
    pub text: String,
    /// Number of permitted choices, including this one.
    pub choices: usize,
    /// What the choice adds to the model's term: its log-probability among the permitted choices, in nats, after the
    /// means over the calibration prompts are subtracted.
    pub model: f32,
}

/// A node with several permitted children on the path to a name.
pub(crate) struct Fork {
    /// Tokens from the prompt's end to the node.
    pub(crate) path: Vec<u32>,
    node: Node,
    /// Those that are permitted.
    pub(crate) children: Vec<Node>,
    /// Which of them leads to the name.
    pub(crate) chosen: usize,
}

impl Constrained {
    /// Returns the edges of some names under `request`, from the first choice to the last; none at model weight 0.
    pub fn explain(
        &mut self,
        request: &ScoreRequest,
        pus: &[u32],
    ) -> Result<Vec<Vec<Edge>>, Error> {
        if request.weight == 0.0 {
            return Ok(vec![Vec::new(); pus.len()]);
        }
        let question = self.mixture.question(request);
        let trie = std::sync::Arc::clone(self.mixture.trie());
        let search = Search::new(&trie, question);
        let forks: Vec<Vec<Fork>> = pus.iter().map(|pu| forks(&trie, &search, *pu)).collect();
        let wanted = forks.iter().flatten().map(|fork| fork.wanted(&trie));
        let wanted: BTreeSet<Wanted> = wanted.collect();
        let logits = self.logits_at(request, &wanted)?;
        let means = match &request.calibration {
            Some(calibration) if !wanted.is_empty() => {
                let means = self.calibration(calibration)?;
                let mut scratch = Scratch::new(means, &self.network);
                scratch.of(wanted, &self.network, 1, self.limits.rows_max)?
            }
            _ => BTreeMap::new(),
        };
        let mut explained = Vec::with_capacity(pus.len());
        for (pu, forks) in pus.iter().zip(&forks) {
            let name = self.text.name(&self.names.names[*pu as usize])?;
            let mut edges = Vec::with_capacity(forks.len());
            for (nth, fork) in forks.iter().enumerate() {
                let end = forks
                    .get(nth + 1)
                    .map_or(name.len(), |next| next.path.len());
                let tokens = name.get(fork.path.len()..end).unwrap_or_default();
                let logits = fork.values(&trie, logits.get(&fork.path).map(|node| &node[..]));
                let means = fork.values(&trie, means.get(&fork.path).map(|node| &node[..]));
                let mut values: Vec<f64> = logits.iter().zip(means).map(|(x, m)| x - m).collect();
                log_softmax(&mut values);
                edges.push(Edge {
                    text: self.text.read(tokens),
                    choices: values.len(),
                    model: values[fork.chosen] as f32,
                });
            }
            explained.push(edges);
        }
        Ok(explained)
    }

    /// Returns the logits of all children of some nodes after the prompt of `request`.
    fn logits_at(
        &self,
        request: &ScoreRequest,
        wanted: &BTreeSet<Wanted>,
    ) -> Result<Logits, Error> {
        if wanted.is_empty() {
            return Ok(BTreeMap::new());
        }
        let tokens = self.tokens(&request.prompt)?;
        let cache = match nearest(&self.prefixes, &tokens[..tokens.len() - 1]) {
            Some((prefix, known)) => self.network.cache_after(&self.prefixes[prefix], known),
            None => self.network.cache(),
        };
        let (prompt, after_prompt) = self.compute(cache, tokens)?;
        let mut caches = [self.network.cache_after(&prompt, prompt.tokens.len())];
        let mut paths = Paths::default();
        for wanted in wanted {
            paths.add(&wanted.path);
        }
        let ends: Vec<usize> = (wanted.iter())
            .filter_map(|wanted| paths.rows.get(&wanted.path).copied())
            .collect();
        let mut pass = Pass {
            nodes: true,
            ..Pass::default()
        };
        paths.add_to(&mut pass, 0, prompt.tokens.len(), &ends);
        let hidden = match pass.tokens.len() {
            0 => Vec::new(),
            _ => (self.network.forward(&pass, &mut caches, 1)).map_err(failed)?,
        };
        let row = |wanted: &Wanted| match paths.rows.get(&wanted.path) {
            None => &after_prompt,
            Some(row) => {
                let at = pass.wanted.partition_point(|wanted| wanted < row);
                &hidden[at]
            }
        };
        let lists = wanted
            .iter()
            .map(|wanted| (row(wanted), &wanted.children[..]));
        let all = self
            .network
            .logits(&lists.collect::<Vec<_>>())
            .map_err(failed)?;
        let mut rest = all.as_slice();
        let mut found = BTreeMap::new();
        for wanted in wanted {
            let (logits, others) = rest.split_at(wanted.children.len());
            rest = others;
            let node = wanted.children.iter().copied().zip(logits.iter().copied());
            found.insert(wanted.path.clone(), node.collect());
        }
        Ok(found)
    }
}

/// The nodes on the path to `pu` at which the model chooses: several permitted children start with different tokens.
pub(crate) fn forks(trie: &Trie, search: &Search, pu: u32) -> Vec<Fork> {
    let Some(leaf) = trie.leaf(pu) else {
        return Vec::new();
    };
    let mut forks = Vec::new();
    let mut node = trie.root();
    let mut path: Vec<u32> = trie.label(&node).collect();
    loop {
        let children = search.permitted_children(&node);
        let Some(chosen) = children
            .iter()
            .position(|child| child.leaves.contains(&leaf))
        else {
            return forks;
        };
        let child = children[chosen].clone();
        if children.len() > 1 && trie.first_token(&child).is_some() {
            forks.push(Fork {
                path: path.clone(),
                node,
                children,
                chosen,
            });
        }
        path.extend(trie.label(&child));
        node = child;
    }
}

impl Fork {
    fn wanted(&self, trie: &Trie) -> Wanted {
        let all = trie.children(&self.node);
        Wanted {
            path: self.path.clone(),
            children: all.filter_map(|child| trie.first_token(&child)).collect(),
        }
    }

    /// The value of each permitted child; 0 where there is none.
    fn values(&self, trie: &Trie, of: Option<&[(u32, f32)]>) -> Vec<f64> {
        let value = |child: &Node| {
            let token = trie.first_token(child)?;
            let of = of?;
            let at = of.binary_search_by_key(&token, |(of, _)| *of).ok()?;
            Some(f64::from(of[at].1))
        };
        let values = self
            .children
            .iter()
            .map(|child| value(child).unwrap_or(0.0));
        values.collect()
    }
}
