//! What training leaves: an adapter's folder as PEFT writes it, or a model's folder.
//!
//! Decides which files are written, the one without which the folder is nothing last. Invariant: the engine loads what
//! is written. It does not know how it was trained.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::json;

use super::TuneError;
use super::checkpoint::{failed, write, write_text};
use super::options::{Lora, Trained};
use crate::formats::adapter::{BASE, CONFIG, TENSORS};

/// The model that was trained, or that an adapter is for.
pub(super) struct Base<'a> {
    pub(super) path: &'a Path,
    pub(super) revision: &'a str,
    pub(super) layers: usize,
}

/// Why what is trained could not be written as a model; `None` if it can.
pub(super) fn refuses(trained: &Trained, model: &Path) -> Option<String> {
    let is_full = matches!(trained, Trained::Full);
    (is_full && !model.is_dir()).then(|| {
        format!(
            "{} is no folder: full tuning writes a folder with the model's own configuration and tokenizer, so it needs \
             the model as a folder with safetensors; or train an adapter",
            model.display()
        )
    })
}

/// Writes the trained tensors to `folder`.
pub(super) fn write_trained(
    folder: &Path,
    base: &Base,
    trained: &Trained,
    tensors: BTreeMap<String, &Tensor>,
) -> Result<(), TuneError> {
    let revision = (BASE, base.revision.to_owned());
    match trained {
        Trained::Lora(lora) => {
            write(&folder.join(TENSORS), tensors, revision)?;
            write_text(&folder.join(CONFIG), &config(lora, base))
        }
        Trained::Full => {
            write(&folder.join("model.safetensors"), tensors, revision)?;
            copy_texts(base.path, folder)
        }
    }
}

/// The settings of an adapter, as PEFT reads them.
fn config(lora: &Lora, base: &Base) -> String {
    let layers =
        (lora.first_layer > 0).then(|| (lora.first_layer..base.layers).collect::<Vec<_>>());
    let settings = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.path.display().to_string(),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "target_modules": lora.targets,
        "layers_to_transform": layers,
        "modules_to_save": null,
        "use_dora": false,
        "use_rslora": false,
    });
    format!("{settings:#}\n")
}

/// Copies what a model's folder has beside its weights, `config.json` last.
fn copy_texts(from: &Path, to: &Path) -> Result<(), TuneError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from).map_err(|e| failed(from, e))? {
        let path = entry.map_err(|e| failed(from, e))?.path();
        let ending = path.extension().unwrap_or_default();
        let name = path.file_name().unwrap_or_default().to_owned();
        let is_index = name.to_string_lossy().ends_with(".safetensors.index.json");
        if path.is_file() && (ending == "json" || ending == "jinja") && !is_index {
            names.push(name);
        }
    }
    names.sort_by_key(|name| name == "config.json");
    for name in names {
        let text = std::fs::read_to_string(from.join(&name)).map_err(|e| failed(from, e))?;
        write_text(&to.join(&name), &text)?;
    }
    Ok(())
}
