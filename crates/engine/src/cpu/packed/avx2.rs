//! Kernels for AVX2 and FMA.
//!
//! Decides that floats use the safe loops of `portable`, compiled for these instructions; that the precision of 16 bits
//! is integers in groups with a scale each, multiplied in pairs and added in 32 bits, because AVX2 multiplies these at
//! least as fast as floats and has no 16-bit floats; and that int8 has weights of 7 bits, of which two products can be
//! added in 16 bits. No sum can overflow. A panel is as wide as the sums of six rows that fit into registers, so that
//! its weights are read one after the other. Invariant: f32 gives the same bits as with AVX-512.

use std::arch::x86_64::*;

use super::portable::{self, Fused, INT8_MOST, LANES};
use super::round::GROUP;
use super::{Kernel, Scales, Tile, accumulate};

/// Columns of a panel: two registers of sums for each row.
pub(super) const COLUMNS: usize = LANES;

/// Units of two values in a group.
const UNITS: usize = GROUP / 2;

/// The largest magnitudes of an input and of a weight of 16 bits: a sum of [`GROUP`] products of them fits into 32
/// bits.
const INPUT_MOST: f32 = 8191.0;
const WEIGHT_MOST: f32 = 4095.0;
const _: () =
    assert!((INPUT_MOST as i64) * (WEIGHT_MOST as i64) * (GROUP as i64) <= i32::MAX as i64);

/// f32 in 8 lanes.
pub(super) struct F32;

impl Kernel for F32 {
    type Weight = f32;
    type Input = [f32; 1];
    const STEP: usize = 1;
    const COLUMNS: usize = COLUMNS;
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
            unsafe { portable::floats::<F32, Fused, M, 1, COLUMNS>(tile) }
        }
        // SAFETY: the caller keeps the contract of this function.
        unsafe { inner::<M>(tile) }
    }
}

/// Integers of 13 bits times integers of 14 bits, sign included.
pub(super) struct Int16;

impl Kernel for Int16 {
    type Weight = [i16; 2];
    type Input = [i16; 2];
    const STEP: usize = 2;
    const COLUMNS: usize = COLUMNS;
    const ROWS: usize = 6;
    const SCALES: Scales = Scales::Groups;
    const NAME: &'static str = "int16";

    fn pack(row: &[f32], units: &mut [[i16; 2]], scales: &mut [f32]) {
        let units = units.as_flattened_mut();
        portable::groups::<i16>(row, scales, units, WEIGHT_MOST, |value| value as i16);
    }

    fn convert(row: &[f32], units: &mut [[i16; 2]], scales: &mut [f32]) {
        // SAFETY: `tier` detected the instructions before this kernel was chosen.
        unsafe { convert(row, units, scales, INPUT_MOST) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn inner<const M: usize>(tile: Tile<Int16>) {
            // SAFETY: the caller keeps the contract of this function.
            unsafe { integers::<Int16, M>(tile, |w| two(w), |sum, x, w| add_pairs(sum, x, w)) }
        }
        // SAFETY: the caller keeps the contract of this function.
        unsafe { inner::<M>(tile) }
    }
}

/// Weights of 7 bits times inputs of 8 bits, sign included. Inputs are shifted by 128, because the instruction needs them
/// unsigned; it adds two products in 16 bits, where two of weights of 8 bits would overflow.
pub(super) struct Int8;

/// The largest magnitude of a weight: two products of it and the largest input fit into 16 bits.
const BYTE_MOST: f32 = 63.0;
const _: () = assert!(2 * 255 * (BYTE_MOST as i32) <= i16::MAX as i32);

/// Units of four values in a group.
const QUADS: usize = GROUP / 4;

impl Kernel for Int8 {
    type Weight = [i8; 4];
    type Input = [u8; 4];
    const STEP: usize = 4;
    const COLUMNS: usize = COLUMNS;
    // Sums of six rows, two weights, an input, a product and the ones are more than there are registers.
    const ROWS: usize = 5;
    const SCALES: Scales = Scales::Groups;
    const NAME: &'static str = "int8, weights of 7 bits";
    const SHIFTED: bool = true;

