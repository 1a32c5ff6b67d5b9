//! An adapter as PEFT writes it: two small matrices beside some products of a model.
//!
//! Decides which adapters can be used: plain LoRA over products of layers, with one rank and one factor. A feature
//! that would change the result and is not known here is an error that names its key, a tensor that fits nothing one
//! that names the tensor. Invariant: what is added to the weights is B · A times the factor that the configuration
//! says. It does not know files of models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::folder::files::{read_json, read_text};
use super::folder::header;
use super::geometry::{Geometry, Part};
use super::map::Map;
use crate::Error;

/// File of the settings in an adapter's folder.
pub(crate) const CONFIG: &str = "adapter_config.json";

/// File of the tensors in an adapter's folder.
pub(crate) const TENSORS: &str = "adapter_model.safetensors";

/// Key of the metadata of tensors that were trained here: the revision of the model they were trained beside.
pub(crate) const BASE: &str = "nearshore_base_revision";

/// What every tensor's name begins with.
const PREFIX: &str = "base_model.model.model.layers.";

/// Keys of the settings that change nothing about a result, whatever their value.
const WITHOUT_EFFECT: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    // These say which modules were found; the tensors say so themselves.
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "target_modules",
    "runtime_config",
];

/// A product by its name in a layer: whether it is attention's, and its tensor in a layer of this number.
type Module = (&'static str, bool, fn(usize) -> Part);

/// Products that can have an adapter.
const MODULES: [Module; 9] = [
    ("q_proj", true, Part::Query),
    ("k_proj", true, Part::Key),
    ("v_proj", true, Part::Value),
    ("qkv_proj", true, Part::QueryKeyValue),
    ("o_proj", true, Part::Output),
    ("gate_proj", false, Part::Gate),
    ("up_proj", false, Part::Up),
    ("gate_up_proj", false, Part::GateUp),
    ("down_proj", false, Part::Down),
];

/// An adapter that is read and checked for itself.
pub(crate) struct Adapter {
    path: PathBuf,
    pairs: BTreeMap<Part, Pair>,
    rank: usize,
    scale: f64,
    base: Option<String>,
    revision: String,
}

/// A `[rank, in]` and B `[out, rank]`; one is missing until both are read.
#[derive(Default)]
struct Pair {
    name: String,
    a: Option<Tensor>,
    b: Option<Tensor>,
}

/// The name of a tensor of a product; `which` is `lora_A` or `lora_B`.
pub(crate) fn tensor_name(module: &str, layer: usize, which: &str) -> String {
    let attention = MODULES.iter().any(|(name, is, _)| *name == module && *is);
    let group = if attention { "self_attn" } else { "mlp" };
    format!("{PREFIX}{layer}.{group}.{module}.{which}.weight")
}

/// The product that a tensor's name means, and whether the tensor is A; `None` if it means none.
fn meant(name: &str) -> Option<(Part, bool)> {
    let (layer, rest) = name.strip_prefix(PREFIX)?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let module = rest.split('.').nth(1)?;
    let (_, _, part) = MODULES.iter().find(|(known, ..)| *known == module)?;
    let is = |which: &str| name == tensor_name(module, layer, which);
    (is("lora_A") || is("lora_B")).then(|| (part(layer), is("lora_A")))
}

impl Adapter {
    /// Reads the adapter of a folder.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let (config, tensors) = (path.join(CONFIG), path.join(TENSORS));
        if !config.exists() {
            let what = format!("has no {CONFIG}: it is no folder of an adapter as PEFT saves it");
            return Err(Error::load(path, what));
        }
        if !tensors.exists() && path.join("adapter_model.bin").exists() {
            let what = format!(
                "has its tensors in a pickle, adapter_model.bin, and not in {TENSORS}: save it again with a newer PEFT"
            );
            return Err(Error::load(path, what));
        }
        let settings = read_json(&config)?;
        let (rank, scale) = settings_of(&settings).map_err(|what| Error::load(&config, what))?;
        let map = Map::open(&tensors)?;
        let mut revision = Sha256::new();
        revision.update(read_text(&config)?.as_bytes());
        revision.update(map.bytes());
        let wrong = |what: String| Error::load(&tensors, what);
        let pairs = read_pairs(map.bytes(), rank).map_err(wrong)?;
        check_targets(&settings, &pairs).map_err(|what| Error::load(&tensors, what))?;
        Ok(Self {
            path: path.to_owned(),
            pairs,
            rank,
            scale,
            base: base_of(map.bytes()),
            revision: hex::encode(revision.finalize()),
        })
    }

    /// Folder name, for reports.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// Hash of all its bytes.
    pub(crate) fn revision(&self) -> &str {
        &self.revision
    }

    /// Fails unless the adapter fits a model of these sizes and this revision.
    pub(crate) fn check(&self, geometry: &Geometry, revision: &str) -> Result<(), Error> {
        let shapes: BTreeMap<Part, Vec<usize>> = geometry.parts().into_iter().collect();
        let wrong = |what: String| Error::load(&self.path, what);
        for (part, pair) in &self.pairs {
            let Some([out, inputs]) = shapes.get(part).map(Vec::as_slice) else {
                let family = geometry.family.name;
                return Err(wrong(format!(
                    "tensor {} is of a product that this {family} of {} layers does not have: the adapter is of another \
                     model",
                    pair.name, geometry.layers
                )));
            };
            let sizes = |x: &Option<Tensor>| x.as_ref().map(|x| x.dims().to_vec());
            let (a, b) = (sizes(&pair.a), sizes(&pair.b));
            let expected = (Some(vec![self.rank, *inputs]), Some(vec![*out, self.rank]));
            if (&a, &b) != (&expected.0, &expected.1) {
                return Err(wrong(format!(
                    "tensors of {} have shapes {a:?} and {b:?}, not {expected:?}: the adapter is of another model",
                    pair.name
                )));
            }
        }
        match &self.base {
            Some(base) if base != revision => Err(wrong(format!(
                "was trained beside the model of revision {base}, and this model's revision is {revision}: train it \
                 again, or name the model that it was trained beside"
            ))),
            _ => Ok(()),
        }
    }

    /// What the adapter has for a tensor: A `[rank, in]`, and B `[out, rank]` times its factor, in the order of
    /// `transformers`; and the rank.
    pub(crate) fn matrices(&self, part: Part) -> Option<(Vec<f32>, Vec<f32>, usize)> {
        let pair = self.pairs.get(&part)?;
        let numbers = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>()).ok();
        let (a, mut b) = (numbers(pair.a.as_ref()?)?, numbers(pair.b.as_ref()?)?);
        b.iter_mut().for_each(|number| *number *= self.scale as f32);
        Some((a, b, self.rank))
    }

    /// Adds what the adapter has for a tensor to its numbers, which are in the order of `transformers`.
    pub(crate) fn add_to(&self, part: Part, numbers: &mut [f32]) -> candle_core::Result<()> {
        let Some(Pair {
            a: Some(a),
            b: Some(b),
            ..
        }) = self.pairs.get(&part)
        else {
            return Ok(());
        };
        let product = (b.matmul(a)? * self.scale)?.flatten_all()?;
        let each = numbers.iter_mut().zip(product.to_vec1::<f32>()?);
        each.for_each(|(number, added)| *number += added);
        Ok(())
    }
}

