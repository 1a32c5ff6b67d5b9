//! Measures of a ranking against what was bought: recall, NDCG, nats, coverage, and recall outside the popular.
//!
//! Invariant: equal scores are ranked by product number, so a measure does not depend on how the best were found.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// The `k` products of the highest score among those that `permitted` admits, best first.
pub fn top(scores: &[f32], k: usize, permitted: impl Fn(u32) -> bool) -> Vec<u32> {
    let better = |a: &u32, b: &u32| -> Ordering {
        scores[*b as usize]
            .total_cmp(&scores[*a as usize])
            .then(a.cmp(b))
    };
    let mut products: Vec<u32> = (0..scores.len() as u32)
        .filter(|&product| permitted(product))
        .collect();
    if k < products.len() && k > 0 {
        products.select_nth_unstable_by(k - 1, better);
    }
    products.truncate(k);
    products.sort_unstable_by(better);
    products
}

/// How many of the first `k` of `ranked` are targets. `targets` is ascending.
pub fn hits(ranked: &[u32], targets: &[u32], k: usize) -> usize {
    ranked
        .iter()
        .take(k)
        .filter(|product| targets.binary_search(product).is_ok())
        .count()
}

/// Hits among the first `k`, divided by the most that were possible. `None` without targets or with `k` 0.
pub fn recall(ranked: &[u32], targets: &[u32], k: usize) -> Option<f64> {
    let most = k.min(targets.len());
    (most > 0).then(|| hits(ranked, targets, k) as f64 / most as f64)
}

/// Discounted gain of the first `k`, divided by that of the best possible order. `None` without targets or with `k` 0.
pub fn ndcg(ranked: &[u32], targets: &[u32], k: usize) -> Option<f64> {
    let gain = |rank: usize| 1.0 / ((rank + 2) as f64).log2();
    let best: f64 = (0..k.min(targets.len())).map(gain).sum();
    let of_hits = ranked
        .iter()
        .take(k)
        .enumerate()
        .filter(|(_, product)| targets.binary_search(product).is_ok());
    let found: f64 = of_hits.map(|(rank, _)| gain(rank)).sum();
    (best > 0.0).then(|| found / best)
}

/// Mean over targets of -ln of their probability under the softmax of `scores`. `None` without targets.
pub fn nats(scores: &[f32], targets: &[u32]) -> Option<f64> {
    let normaliser = log_sum_exp(scores);
    let of_targets: f64 = targets
        .iter()
        .map(|&target| normaliser - f64::from(scores[target as usize]))
        .sum();
    (!targets.is_empty()).then(|| of_targets / targets.len() as f64)
}

/// ln Σ exp of `scores`.
pub fn log_sum_exp(scores: &[f32]) -> f64 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let max = f64::from(max);
    max + scores
        .iter()
        .map(|&score| (f64::from(score) - max).exp())
        .sum::<f64>()
        .ln()
}

/// Share of `products` products that are on at least one of `lists`, each cut to its first `k`.
pub fn coverage<'a>(lists: impl IntoIterator<Item = &'a [u32]>, products: usize, k: usize) -> f64 {
    let seen: BTreeSet<u32> = lists
        .into_iter()
        .flat_map(|list| list.iter().take(k).copied())
        .collect();
    if products == 0 {
        0.0
    } else {
        seen.len() as f64 / products as f64
    }
}

/// Recall of what the popular list does not show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exclusive {
    /// Of the targets outside the first `k` popular, the share in the first `k` of the ranking.
    pub recall: f64,
    /// The same for the null: the `k` products that are popular next.
    pub next_popular: f64,
}

/// Recall of targets outside the first `k` of `popular`, by `ranked` and by the next `k` of `popular`. A list that says
/// no popular names scores here without any knowledge, so only what it has above the null counts. `None` if all targets
/// are popular.
pub fn exclusive(ranked: &[u32], popular: &[u32], targets: &[u32], k: usize) -> Option<Exclusive> {
    let head = &popular[..k.min(popular.len())];
    let rest: Vec<u32> = targets
        .iter()
        .copied()
        .filter(|target| !head.contains(target))
        .collect();
    let next = &popular[head.len()..(2 * k).min(popular.len())];
    let most = k.min(rest.len());
    (most > 0).then(|| Exclusive {
        recall: hits(ranked, &rest, k) as f64 / most as f64,
        next_popular: hits(next, &rest, k) as f64 / most as f64,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn recall_divides_by_what_was_possible() {
        assert_eq!(recall(&[1, 2, 3], &[2, 9], 3), Some(0.5));
        assert_eq!(recall(&[1, 2, 3], &[1, 2, 3, 4, 5], 2), Some(1.0));
        assert_eq!(recall(&[1], &[], 3), None);
        assert_eq!(recall(&[1], &[1], 0), None);
    }

    #[test]
    fn ndcg_is_1_for_the_best_order_and_less_for_a_late_hit() {
        assert_eq!(ndcg(&[4, 7, 1], &[4, 7], 3), Some(1.0));
        let late = ndcg(&[1, 4], &[4], 2).unwrap();
        assert!((late - 1.0 / 3f64.log2()).abs() < 1e-12);
        assert_eq!(ndcg(&[1], &[], 2), None);
    }

    #[test]
    fn nats_of_equal_scores_are_the_logarithm_of_their_number() {
        assert!((nats(&[0.5; 8], &[3, 4]).unwrap() - 8f64.ln()).abs() < 1e-9);
        assert_eq!(nats(&[0.5; 8], &[]), None);
        let sure = nats(&[100.0, 0.0], &[0]).unwrap();
        assert!(sure.abs() < 1e-9);
    }

    #[test]
    fn coverage_counts_distinct_products_of_the_first_k() {
        let lists = [vec![1, 2, 3], vec![1, 4, 5]];
        assert_eq!(coverage(lists.iter().map(Vec::as_slice), 10, 2), 0.3);
        assert_eq!(coverage([].into_iter(), 0, 2), 0.0);
    }

    #[test]
    fn exclusive_recall_has_the_next_popular_as_its_null() {
        let popular = [0, 1, 2, 3, 4, 5];
        let found = exclusive(&[3, 9], &popular, &[0, 2, 3, 9], 2).unwrap();
        assert_eq!(
            found,
            Exclusive {
                recall: 1.0,
                next_popular: 1.0
            }
        );
        let found = exclusive(&[0, 9], &popular, &[0, 3, 9], 2).unwrap();
        assert_eq!(
            found,
            Exclusive {
                recall: 0.5,
                next_popular: 0.5
            }
        );
        assert_eq!(exclusive(&[3, 9], &popular, &[0, 1], 2), None);
    }

    proptest! {
        #[test]
        fn the_top_is_that_of_a_full_sort(
            scores in proptest::collection::vec((0i8..5).prop_map(f32::from), 0..40), k in 0usize..50, odd in any::<bool>(),
        ) {
            let permitted = |product: u32| !odd || product % 2 == 1;
            let mut all: Vec<u32> = (0..scores.len() as u32).filter(|&p| permitted(p)).collect();
            all.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
            all.truncate(k);
            prop_assert_eq!(top(&scores, k, permitted), all);
        }
    }
}
