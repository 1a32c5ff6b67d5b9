//! The model's part of `nearshore align`: reference prompts, and the model's weight in each bucket.
//!
//! Invariant: a model is asked about users of whom no table and no other weight has seen what comes after the cut, and
//! by reference prompts with as much visible history as theirs. It does not know how other weights are fitted.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use nearshore_core::learn::gate::GateOptions;
use nearshore_core::learn::model::{ModelFit, ModelSample, fit_model};
use nearshore_core::learn::split::uniform;
use nearshore_core::list::prompt::{Calibrations, Frozen, references};
use nearshore_core::list::terms::{BUCKETS, MODEL, bucket_of, mixture};
use nearshore_core::user::record::Timestamp;
use nearshore_engine::thread::Handle;

use super::align::{AlignOptions, Among, Fitted, TUNE_USERS_MIN, Taught, taught, visible_cases};
use super::arms::Modelled;
use super::references::Population;
use super::{Case, History};
use crate::config::Config;
use crate::members::generate::{LoadedArm, Ranking};

/// Cases of which the model is asked before the progress is told.
const BATCH: usize = 8;

/// Which model is asked, and about how many.
#[derive(Clone, Debug)]
pub(crate) struct ModelOptions {
    /// Arm whose model, template and limits are used.
    pub(crate) arm: String,
    /// Most users of a bucket.
    pub(crate) users: usize,
}

/// Weights of the model, and the prompts that they belong to.
pub(super) struct FittedModel {
    pub(super) fits: BTreeMap<usize, ModelFit>,
    /// Text of the reference prompts of the buckets with a weight.
    pub(super) references: Option<String>,
}

