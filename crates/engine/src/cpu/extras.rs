//! Additions of some families to a Llama's layer: biases, norms of each query and key head, and norms of results.
//!
//! Decides how the projections of a layer are changed before heads are rotated, and results before they are added.
//! Invariant: a row's result depends on that row alone. It does not know positions, caches or attention.

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
    /// Norms of what attention and the gated layer add to the residual stream.
    pub result_norms: Option<ResultNorms>,
}

/// RMS norms over the hidden size, before a result is added.
#[derive(Clone, Debug)]
pub(crate) struct ResultNorms {
    /// `[hidden]`, of attention's result.
    pub output: Vec<f32>,
    /// `[hidden]`, of the gated layer's result.
    pub down: Vec<f32>,
    /// Added to the mean square.
    pub epsilon: f32,
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

    /// Adds the bias to attention's `[rows, hidden]` and applies its norm, in place.
    pub(crate) fn onto_output(&self, output: &Tensor) -> Result<()> {
        if let Some(bias) = &self.output_bias {
            output.inplace_op1(&Bias(bias))?;
        }
        self.normed(output, |norms| &norms.output)
    }

    /// Applies the norm of the gated layer's `[rows, hidden]`, in place.
    pub(crate) fn onto_down(&self, down: &Tensor) -> Result<()> {
        self.normed(down, |norms| &norms.down)
    }

    fn normed(&self, x: &Tensor, weight: impl Fn(&ResultNorms) -> &Vec<f32>) -> Result<()> {
        match &self.result_norms {
            Some(norms) => x.inplace_op1(&Norm(weight(norms), norms.epsilon)),
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

/// Weight, and what is added to the mean square.
struct Norm<'a>(&'a [f32], f32);

impl InplaceOp1 for Norm<'_> {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        for row in rows(storage, layout, self.0.len())? {
            norm(row, self.0, self.1);
        }
        Ok(())
    }
}

/// `x / sqrt(mean(x²) + epsilon) · weight`, in place.
fn norm(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let mean = kernel::dot(x, x) / x.len() as f32;
    let scale = 1.0 / (mean + epsilon).sqrt();
    let each = x.iter_mut().zip(weight);
    each.for_each(|(x, weight)| *x = *x * scale * weight);
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
                    norm(head, weight, self.epsilon);
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
