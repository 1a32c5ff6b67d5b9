//! Training on real weights: the training score is the serving score, and an adapter that is trained makes bought names
//! likelier in the search.

use std::ops::ControlFlow;
use std::time::Instant;

use nearshore_core::names::scoring::ScoreRequest;
use nearshore_engine::Model;
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::train::{Lora, Step, Trained, TuneCase, TuneOptions, Tuner};

use super::{NAMES_COUNT, ask, load, model_path, names, options, turns};

/// The model's term of every name after a prompt, in the order of names.
fn terms(model: &mut Constrained, request: &ScoreRequest) -> Vec<f32> {
    let response = model
        .score(std::slice::from_ref(request))
        .expect("scored")
        .remove(0);
    let mut named = response.named;
    assert_eq!(named.len(), NAMES_COUNT);
    named.sort_by_key(|named| named.pu);
    named.iter().map(|named| named.model).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn the_training_score_is_the_serving_score_before_and_after_training() {
    let prompt = turns(
        "I bought bread, milk and cheese last week.",
        "The next product is:",
    );
    let request = ask(prompt.clone(), NAMES_COUNT);
    let mut model = load(2);
    model.set_names(names()).expect("set");
    let before = terms(&mut model, &request);
    let lora = Lora {
        first_layer: 20,
        ..Lora::default()
    };
    let how = TuneOptions {
        trained: Trained::Lora(lora),
        samples: 16,
        exact_max: 0,
        steps: 3,
        batch: 1,
        rate: 2e-3,
        warm_up: 0,
        checkpoint_every: 3,
        ..TuneOptions::default()
    };
    let all: Vec<u32> = (0..NAMES_COUNT as u32).collect();
    let mut tuner = Tuner::open(&model_path(), names().names.clone(), how).expect("opens");
    let ours = tuner.scores(&prompt, &all, &all).expect("scores");
    println!(
        "greatest difference of a path score {:e}",
        worst(&before, &ours)
    );
    assert!(worst(&before, &ours) < 1e-4, "{}", worst(&before, &ours));

    let bought = 17;
    let case = |is_tune| TuneCase {
        prompt: prompt.clone(),
        products: all.clone(),
        offset: vec![0.0; NAMES_COUNT],
        targets: vec![bought],
        is_tune,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let since = Instant::now();
    let mut each = |step: Step| {
        println!("{:.1} s: {step:?}", since.elapsed().as_secs_f64());
        ControlFlow::Continue(())
    };
    let tuned = tuner.run(&[case(false), case(true)], folder.path(), false, &mut each);
    let tuned = tuned.expect("trains").expect("not stopped");
    assert!(tuned.after < tuned.before, "{tuned:?}");
    drop(model);
    let adapted = Constrained::load_adapted(&model_path(), Some(folder.path()), options(2));
    let mut adapted = adapted.expect("loads").limited(super::UNTIMED);
    adapted.set_names(names()).expect("set");
    let after = terms(&mut adapted, &request);
    let ours = tuner.scores(&prompt, &all, &all).expect("scores");
    println!("after training {:e}", worst(&after, &ours));
    assert!(worst(&after, &ours) < 1e-4, "{}", worst(&after, &ours));
    let at = bought as usize;
    assert!(
        after[at] > before[at] + 0.1,
        "{} before, {} after",
        before[at],
        after[at]
    );
}
