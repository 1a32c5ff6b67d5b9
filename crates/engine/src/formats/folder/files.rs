//! The files of a Hugging Face folder.
//!
//! Decides which files hold the weights: those of the index, or `model.safetensors`, or every safetensors file.
//! Invariant: a file outside the folder is never named. It does not know what is in the files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Error;
use crate::formats::misfit;
use nearshore_core::text::decode;

/// The most bytes of a configuration or tokenizer; only a wrong file is larger.
const TEXT_MAX: u64 = 1 << 28;

/// The index of a model whose weights are in several files.
const INDEX: &str = "model.safetensors.index.json";

/// Lists the files that hold the weights, each once, in order.
pub(super) fn weight_files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = path.join(INDEX);
    if index.exists() {
        let listed = read_json(&index)?;
        let map = listed.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| Error::load(&index, "key weight_map: missing"))?;
        let mut files = BTreeSet::new();
        for (tensor, file) in map {
            let name = file
                .as_str()
                .filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
            let name = name.ok_or_else(|| {
                let what = format!("key weight_map, tensor {tensor}: {file} is no name of a file");
                Error::load(&index, what)
            })?;
            files.insert(path.join(name));
        }
        return Ok(files.into_iter().collect());
    }
    let single = path.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let wrong = |e: std::io::Error| Error::load(path, e.to_string());
    let mut files = BTreeSet::new();
    let mut pickles = false;
    for entry in fs::read_dir(path).map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        let ending = file.extension().unwrap_or_default();
        pickles |= ending == "bin" || ending == "pth";
        if ending == "safetensors" {
            files.insert(file);
        }
    }
    if files.is_empty() {
        let advice = if pickles {
            "; its .bin files are pickles: save the model as safetensors (transformers: save_pretrained)"
        } else {
            ""
        };
        return Err(Error::load(path, format!("no .safetensors file{advice}")));
    }
    Ok(files.into_iter().collect())
}

/// Reads a text file; refuses one that is larger than any configuration.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    let wrong = |e: std::io::Error| Error::load(path, e.to_string());
    let about = fs::metadata(path).map_err(wrong)?;
    if !about.is_file() || about.len() > TEXT_MAX {
        return Err(Error::load(
            path,
            format!("is not a file of at most {TEXT_MAX} bytes"),
        ));
    }
    let bytes = fs::read(path).map_err(wrong)?;
    if let Some(what) = misfit::content(&bytes) {
        return Err(Error::load(path, what));
    }
    decode(&bytes).map_err(|damage| {
        let line = damage.line;
        Error::load(path, format!("line {line}: {damage}"))
    })
}

/// Reads a JSON file; an error names it.
pub(crate) fn read_json(path: &Path) -> Result<Value, Error> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::load(path, e.to_string()))
}
