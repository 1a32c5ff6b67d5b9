//! IEEE half precision with a scale per row, in place of bf16 on machines where it is faster.
//!
//! Decides that products are added in half precision over [`RUN`] values of `k`, and these sums in f32. The values of a
//! row are scaled by a power of two so that no such sum overflows. Halves have 11 bits of mantissa and bf16 has 8, so
//! results are nearer to f32 than those of bf16. Invariant: each output is one chain of additions over ascending `k`.

use std::arch::x86_64::*;

use super::avx512::{load, store};
use super::{COLUMNS_MAX, Kernel, Scales, Tile, accumulate};

/// Number of products that are added in half precision.
const RUN: usize = 32;

/// Inputs are below 2 to this power and weights below 2, so a sum of [`RUN`] products is below 2^15; the largest half
/// is nearly 2^16.
const INPUT_BITS: u32 = 9;

/// Whether halves multiply faster than bf16. Intel's processors take as long for two bf16 products as for four products
/// of halves; AMD's are equally fast at both.
pub(super) fn is_faster() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512fp16") && has!("avx512bw") && has!("avx512f") && !is_amd()
}

fn is_amd() -> bool {
    #[allow(unused_unsafe, reason = "calling it was unsafe in earlier releases")]
    // SAFETY: every processor of the target has the instruction.
    let vendor = unsafe { __cpuid(0) };
    vendor.ebx == u32::from_le_bytes(*b"Auth")
}

/// Halves in 32 lanes.
pub(super) struct Half;

impl Kernel for Half {
    type Weight = u16;
    /// The same half twice, so that it is broadcast as 32 bits without a shuffle.
    type Input = u32;
    const STEP: usize = 1;
    const COLUMNS: usize = COLUMNS_MAX;
    const ROWS: usize = 6;
    const SCALES: Scales = Scales::Row;
    const NAME: &'static str = "f16";

    fn pack(row: &[f32], units: &mut [u16], scales: &mut [f32]) {
        let mut doubled = vec![0u32; row.len()];
        // SAFETY: `is_faster` detected the instructions before this kernel was chosen.
        scales[0] = unsafe { narrow(row, &mut doubled, 0) };
        for (unit, doubled) in units.iter_mut().zip(doubled) {
            *unit = doubled as u16;
        }
    }

    fn convert(row: &[f32], units: &mut [u32], scales: &mut [f32]) {
        // SAFETY: `is_faster` detected the instructions before this kernel was chosen.
        scales[0] = unsafe { narrow(row, units, INPUT_BITS - 1) };
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { multiply::<M>(tile) }
    }
}

/// Converts values to halves below 2^(bits + 1), each twice; returns their divisor, which is not finite if a value is
/// not.
#[target_feature(enable = "avx512f,avx512bw")]
fn narrow(row: &[f32], units: &mut [u32], bits: u32) -> f32 {
    // Compared as integers, so that a NaN is larger than any number.
    let max = row.iter().map(|x| x.to_bits() & 0x7fff_ffff);
    let max = max.fold(0, u32::max);
    if max >= f32::INFINITY.to_bits() {
        units.fill(0);
        return f32::NAN;
    }
    // A row of smaller values becomes zeros: the inverse of its power would not be finite.
    let power = f32::from_bits(max & 0x7f80_0000).max(1e-30);
    let factor = (1u32 << bits) as f32 / power;
    let scaled = |values: __m512| {
        let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_mul_ps(
            values,
            _mm512_set1_ps(factor),
        ));
        let half = _mm512_cvtepu16_epi32(half);
        _mm512_or_si512(half, _mm512_slli_epi32::<16>(half))
    };
    for (values, units) in row.chunks(16).zip(units.chunks_mut(16)) {
        let lanes = u16::MAX >> (16 - values.len());
        // SAFETY: the masks limit the accesses to the length of `values` and as many `units`.
        unsafe {
            let values = _mm512_maskz_loadu_ps(lanes, values.as_ptr());
            _mm512_mask_storeu_epi32(units.as_mut_ptr().cast(), lanes, scaled(values));
        }
    }
    1.0 / factor
}

/// # Safety
/// The contract of [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512fp16")]
unsafe fn multiply<const M: usize>(tile: Tile<Half>) {
    let mut sums = [[_mm512_setzero_ps(); 4]; M];
    let stride = tile.inputs.len() / M;
    let (weights, _) = tile.weights.as_chunks::<COLUMNS_MAX>();
    for (nth, weights) in weights.chunks(RUN).enumerate() {
        let mut run = [[_mm512_setzero_ph(); 2]; M];
        let inputs = &tile.inputs[nth * RUN..];
        // SAFETY: `COLUMNS_MAX` halves are two registers.
        let weights = weights
            .iter()
            .map(|w| unsafe { load::<2>(w.as_ptr().cast()) });
        accumulate(&mut run, inputs, stride, weights, |sum, x, w| {
            let x = _mm512_castsi512_ph(_mm512_set1_epi32(x.cast_signed()));
            _mm512_fmadd_ph(x, _mm512_castsi512_ph(w), sum)
        });
        for (sums, run) in sums.iter_mut().zip(run) {
            for (c, run) in run.into_iter().enumerate() {
                let high = _mm512_extractf64x4_pd::<1>(_mm512_castph_pd(run));
                let wide = [_mm512_castph512_ph256(run), _mm256_castpd_ph(high)];
                for (half, wide) in wide.into_iter().enumerate() {
                    let sum = &mut sums[2 * c + half];
                    *sum = _mm512_add_ps(*sum, _mm512_cvtxph_ps(wide));
                }
            }
        }
    }
    // SAFETY: `COLUMNS_MAX` values are four registers.
    let scales = unsafe { load::<4>(tile.weight_scales.as_ptr().cast()) };
    for (sums, x) in sums.iter_mut().zip(tile.input_scales) {
        for (sum, w) in sums.iter_mut().zip(scales) {
            let scale = _mm512_mul_ps(_mm512_set1_ps(*x), _mm512_castsi512_ps(w));
            *sum = _mm512_mul_ps(*sum, scale);
        }
    }
    // SAFETY: the caller keeps the contract of this function.
    unsafe { store(&sums, tile.out, tile.stride) };
}
