//! Memory while a model is loaded.

use std::path::Path;
use std::process::Command;

use nearshore_engine::search::constrained::{Bases, Constrained};
use nearshore_engine::{Options, Precision};
use peak_alloc::PeakAlloc;
use safetensors::tensor::{Dtype, TensorView};

use super::model_path;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// Set where the test runs alone in a process, to the precision that it loads.
const ALONE: &str = "NEARSHORE_TEST_MEMORY_OF";

/// Runs this test alone in a process for `what`; other tests of this process allocate, too.
fn alone(test: &str, what: &str) {
    let alone = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ALONE, what)
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&alone.stderr);
    assert!(alone.status.success(), "{what}: {said}");
    assert!(said.contains("MB stay"), "the test did not run: {said}");
}

fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

#[test]
fn loading_takes_at_most_three_tenths_more_memory_than_what_stays() {
    let Ok(precision) = std::env::var(ALONE) else {
        for precision in ["f32", "bf16", "int8"] {
            let test = "memory::loading_takes_at_most_three_tenths_more_memory_than_what_stays";
            alone(test, precision);
        }
        return;
    };
    let options = options(precision.parse().expect("one of ours"));
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let model = Constrained::load(&model_path(), options).expect("loads");
    let stays = ALLOCATED.current_usage() - before;
    let peak = ALLOCATED.peak_usage() - before;
    let what = format!("{:.1} MB stay, {:.1} at the peak", mb(stays), mb(peak));
    eprintln!("{precision}: {what}");
    assert!(stays > model.bytes(), "the weights are counted");
    assert!(peak as f64 <= 1.3 * stays as f64, "{what}");
}

fn options(precision: Precision) -> Options {
    Options {
        precision,
        ..Options::default()
    }
}

/// Writes an adapter of rank 4 beside each query projection of SmolLM2-135M; `seed` is in its numbers.
fn write_adapter(folder: &Path, seed: usize) {
    let settings =
        serde_json::json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none" });
    std::fs::create_dir_all(folder).expect("made");
    std::fs::write(folder.join("adapter_config.json"), settings.to_string()).expect("written");
    let bytes: Vec<u8> = (0..4 * 576)
        .flat_map(|nth| (((nth * 31 + seed * 7) % 100) as f32 / 1e3).to_le_bytes())
        .collect();
    let tensor = |layer: usize, which: &str, shape: [usize; 2]| {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.{which}.weight");
        let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).expect("a view");
        (name, view)
    };
    let of = |layer| {
        [
            tensor(layer, "lora_A", [4, 576]),
            tensor(layer, "lora_B", [576, 4]),
        ]
    };
    let file = folder.join("adapter_model.safetensors");
    safetensors::serialize_to_file((0..30).flat_map(of), None, &file).expect("written");
}

#[test]
fn arms_with_adapters_of_one_model_share_its_weights() {
    let Ok(precision) = std::env::var(ALONE) else {
        for precision in ["bf16", "int8"] {
            alone(
                "memory::arms_with_adapters_of_one_model_share_its_weights",
                precision,
            );
        }
        return;
    };
    let options = options(precision.parse().expect("one of ours"));
    let folder = tempfile::tempdir().expect("a folder");
    let mut bases = Bases::default();
    let mut stay = Vec::new();
    let mut loaded = Vec::new();
    for seed in 0..3 {
        let adapter = folder.path().join(seed.to_string());
        write_adapter(&adapter, seed);
        let before = ALLOCATED.current_usage();
        let model = Constrained::load_beside(&model_path(), Some(&adapter), options, &mut bases);
        loaded.push(model.expect("loads"));
        stay.push(ALLOCATED.current_usage() - before);
    }
    let weights = loaded[0].bytes();
    eprintln!(
        "{precision}: {stay:?} bytes, of which weights {weights}: MB stay {:.1}",
        mb(stay[0])
    );
    assert!(stay[0] > weights, "the first one has the weights: {stay:?}");
    // What others have of their own is a tokenizer, an adapter, and buffers.
    assert!(stay[1] < weights / 3 && stay[2] < weights / 3, "{stay:?}");
}
