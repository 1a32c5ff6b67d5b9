//! Additions of some families to a Llama's attention: biases, and norms of each query and key head.
//!
//! Decides how the projections of a layer are changed before heads are rotated. Invariant: a row's result depends on
//! that row alone. It does not know positions, caches or attention.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};

use super::kernel;

/// Additions of one layer; a plain Llama has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extras {
    /// `[(heads + 2 · kv_heads) · head_dim]`: added to q, k, v.
    pub bias: Option<Vec<f32>>,
    /// `[hidden]`: added to the output projection.
    pub output_bias: Option<Vec<f32>>,
    /// Norms of query and key heads.
    pub norms: Option<HeadNorms>,
}

/// RMS norms over each head's width, before it is rotated.
#[derive(Clone, Debug)]
pub(crate) struct HeadNorms {
    /// `[head_dim]`, of every query head.
    pub query: Vec<f32>,
    /// `[head_dim]`, of every key head.
    pub key: Vec<f32>,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

impl Extras {
    /// Adds biases and applies norms to `[rows, (heads + 2 · kv_heads) · head_dim]`, in place.
    pub(crate) fn onto_qkv(&self, qkv: &Tensor) -> Result<()> {
        if let Some(bias) = &self.bias {
            qkv.inplace_op1(&Bias(bias))?;
        }
        match &self.norms {
            Some(norms) => qkv.inplace_op1(norms),
            None => Ok(()),
        }
    }

    /// Adds the bias to `[rows, hidden]`, in place.
    pub(crate) fn onto_output(&self, output: &Tensor) -> Result<()> {
        match &self.output_bias {
            Some(bias) => output.inplace_op1(&Bias(bias)),
            None => Ok(()),
        }
    }
}

struct Bias<'a>(&'a [f32]);

impl InplaceOp1 for Bias<'_> {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        for row in rows(storage, layout, self.0.len())? {
            row.iter_mut().zip(self.0).for_each(|(x, bias)| *x += bias);
        }
        Ok(())
    }
}

impl InplaceOp1 for HeadNorms {
    fn name(&self) -> &'static str {
        "head-norms"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let width = self.query.len();
        let all = (self.heads + 2 * self.kv_heads) * width;
        for row in rows(storage, layout, all)? {
            let (queries, keys) = row.split_at_mut(self.heads * width);
            let keys = &mut keys[..self.kv_heads * width];
            for (heads, weight) in [(queries, &self.query), (keys, &self.key)] {
                for head in heads.chunks_exact_mut(width) {
                    let mean = kernel::dot(head, head) / width as f32;
                    let scale = 1.0 / (mean + self.epsilon).sqrt();
                    let each = head.iter_mut().zip(weight);
                    each.for_each(|(x, weight)| *x = *x * scale * weight);
                }
            }
        }
        Ok(())
    }
}

fn rows<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
    width: usize,
) -> Result<std::slice::ChunksExactMut<'a, f32>> {
    let columns = layout.dims().last().copied();
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) if columns == Some(width) => {
            Ok(values[from..to].chunks_exact_mut(width))
        }
        _ => bail!("not contiguous f32 rows of {width}"),
    }
}
