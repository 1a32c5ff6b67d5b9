//! Fits an arm's weights and tables to a shop's log: what `nearshore align` does.
//!
//! Users are split into folds. Tables for the users of a fold come from all other users, before a cut, and weights are
//! fitted to what the users of the fold bought in the window after it. Invariant: no user is scored by a table that has
//! seen them, and equal logs, options and seeds give equal files. It does not know where files are written.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use fixedbitset::FixedBitSet;
use nearshore_core::learn::bias::{self, BiasCase, BiasOptions};
use nearshore_core::learn::gate::{BucketFit, GateOptions, Sample, Terms, fit_bucket, mixed};
use nearshore_core::learn::model::ModelFit;
use nearshore_core::learn::split::fold;
use nearshore_core::learn::{log::Purchases, tables};
use nearshore_core::list::terms::artefact::{self, Artefact, Files, Made, Optional, Tables};
use nearshore_core::list::terms::bound::Learned;
use nearshore_core::list::terms::{BUCKETS, Need, ScoreTerm, TERMS, Weights};
use nearshore_core::user::record::Timestamp;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use super::choice::{ChoiceOptions, ChoiceReport, choice};
use super::head::{FoundHead, HeadReport, fit_head};
use super::model::fit_weights;
use super::product_table::TableCost;
use super::{Case, CaseMaker, History, Knowledge, Plain, Shop, UserHistory, Visible};
use crate::config::Config;

mod ablation;
mod asked;
mod folder;
mod prompts;
mod report;
mod sampling;

pub(crate) use ablation::Row;
use ablation::ablate;
pub(crate) use asked::Asked;
pub(crate) use folder::write_folder;
use prompts::compare_prompts;
pub(crate) use prompts::{PromptOrder, PromptRow};
pub(crate) use report::text;
pub(crate) use sampling::Selection;
use sampling::samples;

/// How to align.
#[derive(Clone, Debug)]
pub(crate) struct AlignOptions {
    /// Seed of folds and samples.
    pub(crate) seed: u64,
    /// Number of folds.
    pub(crate) folds: usize,
    /// Number of cuts, each a window before the next.
    pub(crate) cuts: usize,
    /// Length of the window after a cut, in milliseconds.
    pub(crate) window: i64,
    /// Fewest users of a pair of neighbours, and of a bucket that is fitted.
    pub(crate) users_min: u32,
    /// Most scores of a bucket, samples times products: what memory and time grow with.
    pub(crate) scores_max: usize,
    /// Which cases the weights are fitted to.
    pub(crate) selection: Selection,
    /// Whether it is measured what each option of the selection changes.
    pub(crate) ablate: bool,
    /// Prompts that are compared with the arm's.
    pub(crate) prompts: PromptOrder,
}

impl Default for AlignOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            folds: 3,
            cuts: 2,
            window: 56 * 86_400_000,
            users_min: 3,
            scores_max: 2_400_000,
            selection: Selection::default(),
            ablate: false,
            prompts: PromptOrder::default(),
        }
    }
}

/// Fewest users with purchases before and after a cut for weights to be fitted.
pub(super) const TUNE_USERS_MIN: usize = 30;

/// The visible histories of which samples are made.
const VISIBLE: [Visible; 6] = [
    Visible::Products(0),
    Visible::Products(1),
    Visible::Products(3),
    Visible::Products(6),
    Visible::Products(10),
    Visible::More,
];

/// What was learned, for a person.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct AlignReport {
    /// Hash that names the artefact.
    pub(crate) artefact: String,
    /// How it was made.
    pub(crate) made: Made,
    /// The fit of each bucket, by its least visible history.
    pub(crate) buckets: BTreeMap<usize, BucketFit>,
    /// That of the model's weight, if it was asked.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) model: BTreeMap<usize, ModelFit>,
    /// The head, if one was trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) head: Option<HeadReport>,
    /// The choice of SKUs, if it was fitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) choice: Option<ChoiceReport>,
    /// What the model's table of products cost, if it was built now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<TableCost>,
    /// What each option of the selection changes, if it was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ablation: Vec<Row>,
    /// What the model adds with each prompt, if several were compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) prompts: Vec<PromptRow>,
}

