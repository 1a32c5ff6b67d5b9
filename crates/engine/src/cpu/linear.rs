//! A linear layer: `x · wᵀ`.
//!
//! Decides what multiplies: [`Packed`] weights on the CPU; as the reference candle's `gemm`, called directly so that
//! the caller sets the number of threads and not the environment; on other devices candle. Invariant: a row's result
//! does not depend on the other rows, bit for bit. It does not know what the layer is for.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

use super::beside::LowRank;
use super::packed::Packed;
use crate::Options;

/// Weights `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) struct Linear(Weight);

#[derive(Clone, Debug)]
enum Weight {
    /// Contiguous `f32`, on any device.
    Plain(Tensor),
    /// Contiguous `f32`, and the largest magnitude of each input so far.
    Watched(Tensor, Arc<Mutex<Vec<f32>>>),
    Packed(Arc<Packed>),
    /// Weights that other layers have, too, and what an adapter adds to their product.
    Adapted(Arc<Packed>, Vec<LowRank>),
}

impl Linear {
    /// A layer of contiguous `f32` weights `[out, in]` as they are.
    pub(crate) fn new(weight: Tensor) -> Self {
        Self(Weight::Plain(weight))
    }

    /// Like [`new`](Self::new), and records the [`maxima`](Self::maxima) of its inputs.
    pub(crate) fn watched(weight: Tensor) -> Result<Self> {
        let (_, inner) = weight.dims2()?;
        let maxima = Arc::new(Mutex::new(vec![0f32; inner]));
        Ok(Self(Weight::Watched(weight, maxima)))
    }

    /// A layer in the precision of `options`. On another device than the CPU weights stay `f32`.
    pub(crate) fn packed(weight: &Tensor, options: Options) -> Result<Self> {
        if !weight.device().is_cpu() {
            return Ok(Self::new(weight.clone()));
        }
        let (_, inner) = weight.dims2()?;
        let (storage, layout) = weight.storage_and_layout();
        let (Storage::Cpu(CpuStorage::F32(values)), Some((from, to))) =
            (&*storage, layout.contiguous_offsets())
        else {
            bail!("weights are not contiguous f32 on the cpu")
        };
        let packed = Packed::new(&values[from..to], inner, options.precision, options.isa);
        Ok(Self(Weight::Packed(Arc::new(packed))))
    }

    /// A layer that shares the packed weights of this one, with an adapter beside them.
    pub(crate) fn beside(&self, added: Vec<LowRank>) -> Self {
        match &self.0 {
            Weight::Packed(packed) if !added.is_empty() => {
                Self(Weight::Adapted(Arc::clone(packed), added))
            }
            _ => self.clone(),
        }
    }

    /// Type of the numbers, for reports.
    pub(crate) fn name(&self) -> &'static str {
        match &self.0 {
            Weight::Plain(_) | Weight::Watched(..) => "f32",
            Weight::Packed(packed) | Weight::Adapted(packed, _) => packed.name(),
        }
    }

    /// Bytes of the weights.
    pub(crate) fn bytes(&self) -> usize {
        match &self.0 {
            Weight::Plain(weight) | Weight::Watched(weight, _) => {
                weight.elem_count() * weight.dtype().size_in_bytes()
            }
            Weight::Packed(packed) => packed.bytes(),
            Weight::Adapted(packed, added) => {
                packed.bytes() + added.iter().map(LowRank::bytes).sum::<usize>()
            }
        }
    }

    /// The largest magnitude of each input so far; empty if it is not recorded.
    pub(crate) fn maxima(&self) -> Vec<f32> {
        match &self.0 {
            // Each maximum is valid even if a thread panicked.
            Weight::Watched(_, maxima) => maxima
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            Weight::Plain(_) | Weight::Packed(_) | Weight::Adapted(..) => Vec::new(),
        }
    }

    /// `[rows, in]` -> `[rows, out]`, on at most `threads` threads of the current pool.
    pub(crate) fn forward(&self, x: &Tensor, threads: usize) -> Result<Tensor> {
        let weight = match &self.0 {
            Weight::Packed(packed) => {
                let added = &[];
                return x.apply_op1_no_bwd(&PackedProduct {
                    packed,
                    added,
                    threads,
                });
            }
            Weight::Adapted(packed, added) => {
                return x.apply_op1_no_bwd(&PackedProduct {
                    packed,
                    added,
                    threads,
                });
            }
            Weight::Watched(weight, maxima) => {
                let mut maxima = maxima.lock().unwrap_or_else(PoisonError::into_inner);
                for row in x.to_vec2::<f32>()? {
                    for (max, x) in maxima.iter_mut().zip(row) {
                        *max = max.max(x.abs());
                    }
                }
                weight
            }
            Weight::Plain(weight) => weight,
        };
        if !x.device().is_cpu() {
            return x.matmul(&weight.t()?);
        }
        x.apply_op1_no_bwd(&Product { weight, threads })
    }
}

