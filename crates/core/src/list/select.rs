//! Selects the SKUs of a product by EE(pu, sku): the probability that a SKU is the best of its PU, given counts and
//! prior.
//!
//! Invariant: the propensities of a PU's candidates sum to 1; the same seed gives the same choice, whatever the order
//! of candidates; a PU with a candidate always keeps one. It does not know stock nor rules: the caller passes permitted
//! SKUs.
//!
//! Sources: Thompson sampling (Thompson 1933, Biometrika 25) draws one posterior sample per arm and plays the best; the
//! share of draws that an arm wins is its probability of being best (Scott 2010, "A modern Bayesian look at the
//! multi-armed bandit", doi:10.1002/asmb.874), used here both as propensity and as threshold.
//!
//! The winners of seeded draws are drawn by their probabilities, which [`crate::list::best`] integrates. They have the
//! same distribution as drawing all posteriors each time, which took 33 ms of a core per list of 20 PUs with 64 SKUs.

use std::hash::Hasher;

use fnv::FnvHasher;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::list::best::{Beta, chances};
use crate::shop::catalogue::{PuIx, SkuIx};
use crate::shop::demand::SkuCounts;
use crate::user::record::Fences;

/// Most candidates of a PU with a chance. The rest get EE 0: those with the lowest posterior mean plus two standard
/// deviations. Among thousands of SKUs without counts, these are the ids that sort last; epsilon would leave out nearly
/// all of them too, as 1/64 is below its default.
const DRAWN_MAX: usize = 64;

/// Pseudo-successes of the prior if the PU's SKUs do not show how much they differ. The posterior of a SKU without
/// counts then has a standard deviation of about its mean.
const WEAK: f64 = 1.0;

/// Most pseudo-successes of a fitted prior: SKUs with similar counts may still differ.
const STRONG: f64 = 100.0;

/// Settings of the selection of SKUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Least probability of being the best with which a SKU is kept.
    pub epsilon: f64,
    /// Most SKUs kept per PU.
    pub top_k: usize,
    /// Seeded draws per PU.
    pub draws: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            epsilon: 0.02,
            top_k: 5,
            draws: 256,
        }
    }
}

/// A SKU that may be shown, with its counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate<'a> {
    /// The SKU.
    pub ix: SkuIx,
    /// Its id, by which order and ties are decided.
    pub id: &'a str,
    /// Its decayed counts.
    pub counts: SkuCounts,
}

/// A SKU with its probability of being the best of its PU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chosen {
    /// The SKU.
    pub sku: SkuIx,
    /// EE(pu, sku), a multiple of 1/draws.
    pub ee: f64,
}

/// SKUs chosen from a PU.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selection {
    /// Best first; at least one if there was a candidate.
    pub chosen: Vec<Chosen>,
    /// Whether no candidate reached epsilon and the best one was kept, because a PU is never shown without a SKU.
    pub below_epsilon: bool,
}

/// The SKUs of one PU that have a chance of being its best, and their chances: what a choice depends on beside its seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contest {
    /// In the order of ids.
    skus: Vec<SkuIx>,
    /// Sums of the chances of each and those before it.
    upto: Vec<f64>,
}