/// What was learned, as files and as a report.
pub(crate) struct Aligned {
    pub(crate) files: Files,
    pub(crate) report: AlignReport,
}

/// Fits weights and tables, and the weight of a model's term or a head if one is asked for. `progress` is called after
/// each step.
pub(crate) fn align(
    history: &History,
    config: &Config,
    (options, asked): (&AlignOptions, Option<&Asked>),
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Aligned> {
    let mut fitted = fit(history, config, (options, None), progress)?;
    let among = everyone(history)?;
    let known = (options, &among);
    let mut prompts = Vec::new();
    match asked {
        Some(Asked::Term(model)) => {
            let found = fit_weights(history, config, known, (model, &fitted), progress)?;
            prompts = compare_prompts(history, config, known, (model, &fitted, &found), progress)?;
            fitted.add(found);
        }
        Some(Asked::Head(order)) => {
            let found = fit_head(history, config, known, (order, &fitted), progress)?;
            fitted.add_head(found);
        }
        None => {}
    }
    let how = ChoiceOptions::new(options.seed, options.folds);
    let chosen = choice(history, config, (&everyone(history)?, how));
    progress("choice of SKUs");
    let optional = Optional {
        choice: chosen.model(),
        ..optional(history)
    };
    let (files, mut report) = fitted.artefact(options, optional);
    report.choice = Some(chosen);
    report.prompts = prompts;
    if options.ablate {
        report.ablation = ablate(history, config, options, progress)?;
    }
    Ok(Aligned { files, report })
}

/// An artefact with the model's table alone, for a shop without a log: its arm's weights are set by hand.
pub(crate) fn table_alone(history: &History) -> Aligned {
    let made = Made {
        release: env!("CARGO_PKG_VERSION").into(),
        ..Made::default()
    };
    let demand = Weights::default();
    let weights = BUCKETS.map(|least| demand.at(least).clone());
    let files = artefact::write(&made, &weights, &no_tables(history), optional(history));
    let report = AlignReport {
        artefact: files.hash.clone(),
        made,
        buckets: BTreeMap::new(),
        model: BTreeMap::new(),
        head: None,
        choice: None,
        table: None,
        ablation: Vec::new(),
        prompts: Vec::new(),
    };
    Aligned { files, report }
}

/// What the log was given beside its records.
fn optional(history: &History) -> Optional<'_> {
    Optional {
        vectors: history.texts.as_ref().map(|texts| texts.vectors()),
        table: history.table.as_ref().map(|shared| &*shared.table),
        neighbours: history.neighbours.as_deref(),
        ..Optional::default()
    }
}

/// Tables that say nothing.
pub(super) fn no_tables(history: &History) -> Tables {
    let ids = history.catalogue.pus().iter().map(|pu| pu.id.to_string());
    Tables {
        products: ids.collect(),
        ..Tables::default()
    }
}

/// Weights, tables and how they were found.
pub(crate) struct Fitted {
    pub(crate) weights: [BTreeMap<String, f64>; BUCKETS.len()],
    pub(crate) tables: Tables,
    pub(crate) buckets: BTreeMap<usize, BucketFit>,
    /// The bias for users of each fold, from the others.
    pub(super) bias_of_fold: Vec<Arc<[f32]>>,
    model: BTreeMap<usize, ModelFit>,
    references: Option<String>,
    head: Option<FoundHead>,
    /// How it was made, but for the seed.
    made: Made,
}

