//! Which cases weights are fitted to: [`samples`].
//!
//! Invariant: the samples depend on log, options and seed alone, and no more of them are in memory than are kept and
//! than some users make. It does not know what is fitted to them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use nearshore_core::learn::gate::Sample;
use nearshore_core::learn::split::uniform;
use nearshore_core::list::terms::{BUCKETS, bucket_of, table};
use nearshore_core::user::record::Timestamp;
use rayon::prelude::*;
use serde::Serialize;

use super::{AlignOptions, Among, Has, Taught, cases_of, fitted_terms, of_fold, taught};
use crate::config::Config;
use crate::ops::evaluate::{Case, History};

/// Samples of a bucket that are made of any catalogue, however large.
const SAMPLES_MIN: usize = 300;

/// The term that says how much a product is in demand.
const DEMAND: &str = "demand";

/// Users whose cases are in memory at once.
const USERS_AT_ONCE: usize = 64;

/// Which cases the weights are fitted to, beside a sample of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Selection {
    /// Most samples of one user in a bucket; `None`: one for each cut.
    pub(crate) per_user: Option<usize>,
    /// How much more rare targets count: by their share of demand to the power of minus this. 0: all the same.
    pub(crate) tail_weight: f64,
    /// Whether cases of one cut with equal segment, products bought and targets count once.
    pub(crate) dedup: bool,
}

/// A case that is kept.
struct Kept {
    /// Cases of the smallest are kept.
    key: f64,
    /// Equal for cases that are the same.
    twin: u64,
    sample: Sample,
}

/// The cases that are kept of a bucket.
#[derive(Default)]
struct Bucket {
    kept: Vec<Kept>,
    /// Cases of this key or a larger one are not kept any more.
    limit: Option<f64>,
}

impl Bucket {
    fn may_keep(&self, key: f64) -> bool {
        self.limit.is_none_or(|limit| key < limit)
    }

    /// Drops what is not kept.
    fn prune(&mut self, selection: Selection, most: usize) {
        // A sample of the whole, whatever the order in which it came.
        self.kept.sort_by(|a, b| a.key.total_cmp(&b.key));
        if selection.dedup {
            let mut known = BTreeSet::new();
            self.kept.retain(|it| known.insert(it.twin));
        }
        if let Some(per_user) = selection.per_user {
            let mut of_user: BTreeMap<u32, usize> = BTreeMap::new();
            self.kept.retain(|it| {
                let known = of_user.entry(it.sample.user).or_default();
                *known += 1;
                *known <= per_user
            });
        }
        self.kept.truncate(most);
        let is_full = self.kept.len() == most;
        self.limit = self.kept.last().filter(|_| is_full).map(|last| last.key);
    }
}

