//! Inner loops over `f32` slices: a tile product, a dot product, exponentials.
//!
//! Decides nothing; picks AVX2 + FMA at run time where the machine has it, plain code elsewhere.
//! Invariant: each output is one chain of additions in ascending `k`, so a row's result depends
//! neither on the other rows of a call nor on their number. It knows neither tensors nor models.

/// Lanes that an accumulator holds: one AVX2 register.
const LANES: usize = 8;

/// Shape of one [`tile`]: `rows` of `depth` values in, `rows` of `width` out.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Rows of `a` and `c`.
    pub rows: usize,
    /// Columns of `a`, rows of `b`.
    pub depth: usize,
    /// Columns of `b` and `c`; both contiguous in `b`.
    pub width: usize,
    /// Distance between rows of `a`.
    pub a_stride: usize,
    /// Distance between rows of `c`.
    pub c_stride: usize,
}

/// `c += a · b`: `a` `[rows, depth]`, `b` `[depth, width]` dense, `c` `[rows, width]`.
pub fn tile(shape: Tile, a: &[f32], b: &[f32], c: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the features that the function is compiled for were just seen.
        return unsafe { tile_avx2(shape, a, b, c) };
    }
    tile_with::<Plain>(shape, a, b, c);
}

/// Sum of products, in [`LANES`] × 4 partial sums added in a fixed order.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the features that the function is compiled for were just seen.
        return unsafe { dot_avx2(a, b) };
    }
    dot_with::<Plain>(a, b)
}

/// `x = exp(scale · (x − shift))` in place; returns the sum. Relative error up to 5e-7 for exponents
/// in [−87, 88]; outside they are cut to these.
pub fn exponentials(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the features that the function is compiled for were just seen.
        return unsafe { exponentials_avx2(x, scale, shift) };
    }
    exponentials_with::<Plain>(x, scale, shift)
}

/// `out = gate / (1 + exp(−gate)) · up`.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the features that the function is compiled for were just seen.
        return unsafe { swiglu_avx2(gate, up, out) };
    }
    swiglu_with::<Plain>(gate, up, out);
}

/// How a product is added to a sum.
trait Add {
    /// `x · y + sum`.
    fn to(x: f32, y: f32, sum: f32) -> f32;
}

/// Rounded once; slow where the machine has no such instruction.
struct Fused;

