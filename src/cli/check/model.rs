//! Checks the arms: their files, and whether their models load, and write where they are to write.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;

use super::Item;
use crate::config::Config;
use crate::files;
use crate::run::{artefact_of, digest, head_fits, weights as arm_weights};
use nearshore_core::list::prompt::{Arm, Template};
use nearshore_core::list::terms::MODEL;
use nearshore_core::names::writing::{Decoding, WriteRequest};
use nearshore_core::shop::arms::delay_of;
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Model, Options, Place, on_this_machine};

/// Most tokens of the text that a model writes on trial.
const TOKENS: u32 = 8;

/// Checks model files. Templates were parsed and rendered when the configuration was loaded.
pub(super) fn files(config: &Config) -> Vec<Item> {
    if config.arms.is_empty() {
        let found = "none: no lists can be generated";
        let advice = "add [[arms]], or start with --role ingest only";
        return vec![Item::warn("arms", found).advise(advice)];
    }
    let shares: u64 = config.arms.iter().map(|arm| u64::from(arm.share)).sum();
    let mut items = Vec::new();
    for arm in &config.arms {
        let share = 100.0 * f64::from(arm.share) / shares as f64;
        let found = format!(
            "epoch {}, {share:.1} % of users, {} renders",
            arm.epoch, arm.template
        );
        items.push(Item::ok(format!("arm {}", arm.id), found));
        items.extend(terms(config, arm));
        items.extend(digests(config, arm));
    }
    items.extend(calibrations(config));
    let paths = models(config).into_iter().map(|model| model.path);
    let paths: BTreeSet<PathBuf> = paths.collect();
    if config.engine.device == Place::Cpu && !paths.is_empty() {
        let found = on_this_machine(config.engine.precision, None);
        items.push(Item::ok("engine.precision", found));
    }
    for path in paths {
        let item = format!("model {}", path.display());
        // Headers, tokenizer and chat template; weights are read when the model is loaded.
        match nearshore_engine::inspect(&path) {
            Ok(found) => {
                let size = found.file_bytes as f64 / 1e6;
                let what = format!("{} {}, {size:.1} MB", found.family, found.format);
                items.push(Item::ok(item.as_str(), what));
                items.extend(found.warnings.iter().map(|warning| warned(&item, warning)));
            }
            Err(error) => {
                items.push(Item::fail(item, error.to_string()).advise(
                    "docs/models.md says what a model's files must be, and what is refused",
                ))
            }
        }
    }
    items
}

/// Checks where an arm's weights are from: of an artefact, or set by hand.
fn terms(config: &Config, arm: &Arm) -> Option<Item> {
    let item = format!("arm {}: weights", arm.id);
    if let Some(folder) = &arm.artefact {
        let read = artefact_of(&config.resolve(folder));
        let fits = |artefact| {
            let weights = arm_weights(arm, Some(&artefact))?;
            let template = template_of(config, arm)?;
            head_fits(Some(&artefact), &weights, (&template, None)).map(|()| artefact)
        };
        return Some(match read.and_then(fits) {
            Ok(artefact) => {
                let made = &artefact.made;
                let until = jiff::Timestamp::from_millisecond(made.until).unwrap_or_default();
                let found = format!(
                    "artefact {}, learned from {} users and {} purchases until {until:.0}",
                    artefact.hash, made.users, made.purchases
                );
                Item::ok(item, found)
            }
            Err(error) => Item::fail(item, format!("{error:#}")).advise(
                "make an artefact with `nearshore align`, and name its folder as `artefact`",
            ),
        });
    }
    let by_hand = arm.weights.get(MODEL).is_some_and(|weight| *weight > 0.0);
    by_hand.then(|| {
        let found = "the model's weight was set by hand, and no evaluation shows that it helps";
        let advice = match arm.endpoint {
            None => {
                "`nearshore align` fits weights, `nearshore evaluate` compares the arm with demand"
            }
            Some(_) => "compare its lists with those of an arm without it: `nearshore arms`",
        };
        Item::warn(item, found).advise(advice)
    })
}

