//! Kernels without vector intrinsics: for machines without vector instructions, and compiled again for AVX2.
//!
//! Decides the shape of the loops, which the compiler unrolls into registers. Invariant: each output is one chain of
//! additions over ascending `k`; int8 adds integers within a group, then one scaled sum per group.

use super::round::{self, GROUP};
use super::{COLUMNS_MAX, Kernel, Scales, Tile, accumulate};

/// How a product is added to a sum.
pub(super) trait Add {
    /// `x · y + sum`.
    fn to(x: f32, y: f32, sum: f32) -> f32;
}

/// Rounds once; slow if the machine has no such instruction.
pub(super) struct Fused;

/// Rounds twice.
pub(super) struct Plain;

impl Add for Fused {
    #[inline(always)]
    fn to(x: f32, y: f32, sum: f32) -> f32 {
        x.mul_add(y, sum)
    }
}

impl Add for Plain {
    #[inline(always)]
    fn to(x: f32, y: f32, sum: f32) -> f32 {
        x * y + sum
    }
}

/// A stored weight of `N` values, which are multiplied as `f32`.
pub(super) trait Widen<const N: usize>: Copy {
    /// The values as `f32`.
    fn wide(self) -> [f32; N];
}

impl Widen<1> for f32 {
    #[inline(always)]
    fn wide(self) -> [f32; 1] {
        [self]
    }
}

/// Two bf16 values, the first in the low half.
impl Widen<2> for u32 {
    #[inline(always)]
    fn wide(self) -> [f32; 2] {
        [
            f32::from_bits(self << 16),
            f32::from_bits(self & 0xffff_0000),
        ]
    }
}

/// Columns whose sums are in registers at once.
pub(super) const LANES: usize = 16;

/// `M` rows of a panel of `C` columns, a multiple of [`LANES`], in `f32`.
///
/// # Safety
/// The contract of [`Kernel::multiply`].
#[inline(always)]
pub(super) unsafe fn floats<K, A, const M: usize, const N: usize, const C: usize>(tile: Tile<K>)
where
    A: Add,
    K: Kernel<Input = [f32; N]>,
    K::Weight: Widen<N>,
{
    for from in (0..C).step_by(LANES) {
        let mut sums = [[[0f32; LANES]]; M];
        let (weights, _) = tile.weights.as_chunks::<C>();
        let weights = weights.iter().map(|w| {
            let mut wide = [[0f32; LANES]; N];
            for (lane, w) in w[from..from + LANES].iter().enumerate() {
                for (n, w) in w.wide().into_iter().enumerate() {
                    wide[n][lane] = w;
                }
            }
            [wide]
        });
        accumulate(
            &mut sums,
            tile.inputs,
            tile.inputs.len() / M,
            weights,
            |mut sum, x, wide| {
                for (x, wide) in x.iter().zip(&wide) {
                    for (sum, w) in sum.iter_mut().zip(wide) {
                        *sum = A::to(*x, *w, *sum);
                    }
                }
                sum
            },
        );
        for (row, [sums]) in sums.iter().enumerate() {
            // SAFETY: the write is within the `COLUMNS` values of one of `M` rows.
            unsafe {
                let out = tile.out.add(row * tile.stride + from);
                out.copy_from_nonoverlapping(sums.as_ptr(), LANES);
            }
        }
    }
}

/// f32 without vector intrinsics.
pub(super) struct F32;

impl Kernel for F32 {
    type Weight = f32;
    type Input = [f32; 1];
    const STEP: usize = 1;
    const COLUMNS: usize = COLUMNS_MAX;
    const ROWS: usize = 2;
    const SCALES: Scales = Scales::None;
    const NAME: &'static str = "f32";

    fn pack(row: &[f32], units: &mut [f32], _: &mut [f32]) {
        units.copy_from_slice(row);
    }

    fn convert(row: &[f32], units: &mut [[f32; 1]], _: &mut [f32]) {
        units.as_flattened_mut().copy_from_slice(row);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { floats::<Self, Plain, M, 1, COLUMNS_MAX>(tile) }
    }
}

/// Packs weights into pairs of bf16; the last pair is padded with 0.
#[inline(always)]
pub(super) fn pairs(row: &[f32], units: &mut [u32]) {
    for (pair, unit) in row.chunks(2).zip(units) {
        let second = pair.get(1).map_or(0, |x| round::bf16(*x));
        *unit = u32::from(round::bf16(pair[0])) | (u32::from(second) << 16);
    }
}

