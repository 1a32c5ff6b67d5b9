//! Keys and values on a device: a chunk per pass, written once.
//!
//! Decides the layout: the rows of a pass are one chunk, per layer `[keys | values, rows, kv heads · width]`; a user's
//! prompt is a list of runs of rows, and each of its nodes is a row. Invariant: a row is never copied, moved, padded or
//! written again; a chunk is freed when no user and no prefix refers to it. It does not know what a row may see.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::cpu::kv::Sizes;

/// Keys and values of the rows of one pass.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// `[layers, 2, rows, kv heads · width]`.
    pub tensor: Tensor,
    /// Number of rows.
    pub rows: usize,
}

impl Chunk {
    /// Allocates a chunk of `rows` rows.
    pub(crate) fn new(sizes: Sizes, rows: usize, device: &Device, dtype: DType) -> Result<Self> {
        let shape = (sizes.layers, 2, rows, sizes.row());
        let tensor = Tensor::zeros(shape, dtype, device)?;
        Ok(Self { tensor, rows })
    }

    /// Keys and values of one layer, `[1, 2, rows, kv heads · width]`.
    pub(crate) fn layer(&self, layer: usize) -> Result<Tensor> {
        self.tensor.narrow(0, layer, 1)
    }
}

/// Rows of a chunk that are consecutive positions.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The chunk of the rows.
    pub chunk: Arc<Chunk>,
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub len: usize,
}

/// Keys and values of the beginning of prompts, read-only and shared.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    /// The tokens of the beginning.
    pub tokens: Vec<u32>,
    runs: Vec<Run>,
}

/// The rows with the keys and values of one user.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    /// Rows of the prompt's positions in order, those of a shared prefix first.
    runs: Vec<Run>,
    known: usize,
    shared: usize,
    /// Rows of nodes, in the order of their slots.
    nodes: Vec<Run>,
    /// Per slot: the run in `nodes`, and the row in its chunk.
    slots: Vec<(u32, u32)>,
}

impl Cache {
    /// Creates a cache that starts with the first `len` positions of `prefix`.
    pub(crate) fn after(prefix: &Prefix, len: usize) -> Self {
        assert!(
            len <= prefix.tokens.len(),
            "a prefix is shared up to its length"
        );
        let mut runs = Vec::with_capacity(prefix.runs.len());
        let mut left = len;
        for run in &prefix.runs {
            let len = run.len.min(left);
            left -= len;
            if len > 0 {
                runs.push(Run { len, ..run.clone() });
            }
        }
        Self {
            runs,
            known: len,
            shared: len,
            ..Self::default()
        }
    }

    /// Number of prompt positions that are computed.
    pub(crate) fn known(&self) -> usize {
        self.known
    }

    /// Number of node slots in use.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Number of its own rows, without those of a shared prefix.
    pub(crate) fn own_rows(&self) -> usize {
        self.known - self.shared + self.slots.len()
    }

    /// Frees all node slots.
    pub(crate) fn forget_nodes(&mut self) {
        self.nodes.clear();
        self.slots.clear();
    }

    /// Appends rows of a pass: as the next slots if they are nodes, otherwise as the next positions.
    pub(crate) fn append(&mut self, run: Run, nodes: bool) {
        if !nodes {
            self.known += run.len;
            self.runs.push(run);
            return;
        }
        let nth = self.nodes.len() as u32;
        let rows = run.first..run.first + run.len;
        self.slots.extend(rows.map(|row| (nth, row as u32)));
        self.nodes.push(run);
    }

    /// Rows of the prompt.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Chunk and row of a node.
    pub(crate) fn slot(&self, slot: u32) -> (&Arc<Chunk>, u32) {
        let (nth, row) = self.slots[slot as usize];
        (&self.nodes[nth as usize].chunk, row)
    }

    /// Turns the cache of a whole prompt, whose tokens are `tokens`, into a prefix for other prompts.
    pub(crate) fn into_prefix(self, tokens: Vec<u32>) -> Prefix {
        assert_eq!(self.known, tokens.len(), "every position is computed");
        Prefix {
            tokens,
            runs: self.runs,
        }
    }
}
