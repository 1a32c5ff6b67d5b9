//! How well texts are matched: what is printed beside a fitted model.
//!
//! Invariant: measures depend on the set of outcomes alone. It does not know how they came about.

use schemars::JsonSchema;
use serde::Serialize;

/// What became of one labelled text.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Kind of the text, as its label says.
    pub(super) kind: String,
    /// Whether it means a product that is sold.
    pub(super) sold: bool,
    /// Place of the right product, from 0.
    pub(super) place: Option<usize>,
    /// Probability of the first product.
    pub(super) probability: f64,
    /// Whether the first product was answered.
    pub(super) accepted: bool,
    /// How likely any product was, before calibration.
    pub(super) any: f64,
}

/// Measures of labelled texts. A share of no texts is absent.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Measures {
    /// Texts of products that are sold.
    pub sold: usize,
    /// Texts of products that are not.
    pub not_sold: usize,
    /// Share of sold texts whose first product is right, whether answered or not.
    pub first: Option<f64>,
    /// Share of sold texts with the right product among the first 20.
    pub first_20: Option<f64>,
    /// Share of answers that are right; an answer to a text of what is not sold is wrong.
    pub precision: Option<f64>,
    /// Share of sold texts that are answered.
    pub coverage: Option<f64>,
    /// Share of texts of what is not sold that are answered.
    pub false_accepts: Option<f64>,
    /// Area under the curve that tells sold from not sold, by the chance of any product.
    pub auroc: Option<f64>,
    /// Mean difference of probability and share that was right, over ten groups of equal size.
    pub calibration_error: Option<f64>,
}

impl Measures {
    /// The measures of outcomes.
    pub(super) fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> Self {
        let count =
            |holds: &dyn Fn(&Outcome) -> bool| outcomes.clone().filter(|o| holds(o)).count();
        let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        let sold = count(&|o| o.sold);
        let not_sold = count(&|o| !o.sold);
        let right = count(&|o| o.accepted && o.place == Some(0));
        Self {
            sold,
            not_sold,
            first: share(count(&|o| o.place == Some(0)), sold),
            first_20: share(count(&|o| o.place.is_some_and(|place| place < 20)), sold),
            precision: share(right, count(&|o| o.accepted)),
            coverage: share(count(&|o| o.accepted && o.sold), sold),
            false_accepts: share(count(&|o| o.accepted && !o.sold), not_sold),
            auroc: auroc(outcomes.clone().map(|o| (o.any, o.sold)).collect()),
            calibration_error: calibration_error(
                outcomes.map(|o| (o.probability, o.place == Some(0))),
            ),
        }
    }
}

/// The probability that a pair that holds has a greater score than one that does not; ties count a half.
pub(super) fn auroc(mut pairs: Vec<(f64, bool)>) -> Option<f64> {
    let (mut below, mut sum) = (0.0, 0.0);
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    for ties in pairs.chunk_by(|a, b| a.0 == b.0) {
        let holding = ties.iter().filter(|pair| pair.1).count() as f64;
        let others = ties.len() as f64 - holding;
        sum += holding * (below + others / 2.0);
        below += others;
    }
    let all = (pairs.len() as f64 - below) * below;
    (all > 0.0).then(|| sum / all)
}

fn calibration_error(pairs: impl Iterator<Item = (f64, bool)>) -> Option<f64> {
    let mut pairs: Vec<(f64, bool)> = pairs.collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let all = pairs.len();
    let size = all.div_ceil(10).max(1);
    let of = |group: &[(f64, bool)]| {
        let expected: f64 = group.iter().map(|pair| pair.0).sum();
        let right = group.iter().filter(|pair| pair.1).count() as f64;
        (expected - right).abs()
    };
    (all > 0).then(|| pairs.chunks(size).map(of).sum::<f64>() / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_that_of_all_pairs() {
        let pairs = |scores: &[(f64, bool)]| auroc(scores.to_vec());
        assert_eq!(pairs(&[(0.9, true), (0.1, false)]), Some(1.0));
        assert_eq!(pairs(&[(0.1, true), (0.9, false)]), Some(0.0));
        assert_eq!(pairs(&[(0.5, true), (0.5, false)]), Some(0.5));
        assert_eq!(
            pairs(&[(0.9, true), (0.3, true), (0.5, false), (0.1, false)]),
            Some(0.75)
        );
        assert_eq!(pairs(&[(0.9, true)]), None);
    }

    #[test]
    fn an_answer_to_what_is_not_sold_is_wrong() {
        let outcome = |sold: bool, place: Option<usize>, accepted: bool| Outcome {
            kind: String::new(),
            sold,
            place,
            probability: 0.5,
            accepted,
            any: 0.5,
        };
        let outcomes = [
            outcome(true, Some(0), true),
            outcome(true, Some(3), true),
            outcome(true, None, false),
            outcome(true, Some(0), false),
            outcome(false, None, true),
            outcome(false, None, false),
        ];
        let measures = Measures::of(outcomes.iter());
        assert_eq!(measures.first, Some(0.5));
        assert_eq!(measures.first_20, Some(0.75));
        assert_eq!(measures.precision, Some(1.0 / 3.0));
        assert_eq!(measures.coverage, Some(0.5));
        assert_eq!(measures.false_accepts, Some(0.5));
        assert_eq!(Measures::of([].iter()).precision, None);
    }
}