/// Rank and factor of the settings; the error names what is not supported.
fn settings_of(settings: &Value) -> Result<(usize, f64), String> {
    let all = settings.as_object().ok_or("is no object")?;
    for (key, value) in all {
        let is_off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(true) | Value::Number(_) => false,
        };
        let is_known = match key.as_str() {
            "r" | "lora_alpha" | "use_rslora" => true,
            "peft_type" => value == "LORA",
            "bias" => value == "none",
            "task_type" => value == "CAUSAL_LM" || value.is_null(),
            // Others change the model's own weights before training.
            "init_lora_weights" => {
                value.is_boolean() || value == "gaussian" || value == "orthogonal"
            }
            key => is_off || WITHOUT_EFFECT.contains(&key),
        };
        if !is_known {
            return Err(format!(
                "key {key}: {value} is not supported; adapters are plain LoRA (or rsLoRA) over products of layers, \
                 without biases and saved modules"
            ));
        }
    }
    if settings["peft_type"] != "LORA" {
        return Err("key peft_type: missing; LORA is supported".into());
    }
    let rank = settings["r"]
        .as_u64()
        .filter(|rank| (1..=1 << 14).contains(rank));
    let rank = rank.ok_or("key r: not a whole number from 1 on")? as usize;
    let alpha = settings["lora_alpha"]
        .as_f64()
        .filter(|alpha| alpha.is_finite());
    let alpha = alpha.ok_or("key lora_alpha: not a number")?;
    let divisor = match settings["use_rslora"].as_bool() {
        Some(true) => (rank as f64).sqrt(),
        _ => rank as f64,
    };
    Ok((rank, alpha / divisor))
}

