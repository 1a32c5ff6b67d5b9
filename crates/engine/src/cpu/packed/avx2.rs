//! Kernels for AVX2 and FMA.
//!
//! Decides that floats use the safe loops of `portable`, compiled for these instructions, and that integers are
//! multiplied as pairs of 16 bits, which cannot overflow. Invariant: f32 and int8 give the same bits as with AVX-512.

use std::arch::x86_64::*;

use super::portable::{self, Fused, INT8_COLUMNS};
use super::round::GROUP;
use super::{COLUMNS_MAX, Kernel, Scales, Tile, accumulate};

/// f32 in 8 lanes.
pub(super) struct F32;

impl Kernel for F32 {
    type Weight = f32;
    type Input = [f32; 1];
    const STEP: usize = 1;
    const COLUMNS: usize = COLUMNS_MAX;
    const ROWS: usize = 6;
    const SCALES: Scales = Scales::None;
    const NAME: &'static str = "f32";

    fn pack(row: &[f32], units: &mut [f32], _: &mut [f32]) {
        units.copy_from_slice(row);
    }

    fn convert(row: &[f32], units: &mut [[f32; 1]], _: &mut [f32]) {
        units.as_flattened_mut().copy_from_slice(row);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn inner<const M: usize>(tile: Tile<F32>) {
            // SAFETY: the caller keeps the contract of this function.
            unsafe { portable::floats::<F32, Fused, M, 1>(tile) }
        }
        // SAFETY: the caller keeps the contract of this function.
        unsafe { inner::<M>(tile) }
    }
}

/// Weights stored as bf16 and widened to f32.
pub(super) struct Bf16;

impl Kernel for Bf16 {
    type Weight = u32;
    type Input = [f32; 2];
    const STEP: usize = 2;
    const COLUMNS: usize = COLUMNS_MAX;
    const ROWS: usize = 4;
    const SCALES: Scales = Scales::None;
    const NAME: &'static str = "bf16 weights, f32 products";

    fn pack(row: &[f32], units: &mut [u32], _: &mut [f32]) {
        portable::pairs(row, units);
    }

    fn convert(row: &[f32], units: &mut [[f32; 2]], _: &mut [f32]) {
        portable::float_pairs(row, units);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn inner<const M: usize>(tile: Tile<Bf16>) {
            // SAFETY: the caller keeps the contract of this function.
            unsafe { portable::floats::<Bf16, Fused, M, 2>(tile) }
        }
        // SAFETY: the caller keeps the contract of this function.
        unsafe { inner::<M>(tile) }
    }
}

/// int8 by 16-bit products.
pub(super) struct Int8;

impl Kernel for Int8 {
    type Weight = [i8; 4];
    type Input = [i16; 4];
    const STEP: usize = 4;
    const COLUMNS: usize = INT8_COLUMNS;
    const ROWS: usize = 4;
    const SCALES: Scales = Scales::Groups;
    const NAME: &'static str = "int8";

    fn pack(row: &[f32], units: &mut [[i8; 4]], scales: &mut [f32]) {
        portable::Int8::pack(row, units, scales);
    }

    fn convert(row: &[f32], units: &mut [[i16; 4]], scales: &mut [f32]) {
        #[target_feature(enable = "avx2")]
        fn inner(row: &[f32], units: &mut [[i16; 4]], scales: &mut [f32]) {
            let units = units.as_flattened_mut();
            portable::groups::<i16>(row, scales, units, |value| value as i16);
        }
        // SAFETY: `tier` detected the instructions before this kernel was chosen.
        unsafe { inner(row, units, scales) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { int8::<M>(tile) }
    }
}

/// # Safety
/// The contract of [`Kernel::multiply`].
#[target_feature(enable = "avx2,fma")]
unsafe fn int8<const M: usize>(tile: Tile<Int8>) {
    const UNITS: usize = GROUP / Int8::STEP;
    let stride = tile.inputs.len() / M;
    let groups = tile.weight_scales.len() / INT8_COLUMNS;
    for from in (0..INT8_COLUMNS).step_by(8) {
        let mut sums = [_mm256_setzero_ps(); M];
        let weights = tile.weights.chunks_exact(UNITS * INT8_COLUMNS);
        for (group, weights) in weights.enumerate() {
            // Each register has four columns, two sums per column.
            let mut whole = [[_mm256_setzero_si256(); 2]; M];
            let (weights, _) = weights.as_chunks::<INT8_COLUMNS>();
            let weights = weights.iter().map(|w| {
                let w: *const __m128i = w[from..from + 8].as_ptr().cast();
                // SAFETY: the slice has 8 units of 4 bytes, which are two registers of 16 bytes.
                let (low, high) = unsafe { (_mm_loadu_si128(w), _mm_loadu_si128(w.add(1))) };
                [_mm256_cvtepi8_epi16(low), _mm256_cvtepi8_epi16(high)]
            });
            let inputs = &tile.inputs[group * UNITS..];
            accumulate(&mut whole, inputs, stride, weights, |sum, x, w| {
                // SAFETY: a unit is 4 values of 16 bits.
                let x = unsafe { std::mem::transmute::<[i16; 4], i64>(x) };
                _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_set1_epi64x(x), w))
            });
            let scales = &tile.weight_scales[group * INT8_COLUMNS + from..][..8];
            // SAFETY: the slice has 8 values, which are one register.
            let scales = unsafe { _mm256_loadu_ps(scales.as_ptr()) };
            for (row, (sum, [low, high])) in sums.iter_mut().zip(whole).enumerate() {
                let x = _mm256_set1_ps(tile.input_scales[row * groups + group]);
                // Reorders columns 0 1 4 5 2 3 6 7 to 0..8.
                let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high));
                let both = _mm256_cvtepi32_ps(both);
                *sum = _mm256_fmadd_ps(both, _mm256_mul_ps(x, scales), *sum);
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            // SAFETY: the write is within the `COLUMNS` values of one of `M` rows.
            unsafe { _mm256_storeu_ps(tile.out.add(row * tile.stride + from), *sum) };
        }
    }
}
