//! Loads what the arms name: templates, models and calibration prompts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context;

use super::artefact::artefact;
use super::digest;
use crate::config::Config;
use crate::files;
use crate::members::generate::{LoadedArm, NewTexts, Ranking, Renewed};
use nearshore_core::list::prompt::{Arm, Calibrations, Frozen, Template};
use nearshore_core::list::terms::Weights;
use nearshore_core::list::terms::artefact::Artefact;
use nearshore_core::shop::arms::delay_of;
use nearshore_engine::Options;
use nearshore_engine::encoder::Encoder;
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_engine::table::Table;
use nearshore_engine::thread::{Handle, spawn, spawn_with, threads};

/// Counts the tokens of a text with the tokenizer of the arm's model.
type Count = Arc<dyn Fn(&str) -> usize + Send + Sync>;

/// A running model.
#[derive(Clone)]
struct Engine {
    handle: Handle,
    count: Count,
    /// Hash of the tokenizer.
    tokenizer: String,
}

/// Loads each arm's template and model; arms with the same model file share one engine.
pub(crate) fn load_arms(config: &Config) -> anyhow::Result<Vec<LoadedArm<Handle>>> {
    let options = Options {
        threads: threads(config.engine.threads),
        precision: config.engine.precision,
        place: config.engine.device,
        ..Options::default()
    };
    let mut engines: BTreeMap<String, Engine> = BTreeMap::new();
    let mut compared = BTreeSet::new();
    let mut arms = Vec::new();
    for arm in &config.arms {
        let artefact = artefact(config, arm).with_context(|| format!("arm {}", arm.id))?;
        let weights = weights(arm, artefact.as_deref());
        let weights = weights.with_context(|| format!("arm {}", arm.id))?;
        let engine = match weights.use_model() {
            true => {
                if compared.insert((&arm.model, &arm.sha256)) {
                    same_files(config, arm).with_context(|| format!("arm {}", arm.id))?;
                }
                if !engines.contains_key(&arm.model) {
                    let engine = start(config, arm, options);
                    let engine = engine.with_context(|| format!("arm {}", arm.id))?;
                    engines.insert(arm.model.clone(), engine);
                }
                engines.get(&arm.model).cloned().context("inserted above")?
            }
            false => without_model(),
        };
        let file = config.resolve(&arm.template);
        let source = files::read(&file).with_context(|| format!("arm {}: template", arm.id))?;
        let template = Template::load(&source, &arm.template)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let known = (template.hash.as_str(), engine.tokenizer.as_str());
        let ranking = ranking((config, arm), (artefact, weights), known);
        let ranking = ranking.with_context(|| format!("arm {}", arm.id))?;
        let info = engine.handle.info().clone();
        arms.push(LoadedArm {
            arm: arm.clone(),
            ranking: Arc::new(ranking),
            renewed: Renewed::default(),
            new_texts: None,
            template,
            info,
            tokenizer: engine.tokenizer,
            count: engine.count,
            engine: engine.handle,
        });
    }
    anyhow::ensure!(
        !arms.is_empty(),
        "no [[arms]] in the configuration: add one, or start with --role ingest"
    );
    Ok(arms)
}

/// Fails unless the arm's model is the one that `sha256` names.
fn same_files(config: &Config, arm: &Arm) -> anyhow::Result<()> {
    if let Some(same) = digest::compare(config, arm)? {
        let seconds = same.took.as_secs_f64();
        tracing::info!(
            arm = arm.id,
            model = arm.model,
            files = same.files,
            bytes = same.bytes,
            seconds,
            "the model has the configured SHA-256"
        );
    }
    Ok(())
}

/// Loads the arms, and starts the encoder for texts that will be new while they serve.
pub(super) fn load_serving_arms(config: &Config) -> anyhow::Result<Vec<LoadedArm<Handle>>> {
    let mut arms = load_arms(config)?;
    start_encoder(config, &mut arms)?;
    Ok(arms)
}

/// Gives the arms whose weights need vectors of texts the configured encoder.
fn start_encoder(config: &Config, arms: &mut [LoadedArm<Handle>]) -> anyhow::Result<()> {
    let Some(folder) = config.encoder() else {
        return Ok(());
    };
    let arms = arms
        .iter_mut()
        .filter(|arm| arm.ranking.weights.use_vectors());
    let arms: Vec<&mut LoadedArm<Handle>> = arms.collect();
    if arms.is_empty() {
        return Ok(());
    }
    let encoder = Encoder::load(&folder).context("engine.encoder")?;
    tracing::info!(encoder = %folder.display(), hash = encoder.hash(), "encoder loaded");
    let new_texts = NewTexts::start(encoder);
    for loaded in arms {
        let vectors = loaded.ranking.artefact.as_ref();
        let vectors = vectors.and_then(|artefact| artefact.vectors.as_ref());
        match new_texts.fits(vectors.map(|vectors| &**vectors)) {
            true => loaded.new_texts = Some(new_texts.clone()),
            false => tracing::warn!(
                arm = loaded.arm.id,
                encoder = new_texts.encoder(),
                "the artefact's vectors are of another encoder than engine.encoder; they are used, and new texts of this \
                 arm have no vectors; run `nearshore align` with this encoder"
            ),
        }
    }
    Ok(())
}

