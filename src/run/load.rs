//! Loading what the arms name: templates and models.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;

use crate::config::Config;
use crate::members::generate::Loaded;
use nearshore_core::list::prompt::{Arm, Frozen, Template};
use nearshore_core::names::scoring::Calibration;
use nearshore_core::shop::arms::delay_of;
use nearshore_engine::Options;
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_engine::table::Table;
use nearshore_engine::thread::{Handle, default_threads, spawn, spawn_with};

/// Tokens of a text, as the arm's model counts them.
type Count = Arc<dyn Fn(&str) -> usize + Send + Sync>;

/// A running model: the way to it, its counting, the hash of its tokenizer.
type Engine = (Handle, Count, String);

/// Loads each arm's template and model; arms with the same model file share one engine.
pub(super) fn load_arms(config: &Config) -> anyhow::Result<Vec<Loaded<Handle>>> {
    let options = Options {
        threads: match config.engine.threads {
            0 => default_threads(),
            threads => threads,
        },
        precision: config.engine.precision,
        place: config.engine.device,
        ..Options::default()
    };
    let mut engines: BTreeMap<String, Engine> = BTreeMap::new();
    let mut arms = Vec::new();
    for arm in &config.arms {
        if !engines.contains_key(&arm.model) {
            let loaded = start(config, arm, options).with_context(|| format!("arm {}", arm.id))?;
            engines.insert(arm.model.clone(), loaded);
        }
        let (engine, count, tokenizer) =
            engines.get(&arm.model).cloned().context("inserted above")?;
        let file = config.resolve(&arm.template);
        let source = std::fs::read_to_string(&file)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let template = Template::load(&source, &arm.template)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let calibration = calibration(config, arm, (&template, &tokenizer));
        let calibration = calibration.with_context(|| format!("arm {}", arm.id))?;
        let info = engine.info().clone();
        arms.push(Loaded {
            arm: arm.clone(),
            template,
            info,
            count,
            calibration,
            engine,
        });
    }
    anyhow::ensure!(
        !arms.is_empty(),
        "no [[arms]] in the configuration: nothing to generate with"
    );
    Ok(arms)
}

/// The arm's frozen calibration prompts, if it has any.
fn calibration(
    config: &Config,
    arm: &Arm,
    (template, tokenizer): (&Template, &str),
) -> anyhow::Result<Option<Arc<Calibration>>> {
    let Some(file) = &arm.calibration else {
        tracing::warn!(
            arm = arm.id,
            "no calibration: its lists keep the model's habits"
        );
        return Ok(None);
    };
    let path = config.resolve(file);
    let text = std::fs::read_to_string(&path);
    let text = text.with_context(|| format!("calibration {}", path.display()))?;
    let read = Frozen::read(&text, &template.hash, tokenizer);
    let calibration = read.with_context(|| format!("calibration {}", path.display()))?;
    Ok(Some(Arc::new(calibration)))
}

/// An arm's model on a thread of its own, and how its prompts are counted.
fn start(config: &Config, arm: &Arm, options: Options) -> anyhow::Result<Engine> {
    if let Some(delay) = delay_of(&arm.model) {
        let delay = delay.map_err(anyhow::Error::msg)?;
        tracing::warn!(
            arm = arm.id,
            ?delay,
            "a table instead of a model: its lists mean nothing"
        );
        let engine = spawn(Box::new(Table::default().delayed(delay)));
        return Ok((
            engine,
            Arc::new(|said: &str| said.split_whitespace().count()),
            "words".into(),
        ));
    }
    let path = config.resolve(&arm.model);
    let since = std::time::Instant::now();
    let limits = Limits {
        rows_max: config.engine.batch_rows_max,
        kv_max: config.engine.kv_mb_max << 20,
        time_max: config.engine.generation_max,
    };
    let model = Constrained::load(&path, options)?.limited(limits);
    tracing::info!(arm = arm.id, model = %path.display(), seconds = since.elapsed().as_secs_f64(), "model loaded: {}", model.loading());
    let (text, pulse) = (model.text().clone(), model.pulse());
    let tokenizer = text.hash()?;
    // What cannot be counted is taken for as long as its bytes: over any budget rather than under.
    let count = move |said: &str| text.tokens(said).map_or(said.len(), |tokens| tokens.len());
    Ok((
        spawn_with(Box::new(model), pulse),
        Arc::new(count),
        tokenizer,
    ))
}
