//! Folders of sentence encoders: a small random one runs, and what cannot be used is refused with file and cause.

use std::path::Path;

use nearshore_engine::encoder::Encoder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::files::numbers;
use crate::largest::largest;

const WIDTH: usize = 8;
const FEED: usize = 12;
const VOCABULARY: usize = 11;
const POSITIONS: usize = 16;

fn config() -> Value {
    json!({ "model_type": "bert", "hidden_act": "gelu", "hidden_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": FEED, "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-12 })
}

fn tokenizer() -> Value {
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let template = json!([{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
        { "Sequence": { "id": "A", "type_id": 0 } }, { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }]);
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "milk", "bread", "sham", "##poo", "tea", "##s", "a",
    ];
    let vocabulary: serde_json::Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    json!({ "version": "1.0",
        "truncation": { "max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": { "strategy": { "Fixed": 12 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]" },
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": {
            "[CLS]": { "id": "[CLS]", "ids": [2], "tokens": ["[CLS]"] },
            "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] } } },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary } })
}

/// Names and shapes of all tensors.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        (
            "embeddings.word_embeddings.weight".to_owned(),
            vec![VOCABULARY, WIDTH],
        ),
        (
            "embeddings.position_embeddings.weight".to_owned(),
            vec![POSITIONS, WIDTH],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_owned(),
            vec![2, WIDTH],
        ),
    ];
    let mut dense = |name: String, out: usize, inner: Option<usize>| {
        let shape = inner.map_or(vec![out], |inner| vec![out, inner]);
        all.push((format!("{name}.weight"), shape));
        all.push((format!("{name}.bias"), vec![out]));
    };
    dense("embeddings.LayerNorm".into(), WIDTH, None);
    for layer in 0..2 {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        for part in ["query", "key", "value"] {
            dense(name(&format!("attention.self.{part}")), WIDTH, Some(WIDTH));
        }
        dense(name("attention.output.dense"), WIDTH, Some(WIDTH));
        dense(name("attention.output.LayerNorm"), WIDTH, None);
        dense(name("intermediate.dense"), FEED, Some(WIDTH));
        dense(name("output.dense"), WIDTH, Some(FEED));
        dense(name("output.LayerNorm"), WIDTH, None);
    }
    all
}

/// Writes a whole folder with these tensors, all F32.
fn write(folder: &Path, shapes: &[(String, Vec<usize>)]) {
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| {
            let of = numbers(name, shape.iter().product()).into_iter();
            of.flat_map(|x| (x * 100.0).to_le_bytes()).collect()
        })
        .collect();
    let views = shapes.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view");
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))
        .expect("written");
    write_json(folder, "config.json", &config());
    write_json(folder, "tokenizer.json", &tokenizer());
    std::fs::create_dir_all(folder.join("1_Pooling")).expect("made");
    let pooling = json!({ "word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": true,
        "pooling_mode_cls_token": false });
    write_json(folder, "1_Pooling/config.json", &pooling);
}

fn write_json(folder: &Path, name: &str, value: &Value) {
    std::fs::write(folder.join(name), value.to_string()).expect("written");
}

fn whole() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), &shapes());
    folder
}

/// The error of a folder, which must have these parts.
fn refused(folder: &Path, parts: &[&str]) {
    let error = Encoder::load(folder).err().expect("refused").to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} has no {part:?}");
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_not_followed() {
    let folder = whole();
    let encoder = Encoder::load(folder.path()).expect("loads");
    assert_eq!(encoder.width(), WIDTH);
    let texts = ["milk bread tea a", "milk bread tea", "milk bread"];
    let vectors = encoder.encode(&texts).expect("encoded");
    assert_ne!(vectors[0], vectors[1], "the file cuts after 4 tokens");
    // 16 positions: longer texts are cut there.
    let long = encoder.encode(&["tea ".repeat(14).as_str(), "tea ".repeat(99).as_str()]);
    let long = long.expect("encoded");
    assert_eq!(long[0], long[1]);
}

#[test]
fn the_hash_changes_with_weights_tokenizer_and_configuration() {
    let folder = whole();
    let hash = |folder: &Path| Encoder::load(folder).expect("loads").hash().to_owned();
    let first = hash(folder.path());
    assert_eq!(
        first,
        hash(whole().path()),
        "it does not depend on the path"
    );
    let file = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("there");
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let second = hash(folder.path());
    let mut words = tokenizer();
    words["model"]["vocab"]["coffee"] = words["model"]["vocab"]["tea"].take();
    words["model"]["vocab"]
        .as_object_mut()
        .expect("words")
        .remove("tea");
    write_json(folder.path(), "tokenizer.json", &words);
    let third = hash(folder.path());
    let mut other = config();
    other["layer_norm_eps"] = json!(1e-6);
    write_json(folder.path(), "config.json", &other);
    let all = [first, second, third, hash(folder.path())];
    let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!(distinct.len(), 4, "{all:?}");
}

