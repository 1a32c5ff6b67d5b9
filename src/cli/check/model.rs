//! Checks the arms: their files, and whether their models load.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Item;
use crate::config::Config;
use crate::files;
use nearshore_core::list::prompt::Arm;
use nearshore_core::shop::arms::delay_of;
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Model, Options};

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
    }
    items.extend(calibrations(config));
    items.extend(models(config).into_iter().map(|path| {
        let item = format!("model {}", path.display());
        match readable(&path) {
            Ok(found) => Item::ok(item, found),
            Err(error) => {
                Item::fail(item, error).advise("give a GGUF file or a folder with *.safetensors")
            }
        }
    }));
    items
}

/// Checks that the calibration files are there and are text. Whether they fit template and tokenizer is checked when the
/// arms are loaded.
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

fn models(config: &Config) -> BTreeSet<PathBuf> {
    let arms = config.arms.iter();
    arms.filter(|arm| delay_of(&arm.model).is_none())
        .map(|arm| config.resolve(&arm.model))
        .collect()
}

fn readable(path: &PathBuf) -> Result<String, String> {
    let plain = |error: std::io::Error| error.to_string();
    let metadata = std::fs::metadata(path).map_err(plain)?;
    if metadata.is_dir() {
        let mut size = 0;
        for entry in std::fs::read_dir(path).map_err(plain)? {
            let entry = entry.map_err(plain)?;
            if entry
                .path()
                .extension()
                .is_some_and(|end| end == "safetensors")
            {
                size += entry.metadata().map_err(plain)?.len();
            }
        }
        return if size > 0 {
            Ok(megabytes(size))
        } else {
            Err("the folder has no *.safetensors".into())
        };
    }
    let mut magic = [0; 4];
    let mut file = std::fs::File::open(path).map_err(plain)?;
    std::io::Read::read_exact(&mut file, &mut magic).map_err(plain)?;
    if &magic == b"GGUF" {
        Ok(megabytes(metadata.len()))
    } else {
        Err("it is not a GGUF file: the first four bytes are wrong".into())
    }
}

fn megabytes(size: u64) -> String {
    format!("{:.1} MB", size as f64 / 1e6)
}

/// Loads each model once, one after the other, because two may not fit into memory.
pub(super) async fn loads(config: &Config) -> Vec<Item> {
    let mut items = Vec::new();
    for path in models(config) {
        let item = format!("model {} loads", path.display());
        let options = Options {
            precision: config.engine.precision,
            place: config.engine.device,
            ..Options::default()
        };
        let loaded = tokio::task::spawn_blocking(move || {
            Constrained::load(&path, options).map(|model| (model.info(), model.loading().clone()))
        });
        items.push(match loaded.await {
            Ok(Ok((info, loading))) => Item::ok(
                item,
                format!("{} on {}: {loading}", info.dtype, info.device),
            ),
            Ok(Err(error)) => Item::fail(item, error.to_string()),
            Err(error) => Item::fail(item, format!("loading panicked: {error}")),
        });
    }
    items
}
