//! Rotary positions: the frequency of each pair of a head.
//!
//! Decides the frequencies of every scaling that is supported, by the formulas of the `transformers` library.
//! Invariant: every frequency is finite. It does not know files or tensors.

use std::f64::consts::TAU;

/// The widest head of a model; only a damaged file has a wider one.
const HEAD_DIM_MAX: usize = 1 << 14;

/// Frequencies of pairs, and a factor on rotated values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// Radians per position of each pair (i, i + half), `head_dim / 2` of them.
    pub frequencies: Vec<f64>,
    /// Factor on cosine and sine of pairs that rotate; 1 except for YaRN and LongRoPE.
    pub scale: f64,
}

/// How frequencies are changed for contexts longer than in training.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    /// No change.
    None,
    /// Every frequency is divided by the same factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies are divided, high ones kept, those between interpolated: Llama 3.1 and later.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations within the original context below which a frequency is low.
        low: f64,
        /// Rotations within the original context above which a frequency is high.
        high: f64,
        /// Positions of the training context.
        original: f64,
    },
    /// YaRN.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Positions of the training context.
        original: f64,
        /// Rotations within the original context above which a frequency is kept (`beta_fast`).
        fast: f64,
        /// Rotations within the original context below which a frequency is divided (`beta_slow`).
        slow: f64,
        /// Factor on cosine and sine.
        attention: f64,
        /// Whether the bounds between kept and divided pairs are rounded to whole pairs.
        truncate: bool,
    },
    /// Every frequency has its own divisor, for contexts up to that of training.
    LongRope {
        /// Divisors of frequencies.
        divisors: Vec<f64>,
        /// Factor on cosine and sine.
        attention: f64,
    },
    /// Every frequency has its own divisor, as GGUF files write Llama 3's scaling.
    Divisors(Vec<f32>),
}

impl Rope {
    /// The same rotation of the first values of heads of width `head_dim`; the others stay as they are.
    pub(crate) fn of_part(mut self, head_dim: usize) -> Self {
        self.frequencies.resize(head_dim / 2, 0.0);
        self
    }

    /// Sine and cosine of each pair at a position.
    pub(crate) fn angles(&self, position: usize) -> impl Iterator<Item = (f32, f32)> {
        let scale = self.scale;
        self.frequencies.iter().map(move |frequency| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            // A pair that does not rotate has no scale either.
            let scale = if *frequency == 0.0 { 1.0 } else { scale };
            ((sin * scale) as f32, (cos * scale) as f32)
        })
    }

    /// No rotation of heads of width `head_dim`.
    pub(crate) fn none(head_dim: usize) -> Self {
        Self {
            frequencies: vec![0.0; head_dim / 2],
            scale: 1.0,
        }
    }

    /// Frequencies of heads of width `head_dim`; the error says which parameter is impossible.
    pub(crate) fn new(base: f64, head_dim: usize, scaling: &Scaling) -> Result<Self, String> {
        if !(base.is_finite() && base > 1.0) {
            return Err(format!("the base {base} is not above 1"));
        }
        if head_dim > HEAD_DIM_MAX {
            return Err(format!("heads of width {head_dim} are over {HEAD_DIM_MAX}"));
        }
        scaling.check(head_dim / 2)?;
        let half = head_dim / 2;
        let unscaled = |pair: usize| base.powf(-(pair as f64) / half as f64);
        let frequency = |pair: usize| match scaling {
            Scaling::None => unscaled(pair),
            Scaling::Linear { factor } => unscaled(pair) / factor,
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let rotations = original * unscaled(pair) / TAU;
                let kept = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                unscaled(pair) * (kept + (1.0 - kept) / factor)
            }
            Scaling::Yarn { factor, .. } => {
                let kept = scaling.kept(base, head_dim, pair);
                unscaled(pair) * (kept + (1.0 - kept) / factor)
            }
            Scaling::Divisors(divisors) => unscaled(pair) / f64::from(divisors[pair]),
            Scaling::LongRope { divisors, .. } => unscaled(pair) / divisors[pair],
        };
        let scale = match scaling {
            Scaling::Yarn { attention, .. } | Scaling::LongRope { attention, .. } => *attention,
            _ => 1.0,
        };
        let frequencies: Vec<f64> = (0..half).map(frequency).collect();
        if !frequencies.iter().all(|x| x.is_finite()) {
            return Err(format!("{scaling:?} gives frequencies that are not finite"));
        }
        Ok(Self { frequencies, scale })
    }
}

impl Scaling {
    /// YaRN's factor on cosine and sine if the file has none.
    pub(crate) fn yarn_attention(factor: f64) -> f64 {
        if factor > 1.0 {
            0.1 * factor.ln() + 1.0
        } else {
            1.0
        }
    }

