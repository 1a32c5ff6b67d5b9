//! Hugging Face folders: weights in safetensors files, and what their tensors are called.
//!
//! Invariant: a tensor is in one file. It does not know what the tensors are for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod config;
pub(crate) mod files;
pub mod header;
mod tokenizer;

use self::config::Config;
use self::files::{read_json, read_text, weight_files};
use self::header::Header;
use super::geometry::{Geometry, Part};
use super::map::Map;
use super::misfit;
use super::source::Source;
use super::tensor::Entry;
use super::text::Text;
use crate::Error;

/// An open folder.
pub(super) struct Folder {
    path: PathBuf,
    config: Config,
    shards: Vec<Shard>,
    /// The shard of each tensor, by name.
    shard_of: BTreeMap<String, usize>,
}

struct Shard {
    map: Map,
    header: Header,
}

impl Folder {
    /// Opens a folder; reads `config.json` and the headers of the weights.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = path.join("config.json");
        if !file.exists() && path.join("adapter_config.json").exists() {
            let what = "an adapter without its model: name the model here, and this folder as the arm's adapter";
            return Err(Error::load(path, what));
        }
        if !file.exists()
            && let Some(what) = misfit::folder(path)
        {
            return Err(Error::load(path, what));
        }
        let config = Config::new(file.clone(), read_json(&file)?)?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut shard_of = BTreeMap::new();
        for file in weight_files(path)? {
            let map = Map::open(&file)?;
            let header = header::decode(map.bytes()).map_err(|e| Error::load(&file, e))?;
            for name in header.tensors.keys() {
                if let Some(other) = shard_of.insert(name.clone(), shards.len()) {
                    let other: &Shard = &shards[other];
                    let other = other.map.path().display();
                    return Err(Error::load(
                        &file,
                        format!("tensor {name} is in {other} too"),
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
            shard_of,
        })
    }

    fn shard(&self, name: &str) -> Option<(&Shard, &Entry)> {
        let shard = &self.shards[*self.shard_of.get(name)?];
        Some((shard, shard.header.tensors.get(name)?))
    }
}

impl Source for Folder {
    fn format(&self) -> &'static str {
        "safetensors"
    }

    fn geometry(&self) -> Result<Geometry, Error> {
        self.config.geometry()
    }

    fn name(&self, part: Part) -> String {
        tensor_name(part, self.config.family().result_norms)
    }

    fn tensors(&self) -> Vec<(&str, &Path, &Entry)> {
        let names = self.shard_of.keys().map(String::as_str);
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

    fn is_ignored(&self, name: &str) -> bool {
        // Older files have the frequencies of rotary pairs; a model with a tied head may have it again as a tensor.
        name.ends_with("rotary_emb.inv_freq") || name == self.name(Part::Head)
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (shard, entry) = self.shard(name)?;
        let data = shard.map.bytes().get(shard.header.data..)?;
        data.get(entry.from..entry.to)
    }

    fn has_adjacent_pairs(&self) -> bool {
        false
    }

    fn has_norms_less_one(&self) -> bool {
        self.config.family().norms_less_one
    }

    fn text(&self) -> Result<Text, Error> {
        tokenizer::text(&self.path)
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

/// Name of a tensor in a model whose results have norms, or have none.
pub(crate) fn tensor_name(part: Part, result_norms: bool) -> String {
    let (layer, name) = match part {
        Part::Embedding => return "model.embed_tokens.weight".into(),
        Part::Head => return "lm_head.weight".into(),
        Part::Norm => return "model.norm.weight".into(),
        Part::AttentionNorm(layer) => (layer, "input_layernorm.weight"),
        Part::Query(layer) => (layer, "self_attn.q_proj.weight"),
        Part::Key(layer) => (layer, "self_attn.k_proj.weight"),
        Part::Value(layer) => (layer, "self_attn.v_proj.weight"),
        Part::QueryKeyValue(layer) => (layer, "self_attn.qkv_proj.weight"),
        Part::Output(layer) => (layer, "self_attn.o_proj.weight"),
        Part::QueryBias(layer) => (layer, "self_attn.q_proj.bias"),
        Part::KeyBias(layer) => (layer, "self_attn.k_proj.bias"),
        Part::ValueBias(layer) => (layer, "self_attn.v_proj.bias"),
        Part::OutputBias(layer) => (layer, "self_attn.o_proj.bias"),
        Part::QueryNorm(layer) => (layer, "self_attn.q_norm.weight"),
        Part::KeyNorm(layer) => (layer, "self_attn.k_norm.weight"),
        Part::OutputNorm(layer) => (layer, "post_attention_layernorm.weight"),
        // Where attention's result has no norm, the norm after attention is that before the gated layer.
        Part::FeedNorm(layer) if result_norms => (layer, "pre_feedforward_layernorm.weight"),
        Part::FeedNorm(layer) => (layer, "post_attention_layernorm.weight"),
        Part::DownNorm(layer) => (layer, "post_feedforward_layernorm.weight"),
        Part::Gate(layer) => (layer, "mlp.gate_proj.weight"),
        Part::Up(layer) => (layer, "mlp.up_proj.weight"),
        Part::GateUp(layer) => (layer, "mlp.gate_up_proj.weight"),
        Part::Down(layer) => (layer, "mlp.down_proj.weight"),
    };
    format!("model.layers.{layer}.{name}")
}