impl Fitted {
    /// The artefact, as files and as a report.
    pub(crate) fn artefact(
        &self,
        options: &AlignOptions,
        optional: Optional<'_>,
    ) -> (Files, AlignReport) {
        let made = Made {
            seed: options.seed,
            ..self.made.clone()
        };
        let optional = Optional {
            references: self.references.as_deref(),
            head: self.head.as_ref().map(|found| &found.head),
            gains: self.gains(),
            ..optional
        };
        let files = artefact::write(&made, &self.weights, &self.tables, optional);
        let report = AlignReport {
            artefact: files.hash.clone(),
            made,
            buckets: self.buckets.clone(),
            model: self.model.clone(),
            head: self.head.as_ref().map(|found| found.report.clone()),
            choice: None,
            table: None,
            ablation: Vec::new(),
            prompts: Vec::new(),
        };
        (files, report)
    }

    /// The weights, checked.
    pub(crate) fn weights(&self) -> Weights {
        Weights::by_bucket(self.weights.clone()).unwrap_or_default()
    }
}

/// Fits on the users that `only` names, or on all; on records before `until`, or on all.
pub(crate) struct Among<'a> {
    /// Users to learn from.
    pub(crate) users: Vec<&'a UserHistory>,
    /// End of what is known.
    pub(crate) until: Timestamp,
}

/// Fits weights and tables.
pub(crate) fn fit(
    history: &History,
    config: &Config,
    (options, among): (&AlignOptions, Option<Among<'_>>),
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Fitted> {
    let among = match among {
        Some(among) => among,
        None => everyone(history)?,
    };
    let cuts = cuts(history, options, &among)?;
    let samples = samples(history, config, (options, &among), &cuts, progress)?;
    let users: std::collections::BTreeSet<u32> =
        samples.iter().flatten().map(|sample| sample.user).collect();
    ensure!(
        users.len() >= TUNE_USERS_MIN,
        "only {} users bought something after a cut, fewer than {TUNE_USERS_MIN}: weights cannot be fitted; use \
         demand alone until there are more",
        users.len()
    );
    let (samples, bias) = with_bias(samples, (history, options));
    progress("bias");
    let names: Vec<&str> = names(history).chain(["bias"]).collect();
    let gate = gate(options);
    let fits: Vec<BucketFit> = samples
        .par_iter()
        .map(|samples| fit_bucket(Terms { names: &names }, samples, &gate))
        .collect();
    progress("weights");
    let weights = std::array::from_fn(|nth| fits[nth].weights.clone());
    let purchases = purchases(history, &among.users, among.until);
    let tables = tables(
        history,
        &purchases,
        (among.until, options),
        Some(bias.of_all),
    );
    progress("tables");
    Ok(Fitted {
        weights,
        tables,
        buckets: BUCKETS.into_iter().zip(fits).collect(),
        bias_of_fold: bias.of_fold,
        model: BTreeMap::new(),
        references: None,
        head: None,
        made: Made {
            release: env!("CARGO_PKG_VERSION").into(),
            until: among.until.0,
            users: purchases.users.len(),
            purchases: purchases.users.iter().map(|user| user.lines.len()).sum(),
            seed: 0,
        },
    })
}

/// How weights are gated.
fn gate(options: &AlignOptions) -> GateOptions {
    GateOptions {
        folds: options.folds,
        users_min: TUNE_USERS_MIN,
        seed: options.seed,
    }
}

/// The cuts after which samples are made, the latest first.
pub(super) fn cuts(
    history: &History,
    options: &AlignOptions,
    among: &Among<'_>,
) -> anyhow::Result<Vec<Timestamp>> {
    let start = history.span.map_or(among.until, |(start, _)| start);
    let cuts: Vec<Timestamp> = (1..=options.cuts as i64)
        .map(|nth| Timestamp(among.until.0 - nth * options.window))
        .filter(|cut| *cut > start)
        .collect();
    ensure!(
        !cuts.is_empty(),
        "the log is shorter than one window of {} days: give a longer log or a shorter --window",
        options.window / 86_400_000
    );
    Ok(cuts)
}

/// All users, and all that is known.
pub(super) fn everyone(history: &History) -> anyhow::Result<Among<'_>> {
    let (_, last) = history
        .span
        .context("the log has no purchase of a product of the catalogue; nothing can be learned")?;
    Ok(Among {
        users: history.users.iter().collect(),
        until: Timestamp(last.0.saturating_add(1)),
    })
}

/// Names of the terms that are fitted before the bias: those that need no model.
fn names(history: &History) -> impl Iterator<Item = &'static str> {
    let has = Has {
        vectors: history.texts.is_some(),
        table: history.table.is_some(),
        matcher: history.meaning.is_some(),
    };
    fitted_terms(has).map(|term| term.name())
}

