//! Hugging Face folders: weights in safetensors files, and how their tensors are called.
//!
//! Decides which files hold the weights: those of the index, or `model.safetensors`, or all there
//! are. Invariant: a tensor is in one file. It does not know what the tensors are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

mod config;
pub mod header;

use self::config::Config;
use self::header::Header;
use super::load::map::Map;
use super::load::{Entry, Geometry, Part, Source, refuse};
use super::text::Text;
use crate::Error;

/// No configuration or tokenizer is larger; a wrong file may be.
const TEXT_MAX: u64 = 1 << 28;

/// The index of a model in several files.
const INDEX: &str = "model.safetensors.index.json";

/// An open folder.
pub struct Folder {
    path: PathBuf,
    config: Config,
    shards: Vec<Shard>,
    /// Tensor -> its shard.
    places: BTreeMap<String, usize>,
}

struct Shard {
    map: Map,
    header: Header,
}

impl Folder {
    /// Reads `config.json` and the headers of the weights.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = path.join("config.json");
        if !file.exists() && path.join("adapter_config.json").exists() {
            let what = "an adapter without its model; merge the two (peft: merge_and_unload) and save that";
            return Err(refuse(path, what));
        }
        let config = Config::new(file.clone(), read_json(&file)?)?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut places = BTreeMap::new();
        for file in weight_files(path)? {
            let map = Map::open(&file)?;
            let header = header::decode(map.bytes()).map_err(|e| refuse(&file, e))?;
            for name in header.tensors.keys() {
                if let Some(other) = places.insert(name.clone(), shards.len()) {
                    let other: &Shard = &shards[other];
                    let other = other.map.path().display();
                    return Err(refuse(
                        &file,
                        format!("tensor {name} is in {other} already"),
                    ));
                }
            }
            shards.push(Shard { map, header });
        }
        let path = path.to_owned();
        Ok(Self {
            path,
            config,
            shards,
            places,
        })
    }

    fn shard(&self, name: &str) -> Option<(&Shard, &Entry)> {
        let shard = &self.shards[*self.places.get(name)?];
        Some((shard, shard.header.tensors.get(name)?))
    }
}

/// The files that hold the weights, each once, in order.
fn weight_files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = path.join(INDEX);
    if index.exists() {
        let listed = read_json(&index)?;
        let map = listed.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| refuse(&index, "key weight_map: missing"))?;
        let mut files = BTreeSet::new();
        for (tensor, file) in map {
            let name = file
                .as_str()
                .filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
            let name = name.ok_or_else(|| {
                let what = format!("key weight_map, tensor {tensor}: {file} is no name of a file");
                refuse(&index, what)
            })?;
            files.insert(path.join(name));
        }
        return Ok(files.into_iter().collect());
    }
    let single = path.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let wrong = |e: std::io::Error| refuse(path, e.to_string());
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
        return Err(refuse(path, format!("no .safetensors file{advice}")));
    }
    Ok(files.into_iter().collect())
}

/// A file of text of sensible size, or an error that names it.
pub(super) fn read_text(path: &Path) -> Result<String, Error> {
    let wrong = |e: std::io::Error| refuse(path, e.to_string());
    let about = fs::metadata(path).map_err(wrong)?;
    if !about.is_file() || about.len() > TEXT_MAX {
        return Err(refuse(path, "is no text file of sensible size"));
    }
    fs::read_to_string(path).map_err(wrong)
}

/// A JSON file, or an error that names it.
pub(super) fn read_json(path: &Path) -> Result<Value, Error> {
    serde_json::from_str(&read_text(path)?).map_err(|e| refuse(path, e.to_string()))
}

impl Source for Folder {
    fn format(&self) -> &'static str {
        "safetensors"
    }

    fn geometry(&self) -> Result<Geometry, Error> {
        self.config.geometry()
    }

    fn name(&self, part: Part) -> String {
        let (layer, name) = match part {
            Part::Embedding => return "model.embed_tokens.weight".into(),
            Part::Head => return "lm_head.weight".into(),
            Part::Norm => return "model.norm.weight".into(),
            Part::AttentionNorm(layer) => (layer, "input_layernorm.weight"),
            Part::Query(layer) => (layer, "self_attn.q_proj.weight"),
            Part::Key(layer) => (layer, "self_attn.k_proj.weight"),
            Part::Value(layer) => (layer, "self_attn.v_proj.weight"),
            Part::Output(layer) => (layer, "self_attn.o_proj.weight"),
            Part::QueryBias(layer) => (layer, "self_attn.q_proj.bias"),
            Part::KeyBias(layer) => (layer, "self_attn.k_proj.bias"),
            Part::ValueBias(layer) => (layer, "self_attn.v_proj.bias"),
            Part::OutputBias(layer) => (layer, "self_attn.o_proj.bias"),
            Part::QueryNorm(layer) => (layer, "self_attn.q_norm.weight"),
            Part::KeyNorm(layer) => (layer, "self_attn.k_norm.weight"),
            Part::FeedNorm(layer) => (layer, "post_attention_layernorm.weight"),
            Part::Gate(layer) => (layer, "mlp.gate_proj.weight"),
            Part::Up(layer) => (layer, "mlp.up_proj.weight"),
            Part::Down(layer) => (layer, "mlp.down_proj.weight"),
        };
        format!("model.layers.{layer}.{name}")
    }

    fn tensors(&self) -> Vec<(&str, &Path, &Entry)> {
        let names = self.places.keys().map(String::as_str);
        names
            .filter_map(|name| {
                let (shard, entry) = self.shard(name)?;
                Some((name, shard.map.path(), entry))
            })
            .collect()
    }

    fn tensor(&self, name: &str) -> Option<(&Path, &Entry)> {
        let (shard, entry) = self.shard(name)?;
        Some((shard.map.path(), entry))
    }

    fn spare(&self, name: &str) -> bool {
        // Older files keep the speeds of rotary pairs; tied ones may keep the head twice.
        name.ends_with("rotary_emb.inv_freq") || name == self.name(Part::Head)
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (shard, entry) = self.shard(name)?;
        let data = shard.map.bytes().get(shard.header.data..)?;
        data.get(entry.from..entry.to)
    }

    fn side_by_side(&self) -> bool {
        false
    }

    fn text(&self) -> Result<Text, Error> {
        Text::from_folder(&self.path)
    }

    fn identity(&self, add: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        add(self.config.text().as_bytes());
        add(read_text(&self.path.join("tokenizer.json"))?.as_bytes());
        for shard in &self.shards {
            add(&shard.map.bytes()[..shard.header.data]);
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        let sizes = self.shards.iter().map(|shard| shard.map.bytes().len());
        sizes.sum::<usize>() as u64
    }
}
