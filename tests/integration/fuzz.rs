//! Promise: every input of the fuzz corpus keeps the laws of its decoder. `scripts/fuzz` runs the same functions.

use std::path::Path;

use nearshore_testkit::fuzz as targets;

/// The inputs of a packed corpus: each after its length, four bytes, little-endian.
fn unpacked(mut packed: &[u8]) -> Vec<&[u8]> {
    let mut inputs = Vec::new();
    while let Some((length, rest)) = packed.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (input, rest) = rest
            .split_at_checked(length)
            .expect("the input is as long as its length says");
        inputs.push(input);
        packed = rest;
    }
    assert!(packed.is_empty(), "{} bytes too many", packed.len());
    inputs
}

#[test]
fn every_input_of_the_fuzz_corpus_keeps_the_laws() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut bytes = 0;
    for (name, target) in targets::ALL {
        let packed = std::fs::read(corpus.join(name)).expect("every target has a corpus");
        bytes += packed.len();
        let inputs = unpacked(&packed);
        assert!(!inputs.is_empty(), "{name} has no input");
        inputs.into_iter().for_each(target);
    }
    assert!(
        bytes <= 2 << 20,
        "the corpus has grown to {bytes} bytes: scripts/fuzz --all --minimise"
    );
}

#[test]
fn every_target_is_declared_for_cargo_fuzz() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest =
        std::fs::read_to_string(root.join("Cargo.toml")).expect("fuzz/Cargo.toml is there");
    for (name, _) in targets::ALL {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name}"
        );
        assert!(
            root.join(format!("fuzz_targets/{name}.rs")).exists(),
            "{name}"
        );
    }
    assert_eq!(manifest.matches("[[bin]]").count(), targets::ALL.len());
}