/// What terms can read beside the log.
#[derive(Clone, Copy)]
struct Has {
    vectors: bool,
    table: bool,
    matcher: bool,
}

/// The terms that are fitted before the bias; those of texts and of the model's table only where there are any.
fn fitted_terms(has: Has) -> impl Iterator<Item = &'static &'static dyn ScoreTerm> {
    let fits = move |term: &&&dyn ScoreTerm| match term.need() {
        Need::Snapshot | Need::Artefact => term.name() != "bias",
        Need::Vectors => has.vectors,
        Need::Table => has.table,
        Need::Matcher => has.matcher,
        Need::Model | Need::Head | Need::Policy => false,
    };
    TERMS.iter().filter(fits)
}

/// A shop with the tables that its users gave.
pub(super) struct Taught {
    pub(super) shop: Shop,
    pub(super) learned: Learned,
    /// What a term says of which nothing is known: shared, since most samples of the smallest bucket have some.
    zeros: Arc<[f32]>,
}

impl Taught {
    /// A shop with these tables.
    pub(super) fn new(shop: Shop, tables: Tables) -> anyhow::Result<Self> {
        let learned = learned(tables, &shop)?;
        let zeros = vec![0.0; shop.snapshot.catalogue.pus().len()].into();
        Ok(Self {
            shop,
            learned,
            zeros,
        })
    }
}

/// What is known at a cut from the users of the other folds.
pub(super) fn taught(
    history: &History,
    config: &Config,
    (options, among): (&AlignOptions, &Among<'_>),
    (cut, held_out): (Timestamp, usize),
) -> anyhow::Result<Taught> {
    let users: Vec<&UserHistory> = (among.users.iter().copied())
        .filter(|user| fold(options.seed, &user.id.0, options.folds) != held_out)
        .collect();
    let purchases = purchases(history, &users, cut);
    let shop = Knowledge {
        history,
        config,
        users,
        cut,
        window: options.window,
        cold: None,
    }
    .plain_shop();
    Taught::new(shop, tables(history, &purchases, (cut, options), None))
}

/// The users of a fold, with their numbers.
fn of_fold<'a>(
    options: &AlignOptions,
    among: &Among<'a>,
    held_out: usize,
) -> Vec<(u32, &'a UserHistory)> {
    let users = (0..).zip(among.users.iter().copied());
    users
        .filter(|(_, user)| fold(options.seed, &user.id.0, options.folds) == held_out)
        .collect()
}

