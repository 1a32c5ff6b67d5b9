//! Kernels for AVX-512: f32, BF16 products, VNNI products.
//!
//! Decides tiles of 6 rows by four registers of columns, for int8 by two, so that sums stay in registers
//! and each input is broadcast once. Invariant: each output is one chain over ascending `k`.

use std::arch::x86_64::*;

use super::portable::{self, INT8_COLUMNS};
use super::round::GROUP;
use super::{COLUMNS_MAX, Kernel, Tile};

/// Values of one register.
const LANES: usize = 16;

/// f32 in 16 lanes.
pub(super) struct F32;

impl Kernel for F32 {
    type Weight = f32;
    type Input = f32;
    const STEP: usize = 1;
    const COLUMNS: usize = COLUMNS_MAX;
    const ROWS: usize = 6;
    const SCALED: bool = false;
    const NAME: &'static str = "f32";

    fn pack(row: &[f32], units: &mut [f32], _: &mut [f32]) {
        units.copy_from_slice(row);
    }

    fn convert(row: &[f32], units: &mut [f32], _: &mut [f32]) {
        units.copy_from_slice(row);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller's.
        unsafe { f32s::<M>(tile) }
    }
}

/// # Safety
/// That of [`Kernel::multiply`].
#[target_feature(enable = "avx512f")]
unsafe fn f32s<const M: usize>(tile: Tile<F32>) {
    let mut sums = [[_mm512_setzero_ps(); 4]; M];
    let (inputs, _) = tile.inputs.as_chunks::<M>();
    let (weights, _) = tile.weights.as_chunks::<COLUMNS_MAX>();
    for (x, w) in inputs.iter().zip(weights) {
        let w = w.as_ptr();
        // SAFETY: `COLUMNS_MAX` values are four registers.
        let w = unsafe {
            [
                _mm512_loadu_ps(w),
                _mm512_loadu_ps(w.add(LANES)),
                _mm512_loadu_ps(w.add(2 * LANES)),
                _mm512_loadu_ps(w.add(3 * LANES)),
            ]
        };
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = _mm512_set1_ps(*x);
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm512_fmadd_ps(x, w, *sum);
            }
        }
    }
    // SAFETY: the caller's.
    unsafe { store(&sums, tile.out, tile.stride) };
}

/// Products of bf16 pairs, added in f32.
pub(super) struct Bf16;

impl Kernel for Bf16 {
    type Weight = u32;
    type Input = u32;
    const STEP: usize = 2;
    const COLUMNS: usize = COLUMNS_MAX;
    const ROWS: usize = 6;
    const SCALED: bool = false;
    const NAME: &'static str = "bf16";

    fn pack(row: &[f32], units: &mut [u32], _: &mut [f32]) {
        portable::pairs(row, units);
    }

    fn convert(row: &[f32], units: &mut [u32], _: &mut [f32]) {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn inner(row: &[f32], units: &mut [u32]) {
            portable::pairs(row, units);
        }
        // SAFETY: `tier` saw the instructions before it chose this kernel.
        unsafe { inner(row, units) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller's.
        unsafe { bf16s::<M>(tile) }
    }
}

/// # Safety
/// That of [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16s<const M: usize>(tile: Tile<Bf16>) {
    let mut sums = [[_mm512_setzero_ps(); 4]; M];
    let (inputs, _) = tile.inputs.as_chunks::<M>();
    let (weights, _) = tile.weights.as_chunks::<COLUMNS_MAX>();
    for (x, w) in inputs.iter().zip(weights) {
        let w: *const __m512i = w.as_ptr().cast();
        // SAFETY: `COLUMNS_MAX` pairs are four registers; registers of any kind may be reinterpreted.
        let w: [__m512bh; 4] = unsafe {
            [
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w)),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.add(1))),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.add(2))),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.add(3))),
            ]
        };
        for (sums, x) in sums.iter_mut().zip(x) {
            // SAFETY: as above.
            let x = unsafe {
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x.cast_signed()))
            };
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm512_dpbf16_ps(*sum, x, w);
            }
        }
    }
    // SAFETY: the caller's.
    unsafe { store(&sums, tile.out, tile.stride) };
}

