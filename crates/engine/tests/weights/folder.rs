//! A Hugging Face folder with a tiny random Llama, written by this test and computed again in f64.

use std::collections::BTreeMap;
use std::path::Path;

use nearshore_engine::Options;
use nearshore_engine::search::constrained::Constrained;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

const HIDDEN: usize = 24;
const LAYERS: usize = 2;
const HEADS: usize = 6;
const KEY_HEADS: usize = 2;
const WIDTH: usize = 4;
const FEED: usize = 40;
const VOCABULARY: usize = 257;

/// Name -> rows, columns, values.
type Tensors = BTreeMap<String, (usize, usize, Vec<f32>)>;

fn tensors(tied: bool) -> Tensors {
    let mut state = 12345u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // Values of 8 bits, so that bf16 holds them exactly.
        ((state >> 56) as f32 - 128.0) / 256.0
    };
    let mut all = Tensors::new();
    let mut add = |name: String, rows: usize, columns: usize| {
        let values = (0..rows * columns).map(|_| next()).collect();
        all.insert(name, (rows, columns, values));
    };
    add("model.embed_tokens.weight".into(), VOCABULARY, HIDDEN);
    if !tied {
        add("lm_head.weight".into(), VOCABULARY, HIDDEN);
    }
    add("model.norm.weight".into(), 1, HIDDEN);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        add(name("input_layernorm"), 1, HIDDEN);
        add(name("self_attn.q_proj"), HEADS * WIDTH, HIDDEN);
        add(name("self_attn.k_proj"), KEY_HEADS * WIDTH, HIDDEN);
        add(name("self_attn.v_proj"), KEY_HEADS * WIDTH, HIDDEN);
        add(name("self_attn.o_proj"), HIDDEN, HEADS * WIDTH);
        add(name("post_attention_layernorm"), 1, HIDDEN);
        add(name("mlp.gate_proj"), FEED, HIDDEN);
        add(name("mlp.up_proj"), FEED, HIDDEN);
        add(name("mlp.down_proj"), HIDDEN, FEED);
    }
    all
}

/// Writes the folder: two shards, one of them bf16, and a tokenizer of single letters.
fn write(folder: &Path, tensors: &Tensors, tied: bool) {
    let mut data: Vec<Vec<u8>> = Vec::new();
    for (nth, (_, _, values)) in tensors.values().enumerate() {
        let half = |x: &f32| half::bf16::from_f32(*x).to_le_bytes();
        data.push(if nth % 2 == 0 {
            values.iter().flat_map(|x| x.to_le_bytes()).collect()
        } else {
            values.iter().flat_map(half).collect()
        });
    }
    for shard in 0..2 {
        let views = tensors
            .iter()
            .zip(&data)
            .enumerate()
            .filter(|(nth, _)| nth % 2 == shard);
        let views = views.map(|(_, ((name, (rows, columns, _)), data))| {
            let shape = if *rows == 1 {
                vec![*columns]
            } else {
                vec![*rows, *columns]
            };
            let dtype = if shard == 0 { Dtype::F32 } else { Dtype::BF16 };
            (
                name.clone(),
                TensorView::new(dtype, shape, data).expect("a view"),
            )
        });
        let file = folder.join(format!("model-0000{shard}-of-00002.safetensors"));
        safetensors::serialize_to_file(views, None, &file).expect("written");
    }
    let vocabulary: BTreeMap<String, usize> = (0..VOCABULARY - 1)
        .map(|i| {
            (
                char::from_u32(0x100 + i as u32)
                    .expect("a letter")
                    .to_string(),
                i,
            )
        })
        .chain([("</s>".to_owned(), VOCABULARY - 1)])
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{ "id": VOCABULARY - 1, "content": "</s>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "Split", "pattern": { "Regex": "." },
            "behavior": "Isolated", "invert": false },
        "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "\u{100}" },
    });
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS, "head_dim": WIDTH,
        "intermediate_size": FEED, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": tied,
        "hidden_act": "silu",
    });
    let template = "{% for m in messages %}{{ m['content'].strip() }}{{ eos_token }}{% endfor %}";
    let tokenizer_config = json!({ "eos_token": { "content": "</s>" }, "chat_template": template });
    for (name, value) in [
        ("tokenizer.json", tokenizer),
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
    ] {
        std::fs::write(folder.join(name), value.to_string()).expect("written");
    }
}

/// Rotates the pairs (i, i + half) of every head.
fn rotate(x: &mut [f64], position: usize) {
    for head in x.chunks_exact_mut(WIDTH) {
        for i in 0..WIDTH / 2 {
            let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / WIDTH as f64);
            let (a, b) = (head[i], head[i + WIDTH / 2]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + WIDTH / 2] = b * angle.cos() + a * angle.sin();
        }
    }
}

