//! Weights of less precision on the real model: the same bits in any batch, and logits near those of f32.

use nearshore_core::names::scoring::ScoreRequest;
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Isa, Model, Options, Precision};

use super::{UNTIMED, ask, complete, model_path, names, turns};

#[allow(clippy::needless_update)] // Options may get fields that do not matter here.
fn load(precision: Precision, threads: usize, isa: Option<Isa>) -> Constrained {
    let options = Options {
        threads,
        precision,
        isa,
        ..Options::default()
    };
    let model = Constrained::load(&model_path(), options);
    model.expect("the test model loads").limited(UNTIMED)
}

#[test]
fn a_user_has_the_same_scores_alone_and_among_16_in_every_precision() {
    let requests: Vec<ScoreRequest> = (0..16)
        .map(|nth| {
            let bought = ["BREAD", "TEA BAGS", "2% MILK", "CANDLES"][nth % 4];
            let bought = format!("{bought}, ").repeat(nth % 7);
            ask(turns(format!("Bought: {bought}item {nth}."), "Next:"), 3)
        })
        .collect();
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let mut together = load(precision, 2, None);
        together.set_names(names()).expect("set");
        let batch = complete(&mut together, &requests);
        let mut apart = load(precision, 1, None);
        apart.set_names(names()).expect("set");
        for nth in [0, 7, 15] {
            let alone = complete(&mut apart, &requests[nth..=nth]);
            assert_eq!(alone[0].named, batch[nth].named, "{precision}, user {nth}");
        }
    }
}

#[test]
fn weights_of_less_precision_give_logits_near_those_of_f32() {
    let prompt = turns("Bought lately: FLUID MILK, BREAD, CAT FOOD.", "Next:");
    let logits = |precision, isa| {
        let model = load(precision, 1, isa);
        let tokens = model.text().prompt(&prompt).expect("tokens");
        let all: Vec<u32> = (0..model.vocabulary() as u32).collect();
        (
            model.logits(&tokens, &all).expect("logits"),
            model.info().dtype,
        )
    };
    let (exact, dtype) = logits(Precision::F32, None);
    assert_eq!(dtype, "f32");
    let worst = |narrow: &[f32]| {
        let differences = exact.iter().zip(narrow).map(|(x, y)| (x - y).abs());
        differences.fold(0f32, f32::max)
    };
    for (precision, isa, allowed) in [
        (Precision::F32, Some(Isa::Avx2), 1e-3),
        (Precision::F32, Some(Isa::Plain), 1e-3),
        (Precision::Bf16, None, 0.5),
        (Precision::Bf16, Some(Isa::Avx2), 0.5),
        (Precision::Int8, None, 1.5),
        (Precision::Int8, Some(Isa::Avx2), 1.5),
        (Precision::Int8, Some(Isa::AvxVnni), 1.5),
    ] {
        let (narrow, dtype) = logits(precision, isa);
        let worst = worst(&narrow);
        println!("{precision} as {dtype}: greatest difference of a logit {worst:.5}");
        assert!(worst <= allowed, "{precision} {isa:?}: {worst}");
        // A difference of 0 would mean that a kernel of f32 ran instead.
        assert!(
            precision == Precision::F32 || worst > 1e-3,
            "{precision}: {worst}"
        );
    }
}
