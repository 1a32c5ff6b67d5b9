//! One case as rows of a pass: its prompt once, then the tokens of its names as a tree.
//!
//! Decides which rows a case needs: a beginning that names share is one row, and tokens after a name's last choice are
//! none. Invariant: the choices are those that the search adds up, so what is trained is what is served. It does not
//! know how a pass is computed.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use crate::cpu::attention::Sight;
use crate::cpu::forward::Pass;
use crate::search::calibration::Paths;
use crate::search::explain::forks;
use nearshore_core::names::search::Search;
use nearshore_core::names::trie::Trie;

/// Rows of one case, and how logits after them become scores of names.
pub(super) struct Rows {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<usize>,
    sights: Vec<Sight>,
    prompt: usize,
    /// The row whose hidden state each choice is made from.
    pub(super) choices: Vec<u32>,
    /// First tokens of what can be chosen, choice by choice.
    pub(super) tokens_of_children: Vec<u32>,
    /// The choice of each of them.
    pub(super) choice_of_children: Vec<u32>,
    /// What names choose: each pair of a name, by its place, and a child, by its place.
    pub(super) edges: Vec<(u32, u32)>,
    /// Number of names.
    pub(super) names: usize,
}

impl Rows {
    /// The rows for the path scores of `names` after `prompt`, among what `search` permits.
    pub(super) fn new(trie: &Trie, search: &Search, prompt: &[u32], names: &[u32]) -> Self {
        let mut paths = Paths::default();
        // By path: the place of its first child.
        let mut known: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
        let (mut ends, mut choices) = (Vec::new(), Vec::new());
        let (mut tokens_of_children, mut choice_of_children) = (Vec::new(), Vec::new());
        let mut edges = Vec::new();
        for (nth, pu) in names.iter().enumerate() {
            for fork in forks(trie, search, *pu) {
                let first = *known.entry(fork.path.clone()).or_insert_with(|| {
                    let first = tokens_of_children.len() as u32;
                    let tokens = fork.children.iter();
                    tokens_of_children.extend(tokens.filter_map(|child| trie.first_token(child)));
                    choice_of_children.resize(tokens_of_children.len(), choices.len() as u32);
                    paths.add(&fork.path);
                    let row = match paths.rows.get(&fork.path) {
                        Some(row) => {
                            ends.push(*row);
                            prompt.len() + row
                        }
                        None => prompt.len() - 1,
                    };
                    choices.push(row as u32);
                    first
                });
                edges.push((nth as u32, first + fork.chosen as u32));
            }
        }
        let mut pass = Pass::default();
        pass.add_prompt(0, 0, prompt);
        paths.add_to(&mut pass, 0, prompt.len(), &ends);
        Self {
            tokens: pass.tokens,
            positions: pass.positions,
            sights: pass.sights,
            prompt: prompt.len(),
            choices,
            tokens_of_children,
            choice_of_children,
            edges,
            names: names.len(),
        }
    }

    /// What is added to the attention scores of each row: 0 where it sees another row, or else minus infinity.
    pub(super) fn mask(&self, device: &Device) -> Result<Tensor> {
        let rows = self.tokens.len();
        let mut mask = vec![f32::NEG_INFINITY; rows * rows];
        for (row, sight) in mask.chunks_exact_mut(rows).zip(&self.sights) {
            row[..sight.prompt].fill(0.0);
            for slot in &sight.slots {
                row[self.prompt + *slot as usize] = 0.0;
            }
        }
        Tensor::from_vec(mask, (rows, rows), device)
    }
}
