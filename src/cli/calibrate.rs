//! `nearshore calibrate`: writes an arm's calibration prompts to the file that `calibration` names.
//!
//! Invariant: an existing file is replaced only with --force, because audits of lists contain its hash.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;

use crate::config::Config;
use crate::files;
use nearshore_core::list::prompt::{Arm, Frozen, PROMPTS, Person, Template};
use nearshore_engine::Options;
use nearshore_engine::search::constrained::Constrained;

/// Arguments of `nearshore calibrate`.
#[derive(Args, Clone, Debug)]
pub(super) struct CalibrateArgs {
    /// Arm whose calibration file is written.
    #[arg(long, value_name = "ID")]
    arm: String,
    /// Users who stand for everyone, one JSON object per line: {"profile": {..}, "bought": [..], "segment": ".."}, or
    /// {"prompt": "..", "assistant": ".."}.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Replace an existing calibration file; raise the arm's epoch then.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(config: &Config, args: &CalibrateArgs, json: bool) -> anyhow::Result<ExitCode> {
    let arm = config.arms.iter().find(|arm| arm.id == args.arm);
    let arm = arm.with_context(|| {
        format!(
            "--arm {:?} is not configured; give the id of one of [[arms]]",
            args.arm
        )
    })?;
    anyhow::ensure!(
        !arm.is_free(),
        "arm {} has a model that writes freely, which gives no scores to calibrate",
        arm.id
    );
    let file = arm.calibration.as_ref();
    let file = file.with_context(|| {
        format!(
            "arm {} names no file for its calibration prompts; add to it: calibration = \"calibration/{}.json\"",
            arm.id, arm.id
        )
    })?;
    let file = config.resolve(file);
    anyhow::ensure!(
        args.force || !file.exists(),
        "{} already holds calibration prompts; --force replaces them, then raise the arm's epoch",
        file.display()
    );
    let people = read_people(&args.from)?;
    let frozen = freeze(config, arm, &people)?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    std::fs::write(&file, frozen.to_json())
        .with_context(|| format!("cannot write {}", file.display()))?;
    if json {
        let written = Calibrated {
            arm: &arm.id,
            file: file.display().to_string(),
            prompts: frozen.len(),
        };
        out!("{}", serde_json::to_string(&written)?);
    } else {
        out!(
            "{}: {} calibration prompts written for arm {}",
            file.display(),
            frozen.len(),
            arm.id
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What `calibrate` wrote.
#[derive(Serialize, JsonSchema)]
pub(super) struct Calibrated<'a> {
    /// The arm.
    arm: &'a str,
    /// The file.
    file: String,
    /// Number of prompts in it.
    prompts: usize,
}

/// Reads the users of `--from`, one JSON object per line.
fn read_people(from: &Path) -> anyhow::Result<Vec<Person>> {
    let text = files::read(from).context("--from")?;
    let mut people: Vec<Person> = Vec::new();
    for (nth, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let person = serde_json::from_str(line);
        people.push(person.with_context(|| format!("{}:{}", from.display(), nth + 1))?);
    }
    anyhow::ensure!(
        !people.is_empty(),
        "--from {} has no line to make a calibration prompt from",
        from.display()
    );
    if people.len() != PROMPTS {
        note!("{} calibration prompts; {PROMPTS} are usual", people.len());
    }
    Ok(people)
}

/// Renders one calibration prompt per user with the template and tokenizer of the arm.
fn freeze(config: &Config, arm: &Arm, people: &[Person]) -> anyhow::Result<Frozen> {
    let path = config.resolve(&arm.template);
    let source = files::read(&path).with_context(|| format!("arm {}: template", arm.id))?;
    let template = Template::load(&source, &arm.template)?;
    let same = crate::run::digest::compare(config, arm);
    same.with_context(|| format!("arm {}", arm.id))?;
    let model = Constrained::load(&config.resolve(&arm.model), Options::default())?;
    for warning in &model.loading().warnings {
        note!("{}: {warning}", arm.model);
    }
    let text = model.text();
    let count = |part: &str| text.count(part);
    let tokenizer = text.hash()?;
    Ok(Frozen::freeze(
        people,
        (&template, &tokenizer),
        (arm.prompt_tokens, &count),
    )?)
}