    fn pack(row: &[f32], units: &mut [[i8; 4]], scales: &mut [f32]) {
        let units = units.as_flattened_mut();
        portable::groups::<i8>(row, scales, units, BYTE_MOST, |value| value as i8);
    }

    fn offset(units: &[[i8; 4]]) -> i32 {
        let sum: i32 = units.as_flattened().iter().map(|w| i32::from(*w)).sum();
        -128 * sum
    }

    fn convert(row: &[f32], units: &mut [[u8; 4]], scales: &mut [f32]) {
        // SAFETY: `tier` detected the instructions before this kernel was chosen.
        unsafe { convert_bytes(row, units, scales) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn inner<const M: usize>(tile: Tile<Int8>) {
            let ones = _mm256_set1_epi16(1);
            let add = |sum, x, w| {
                let pairs = _mm256_maddubs_epi16(x, w);
                _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones))
            };
            // SAFETY: the caller keeps the contract of this function.
            unsafe { bytes::<Int8, M>(tile, add) }
        }
        // SAFETY: the caller keeps the contract of this function.
        unsafe { inner::<M>(tile) }
    }
}

/// Packs inputs as bytes, shifted by 128.
#[target_feature(enable = "avx2")]
pub(super) fn convert_bytes(row: &[f32], units: &mut [[u8; 4]], scales: &mut [f32]) {
    let units = units.as_flattened_mut();
    portable::groups::<u8>(row, scales, units, INT8_MOST, |value| (value + 128) as u8);
}

/// `M` rows of a panel of bytes; `add` adds the products of four `k` to sums.
///
/// It is inlined into functions that are compiled for the instructions of `add`.
///
/// # Safety
/// The contract of [`Kernel::multiply`]; the machine has AVX2, FMA and what `add` needs.
#[inline(always)]
pub(super) unsafe fn bytes<K, const M: usize>(
    tile: Tile<K>,
    add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) where
    K: Kernel<Weight = [i8; 4], Input = [u8; 4]>,
{
    let mut sums = zeros();
    let stride = tile.inputs.len() / M;
    let weights = tile.weights.chunks_exact(QUADS * COLUMNS);
    let (offsets, _) = tile.offsets.as_chunks::<COLUMNS>();
    let (scales, _) = tile.weight_scales.as_chunks::<COLUMNS>();
    let groups = scales.len();
    // SAFETY: `COLUMNS` times four bytes are two registers; the caller's machine has AVX2.
    let load = |from: *const __m256i| unsafe {
        [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))]
    };
    for (nth, (weights, (offsets, scales))) in weights.zip(offsets.iter().zip(scales)).enumerate() {
        let (weights, _) = weights.as_chunks::<COLUMNS>();
        let weights = weights.iter().map(|w| load(w.as_ptr().cast()));
        let mut whole = [load(offsets.as_ptr().cast()); M];
        let inputs = &tile.inputs[nth * QUADS..];
        accumulate(&mut whole, inputs, stride, weights, |sum, x, w| {
            // SAFETY: the caller's machine has AVX2.
            let x = unsafe { _mm256_set1_epi32(i32::from_ne_bytes(x)) };
            add(sum, x, w)
        });
        let input_scales = |row: usize| tile.input_scales[row * groups + nth];
        // SAFETY: the caller's machine has AVX2 and FMA.
        unsafe { scale_onto(&mut sums, &whole, scales, input_scales) };
    }
    // SAFETY: the caller keeps the contract of this function.
    unsafe { store(&sums, tile.out, tile.stride) };
}

#[target_feature(enable = "avx2")]
fn convert(row: &[f32], units: &mut [[i16; 2]], scales: &mut [f32], most: f32) {
    let units = units.as_flattened_mut();
    portable::groups::<i16>(row, scales, units, most, |value| value as i16);
}

