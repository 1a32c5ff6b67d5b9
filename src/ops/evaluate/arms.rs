//! The configured arms as routes: requests, models and lists as in the generate role.
//!
//! Invariant: a list is what `core/list/compose` makes of the model's answer, the fallback included. An arm whose
//! model has weight 0 is ranked by its terms, without loading the model.

use std::sync::Arc;

use anyhow::Context;
use nearshore_core::list::compose::{ListContext, finish};
use nearshore_core::list::document::Model;
use nearshore_core::list::prompt::{Arm, Calibrations, Template};
use nearshore_core::list::select;
use nearshore_core::list::terms::artefact::Artefact;
use nearshore_core::list::terms::bound::Learned;
use nearshore_core::list::terms::{HEAD, Texts, Weights};
use nearshore_core::names::head::Origin;
use nearshore_core::names::scoring::{Names, Prompt, ScoreRequest, ScoreResponse, Term, Values};
use nearshore_core::shop::rules::Needs;
use nearshore_core::user::record::Timestamp;
use nearshore_engine::Info;
use nearshore_engine::thread::Handle;

use super::case::{Case, prepared};
use super::routes::{Ranked, Route};
use super::shop::Shop;
use crate::config::Config;
use crate::members::generate::{LoadedArm, Ranking, Renewed};

/// Lists that the model makes at once.
const BATCH: usize = 8;

/// Names per list: what the deepest measure reads.
const NAMES: usize = 20;

/// Counts words where no model counts tokens.
pub(super) fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// An arm without a model: what may be listed, and the terms.
pub(in crate::ops) struct Plain {
    arm: Arm,
    weights: Weights,
    artefact: Option<Arc<Artefact>>,
    template: Template,
    needs: Needs,
    selection: select::Policy,
    name: String,
}

impl Plain {
    /// The arm that says what may be listed, by rules, needs and stock.
    pub(in crate::ops) fn permitting(config: &Config) -> anyhow::Result<Self> {
        let arm = serde_json::json!({
            "id": "evaluate", "epoch": 1, "template": "", "model": "", "names": NAMES,
        });
        Self::of(serde_json::from_value(arm)?, config)
    }

    /// An arm as ranked by its terms alone, whatever weight it gives the model.
    pub(in crate::ops) fn by_terms(config: &Config, arm: &Arm) -> anyhow::Result<Self> {
        let artefact = crate::run::artefact(config, arm)?;
        Ok(Self {
            weights: crate::run::weights(arm, artefact.as_deref())?,
            artefact,
            ..Self::of(arm.clone(), config)?
        })
    }

    /// What `align` learned for it.
    pub(in crate::ops) fn artefact(&self) -> Option<&Arc<Artefact>> {
        self.artefact.as_ref()
    }

    fn of(arm: Arm, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            name: format!("arm {}", arm.id),
            weights: Weights::default(),
            artefact: None,
            arm,
            // No model reads the prompt.
            template: Template::load("{{ segment }}", "evaluate")?,
            needs: config.needs.clone(),
            selection: config.selection.clone(),
        })
    }

    /// The context of its lists.
    pub(in crate::ops) fn context(&self) -> ListContext<'_> {
        ListContext {
            arm: &self.arm,
            weights: &self.weights,
            learned: None,
            texts: None,
            meaning: None,
            template: &self.template,
            model: Model::default(),
            calibrations: Calibrations::default(),
            count: &words,
            needs: &self.needs,
            selection: &self.selection,
            candidates: 0.0,
        }
    }
}

impl Route for Plain {
    fn name(&self) -> &str {
        &self.name
    }

    fn knows_until(&self) -> Option<Timestamp> {
        Some(Timestamp(self.artefact.as_ref()?.made.until))
    }

    fn rank(&self, cases: &[&Case], shop: &Shop) -> anyhow::Result<Vec<Ranked>> {
        let (learned, texts) = bound(self.artefact.as_ref(), shop)?;
        let context = ListContext {
            learned: learned.as_ref(),
            texts: texts.as_deref(),
            meaning: shop.meaning(),
            ..self.context()
        };
        let products = shop.snapshot.catalogue.pus().len();
        let ranked = cases.iter().map(|case| {
            let terms = prepared(case, shop, &context).ask.map(|ask| ask.terms);
            Ranked::Scores(total(&terms.unwrap_or_default(), products))
        });
        Ok(ranked.collect())
    }
}

