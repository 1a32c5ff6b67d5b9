//! The loss of a case: what a conditional logit loses on what was bought, by the sum that ranks names.
//!
//! Decides which names a case is scored over. The score of a name is weight · path score + the mixture's log score, and
//! its probability the share of exp(score) among all names that may be listed. Of few names all are scored. Of many,
//! those that were bought are, and the rest of the normaliser is estimated from names drawn with the mixture's
//! probability, each divided by it (importance sampling): unbiased, and the better the nearer the mixture is. Invariant:
//! the mixture's score is added to whole names, never inside a choice. It does not know how path scores are computed.

use candle_core::{Result, Tensor};

use super::options::TuneOptions;
use nearshore_core::learn::bootstrap::Random;

/// A case: a user at a cut.
#[derive(Clone, Debug)]
pub struct TuneCase {
    /// The user's prompt.
    pub prompt: nearshore_core::names::scoring::Prompt,
    /// Products that may be listed, ascending.
    pub products: Vec<u32>,
    /// The mixture's log score of each of them.
    pub offset: Vec<f32>,
    /// Places among them of what was bought; at least one.
    pub targets: Vec<u32>,
    /// Whether it decides when to stop, and is not learned from.
    pub is_tune: bool,
}

impl TuneCase {
    /// What the mixture alone loses on the case, in nats.
    pub(super) fn mixture_loss(&self) -> f64 {
        let score = |x: &f32| f64::from(*x);
        let top = self
            .offset
            .iter()
            .map(score)
            .fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.offset.iter().map(|x| (score(x) - top).exp()).sum();
        let mut bought = self.targets.clone();
        bought.sort_unstable();
        bought.dedup();
        let scores = bought
            .iter()
            .map(|place| score(&self.offset[*place as usize]));
        top + sum.ln() - scores.sum::<f64>() / bought.len() as f64
    }

    /// What is wrong with the case for a catalogue of so many names; `None` if nothing is.
    pub(super) fn problem(&self, names: usize) -> Option<String> {
        let many = self.products.len();
        if !self.products.is_sorted_by(|a, b| a < b) {
            return Some("its products are not ascending".into());
        }
        if self
            .products
            .last()
            .is_some_and(|last| *last as usize >= names)
        {
            return Some(format!("a product is not one of the {names} names"));
        }
        if self.offset.len() != many || !self.offset.iter().all(|x| x.is_finite()) {
            return Some("its mixture scores are not one finite number for each product".into());
        }
        if self.targets.is_empty() || self.targets.iter().any(|at| *at as usize >= many) {
            return Some("nothing that it may list was bought".into());
        }
        None
    }
}

/// Names that a case is scored over, with what is added to their scores.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawn {
    /// Places in the case's products, those that were bought first.
    pub(super) places: Vec<u32>,
    /// The mixture's score, less the logarithm of how often the name is expected among the drawn.
    added: Vec<f64>,
    /// Number of names that were bought.
    bought: usize,
}

impl Drawn {
    /// Names of `case` by its options.
    pub(super) fn new(case: &TuneCase, options: &TuneOptions, random: &mut Random) -> Self {
        let mut bought = case.targets.clone();
        bought.sort_unstable();
        bought.dedup();
        let is_bought = |place: &u32| bought.binary_search(place).is_ok();
        let others = (0..case.products.len() as u32).filter(|place| !is_bought(place));
        let others: Vec<u32> = others.collect();
        let score = |place: &u32| f64::from(case.offset[*place as usize]);
        let mut added: Vec<f64> = bought.iter().map(score).collect();
        let count = bought.len();
        let mut places = bought.clone();
        if case.products.len() <= options.exact_max || others.is_empty() {
            added.extend(others.iter().map(score));
            places.extend(others);
        } else {
            let top = others.iter().map(score).fold(f64::NEG_INFINITY, f64::max);
            let mut sums = Vec::with_capacity(others.len());
            let mut sum = 0.0;
            for place in &others {
                sum += (score(place) - top).exp();
                sums.push(sum);
            }
            let mut times = std::collections::BTreeMap::<u32, usize>::new();
            for _ in 0..options.samples {
                let at = random.uniform() * sum;
                let nth = sums.partition_point(|sum| *sum <= at).min(others.len() - 1);
                *times.entry(others[nth]).or_default() += 1;
            }
            // exp(score) · times / (samples · share), where share = exp(mixture − top) / sum: the mixture's score of a
            // drawn name cancels out.
            for (place, times) in times {
                let share = (score(&place) - top) - sum.ln();
                added.push(score(&place) - share + (times as f64 / options.samples as f64).ln());
                places.push(place);
            }
        }
        Self {
            places,
            added,
            bought: count,
        }
    }