/// Rounded twice.
struct Plain;

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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn tile_avx2(shape: Tile, a: &[f32], b: &[f32], c: &mut [f32]) {
    tile_with::<Fused>(shape, a, b, c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    dot_with::<Fused>(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn exponentials_avx2(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    exponentials_with::<Fused>(x, scale, shift)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn swiglu_avx2(gate: &[f32], up: &[f32], out: &mut [f32]) {
    swiglu_with::<Fused>(gate, up, out);
}

#[inline(always)]
fn tile_with<A: Add>(shape: Tile, a: &[f32], b: &[f32], c: &mut [f32]) {
    for row in 0..shape.rows {
        let a = &a[row * shape.a_stride..][..shape.depth];
        let c = &mut c[row * shape.c_stride..][..shape.width];
        let mut from = 0;
        while from + 8 * LANES <= shape.width {
            columns::<A, 8>(a, b, from, c);
            from += 8 * LANES;
        }
        while from + LANES <= shape.width {
            columns::<A, 1>(a, b, from, c);
            from += LANES;
        }
        for column in from..shape.width {
            c[column] = a
                .iter()
                .zip(b[column..].iter().step_by(shape.width))
                .fold(c[column], |sum, (x, y)| A::to(*x, *y, sum));
        }
    }
}

/// `R` registers of one output row, over the whole depth.
#[inline(always)]
fn columns<A: Add, const R: usize>(a: &[f32], b: &[f32], from: usize, c: &mut [f32]) {
    let width = c.len();
    let mut sums = [[0f32; LANES]; R];
    for (r, sum) in sums.iter_mut().enumerate() {
        sum.copy_from_slice(&c[from + r * LANES..][..LANES]);
    }
    for (x, b) in a.iter().zip(b.chunks_exact(width)) {
        let b = &b[from..from + R * LANES];
        for (sum, b) in sums.iter_mut().zip(b.chunks_exact(LANES)) {
            for (sum, y) in sum.iter_mut().zip(b) {
                *sum = A::to(*x, *y, *sum);
            }
        }
    }
    for (r, sum) in sums.iter().enumerate() {
        c[from + r * LANES..][..LANES].copy_from_slice(sum);
    }
}

#[inline(always)]
fn dot_with<A: Add>(a: &[f32], b: &[f32]) -> f32 {
    const WIDE: usize = 4 * LANES;
    let mut sums = [0f32; WIDE];
    let (wide_a, rest_a) = a.split_at(a.len() / WIDE * WIDE);
    let (wide_b, rest_b) = b.split_at(wide_a.len());
    for (a, b) in wide_a.chunks_exact(WIDE).zip(wide_b.chunks_exact(WIDE)) {
        for lane in 0..WIDE {
            sums[lane] = A::to(a[lane], b[lane], sums[lane]);
        }
    }
    let mut half = WIDE / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    rest_a
        .iter()
        .zip(rest_b)
        .fold(sums[0], |sum, (x, y)| A::to(*x, *y, sum))
}

/// exp by 2^n · P(r): Cody and Waite's reduction, Cephes' polynomial.
#[inline(always)]
fn exp_with<A: Add>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 · 2^23 rounds to the nearest integer in the low bits, without a rounding call.
    const MAGIC: f32 = 12_582_912.0;
    let shifted = A::to(x, std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = A::to(n, -0.693_359_4, x);
    let r = A::to(n, 2.121_944_4e-4, r);
    let mut p = A::to(1.987_569_1e-4, r, 1.398_199_9e-3);
    p = A::to(p, r, 8.333_452e-3);
    p = A::to(p, r, 4.166_579_6e-2);
    p = A::to(p, r, 1.666_666_5e-1);
    p = A::to(p, r, 5e-1);
    let p = A::to(p, r * r, r) + 1.0;
    let power = shifted.to_bits().wrapping_add(127) << 23;
    p * f32::from_bits(power)
}

#[inline(always)]
fn exponentials_with<A: Add>(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    for x in x.iter_mut() {
        *x = exp_with::<A>((*x - shift) * scale);
    }
    let mut sums = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn swiglu_with<A: Add>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = *gate / (1.0 + exp_with::<A>(-*gate)) * *up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    proptest! {
        #[test]
        fn a_tile_is_the_sum_of_products_and_a_row_does_not_see_its_neighbours(
            rows in 1usize..6, depth in 1usize..70, width in 1usize..150, seed: u32,
        ) {
            let shape = Tile { rows, depth, width, a_stride: depth, c_stride: width };
            let (a, b) = (noise(rows * depth, seed), noise(depth * width, seed ^ 1));
            let mut c = vec![1f32; rows * width];
            tile(shape, &a, &b, &mut c);
            for row in 0..rows {
                let mut alone = vec![1f32; width];
                tile(Tile { rows: 1, ..shape }, &a[row * depth..], &b, &mut alone);
                prop_assert_eq!(&c[row * width..][..width], &alone[..]);
                for column in 0..width {
                    let exact = (0..depth).fold(1f64, |sum, k| {
                        sum + f64::from(a[row * depth + k]) * f64::from(b[k * width + column])
                    });
                    prop_assert!((f64::from(alone[column]) - exact).abs() < 1e-4);
                }
            }
        }

        #[test]
        fn a_dot_product_is_the_sum_of_products(len in 0usize..300, seed: u32) {
            let (a, b) = (noise(len, seed), noise(len, seed ^ 7));
            let exact: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            prop_assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-4);
        }

        #[test]
        fn exponentials_agree_with_the_library(x in -80f32..0.0, scale in 0.1f32..1.0) {
            let mut out = [x, 0.0, x / 2.0];
            let sum = exponentials(&mut out, scale, 0.0);
            let exact = f64::from(x * scale).exp();
            prop_assert!((f64::from(out[0]) / exact - 1.0).abs() < 5e-7);
            prop_assert!((out[1] - 1.0).abs() < 1e-7 && (sum - out.iter().sum::<f32>()).abs() < 1e-6);
        }

        #[test]
        fn swiglu_agrees_with_its_formula(gate in -100f32..100.0, up in -10f32..10.0) {
            let mut out = [0f32];
            swiglu(&[gate], &[up], &mut out);
            let exact = f64::from(gate) / (1.0 + (-f64::from(gate)).exp()) * f64::from(up);
            prop_assert!((f64::from(out[0]) - exact).abs() <= 1e-5 * exact.abs().max(1e-3));
        }
    }

    #[test]
    fn plain_code_agrees_with_the_vector_code() {
        let (a, b) = (noise(64, 1), noise(64 * 64, 2));
        let shape = Tile {
            rows: 1,
            depth: 64,
            width: 64,
            a_stride: 64,
            c_stride: 64,
        };
        let (mut fast, mut plain) = (vec![0f32; 64], vec![0f32; 64]);
        tile(shape, &a, &b, &mut fast);
        tile_with::<Plain>(shape, &a, &b, &mut plain);
        for (x, y) in fast.iter().zip(&plain) {
            assert!((x - y).abs() < 1e-4, "{x} {y}");
        }
    }
}
