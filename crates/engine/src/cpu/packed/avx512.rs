//! Kernels for AVX-512: f32, BF16 products, VNNI products.
//!
//! Decides tiles of 6 rows by four registers of columns, two for int8, so that sums stay in registers and each input is
//! broadcast once. Invariant: each output is one chain of additions over ascending `k`.

use std::arch::x86_64::*;

use super::portable::{self, INT8_COLUMNS, INT8_MOST};
use super::round::GROUP;
use super::{COLUMNS_MAX, Kernel, Scales, Tile, accumulate};

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
    const SCALES: Scales = Scales::None;
    const NAME: &'static str = "f32";

    fn pack(row: &[f32], units: &mut [f32], _: &mut [f32]) {
        units.copy_from_slice(row);
    }

    fn convert(row: &[f32], units: &mut [f32], _: &mut [f32]) {
        units.copy_from_slice(row);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { f32s::<M>(tile) }
    }
}

/// # Safety
/// The contract of [`Kernel::multiply`].
#[target_feature(enable = "avx512f")]
unsafe fn f32s<const M: usize>(tile: Tile<F32>) {
    let mut sums = [[_mm512_setzero_ps(); 4]; M];
    let (weights, _) = tile.weights.as_chunks::<COLUMNS_MAX>();
    // SAFETY: `COLUMNS_MAX` values are four registers.
    let weights = weights
        .iter()
        .map(|w| unsafe { load::<4>(w.as_ptr().cast()) });
    accumulate(
        &mut sums,
        tile.inputs,
        tile.inputs.len() / M,
        weights,
        |sum, x, w| _mm512_fmadd_ps(_mm512_set1_ps(x), _mm512_castsi512_ps(w), sum),
    );
    // SAFETY: the caller keeps the contract of this function.
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
    const SCALES: Scales = Scales::None;
    const NAME: &'static str = "bf16";

    fn pack(row: &[f32], units: &mut [u32], _: &mut [f32]) {
        portable::pairs(row, units);
    }

    fn convert(row: &[f32], units: &mut [u32], _: &mut [f32]) {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn inner(row: &[f32], units: &mut [u32]) {
            portable::pairs(row, units);
        }
        // SAFETY: `tier` detected the instructions before this kernel was chosen.
        unsafe { inner(row, units) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { bf16s::<M>(tile) }
    }
}

/// # Safety
/// The contract of [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16s<const M: usize>(tile: Tile<Bf16>) {
    let mut sums = [[_mm512_setzero_ps(); 4]; M];
    let (weights, _) = tile.weights.as_chunks::<COLUMNS_MAX>();
    // SAFETY: `COLUMNS_MAX` pairs are four registers.
    let weights = weights
        .iter()
        .map(|w| unsafe { load::<4>(w.as_ptr().cast()) });
    accumulate(
        &mut sums,
        tile.inputs,
        tile.inputs.len() / M,
        weights,
        |sum, x, w| {
            let x = _mm512_set1_epi32(x.cast_signed());
            // SAFETY: `__m512i` and `__m512bh` have the same size, and any bits are valid in both.
            unsafe {
                let pairs = std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([x, w]);
                _mm512_dpbf16_ps(sum, pairs[0], pairs[1])
            }
        },
    );
    // SAFETY: the caller keeps the contract of this function.
    unsafe { store(&sums, tile.out, tile.stride) };
}

/// Products of four bytes, added in 32 bits. Inputs are shifted by 128, because the instruction needs them unsigned.
pub(super) struct Int8;

impl Kernel for Int8 {
    type Weight = [i8; 4];
    type Input = [u8; 4];
    const STEP: usize = 4;
    const COLUMNS: usize = INT8_COLUMNS;
    const ROWS: usize = 6;
    const SCALES: Scales = Scales::Groups;
    const NAME: &'static str = "int8";
    const SHIFTED: bool = true;

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
            portable::groups::<u8>(row, scales, units, INT8_MOST, |value| (value + 128) as u8);
        }
        // SAFETY: `tier` detected the instructions before this kernel was chosen.
        unsafe { inner(row, units, scales) }
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { int8s::<M>(tile) }
    }
}

/// # Safety
/// The contract of [`Kernel::multiply`].
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn int8s<const M: usize>(tile: Tile<Int8>) {
    const UNITS: usize = GROUP / Int8::STEP;
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    let stride = tile.inputs.len() / M;
    let weights = tile.weights.chunks_exact(UNITS * INT8_COLUMNS);
    let (offsets, _) = tile.offsets.as_chunks::<INT8_COLUMNS>();
    let (scales, _) = tile.weight_scales.as_chunks::<INT8_COLUMNS>();
    let groups = scales.len();
    for (nth, (weights, (offsets, scales))) in weights.zip(offsets.iter().zip(scales)).enumerate() {
        let (weights, _) = weights.as_chunks::<INT8_COLUMNS>();
        // SAFETY: `INT8_COLUMNS` units of 4 bytes are two registers, and so are as many offsets.
        let (start, weights) = unsafe {
            let units = weights.iter().map(|w| load::<2>(w.as_ptr().cast()));
            (load::<2>(offsets.as_ptr().cast()), units)
        };
        let mut whole = [start; M];
        let inputs = &tile.inputs[nth * UNITS..];
        accumulate(&mut whole, inputs, stride, weights, |sum, x, w| {
            _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(i32::from_ne_bytes(x)), w)
        });
        // SAFETY: `INT8_COLUMNS` values are two registers.
        let scales = unsafe { load::<2>(scales.as_ptr().cast()) };
        for (row, (sums, whole)) in sums.iter_mut().zip(whole).enumerate() {
            let x = _mm512_set1_ps(tile.input_scales[row * groups + nth]);
            for ((sum, whole), w) in sums.iter_mut().zip(whole).zip(scales) {
                let scale = _mm512_mul_ps(x, _mm512_castsi512_ps(w));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, *sum);
            }
        }
    }
    // SAFETY: the caller keeps the contract of this function.
    unsafe { store(&sums, tile.out, tile.stride) };
}

/// How many bytes ahead weights are prefetched: a panel comes from the L2 cache.
const AHEAD: usize = 3072;

/// # Safety
/// `C` registers may be read from `from`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load<const C: usize>(from: *const __m512i) -> [__m512i; C] {
    std::array::from_fn(|c| {
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_byte_add(AHEAD).wrapping_add(c).cast());
        // SAFETY: the caller keeps the contract of this function.
        unsafe { _mm512_loadu_si512(from.add(c)) }
    })
}

/// # Safety
/// `out` may be written for `C` registers in each of `M` rows, which are `stride` values apart.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store<const M: usize, const C: usize>(
    sums: &[[__m512; C]; M],
    out: *mut f32,
    stride: usize,
) {
    for (row, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: the caller keeps the contract of this function.
            unsafe { _mm512_storeu_ps(out.add(row * stride + c * LANES), *sum) };
        }
    }
}
