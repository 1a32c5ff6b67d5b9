//! Model folders that the tests write, and the fixtures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nearshore_engine::{Options, Place, Precision};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Options of models whose logits are compared with those of `transformers`.
pub const REFERENCE: Options = Options {
    threads: 1,
    precision: Precision::F32,
    isa: None,
    place: Place::Cpu,
    groups: None,
};

/// Path of a file of `tests/fixtures/models`.
pub fn fixture(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("tests/fixtures/models").join(name)
}

/// A JSON fixture.
pub fn fixture_json(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture(name)).expect("there");
    serde_json::from_str(&text).expect("JSON")
}

/// Token ids of a JSON list.
pub fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_u64().expect("id") as u32).collect()
}

/// Numbers of a JSON list.
pub fn floats(value: &Value) -> Vec<f64> {
    let all = value.as_array().expect("numbers").iter();
    all.map(|x| x.as_f64().expect("number")).collect()
}

/// The same numbers as `numbers` of `scripts/make-families`.
pub fn numbers(name: &str, count: usize) -> Vec<f32> {
    let mut seed = 14_695_981_039_346_656_037u64;
    for byte in name.bytes() {
        seed = (seed ^ u64::from(byte)).wrapping_mul(1_099_511_628_211);
    }
    let number = |nth: u64| {
        let mut x = seed.wrapping_add(nth.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        let signed = (x >> 56) as f32 - 128.0;
        match name {
            name if name.ends_with("norm.weight") => 1.0 + signed / 512.0,
            name if name.ends_with(".bias") => signed / 256.0,
            _ => signed / 1024.0,
        }
    };
    (1..=count as u64).map(number).collect()
}

/// Name, type, shape and bytes of a tensor.
type Part = (String, Dtype, Vec<usize>, Vec<u8>);

/// Writes the folder of a case of `folders.json`, with its weights in `shards` files.
pub fn write_folder(folder: &Path, case: &Value, shards: usize) {
    let (dtype, tensors) = (
        case["dtype"].as_str().expect("a type"),
        case["tensors"].as_object().expect("tensors"),
    );
    let mut parts: Vec<Vec<Part>> = vec![Vec::new(); shards];
    let mut places = BTreeMap::new();
    for (nth, (name, shape)) in tensors.iter().enumerate() {
        let shape: Vec<usize> = ids(shape).into_iter().map(|size| size as usize).collect();
        let values = numbers(name, shape.iter().product());
        let (dtype, bytes): (_, Vec<u8>) = match dtype {
            "F32" => (
                Dtype::F32,
                values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            "F16" => {
                let half = values.iter().map(|x| half::f16::from_f32(*x));
                (Dtype::F16, half.flat_map(|x| x.to_le_bytes()).collect())
            }
            _ => {
                let half = values.iter().map(|x| half::bf16::from_f32(*x));
                (Dtype::BF16, half.flat_map(|x| x.to_le_bytes()).collect())
            }
        };
        parts[nth % shards].push((name.clone(), dtype, shape, bytes));
        places.insert(name.clone(), file_name(nth % shards, shards));
    }
    for (nth, part) in parts.iter().enumerate() {
        let views = part.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a view");
            (name.clone(), view)
        });
        let file = folder.join(file_name(nth, shards));
        safetensors::serialize_to_file(views, None, &file).expect("written");
    }
    if shards > 1 {
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": places });
        write_json(&folder.join("model.safetensors.index.json"), &index);
    }
    write_json(&folder.join("config.json"), &case["config"]);
    let last = case["config"]["vocab_size"].as_u64().expect("a size") - 1;
    write_tokenizer(folder, last);
}

fn file_name(nth: usize, of: usize) -> String {
    match of {
        1 => "model.safetensors".into(),
        _ => format!("model-{:05}-of-{of:05}.safetensors", nth + 1),
    }
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).expect("written");
}

/// Writes a tokenizer of three words.
fn write_tokenizer(folder: &Path, end: u64) {
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{ "id": end, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "?": 0, "milk": 1, "bread": 2, "</s>": end },
            "unk_token": "?" },
    });
    write_json(&folder.join("tokenizer.json"), &tokenizer);
    let config = json!({ "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}" });
    write_json(&folder.join("tokenizer_config.json"), &config);
}
