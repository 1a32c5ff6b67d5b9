//! Keys and values on a device: a chunk per pass, written once.
//!
//! Decides the layout: the rows of a pass lie together, per layer `[keys | values, rows, kv heads · width]`, and stay
//! where they are; a user knows its prompt as runs of rows, and each node's row. Invariant: nothing is
//! copied, moved, padded or written again; a chunk goes when no user and no prefix holds it. It does not
//! know what a row may see.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::cpu::kv::Sizes;

/// Keys and values of the rows of one pass.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// `[layers, 2, rows, kv heads · width]`.
    pub tensor: Tensor,
    /// Rows there are.
    pub rows: usize,
}

impl Chunk {
    /// Room for `rows`.
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
    /// Where.
    pub chunk: Arc<Chunk>,
    /// The first row.
    pub first: usize,
    /// How many.
    pub len: usize,
}

/// A computed beginning of prompts, read-only and shared.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    /// Its tokens.
    pub tokens: Vec<u32>,
    runs: Vec<Run>,
}

/// One user's view of keys and values: which rows are whose.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    /// The prompt's positions in order; those of a prefix first.
    runs: Vec<Run>,
    known: usize,
    shared: usize,
    /// Nodes, in the order of their slots.
    nodes: Vec<Run>,
    /// Per slot: which of `nodes`, and which row of its chunk.
    slots: Vec<(u32, u32)>,
}

impl Cache {
    /// A cache that starts with the first `len` positions of `prefix`.
    pub(crate) fn after(prefix: &Prefix, len: usize) -> Self {
        assert!(
            len <= prefix.tokens.len(),
            "a prefix is shared as far as it goes"
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

    /// Prompt positions known.
    pub(crate) fn known(&self) -> usize {
        self.known
    }

    /// Node slots in use.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Rows of its own.
    pub(crate) fn own(&self) -> usize {
        self.known - self.shared + self.slots.len()
    }

    /// Lets all node slots go.
    pub(crate) fn forget_nodes(&mut self) {
        self.nodes.clear();
        self.slots.clear();
    }

    /// Takes rows that a pass computes: the next slots, or the next positions.
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

    /// The prompt.
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The chunk and the row of a node.
    pub(crate) fn slot(&self, slot: u32) -> (&Arc<Chunk>, u32) {
        let (nth, row) = self.slots[slot as usize];
        (&self.nodes[nth as usize].chunk, row)
    }

    /// The whole prompt as a prefix for others; `tokens` are its tokens.
    pub(crate) fn into_prefix(self, tokens: Vec<u32>) -> Prefix {
        assert_eq!(self.known, tokens.len(), "every position was computed");
        Prefix {
            tokens,
            runs: self.runs,
        }
    }
}
