//! The model's table of products: what `nearshore align --table` asks the model, once for all users.
//!
//! Decides the prompts: every product in every wording of `align.table_wordings`, each asked for all *other* names. A
//! model repeats what it just read, so beside the product's own name those that begin alike would seem unlikely. Invariant:
//! equal models, wordings and catalogues give equal tables, on any number of threads; rows of an earlier table are kept
//! only if model and wordings are the same. It does not know how a table is used.

use std::sync::Arc;

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use nearshore_core::learn::product_table::{BoundTable, Origin, ProductTable};
use nearshore_core::list::terms::bound::bind_table;
use nearshore_core::names::scoring::{Ended, Names, Prompt, ScoreRequest, ScoreResponse};
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_engine::thread::Handle;
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::Config;
use crate::members::generate::LoadedArm;

/// Prompts that are asked at once.
const BATCH: usize = 8;

/// Where a wording has the product's name.
pub(crate) const NAME: &str = "{name}";

/// A table, bound to the catalogue of a log.
#[derive(Clone)]
pub(crate) struct SharedTable {
    pub(crate) table: Arc<ProductTable>,
    pub(crate) bound: Arc<BoundTable>,
}

/// What a table cost, or will cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct TableCost {
    /// Products with a row.
    pub(crate) products: usize,
    /// Rows of them that were computed now; the others were kept.
    pub(crate) computed: usize,
    /// Prompts that the model was asked.
    pub(crate) prompts: usize,
    /// Tokens that the model computed for them.
    pub(crate) tokens: u64,
}

impl SharedTable {
    /// Binds a table to a catalogue.
    pub(crate) fn new(table: Arc<ProductTable>, catalogue: &Catalogue) -> Self {
        Self {
            bound: Arc::new(bind_table(&table, catalogue)),
            table,
        }
    }
}

/// Builds the table of a catalogue by a loaded model. With an earlier table only products that it lacks are asked. The
/// cost is told before the most of it is spent.
pub(crate) fn build(
    catalogue: &Catalogue,
    (loaded, from): (&LoadedArm<Handle>, Option<&ProductTable>),
    config: &Config,
    (bar, tell): (&ProgressBar, &dyn Fn(&TableCost)),
) -> anyhow::Result<(ProductTable, TableCost)> {
    let origin = Origin {
        model: loaded.info.revision.clone(),
        wordings: config.align.table_wordings.clone(),
    };
    if let Some(from) = from {
        ensure!(
            *from.origin() == origin,
            "--table-from: its table is of another model or of other align.table_wordings; build a whole one without \
             --table-from"
        );
    }
    let products: Vec<String> = catalogue.pus().iter().map(|pu| pu.id.to_string()).collect();
    let lacking = match from {
        Some(from) => from.lacking(&products),
        None => (0..products.len()).collect(),
    };
    let names = catalogue.names();
    let prompts: Vec<(usize, String)> = lacking
        .iter()
        .flat_map(|nth| {
            let wordings = origin.wordings.iter();
            wordings.map(|wording| (*nth, wording.replace(NAME, &names[*nth])))
        })
        .collect();
    let cost = TableCost {
        products: products.len(),
        computed: lacking.len(),
        prompts: prompts.len(),
        tokens: 0,
    };
    let (rows, tokens) = ask(
        catalogue,
        loaded,
        &prompts,
        (bar, &|each, read| {
            tell(&TableCost {
                tokens: read + each * prompts.len() as u64,
                ..cost
            });
        }),
    )?;
    let scores: Vec<Vec<f32>> = rows.chunks(origin.wordings.len()).map(mean).collect();
    let table = match from {
        Some(from) => from.extended(&products, &scores),
        None => ProductTable::build(origin, products, &with_own(scores)),
    };
    Ok((table, TableCost { tokens, ..cost }))
}

/// Mean of some rows of scores.
fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut sums = vec![0f64; rows.first().map_or(0, Vec::len)];
    for row in rows {
        let each = sums.iter_mut().zip(row);
        each.for_each(|(sum, score)| *sum += f64::from(*score));
    }
    let n = rows.len().max(1) as f64;
    sums.into_iter().map(|sum| (sum / n) as f32).collect()
}

/// Scores with one of each product after itself that changes no mean: its row's and its column's mean together.
fn with_own(mut scores: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let n = scores.len();
    let others = n.saturating_sub(1).max(1) as f64;
    let (mut rows, mut columns) = (vec![0f64; n], vec![0f64; n]);
    for (i, row) in scores.iter().enumerate() {
        for (j, score) in row.iter().enumerate().filter(|(j, _)| *j != i) {
            rows[i] += f64::from(*score) / others;
            columns[j] += f64::from(*score) / others;
        }
    }
    let grand = rows.iter().sum::<f64>() / n.max(1) as f64;
    for (i, row) in scores.iter_mut().enumerate() {
        row[i] = (rows[i] + columns[i] - grand) as f32;
    }
    scores
}

/// The scores of all other names after each prompt, and the tokens that were computed. After the first prompts `known` is told
/// how many tokens of names each prompt costs, and how many tokens all prompts have.
fn ask(
    catalogue: &Catalogue,
    loaded: &LoadedArm<Handle>,
    prompts: &[(usize, String)],
    (bar, known): (&ProgressBar, &dyn Fn(u64, u64)),
) -> anyhow::Result<(Vec<Vec<f32>>, u64)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let names = Arc::new(Names {
        version: catalogue.names_version(),
        names: catalogue.names(),
    });
    let count = names.names.len();
    let offered = runtime.block_on(loaded.engine.offer_names(names));
    offered.context("the names of the catalogue")?;
    bar.set_length(prompts.len() as u64);
    let read: usize = (prompts.iter().map(|(_, prompt)| (loaded.count)(prompt))).sum();
    let (mut rows, mut tokens) = (Vec::with_capacity(prompts.len()), 0);
    for batch in prompts.chunks(BATCH) {
        let asked = batch.iter().map(|(own, prompt)| ScoreRequest {
            prompt: Prompt {
                user: String::new(),
                assistant: prompt.clone(),
            },
            permitted: Some(Arc::new((0..count).filter(|pu| pu != own).collect())),
            n: count,
            ..ScoreRequest::default()
        });
        let answers = runtime.block_on(loaded.engine.score(asked.collect()));
        for answer in answers.context("the model")? {
            if rows.is_empty() {
                known(u64::from(answer.forwarded), read as u64);
            }
            let own = answer.prompt_tokens - answer.shared_tokens;
            tokens += u64::from(answer.forwarded) + u64::from(own);
            rows.push(row(&answer, count)?);
        }
        bar.inc(batch.len() as u64);
    }
    Ok((rows, tokens))
}

/// The score of every name.
fn row(answer: &ScoreResponse, count: usize) -> anyhow::Result<Vec<f32>> {
    ensure!(
        answer.ended == Ended::Complete && !answer.named.is_empty(),
        "the model gave no scores of all names: {:?}; raise engine.generation_max",
        answer.ended
    );
    let all = answer.named.iter().map(|named| named.model);
    // A name that cannot be told from another one's has no leaf of its own.
    let mut row = vec![all.fold(0.0, f32::min); count];
    for named in &answer.named {
        if let Some(score) = row.get_mut(named.pu as usize) {
            *score = named.model;
        }
    }
    Ok(row)
}
