//! The head's part of `nearshore align`: hidden states of users and names, training by folds, and the weight of each
//! bucket.
//!
//! Invariant: a user's head is trained on users of other folds, beside a mixture whose tables are of other folds, too;
//! and what the gate sees is what the head of production would say. Nothing is written but hidden states, which a later
//! run finds again. It does not know how a head is trained.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use nearshore_core::learn::gate::GateOptions;
use nearshore_core::learn::head::{FittedHead, HeadCase, HeadFit, HeadOptions, fit};
use nearshore_core::learn::model::{ModelFit, ModelSample, fit_model};
use nearshore_core::list::terms::BUCKETS;
use nearshore_core::names::head::{BoundHead, Head, Origin};
use nearshore_core::names::scoring::Prompt;
use nearshore_engine::hidden::{self, HiddenStates};
use schemars::JsonSchema;
use serde::Serialize;

use super::History;
use super::align::{AlignOptions, Among, Fitted, TUNE_USERS_MIN};
use super::arms::Modelled;
use super::asked_cases::{AskedCase, Wanted, asked_cases};
use super::model::model_of;
use crate::config::Config;

/// Prompts that the model reads before what it made of them is written.
const BATCH: usize = 16;

/// Which head is trained, and on how many users.
#[derive(Clone, Debug)]
pub(crate) struct HeadOrder {
    /// Arm whose model, template and limits are used.
    pub(crate) arm: String,
    /// Its users.
    pub(crate) wanted: Wanted,
    /// File of hidden states.
    pub(crate) cache: PathBuf,
}

/// What was learned, for a person.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct HeadReport {
    /// Arm whose model was asked.
    pub(crate) arm: String,
    /// Numbers of a key.
    pub(crate) rank: usize,
    /// The weight of each bucket that was asked about, by its least visible history.
    pub(crate) buckets: BTreeMap<usize, ModelFit>,
    /// The training of each fold's head, and last of the one that is used.
    pub(crate) trained: Vec<HeadFit>,
    /// Prompts whose hidden states were computed now.
    pub(crate) computed: usize,
    /// Prompts whose hidden states were there.
    pub(crate) kept: usize,
    /// Seconds of computing hidden states.
    pub(crate) hidden_seconds: f64,
    /// Seconds of all training.
    pub(crate) training_seconds: f64,
}

/// A head with its weights.
pub(super) struct FoundHead {
    pub(super) head: Head,
    pub(super) report: HeadReport,
}

/// A case with what the gate needs to know of it.
struct Known {
    user: u32,
    fold: usize,
    bucket: usize,
    case: HeadCase,
}