/// Packs inputs into pairs of f32; the last pair is padded with 0.
#[inline(always)]
pub(super) fn float_pairs(row: &[f32], units: &mut [[f32; 2]]) {
    if let Some(last) = units.last_mut() {
        *last = [0.0; 2];
    }
    units.as_flattened_mut()[..row.len()].copy_from_slice(row);
}

/// Weights stored as bf16 and widened to f32.
pub(super) struct Bf16;

impl Kernel for Bf16 {
    type Weight = u32;
    type Input = [f32; 2];
    const STEP: usize = 2;
    const COLUMNS: usize = COLUMNS_MAX;
    const ROWS: usize = 2;
    const SCALES: Scales = Scales::None;
    const NAME: &'static str = "bf16 weights, f32 products";

    fn pack(row: &[f32], units: &mut [u32], _: &mut [f32]) {
        pairs(row, units);
    }

    fn convert(row: &[f32], units: &mut [[f32; 2]], _: &mut [f32]) {
        float_pairs(row, units);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        // SAFETY: the caller keeps the contract of this function.
        unsafe { floats::<Self, Plain, M, 2, COLUMNS_MAX>(tile) }
    }
}

/// The largest magnitude of an integer of 8 bits here: ranges are symmetric.
pub(super) const INT8_MOST: f32 = 127.0;

/// Rounds values to integers up to `most` in groups with a scale each, and stores them by `cast`; the last group is
/// padded with 0.
#[inline(always)]
pub(super) fn groups<T: Copy>(
    row: &[f32],
    scales: &mut [f32],
    kept: &mut [T],
    most: f32,
    cast: impl Fn(i32) -> T,
) {
    let kept = kept.chunks_exact_mut(GROUP);
    for ((values, scale), kept) in row.chunks(GROUP).zip(scales).zip(kept) {
        let mut group = [0f32; GROUP];
        group[..values.len()].copy_from_slice(values);
        let whole;
        (whole, *scale) = round::integers(&group, most);
        for (kept, whole) in kept.iter_mut().zip(whole) {
            *kept = cast(whole);
        }
    }
}

/// int8 without vector intrinsics.
pub(super) struct Int8;

/// Columns of an int8 panel.
pub(super) const INT8_COLUMNS: usize = 32;

impl Kernel for Int8 {
    type Weight = [i8; 4];
    type Input = [i16; 4];
    const STEP: usize = 4;
    const COLUMNS: usize = INT8_COLUMNS;
    const ROWS: usize = 1;
    const SCALES: Scales = Scales::Groups;
    const NAME: &'static str = "int8";

    fn pack(row: &[f32], units: &mut [[i8; 4]], scales: &mut [f32]) {
        let units = units.as_flattened_mut();
        groups::<i8>(row, scales, units, INT8_MOST, |value| value as i8);
    }

    fn convert(row: &[f32], units: &mut [[i16; 4]], scales: &mut [f32]) {
        let units = units.as_flattened_mut();
        groups::<i16>(row, scales, units, INT8_MOST, |value| value as i16);
    }

    unsafe fn multiply<const M: usize>(tile: Tile<Self>) {
        let units = GROUP / Self::STEP;
        let mut sums = [[0f32; INT8_COLUMNS]; M];
        let stride = tile.inputs.len() / M;
        let groups = tile.weight_scales.len() / INT8_COLUMNS;
        let weights = tile.weights.chunks_exact(units * INT8_COLUMNS);
        for (group, weights) in weights.enumerate() {
            let mut whole = [[[0i32; INT8_COLUMNS]]; M];
            let (weights, _) = weights.as_chunks::<INT8_COLUMNS>();
            let weights = weights.iter().map(|w| [w]);
            let inputs = &tile.inputs[group * units..];
            accumulate(&mut whole, inputs, stride, weights, |mut sums, x, w| {
                for (sum, w) in sums.iter_mut().zip(w) {
                    for (x, w) in x.iter().zip(w) {
                        *sum += i32::from(*x) * i32::from(*w);
                    }
                }
                sums
            });
            let scales = &tile.weight_scales[group * INT8_COLUMNS..][..INT8_COLUMNS];
            for (row, (sums, [whole])) in sums.iter_mut().zip(&whole).enumerate() {
                let x = tile.input_scales[row * groups + group];
                for ((sum, whole), w) in sums.iter_mut().zip(whole).zip(scales) {
                    *sum += *whole as f32 * (x * *w);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: the write is within the `COLUMNS` values of one of `M` rows.
            unsafe {
                let out = tile.out.add(row * tile.stride);
                out.copy_from_nonoverlapping(sums.as_ptr(), INT8_COLUMNS);
            }
        }
    }
}