/// The pairs of a file, each complete and of this rank.
fn read_pairs(bytes: &[u8], rank: usize) -> Result<BTreeMap<Part, Pair>, String> {
    let header = header::decode(bytes)?;
    let mut pairs: BTreeMap<Part, Pair> = BTreeMap::new();
    for (name, entry) in &header.tensors {
        let (part, is_a) = meant(name).ok_or_else(|| {
            format!(
                "tensor {name} is not of a product that can have an adapter: lora_A and lora_B of q_proj, k_proj, v_proj, \
                 o_proj, gate_proj, up_proj and down_proj of layers can"
            )
        })?;
        let data = bytes.get(header.data + entry.from..header.data + entry.to);
        let numbers = entry.kind.numbers(data.unwrap_or_default());
        let numbers = numbers.map_err(|e| format!("tensor {name}: {e}"))?;
        if !numbers.iter().all(|x| x.is_finite()) {
            return Err(format!(
                "tensor {name} has values that are not finite: the file is damaged"
            ));
        }
        let [rows, columns] = entry.shape[..] else {
            return Err(format!(
                "tensor {name} has shape {:?}, not two sizes",
                entry.shape
            ));
        };
        let found = if is_a { rows } else { columns };
        if found != rank {
            return Err(format!(
                "tensor {name} is of rank {found}, and {CONFIG} says r = {rank}"
            ));
        }
        let tensor = Tensor::from_vec(numbers, (rows, columns), &Device::Cpu);
        let tensor = tensor.map_err(|e| format!("tensor {name}: {e}"))?;
        let pair = pairs.entry(part).or_default();
        pair.name = name.clone();
        if is_a {
            pair.a = Some(tensor);
        } else {
            pair.b = Some(tensor);
        }
    }
    match pairs
        .values()
        .find(|pair| pair.a.is_none() || pair.b.is_none())
    {
        Some(pair) => Err(format!(
            "tensor {} is there without its other half",
            pair.name
        )),
        None if pairs.is_empty() => Err("has no tensors".into()),
        None => Ok(pairs),
    }
}

/// Fails if a product that the settings name has no tensors at all.
fn check_targets(settings: &Value, pairs: &BTreeMap<Part, Pair>) -> Result<(), String> {
    // A text is a pattern, which PEFT matches with all modules.
    let Some(targets) = settings["target_modules"].as_array() else {
        return Ok(());
    };
    for target in targets.iter().filter_map(Value::as_str) {
        let module = target.rsplit('.').next().unwrap_or(target);
        let has = |pair: &Pair| pair.name.split('.').any(|word| word == module);
        if !pairs.values().any(has) {
            return Err(format!(
                "has no tensors of {target}, which target_modules names"
            ));
        }
    }
    Ok(())
}

/// The base that the metadata names.
fn base_of(bytes: &[u8]) -> Option<String> {
    let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes).ok()?;
    metadata.metadata().as_ref()?.get(BASE).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_tensor_name_means_its_product_and_nothing_else_does() {
        for (module, _, part) in MODULES {
            for (which, is_a) in [("lora_A", true), ("lora_B", false)] {
                let name = tensor_name(module, 17, which);
                assert_eq!(meant(&name), Some((part(17), is_a)), "{name}");
            }
        }
        assert_eq!(
            tensor_name("v_proj", 3, "lora_B"),
            "base_model.model.model.layers.3.self_attn.v_proj.lora_B.weight"
        );
        let others = [
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.model.layers.3.mlp.v_proj.lora_B.weight",
            "base_model.model.model.layers.3.self_attn.v_proj.lora_B.bias",
            "base_model.model.model.layers.3.self_attn.v_proj.lora_magnitude_vector",
            "base_model.model.model.layers.-1.self_attn.v_proj.lora_A.weight",
            "base_model.model.model.layers.x.self_attn.v_proj.lora_A.weight",
            "",
        ];
        for name in others {
            assert_eq!(meant(name), None, "{name}");
        }
    }

    #[test]
    fn settings_that_would_change_the_result_are_refused_by_name() {
        let plain = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": false,
            "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "modules_to_save": null, "rank_pattern": {},
            "megatron_core": "megatron.core", "lora_dropout": 0.1, "init_lora_weights": true });
        assert_eq!(settings_of(&plain), Ok((4, 2.0)));
        let with = |key: &str, value: Value| {
            let mut settings = plain.clone();
            settings[key] = value;
            settings_of(&settings)
        };
        assert_eq!(with("use_rslora", json!(true)), Ok((4, 4.0)));
        let cases = [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({ "q_proj": 8 })),
            ("alpha_pattern", json!({ "q_proj": 8 })),
            ("init_lora_weights", json!("pissa")),
            ("fan_in_fan_out", json!(true)),
            ("trainable_token_indices", json!([1])),
            ("peft_type", json!("IA3")),
            ("r", json!(0)),
            ("r", json!(2.5)),
            ("lora_alpha", json!(null)),
            ("a_feature_of_tomorrow", json!(1)),
        ];
        for (key, value) in cases {
            let refused = with(key, value.clone()).expect_err(key);
            assert!(
                refused.contains(&format!("key {key}")),
                "{key} {value}: {refused}"
            );
        }
    }
}
