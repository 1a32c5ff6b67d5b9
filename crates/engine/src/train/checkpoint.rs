//! A checkpoint: all that training needs to go on, in one safetensors file.
//!
//! Decides what is in it. Invariant: it is written beside the last one and renamed, so a process that is killed leaves
//! a whole one; and a checkpoint of other cases, options or models is refused. It does not know how steps are made.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::TuneError;
use super::adamw::Moments;
use super::network::Parameters;
use crate::formats::map::Map;

/// Its name in the folder.
pub(super) const FILE: &str = "checkpoint.safetensors";

/// Key of the state in the file's metadata.
const STATE: &str = "state";

/// What is known besides tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// Hash of model, options, names and cases.
    pub(super) run: String,
    /// Steps done.
    pub(super) step: usize,
    /// Bits of the loss on tune cases before the first step.
    pub(super) before: u64,
    /// Bits of the least loss on tune cases.
    pub(super) best: u64,
    /// Step that had it.
    pub(super) best_step: usize,
    /// Looks at the tune cases since then.
    pub(super) worse: usize,
}

/// What is written and read.
pub(super) struct Checkpoint {
    pub(super) state: State,
    /// The numbers of the best look.
    pub(super) best: Vec<Tensor>,
}

fn parts() -> [&'static str; 4] {
    ["number", "first", "second", "best"]
}

impl Checkpoint {
    /// Writes it to `folder`, in place of the last one.
    pub(super) fn write(
        &self,
        folder: &Path,
        parameters: &Parameters,
        moments: &Moments,
    ) -> Result<(), TuneError> {
        let numbers: Vec<Tensor> = (parameters.vars.iter())
            .map(|var| var.as_tensor().detach())
            .collect();
        let lists = [&numbers, &moments.first, &moments.second, &self.best];
        let mut tensors: BTreeMap<String, &Tensor> = BTreeMap::new();
        for (part, list) in parts().into_iter().zip(lists) {
            for (name, tensor) in parameters.names.iter().zip(list) {
                tensors.insert(format!("{part}:{name}"), tensor);
            }
        }
        let state = serde_json::to_string(&self.state).map_err(|e| failed(folder, e))?;
        write(&folder.join(FILE), tensors, (STATE, state))
    }

    /// Reads that of `folder` into `parameters` and `moments`; `None` if there is none.
    pub(super) fn read(
        folder: &Path,
        run: &str,
        parameters: &Parameters,
        moments: &mut Moments,
        device: &Device,
    ) -> Result<Option<Self>, TuneError> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let state = state_of(&path)?;
        if state.run != run {
            let what = "is of other cases, options, names or another model: give what it was written with, or another \
                        folder";
            return Err(TuneError::Checkpoint {
                path: path.display().to_string(),
                what: what.into(),
            });
        }
        let mut found =
            candle_core::safetensors::load(&path, device).map_err(|e| failed(&path, e))?;
        let mut lists: [Vec<Tensor>; 4] = Default::default();
        for (part, list) in parts().into_iter().zip(&mut lists) {
            for (name, var) in parameters.names.iter().zip(&parameters.vars) {
                let tensor = found.remove(&format!("{part}:{name}"));
                let tensor = tensor.filter(|tensor| tensor.dims() == var.dims());
                let what = || format!("has no {part} of {name} in its shape: it is damaged");
                list.push(tensor.ok_or_else(|| failed(&path, what()))?);
            }
        }
        let [numbers, first, second, best] = lists;
        for (var, number) in parameters.vars.iter().zip(&numbers) {
            var.set(number).map_err(|e| failed(&path, e))?;
        }
        *moments = Moments { first, second };
        Ok(Some(Self { state, best }))
    }
}

fn state_of(path: &Path) -> Result<State, TuneError> {
    let map = Map::open(path)?;
    let metadata = safetensors::SafeTensors::read_metadata(map.bytes());
    let (_, metadata) = metadata.map_err(|e| failed(path, e))?;
    let state = metadata.metadata().as_ref().and_then(|all| all.get(STATE));
    let state = state.ok_or_else(|| failed(path, "has no state: it is no checkpoint"))?;
    serde_json::from_str(state).map_err(|e| failed(path, e))
}

/// Writes tensors with one text as metadata, by a file beside it that is renamed.
pub(super) fn write(
    path: &Path,
    tensors: BTreeMap<String, &Tensor>,
    (key, text): (&str, String),
) -> Result<(), TuneError> {
    let metadata = HashMap::from([(key.to_owned(), text)]);
    let part = part_of(path);
    safetensors::serialize_to_file(tensors, Some(metadata), &part).map_err(|e| failed(&part, e))?;
    place(&part, path)
}

/// Writes a text, by a file beside it that is renamed.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), TuneError> {
    let part = part_of(path);
    std::fs::write(&part, text).map_err(|e| failed(&part, e))?;
    place(&part, path)
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    path.with_file_name(name)
}

/// Makes a written file durable, and gives it its name.
fn place(part: &Path, path: &Path) -> Result<(), TuneError> {
    let synced = File::open(part).and_then(|file| file.sync_all());
    synced.map_err(|e| failed(part, e))?;
    std::fs::rename(part, path).map_err(|e| failed(path, e))
}

pub(super) fn failed(path: &Path, what: impl std::fmt::Display) -> TuneError {
    TuneError::Checkpoint {
        path: path.display().to_string(),
        what: what.to_string(),
    }
}