/// Trains a head beside the weights of `fitted`, and fits its weight in each bucket.
pub(super) fn fit_head(
    history: &History,
    config: &Config,
    (options, among): (&AlignOptions, &Among<'_>),
    (order, fitted): (&HeadOrder, &Fitted),
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<FoundHead> {
    let modelled = Modelled::new(model_of(config, &order.arm)?, config)?;
    let names = history.catalogue.names();
    let mut reader = Reader::new(&modelled, order, &names, progress)?;
    let read: Vec<Prompt> = names.iter().map(|name| Prompt::of_text(name)).collect();
    let of_names = reader.read(&read)?;
    let wanted = (&order.wanted, &modelled, fitted);
    let asked = asked_cases(history, config, (options, among), wanted, progress)?;
    let prompts: Vec<Prompt> = asked.iter().map(|asked| asked.prompt.clone()).collect();
    let states = reader.read(&prompts)?;
    let known: Vec<Known> = asked.into_iter().zip(states).map(known).collect();
    let since = Instant::now();
    let (buckets, trained) = gated((&of_names, &names), &known, options, progress)?;
    let all: Vec<HeadCase> = known.into_iter().map(|known| known.case).collect();
    let how = head_options(options);
    let last = fit(&of_names, &all, &how).context("the head")?;
    progress("head");
    let training_seconds = since.elapsed().as_secs_f64();
    let report = HeadReport {
        arm: order.arm.clone(),
        rank: how.rank,
        buckets,
        trained: trained.into_iter().chain([last.fit.clone()]).collect(),
        computed: reader.computed,
        kept: reader.kept,
        hidden_seconds: reader.seconds,
        training_seconds,
    };
    let read = names.into_iter().zip(of_names);
    let head = last.head(modelled.origin(), read);
    Ok(FoundHead { head, report })
}

impl HeadOrder {
    /// The most batches that the model reads, beside those of names.
    pub(crate) fn batches(&self, folds: usize, names: usize) -> usize {
        let users = self.wanted.users(folds);
        users.div_ceil(BATCH) + names.div_ceil(BATCH) + 3 * folds + 1
    }
}

fn head_options(options: &AlignOptions) -> HeadOptions {
    HeadOptions {
        seed: options.seed,
        ..HeadOptions::default()
    }
}

/// A case with the hidden state after its prompt.
fn known((asked, hidden): (AskedCase, Vec<f32>)) -> Known {
    Known {
        user: asked.user,
        fold: asked.fold,
        bucket: asked.bucket,
        case: HeadCase {
            hidden,
            products: asked.products,
            offset: asked.offset,
            targets: asked.targets,
            is_tune: asked.is_tune,
        },
    }
}

/// The weight of each bucket, by heads that are trained on the users of the other folds; and how each was trained.
fn gated(
    (of_names, names): (&[Vec<f32>], &[String]),
    known: &[Known],
    options: &AlignOptions,
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<(BTreeMap<usize, ModelFit>, Vec<HeadFit>)> {
    let mut samples: BTreeMap<usize, Vec<ModelSample>> = BTreeMap::new();
    let mut trained = Vec::new();
    for held_out in 0..options.folds {
        let others = known.iter().filter(|known| known.fold != held_out);
        let others: Vec<HeadCase> = others.map(|known| known.case.clone()).collect();
        let fitted = fit(of_names, &others, &head_options(options));
        let fitted = fitted.with_context(|| format!("the head of all but fold {held_out}"))?;
        progress("head");
        trained.push(fitted.fit.clone());
        let bound = bound(fitted, (of_names, names));
        for known in known.iter().filter(|known| known.fold == held_out) {
            let case = &known.case;
            let values = bound.values(&case.hidden, &BTreeMap::new());
            let values = values.context("a hidden state of another width")?;
            samples.entry(known.bucket).or_default().push(ModelSample {
                user: known.user,
                fold: held_out,
                offset: case.offset.clone(),
                model: case
                    .products
                    .iter()
                    .map(|pu| values[*pu as usize])
                    .collect(),
                targets: case.targets.clone(),
            });
        }
    }
    let gate = GateOptions {
        folds: options.folds,
        users_min: TUNE_USERS_MIN,
        seed: options.seed,
    };
    let fits = samples.iter();
    let fits = fits.map(|(bucket, samples)| (BUCKETS[*bucket], fit_model(samples, &gate)));
    Ok((fits.collect(), trained))
}

/// A head as production has it.
fn bound(fitted: FittedHead, (of_names, names): (&[Vec<f32>], &[String])) -> BoundHead {
    let read = names.iter().cloned().zip(of_names.iter().cloned());
    let head = Arc::new(fitted.head(Origin::default(), read));
    BoundHead::new(&head, names.iter().cloned())
}

/// Reads prompts by the model, those that it read before from the file.
struct Reader<'a> {
    modelled: &'a Modelled,
    states: HiddenStates,
    progress: &'a (dyn Fn(&str) + Sync),
    computed: usize,
    kept: usize,
    seconds: f64,
}

impl<'a> Reader<'a> {
    fn new(
        modelled: &'a Modelled,
        order: &HeadOrder,
        names: &[String],
        progress: &'a (dyn Fn(&str) + Sync),
    ) -> anyhow::Result<Self> {
        let first = names.first().context("the catalogue has no names")?;
        let width = modelled.hidden(vec![Prompt::of_text(first)])?;
        let (origin, info) = (modelled.origin(), modelled.info());
        let origin = hidden::Origin {
            model: origin.model,
            precision: format!("{} on {}", info.dtype, info.device),
            template: origin.template,
            width: width.first().map_or(0, Vec::len),
        };
        if let Some(folder) = order.cache.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let states = HiddenStates::open(&order.cache, &origin).context("--head-cache")?;
        if states.cut() > 0 {
            note!(
                "{}: the last {} bytes were no whole rows and are cut off; {} hidden states are kept",
                order.cache.display(),
                states.cut(),
                states.rows()
            );
        }
        Ok(Self {
            modelled,
            states,
            progress,
            computed: 0,
            kept: 0,
            seconds: 0.0,
        })
    }

    /// The hidden state after each prompt.
    fn read(&mut self, prompts: &[Prompt]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut seen = BTreeSet::new();
        let new = prompts.iter().filter(|prompt| {
            let is_first = seen.insert((&prompt.user, &prompt.assistant));
            is_first && !self.states.has(prompt)
        });
        let new: Vec<Prompt> = new.cloned().collect();
        self.kept += seen.len() - new.len();
        for batch in new.chunks(BATCH) {
            let since = Instant::now();
            let states = self.modelled.hidden(batch.to_vec())?;
            self.seconds += since.elapsed().as_secs_f64();
            let rows: Vec<(Prompt, Vec<f32>)> = batch.iter().cloned().zip(states).collect();
            self.states.add(&rows).context("--head-cache")?;
            self.computed += rows.len();
            (self.progress)("hidden states");
        }
        let mut found = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let state = self.states.get(prompt).context("--head-cache")?;
            found.push(state.context("a hidden state is not in the file that it was written to")?);
        }
        Ok(found)
    }
}