    fn check(&self, half: usize) -> Result<(), String> {
        let positive = |name: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(format!("{name} {value} is not above 0"))
            }
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => positive("factor", *factor),
            Self::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                positive("factor", *factor)?;
                positive("original context", *original)?;
                if low.is_finite() && high.is_finite() && low < high {
                    Ok(())
                } else {
                    Err(format!("low factor {low} is not below high factor {high}"))
                }
            }
            Self::Yarn {
                factor,
                original,
                fast,
                slow,
                attention,
                ..
            } => {
                positive("factor", *factor)?;
                positive("original context", *original)?;
                positive("beta_fast", *fast)?;
                positive("beta_slow", *slow)?;
                positive("attention factor", *attention)
            }
            Self::LongRope {
                divisors,
                attention,
            } => {
                if divisors.len() != half {
                    return Err(format!("{} divisors for {half} pairs", divisors.len()));
                }
                positive("attention factor", *attention)?;
                (divisors.iter()).try_for_each(|x| positive("a divisor", *x))
            }
            Self::Divisors(divisors) => {
                if divisors.len() != half {
                    return Err(format!("{} divisors for {half} pairs", divisors.len()));
                }
                let all = divisors.iter().map(|x| f64::from(*x));
                all.into_iter().try_for_each(|x| positive("a divisor", x))
            }
        }
    }

    /// How much of a pair's unscaled frequency YaRN keeps: 1 for high frequencies, 0 for low ones.
    fn kept(&self, base: f64, head_dim: usize, pair: usize) -> f64 {
        let Self::Yarn {
            original,
            fast,
            slow,
            truncate,
            ..
        } = self
        else {
            return 1.0;
        };
        let width = head_dim as f64;
        let pair_of =
            |rotations: f64| width * (original / (rotations * TAU)).ln() / (2.0 * base.ln());
        let (mut low, mut high) = (pair_of(*fast), pair_of(*slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(width - 1.0));
        if low == high {
            high += 0.001;
        }
        1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LLAMA3: Scaling = Scaling::Llama3 {
        factor: 8.0,
        low: 1.0,
        high: 4.0,
        original: 8192.0,
    };

    #[test]
    fn high_frequencies_are_kept_and_low_ones_divided() {
        let yarn = Scaling::Yarn {
            factor: 4.0,
            original: 32768.0,
            fast: 32.0,
            slow: 1.0,
            attention: Scaling::yarn_attention(4.0),
            truncate: true,
        };
        for (scaling, factor) in [(LLAMA3, 8.0), (yarn, 4.0)] {
            let plain = Rope::new(500_000.0, 128, &Scaling::None).expect("valid");
            let scaled = Rope::new(500_000.0, 128, &scaling).expect("valid");
            assert_eq!(scaled.frequencies[0], plain.frequencies[0]);
            let (last, kept) = (scaled.frequencies[63], plain.frequencies[63]);
            assert!((last * factor / kept - 1.0).abs() < 1e-12, "{last} {kept}");
            let is_falling = scaled.frequencies.windows(2).all(|pair| pair[0] > pair[1]);
            assert!(
                is_falling,
                "a later pair has a lower frequency: {:?}",
                scaled.frequencies
            );
        }
    }

    #[test]
    fn impossible_parameters_are_refused() {
        let bad = [
            (0.0, Scaling::None),
            (f64::NAN, Scaling::None),
            (1e4, Scaling::Linear { factor: 0.0 }),
            (1e4, Scaling::Linear { factor: f64::NAN }),
            (1e4, Scaling::Divisors(vec![1.0; 3])),
            (1e4, Scaling::Divisors(vec![1.0, 0.0, 1.0, 1.0])),
        ];
        for (base, scaling) in bad {
            assert!(Rope::new(base, 8, &scaling).is_err(), "{base} {scaling:?}");
        }
    }

    #[test]
    fn a_pair_that_does_not_rotate_is_not_scaled_either() {
        let scaling = Scaling::LongRope {
            divisors: vec![1.0, 2.0],
            attention: 1.5,
        };
        let rope = Rope::new(10_000.0, 4, &scaling).expect("valid").of_part(6);
        let angles: Vec<(f32, f32)> = rope.angles(3).collect();
        assert_eq!(angles.len(), 3);
        assert!((angles[0].0 - 1.5 * 3f32.sin()).abs() < 1e-6, "{angles:?}");
        assert_eq!(angles[2], (0.0, 1.0));
        assert!(Rope::none(6).angles(7).all(|angle| angle == (0.0, 1.0)));
    }

    proptest! {
        #[test]
        fn frequencies_are_finite_for_any_parameters(
            base in any::<f64>(), factor in any::<f64>(), original in any::<f64>(),
            bounds in any::<(f64, f64)>(), half in 1usize..70,
        ) {
            let (low, high) = bounds;
            let scalings = [
                Scaling::Linear { factor },
                Scaling::Llama3 { factor, low, high, original },
                Scaling::Yarn { factor, original, fast: low, slow: high, attention: 1.0, truncate: true },
            ];
            for scaling in scalings {
                if let Ok(rope) = Rope::new(base, half * 2, &scaling) {
                    prop_assert!(rope.frequencies.iter().all(|x| x.is_finite()), "{scaling:?} {rope:?}");
                }
            }
        }
    }
}
