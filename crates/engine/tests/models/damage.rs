//! Damaged model files: never a panic, never a large allocation, always an error that names the file.

use std::path::Path;

use nearshore_engine::Options;
use nearshore_engine::Prompt;
use nearshore_engine::formats::{folder, gguf};
use nearshore_engine::search::constrained::Constrained;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::files::{fixture, fixture_json, write_folder};
use crate::largest::largest;

/// The largest allocation that is allowed while files of 70 KB are read. The tables of the template engine and of
/// regular expressions are smaller.
const LARGEST_MAX: usize = 8 << 20;

/// Damages bytes: overwrites, removes or repeats some, or writes an absurd number.
fn damage(bytes: &mut Vec<u8>, until: usize, random: &mut StdRng) {
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..until.min(bytes.len()).max(1));
        match random.random_range(0..10) {
            0 => bytes.truncate(at),
            1 => {
                let absurd = [u64::MAX, 1 << 60, 1 << 40, 1 << 32, 1 << 31, 0];
                let absurd = absurd[random.random_range(0..absurd.len())].to_le_bytes();
                let to = bytes.len().min(at + 8);
                bytes[at..to].copy_from_slice(&absurd[..to - at]);
            }
            2 => {
                let to = bytes.len().min(at + random.random_range(1..40));
                let again = bytes[at..to].to_vec();
                bytes.splice(at..at, again);
            }
            3 => {
                let to = bytes.len().min(at + random.random_range(1..40));
                bytes.drain(at..to);
            }
            4 => bytes[at] = random.random(),
            5 => bytes[at] = b"0123456789-e.\"{}[],:"[random.random_range(0..20)],
            _ => bytes[at] ^= 1 << random.random_range(0..8),
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Loads a model and uses it; returns whether it loaded. An error must contain `named`.
fn runs(path: &Path, named: &str) -> bool {
    let model = match Constrained::load(path, Options::default()) {
        Ok(model) => model,
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains(named), "{error} does not name {named}");
            return false;
        }
    };
    let tokens = model.text().prompt(&Prompt {
        user: "milk <|im_start|> 12".into(),
        assistant: "next:".into(),
    });
    // Encoding gives tokens or an error, never a panic; every token is within the vocabulary.
    let tokens = tokens.unwrap_or_else(|_| vec![0]);
    let _ = model.text().name("2% MILK");
    let last = &tokens[tokens.len().saturating_sub(20)..];
    model
        .logits(last, last)
        .expect("the tokens are within the vocabulary");
    true
}

#[test]
fn a_damaged_gguf_is_refused_or_runs() {
    let (mut loaded, mut refused) = (0, 0);
    for (nth, name) in ["llama.gguf", "qwen2.gguf", "qwen3.gguf", "gemma3.gguf"]
        .into_iter()
        .enumerate()
    {
        let whole = std::fs::read(fixture(name)).expect("there");
        let header = gguf::header::decode(&whole).expect("valid").data;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        for seed in 0..1000u64 {
            let mut random = StdRng::seed_from_u64(seed * 4 + nth as u64);
            let mut bytes = whole.clone();
            // Keys are at the beginning of the header, tensors at its end; most of it is the vocabulary.
            let until = [600, header, whole.len()][random.random_range(0..3)];
            damage(&mut bytes, until, &mut random);
            std::fs::write(&path, &bytes).expect("written");
            if runs(&path, name) {
                loaded += 1;
            } else {
                refused += 1;
            }
        }
    }
    println!(
        "{refused} refused, {loaded} ran; largest allocation {}",
        largest()
    );
    assert!(
        refused > 500 && loaded > 100,
        "{refused} refused, {loaded} loaded: both must be frequent for the test to be useful"
    );
    assert!(largest() < LARGEST_MAX, "{}", largest());
}

#[test]
fn a_gguf_cut_at_any_place_of_its_header_is_refused() {
    let whole = std::fs::read(fixture("qwen3.gguf")).expect("there");
    let header = gguf::header::decode(&whole).expect("valid").data;
    for cut in 0..header {
        gguf::header::decode(&whole[..cut]).expect_err("cut short");
    }
    let cut = gguf::header::decode(&whole[..whole.len() - 100]).expect_err("cut short");
    assert!(
        cut.contains("cut short") && cut.contains(".weight"),
        "{cut}"
    );
}

#[test]
fn a_damaged_folder_is_refused_or_runs() {
    let fixture = fixture_json("folders.json");
    let (mut loaded, mut refused) = (0, 0);
    let files = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ];
    for case in [1, 2, 8] {
        let folder = tempfile::tempdir().expect("a folder");
        write_folder(folder.path(), &fixture["cases"][case], 2);
        for (nth, file) in files.into_iter().enumerate() {
            let path = folder.path().join(file);
            let whole = std::fs::read(&path).expect("there");
            for seed in 0..250u64 {
                let mut random = StdRng::seed_from_u64((seed * 5 + nth as u64) * 16 + case as u64);
                let mut bytes = whole.clone();
                let until = [12, 2000, whole.len()][random.random_range(0..3)];
                damage(&mut bytes, until, &mut random);
                std::fs::write(&path, &bytes).expect("written");
                // An error names a file in the folder, or the folder.
                if runs(folder.path(), &folder.path().display().to_string()) {
                    loaded += 1;
                } else {
                    refused += 1;
                }
            }
            std::fs::write(&path, &whole).expect("written");
        }
        assert!(runs(folder.path(), ""), "whole again");
    }
    println!(
        "{refused} refused, {loaded} ran; largest allocation {}",
        largest()
    );
    assert!(
        refused > 500 && loaded > 100,
        "{refused} refused, {loaded} loaded: both must be frequent for the test to be useful"
    );
    assert!(largest() < LARGEST_MAX, "{}", largest());
}

#[test]
fn headers_that_claim_more_than_the_file_has_are_refused() {
    for claim in [u64::MAX, 1 << 60, 1 << 40, 100_000_001, 50_000_000] {
        let mut bytes = claim.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{\"a\":{\"dtype\":\"F32\"}}");
        folder::header::decode(&bytes).expect_err("no such header");
        for counts in [[claim, 0], [0, claim], [claim, claim]] {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
            bytes.extend([0; 64]);
            gguf::header::decode(&bytes).expect_err("no such header");
        }
        // A key whose value is a list of `claim` items, of each type.
        for kind in 0u32..13 {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend([0u64, 1, 1].iter().flat_map(|count| count.to_le_bytes()));
            bytes.extend(b"k\x09\0\0\0");
            bytes.extend(kind.to_le_bytes());
            bytes.extend(claim.to_le_bytes());
            bytes.extend([0; 64]);
            gguf::header::decode(&bytes).expect_err("no such list");
        }
    }
    let shape = format!(
        "{{\"a\":{{\"dtype\":\"F32\",\"shape\":[{0},{0}],\"data_offsets\":[0,4]}}}}",
        1u64 << 62
    );
    let mut bytes = (shape.len() as u64).to_le_bytes().to_vec();
    bytes.extend(shape.as_bytes());
    bytes.extend([0; 4]);
    let error = folder::header::decode(&bytes).expect_err("no such tensor");
    assert!(error.contains("tensor a"), "{error}");
    assert!(largest() < LARGEST_MAX, "{}", largest());
}