/// The last token's logits in f64, by the formulas.
fn logits(tensors: &Tensors, tokens: &[u32]) -> Vec<f64> {
    let row = |name: &str, row: usize| -> Vec<f64> {
        let (_, columns, values) = &tensors[name];
        let row = &values[row * columns..(row + 1) * columns];
        row.iter().map(|x| f64::from(*x)).collect()
    };
    let times = |name: &str, x: &[f64]| -> Vec<f64> {
        let product = |r| row(name, r).iter().zip(x).map(|(w, x)| w * x).sum();
        (0..tensors[name].0).map(product).collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + 1e-5).sqrt();
        row(name, 0)
            .iter()
            .zip(x)
            .map(|(w, x)| w * x * scale)
            .collect()
    };
    let add = |x: &mut [f64], y: &[f64]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    let embed = |token: &u32| row("model.embed_tokens.weight", *token as usize);
    let mut rows: Vec<Vec<f64>> = tokens.iter().map(embed).collect();
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in rows.iter_mut().enumerate() {
            let normed = norm(&name("input_layernorm"), x);
            let mut query = times(&name("self_attn.q_proj"), &normed);
            let mut key = times(&name("self_attn.k_proj"), &normed);
            rotate(&mut query, position);
            rotate(&mut key, position);
            keys.push(key);
            values.push(times(&name("self_attn.v_proj"), &normed));
            let mut mixed = vec![0f64; HEADS * WIDTH];
            for head in 0..HEADS {
                let columns = head * WIDTH..(head + 1) * WIDTH;
                let of = head / (HEADS / KEY_HEADS) * WIDTH;
                let score = |key: &Vec<f64>| {
                    let products = query[columns.clone()]
                        .iter()
                        .zip(&key[of..])
                        .map(|(q, k)| q * k);
                    (products.sum::<f64>() / (WIDTH as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let sum: f64 = scores.iter().sum();
                for (score, value) in scores.iter().zip(&values) {
                    let value: &Vec<f64> = value;
                    for (out, v) in mixed[columns.clone()].iter_mut().zip(&value[of..]) {
                        *out += score / sum * v;
                    }
                }
            }
            add(x, &times(&name("self_attn.o_proj"), &mixed));
            let normed = norm(&name("post_attention_layernorm"), x);
            let gate = times(&name("mlp.gate_proj"), &normed).into_iter();
            let gated: Vec<f64> = gate
                .zip(times(&name("mlp.up_proj"), &normed))
                .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
                .collect();
            add(x, &times(&name("mlp.down_proj"), &gated));
        }
    }
    let last = norm("model.norm.weight", rows.last().expect("a token"));
    let tied = !tensors.contains_key("lm_head.weight");
    let head = ["lm_head.weight", "model.embed_tokens.weight"][usize::from(tied)];
    times(head, &last)
}

#[test]
fn a_folder_of_safetensors_gives_the_logits_of_the_formulas() {
    for tied in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors = tensors(tied);
        write(folder.path(), &tensors, tied);
        let model = Constrained::load(folder.path(), super::options(1)).expect("loads");
        let tokens: Vec<u32> = (0..100).map(|i| i * 37 % 251).collect();
        let all: Vec<u32> = (0..VOCABULARY as u32).collect();
        let ours = model.logits(&tokens, &all).expect("logits");
        for (ours, exact) in ours.iter().zip(logits(&tensors, &tokens)) {
            assert!(
                (f64::from(*ours) - exact).abs() < 1e-3,
                "{ours} {exact}, tied {tied}"
            );
        }
        let prompt = model
            .text()
            .prompt(&super::turns(" \u{101}\u{102}", "\u{103}"));
        assert_eq!(prompt.expect("tokens"), [1, 2, 256, 3]);
    }
}

#[test]
fn a_folder_that_cannot_be_run_is_refused_with_the_reason() {
    type Damage = fn(&Path);
    fn edit(folder: &Path, key: &str, value: serde_json::Value) {
        let file = folder.join("config.json");
        let text = std::fs::read(&file).expect("there");
        let mut config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        config[key] = value;
        std::fs::write(file, config.to_string()).expect("written");
    }
    let cases: [(Damage, &str); 8] = [
        (
            |f| edit(f, "model_type", json!("mamba")),
            "model_type: \"mamba\" is not supported",
        ),
        (
            |f| edit(f, "attention_bias", json!(true)),
            "self_attn.q_proj.bias is missing",
        ),
        (
            |f| edit(f, "rope_scaling", json!({ "rope_type": "llama3" })),
            "key rope_scaling",
        ),
        (
            |f| edit(f, "hidden_size", json!(null)),
            "key hidden_size: missing",
        ),
        (|f| edit(f, "num_hidden_layers", json!(3)), "layers.2."),
        (
            |f| edit(f, "intermediate_size", json!(41)),
            "has shape [40, 24], not [41, 24]",
        ),
        (
            |f| std::fs::remove_file(f.join("tokenizer.json")).expect("there"),
            "tokenizer.json",
        ),
        (
            |f| {
                let file = f.join("model-00001-of-00002.safetensors");
                let bytes = std::fs::read(&file).expect("there");
                std::fs::write(file, &bytes[..bytes.len() / 2]).expect("written");
            },
            "model-00001-of-00002.safetensors",
        ),
    ];
    for (damage, expected) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), &tensors(true), true);
        damage(folder.path());
        let error = Constrained::load(folder.path(), Options::default())
            .err()
            .expect("refused")
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}