struct PackedProduct<'a> {
    packed: &'a Packed,
    added: &'a [LowRank],
    threads: usize,
}

impl CustomOp1 for PackedProduct<'_> {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let (out, inner) = self.packed.sizes();
        let (CpuStorage::F32(x), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            bail!("linear wants contiguous f32")
        };
        if width != inner {
            bail!("input of width {width} into a layer of {inner}")
        }
        let mut y = self.packed.multiply(&x[from..to], self.threads);
        for added in self.added {
            added.add_to(&x[from..to], &mut y, out, self.threads);
        }
        Ok((CpuStorage::F32(y), (rows, out).into()))
    }
}

struct Product<'a> {
    weight: &'a Tensor,
    threads: usize,
}

/// Number of rows to multiply, so that `gemm` takes the same code path for any number of rows: it has other paths for a
/// single row and for outputs of up to 256 values, and other blocks along `k` if both sides are under 65.
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
        let padded_rows = padded(rows, out);
        let mut y = vec![0f32; padded_rows * out];
        if padded_rows == rows {
            multiply(x, weights, &mut y, inner, self.threads);
        } else {
            let mut filled = x.to_vec();
            filled.resize(padded_rows * inner, 0.0);
            multiply(&filled, weights, &mut y, inner, self.threads);
            y.truncate(rows * out);
        }
        Ok((CpuStorage::F32(y), (rows, out).into()))
    }
}

/// `y = x · wᵀ`, all row-major; `x` `[rows, inner]`, `w` `[out, inner]`.
fn multiply(x: &[f32], w: &[f32], y: &mut [f32], inner: usize, threads: usize) {
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
    // SAFETY: sizes and strides were just checked to stay within the three slices, and `y` is borrowed mutably, so it
    // overlaps neither input.
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
    use crate::Precision;
    use candle_core::Device;
    use proptest::prelude::*;

    fn random(rows: usize, columns: usize) -> Tensor {
        Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).expect("shape is valid")
    }

    fn values(x: &Tensor) -> Vec<Vec<f32>> {
        x.to_vec2().expect("f32")
    }

    fn options(precision: Precision) -> Options {
        Options {
            precision,
            ..Options::default()
        }
    }

    /// The reference, and every precision on the richest instructions of the machine.
    fn kinds(weight: &Tensor) -> Vec<Linear> {
        let packed = [Precision::F32, Precision::Bf16, Precision::Int8]
            .map(|precision| Linear::packed(weight, options(precision)).expect("f32"));
        let mut kinds = packed.to_vec();
        kinds.push(Linear::new(weight.clone()));
        kinds
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_row_alone_gives_the_same_bits_as_in_a_batch(
            rows in 1usize..150, out in 1usize..400, inner in 3usize..700, threads in 1usize..3,
        ) {
            let x = random(rows, inner);
            for layer in kinds(&random(out, inner)) {
                let all = values(&layer.forward(&x, threads).expect("fits"));
                for row in [0, rows / 2, rows - 1] {
                    let alone = x.narrow(0, row, 1).expect("within");
                    let alone = values(&layer.forward(&alone, 1).expect("fits"));
                    prop_assert_eq!(&alone[0], &all[row], "{}", layer.name());
                }
                let some = x.narrow(0, rows / 2, rows - rows / 2).expect("within");
                let some = values(&layer.forward(&some, 1).expect("fits"));
                prop_assert_eq!(&some[..], &all[rows / 2..], "{}", layer.name());
            }
        }
    }

    #[test]
    fn a_layer_agrees_with_the_product_of_candle() {
        let (w, x) = (random(33, 70), random(5, 70));
        let theirs = values(&x.matmul(&w.t().expect("2-d")).expect("fits"));
        let packed = Linear::packed(&w, options(Precision::F32)).expect("f32");
        for layer in [Linear::new(w), packed] {
            let ours = values(&layer.forward(&x, 1).expect("fits"));
            for (ours, theirs) in ours.iter().flatten().zip(theirs.iter().flatten()) {
                assert!((ours - theirs).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn an_input_of_another_width_is_refused() {
        for layer in kinds(&random(3, 4)) {
            assert!(layer.forward(&random(2, 5), 1).is_err());
        }
    }

    #[test]
    fn a_watched_layer_records_the_largest_magnitudes() {
        let layer = Linear::watched(random(3, 2)).expect("2-d");
        for row in [[1f32, -4.0], [-2.0, 3.0]] {
            let x = Tensor::new(&[row], &Device::Cpu).expect("shape");
            layer.forward(&x, 1).expect("fits");
        }
        assert_eq!(layer.maxima(), [2.0, 4.0]);
    }
}
