//! Ways to choose the SKUs of a list: ours, and those that it is compared with.
//!
//! Invariant: a way sees counts, stock and the user's own purchases, and the same seed gives the same list.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution};

use super::shelf::Shelf;
use crate::learn::choice::{Candidates, ChoiceModel, OwnPurchase};
use crate::list::select::{Candidate, Contest, Policy};
use crate::shop::catalogue::SkuIx;

/// Places of epsilon-greedy that are drawn among all SKUs.
const EPSILON: f64 = 0.1;

/// A way to choose SKUs.
#[derive(Clone, Debug, PartialEq)]
pub enum Way {
    /// The policy of production: shares and the probability of being the best, by chance.
    Ours {
        /// Its settings.
        policy: Policy,
    },
    /// By the user's shares, without chance.
    Shares,
    /// By shares but for the last place, which goes to a SKU with the probability that it is the best one.
    LastPlace,
    /// By the rate so far, without chance.
    Greedy,
    /// By the rate so far; one place in ten is drawn among all.
    EpsilonGreedy,
    /// By the upper confidence bound of the rate (UCB1; Auer et al. 2002, doi:10.1023/A:1013689704352).
    Ucb,
    /// By a draw of each rate's posterior after a Beta(1, 1) prior (Thompson 1933; Chapelle and Li 2011).
    Thompson,
}

/// What a way knows of the product and the user.
pub(crate) struct Known<'a> {
    /// The product.
    pub shelf: &'a Shelf,
    /// SKUs in stock.
    pub stocked: &'a [usize],
    /// The user's purchases of the product that are known, newest first: SKU and age in days.
    pub own: &'a [(usize, u32)],
    /// Of the SKUs in stock, as the day began.
    pub contest: &'a Contest,
    /// How many SKUs are shown.
    pub top_k: usize,
}

impl Way {
    /// All ways but ours.
    pub fn others() -> Vec<Self> {
        let others = [Self::Shares, Self::LastPlace, Self::Greedy];
        others
            .into_iter()
            .chain([Self::EpsilonGreedy, Self::Ucb, Self::Thompson])
            .collect()
    }

    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Self::Ours { policy } => format!("gamma {}, explore {}", policy.gamma, policy.explore),
            Self::Shares => "shares, no exploration".into(),
            Self::LastPlace => "shares, last place explores".into(),
            Self::Greedy => "greedy by rate".into(),
            Self::EpsilonGreedy => "epsilon-greedy by rate".into(),
            Self::Ucb => "UCB1 of the rate".into(),
            Self::Thompson => "Thompson, Beta(1, 1)".into(),
        }
    }

    /// The SKUs that are shown, in their order.
    pub(crate) fn choose(&self, known: &Known<'_>, random: &mut ChaCha8Rng) -> Vec<usize> {
        match self {
            Self::Ours { policy } => {
                let ranked = known.shares();
                let ranked: Vec<(SkuIx, f32)> = ranked
                    .into_iter()
                    .map(|(at, share)| (SkuIx(at as u32), share))
                    .collect();
                let policy = Policy {
                    top_k: known.top_k,
                    ..policy.clone()
                };
                let chosen = known.contest.select(&ranked, random.random(), &policy);
                chosen.into_iter().map(|chosen| chosen.sku.at()).collect()
            }
            Self::Shares => known.top(known.shares()),
            Self::LastPlace => {
                let ranked: Vec<usize> = known.shares().into_iter().map(|it| it.0).collect();
                let places = known.top_k.min(ranked.len());
                let mut shown = ranked[..places].to_vec();
                let best = known.contest.draw(random.random()).map(SkuIx::at);
                if let (Some(last), Some(best)) = (places.checked_sub(1), best)
                    && !shown.contains(&best)
                {
                    shown[last] = best;
                }
                shown
            }
            Self::Greedy => known.top(known.by(|yes, all, _| yes / all)),
            Self::EpsilonGreedy => {
                let mut left: Vec<usize> = known
                    .by(|yes, all, _| yes / all)
                    .into_iter()
                    .map(|it| it.0)
                    .collect();
                let places = known.top_k.min(left.len());
                let next = |_| {
                    let all: Vec<usize> = (0..left.len()).collect();
                    let drawn = random
                        .random_bool(EPSILON)
                        .then(|| all.choose(random))
                        .flatten();
                    left.remove(drawn.copied().unwrap_or(0))
                };
                (0..places).map(next).collect()
            }
            Self::Ucb => {
                let bound = |yes: f64, all: f64, tries: f64| {
                    yes / all + (2.0 * tries.ln().max(0.0) / all).sqrt()
                };
                known.top(known.by(bound))
            }
            Self::Thompson => known.top(known.by(|yes, all, _| {
                let beta = Beta::new(yes, (all - yes).max(1.0));
                beta.map_or(0.0, |beta| beta.sample(random))
            })),
        }
    }
}

impl Known<'_> {
    /// The user's shares of the SKUs in stock by the built-in choice model, the highest first.
    fn shares(&self) -> Vec<(usize, f32)> {
        let place = |sku: usize| self.stocked.iter().position(|at| *at == sku);
        let own = self.own.iter().map(|(sku, days)| OwnPurchase {
            place: place(*sku).map(|place| place as u32),
            days: *days as f32,
        });
        let candidates = Candidates {
            demand: self.stocked.iter().map(|at| self.shelf.logs(*at)).collect(),
            prices: vec![f32::NAN; self.stocked.len()],
            own: own.collect(),
            attributes: Vec::new(),
        };
        let shares = ChoiceModel::default().shares(&candidates);
        let mut ranked: Vec<(usize, f32)> = self.stocked.iter().copied().zip(shares).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked
    }

    /// SKUs by a number made of their successes and trials after a Beta(1, 1) prior, and of all trials.
    fn by(&self, mut number: impl FnMut(f64, f64, f64) -> f64) -> Vec<(usize, f64)> {
        let counts = |at: &usize| self.shelf.skus[*at].counts;
        let trials = |at: &usize| f64::from(counts(at).impressions + counts(at).offered) + 2.0;
        let tries = self.stocked.iter().map(trials).sum();
        let of = |at: &usize| {
            let yes = f64::from(counts(at).clicks + counts(at).purchases) + 1.0;
            (*at, number(yes.min(trials(at) - 1.0), trials(at), tries))
        };
        let mut ranked: Vec<(usize, f64)> = self.stocked.iter().map(of).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked
    }

    fn top<T>(&self, ranked: Vec<(usize, T)>) -> Vec<usize> {
        ranked.into_iter().take(self.top_k).map(|it| it.0).collect()
    }

    /// What [`Contest::of`] reads of the SKUs in stock.
    pub(crate) fn contest(shelf: &Shelf, stocked: &[usize], ids: &[String]) -> Contest {
        let candidate = |at: &usize| Candidate {
            ix: SkuIx(*at as u32),
            id: &ids[*at],
            counts: shelf.skus[*at].counts,
        };
        Contest::of(&stocked.iter().map(candidate).collect::<Vec<_>>())
    }
}
