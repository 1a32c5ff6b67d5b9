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
        (9, "layer_types", sliding, "key use_sliding_window: is not"),
    ]
}

fn case(nth: usize, key: &'static str, value: Value, expected: &'static str) -> Case {
    (nth, key, value, expected)
}

/// Settings of Gemma, whose layers differ.
fn settings_of_gemma() -> Vec<Case> {
    let scaled = json!({ "sliding_attention": { "rope_type": "linear", "factor": 2.0 } });
    let types = json!(["full_attention"]);
    let missing = "tensor model.layers.3.input_layernorm.weight is missing";
    vec![
        case(13, "model_type", json!("gemma3"), "\"gemma3\" is not"),
        case(
            13,
            "sliding_window",
            Value::Null,
            "key sliding_window: missing",
        ),
        case(13, "layer_types", types, "layer_types: is not a list of 3"),
        case(
            13,
            "hidden_activation",
            json!("gelu"),
            "gelu_pytorch_tanh is",
        ),
        case(
            13,
            "attn_logit_softcapping",
            json!(50.0),
            "soft caps of attention",
        ),
        case(
            13,
            "final_logit_softcapping",
            json!(0.0),
            "0 is not above 0",
        ),
        case(
            13,
            "use_bidirectional_attention",
            json!(true),
            "only causal models",
        ),
        case(13, "query_pre_attn_scalar", json!(-1), "-1 is not above 0"),
        case(
            13,
            "rope_parameters",
            scaled,
            "scaling in layers with a window",
        ),
        case(
            13,
            "rope_local_base_freq",
            json!(0.5),
            "the base 0.5 is not above 1",
        ),
        case(13, "num_hidden_layers", json!(4), missing),
        case(
            13,
            "num_hidden_layers",
            json!(1u64 << 40),
            "layers are not within",
        ),
    ]
}

/// Settings of other families with windows, layers without positions, and rotated parts of heads.
fn settings_of_other_families() -> Vec<Case> {
    let longrope = json!({ "type": "longrope", "short_factor": [1.0, 1.0] });
    let fused = "tensor model.layers.0.mlp.gate_up_proj.weight has shape";
    vec![
        case(12, "sliding_window", json!(0), "a window of 0 positions"),
        case(
            19,
            "no_rope_layers",
            json!([1, 2]),
            "no_rope_layers: is not a list",
        ),
        case(
            19,
            "no_rope_layer_interval",
            json!("x"),
            "not a whole number",
        ),
        case(
            19,
            "use_sliding_window",
            json!(true),
            "key layer_types: missing",
        ),
        case(21, "intermediate_size", json!(97), fused),
        case(22, "rope_scaling", longrope, "2 divisors for 6 pairs"),
        case(
            22,
            "partial_rotary_factor",
            json!(1.5),
            "rotating 1.5 of each head",
        ),
    ]
}

#[test]
fn settings_that_would_change_results_are_refused() {
    let fixture = fixture_json("folders.json");
    for (case, key, value, expected) in unsupported_settings()
        .into_iter()
        .chain(sizes_that_do_not_fit())
        .chain(settings_of_gemma())
        .chain(settings_of_other_families())
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
        refused(&whole, from, to, expected);
    }
}

#[test]
fn a_gguf_of_gemma_that_cannot_be_run_is_refused_with_the_reason() {
    let cases: [(&[u8], &[u8], &str); 5] = [
        (
            b"gemma3.attention.sliding_window",
            b"gemma3.attention.sliding_windox",
            "key gemma3.attention.sliding_window: is missing",
        ),
        (
            b"blk.0.post_ffw_norm.weight",
            b"blk.0.post_ffw_mron.weight",
            "tensor blk.0.post_ffw_norm.weight is missing",
        ),
        (
            b"tokenizer.ggml.scores",
            b"tokenizer.ggml.scorex",
            "key tokenizer.ggml.scores: is missing",
        ),
        (
            b"<0x41>",
            b"<0x4x>",
            "key tokenizer.ggml.tokens: <0x41> is missing",
        ),
        // The scores of the first two pieces that merge, -0 and -1.
        (
            &[0, 0, 0, 0x80, 0, 0, 0x80, 0xbf],
            &[0, 0, 0x80, 0xbf, 0, 0, 0x80, 0xbf],
            "both have -1, so the order of merges is unknown",
        ),
    ];
    let whole = std::fs::read(fixture("gemma3.gguf")).expect("there");
    for (from, to, expected) in cases {
        refused(&whole, from, to, expected);
    }
    // The name of a tensor is followed by the number of dimensions and the sizes.
    let name = b"blk.0.post_attention_norm.weight";
    let at = find(&whole, name) + name.len() + 4;
    let mut bytes = whole.clone();
    bytes[at] -= 1;
    refused(
        &bytes,
        b"",
        b"",
        "tensor blk.0.post_attention_norm.weight has shape [31], not [32]",
    );
    let half = &whole[..whole.len() / 2];
    refused(half, b"", b"", "cut short, or damaged");
}

/// Writes a GGUF with `from` overwritten by `to`, and compares the error of loading it.
fn refused(whole: &[u8], from: &[u8], to: &[u8], expected: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    let mut bytes = whole.to_vec();
    if !from.is_empty() {
        let at = find(&bytes, from);
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    std::fs::write(&path, &bytes).expect("written");
    let error = error(&path);
    assert!(
        error.contains(expected) && error.contains("model.gguf"),
        "{error}, not {expected}"
    );
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