/// The cases of the users of a fold, with each amount of visible history.
pub(super) fn visible_cases(
    config: &Config,
    (options, among): (&AlignOptions, &Among<'_>),
    (taught, held_out): (&Taught, usize),
) -> anyhow::Result<Vec<Case>> {
    let users = of_fold(options, among, held_out);
    cases_of(config, (options, taught), &users)
}

/// The cases of some users.
fn cases_of(
    config: &Config,
    (options, taught): (&AlignOptions, &Taught),
    users: &[(u32, &UserHistory)],
) -> anyhow::Result<Vec<Case>> {
    let plain = Plain::permitting(config)?;
    let context = plain.context();
    let maker = CaseMaker {
        shop: &taught.shop,
        context: &context,
        window: config.state.window,
        visible: &VISIBLE,
        until: Timestamp(taught.shop.cut.0 + options.window),
        ns: &config.namespace,
    };
    let cases = users.par_iter().flat_map_iter(|(nth, user)| {
        let cases = maker.cases(*nth, user);
        cases.into_iter().map(|(_, case)| case)
    });
    Ok(cases.collect())
}

/// Tables as the terms of a shop read them.
pub(crate) fn learned(tables: Tables, shop: &Shop) -> anyhow::Result<Learned> {
    let artefact = Artefact {
        hash: String::new(),
        made: Made::default(),
        weights: Weights::default(),
        tables,
        references: None,
        vectors: None,
        table: shop.table.as_ref().map(|shared| Arc::clone(&shared.table)),
        head: None,
        choice: None,
    };
    Ok(Learned::bind(
        &Arc::new(artefact),
        &shop.snapshot.catalogue,
    )?)
}

fn purchases(history: &History, users: &[&UserHistory], until: Timestamp) -> Purchases {
    let logs = users.iter().map(|user| user.log(until));
    Purchases::new(history.catalogue.pus().len(), logs)
}

/// Tables from purchases before `until`.
fn tables(
    history: &History,
    purchases: &Purchases,
    (until, options): (Timestamp, &AlignOptions),
    bias: Option<Vec<f32>>,
) -> Tables {
    Tables {
        repeat: Some(tables::repeat(purchases, until.0, options.window)),
        neighbours: Some(tables::neighbours(purchases, until.0, options.users_min)),
        walk: Some(tables::walk(purchases, until.0, options.users_min)),
        columns: {
            let mut columns = tables::columns(purchases, until.0);
            columns.extend(bias.map(|bias| ("bias".to_owned(), bias)));
            columns
        },
        ..no_tables(history)
    }
}

/// The tables of an alignment as they would be without the logs of some products: their bias is 0.
pub(super) fn tables_without(
    history: &History,
    fitted: &Fitted,
    (options, among): (&AlignOptions, &Among<'_>),
    withheld: &FixedBitSet,
) -> Tables {
    let keeps = |product: u32| !withheld.contains(product as usize);
    let logs = among.users.iter().map(|user| {
        let mut log = user.log(among.until);
        log.lines.retain(|line| keeps(line.product));
        log
    });
    let purchases = Purchases::new(history.catalogue.pus().len(), logs);
    let bias = fitted.tables.columns.get("bias").map(|bias| {
        let of = (0..).zip(bias);
        of.map(|(product, value)| if keeps(product) { *value } else { 0.0 })
            .collect()
    });
    tables(history, &purchases, (among.until, options), bias)
}

/// The bias for users of each fold, from the others, and the bias from all cases.
struct Bias {
    of_fold: Vec<Arc<[f32]>>,
    of_all: Vec<f32>,
}

/// Adds the bias as the last term, for each user from the cases of the other folds.
fn with_bias(
    mut samples: [Vec<Sample>; BUCKETS.len()],
    (history, options): (&History, &AlignOptions),
) -> ([Vec<Sample>; BUCKETS.len()], Bias) {
    let names: Vec<&str> = names(history).collect();
    let scores: Vec<Vec<Vec<f32>>> = samples
        .par_iter()
        .map(|samples| mixed(Terms { names: &names }, samples))
        .collect();
    let pairs = samples.iter().flatten().zip(scores.iter().flatten());
    let cases: Vec<(usize, BiasCase<'_>)> = pairs
        .map(|(sample, scores)| {
            let targets = &sample.targets;
            (sample.fold, BiasCase { scores, targets })
        })
        .collect();
    let products = cases.first().map_or(0, |(_, case)| case.scores.len());
    let how = BiasOptions::default();
    let of_fold = bias::cross_fitted(products, &cases, options.folds, how);
    let all: Vec<BiasCase<'_>> = cases.iter().map(|(_, case)| *case).collect();
    let of_all = bias::fit(products, &all, how);
    let of_fold: Vec<Arc<[f32]>> = of_fold.into_iter().map(Into::into).collect();
    for sample in samples.iter_mut().flatten() {
        sample.values.push(Arc::clone(&of_fold[sample.fold]));
    }
    (samples, Bias { of_fold, of_all })
}