impl Contest {
    /// Weighs the candidates. It is what a choice costs: a draw from it takes a hundredth of the time.
    pub(crate) fn of(skus: &[Candidate<'_>]) -> Self {
        let mut skus = skus.to_vec();
        skus.sort_by(|a, b| a.id.cmp(b.id));
        let posteriors = posteriors(&skus);
        let drawn = contenders(&posteriors);
        let chances = match drawn[..] {
            [] => Vec::new(),
            [_] => vec![1.0],
            _ => {
                let betas: Vec<_> = drawn.iter().map(|at| posteriors[*at]).collect();
                chances(&betas)
            }
        };
        let mut sum = 0.0;
        let upto = chances.into_iter().map(|chance| {
            sum += chance;
            sum
        });
        Self {
            upto: upto.collect(),
            skus: drawn.iter().map(|at| skus[*at].ix).collect(),
        }
    }

    /// Chooses SKUs: EE >= epsilon, at most top_k, best first, ties by id.
    pub(crate) fn select(&self, seed: u64, policy: &Policy) -> Selection {
        let mut chosen = self.best(seed, policy.draws);
        let first = chosen.first().copied();
        chosen.retain(|chosen| chosen.ee >= policy.epsilon);
        chosen.truncate(policy.top_k.max(1));
        let below_epsilon = chosen.is_empty() && first.is_some();
        if below_epsilon {
            chosen.extend(first);
        }
        Selection {
            chosen,
            below_epsilon,
        }
    }

    /// Computes EE of the SKUs with a chance, which sum to 1. Best first, ties by id.
    fn best(&self, seed: u64, draws: usize) -> Vec<Chosen> {
        let draws = draws.max(1);
        let mut wins = vec![0usize; self.skus.len()];
        if let [only] = &mut wins[..] {
            *only = draws;
        } else if !wins.is_empty() {
            let last = wins.len() - 1;
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            for _ in 0..draws {
                let at: f64 = random.random();
                // The sum may end slightly below 1.
                let winner = self.upto.partition_point(|upto| *upto <= at);
                wins[winner.min(last)] += 1;
            }
        }
        let mut chosen: Vec<_> = self
            .skus
            .iter()
            .zip(&wins)
            .map(|(sku, wins)| Chosen {
                sku: *sku,
                ee: *wins as f64 / draws as f64,
            })
            .collect();
        // A stable sort: equal candidates stay in the order of ids.
        chosen.sort_by(|a, b| b.ee.total_cmp(&a.ee));
        chosen
    }
}

/// The contests of all SKUs in stock of each PU, for users whose rules forbid no part of it.
///
/// A snapshot's catalogue and counts never change, so each is computed once, when a list first needs it.
#[expect(
    clippy::disallowed_types,
    reason = "a value that is computed late, of an immutable snapshot: no global"
)]
#[derive(Debug, Default)]
pub(crate) struct Contests(Vec<std::sync::OnceLock<Contest>>);

impl Contests {
    /// None computed yet, for so many PUs.
    pub(crate) fn new(pus: usize) -> Self {
        Self((0..pus).map(|_| Default::default()).collect())
    }

    /// The contest of a PU, computed by `make` if it is the first time; `None` if the PU is newer.
    pub(crate) fn get(&self, pu: PuIx, make: impl FnOnce() -> Contest) -> Option<&Contest> {
        self.0.get(pu.at()).map(|contest| contest.get_or_init(make))
    }
}

/// Seed of the choice for one user, PU and claim number: FNV-1a, 64 bits, of the three.
pub(crate) fn seed(user: &str, pu: &str, claim: u64) -> u64 {
    let mut hash = FnvHasher::default();
    // As bytes, with separators of our own: `Hash` of a string promises no stable bytes.
    hash.write(user.as_bytes());
    hash.write(&[0]);
    hash.write(pu.as_bytes());
    hash.write(&[0]);
    hash.write(&claim.to_le_bytes());
    hash.finish()
}

/// Replaces the claim number in [`seed`] where a list depends on its seen offsets alone: FNV-1a, 64 bits, of their
/// text.
pub(crate) fn draw(seen: &Fences) -> u64 {
    let mut hash = FnvHasher::default();
    hash.write(seen.to_string().as_bytes());
    hash.finish()
}

/// Successes and trials of one SKU.
///
/// An impression is a trial of its SKU. A purchase of the PU is a trial of each of its SKUs, since each could have been
/// chosen. Clicks on impressions and purchases are successes. So without impressions the rates are shares of purchases,
/// and with more impressions these prevail gradually.
fn trials(counts: SkuCounts, bought: f64) -> (f64, f64) {
    let impressions = f64::from(counts.impressions.max(0.0));
    let clicks = f64::from(counts.clicks.max(0.0)).min(impressions);
    (
        clicks + f64::from(counts.purchases.max(0.0)),
        impressions + bought,
    )
}

