//! Selects the SKUs that a name shows, by a stochastic policy with known propensities.
//!
//! Each candidate has a weight ([`Contest::weights`]): its share, the probability that the user takes it
//! ([`crate::list::choice`]), to the power of [`Policy::gamma`], mixed with the probability that it is the best of its PU
//! by counts. Candidates of at least [`Policy::epsilon`] are open: they are placed in a Plackett-Luce order, without
//! replacement, by seeded Gumbel noise. Where fewer are open than [`Policy::top_k`], the next by share follow. Invariant:
//! a propensity is the probability over seeds of a SKU in its place, given the places before it; the same seed gives the
//! same choice; no SKU is twice under a name. It does not know stock nor rules: the caller passes permitted SKUs.
//!
//! Sources: Plackett 1975, "The Analysis of Permutations", doi:10.2307/2346567; sorting by log weight plus Gumbel noise
//! draws that order (Yellott 1977, doi:10.1016/0022-2496(77)90026-8). Thompson sampling (Thompson 1933, Biometrika 25)
//! plays the arm that is best in a draw of the posteriors; the share of draws that an arm wins is its probability of
//! being best (Scott 2010, doi:10.1002/asmb.874), which [`crate::list::best`] integrates.

use std::collections::BTreeMap;
use std::hash::Hasher;

use fnv::FnvHasher;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Least weight with which a SKU is open to chance; the others follow by share, without chance.
    pub epsilon: f64,
    /// SKUs shown per PU, while it has as many.
    pub top_k: usize,
    /// Power of the shares: the higher it is, the more surely the likeliest SKU comes first.
    pub gamma: f64,
    /// Part of the weight that goes by the probability of being the best by counts, of 1.
    pub explore: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            epsilon: 0.02,
            top_k: 5,
            gamma: 8.0,
            explore: 0.05,
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

/// A SKU that a name shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chosen {
    /// The SKU.
    pub sku: SkuIx,
    /// Probability over seeds that the name shows it in this place, given the places before.
    pub propensity: f64,
}

/// The SKUs of one PU that have a chance of being its best, and their chances: what a choice depends on beside its seed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contest {
    /// In the order of ids.
    skus: Vec<SkuIx>,
    /// The probability of each to be the best; they sum to 1.
    chances: Vec<f64>,
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
        Self {
            chances,
            skus: drawn.iter().map(|at| skus[*at].ix).collect(),
        }
    }

    /// Chooses the SKUs that a name shows of those in `ranked`: permitted SKUs with their shares, the likeliest first, each
    /// once.
    pub(crate) fn select(
        &self,
        ranked: &[(SkuIx, f32)],
        seed: u64,
        policy: &Policy,
    ) -> Vec<Chosen> {
        let top_k = policy.top_k.max(1);
        let weights = self.weights(ranked, policy);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // The place of each open SKU in `ranked`, its weight, and the logarithm of the weight plus noise.
        let open = weights.iter().enumerate().filter(|(_, it)| **it > 0.0);
        let mut open: Vec<(usize, f64, f64)> = open
            .map(|(at, weight)| (at, *weight, weight.ln() + gumbel(&mut random)))
            .collect();
        open.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
        // From the last one on, so that no digits cancel.
        let mut left = 0.0;
        let mut placed: Vec<Chosen> = Vec::with_capacity(open.len());
        for (at, weight, _) in open.iter().rev() {
            left += weight;
            placed.push(Chosen {
                sku: ranked[*at].0,
                propensity: weight / left,
            });
        }
        placed.reverse();
        placed.truncate(top_k);
        let rest = ranked.iter().zip(&weights).filter(|(_, it)| **it == 0.0);
        let rest = rest.map(|((sku, _), _)| Chosen {
            sku: *sku,
            propensity: 1.0,
        });
        let missing = top_k - placed.len();
        placed.extend(rest.take(missing));
        placed
    }

    /// The SKU that wins where the sum of chances passes `at`, from 0 to 1: one draw of Thompson sampling.
    pub(crate) fn draw(&self, at: f64) -> Option<SkuIx> {
        let mut sum = 0.0;
        let mut chances = self.skus.iter().zip(&self.chances);
        let passed = chances.find(|(_, chance)| {
            sum += **chance;
            at < sum
        });
        passed.map(|(sku, _)| *sku)
    }

    /// The probability of each SKU to be the best, of those that have a chance.
    pub(crate) fn best(&self) -> BTreeMap<SkuIx, f64> {
        let both = self.skus.iter().zip(&self.chances);
        both.map(|(sku, chance)| (*sku, *chance)).collect()
    }

    /// Weight of each SKU in `ranked`: (1 - explore) · share^gamma / Σ share^gamma + explore · P(best), either part 0 where
    /// the fraction or P(best) is under epsilon. A SKU of weight 0 is not open.
    pub(crate) fn weights(&self, ranked: &[(SkuIx, f32)], policy: &Policy) -> Vec<f64> {
        let most = ranked.iter().map(|it| f64::from(it.1)).fold(0.0, f64::max);
        let power = |share: f32| match most > 0.0 {
            true => (f64::from(share.max(0.0)) / most).powf(policy.gamma),
            false => 1.0,
        };
        let powers: Vec<f64> = ranked.iter().map(|it| power(it.1)).collect();
        let sum: f64 = powers.iter().sum();
        let best = self.best();
        let weight = |((sku, _), power): (&(SkuIx, f32), &f64)| {
            let best = best.get(sku).copied().unwrap_or_default();
            let open = |part: f64| if part >= policy.epsilon { part } else { 0.0 };
            (1.0 - policy.explore) * open(power / sum) + policy.explore * open(best)
        };
        ranked.iter().zip(&powers).map(weight).collect()
    }
}

