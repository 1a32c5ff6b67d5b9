//! A model that cannot be run is refused with the name of the file and of its tensor or key.

use std::path::Path;

use nearshore_engine::Options;
use nearshore_engine::search::constrained::Constrained;
use serde_json::{Value, json};

use crate::files::{fixture, fixture_json, write_folder};
use crate::gguf::find;

fn error(path: &Path) -> String {
    let loaded = Constrained::load(path, Options::default());
    loaded.err().expect("refused").to_string()
}

fn edit(folder: &Path, file: &str, key: &str, value: Value) {
    let file = folder.join(file);
    let text = std::fs::read(&file).expect("there");
    let mut all: Value = serde_json::from_slice(&text).expect("JSON");
    all[key] = value;
    std::fs::write(file, all.to_string()).expect("written");
}

/// Number of the case in the fixture, key of its configuration, new value, and a part of the error.
type Case = (usize, &'static str, Value, &'static str);

/// Settings that are not implemented.
fn unsupported_settings() -> Vec<Case> {
    vec![
        (
            0,
            "model_type",
            json!("mamba"),
            "model_type: \"mamba\" is not supported; llama",
        ),
        (0, "mlp_bias", json!(true), "key mlp_bias"),
        (
            0,
            "hidden_act",
            json!("gelu"),
            "\"gelu\" is not supported; silu is",
        ),
        (
            0,
            "partial_rotary_factor",
            json!(0.5),
            "key partial_rotary_factor",
        ),
        (
            0,
            "rope_scaling",
            json!({ "rope_type": "longrope" }),
            "\"longrope\" is not supported; linear",
        ),
        (
            0,
            "rope_scaling",
            json!({ "rope_type": "linear" }),
            "rope_scaling: factor is missing",
        ),
        (
            0,
            "rope_scaling",
            json!({ "rope_type": "linear", "factor": 0 }),
            "rope_scaling: factor 0 is",
        ),
    ]
}

/// Sizes that do not match the tensors, and windows smaller than the context.
fn sizes_that_do_not_fit() -> Vec<Case> {
    let sliding = json!(["full_attention", "sliding_attention"]);
    vec![
        (0, "hidden_size", Value::Null, "key hidden_size: missing"),
        (
            0,
            "hidden_size",
            json!(1u64 << 60),
            "heads of width 288230376151711744 are over 16384",
        ),
        (
            0,
            "num_hidden_layers",
            json!(3),
            "tensor model.layers.2.input_layernorm.weight is missing",
        ),
        (
            0,
            "num_hidden_layers",
            json!(1),
            "tensor model.layers.1.input_layernorm.weight is not part of",
        ),
        (
            0,
            "tie_word_embeddings",
            json!("yes"),
            "tie_word_embeddings: is neither true nor false",
        ),
        (
            0,
            "intermediate_size",
            json!(97),
            "has shape [96, 64], not [97, 64]",
        ),
        (
            0,
            "quantization_config",
            json!({ "quant_method": "gptq" }),
            "gptq weights are not supported",
        ),
        (
            8,
            "max_window_layers",
            json!(1),
            "key sliding_window: a window of 64 positions in a context of 512",
        ),
        (
            9,
            "layer_types",
            sliding,
            "key sliding_window: a window of 0 positions",
        ),
    ]
}

#[test]
fn settings_that_would_change_results_are_refused() {
    let fixture = fixture_json("folders.json");
    for (case, key, value, expected) in unsupported_settings()
        .into_iter()
        .chain(sizes_that_do_not_fit())
    {
        let folder = tempfile::tempdir().expect("a folder");
        write_folder(folder.path(), &fixture["cases"][case], 1);
        edit(folder.path(), "config.json", key, value);
        let error = error(folder.path());
        assert!(error.contains(expected), "{error}, not {expected}");
        let named = error.contains("config.json") || error.contains("tensor");
        assert!(named, "{error}");
    }
}

