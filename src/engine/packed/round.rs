//! `f32` to narrower numbers: bf16 by rounding to even, int8 in groups with a scale each.
//!
//! Decides how a number is rounded. Invariant: what is not finite stays so: in bf16 as itself, in int8 as
//! a scale that is not finite. It does not know which instructions multiply.

/// Values along `k` that share a scale.
pub(super) const GROUP: usize = 64;

/// Nearest bf16, ties to even; a NaN stays one.
#[inline(always)]
pub(super) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    // A NaN with only low bits set would be rounded to an infinity.
    let quiet = if x.is_nan() { 0x0040_0000 } else { 0 };
    let even = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7fff + even);
    ((if x.is_nan() { bits | quiet } else { rounded }) >> 16) as u16
}

/// The scale of a group: its greatest magnitude becomes 127. Not finite if a value is not.
#[inline(always)]
fn scale(group: &[f32]) -> f32 {
    // As integers, so that a NaN is greater than any number.
    let bits = group
        .iter()
        .fold(0, |max, x| (x.to_bits() & 0x7fff_ffff).max(max));
    f32::from_bits(bits) / 127.0
}

/// Rounds one group to integers in [−127, 127]; returns its scale.
#[inline(always)]
pub(super) fn int8(group: &[f32], mut put: impl FnMut(usize, i32)) -> f32 {
    // Adding 1.5 · 2^23 rounds to the nearest integer in the low bits, without a rounding call.
    const MAGIC: f32 = 12_582_912.0;
    let scale = scale(group);
    let inverse = if scale >= f32::MIN_POSITIVE {
        1.0 / scale
    } else {
        0.0
    };
    for (nth, x) in group.iter().enumerate() {
        let bits = (*x * inverse + MAGIC).to_bits();
        put(nth, (bits as i32) - (MAGIC.to_bits() as i32));
    }
    scale
}
