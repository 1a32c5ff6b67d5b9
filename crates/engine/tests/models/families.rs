//! Folders of every family and setting, compared with logits of the `transformers` library.

use nearshore_engine::Model;
use nearshore_engine::search::constrained::Constrained;

use crate::files::{REFERENCE, fixture_json, floats, ids, write_folder};

/// The largest difference allowed. Logits are a few tenths, so a limit of 0.001 would not find a wrong angle.
const DIFFERENCE_MAX: f64 = 1e-4;

/// The largest difference between the engine's last logits and the library's.
pub fn difference(model: &Constrained, tokens: &[u32], theirs: &[f64]) -> f64 {
    let all: Vec<u32> = (0..theirs.len() as u32).collect();
    let ours = model.logits(tokens, &all).expect("logits");
    let each = ours.iter().zip(theirs);
    let differences = each.map(|(ours, theirs)| (f64::from(*ours) - theirs).abs());
    differences.fold(0.0, f64::max)
}

#[test]
fn every_family_gives_the_logits_of_the_library() {
    let fixture = fixture_json("folders.json");
    let tokens = ids(&fixture["tokens"]);
    let cases = fixture["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 23);
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        for shards in [1, 3] {
            let folder = tempfile::tempdir().expect("a folder");
            write_folder(folder.path(), case, shards);
            let model = Constrained::load(folder.path(), REFERENCE).expect(name);
            let worst = difference(&model, &tokens, &floats(&case["logits"]));
            println!("{name}, {shards} files: greatest difference of a logit {worst:.7}");
            assert!(worst <= DIFFERENCE_MAX, "{name}: {worst}");
            let loading = model.loading();
            let family = case["config"]["model_type"].as_str().expect("a family");
            let family = family.trim_end_matches("_text");
            assert_eq!(
                (loading.family.as_str(), loading.format.as_str()),
                (family, "safetensors")
            );
        }
    }
}

#[test]
fn a_revision_changes_with_the_weights_and_with_nothing_else() {
    let fixture = fixture_json("folders.json");
    let case = &fixture["cases"][0];
    let revision = |case: &serde_json::Value| {
        let folder = tempfile::tempdir().expect("a folder");
        write_folder(folder.path(), case, 1);
        let file = folder.path().join("model.safetensors");
        let first = Constrained::load(folder.path(), REFERENCE)
            .expect("loads")
            .info()
            .revision;
        // Overwrites numbers of a tensor in the middle of the file, and no header.
        let mut bytes = std::fs::read(&file).expect("there");
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8192].fill(0);
        std::fs::write(&file, bytes).expect("written");
        let second = Constrained::load(folder.path(), REFERENCE)
            .expect("loads")
            .info()
            .revision;
        (first, second)
    };
    let (first, second) = revision(case);
    assert_ne!(first, second);
    assert_eq!(revision(case), (first, second));
}
