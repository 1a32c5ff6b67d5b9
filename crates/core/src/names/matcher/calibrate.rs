//! Isotonic calibration: scores to probabilities that keep their order, and the threshold for a stated precision.
//!
//! Decides what share of texts with a score is answered rightly, by pooling adjacent violators. Invariant: a greater
//! score never has a smaller probability, and equal pairs give equal steps. It does not know where scores come from.

use serde::{Deserialize, Serialize};

/// Fewest pairs of a step: a probability from a few pairs says little.
const PAIRS_MIN: f64 = 20.0;

/// The least theta.
const PROBABILITY_MIN: f64 = 0.5;

/// Steps from score to probability, ascending.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Calibration {
    /// The least score of each step, and its probability.
    pub(super) steps: Vec<(f64, f64)>,
}

/// A run of pairs with one probability.
#[derive(Clone, Copy)]
struct Block {
    from: f64,
    right: f64,
    all: f64,
}

impl Calibration {
    /// The steps that fit pairs of score and whether it was right best.
    pub(super) fn fit(pairs: &[(f64, bool)]) -> Self {
        let mut pairs = pairs.to_vec();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut blocks: Vec<Block> = Vec::new();
        for (score, right) in pairs {
            let right = f64::from(u8::from(right));
            match blocks.last_mut() {
                // Equal scores cannot be told apart, and small blocks grow until they say something.
                Some(last) if last.from == score || last.all < PAIRS_MIN => {
                    last.right += right;
                    last.all += 1.0;
                }
                _ => blocks.push(Block {
                    from: score,
                    right,
                    all: 1.0,
                }),
            }
            pool(&mut blocks);
        }
        let steps = blocks
            .iter()
            .map(|block| (block.from, block.right / block.all));
        Self {
            steps: steps.collect(),
        }
    }

    /// The probability of a score: that of the step it is on; below all steps, that of the first.
    pub(super) fn probability(&self, score: f64) -> f64 {
        let above = self.steps.partition_point(|(from, _)| *from <= score);
        let step = self.steps.get(above.saturating_sub(1));
        step.map_or(0.0, |(_, probability)| *probability)
    }
}

/// Joins the last blocks while one is not better than the one before.
fn pool(blocks: &mut Vec<Block>) {
    while let [.., before, last] = blocks[..]
        && last.right * before.all <= before.right * last.all
    {
        blocks.pop();
        if let Some(kept) = blocks.last_mut() {
            kept.right += last.right;
            kept.all += last.all;
        }
    }
}

/// The least probability at which the share of right ones among all pairs of at least that probability is `precision`,
/// and one half at least: what is likelier wrong than right is not answered, however right the rest is. More than 1 if
/// there is none, so nothing is accepted.
pub(super) fn threshold(pairs: &[(f64, bool)], precision: f64) -> f64 {
    let mut pairs = pairs.to_vec();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut right, mut theta) = (0.0, f64::INFINITY);
    for (nth, (probability, is_right)) in pairs.iter().enumerate() {
        if *probability < PROBABILITY_MIN {
            break;
        }
        right += f64::from(u8::from(*is_right));
        let ends = pairs.get(nth + 1).is_none_or(|next| next.0 < *probability);
        if ends && right >= precision * (nth + 1) as f64 {
            theta = *probability;
        }
    }
    if theta.is_finite() { theta } else { 2.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_step_has_the_share_that_was_right() {
        let of = |score: f64, right: usize| (0..100).map(move |n| (score, n < right));
        let pairs: Vec<(f64, bool)> = of(0.0, 30).chain(of(1.0, 100)).collect();
        let fitted = Calibration::fit(&pairs);
        assert_eq!(fitted.steps, [(0.0, 0.3), (1.0, 1.0)]);
        assert!(fitted.probability(-5.0) <= fitted.probability(0.5));
        assert_eq!(Calibration::default().probability(3.0), 0.0);
    }

    #[test]
    fn theta_gives_the_stated_precision_and_as_many_as_possible() {
        let pairs = [
            (0.9, true),
            (0.8, true),
            (0.8, false),
            (0.7, true),
            (0.6, true),
            (0.4, true),
        ];
        assert_eq!(threshold(&pairs, 1.0), 0.9);
        assert_eq!(threshold(&pairs, 0.8), 0.6);
        assert_eq!(threshold(&pairs, 0.5), 0.6, "at least one half");
        assert_eq!(threshold(&[(0.9, false)], 0.5), 2.0, "nothing is accepted");
        assert_eq!(threshold(&[], 0.5), 2.0);
    }

    proptest! {
        #[test]
        fn probabilities_rise_with_scores(pairs in prop::collection::vec((-3.0..3.0f64, any::<bool>()), 0..300)) {
            let fitted = Calibration::fit(&pairs);
            prop_assert!(fitted.steps.windows(2).all(|s| s[0].0 < s[1].0 && s[0].1 < s[1].1));
            let right = pairs.iter().filter(|p| p.1).count() as f64;
            let sum: f64 = pairs.iter().map(|p| fitted.probability(p.0)).sum();
            prop_assert!((sum - right).abs() < 1e-6, "{} {}", sum, right);
        }
    }
}