    /// The mean of −ln(probability) over what was bought, from the path score of each name.
    pub(super) fn loss(&self, paths: &Tensor, weight: f64) -> Result<Tensor> {
        // Only differences of the added numbers matter. The greatest is taken off in f64.
        let top = self.added.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let added = self.added.iter().map(|x| (x - top) as f32);
        let added = Tensor::from_vec(added.collect::<Vec<_>>(), self.added.len(), paths.device())?;
        let scores = ((paths * weight)? + added)?;
        let greatest = scores.detach().max(0)?;
        let total = scores.broadcast_sub(&greatest)?.exp()?.sum(0)?.log()?;
        let total = (total + greatest)?;
        let bought = scores.narrow(0, 0, self.bought)?.mean(0)?;
        total - bought
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn case(names: usize) -> TuneCase {
        let mut random = Random::new(5);
        TuneCase {
            prompt: "p".into(),
            products: (0..names as u32).collect(),
            offset: (0..names).map(|_| 2.0 * random.normal() as f32).collect(),
            targets: vec![3, 1, 3],
            is_tune: false,
        }
    }

    #[test]
    fn the_mixture_alone_loses_what_equal_path_scores_lose() {
        let case = case(40);
        let options = TuneOptions::default();
        let drawn = Drawn::new(&case, &options, &mut Random::new(1));
        let equal = drawn.loss(&paths(&drawn, &[0.7; 40]), 0.1).expect("a loss");
        let equal = f64::from(equal.to_scalar::<f32>().expect("a number"));
        assert!((case.mixture_loss() - equal).abs() < 1e-5, "{equal}");
    }

    fn paths(drawn: &Drawn, of: &[f32]) -> Tensor {
        let picked = drawn.places.iter().map(|place| of[*place as usize]);
        Tensor::new(picked.collect::<Vec<f32>>(), &Device::Cpu).expect("a tensor")
    }

    fn loss(case: &TuneCase, samples: usize, exact: bool, of: &[f32], random: &mut Random) -> f64 {
        let options = TuneOptions {
            samples,
            exact_max: if exact { case.products.len() } else { 0 },
            ..TuneOptions::default()
        };
        let drawn = Drawn::new(case, &options, random);
        let loss = drawn.loss(&paths(&drawn, of), 0.7).expect("a loss");
        f64::from(loss.to_scalar::<f32>().expect("a number"))
    }

    #[test]
    fn the_loss_over_all_names_is_that_of_a_conditional_logit() {
        let case = case(50);
        let mut random = Random::new(1);
        let of: Vec<f32> = (0..50).map(|_| -random.uniform() as f32 * 9.0).collect();
        let found = loss(&case, 1, true, &of, &mut random);
        let score = |at: usize| 0.7 * f64::from(of[at]) + f64::from(case.offset[at]);
        let total: f64 = (0..50).map(|at| score(at).exp()).sum();
        let expected = total.ln() - (score(1) + score(3)) / 2.0;
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }

    #[test]
    fn the_normaliser_over_drawn_names_is_right_on_average_and_near_it_with_many() {
        let case = case(400);
        let mut random = Random::new(1);
        let of: Vec<f32> = (0..400).map(|_| -random.uniform() as f32 * 3.0).collect();
        let exact = loss(&case, 1, true, &of, &mut random);
        let bought = [1usize, 3].map(|at| 0.7 * f64::from(of[at]) + f64::from(case.offset[at]));
        let mean_bought = bought.iter().sum::<f64>() / 2.0;
        // The normaliser itself is unbiased, its logarithm is not.
        let normaliser = |loss: f64| (loss + mean_bought).exp();
        let runs = 2_000;
        let sum: f64 = (0..runs)
            .map(|_| normaliser(loss(&case, 16, false, &of, &mut random)))
            .sum();
        let ratio = sum / f64::from(runs) / normaliser(exact);
        assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
        let many = loss(&case, 20_000, false, &of, &mut random);
        assert!((many - exact).abs() < 0.01, "{many} {exact}");
    }

    #[test]
    fn where_the_model_says_nothing_drawn_names_give_the_exact_normaliser() {
        // All that is left of a drawn name is what the model says of it.
        let case = case(400);
        let of = vec![-1.5; 400];
        let mut random = Random::new(9);
        let exact = loss(&case, 1, true, &of, &mut random);
        let drawn = loss(&case, 3, false, &of, &mut random);
        assert!((exact - drawn).abs() < 1e-5, "{exact} {drawn}");
    }

    type Change = fn(&mut TuneCase);

    #[test]
    fn a_case_that_cannot_be_scored_is_refused() {
        let of = |change: fn(&mut TuneCase)| {
            let mut case = case(9);
            change(&mut case);
            case.problem(9)
        };
        assert_eq!(of(|_| ()), None);
        let changes: [(Change, &str); 5] = [
            (|case| case.targets.clear(), "bought"),
            (|case| case.targets[0] = 9, "bought"),
            (|case| case.offset[2] = f32::NAN, "finite"),
            (|case| case.products[8] = 9, "not one of the 9"),
            (|case| case.products.swap(0, 1), "ascending"),
        ];
        for (change, expected) in changes {
            let problem = of(change).expect(expected);
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
