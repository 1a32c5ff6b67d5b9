//! Inner loops over `f32` slices: a tile product, a dot product, exponentials.
//!
//! Uses the richest instructions that the machine has at run time: AVX-512, AVX2 with FMA, or plain code. Invariant:
//! each output is one chain of additions in ascending `k`, so a row's result depends neither on the other rows of a
//! call nor on their number. It knows neither tensors nor models.

/// Values in one AVX2 register.
const LANES: usize = 8;

/// Shape of one [`tile`]: `rows` of `depth` values in, `rows` of `width` out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
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

/// Defines a function that is compiled for each set of instructions and calls the richest that the machine has.
macro_rules! dispatched {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? {
            avx512: $avx512:expr, avx2: $avx2:expr, plain: $plain:expr
        }
    ) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::is_x86_feature_detected as has;
                #[target_feature(enable = "avx512f,avx512dq")]
                fn avx512($($arg: $type),*) $(-> $out)? {
                    $avx512($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    $avx2($($arg),*)
                }
                if has!("avx512f") && has!("avx512dq") {
                    // SAFETY: the features that the function is compiled for were just detected.
                    return unsafe { avx512($($arg),*) };
                }
                if has!("avx2") && has!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $plain($($arg),*)
        }
    };
}

dispatched! {
    /// `c += a · b`: `a` `[rows, depth]`, `b` `[depth, width]` dense, `c` `[rows, width]`.
    pub(crate) fn tile(shape: Tile, a: &[f32], b: &[f32], c: &mut [f32]) {
        // AVX-512: 4 rows of four registers are 16 sums at a time, for which each row of `b` is loaded once.
        avx512: tile_with::<Fused, 4, 64>,
        avx2: tile_with::<Fused, 6, 16>,
        plain: tile_with::<Plain, 2, LANES>
    }
}

dispatched! {
    /// Sum of products, in [`LANES`] × 4 partial sums added in a fixed order.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
        avx512: dot_with::<Fused>, avx2: dot_with::<Fused>, plain: dot_with::<Plain>
    }
}

dispatched! {
    /// `x = exp(scale · (x − shift))` in place; returns the sum. The relative error is at most 5e-7 for exponents in
    /// [−87, 88]; exponents outside are clamped to that range.
    pub(crate) fn exponentials(x: &mut [f32], scale: f32, shift: f32) -> f32 {
        avx512: exponentials_with::<Fused>,
        avx2: exponentials_with::<Fused>,
        plain: exponentials_with::<Plain>
    }
}

dispatched! {
    /// The largest value; negative infinity if there is none.
    pub(crate) fn greatest(x: &[f32]) -> f32 {
        avx512: greatest_with, avx2: greatest_with, plain: greatest_with
    }
}

dispatched! {
    /// `x · factor` in place.
    pub(crate) fn scale(x: &mut [f32], factor: f32) {
        avx512: scale_with, avx2: scale_with, plain: scale_with
    }
}

dispatched! {
    /// `out = gate / (1 + exp(−gate)) · up`.
    pub(crate) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
        avx512: swiglu_with::<Fused>, avx2: swiglu_with::<Fused>, plain: swiglu_with::<Plain>
    }
}

dispatched! {
    /// `out = gate / (1 + exp(−2u)) · up` with u = √(2/π) · (gate + 0.044715 · gate³): GELU by its approximation with
    /// tanh, because (1 + tanh(u)) / 2 = 1 / (1 + exp(−2u)).
    pub(crate) fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
        avx512: geglu_with::<Fused>, avx2: geglu_with::<Fused>, plain: geglu_with::<Plain>
    }
}

dispatched! {
    /// `out = x / sqrt(mean(x²) + epsilon) · weight`, row by row.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        avx512: rms_norm_with::<Fused>, avx2: rms_norm_with::<Fused>, plain: rms_norm_with::<Plain>
    }
}

dispatched! {
    /// `x += y`.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) {
        avx512: add_with, avx2: add_with, plain: add_with
    }
}

dispatched! {
    /// Rotates each pair (i, i + half) of each head by its angle, given by cosine and sine.
    pub(crate) fn rotate(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
        avx512: rotate_with::<Fused>, avx2: rotate_with::<Fused>, plain: rotate_with::<Plain>
    }
}

/// How a product is added to a sum.
trait Add {
    /// `x · y + sum`.
    fn to(x: f32, y: f32, sum: f32) -> f32;
}

/// Rounds once; slow if the machine has no such instruction.
struct Fused;

/// Rounds twice.
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

/// Blocks of `M` rows and `L` columns, smaller at the ends.
#[inline(always)]
fn tile_with<A: Add, const M: usize, const L: usize>(
    shape: Tile,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
) {
    let mut row = 0;
    while row < shape.rows {
        let (a, c) = (&a[row * shape.a_stride..], &mut c[row * shape.c_stride..]);
        let rows = match shape.rows - row {
            left if left >= M => strips::<A, M, L>(shape, a, b, c),
            3.. => strips::<A, 3, L>(shape, a, b, c),
            2 => strips::<A, 2, L>(shape, a, b, c),
            _ => strips::<A, 1, L>(shape, a, b, c),
        };
        row += rows;
    }
}

/// All columns of `M` rows; returns `M`.
#[inline(always)]
fn strips<A: Add, const M: usize, const L: usize>(
    shape: Tile,
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
) -> usize {
    let mut from = 0;
    while from + L <= shape.width {
        strip::<A, M, L>(shape, a, &b[from..], &mut c[from..]);
        from += L;
    }
    while from + LANES <= shape.width {
        strip::<A, M, LANES>(shape, a, &b[from..], &mut c[from..]);
        from += LANES;
    }
    while from < shape.width {
        strip::<A, M, 1>(shape, a, &b[from..], &mut c[from..]);
        from += 1;
    }
    M
}

