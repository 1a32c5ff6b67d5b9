//! Logits of a few tokens each, from hidden states on a device.
//!
//! Decides how: a list of tokens that several rows ask for (the root's children) is one product with
//! their rows of the head; short lists are gathered and multiplied pairwise. In f32: a logit of 20
//! in bf16 is off by up to 0.06. Invariant: answers in the order asked. It does not know nodes.

use std::collections::HashMap;

use candle_core::{D, DType, Result, Tensor};

use super::Network;

/// Values gathered at once, at most: 256 MB of f32.
const GATHER_MAX: usize = 1 << 26;

/// A list this long is worth a product of its own even for one row.
const LONG: usize = 128;

/// Tokens whose logits are wanted after one hidden state.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Row among the hidden states.
    pub row: u32,
    /// Tokens.
    pub tokens: &'a [u32],
}

impl Network {
    /// Logits of each list's tokens after its row of `hidden`, `[rows, hidden]` f32; lists in order.
    pub fn logits(&self, hidden: &Tensor, wanted: &[Wanted]) -> Result<Vec<f32>> {
        let mut starts = Vec::with_capacity(wanted.len());
        let mut all = 0;
        for list in wanted {
            starts.push(all);
            all += list.tokens.len();
        }
        let mut out = vec![0f32; all];
        // Which lists are alike; visited in order of first sight, so nothing depends on the map's.
        let mut alike: HashMap<&[u32], usize> = HashMap::new();
        let mut lists: Vec<(&[u32], Vec<usize>)> = Vec::new();
        let mut short: Vec<usize> = Vec::new();
        for (nth, list) in wanted.iter().enumerate() {
            if list.tokens.len() < LONG {
                short.push(nth);
                continue;
            }
            let at = *alike.entry(list.tokens).or_insert_with(|| {
                lists.push((list.tokens, Vec::new()));
                lists.len() - 1
            });
            lists[at].1.push(nth);
        }
        for (tokens, who) in &lists {
            let rows: Vec<u32> = who.iter().map(|nth| wanted[*nth].row).collect();
            let logits = self.product(hidden, &rows, tokens)?;
            for (nth, logits) in who.iter().zip(logits) {
                out[starts[*nth]..][..tokens.len()].copy_from_slice(&logits);
            }
        }
        let pairs = short.iter().flat_map(|nth| {
            wanted[*nth]
                .tokens
                .iter()
                .map(|token| (wanted[*nth].row, *token))
        });
        let pairs: Vec<(u32, u32)> = pairs.collect();
        let places = short
            .iter()
            .flat_map(|nth| starts[*nth]..starts[*nth] + wanted[*nth].tokens.len());
        for (place, logit) in places.zip(self.pairwise(hidden, &pairs)?) {
            out[place] = logit;
        }
        Ok(out)
    }

    /// `[rows][tokens]` by one product per as many tokens as may be gathered at once.
    fn product(&self, hidden: &Tensor, rows: &[u32], tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let rows = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
        let mut parts = Vec::new();
        for tokens in tokens.chunks(GATHER_MAX / self.geometry.hidden) {
            let head = self.rows_of_head(tokens)?;
            parts.push(rows.matmul(&head.t()?)?);
        }
        Tensor::cat(&parts, 1)?.to_vec2()
    }

    /// The logit of each pair of a row and a token.
    fn pairwise(&self, hidden: &Tensor, pairs: &[(u32, u32)]) -> Result<Vec<f32>> {
        let mut logits = Vec::with_capacity(pairs.len());
        for pairs in pairs.chunks(GATHER_MAX / self.geometry.hidden) {
            let (rows, tokens): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
            let rows = hidden.index_select(&Tensor::new(rows, hidden.device())?, 0)?;
            let products = (rows * self.rows_of_head(&tokens)?)?.sum(D::Minus1)?;
            logits.extend(products.to_vec1::<f32>()?);
        }
        Ok(logits)
    }

    fn rows_of_head(&self, tokens: &[u32]) -> Result<Tensor> {
        let tokens = Tensor::new(tokens, self.head.device())?;
        self.head.index_select(&tokens, 0)?.to_dtype(DType::F32)
    }
}