/// A draw of the standard Gumbel distribution.
fn gumbel(random: &mut ChaCha8Rng) -> f64 {
    // In (0, 1]: the noise of 0 would be infinite.
    let uniform = 1.0 - random.random::<f64>();
    -(-(uniform.max(f64::MIN_POSITIVE)).ln())
        .max(f64::MIN_POSITIVE)
        .ln()
}

/// The probability of each SKU to be the best of its product, given the pieces bought of each; 0 for those that have no
/// chance, or less than the default epsilon.
pub fn best_chances(pieces: &[f32]) -> Vec<f64> {
    let ids: Vec<String> = (0..pieces.len()).map(|nth| format!("{nth:09}")).collect();
    let offered = pieces.iter().sum();
    let skus = (0..).map(SkuIx).zip(ids.iter().zip(pieces));
    let skus: Vec<Candidate<'_>> = skus
        .map(|(ix, (id, pieces))| Candidate {
            ix,
            id,
            counts: SkuCounts {
                purchases: *pieces,
                offered,
                ..SkuCounts::default()
            },
        })
        .collect();
    let Contest { skus, chances } = Contest::of(&skus);
    let mut all = vec![0.0; pieces.len()];
    let epsilon = Policy::default().epsilon;
    let kept = skus
        .iter()
        .zip(chances)
        .filter(|(_, chance)| *chance >= epsilon);
    kept.for_each(|(sku, chance)| all[sku.at()] = chance);
    all
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
/// An impression is a trial of its SKU. A purchase of the PU is a trial of each SKU that was on sale then, since each
/// could have been chosen. Clicks on impressions and purchases are successes. So without impressions the rates are shares
/// of purchases, and with more impressions these prevail gradually.
fn trials(counts: SkuCounts) -> (f64, f64) {
    let impressions = f64::from(counts.impressions.max(0.0));
    let clicks = f64::from(counts.clicks.max(0.0)).min(impressions);
    (
        clicks + f64::from(counts.purchases.max(0.0)),
        impressions + f64::from(counts.offered.max(counts.purchases).max(0.0)),
    )
}

fn posteriors(skus: &[Candidate<'_>]) -> Vec<Beta> {
    let observed: Vec<_> = skus.iter().map(|sku| trials(sku.counts)).collect();
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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn counts(impressions: f32, clicks: f32, purchases: f32) -> SkuCounts {
        SkuCounts {
            impressions,
            clicks,
            purchases,
            offered: 0.0,
        }
    }

    fn candidates<'a>(ids: &'a [String], of: &[SkuCounts]) -> Vec<Candidate<'a>> {
        let both = ids.iter().zip(of).enumerate();
        let offered = of.iter().map(|counts| counts.purchases).sum();
        both.map(|(at, (id, counts))| Candidate {
            ix: SkuIx(at as u32),
            id,
            counts: SkuCounts { offered, ..*counts },
        })
        .collect()
    }

    fn ids(len: usize) -> Vec<String> {
        (0..len).map(|n| format!("{n:04}")).collect()
    }

    /// SKUs with shares that fall from the first to the last.
    fn all(len: usize) -> Vec<(SkuIx, f32)> {
        let share = |nth: u32| 0.5f32.powi(nth as i32 / 2) / (1.0 + nth as f32);
        (0..len as u32)
            .map(|nth| (SkuIx(nth), share(nth)))
            .collect()
    }

    fn shown(chosen: &[Chosen]) -> Vec<u32> {
        chosen.iter().map(|chosen| chosen.sku.0).collect()
    }

    #[test]
    fn a_name_shows_as_many_skus_as_it_may_and_as_it_has() {
        let of = vec![counts(0.0, 0.0, 3.0); 9];
        let ids = ids(9);
        let contest = Contest::of(&candidates(&ids, &of));
        let policy = Policy::default();
        for len in 0..9 {
            let chosen = contest.select(&all(len), 3, &policy);
            assert_eq!(chosen.len(), len.min(5));
        }
    }

    #[test]
    fn without_chance_a_name_shows_the_likeliest_skus_in_their_order() {
        let ids = ids(9);
        let contest = Contest::of(&candidates(&ids, &[counts(0.0, 0.0, 3.0); 9]));
        let policy = Policy {
            gamma: 500.0,
            explore: 0.0,
            ..Policy::default()
        };
        let chosen = contest.select(&all(9), 3, &policy);
        assert_eq!(shown(&chosen), [0, 1, 2, 3, 4]);
        assert!(chosen.iter().all(|it| it.propensity == 1.0), "{chosen:?}");
    }

    #[test]
    fn skus_under_epsilon_are_never_drawn_and_fill_the_places_left_by_share() {
        let ids = ids(9);
        let mut of = vec![counts(500.0, 0.0, 3.0); 9];
        of[7] = counts(0.0, 0.0, 0.0);
        let contest = Contest::of(&candidates(&ids, &of));
        let mut ranked = all(9);
        ranked.iter_mut().skip(2).for_each(|it| it.1 *= 1e-3);
        let policy = Policy {
            epsilon: 0.13,
            gamma: 1.0,
            explore: 0.3,
            ..Policy::default()
        };
        let weights = contest.weights(&ranked, &policy);
        let (open, closed): (Vec<u32>, Vec<u32>) =
            (0..9).partition(|at| weights[*at as usize] > 0.0);
        assert!(
            open.contains(&0) && open.contains(&7),
            "{weights:?}: a likely one, and one of which nothing is known"
        );
        assert!((2..5).contains(&open.len()), "{weights:?}");
        for seed in 0..2_000 {
            let chosen = contest.select(&ranked, seed, &policy);
            let (drawn, filled) = chosen.split_at(open.len());
            let mut drawn = shown(drawn);
            drawn.sort_unstable();
            assert_eq!(
                (&drawn, &*shown(filled)),
                (&open, &closed[..5 - open.len()])
            );
            assert!(filled.iter().all(|it| it.propensity == 1.0));
        }
    }

    #[test]
    fn propensities_are_the_frequencies_of_a_million_seeds() {
        let of: Vec<SkuCounts> = (0..6u8)
            .map(|n| {
                counts(
                    40.0 * f32::from(n % 3),
                    f32::from(n),
                    3.0 + f32::from(n % 5),
                )
            })
            .collect();
        let ids = ids(6);
        let contest = Contest::of(&candidates(&ids, &of));
        for (top_k, epsilon, gamma, explore) in [
            (3, 0.0, 1.0, 0.2),
            (1, 0.02, 2.0, 0.0),
            (4, 0.1, 1.0, 1.0),
            (2, 0.02, 0.5, 0.5),
        ] {
            let policy = Policy {
                epsilon,
                top_k,
                gamma,
                explore,
            };
            // How often each order is shown, and the product of its propensities.
            let mut seen: BTreeMap<Vec<u32>, (f64, f64)> = BTreeMap::new();
            for seed in 0..1_000_000 {
                let chosen = contest.select(&all(6), seed, &policy);
                let told = chosen.iter().map(|it| it.propensity).product();
                let entry = seen.entry(shown(&chosen)).or_insert((0.0, told));
                entry.0 += 1e-6;
                assert!((entry.1 - told).abs() < 1e-12);
            }
            assert!(seen.len() > 1, "{}", seen.len());
            for (order, (share, told)) in &seen {
                // Five standard deviations of a share of a million.
                let error = 5.0 * (told * (1.0 - told) / 1e6).sqrt() + 2e-6;
                assert!((share - told).abs() <= error, "{order:?}: {share} {told}");
            }
            let sum: f64 = seen.values().map(|(_, told)| told).sum();
            assert!((sum - 1.0).abs() < 1e-3, "{sum}");
        }
    }

    #[test]
    fn a_sku_never_shown_is_explored_beside_poor_ones() {
        let ids = ids(6);
        let mut of = vec![counts(500.0, 5.0, 0.0); 6];
        of[5] = counts(0.0, 0.0, 0.0);
        let contest = Contest::of(&candidates(&ids, &of));
        let policy = Policy {
            explore: 0.2,
            ..Policy::default()
        };
        let first = (0..1_000).filter(|seed| contest.select(&all(6), *seed, &policy)[0].sku.0 == 5);
        assert!(first.count() > 20);
    }

    #[test]
    fn among_many_skus_only_the_most_promising_have_a_chance() {
        let ids = ids(500);
        let mut of = vec![counts(0.0, 0.0, 1.0); 500];
        of[400] = counts(0.0, 0.0, 90.0);
        of[450] = counts(0.0, 0.0, 80.0);
        let contest = Contest::of(&candidates(&ids, &of));
        let mut best: Vec<_> = contest.chances.iter().zip(&contest.skus).collect();
        best.sort_by(|a, b| b.0.total_cmp(a.0));
        assert_eq!((best[0].1.0, best[1].1.0), (400, 450));
        assert!(contest.skus.len() <= DRAWN_MAX);
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
        fn no_sku_is_twice_under_a_name_and_the_order_of_candidates_does_not_matter(
            of in some_counts(), seed in any::<u64>(), epsilon in 0.0f64..0.5, top_k in 0usize..8,
            gamma in 0.1f64..50.0, explore in 0.0f64..=1.0,
        ) {
            let ids = ids(of.len());
            let forward = candidates(&ids, &of);
            let contest = Contest::of(&forward);
            let sum: f64 = contest.chances.iter().sum();
            prop_assert!(of.is_empty() || (sum - 1.0).abs() < 1e-9);
            let mut backward = forward.clone();
            backward.reverse();
            let policy = Policy { epsilon, top_k, gamma, explore };
            let ranked = all(of.len());
            let chosen = contest.select(&ranked, seed, &policy);
            prop_assert_eq!(&chosen, &Contest::of(&backward).select(&ranked, seed, &policy));
            prop_assert_eq!(chosen.len(), of.len().min(top_k.max(1)));
            let mut skus = shown(&chosen);
            skus.sort_unstable();
            skus.dedup();
            prop_assert_eq!(skus.len(), chosen.len());
            prop_assert!(chosen.iter().all(|it| it.propensity > 0.0 && it.propensity <= 1.0));
        }
    }
}