/// `M` rows of `L` columns over the whole depth, with the sums in registers.
#[inline(always)]
fn strip<A: Add, const M: usize, const L: usize>(shape: Tile, a: &[f32], b: &[f32], c: &mut [f32]) {
    let rows: [&[f32]; M] = std::array::from_fn(|m| &a[m * shape.a_stride..][..shape.depth]);
    let mut sums = [[0f32; L]; M];
    for (m, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&c[m * shape.c_stride..][..L]);
    }
    for k in 0..shape.depth {
        let b = &b[k * shape.width..][..L];
        for (sums, row) in sums.iter_mut().zip(rows) {
            let x = row[k];
            for (sum, y) in sums.iter_mut().zip(b) {
                *sum = A::to(x, *y, *sum);
            }
        }
    }
    for (m, sums) in sums.iter().enumerate() {
        c[m * shape.c_stride..][..L].copy_from_slice(sums);
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

/// exp(x) as 2^n · P(r). Source: Cody and Waite's range reduction, the polynomial of Cephes.
#[inline(always)]
fn exp_with<A: Add>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding 1.5 · 2^23 rounds to the nearest integer, in the low bits, without calling a rounding function.
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

#[inline(always)]
fn geglu_with<A: Add>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    // 2 · √(2/π).
    const TWICE: f32 = 1.595_769;
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        let cubed = *gate * *gate * *gate;
        let twice_u = TWICE * A::to(cubed, 0.044_715, *gate);
        *out = *gate / (1.0 + exp_with::<A>(-twice_u)) * *up;
    }
}

#[inline(always)]
fn greatest_with(x: &[f32]) -> f32 {
    const WIDE: usize = 2 * LANES;
    // A comparison, because `max` would check both sides for NaN. A NaN in a score is not lost: its exponential is NaN.
    let greater = |max: f32, x: f32| if x > max { x } else { max };
    let mut lanes = [f32::NEG_INFINITY; WIDE];
    let (chunks, rest) = x.as_chunks::<WIDE>();
    for chunk in chunks {
        for (max, x) in lanes.iter_mut().zip(chunk) {
            *max = greater(*max, *x);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |max, x| greater(max, *x))
}

#[inline(always)]
fn scale_with(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

#[inline(always)]
fn rms_norm_with<A: Add>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = dot_with::<A>(x, x) / width as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = *x * scale * *weight;
        }
    }
}

#[inline(always)]
fn add_with(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[inline(always)]
fn rotate_with<A: Add>(heads: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    let sin = &sin[..half];
    for head in heads.chunks_exact_mut(2 * half) {
        let (first, second) = head.split_at_mut(half);
        for i in 0..half {
            let (x, y) = (first[i], second[i]);
            first[i] = A::to(x, cos[i], -(y * sin[i]));
            second[i] = A::to(y, cos[i], x * sin[i]);
        }
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
        fn a_tile_is_the_sum_of_products_and_a_row_alone_gives_the_same_bits(
            rows in 1usize..9, depth in 1usize..70, width in 1usize..150, seed: u32,
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

        #[test]
        fn geglu_agrees_with_its_formula(gate in -100f32..100.0, up in -10f32..10.0) {
            let mut out = [0f32];
            geglu(&[gate], &[up], &mut out);
            let x = f64::from(gate);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            let exact = 0.5 * x * (1.0 + u.tanh()) * f64::from(up);
            prop_assert!((f64::from(out[0]) - exact).abs() <= 1e-5 * exact.abs().max(1e-3));
        }
    }

    proptest! {
        #[test]
        fn the_largest_value_is_that_of_the_library(len in 0usize..100, seed: u32) {
            let x = noise(len, seed);
            let exact = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(greatest(&x), exact);
        }

        #[test]
        fn a_norm_agrees_with_its_formula(width in 1usize..90, rows in 1usize..4, seed: u32) {
            let x = noise(rows * width, seed);
            let weight = noise(width, !seed);
            let mut out = vec![0f32; rows * width];
            rms_norm(&x, &weight, 1e-5, &mut out);
            for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                let mean: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for ((x, weight), out) in x.iter().zip(&weight).zip(out) {
                    let exact = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                    prop_assert!((f64::from(*out) - exact).abs() < 1e-5);
                }
            }
        }

        #[test]
        fn a_rotation_keeps_lengths_and_can_be_inverted(half in 1usize..40, heads in 1usize..4, seed: u32) {
            let x = noise(2 * half * heads, seed);
            let (sin, cos): (Vec<f32>, Vec<f32>) =
                noise(half, !seed).iter().map(|angle| angle.sin_cos()).unzip();
            let back: Vec<f32> = sin.iter().map(|sin| -sin).collect();
            let mut rotated = x.clone();
            rotate(&mut rotated, &cos, &sin);
            let pair = |x: &[f32], i: usize| x[i].hypot(x[i + half]);
            prop_assert!((pair(&x, 0) - pair(&rotated, 0)).abs() < 1e-5);
            prop_assert!((rotated[0] - (x[0] * cos[0] - x[half] * sin[0])).abs() < 1e-6);
            rotate(&mut rotated, &cos, &back);
            for (x, rotated) in x.iter().zip(&rotated) {
                prop_assert!((x - rotated).abs() < 1e-5);
            }
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
        tile_with::<Plain, 2, LANES>(shape, &a, &b, &mut plain);
        for (x, y) in fast.iter().zip(&plain) {
            assert!((x - y).abs() < 1e-4, "{x} {y}");
        }
    }
}