/// Hash of an arm's template.
fn template_of(config: &Config, arm: &Arm) -> anyhow::Result<String> {
    let source = files::read(&config.resolve(&arm.template))?;
    Ok(Template::load(&source, &arm.template)?.hash)
}

/// Whether the heads of the arms with this model were trained on its hidden states.
fn heads_fit(config: &Config, model: &Merged, revision: &str) -> anyhow::Result<()> {
    for arm in config
        .arms
        .iter()
        .filter(|arm| Merged::of(config, arm) == *model)
    {
        let Some(folder) = &arm.artefact else {
            continue;
        };
        // What else is wrong with them is told of the arm.
        let Ok(artefact) = artefact_of(&config.resolve(folder)) else {
            continue;
        };
        if let (Ok(weights), Ok(template)) =
            (arm_weights(arm, Some(&artefact)), template_of(config, arm))
        {
            let fits = head_fits(Some(&artefact), &weights, (&template, Some(revision)));
            fits.with_context(|| format!("arm {}", arm.id))?;
        }
    }
    Ok(())
}

/// Checks that an arm's model is the one that `sha256` names. Reads the whole model.
fn digests(config: &Config, arm: &Arm) -> Option<Item> {
    let item = format!("arm {}: sha256", arm.id);
    if arm.sha256.is_some() && !uses_model(config, arm) {
        return Some(Item::ok(
            item,
            "not compared: the model has no weight in this arm, so it is not loaded",
        ));
    }
    match digest::compare(config, arm) {
        Ok(None) => None,
        Ok(Some(same)) => {
            let size = same.bytes as f64 / 1e6;
            let files = if same.files == 1 { "file" } else { "files" };
            let found = format!("{} {files}, {size:.1} MB, as configured", same.files);
            Some(Item::ok(item, found))
        }
        Err(error) => {
            let text = format!("{error:#}");
            let (found, advice) = text
                .split_once(". ")
                .unwrap_or((&text, "docs/models.md says what is compared"));
            Some(Item::fail(item, found).advise(advice))
        }
    }
}

/// Checks that the calibration files are there and are text. Whether they fit template and tokenizer is checked when
/// the arms are loaded.
fn calibrations(config: &Config) -> Vec<Item> {
    let named = |arm: &Arm| Some((arm.id.clone(), config.resolve(arm.calibration.as_ref()?)));
    let checked = config.arms.iter().filter_map(named).map(|(arm, path)| {
        let item = format!("calibration {}", path.display());
        let advice = format!("write it with nearshore calibrate --arm {arm}");
        match files::read_filled(&path, "it must have calibration prompts") {
            Ok(text) => Item::ok(item, format!("{} bytes", text.len())),
            Err(error) => Item::fail(item, error.to_string()).advise(advice),
        }
    });
    checked.collect()
}

/// A warning of a model: what is wrong, and behind the first semicolon what to do.
fn warned(item: &str, warning: &str) -> Item {
    match warning.split_once("; ") {
        Some((found, advice)) => Item::warn(item, found).advise(advice),
        None => Item::warn(item, warning),
    }
}

/// A model with the adapter that is merged into it, if there is one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Merged {
    path: PathBuf,
    adapter: Option<PathBuf>,
}

impl Merged {
    fn of(config: &Config, arm: &Arm) -> Self {
        Self {
            path: config.resolve(&arm.model),
            adapter: arm.adapter.as_ref().map(|folder| config.resolve(folder)),
        }
    }

    /// What a line of the report calls it.
    fn item(&self) -> String {
        match &self.adapter {
            None => format!("model {} loads", self.path.display()),
            Some(adapter) => format!(
                "model {} with adapter {} loads",
                self.path.display(),
                adapter.display()
            ),
        }
    }
}