/// An artefact bound to a shop's catalogue, and the vectors of texts: the artefact's own, or without an artefact those
/// that an encoder made for the evaluation.
fn bound(
    artefact: Option<&Arc<Artefact>>,
    shop: &Shop,
) -> anyhow::Result<(Option<Learned>, Option<Arc<Texts>>)> {
    let Some(artefact) = artefact else {
        return Ok((None, shop.texts.clone()));
    };
    let catalogue = &shop.snapshot.catalogue;
    let vectors = artefact.vectors.iter().cloned().collect();
    let texts = Texts::bind(vectors, catalogue).map(Arc::new);
    Ok((Some(Learned::bind(artefact, catalogue)?), texts))
}

/// The weighted sum of terms per product.
fn total(terms: &[Term], products: usize) -> Vec<f32> {
    let mut total = vec![0.0; products];
    for term in terms {
        let mut add = |product: usize, value: f32| {
            if let Some(sum) = total.get_mut(product) {
                *sum += term.weight * value;
            }
        };
        match &term.values {
            Values::Shared(values) | Values::Dense(values) => (0..)
                .zip(&**values)
                .for_each(|(nth, value)| add(nth, *value)),
            Values::Sparse(values) => values
                .iter()
                .for_each(|(nth, value)| add(*nth as usize, *value)),
        }
    }
    total
}

/// An arm with its model.
pub(super) struct Modelled {
    loaded: LoadedArm<Handle>,
    needs: Needs,
    selection: select::Policy,
    name: String,
    runtime: tokio::runtime::Runtime,
}

impl Route for Modelled {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_slow(&self) -> bool {
        true
    }

    fn knows_until(&self) -> Option<Timestamp> {
        Some(Timestamp(self.loaded.ranking.artefact.as_ref()?.made.until))
    }

    fn rank(&self, cases: &[&Case], shop: &Shop) -> anyhow::Result<Vec<Ranked>> {
        self.offer_names(shop)?;
        let catalogue = &shop.snapshot.catalogue;
        let (learned, texts) = bound(self.loaded.ranking.artefact.as_ref(), shop)?;
        let context = ListContext {
            learned: learned.as_ref(),
            texts: texts.as_deref(),
            meaning: shop.meaning(),
            ..self.context()
        };
        let mut ranked = Vec::new();
        for batch in cases.chunks(BATCH) {
            let prepared: Vec<_> = batch
                .iter()
                .map(|case| prepared(case, shop, &context))
                .collect();
            let answers = self.score(prepared.iter().map(|prepared| prepared.ask.clone()))?;
            for (prepared, answer) in prepared.iter().zip(answers) {
                let list = finish(prepared, &answer, &shop.snapshot, &context).document;
                let pus = list
                    .pus
                    .iter()
                    .filter_map(|shown| catalogue.by_pu(&shown.pu));
                ranked.push(Ranked::List(pus.map(|pu| pu.0).collect()));
            }
        }
        Ok(ranked)
    }
}

