//! What an audit tells of the SKUs that a name could have shown, so that another policy can be judged by its list.
//!
//! Told one by one are those that had a chance, and of the others those with the highest share or chance of being the
//! best; the rest are groups of about the same share. Invariant: what is told depends on no order but that of the shares,
//! and another policy that reads it gives the SKUs shown the propensities that they were published with. It does not know
//! whose audits have it.

use std::collections::BTreeMap;

use super::{Audit, CandidatesAudit, ListBuilder, NameAudit};
use crate::learn::off_policy::Weighing;
use crate::shop::catalogue::SkuIx;

/// Most SKUs that are told one by one, beside those that had a chance.
const LISTED: usize = 32;

impl ListBuilder<'_> {
    /// Adds to the audit of a list that this builder made the candidates of each name, and the policy.
    pub(crate) fn tell_candidates(&self, audit: &mut Audit) {
        audit.selection = Some(Weighing {
            gamma: self.policy.gamma,
            explore: self.policy.explore,
            epsilon: self.policy.epsilon,
        });
        for name in &mut audit.names {
            name.candidates = self.candidates_of(name);
        }
    }

    /// The candidates of a name of the list; `None` if the catalogue does not have it.
    fn candidates_of(&self, name: &NameAudit) -> Option<CandidatesAudit> {
        let pu = self.catalogue.by_pu(&name.pu)?;
        let (ranked, contest) = (self.ranked(pu), self.contest(pu));
        let shown = name.skus.iter();
        let shown: Vec<SkuIx> = shown
            .filter_map(|it| self.catalogue.by_sku(&it.sku))
            .collect();
        let candidates = Candidates {
            ranked: &ranked,
            weights: &contest.weights(&ranked, self.policy),
            best: &contest.best(),
        };
        Some(candidates.told(&shown, |sku| self.catalogue.sku(sku).sku.clone()))
    }
}

/// What is known of the SKUs of one name.
struct Candidates<'a> {
    /// All SKUs that may be shown with their shares, the likeliest first.
    ranked: &'a [(SkuIx, f32)],
    /// The weight of each; 0 for one that had no chance but to fill a place by share.
    weights: &'a [f64],
    /// The probability of each to be the best one, where it is above 0.
    best: &'a BTreeMap<SkuIx, f64>,
}

impl Candidates<'_> {
    fn best(&self, sku: SkuIx) -> f64 {
        self.best.get(&sku).copied().unwrap_or_default()
    }

    /// What an audit tells; `shown` are the SKUs of the list.
    fn told(&self, shown: &[SkuIx], id: impl Fn(SkuIx) -> String) -> CandidatesAudit {
        let mut order: Vec<usize> = (0..self.ranked.len()).collect();
        let high = |at: usize| {
            let (sku, share) = self.ranked[at];
            f64::from(share).max(self.best(sku))
        };
        order.sort_by(|a, b| high(*b).total_cmp(&high(*a)).then(a.cmp(b)));
        let mut is_listed = vec![false; self.ranked.len()];
        order
            .iter()
            .take(LISTED)
            .for_each(|at| is_listed[*at] = true);
        for (at, listed) in is_listed.iter_mut().enumerate() {
            *listed |= self.weights[at] > 0.0 || shown.contains(&self.ranked[at].0);
        }
        let mut told = CandidatesAudit::default();
        let mut groups: BTreeMap<i32, (u32, f64)> = BTreeMap::new();
        for ((sku, share), is_listed) in self.ranked.iter().zip(is_listed) {
            let share = f64::from(share.max(0.0));
            if is_listed {
                told.skus.push(id(*sku));
                told.share.push(six_digits(share));
                told.best.push(six_digits(self.best(*sku)));
            } else {
                let group = groups.entry(group(share)).or_default();
                group.0 += 1;
                group.1 += share;
            }
        }
        let others = groups.into_values().rev();
        told.others = others.map(|(n, sum)| (n, six_digits(sum))).collect();
        told
    }
}

/// The group of a share: shares of one differ by a factor of 2 at most.
fn group(share: f64) -> i32 {
    share.max(1e-12).log2().floor() as i32
}