/// Products of four bytes, added in 32 bits; inputs are shifted by 128, for they must be unsigned.
pub(super) struct Int8;

impl Kernel for Int8 {
    type Weight = [i8; 4];
    type Input = [u8; 4];
    const STEP: usize = 4;
    const COLUMNS: usize = INT8_COLUMNS;
    const ROWS: usize = 6;
    const SCALED: bool = true;
    const NAME: &'static str = "int8";

    fn pack(row: &[f32], units: &mut [[i8; 4]], scales: &mut [f32]) {
        portable::Int8::pack(row, units, scales);
    }

    fn offset(units: &[[i8; 4]]) -> i32 {
        let sum: i32 = units.as_flattened().iter().map(|w| i32::from(*w)).sum();
        -128 * sum
    }

    fn convert(row: &[f32], units: &mut [[u8; 4]], scales: &mut [f32]) {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn inner(row: &[f32], units: &mut [[u8; 4]], scales: &mut [f32]) {
            let units = units.as_flattened_mut();
            portable::groups::<u8>(row, scales, units, |value| (value + 128) as u8);
        }
        // SAFETY: `tier` saw the instructions before it chose this kernel.
        unsafe { inner(row, units, scales) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller's.
        unsafe { int8s::<M>(tile) }
    }
}

/// # Safety
/// That of [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn int8s<const M: usize>(tile: Tile<Int8>) {
    const UNITS: usize = GROUP / Int8::STEP;
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    let inputs = tile.inputs.chunks_exact(UNITS * M);
    let weights = tile.weights.chunks_exact(UNITS * INT8_COLUMNS);
    let (offsets, _) = tile.offsets.as_chunks::<INT8_COLUMNS>();
    let (scales, _) = tile.weight_scales.as_chunks::<INT8_COLUMNS>();
    let (input_scales, _) = tile.input_scales.as_chunks::<M>();
    let scaled = offsets.iter().zip(scales).zip(input_scales);
    let groups = inputs.zip(weights).zip(scaled);
    for ((inputs, weights), ((offsets, scales), input_scales)) in groups {
        let offsets: *const __m512i = offsets.as_ptr().cast();
        // SAFETY: `INT8_COLUMNS` values are two registers.
        let start = unsafe {
            [
                _mm512_loadu_si512(offsets),
                _mm512_loadu_si512(offsets.add(1)),
            ]
        };
        let mut whole = [start; M];
        let (inputs, _) = inputs.as_chunks::<M>();
        let (weights, _) = weights.as_chunks::<INT8_COLUMNS>();
        for (x, w) in inputs.iter().zip(weights) {
            let w: *const __m512i = w.as_ptr().cast();
            // SAFETY: `INT8_COLUMNS` units are two registers.
            let w = unsafe { [_mm512_loadu_si512(w), _mm512_loadu_si512(w.add(1))] };
            for (whole, x) in whole.iter_mut().zip(x) {
                let x = _mm512_set1_epi32(i32::from_ne_bytes(*x));
                for (sum, w) in whole.iter_mut().zip(w) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, w);
                }
            }
        }
        let scales = scales.as_ptr();
        // SAFETY: as above.
        let scales = unsafe { [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(LANES))] };
        for ((sums, whole), x) in sums.iter_mut().zip(whole).zip(input_scales) {
            let x = _mm512_set1_ps(*x);
            for ((sum, whole), w) in sums.iter_mut().zip(whole).zip(scales) {
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_mul_ps(x, w), *sum);
            }
        }
    }
    // SAFETY: the caller's.
    unsafe { store(&sums, tile.out, tile.stride) };
}

/// # Safety
/// `out` may be written for `C` registers in each of `M` rows that are `stride` apart.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const M: usize, const C: usize>(
    sums: &[[__m512; C]; M],
    out: *mut f32,
    stride: usize,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { _mm512_storeu_ps(out.add(row * stride + c * LANES), *sum) };
        }
    }
}