/// The samples of each bucket of visible history.
pub(super) fn samples(
    history: &History,
    config: &Config,
    (options, among): (&AlignOptions, &Among<'_>),
    cuts: &[Timestamp],
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<[Vec<Sample>; BUCKETS.len()]> {
    let mut buckets: [Bucket; BUCKETS.len()] = Default::default();
    let products = history.catalogue.pus().len().max(1);
    let most = (options.scores_max / products).max(SAMPLES_MIN);
    for (nth_cut, cut) in cuts.iter().enumerate() {
        for held_out in 0..options.folds {
            let taught = taught(history, config, (options, among), (*cut, held_out))?;
            for users in of_fold(options, among, held_out).chunks(USERS_AT_ONCE) {
                let cases = cases_of(config, (options, &taught), users)?;
                let made: Vec<(usize, Kept)> = cases
                    .par_iter()
                    .filter_map(|case| {
                        let id = &among.users[case.user as usize].id.0;
                        let key = format!("{id} {nth_cut} {}", case.own.len());
                        let key = uniform(options.seed, &key);
                        let bucket = bucket_of(case.own.len());
                        let made = || Kept {
                            key,
                            twin: twin(case, nth_cut),
                            sample: sample(case, &taught, (held_out, options.selection)),
                        };
                        buckets[bucket].may_keep(key).then(|| (bucket, made()))
                    })
                    .collect();
                for (bucket, kept) in made {
                    buckets[bucket].kept.push(kept);
                }
                for bucket in &mut buckets {
                    bucket.prune(options.selection, most);
                }
            }
            progress("samples");
        }
    }
    Ok(buckets.map(|bucket| bucket.kept.into_iter().map(|it| it.sample).collect()))
}

/// Equal for cases of one cut with equal segment, products bought and targets.
fn twin(case: &Case, nth_cut: usize) -> u64 {
    let mut own: Vec<u32> = case.own.iter().map(|own| own.pu).collect();
    own.sort_unstable();
    let mut hasher = DefaultHasher::new();
    (nth_cut, &case.segment, own, &case.targets).hash(&mut hasher);
    hasher.finish()
}

/// What the terms say of a case. Terms of which nothing is known are 0 for every product.
fn sample(case: &Case, taught: &Taught, (held_out, selection): (usize, Selection)) -> Sample {
    let input = case.input(&taught.shop, &taught.learned);
    let has = Has {
        vectors: taught.shop.texts.is_some(),
        table: taught.shop.table.is_some(),
        matcher: taught.shop.meaning.is_some(),
    };
    let terms = fitted_terms(has);
    let named = terms.map(|term| {
        let values = match term.values(&input) {
            Some(values) => table(values, taught.zeros.len()),
            None => Arc::clone(&taught.zeros),
        };
        (term.name(), values)
    });
    let named: Vec<(&str, Arc<[f32]>)> = named.collect();
    let demand = named.iter().find(|(name, _)| *name == DEMAND);
    let weighs = demand.filter(|_| selection.tail_weight != 0.0);
    let shares = weighs.map(|(_, demand)| shares(&case.targets, demand, selection.tail_weight));
    Sample {
        user: case.user,
        fold: held_out,
        values: named.into_iter().map(|(_, values)| values).collect(),
        targets: case.targets.clone(),
        shares,
    }
}

/// How much each target counts: more, the less it is in demand.
fn shares(targets: &[u32], demand: &[f32], power: f64) -> Vec<f64> {
    let log = |target: &u32| -power * f64::from(demand[*target as usize]);
    let most = targets.iter().map(log).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = targets.iter().map(|it| (log(it) - most).exp()).collect();
    let all: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(key: f64, user: u32, twin: u64) -> Kept {
        let sample = Sample {
            user,
            fold: 0,
            values: Vec::new(),
            targets: Vec::new(),
            shares: None,
        };
        Kept { key, twin, sample }
    }

    fn keys(kept: Vec<Kept>, selection: Selection, most: usize) -> Vec<f64> {
        let mut bucket = Bucket { kept, limit: None };
        bucket.prune(selection, most);
        bucket.kept.iter().map(|it| it.key).collect()
    }

    #[test]
    fn the_smallest_keys_are_kept_with_a_cap_and_without_twins() {
        let all = || {
            vec![
                kept(0.4, 1, 7),
                kept(0.1, 1, 8),
                kept(0.3, 1, 9),
                kept(0.2, 2, 8),
            ]
        };
        let plain = Selection::default();
        assert_eq!(keys(all(), plain, 3), [0.1, 0.2, 0.3]);
        let capped = Selection {
            per_user: Some(2),
            ..plain
        };
        assert_eq!(keys(all(), capped, 9), [0.1, 0.2, 0.3]);
        let once = Selection {
            dedup: true,
            ..plain
        };
        assert_eq!(keys(all(), once, 9), [0.1, 0.3, 0.4]);
    }

    #[test]
    fn a_rare_target_counts_more_and_all_together_count_1() {
        let demand = [0.5f32.ln(), 0.125f32.ln()];
        let found = shares(&[0, 1], &demand, 0.5);
        assert!((found[1] / found[0] - 2.0).abs() < 1e-6, "{found:?}");
        assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let same = shares(&[0, 1], &demand, 0.0);
        assert_eq!(same, [0.5, 0.5]);
    }
}
