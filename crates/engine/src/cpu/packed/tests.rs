//! Properties of packed products: near the formula on all instructions, and the same bits with any other rows.

use proptest::prelude::*;

use super::*;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];
const TIERS: [Isa; 4] = [Isa::Plain, Isa::Avx2, Isa::AvxVnni, Isa::Avx512];

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// The product by its formula; with each output the sum of its products' magnitudes.
fn formula(x: &[f32], w: &[f32], inner: usize) -> Vec<(f64, f64)> {
    let mut all = Vec::new();
    for x in x.chunks_exact(inner) {
        for w in w.chunks_exact(inner) {
            let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            all.push(products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs())));
        }
    }
    all
}

/// The largest error of an output by rounding; `size` is the sum of its products' magnitudes.
fn allowed(precision: Precision, tier: Isa, size: f64, inner: usize) -> f64 {
    match precision {
        Precision::F32 => 1e-6 * size + 1e-6,
        // Values are at most 1: weights are off by half a step of 1/4095 and inputs by half a step of 1/8191.
        Precision::Bf16 if matches!(tier, Isa::Avx2 | Isa::AvxVnni) => {
            inner as f64 * 1.85e-4 + 1e-6 * size + 1e-6
        }
        // Inputs and weights are rounded to 8 bits of mantissa: each rounding changes a product by up to 2^-8 of it.
        Precision::Bf16 => size / 126.0 + 1e-6,
        // Weights of 7 bits are off by half a step of 1/63.
        Precision::Int8 if tier == Isa::Avx2 => inner as f64 * (1.0 / 254.0 + 1.0 / 126.0) + 1e-6,
        // Values are at most 1: inputs and weights are each off by half a step of 1/127, times a factor of at most 1.
        Precision::Int8 => inner as f64 * (1.0 / 254.0) * 2.0 + 1e-6,
    }
}

