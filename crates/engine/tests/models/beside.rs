//! Adapters beside weights that several models share.

use nearshore_engine::search::constrained::{Bases, Constrained};
use nearshore_engine::{Model, Options, Precision};

use crate::files::{REFERENCE, fixture_json};
use crate::tune::{parts, prompt, terms, write_adapter, write_model};

#[test]
fn adapters_beside_one_base_score_as_merged_ones_and_each_as_its_own() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let base = folder.path().join("base");
    write_model(&base, &fixture);
    let theirs = &fixture["adapter"];
    let adapter = |name: &str, factor: f32| {
        let mut tensors = parts(&theirs["tensors"]);
        for (name, _, numbers) in &mut tensors {
            // B alone, so that the product has the factor.
            let is_b = name.contains("lora_B");
            (numbers.iter_mut()).for_each(|number| *number *= if is_b { factor } else { 1.0 });
        }
        let path = folder.path().join(name);
        write_adapter(&path, &theirs["config"], &tensors);
        path
    };
    let (one, other) = (adapter("one", 1.0), adapter("other", -0.5));
    let farthest = |a: &[f32], b: &[f32]| {
        let each = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        each.fold(0f32, f32::max)
    };
    let mut exact: Vec<Vec<f32>> = Vec::new();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let options = Options {
            precision,
            ..REFERENCE
        };
        let mut bases = Bases::default();
        // How far both ways are from f32 where they round, which merged weights do with what the adapter adds.
        let (mut beside, mut merged) = (0f32, 0f32);
        let mut firsts: Vec<Vec<f32>> = Vec::new();
        for (nth, adapter) in [None, Some(&*one), Some(&*other)].into_iter().enumerate() {
            let shared = Constrained::load_beside(&base, adapter, options, &mut bases);
            let mut shared = shared.expect("loads");
            let mut whole = Constrained::load_adapted(&base, adapter, options).expect("loads");
            assert_eq!(shared.info(), whole.info());
            for user in 0..3 {
                let ours = terms(&mut shared, &fixture, &prompt(user));
                let theirs = terms(&mut whole, &fixture, &prompt(user));
                match (precision, adapter) {
                    (Precision::F32, _) => exact.push(theirs.clone()),
                    (_, None) => assert_eq!(ours, theirs, "the same without an adapter"),
                    _ => {}
                }
                let exact = &exact[3 * nth + user as usize];
                beside = beside.max(farthest(&ours, exact));
                merged = merged.max(farthest(&theirs, exact));
            }
            let first = terms(&mut shared, &fixture, &prompt(0));
            assert!(
                !firsts.contains(&first),
                "{precision}: another adapter, the same scores"
            );
            firsts.push(first);
        }
        println!("{precision}: beside {beside}, merged {merged} from merged in f32");
        // Their roundings are unlike; factors of int8 that were forgotten would be off by as much as the adapter adds.
        let most = if precision == Precision::Int8 {
            1.5
        } else {
            4.0
        };
        assert!(
            beside <= most * merged + 1e-4,
            "{precision}: {beside}, merged {merged}"
        );
    }
}
