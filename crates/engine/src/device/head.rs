//! Logits of some tokens per hidden state, on a device.
//!
//! Decides how the work is divided: a list of tokens is cut into pieces, so that a root with thousands of children is
//! many blocks of threads. Hidden states and sums are f32: a logit of 20 in bf16 is off by up to 0.06. Invariant:
//! logits are in the order of the lists. It does not know nodes.

use candle_core::{Result, Tensor, bail};

use super::Network;

/// The most tokens of a piece.
const PIECE: usize = 64;

/// Tokens whose logits are wanted after one hidden state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Row of the hidden states.
    pub row: u32,
    /// The tokens.
    pub tokens: &'a [u32],
}

impl Network {
    /// Logits of each list's tokens after its row of `hidden`, `[rows, hidden]` f32: the lists one after the other.
    pub(crate) fn logits(&self, hidden: &Tensor, wanted: &[Wanted]) -> Result<Vec<f32>> {
        let all = wanted.iter().map(|list| list.tokens.len()).sum();
        let mut tokens = Vec::with_capacity(all);
        let mut lists = Vec::with_capacity(wanted.len());
        for list in wanted {
            for piece in list.tokens.chunks(PIECE) {
                let from = tokens.len() as u32;
                tokens.extend_from_slice(piece);
                lists.push([list.row, from, tokens.len() as u32]);
            }
        }
        if let Some(token) = (tokens.iter()).find(|token| **token as usize >= self.vocabulary()) {
            bail!("token {token} is not in the vocabulary");
        }
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        self.ops.score(hidden, &self.head, &lists, &tokens)
    }

    fn vocabulary(&self) -> usize {
        self.geometry.vocabulary
    }
}
