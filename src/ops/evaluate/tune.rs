//! `nearshore tune`: trains an arm's model, or an adapter beside it, on the cases that `align` makes of the log.
//!
//! Invariant: the mixture beside which a user's case is learned is of other folds, and users who decide when to stop are
//! not learned from. Nothing is written but the folder of what was trained. It does not know how a model is trained.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use nearshore_engine::train::{Step, TuneCase, TuneOptions, Tuned, Tuner};
use schemars::JsonSchema;
use serde::Serialize;

use super::History;
use super::align::{AlignOptions, everyone, fit};
use super::arms::Modelled;
use super::asked_cases::{AskedCase, Wanted, asked_cases};
use super::model::model_of;
use crate::config::Config;
use nearshore_core::shop::arms::delay_of;

/// What is trained, and which users' cases are learned from.
#[derive(Clone, Debug)]
pub(crate) struct TuneOrder {
    /// Arm whose model and template are used.
    pub(crate) arm: String,
    /// Its users.
    pub(crate) wanted: Wanted,
    /// How it is trained.
    pub(crate) options: TuneOptions,
    /// Folder of what is trained, and of checkpoints meanwhile.
    pub(crate) folder: PathBuf,
    /// Whether a checkpoint in the folder is gone on with.
    pub(crate) resume: bool,
}

/// What was done, for a person.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct TuneReport {
    /// Arm whose model was trained.
    pub(crate) arm: String,
    /// Folder of what was trained.
    pub(crate) folder: PathBuf,
    /// What training did.
    #[serde(flatten)]
    pub(crate) tuned: Tuned,
    /// Seconds of training, those before a resumed checkpoint not counted.
    pub(crate) seconds: f64,
}

/// Fits the mixture, makes the cases, and trains. `progress` is called for each part, `each` for each step.
pub(crate) fn tune(
    history: &History,
    config: &Config,
    (options, order): (&AlignOptions, &TuneOrder),
    progress: &(dyn Fn(&str) + Sync),
    each: &mut dyn FnMut(Step),
) -> anyhow::Result<TuneReport> {
    let arm = config.arms.iter().find(|arm| arm.id == order.arm);
    let arm = arm.with_context(|| format!("--arm {}: there is no such arm", order.arm))?;
    ensure!(
        arm.endpoint.is_none() && delay_of(&arm.model).is_none(),
        "arm {}: its model is not a file that is loaded here, so it cannot be trained",
        arm.id
    );
    ensure!(
        arm.adapter.is_none(),
        "arm {}: training begins at the model's own weights; leave out its adapter, or merge it into the model",
        arm.id
    );
    let fitted = fit(history, config, (options, None), progress)?;
    let among = everyone(history)?;
    let modelled = Modelled::new(model_of(config, &order.arm)?, config)?;
    let wanted = (&order.wanted, &modelled, &fitted);
    let asked = asked_cases(history, config, (options, &among), wanted, progress)?;
    // Two copies of the model need not be in memory at once.
    drop(modelled);
    let cases: Vec<TuneCase> = asked.into_iter().map(case).collect();
    let names = history.catalogue.names();
    let mut tuner = Tuner::open(&config.resolve(&arm.model), names, order.options.clone())?;
    let since = Instant::now();
    let done = tuner.run(&cases, &order.folder, order.resume, &mut |step| {
        each(step);
        ControlFlow::Continue(())
    })?;
    let Some(tuned) = done else {
        bail!("training was stopped; the last checkpoint stays");
    };
    Ok(TuneReport {
        arm: order.arm.clone(),
        folder: order.folder.clone(),
        tuned,
        seconds: since.elapsed().as_secs_f64(),
    })
}

fn case(asked: AskedCase) -> TuneCase {
    TuneCase {
        prompt: asked.prompt,
        products: asked.products,
        offset: asked.offset,
        targets: asked.targets,
        is_tune: asked.is_tune,
    }
}
