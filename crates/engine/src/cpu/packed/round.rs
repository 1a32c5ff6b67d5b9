//! Rounding of `f32` to bf16, ties to even, and to integers in groups with a scale each.
//!
//! Decides how a number is rounded. Invariant: a value that is not finite stays so, in bf16 as itself, as an integer
//! as a scale that is not finite. It does not know which instructions multiply.

/// Values along `k` that share a scale.
pub(super) const GROUP: usize = 64;

/// Rounds to the nearest bf16, ties to even; a NaN stays a NaN.
#[inline(always)]
pub(super) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // Without the quiet bit a NaN with only low bits set would become an infinity.
    let quiet = if x.is_nan() { 0x0040_0000 } else { 0 };
    let even = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + even);
    ((if x.is_nan() { bits | quiet } else { rounded }) >> 16) as u16
}

/// Rounds one group to integers; returns them and the scale. The largest magnitude becomes `most`, at most 2^22.
///
/// The scale is not finite if a value is not; then the integers have no meaning.
#[inline(always)]
pub(super) fn integers(group: &[f32; GROUP], most: f32) -> ([i32; GROUP], f32) {
    // Adding 1.5 · 2^23 rounds to the nearest integer, in the low bits, without calling a rounding function.
    const MAGIC: f32 = 12_582_912.0;
    // Compared as integers, so that a NaN is larger than any number; in lanes, so that the compiler vectorises it.
    let mut lanes = [0u32; 16];
    for values in group.as_chunks::<16>().0 {
        for (max, x) in lanes.iter_mut().zip(values) {
            *max = (*max).max(x.to_bits() & 0x7fff_ffff);
        }
    }
    let bits = lanes.into_iter().fold(0, u32::max);
    let scale = f32::from_bits(bits) / most;
    let inverse = if scale >= f32::MIN_POSITIVE {
        1.0 / scale
    } else {
        0.0
    };
    let round = |x: f32| {
        (x * inverse + MAGIC)
            .to_bits()
            .wrapping_sub(MAGIC.to_bits()) as i32
    };
    (group.map(round), scale)
}
