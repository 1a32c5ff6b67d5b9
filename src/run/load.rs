//! Loading what the arms name: templates and models.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;

use crate::config::Config;
use crate::engine::Options;
use crate::engine::constrained::Constrained;
use crate::engine::text::Text;
use crate::engine::thread::default_threads;
use crate::engine::thread::{Handle, spawn_with};
use crate::generate::Loaded;
use crate::prompt::Template;

/// Loads each arm's template and model; arms with the same model file share one engine.
pub(super) fn load_arms(config: &Config) -> anyhow::Result<Vec<Loaded<Handle>>> {
    let options = Options {
        threads: match config.engine.threads {
            0 => default_threads(),
            threads => threads,
        },
        precision: config.engine.precision,
        ..Options::default()
    };
    let mut engines: BTreeMap<PathBuf, (Handle, Arc<Text>)> = BTreeMap::new();
    let mut arms = Vec::new();
    for arm in &config.arms {
        let path = config.resolve(&arm.model);
        if !engines.contains_key(&path) {
            let start = std::time::Instant::now();
            let model =
                Constrained::load(&path, options).with_context(|| format!("arm {}", arm.id))?;
            tracing::info!(arm = arm.id, model = %path.display(), seconds = start.elapsed().as_secs_f64(), "model loaded");
            let (text, pulse) = (model.text().clone(), model.pulse());
            engines.insert(path.clone(), (spawn_with(Box::new(model), pulse), text));
        }
        let (engine, text) = engines.get(&path).cloned().context("inserted above")?;
        let file = config.resolve(&arm.template);
        let source = std::fs::read_to_string(&file)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let template = Template::load(&source, &arm.template)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        // What cannot be counted is taken for as long as its bytes: over any budget rather than under.
        let count = move |said: &str| text.tokens(said).map_or(said.len(), |tokens| tokens.len());
        let info = engine.info().clone();
        arms.push(Loaded {
            arm: arm.clone(),
            template,
            info,
            count: Arc::new(count),
            engine,
        });
    }
    anyhow::ensure!(
        !arms.is_empty(),
        "no [[arms]] in the configuration: nothing to generate with"
    );
    Ok(arms)
}
