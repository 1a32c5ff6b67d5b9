//! Loading what the arms name: templates and models.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;

use crate::arms::delay_of;
use crate::config::Config;
use crate::engine::Options;
use crate::engine::constrained::Constrained;
use crate::engine::table::Table;
use crate::engine::thread::{Handle, default_threads, spawn, spawn_with};
use crate::generate::Loaded;
use crate::prompt::{Arm, Template};

/// Tokens of a text, as the arm's model counts them.
type Count = Arc<dyn Fn(&str) -> usize + Send + Sync>;

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
    let mut engines: BTreeMap<String, (Handle, Count)> = BTreeMap::new();
    let mut arms = Vec::new();
    for arm in &config.arms {
        if !engines.contains_key(&arm.model) {
            let loaded = start(config, arm, options).with_context(|| format!("arm {}", arm.id))?;
            engines.insert(arm.model.clone(), loaded);
        }
        let (engine, count) = engines.get(&arm.model).cloned().context("inserted above")?;
        let file = config.resolve(&arm.template);
        let source = std::fs::read_to_string(&file)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let template = Template::load(&source, &arm.template)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let info = engine.info().clone();
        arms.push(Loaded {
            arm: arm.clone(),
            template,
            info,
            count,
            engine,
        });
    }
    anyhow::ensure!(
        !arms.is_empty(),
        "no [[arms]] in the configuration: nothing to generate with"
    );
    Ok(arms)
}

/// An arm's model on a thread of its own, and how its prompts are counted.
fn start(config: &Config, arm: &Arm, options: Options) -> anyhow::Result<(Handle, Count)> {
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
        ));
    }
    let path = config.resolve(&arm.model);
    let since = std::time::Instant::now();
    let model = Constrained::load(&path, options)?;
    tracing::info!(arm = arm.id, model = %path.display(), seconds = since.elapsed().as_secs_f64(), "model loaded");
    let (text, pulse) = (model.text().clone(), model.pulse());
    // What cannot be counted is taken for as long as its bytes: over any budget rather than under.
    let count = move |said: &str| text.tokens(said).map_or(said.len(), |tokens| tokens.len());
    Ok((spawn_with(Box::new(model), pulse), Arc::new(count)))
}
