//! Rotary positions: how fast each pair of a head turns.
//!
//! Decides the angles of every scaling that we run, by the formulas of the `transformers` library.
//! Invariant: every speed is finite. It does not know files or tensors.

use std::f64::consts::TAU;

/// No model has wider heads; a damaged file may.
const HEAD_DIM_MAX: usize = 1 << 14;

/// Angular speed of each pair, and what turned values are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position of each pair (i, i + half), `head_dim / 2` of them.
    pub speeds: Vec<f64>,
    /// Factor on cosine and sine; 1 but for YaRN.
    pub scale: f64,
}

/// How the positions of a longer context are brought into the range of training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Every speed divided by the same factor.
    Linear {
        /// By how much.
        factor: f64,
    },
    /// Slow pairs divided, fast ones kept, those between mixed: Llama 3.1 and later.
    Llama3 {
        /// By how much slow pairs are divided.
        factor: f64,
        /// Turns within the original context below which a pair is slow.
        low: f64,
        /// Turns above which a pair is fast.
        high: f64,
        /// Positions of training.
        original: f64,
    },
    /// YaRN.
    Yarn {
        /// By how much slow pairs are divided.
        factor: f64,
        /// Positions of training.
        original: f64,
        /// Turns above which a pair is kept.
        fast: f64,
        /// Turns below which a pair is divided.
        slow: f64,
        /// Factor on cosine and sine.
        attention: f64,
        /// Whether the bounds are rounded to whole pairs.
        truncate: bool,
    },
    /// A divisor per pair, as GGUF files write Llama 3's scaling.
    Divisors(Vec<f32>),
}

impl Rope {
    /// Speeds of heads of width `head_dim` by `base` and `scaling`; what is wrong if they cannot be.
    pub fn new(base: f64, head_dim: usize, scaling: &Scaling) -> Result<Self, String> {
        if !(base.is_finite() && base > 1.0) {
            return Err(format!("the base {base} is not above 1"));
        }
        if head_dim > HEAD_DIM_MAX {
            return Err(format!("heads of width {head_dim} cannot be"));
        }
        scaling.check(head_dim / 2)?;
        let half = head_dim / 2;
        let plain = |pair: usize| base.powf(-(pair as f64) / half as f64);
        let speed = |pair: usize| match scaling {
            Scaling::None => plain(pair),
            Scaling::Linear { factor } => plain(pair) / factor,
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let turns = original * plain(pair) / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                plain(pair) * (kept + (1.0 - kept) / factor)
            }
            Scaling::Yarn { factor, .. } => {
                let kept = scaling.kept(base, head_dim, pair);
                plain(pair) * (kept + (1.0 - kept) / factor)
            }
            Scaling::Divisors(divisors) => plain(pair) / f64::from(divisors[pair]),
        };
        let scale = match scaling {
            Scaling::Yarn { attention, .. } => *attention,
            _ => 1.0,
        };
        let speeds: Vec<f64> = (0..half).map(speed).collect();
        if !speeds.iter().all(|speed| speed.is_finite()) {
            return Err(format!("{scaling:?} turns heads without bound"));
        }
        Ok(Self { speeds, scale })
    }
}

impl Scaling {
    /// YaRN's factor on cosine and sine where the file gives none.
    pub fn yarn_attention(factor: f64) -> f64 {
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
            Self::Divisors(divisors) => {
                if divisors.len() != half {
                    return Err(format!("{} divisors for {half} pairs", divisors.len()));
                }
                let all = divisors.iter().map(|x| f64::from(*x));
                all.into_iter().try_for_each(|x| positive("a divisor", x))
            }
        }
    }

    /// How much of a pair's own speed YaRN keeps: 1 for fast pairs, 0 for slow ones.
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
        let pair_of = |turns: f64| width * (original / (turns * TAU)).ln() / (2.0 * base.ln());
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
    fn fast_pairs_are_kept_and_slow_ones_divided() {
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
            assert_eq!(scaled.speeds[0], plain.speeds[0]);
            let (last, kept) = (scaled.speeds[63], plain.speeds[63]);
            assert!((last * factor / kept - 1.0).abs() < 1e-12, "{last} {kept}");
            let falls = scaled.speeds.windows(2).all(|pair| pair[0] > pair[1]);
            assert!(falls, "a later pair is slower: {:?}", scaled.speeds);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
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

    proptest! {
        #[test]
        fn speeds_are_finite_whatever_a_file_says(
            base in any::<f64>(), factor in any::<f64>(), original in any::<f64>(),
            turns in any::<(f64, f64)>(), half in 1usize..70,
        ) {
            let (low, high) = turns;
            let scalings = [
                Scaling::Linear { factor },
                Scaling::Llama3 { factor, low, high, original },
                Scaling::Yarn { factor, original, fast: low, slow: high, attention: 1.0, truncate: true },
            ];
            for scaling in scalings {
                if let Ok(rope) = Rope::new(base, half * 2, &scaling) {
                    prop_assert!(rope.speeds.iter().all(|x| x.is_finite()), "{scaling:?} {rope:?}");
                }
            }
        }
    }
}