fn check(rows: usize, out: usize, inner: usize, seed: u32) -> Result<(), TestCaseError> {
    let mut x = noise(rows * inner, seed);
    let mut w = noise(out * inner, !seed);
    // One constant row of inputs and of weights, which is zeros for some seeds.
    x[..inner].fill(if seed.is_multiple_of(3) { 0.0 } else { 0.5 });
    w[..inner].fill(if seed.is_multiple_of(2) { 0.0 } else { -0.25 });
    let exact = formula(&x, &w, inner);
    for precision in PRECISIONS {
        for isa in TIERS {
            let packed = Packed::new(&w, inner, precision, Some(isa));
            let y = packed.multiply(&x, 1);
            prop_assert_eq!(y.len(), rows * out);
            for (nth, (y, (exact, size))) in y.iter().zip(&exact).enumerate() {
                let error = (f64::from(*y) - exact).abs();
                let what = format!("{precision} {isa} output {nth}: {y} for {exact}");
                let allowed = allowed(precision, tier(precision, Some(isa)), *size, inner);
                prop_assert!(error <= allowed, "{}", what);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_tier_of_every_precision_agrees_with_the_formula(
        rows in 1usize..20, out in 1usize..140, inner in 1usize..210, seed: u32,
    ) {
        check(rows, out, inner, seed)?;
    }

    #[test]
    fn a_row_gives_the_same_bits_alone_and_among_others_on_any_threads(
        rows in 1usize..40, out in 1usize..200, inner in 1usize..300, seed: u32,
    ) {
        let (x, w) = (noise(rows * inner, seed), noise(out * inner, !seed));
        for precision in PRECISIONS {
            for isa in TIERS {
                let packed = Packed::new(&w, inner, precision, Some(isa));
                let all = packed.multiply(&x, 1 + seed as usize % 3);
                for row in 0..rows {
                    let alone = packed.multiply(&x[row * inner..][..inner], 1);
                    prop_assert_eq!(&alone[..], &all[row * out..][..out], "{} {}", precision, isa);
                }
            }
        }
    }

    #[test]
    fn tiers_with_the_same_arithmetic_give_the_same_bits(
        rows in 1usize..9, out in 1usize..100, inner in 1usize..300, seed: u32,
    ) {
        let (x, w) = (noise(rows * inner, seed), noise(out * inner, !seed));
        let on = |precision, isa| Packed::new(&w, inner, precision, Some(isa)).multiply(&x, 1);
        // A machine without AVX2 runs the portable code for both.
        prop_assert_eq!(on(Precision::F32, Isa::Avx2), on(Precision::F32, Isa::Avx512));
        prop_assert_eq!(on(Precision::Bf16, Isa::Avx2), on(Precision::Bf16, Isa::AvxVnni));
        if tier(Precision::Int8, Some(Isa::AvxVnni)) == Isa::AvxVnni {
            prop_assert_eq!(on(Precision::Int8, Isa::AvxVnni), on(Precision::Int8, Isa::Avx512));
        }
    }

    #[test]
    fn int8_is_exact_for_integers_of_one_scale(
        rows in 1usize..9, out in 1usize..40, groups in 1usize..4, seed: u32,
    ) {
        let inner = groups * round::GROUP;
        let whole = |len, seed, most: f32| -> Vec<f32> {
            let mut values: Vec<f32> = noise(len, seed).iter().map(|x| (x * most).round()).collect();
            values.chunks_mut(round::GROUP).for_each(|group| group[0] = most);
            values
        };
        let x = whole(rows * inner, seed, 127.0);
        for isa in TIERS {
            let is_narrow = tier(Precision::Int8, Some(isa)) == Isa::Avx2;
            let w = whole(out * inner, !seed, if is_narrow { 63.0 } else { 127.0 });
            let y = Packed::new(&w, inner, Precision::Int8, Some(isa)).multiply(&x, 1);
            for (y, (exact, _)) in y.iter().zip(formula(&x, &w, inner)) {
                prop_assert_eq!(f64::from(*y), exact, "{}", isa);
            }
        }
    }

    /// Largest values of one sign everywhere: the greatest sums that a group can have.
    #[test]
    fn sums_of_the_largest_values_do_not_overflow(rows in 1usize..8, groups in 1usize..4, negative: bool) {
        let inner = groups * round::GROUP;
        let x = vec![if negative { -3.0f32 } else { 3.0 }; rows * inner];
        let w = vec![2.0f32; 20 * inner];
        for precision in PRECISIONS {
            for isa in TIERS {
                for y in Packed::new(&w, inner, precision, Some(isa)).multiply(&x, 1) {
                    let exact = if negative { -6.0 } else { 6.0 } * inner as f32;
                    prop_assert!((y / exact - 1.0).abs() < 1e-5, "{} {} {}", precision, isa, y);
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_as_the_library_does(bits: u32) {
        let x = f32::from_bits(bits);
        let ours = half::bf16::from_bits(round::bf16(x));
        let theirs = half::bf16::from_f32(x);
        prop_assert!(ours == theirs || (x.is_nan() && ours.is_nan()));
    }

    #[test]
    fn tiles_cover_all_rows_once_and_differ_by_at_most_one(rows in 0usize..600, rows_max in 1usize..7) {
        let tiles = Tiles::of(rows, rows_max);
        let mut next = 0;
        for (from, many) in tiles.iter() {
            prop_assert_eq!(from, next);
            prop_assert!(many <= rows_max && many + 1 >= rows.div_ceil(tiles.tiles));
            next += many;
        }
        prop_assert_eq!(next, rows);
    }
}

/// On machines with fast halves bf16 products are never chosen, so they are tested directly.
#[cfg(target_arch = "x86_64")]
#[test]
fn bf16_products_agree_with_the_formula_on_machines_with_fast_halves() {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512bf16")) {
        return;
    }
    let (x, w, inner) = (noise(9 * 131, 3), noise(70 * 131, 4), 131);
    let y = Panels::<avx512::Bf16>::boxed(&w, inner).multiply(&x, 1);
    for (y, (exact, size)) in y.iter().zip(formula(&x, &w, inner)) {
        assert!(
            (f64::from(*y) - exact).abs() <= allowed(Precision::Bf16, Isa::Avx512, size, inner)
        );
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn halves_agree_with_the_formula_for_values_of_any_size() {
    if !halves::is_faster() {
        return;
    }
    for (of_x, of_w) in [
        (1e-6, 1e6),
        (1e20, 1e-20),
        (60_000.0, 60_000.0),
        (1e-36, 1.0),
    ] {
        let x: Vec<f32> = noise(5 * 70, 7).iter().map(|x| x * of_x).collect();
        let w: Vec<f32> = noise(9 * 70, 8).iter().map(|w| w * of_w).collect();
        let y = Panels::<halves::Half>::boxed(&w, 70).multiply(&x, 1);
        for (y, (exact, size)) in y.iter().zip(formula(&x, &w, 70)) {
            // A fifth of the error that bf16 may have; values below the least scale become 0.
            let near = size / 600.0 + 1e-29 * f64::from(of_w);
            assert!((f64::from(*y) - exact).abs() <= near, "{y} for {exact}");
        }
    }
}

#[test]
fn no_rows_give_no_outputs() {
    for precision in PRECISIONS {
        assert!(
            Packed::new(&[1.0; 12], 4, precision, None)
                .multiply(&[], 2)
                .is_empty()
        );
    }
}

#[test]
fn an_input_that_is_not_finite_gives_outputs_that_are_not_finite() {
    for precision in PRECISIONS {
        for isa in TIERS {
            for bad in [f32::NAN, f32::INFINITY] {
                let packed = Packed::new(&noise(70 * 3, 5), 70, precision, Some(isa));
                let mut x = noise(140, 3);
                x[100] = bad;
                let y = packed.multiply(&x, 1);
                assert!(y[..3].iter().all(|y| y.is_finite()), "{precision} {isa}");
                assert!(y[3..].iter().all(|y| !y.is_finite()), "{precision} {isa}");
            }
        }
    }
}

#[test]
fn weights_of_less_precision_take_less_memory() {
    let bytes =
        PRECISIONS.map(|precision| Packed::new(&noise(64 * 640, 1), 640, precision, None).bytes());
    assert_eq!(bytes[0], 64 * 640 * 4);
    // With a scale for each group of 64.
    assert!(bytes[1] < bytes[0] * 52 / 100, "{bytes:?}");
    assert!(bytes[2] < bytes[0] * 3 / 10, "{bytes:?}");
}
