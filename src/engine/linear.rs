//! A linear layer: `x · wᵀ`. The seam for packed, narrower or CUDA weights.
//!
//! Decides who multiplies: on the CPU candle's own `gemm`, called directly so that the caller and not
//! the environment decides about threads; elsewhere candle. Invariant: a row's result does not depend
//! on the other rows, bit for bit. It does not know what the layer is for.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// Weights `[out, in]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
}

impl Linear {
    /// A layer of contiguous `f32` weights `[out, in]`.
    pub fn new(weight: Tensor) -> Self {
        Self { weight }
    }

    /// `[rows, in]` -> `[rows, out]`, on at most `threads` threads of the current pool.
    pub fn forward(&self, x: &Tensor, threads: usize) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return x.matmul(&self.weight.t()?);
        }
        x.apply_op1_no_bwd(&Product {
            weight: &self.weight,
            threads,
        })
    }
}

struct Product<'a> {
    weight: &'a Tensor,
    threads: usize,
}

/// Rows to multiply so that `gemm` takes one path for any number of them: it has others for a single
/// row, for outputs of up to 256 values, and other blocks along `k` where both sides are under 65.
fn padded(rows: usize, out: usize) -> usize {
    let least = if out > 64 {
        2.max(257usize.div_ceil(out))
    } else {
        65.max(257usize.div_ceil(out))
    };
    rows.max(least)
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let (out, inner) = self.weight.dims2()?;
        let (weights, weight_layout) = self.weight.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(weights)) = &*weights else {
            bail!("weights are not f32 on the cpu")
        };
        let CpuStorage::F32(x) = storage else {
            bail!("input is not f32")
        };
        let Some(((from, to), (w_from, w_to))) = layout
            .contiguous_offsets()
            .zip(weight_layout.contiguous_offsets())
        else {
            bail!("linear wants contiguous tensors")
        };
        if width != inner {
            bail!("input of width {width} into a layer of {inner}")
        }
        let (x, weights) = (&x[from..to], &weights[w_from..w_to]);
        let many = padded(rows, out);
        let mut y = vec![0f32; many * out];
        if many == rows {
            multiply(x, weights, &mut y, (inner, self.threads));
        } else {
            let mut more = x.to_vec();
            more.resize(many * inner, 0.0);
            multiply(&more, weights, &mut y, (inner, self.threads));
            y.truncate(rows * out);
        }
        Ok((CpuStorage::F32(y), (rows, out).into()))
    }
}

/// `y = x · wᵀ`, all row-major; `x` `[rows, inner]`, `w` `[out, inner]`.
fn multiply(x: &[f32], w: &[f32], y: &mut [f32], (inner, threads): (usize, usize)) {
    let (rows, out) = (x.len() / inner, w.len() / inner);
    assert_eq!(
        (rows * inner, out * inner),
        (x.len(), w.len()),
        "whole rows"
    );
    assert_eq!(y.len(), rows * out, "one output per row and weight row");
    let parallelism = match threads {
        0 | 1 => gemm::Parallelism::None,
        many => gemm::Parallelism::Rayon(many),
    };
    let (inner_stride, out_stride) = (inner as isize, out as isize);
    // SAFETY: the strides and sizes were just checked to stay within the three slices, and `y` is
    // borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            rows,
            out,
            inner,
            y.as_mut_ptr(),
            1,
            out_stride,
            false,
            x.as_ptr(),
            1,
            inner_stride,
            w.as_ptr(),
            inner_stride,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use proptest::prelude::*;

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).expect("shape is valid")
    }

    fn values(x: &Tensor) -> Vec<Vec<f32>> {
        x.to_vec2().expect("f32")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_row_in_a_batch_is_the_row_alone(
            rows in 1usize..150, out in 1usize..400, inner in 3usize..700, threads in 1usize..3,
        ) {
            let layer = Linear::new(random(out, inner));
            let x = random(rows, inner);
            let all = values(&layer.forward(&x, threads).expect("fits"));
            for row in [0, rows / 2, rows - 1] {
                let alone = x.narrow(0, row, 1).expect("within");
                prop_assert_eq!(&values(&layer.forward(&alone, 1).expect("fits"))[0], &all[row]);
            }
            let some = x.narrow(0, rows / 2, rows - rows / 2).expect("within");
            prop_assert_eq!(&values(&layer.forward(&some, 1).expect("fits"))[..], &all[rows / 2..]);
        }
    }

    #[test]
    fn a_layer_agrees_with_candles_product() {
        let (w, x) = (random(33, 70), random(5, 70));
        let ours = values(&Linear::new(w.clone()).forward(&x, 1).expect("fits"));
        let theirs = values(&x.matmul(&w.t().expect("2-d")).expect("fits"));
        for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
            assert!((ours - theirs).abs() < 1e-4);
        }
    }

    #[test]
    fn an_input_of_another_width_is_an_error() {
        assert!(Linear::new(random(3, 4)).forward(&random(2, 5), 1).is_err());
    }
}