#[test]
fn a_folder_that_is_not_an_encoder_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    refused(
        &folder.path().join("none"),
        &["none: ", "scripts/fetch-encoder"],
    );
    refused(folder.path(), &["config.json", "scripts/fetch-encoder"]);
    for file in ["tokenizer.json", "model.safetensors"] {
        let folder = whole();
        std::fs::remove_file(folder.path().join(file)).expect("removed");
        refused(folder.path(), &[file]);
        std::fs::write(
            folder.path().join(file),
            "version https://git-lfs.github.com/spec/v1\n",
        )
        .expect("written");
        refused(folder.path(), &[file, "git lfs pull"]);
        std::fs::write(folder.path().join(file), "").expect("written");
        refused(folder.path(), &[file, "is empty"]);
    }
    for (key, value, part) in [
        ("model_type", json!("llama"), "\"llama\" is not supported"),
        ("hidden_act", json!("relu"), "gelu is"),
        (
            "position_embedding_type",
            json!("relative_key"),
            "absolute is",
        ),
        ("num_attention_heads", json!(3), "3 heads do not divide 8"),
        ("num_attention_heads", json!(0), "whole number over 0"),
        ("hidden_size", json!(u64::MAX), "whole number over 0"),
        ("vocab_size", Value::Null, "missing"),
        ("max_position_embeddings", json!(2), "first token"),
        ("layer_norm_eps", json!("small"), "not a number"),
    ] {
        let folder = whole();
        let mut config = config();
        config[key] = value;
        write_json(folder.path(), "config.json", &config);
        refused(folder.path(), &["config.json", key, part]);
    }
    let folder = whole();
    let pooling = json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false });
    write_json(folder.path(), "1_Pooling/config.json", &pooling);
    refused(
        folder.path(),
        &["1_Pooling/config.json", "pooling_mode_cls_token", "mean"],
    );
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    for (nth, (name, shape)) in shapes().into_iter().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut all = shapes();
        all.remove(nth);
        write(folder.path(), &all);
        refused(folder.path(), &["model.safetensors", &name, "is missing"]);
        // Any number of kinds of token is an encoder: only the first is used.
        if !name.contains("token_type") {
            let mut wide = shape;
            wide[0] += 1;
            all.push((name.clone(), wide));
            write(folder.path(), &all);
            refused(
                folder.path(),
                &["model.safetensors", &name, "has shape", "config.json says"],
            );
        }
    }
    let folder = whole();
    let mut words = tokenizer();
    words["model"]["vocab"]["coffee"] = json!(VOCABULARY);
    write_json(folder.path(), "tokenizer.json", &words);
    refused(
        folder.path(),
        &["tokenizer.json", "ids up to 11", "different encoders"],
    );
    let mut words = tokenizer();
    let kept = words["model"]["vocab"].as_object_mut().expect("words");
    kept.remove("[SEP]");
    words["added_tokens"]
        .as_array_mut()
        .expect("tokens")
        .remove(3);
    write_json(folder.path(), "tokenizer.json", &words);
    refused(folder.path(), &["tokenizer.json", "no token [SEP]"]);
}

#[test]
fn a_damaged_folder_is_refused_or_runs_and_never_panics() {
    let folder = whole();
    let (mut ran, mut refused) = (0, 0);
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        let path = folder.path().join(file);
        let whole = std::fs::read(&path).expect("there");
        for seed in 0..400u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut bytes = whole.clone();
            let until = if seed % 2 == 0 {
                bytes.len().min(2000)
            } else {
                bytes.len()
            };
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..until.min(bytes.len()).max(1));
                match random.random_range(0..4) {
                    0 => bytes.truncate(at),
                    1 => bytes[at] = b"0123456789-e.\"{}[],:"[random.random_range(0..20)],
                    _ => bytes[at] ^= 1 << random.random_range(0..8),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            std::fs::write(&path, &bytes).expect("written");
            match Encoder::load(folder.path()) {
                Ok(encoder) => {
                    // Vectors or an error, never a panic.
                    let _ = encoder.encode(&["milk shampoo", "", "🍫 [SEP] teas"]);
                    ran += 1;
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        error.contains("json") || error.contains("safetensors"),
                        "{error}"
                    );
                    refused += 1;
                }
            }
        }
        std::fs::write(&path, &whole).expect("written");
    }
    println!(
        "{refused} refused, {ran} ran; largest allocation {}",
        largest()
    );
    assert!(refused > 300 && ran > 40, "{refused} refused, {ran} ran");
    assert!(largest() < 8 << 20, "{}", largest());
}