#[test]
fn missing_and_wrong_files_are_refused_by_name() {
    type Damage = fn(&Path);
    let cases: [(Damage, &str); 8] = [
        (|f| remove(f, "config.json"), "has no config.json"),
        (
            |f| remove(f, "tokenizer.json"),
            "tokenizer.json: No such file",
        ),
        (
            |f| remove(f, "tokenizer_config.json"),
            "tokenizer_config.json: No such file",
        ),
        (
            |f| remove(f, "model-00002-of-00002.safetensors"),
            "model-00002-of-00002.safetensors: No such file",
        ),
        (
            |f| {
                edit(
                    f,
                    "model.safetensors.index.json",
                    "weight_map",
                    json!({ "a": "../x" }),
                )
            },
            "\"../x\" is no name of a file",
        ),
        (
            |f| edit(f, "tokenizer_config.json", "eos_token", json!("</end>")),
            "end token \"</end>\" is unknown",
        ),
        (
            |f| {
                edit(
                    f,
                    "tokenizer_config.json",
                    "chat_template",
                    json!("{% if %}"),
                )
            },
            "tokenizer_config.json: chat template",
        ),
        (
            |f| {
                remove(f, "config.json");
                std::fs::write(f.join("adapter_config.json"), "{}").expect("written");
            },
            "an adapter without its model",
        ),
    ];
    let fixture = fixture_json("folders.json");
    for (damage, expected) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        write_folder(folder.path(), &fixture["cases"][0], 2);
        damage(folder.path());
        let error = error(folder.path());
        assert!(error.contains(expected), "{error}");
    }
}

fn remove(folder: &Path, file: &str) {
    std::fs::remove_file(folder.join(file)).expect("there");
}

#[test]
fn a_gguf_that_cannot_be_run_is_refused_with_the_reason() {
    let cases: [(&[u8], &[u8], &str); 9] = [
        (b"GGUF", b"GGML", "not a GGUF file"),
        (b"GGUF\x03", b"GGUF\x01", "version 1 is not supported"),
        (b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "big-endian"),
        (
            b"\0llama",
            b"\0mamba",
            "general.architecture: \"mamba\" is not supported; llama",
        ),
        (
            b"\x04\0\0\0\0\0\0\0gpt2",
            b"\x04\0\0\0\0\0\0\0bert",
            "\"bert\" vocabularies",
        ),
        (
            b"llama-bpe",
            b"tekken\0\0\0",
            "\"tekken\" is not supported; smollm",
        ),
        (
            b"tokenizer.ggml.pre",
            b"tokenizer.ggml.prf",
            "tokenizer.ggml.pre: is missing",
        ),
        (
            b"llama.block_count",
            b"llama.block_counu",
            "key llama.block_count: is missing",
        ),
        (
            b"blk.1.ffn_up.weight",
            b"blk.1.ffn_pu.weight",
            "tensor blk.1.ffn_up.weight is missing",
        ),
    ];
    let whole = std::fs::read(fixture("llama.gguf")).expect("there");
    for (from, to, expected) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let mut bytes = whole.clone();
        let at = find(&bytes, from);
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(&path, &bytes).expect("written");
        let error = error(&path);
        assert!(
            error.contains(expected) && error.contains("model.gguf"),
            "{error}"
        );
    }
}

#[test]
fn an_unsupported_type_is_refused_with_its_tensor() {
    let mut bytes = std::fs::read(fixture("llama.gguf")).expect("there");
    let name = b"blk.0.ffn_down.weight";
    // The name is followed by the number of dimensions, two sizes and the type.
    let at = find(&bytes, name) + name.len() + 4 + 16;
    bytes[at] = 23;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, &bytes).expect("written");
    let error = error(&path);
    assert!(
        error.contains("tensor blk.0.ffn_down.weight: type IQ4_XS is not supported"),
        "{error}"
    );
}

#[test]
fn a_weight_that_is_not_finite_is_refused_with_its_tensor() {
    let fixture = fixture_json("folders.json");
    let folder = tempfile::tempdir().expect("a folder");
    write_folder(folder.path(), &fixture["cases"][0], 1);
    let file = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("there");
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).expect("written");
    let error = error(folder.path());
    assert!(
        error.contains("model.safetensors: tensor model."),
        "{error}"
    );
    assert!(error.contains("not finite"), "{error}");
}

#[test]
fn a_pipe_and_an_empty_folder_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(error(folder.path()).contains("has no config.json"));
    let device = error(Path::new("/dev/null"));
    assert!(device.contains("neither a file nor a folder"), "{device}");
}