impl Modelled {
    pub(super) fn new(loaded: LoadedArm<Handle>, config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            name: format!("arm {}", loaded.arm.id),
            loaded,
            needs: config.needs.clone(),
            selection: config.selection.clone(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?,
        })
    }

    fn offer_names(&self, shop: &Shop) -> anyhow::Result<()> {
        let catalogue = &shop.snapshot.catalogue;
        let names = Arc::new(Names {
            version: catalogue.names_version(),
            names: catalogue.names(),
        });
        let offered = self.runtime.block_on(self.loaded.engine.offer_names(names));
        offered.context("the names of the catalogue")
    }

    /// The answers to these requests; an empty one where there is none.
    fn score(
        &self,
        asks: impl Iterator<Item = Option<ScoreRequest>>,
    ) -> anyhow::Result<Vec<ScoreResponse>> {
        let asks: Vec<Option<ScoreRequest>> = asks.collect();
        let asked: Vec<ScoreRequest> = asks.iter().flatten().cloned().collect();
        let answers = self.runtime.block_on(self.loaded.engine.score(asked));
        let mut answers = answers.context("the model")?.into_iter();
        let of = asks
            .iter()
            .map(|ask| ask.as_ref().and_then(|_| answers.next()));
        Ok(of.map(Option::unwrap_or_default).collect())
    }

    /// Of each case what the model says of every product that may be listed.
    pub(super) fn every_name(
        &self,
        cases: &[&Case],
        shop: &Shop,
    ) -> anyhow::Result<Vec<Vec<(u32, f32)>>> {
        self.offer_names(shop)?;
        let mut all = Vec::with_capacity(cases.len());
        for batch in cases.chunks(BATCH) {
            let asks = self.requests(batch, shop).into_iter().map(|ask| {
                let mut ask = ask?;
                ask.n = ask.permitted.as_ref()?.count_ones(..);
                Some(ask)
            });
            for answer in self.score(asks)? {
                let named = answer.named.iter().map(|named| (named.pu, named.model));
                all.push(named.collect());
            }
        }
        Ok(all)
    }

    /// The requests of cases, with their prompts.
    pub(super) fn requests(&self, cases: &[&Case], shop: &Shop) -> Vec<Option<ScoreRequest>> {
        let context = self.context();
        let asks = cases.iter().map(|case| prepared(case, shop, &context).ask);
        asks.collect()
    }

    /// The model's hidden state after each prompt.
    pub(super) fn hidden(&self, prompts: Vec<Prompt>) -> anyhow::Result<Vec<Vec<f32>>> {
        let states = self.runtime.block_on(self.loaded.engine.hidden(prompts));
        states.context("the model")
    }

    /// The model.
    pub(super) fn info(&self) -> &Info {
        &self.loaded.info
    }

    /// Model and template, which a head is trained on.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            model: self.loaded.info.revision.clone(),
            template: self.loaded.template.hash.clone(),
        }
    }

    fn context(&self) -> ListContext<'_> {
        ListContext {
            arm: &self.loaded.arm,
            weights: &self.loaded.ranking.weights,
            learned: None,
            texts: None,
            meaning: None,
            template: &self.loaded.template,
            model: Model::default(),
            calibrations: self.loaded.ranking.calibrations.clone(),
            count: &*self.loaded.count,
            needs: &self.needs,
            selection: &self.selection,
            candidates: 0.0,
        }
    }
}

/// The routes of the configured arms. Models are loaded only of arms that give them a weight, and not without `models`.
pub(super) fn routes(config: &Config, models: bool) -> anyhow::Result<Vec<Box<dyn Route>>> {
    let mut routes: Vec<Box<dyn Route>> = Vec::new();
    let mut with: Vec<&Arm> = Vec::new();
    for arm in &config.arms {
        let plain = Plain::by_terms(config, arm)?;
        let asks_model = plain.weights.ask_model();
        if asks_model && arm.is_free() {
            note!(
                "arm {} is left out: its model writes freely, and is not asked here",
                arm.id
            );
            continue;
        }
        match asks_model {
            true => with.push(arm),
            false => routes.push(Box::new(plain)),
        }
    }
    if !models || with.is_empty() {
        return Ok(routes);
    }
    let arms = Config {
        arms: with.into_iter().cloned().collect(),
        ..config.clone()
    };
    for loaded in crate::run::load_arms(&arms)? {
        let weights = &loaded.ranking.weights;
        if weights.use_head() {
            let (id, alone) = (&loaded.arm.id, [(HEAD.to_owned(), 1.0)].into());
            let alone = (
                format!("head of arm {id}"),
                Weights::beside_artefact(&alone)?,
            );
            let without = (
                format!("arm {id} without head"),
                weights.clone().without(HEAD),
            );
            for (name, weights) in [alone, without] {
                let modelled = Modelled::new(with_weights(&loaded, weights), config)?;
                routes.push(Box::new(Modelled { name, ..modelled }));
            }
        }
        routes.push(Box::new(Modelled::new(loaded, config)?));
    }
    Ok(routes)
}

/// The same arm and model with other weights.
fn with_weights(loaded: &LoadedArm<Handle>, weights: Weights) -> LoadedArm<Handle> {
    LoadedArm {
        arm: loaded.arm.clone(),
        ranking: Arc::new(Ranking {
            weights,
            ..(*loaded.ranking).clone()
        }),
        renewed: Renewed::default(),
        new_texts: None,
        template: loaded.template.clone(),
        info: loaded.info.clone(),
        tokenizer: loaded.tokenizer.clone(),
        count: Arc::clone(&loaded.count),
        engine: loaded.engine.clone(),
    }
}
