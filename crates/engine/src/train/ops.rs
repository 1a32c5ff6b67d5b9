//! Steps of a layer that candle can differentiate.
//!
//! Decides which derivatives are written here: of a product with weights that are not trained, whose own gradient would
//! be half of all work, and of softmax, whose steps would keep four copies of all scores. Invariant: a row's result
//! depends on that row alone. It does not know models.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Storage, Tensor, bail};

/// `x / sqrt(mean(x²) + epsilon) · weight` over the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    let scale = (mean + f64::from(epsilon))?.sqrt()?;
    x.broadcast_div(&scale)?.broadcast_mul(weight)
}

/// Rotates the pairs (i, i + half) of each head: `x` is `[rows, heads, width]`, `cos` and `sin` are `[rows, 1, half]`.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let first = x.narrow(D::Minus1, 0, half)?;
    let second = x.narrow(D::Minus1, half, half)?;
    let turned = [
        (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?,
        (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?,
    ];
    Tensor::cat(&turned, D::Minus1)
}

/// `x · weightᵀ` for weights that are not trained: `[rows, in]` and `[out, in]`.
pub(super) fn frozen(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight = weight.detach();
    x.contiguous()?.apply_op1(Frozen { weight })
}

struct Frozen {
    weight: Tensor,
}

impl Frozen {
    /// Shapes of a product: rows, outputs, inputs.
    fn sizes(&self, layout: &Layout) -> Result<(usize, usize, usize)> {
        let ((rows, width), (out, inputs)) = (layout.shape().dims2()?, self.weight.dims2()?);
        if width != inputs {
            bail!("rows of {width} numbers for weights of {inputs}")
        }
        Ok((rows, out, inputs))
    }
}

impl CustomOp1 for Frozen {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, out, inputs) = self.sizes(layout)?;
        let (storage, of) = self.weight.storage_and_layout();
        let Storage::Cpu(weight) = &*storage else {
            bail!("the weights are on another device")
        };
        let product = x.matmul(weight, (1, rows, out, inputs), layout, &of.transpose(0, 1)?)?;
        Ok((product, (rows, out).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (rows, out, inputs) = self.sizes(layout)?;
        let (storage, of) = self.weight.storage_and_layout();
        let Storage::Cuda(weight) = &*storage else {
            bail!("the weights are on another device")
        };
        let product = x.matmul(weight, (1, rows, out, inputs), layout, &of.transpose(0, 1)?)?;
        Ok((product, (rows, out).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.matmul(&self.weight)?))
    }
}

/// Softmax over the last dimension of contiguous `x`.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let plain = x.detach();
    let top = plain.max_keepdim(D::Minus1)?;
    let shares = plain.broadcast_sub(&top)?.exp()?;
    let shares = shares.broadcast_div(&shares.sum_keepdim(D::Minus1)?)?;
    x.contiguous()?.apply_op1(Softmax {
        shares: shares.contiguous()?,
    })
}

struct Softmax {
    shares: Tensor,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, of) = self.shares.storage_and_layout();
        let Storage::Cpu(shares) = &*storage else {
            bail!("the shares are on another device")
        };
        Ok((shares.try_clone(of)?, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (storage, of) = self.shares.storage_and_layout();
        let Storage::Cuda(shares) = &*storage else {
            bail!("the shares are on another device")
        };
        Ok((shares.try_clone(of)?, layout.shape().clone()))
    }

    /// share · (gradient − Σ share · gradient).
    fn bwd(&self, _: &Tensor, shares: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let shares = shares.detach();
        let weighted = (&shares * grad)?;
        let sum = weighted.sum_keepdim(D::Minus1)?;
        Ok(Some((weighted - shares.broadcast_mul(&sum)?)?))
    }
}
