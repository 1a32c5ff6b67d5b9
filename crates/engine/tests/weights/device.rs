//! The path of a device on real weights, computed by tensor operations on the CPU; and the explanation of names.

use std::sync::Arc;

use nearshore_core::names::scoring::{Calibration, Prompt, ScoreRequest, Term, Values};
use nearshore_engine::contract;
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Model, Options, Place, Precision};

use super::{UNTIMED, ask, complete, load, model_path, names, turns};

fn on(place: Place, precision: Precision) -> Result<Constrained, nearshore_engine::Error> {
    let options = Options {
        place,
        precision,
        ..Options::default()
    };
    Constrained::load(&model_path(), options).map(|model| model.limited(UNTIMED))
}

fn requests() -> Vec<ScoreRequest> {
    let calibration = Arc::new(Calibration {
        hash: "everyone".into(),
        prompts: ["A household.", "Bought: TEA.\nWhat next?"]
            .map(Prompt::from)
            .to_vec(),
    });
    let bought = [
        "BREAD, CHEESE",
        "BABY DIAPERS",
        "CAT FOOD, TEA and CANDY BARS",
        "-",
    ];
    let request = |bought: &str| ScoreRequest {
        calibration: Some(Arc::clone(&calibration)),
        ..ask(
            turns(
                format!("A household bought this: {bought}."),
                "Next it buys:",
            ),
            20,
        )
    };
    bought.map(request).to_vec()
}

#[test]
fn a_device_finds_what_the_cpu_finds_within_a_thousandth_of_a_nat() {
    let mut host = load(1);
    let mut device = on(Place::Tensors, Precision::F32).expect("loads");
    // Equal bits in any batch are promised on the CPU only; a device keeps the rest of the contract.
    if let Err(broken) = contract::check(&mut device) {
        assert!(broken.starts_with("alone "), "{broken}");
    }
    for model in [&mut host, &mut device] {
        model.set_names(names()).expect("set");
    }
    let (ours, theirs) = (
        complete(&mut device, &requests()),
        complete(&mut host, &requests()),
    );
    let mut worst = 0f32;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.named.len(), 20);
        for named in &theirs.named {
            // Names whose scores differ by rounding may swap places, at the end of a list with a name that is not in
            // it.
            let same = ours.named.iter().find(|other| other.pu == named.pu);
            let last = ours.named[19].score;
            let score = same.map_or(last, |same| same.score);
            worst = worst.max((score - named.score).abs());
        }
    }
    println!("greatest difference of a score {worst:.6}");
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn an_unsupported_place_is_refused_by_name() {
    let refused = |place, precision| {
        let error = on(place, precision).err().expect("refused");
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };
    let int8 = refused(Place::Tensors, Precision::Int8);
    assert!(int8.contains("tensors") && int8.contains("bf16"), "{int8}");
    if !cfg!(feature = "cuda") {
        let cuda = refused(Place::Cuda(0), Precision::F32);
        assert!(cuda.contains("cuda:0"), "{cuda}");
    }
}

#[test]
fn the_edges_of_a_name_add_up_to_its_term_of_the_model_and_the_terms_to_its_score() {
    let mut model = load(1);
    model.set_names(names()).expect("set");
    let demand: Vec<f32> = (0..200).map(|pu| (1.0 + (pu % 7) as f32).ln()).collect();
    let terms = vec![
        Term {
            name: "demand",
            weight: 0.5,
            values: Values::Shared(demand.into()),
        },
        Term {
            name: "repeat",
            weight: 1.0,
            values: Values::Sparse([(3, 2.0), (150, 1.0)].into()),
        },
    ];
    for (nth, request) in requests().into_iter().enumerate() {
        let request = ScoreRequest {
            terms: terms.clone(),
            permitted: (nth == 0).then(|| Arc::new(even())),
            weight: 0.5,
            ..request
        };
        let response = complete(&mut model, std::slice::from_ref(&request));
        let named = &response[0].named;
        let pus: Vec<u32> = named.iter().map(|named| named.pu).collect();
        let explained = model.explain(&request, &pus).expect("explained");
        for (named, edges) in named.iter().zip(explained) {
            let model: f32 = edges.iter().map(|edge| edge.model).sum();
            assert!((model - named.model).abs() < 1e-3, "{model} {named:?}");
            let score = 0.5 * named.model + 0.5 * named.terms[0] + named.terms[1];
            assert!((score - named.score).abs() < 1e-4, "{score} {named:?}");
            assert!(
                edges
                    .iter()
                    .all(|edge| edge.choices > 1 && !edge.text.is_empty())
            );
        }
    }
}

fn even() -> fixedbitset::FixedBitSet {
    let mut bits = fixedbitset::FixedBitSet::with_capacity(200);
    bits.extend((0..200).step_by(2));
    bits
}