fn posteriors(skus: &[Candidate<'_>]) -> Vec<Beta> {
    let bought = skus
        .iter()
        .map(|sku| f64::from(sku.counts.purchases.max(0.0)))
        .sum();
    let observed: Vec<_> = skus.iter().map(|sku| trials(sku.counts, bought)).collect();
    let prior = prior(&observed);
    observed
        .iter()
        .map(|(yes, all)| Beta {
            yes: prior.yes + yes,
            no: prior.no + (all - yes).max(0.0),
        })
        .collect()
}

/// Fits a prior for the SKUs of one PU by the method of moments: the mean of all trials, and as many pseudo-trials as
/// explain the differences of rates between SKUs beyond chance. Weak if the SKUs do not show differences.
fn prior(observed: &[(f64, f64)]) -> Beta {
    let tried: Vec<_> = observed.iter().filter(|(_, all)| *all > 0.0).collect();
    let (yes, all) = tried
        .iter()
        .fold((0.0, 0.0), |(y, a), (yes, all)| (y + yes, a + all));
    // Laplace's rule keeps the mean away from 0 and 1.
    let mean = (yes + 1.0) / (all + 2.0);
    let wide = mean * (1.0 - mean);
    let len = tried.len() as f64;
    let mut spread = 0.0;
    let mut chance = 0.0;
    for (yes, all) in &tried {
        spread += (yes / all - mean).powi(2) / (len - 1.0).max(1.0);
        chance += wide / all / len;
    }
    let between = spread - chance;
    // With fewer than two pseudo-trials nearly all draws would be 0 or 1.
    let weak = (WEAK / mean).max(2.0);
    let strength = if tried.len() >= 2 && between > 0.0 {
        (wide / between - 1.0).clamp(2.0, weak.max(STRONG / mean))
    } else {
        weak
    };
    Beta {
        yes: mean * strength,
        no: (1.0 - mean) * strength,
    }
}

/// Indices of the candidates that have a chance, ascending, at most [`DRAWN_MAX`].
///
/// A candidate has none if its mean plus four standard deviations is below the highest mean minus four: it would win
/// less than one in 10^4 draws.
fn contenders(posteriors: &[Beta]) -> Vec<usize> {
    let bound = |at: usize, by: f64| posteriors[at].mean() + by * posteriors[at].deviation();
    let floor = (0..posteriors.len())
        .map(|at| bound(at, -4.0))
        .fold(f64::MIN, f64::max);
    let mut drawn: Vec<usize> = (0..posteriors.len())
        .filter(|at| bound(*at, 4.0) >= floor)
        .collect();
    if drawn.len() > DRAWN_MAX {
        drawn.sort_by(|a, b| bound(*b, 2.0).total_cmp(&bound(*a, 2.0)));
        drawn.truncate(DRAWN_MAX);
        drawn.sort_unstable();
    }
    drawn
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(impressions: f32, clicks: f32, purchases: f32) -> SkuCounts {
        SkuCounts {
            impressions,
            clicks,
            purchases,
        }
    }

    fn candidates<'a>(ids: &'a [String], of: &[SkuCounts]) -> Vec<Candidate<'a>> {
        let both = ids.iter().zip(of).enumerate();
        both.map(|(at, (id, counts))| Candidate {
            ix: SkuIx(at as u32),
            id,
            counts: *counts,
        })
        .collect()
    }

    fn ids(len: usize) -> Vec<String> {
        (0..len).map(|n| format!("{n:04}")).collect()
    }

    fn check(of: &[SkuCounts], expected: &[u32]) {
        let ids = ids(of.len());
        let selection = Contest::of(&candidates(&ids, of)).select(7, &Policy::default());
        let chosen: Vec<_> = selection.chosen.iter().map(|chosen| chosen.sku.0).collect();
        assert_eq!(chosen, expected, "{selection:?}");
    }

    #[test]
    fn clearly_better_skus_are_chosen_and_clearly_worse_left_out() {
        check(&[], &[]);
        check(&[counts(0.0, 0.0, 0.0)], &[0]);
        check(&[counts(0.0, 0.0, 2.0), counts(0.0, 0.0, 400.0)], &[1]);
        check(
            &[
                counts(900.0, 9.0, 0.0),
                counts(900.0, 90.0, 0.0),
                counts(900.0, 8.0, 0.0),
            ],
            &[1],
        );
    }

    #[test]
    fn a_sku_never_shown_keeps_a_chance_beside_poor_ones() {
        let ids = ids(3);
        let of = [
            counts(500.0, 5.0, 0.0),
            counts(0.0, 0.0, 0.0),
            counts(500.0, 6.0, 0.0),
        ];
        let ees = Contest::of(&candidates(&ids, &of)).best(1, 4096);
        let new = ees
            .iter()
            .find(|chosen| chosen.sku.0 == 1)
            .expect("all are there");
        assert!(new.ee > 0.2, "{ees:?}");
    }

    #[test]
    fn a_pu_without_counts_keeps_one_sku() {
        let ids = ids(3000);
        let of = vec![SkuCounts::default(); 3000];
        let policy = Policy {
            epsilon: 0.3,
            ..Policy::default()
        };
        let selection = Contest::of(&candidates(&ids, &of)).select(5, &policy);
        assert!(selection.below_epsilon);
        assert_eq!(selection.chosen.len(), 1);
    }

    #[test]
    fn among_many_skus_only_the_most_promising_have_a_chance() {
        let ids = ids(500);
        let mut of = vec![counts(0.0, 0.0, 1.0); 500];
        of[400] = counts(0.0, 0.0, 90.0);
        of[450] = counts(0.0, 0.0, 80.0);
        let ees = Contest::of(&candidates(&ids, &of)).best(2, 256);
        assert_eq!((ees[0].sku.0, ees[1].sku.0), (400, 450), "{:?}", &ees[..3]);
        assert!(ees.iter().filter(|chosen| chosen.ee > 0.0).count() <= DRAWN_MAX);
    }

    #[test]
    fn seeds_are_published_fnv_hashes() {
        let fnv = |parts: &[&str]| {
            let mut hash = FnvHasher::default();
            parts.iter().for_each(|part| hash.write(part.as_bytes()));
            hash.finish()
        };
        assert_eq!(fnv(&[""]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(&["foo", "bar"]), 0x8594_4171_f739_67e8);
        assert_eq!(seed("2375", "MILK", 17), 0x91b9_4a85_b5e8_ca0a);
        assert_eq!(
            draw(&"0/t/0:5".parse().expect("fences")),
            0x362e_6716_218f_4ff2
        );
        assert_ne!(seed("ab", "c", 1), seed("a", "bc", 1));
        assert_ne!(seed("a", "b", 1), seed("a", "b", 2));
    }

    fn some_counts() -> impl Strategy<Value = Vec<SkuCounts>> {
        let one = (
            0.0f32..1e4,
            0.0f32..1e3,
            prop_oneof![Just(0.0f32), 0.0f32..1e5],
        );
        prop::collection::vec(one.prop_map(|(i, c, p)| counts(i, c, p)), 0..100)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn propensities_sum_to_one_and_order_does_not_matter(
            of in some_counts(), seed in any::<u64>(), epsilon in 0.0f64..0.5, top_k in 0usize..8,
        ) {
            let ids = ids(of.len());
            let forward = candidates(&ids, &of);
            let ees = Contest::of(&forward).best(seed, 100);
            let sum: f64 = ees.iter().map(|chosen| chosen.ee).sum();
            prop_assert!(of.is_empty() || (sum - 1.0).abs() < 1e-9);
            let mut backward = forward.clone();
            backward.reverse();
            prop_assert_eq!(&ees, &Contest::of(&backward).best(seed, 100));
            let policy = Policy { epsilon, top_k, draws: 100 };
            let selection = Contest::of(&forward).select(seed, &policy);
            prop_assert_eq!(selection.chosen.is_empty(), of.is_empty());
            prop_assert!(selection.chosen.len() <= top_k.max(1));
            prop_assert!(selection.chosen.iter().all(|chosen| chosen.ee >= epsilon) || selection.below_epsilon);
            prop_assert!(selection.chosen.is_sorted_by(|a, b| a.ee >= b.ee));
        }
    }
}