fn models(config: &Config) -> BTreeSet<Merged> {
    let arms = config.arms.iter();
    arms.filter(|arm| arm.endpoint.is_none() && delay_of(&arm.model).is_none())
        .filter(|arm| uses_model(config, arm))
        .map(|arm| Merged::of(config, arm))
        .collect()
}

/// Whether any of the arm's weights gives the model a part; an artefact that cannot be read is told elsewhere.
fn uses_model(config: &Config, arm: &Arm) -> bool {
    let read = |folder| artefact_of(&config.resolve(folder));
    let Ok(artefact) = arm.artefact.as_ref().map(read).transpose() else {
        return false;
    };
    arm_weights(arm, artefact.as_ref()).is_ok_and(|weights| weights.ask_model())
}

/// The arms whose text this model writes.
fn writers(config: &Config, model: &Merged) -> Vec<Arm> {
    let arms = config.arms.iter();
    arms.filter(|arm| arm.is_free() && arm.endpoint.is_none())
        .filter(|arm| uses_model(config, arm) && Merged::of(config, arm) == *model)
        .cloned()
        .collect()
}

/// Has one short text written, about no user, and compares the arm's bounds with the model's context.
fn writes(model: &mut Constrained, arm: &Arm) -> Item {
    let item = format!("arm {}: model writes", arm.id);
    let decoding = arm.decoding.unwrap_or_default();
    let (most, context) = (decoding.max_tokens as usize, model.context());
    if arm.prompt_tokens + most > context {
        let found = format!(
            "prompt_tokens {} and decoding.max_tokens {most} are over the model's context of {context} tokens",
            arm.prompt_tokens
        );
        return Item::fail(item, found).advise("lower one of them");
    }
    let request = WriteRequest {
        prompt: "Write one word.".into(),
        decoding: Decoding {
            max_tokens: decoding.max_tokens.min(TOKENS),
            ..decoding
        },
        ..WriteRequest::default()
    };
    let start = Instant::now();
    match model.write(&[request]) {
        Ok(texts) => {
            let tokens = texts.first().map_or(0, |text| text.tokens);
            let took = start.elapsed().as_secs_f64();
            Item::ok(item, format!("{tokens} tokens in {took:.1} s"))
        }
        Err(error) => Item::fail(item, error.to_string()),
    }
}

/// Loads each model once, one after the other, because two may not fit into memory. A model with another hash than its
/// arm names is not loaded.
pub(super) async fn loads(config: &Config) -> Vec<Item> {
    let mut items = Vec::new();
    let refused = |arm: &&Arm| digest::compare(config, arm).is_err();
    let refused = config.arms.iter().filter(refused);
    let refused: BTreeSet<PathBuf> = refused.map(|arm| config.resolve(&arm.model)).collect();
    for model in models(config) {
        if refused.contains(&model.path) {
            continue;
        }
        let item = model.item();
        let options = Options {
            precision: config.engine.precision,
            place: config.engine.device,
            ..Options::default()
        };
        let Merged { path, adapter } = model.clone();
        let writers = writers(config, &model);
        let loaded = tokio::task::spawn_blocking(move || {
            let mut model = Constrained::load_adapted(&path, adapter.as_deref(), options)?;
            let written: Vec<Item> = writers.iter().map(|it| writes(&mut model, it)).collect();
            Ok::<_, nearshore_engine::Error>((model.info(), model.loading().clone(), written))
        });
        let mut written = Vec::new();
        items.push(match loaded.await {
            Ok(Ok((info, loading, texts))) => {
                written = texts;
                match heads_fit(config, &model, &info.revision) {
                    Ok(()) => Item::ok(
                        item,
                        format!("{} on {}: {loading}", info.dtype, info.device),
                    ),
                    Err(error) => Item::fail(item, format!("{error:#}")),
                }
            }
            Ok(Err(error)) => Item::fail(item, error.to_string()),
            Err(error) => Item::fail(item, format!("loading panicked: {error}")),
        });
        items.extend(written);
    }
    items
}