/// What an arm ranks by, with a template of this hash and a model with this tokenizer.
pub(super) fn ranking(
    (config, arm): (&Config, &Arm),
    (artefact, weights): (Option<Arc<Artefact>>, Weights),
    known: (&str, &str),
) -> anyhow::Result<Ranking> {
    let references = (artefact.as_ref()).and_then(|artefact| artefact.references.as_deref());
    let calibrations = match references {
        _ if !weights.use_model() => Calibrations::default(),
        Some(text) => {
            let (template, tokenizer) = known;
            let read = Calibrations::read(text, template, tokenizer);
            read.context("reference prompts of the artefact")?
        }
        None => calibrations(config, arm, known)?,
    };
    Ok(Ranking {
        weights,
        artefact,
        calibrations,
    })
}

/// Reads the arm's calibration prompts; none if the arm names no file.
fn calibrations(
    config: &Config,
    arm: &Arm,
    (template, tokenizer): (&str, &str),
) -> anyhow::Result<Calibrations> {
    let Some(file) = &arm.calibration else {
        tracing::warn!(
            arm = arm.id,
            "the model has a weight in this arm without calibration prompts; its scores contain what it says to everyone"
        );
        return Ok(Calibrations::default());
    };
    let path = config.resolve(file);
    let text = files::read_filled(&path, "write it with nearshore calibrate");
    let text = text.context("calibration prompts")?;
    let calibration = Frozen::read(&text, template, tokenizer)
        .with_context(|| format!("calibration prompts {}", path.display()))?;
    Ok(Calibrations::of_all(Arc::new(calibration)))
}

/// An arm's weights: those set by hand, or its artefact's.
pub(crate) fn weights(arm: &Arm, artefact: Option<&Artefact>) -> anyhow::Result<Weights> {
    let Some(artefact) = artefact else {
        return Ok(Weights::by_hand(&arm.weights)?);
    };
    let weights = match arm.weights.is_empty() {
        true => artefact.weights.clone(),
        false => Weights::beside_artefact(&arm.weights)?,
    };
    anyhow::ensure!(
        !weights.use_table() || artefact.table.is_some(),
        "table has a weight, and the artefact has no table of products; make it with `nearshore align --table`"
    );
    Ok(weights)
}

/// A stand-in for the model of an arm that gives the model no weight: the model is not loaded.
fn without_model() -> Engine {
    Engine {
        handle: spawn(Box::new(Table::default())),
        count: Arc::new(|text: &str| text.split_whitespace().count()),
        tokenizer: "words".into(),
    }
}

/// Starts the arm's model on its own thread.
fn start(config: &Config, arm: &Arm, options: Options) -> anyhow::Result<Engine> {
    if let Some(delay) = delay_of(&arm.model) {
        let delay = delay.map_err(anyhow::Error::msg)?;
        tracing::warn!(
            arm = arm.id,
            ?delay,
            "this arm uses a table of fixed scores instead of a model; its lists are only for tests"
        );
        let handle = spawn(Box::new(Table::default().delayed(delay)));
        return Ok(Engine {
            handle,
            count: Arc::new(|text: &str| text.split_whitespace().count()),
            tokenizer: "words".into(),
        });
    }
    let path = config.resolve(&arm.model);
    let since = std::time::Instant::now();
    let limits = Limits {
        rows_max: config.engine.batch_rows_max,
        kv_max: config.engine.kv_mb_max << 20,
        time_max: config.engine.generation_max,
    };
    let model = Constrained::load(&path, options)?.limited(limits);
    for warning in &model.loading().warnings {
        tracing::warn!(arm = arm.id, model = %path.display(), "{warning}");
    }
    tracing::info!(arm = arm.id, model = %path.display(), seconds = since.elapsed().as_secs_f64(), "model loaded: {}", model.loading());
    let (text, pulse) = (model.text().clone(), model.pulse());
    let tokenizer = text.hash()?;
    Ok(Engine {
        handle: spawn_with(Box::new(model), pulse),
        count: Arc::new(move |part: &str| text.count(part)),
        tokenizer,
    })
}
