//! Promise: what fuzzing has found worth keeping breaks no law of a decoder. `scripts/fuzz` runs the same functions.

use std::path::Path;

/// What the targets call the house: here the crate itself.
mod house {
    pub use nearshore::{event, fold, list, prompt, record, state, trigger};
}

#[path = "../../fuzz/src/targets.rs"]
mod targets;

#[test]
fn every_input_of_the_fuzz_corpus_keeps_the_laws() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut bytes = 0;
    for (name, target) in targets::ALL {
        let folder = corpus.join(name);
        let inputs = std::fs::read_dir(&folder).expect("every target has a corpus");
        let mut count = 0;
        for input in inputs {
            let input = std::fs::read(input.expect("listed").path()).expect("read");
            bytes += input.len();
            count += 1;
            target(&input);
        }
        assert!(count > 0, "{name} has no input");
    }
    assert!(
        bytes <= 2 << 20,
        "the corpus has grown to {bytes} bytes: scripts/fuzz --all --minimise"
    );
}

#[test]
fn every_target_is_one_of_cargo_fuzz_s() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("read");
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