/// A number with six significant digits: more would cost bytes and change nothing.
fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::bootstrap::{Random, Resampling};
    use crate::learn::off_policy::{self, Question, ShownName, ShownPlace, evaluate};
    use crate::list::select::{Candidate, Contest, Policy};
    use crate::shop::demand::SkuCounts;

    fn ranked(len: u32) -> Vec<(SkuIx, f32)> {
        let share = |nth: u32| 1.0 / (1.0 + nth as f32) / 10.0;
        (0..len).map(|nth| (SkuIx(nth), share(nth))).collect()
    }

    fn told(ranked: &[(SkuIx, f32)], open: &[usize], best: &[(u32, f64)]) -> CandidatesAudit {
        let mut weights = vec![0.0; ranked.len()];
        open.iter().for_each(|at| weights[*at] = 0.1);
        let best = best.iter().map(|(sku, best)| (SkuIx(*sku), *best));
        let candidates = Candidates {
            ranked,
            weights: &weights,
            best: &best.collect(),
        };
        candidates.told(&[SkuIx(0)], |sku| sku.0.to_string())
    }

    #[test]
    fn all_skus_of_a_small_product_are_told_in_the_order_of_their_shares() {
        let told = told(&ranked(3), &[0, 1], &[(2, 1.0 / 3.0)]);
        assert_eq!(told.skus, ["0", "1", "2"]);
        assert_eq!(told.share, [0.1, 0.05, 0.0333333]);
        assert_eq!(told.best, [0.0, 0.0, 0.333333]);
        assert!(told.others.is_empty());
    }

    #[test]
    fn of_a_large_product_those_with_a_chance_and_the_likeliest_are_told_and_groups_of_the_others()
    {
        let all = ranked(1_000);
        let told = told(&all, &[0, 900], &[(800, 0.5)]);
        assert_eq!(told.skus.len(), LISTED + 1);
        assert!(
            ["0", "30", "800", "900"]
                .iter()
                .all(|sku| told.skus.contains(&(*sku).to_owned()))
        );
        assert!(!told.skus.contains(&"31".to_owned()));
        let numbers: u32 = told.others.iter().map(|it| it.0).sum();
        assert_eq!(numbers as usize + told.skus.len(), all.len());
        let sum: f64 = told
            .share
            .iter()
            .chain(told.others.iter().map(|it| &it.1))
            .sum();
        let whole: f32 = all.iter().map(|it| it.1).sum();
        assert!((sum - f64::from(whole)).abs() < 1e-5);
        // Of any power the groups have nearly the sum of their SKUs.
        for gamma in [0.5, 2.0f64] {
            let power = |sum: f64, n: u32| f64::from(n) * (sum / f64::from(n)).powf(gamma);
            let groups: f64 = told.others.iter().map(|(n, sum)| power(*sum, *n)).sum();
            let one_by_one = all
                .iter()
                .filter(|(sku, _)| !told.skus.contains(&sku.0.to_string()));
            let wanted: f64 = one_by_one.map(|it| f64::from(it.1).powf(gamma)).sum();
            assert!(
                (groups / wanted - 1.0).abs() < 0.05,
                "{gamma}: {groups} {wanted}"
            );
        }
    }

    /// A name of a product with so many SKUs, as its audit tells it, with an odd number of purchases.
    fn shown_name(
        random: &mut Random,
        user: u32,
        policy: &Policy,
        shop: &[SkuCounts],
    ) -> ShownName {
        let ids: Vec<String> = (0..shop.len()).map(|nth| format!("{nth:04}")).collect();
        let skus = (0..).map(SkuIx).zip(ids.iter().zip(shop));
        let skus = skus.map(|(ix, (id, counts))| Candidate {
            ix,
            id,
            counts: *counts,
        });
        let contest = Contest::of(&skus.collect::<Vec<_>>());
        let powers: Vec<f64> = shop.iter().map(|_| random.normal().exp()).collect();
        let sum: f64 = powers.iter().sum();
        let ranked = (0..).map(SkuIx).zip(powers);
        let mut ranked: Vec<(SkuIx, f32)> =
            ranked.map(|(ix, it)| (ix, (it / sum) as f32)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let chosen = contest.select(&ranked, random.bits(), policy);
        let candidates = Candidates {
            ranked: &ranked,
            weights: &contest.weights(&ranked, policy),
            best: &contest.best(),
        };
        let shown: Vec<SkuIx> = chosen.iter().map(|it| it.sku).collect();
        let told = candidates.told(&shown, |sku| sku.0.to_string());
        let number = |sku: SkuIx| told.skus.iter().position(|it| *it == sku.0.to_string());
        let listed = told.share.iter().zip(&told.best);
        ShownName {
            user,
            elapsed: 10,
            logged: Weighing {
                gamma: policy.gamma,
                explore: policy.explore,
                epsilon: policy.epsilon,
            },
            places: chosen
                .iter()
                .map(|it| ShownPlace {
                    candidate: number(it.sku).expect("what is shown is told"),
                    propensity: it.propensity,
                    delay: user.is_multiple_of(2).then_some(1),
                })
                .collect(),
            candidates: off_policy::Candidates {
                listed: listed
                    .map(|(share, best)| off_policy::Candidate {
                        share: *share,
                        best: *best,
                    })
                    .collect(),
                others: told.others.clone(),
            },
        }
    }

    #[test]
    fn by_what_is_told_a_policy_has_the_propensities_that_were_published() {
        let mut random = Random::new(4);
        for (gamma, explore, len) in [
            (4.0, 0.1, 30),
            (1.0, 0.5, 12),
            (0.5, 0.2, 300),
            (2.0, 0.0, 6),
        ] {
            let policy = Policy {
                gamma,
                explore,
                ..Policy::default()
            };
            let counts = |nth: u32| SkuCounts {
                impressions: 40.0 * (nth % 3) as f32,
                purchases: 3.0 + (nth % 7) as f32,
                ..SkuCounts::default()
            };
            let shop: Vec<SkuCounts> = (0..len).map(counts).collect();
            let name = |user| shown_name(&mut random, user, &policy, &shop);
            let names: Vec<ShownName> = (0..400).map(name).collect();
            let question = Question {
                target: names[0].logged,
                window: 10,
                places: 5,
                how: Resampling {
                    seed: 1,
                    resamples: 1,
                },
            };
            let found = evaluate(&names, &question).expect("no propensity is another one");
            for place in &found.places {
                let most = (place.weight_max - 1.0)
                    .abs()
                    .max((place.weight_mean - 1.0).abs());
                assert!(most < 0.02, "{gamma} {explore}: {place:?}");
            }
        }
    }
}