/// Fits the model's weight in each bucket, beside the weights of `fitted`.
pub(super) fn fit_weights(
    history: &History,
    config: &Config,
    (options, among): (&AlignOptions, &Among<'_>),
    (model, fitted): (&ModelOptions, &Fitted),
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<FittedModel> {
    let (modelled, frozen) = load(history, config, (options, among), model)?;
    let mut samples: [Vec<ModelSample>; BUCKETS.len()] = Default::default();
    for held_out in 0..options.folds {
        let cut = Timestamp(among.until.0 - options.window);
        let taught = taught(history, config, (options, among), (cut, held_out))?;
        let cases = visible_cases(config, (options, among), (&taught, held_out))?;
        let each = model.users.div_ceil(options.folds);
        for (bucket, cases) in chosen(among, options, cases, each) {
            for batch in cases.chunks(BATCH) {
                let cases: Vec<&Case> = batch.iter().collect();
                let answers = modelled.every_name(&cases, &taught.shop)?;
                let found = cases.iter().zip(answers).filter_map(|(case, answer)| {
                    sample((case, &answer), (&taught, fitted), held_out)
                });
                samples[bucket].extend(found);
                progress("the model");
            }
        }
    }
    let gate = GateOptions {
        folds: options.folds,
        users_min: TUNE_USERS_MIN,
        seed: options.seed,
    };
    let fits: BTreeMap<usize, ModelFit> = BUCKETS
        .into_iter()
        .zip(&samples)
        .map(|(least, samples)| (least, fit_model(samples, &gate)))
        .collect();
    let used = |least: &usize| fits[least].weight().is_some();
    let used: BTreeMap<usize, Frozen> = frozen.into_iter().filter(|(it, _)| used(it)).collect();
    Ok(FittedModel {
        references: (!used.is_empty()).then(|| references(&used)),
        fits,
    })
}

/// The most batches that a model is asked.
pub(crate) fn batches(users: usize, folds: usize) -> usize {
    users.div_ceil(folds).div_ceil(BATCH) * folds * BUCKETS.len()
}

/// An arm with its model, of which only that is asked: without artefact, references and other terms.
pub(crate) fn model_of(config: &Config, id: &str) -> anyhow::Result<LoadedArm<Handle>> {
    let arm = config.arms.iter().find(|arm| arm.id == id);
    let mut arm = arm
        .with_context(|| {
            let known: Vec<&str> = config.arms.iter().map(|arm| arm.id.as_str()).collect();
            format!("--arm {id:?} is not one of [[arms]]: {known:?}")
        })?
        .clone();
    arm.weights = [(MODEL.to_owned(), 1.0)].into();
    (arm.artefact, arm.calibration) = (None, None);
    let alone = Config {
        arms: vec![arm],
        ..config.clone()
    };
    Ok(crate::run::load_arms(&alone)?.remove(0))
}

/// The arm with its model and a set of reference prompts per bucket.
fn load(
    history: &History,
    config: &Config,
    (options, among): (&AlignOptions, &Among<'_>),
    model: &ModelOptions,
) -> anyhow::Result<(Modelled, BTreeMap<usize, Frozen>)> {
    let mut loaded = model_of(config, &model.arm)?;
    let population = Population::of(history, among, options);
    let (template, budget) = (&loaded.template, loaded.arm.prompt_tokens);
    let frozen = BUCKETS.into_iter().map(|least| {
        let set = Frozen::freeze(
            &population.people(least),
            (template, &loaded.tokenizer),
            (budget, &*loaded.count),
        );
        Ok((least, set.context("reference prompts")?))
    });
    let frozen: BTreeMap<usize, Frozen> = frozen.collect::<anyhow::Result<_>>()?;
    let text = references(&frozen);
    let calibrations = Calibrations::read(&text, &loaded.template.hash, &loaded.tokenizer)?;
    loaded.ranking = Arc::new(Ranking {
        calibrations,
        ..(*loaded.ranking).clone()
    });
    Ok((Modelled::new(loaded, config)?, frozen))
}

/// Up to `each` cases of every bucket, by hash of the user.
pub(super) fn chosen(
    among: &Among<'_>,
    options: &AlignOptions,
    cases: Vec<Case>,
    each: usize,
) -> BTreeMap<usize, Vec<Case>> {
    let mut buckets: BTreeMap<usize, Vec<(f64, Case)>> = BTreeMap::new();
    for case in cases {
        let id = &among.users[case.user as usize].id.0;
        let place = uniform(options.seed, &format!("{id} {}", case.own.len()));
        let bucket = buckets.entry(bucket_of(case.own.len())).or_default();
        bucket.push((place, case));
    }
    let least = |mut cases: Vec<(f64, Case)>| {
        cases.sort_by(|a, b| a.0.total_cmp(&b.0));
        cases.truncate(each);
        cases.into_iter().map(|(_, case)| case).collect()
    };
    let of = buckets
        .into_iter()
        .map(|(bucket, cases)| (bucket, least(cases)));
    of.collect()
}

/// A sample over the products that may be listed; `None` if nothing of them was bought.
fn sample(
    (case, answer): (&Case, &[(u32, f32)]),
    (taught, fitted): (&Taught, &Fitted),
    held_out: usize,
) -> Option<ModelSample> {
    let mut answer = answer.to_vec();
    answer.sort_by_key(|(pu, _)| *pu);
    let place = |target: &u32| answer.binary_search_by_key(target, |(pu, _)| *pu).ok();
    let targets: Vec<u32> = case
        .targets
        .iter()
        .filter_map(|target| Some(place(target)? as u32))
        .collect();
    if targets.is_empty() {
        return None;
    }
    let scores = scores(case, (taught, fitted), held_out);
    Some(ModelSample {
        user: case.user,
        fold: held_out,
        offset: answer.iter().map(|(pu, _)| scores[*pu as usize]).collect(),
        model: answer.iter().map(|(_, value)| *value).collect(),
        targets,
    })
}

/// The mixture's score of every product, with the bias for the users of a fold.
pub(super) fn scores(
    case: &Case,
    (taught, fitted): (&Taught, &Fitted),
    held_out: usize,
) -> Vec<f32> {
    let weights = &fitted.weights[bucket_of(case.own.len())];
    let mut scores = mixture(weights, &case.input(&taught.shop, &taught.learned));
    let bias = weights.get("bias").copied().unwrap_or_default() as f32;
    let both = scores.iter_mut().zip(&*fitted.bias_of_fold[held_out]);
    both.for_each(|(score, value)| *score += bias * value);
    scores
}