/// The weights of two `k`, which have 16 bits already.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn two(weights: &[[i16; 2]; COLUMNS]) -> [__m256i; 2] {
    let from: *const __m256i = weights.as_ptr().cast();
    // SAFETY: the columns are two registers.
    unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
}

/// `sum` and the products of two `k`.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(x, w))
}

/// `M` rows of a panel of integers; `wide` loads the weights of two `k` as 16 bits, `add` adds their products to sums.
///
/// It is inlined into functions that are compiled for the instructions of `add`.
///
/// # Safety
/// The contract of [`Kernel::multiply`]; the machine has AVX2, FMA and what `wide` and `add` need.
#[inline(always)]
pub(super) unsafe fn integers<K, const M: usize>(
    tile: Tile<K>,
    wide: impl Fn(&[K::Weight; COLUMNS]) -> [__m256i; 2],
    add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) where
    K: Kernel<Input = [i16; 2]>,
{
    let stride = tile.inputs.len() / M;
    let (scales, _) = tile.weight_scales.as_chunks::<COLUMNS>();
    let groups = scales.len();
    let weights = tile.weights.chunks_exact(UNITS * COLUMNS);
    let mut sums = zeros();
    for (nth, (weights, scales)) in weights.zip(scales).enumerate() {
        // SAFETY: the caller's machine has AVX2.
        let mut whole = [[unsafe { _mm256_setzero_si256() }; 2]; M];
        let (weights, _) = weights.as_chunks::<COLUMNS>();
        let inputs = &tile.inputs[nth * UNITS..];
        accumulate(
            &mut whole,
            inputs,
            stride,
            weights.iter().map(&wide),
            |sum, x, w| {
                // SAFETY: a unit is 2 values of 16 bits; the caller's machine has AVX2.
                let x = unsafe { _mm256_set1_epi32(std::mem::transmute::<[i16; 2], i32>(x)) };
                add(sum, x, w)
            },
        );
        let input_scales = |row: usize| tile.input_scales[row * groups + nth];
        // SAFETY: the caller's machine has AVX2 and FMA.
        unsafe { scale_onto(&mut sums, &whole, scales, input_scales) };
    }
    // SAFETY: the caller keeps the contract of this function.
    unsafe { store(&sums, tile.out, tile.stride) };
}

/// Sums of no products.
pub(super) fn zeros<const M: usize>() -> [[__m256; 2]; M] {
    // SAFETY: zeros are floats.
    unsafe { std::mem::zeroed() }
}

/// Adds the sums of a group, times the scales of its columns and of each row, to the rows' sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn scale_onto<const M: usize>(
    sums: &mut [[__m256; 2]; M],
    whole: &[[__m256i; 2]; M],
    scales: &[f32; COLUMNS],
    input_scale: impl Fn(usize) -> f32,
) {
    let scales: *const f32 = scales.as_ptr();
    // SAFETY: `COLUMNS` values are two registers.
    let scales = unsafe { [_mm256_loadu_ps(scales), _mm256_loadu_ps(scales.add(8))] };
    for (row, (sums, whole)) in sums.iter_mut().zip(whole).enumerate() {
        let x = _mm256_set1_ps(input_scale(row));
        for ((sum, whole), w) in sums.iter_mut().zip(whole).zip(scales) {
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(*whole), _mm256_mul_ps(x, w), *sum);
        }
    }
}

/// # Safety
/// `out` may be written for `COLUMNS` values in each of `M` rows, which are `stride` values apart.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn store<const M: usize>(sums: &[[__m256; 2]; M], out: *mut f32, stride: usize) {
    for (row, [low, high]) in sums.iter().enumerate() {
        // SAFETY: the writes are within the `COLUMNS` values of one of `M` rows.
        unsafe {
            let out = out.add(row * stride);
            _mm256_storeu_ps(out, *low);
            _mm256_storeu_ps(out.add(8), *high);
        }
    }
}
