//! Training of a small model, what it writes, and adapters: those of PEFT load, those that do not fit are refused.
//!
//! The model and PEFT's adapter are those of `tune.json`, by `scripts/make-tune`.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use nearshore_core::names::scoring::{Names, Prompt, ScoreRequest};
use nearshore_engine::Model;
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::train::{
    Lora, Step, Trained, TuneCase, TuneError, TuneOptions, Tuned, Tuner,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::files::{REFERENCE, fixture_json, floats, ids};

pub type Parts = Vec<(String, Vec<usize>, Vec<f32>)>;

pub fn parts(tensors: &Value) -> Parts {
    let all = tensors.as_object().expect("tensors").iter();
    let part = |(name, of): (&String, &Value)| {
        let shape = ids(&of["shape"]).into_iter().map(|x| x as usize).collect();
        let numbers = floats(&of["numbers"])
            .into_iter()
            .map(|x| x as f32)
            .collect();
        (name.clone(), shape, numbers)
    };
    all.map(part).collect()
}

fn write_tensors(path: &Path, parts: &Parts) {
    let bytes: Vec<Vec<u8>> = (parts.iter())
        .map(|(_, _, numbers)| numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let views = parts.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a view");
        (name.clone(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("written");
}

/// Writes the model of the fixture; its tokens are the words w0, w1 …
pub fn write_model(folder: &Path, fixture: &Value) {
    std::fs::create_dir_all(folder).expect("made");
    write_tensors(&folder.join("model.safetensors"), &parts(&fixture["base"]));
    let end = fixture["end"].as_u64().expect("an id");
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..end).map(|id| (format!("w{id}"), json!(id))).collect();
    vocabulary.insert("</s>".into(), json!(end));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{ "id": end, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    let settings = json!({ "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}" });
    for (name, value) in [
        ("config.json", &fixture["config"]),
        ("tokenizer.json", &tokenizer),
        ("tokenizer_config.json", &settings),
    ] {
        std::fs::write(folder.join(name), value.to_string()).expect("written");
    }
}

pub fn write_adapter(folder: &Path, config: &Value, parts: &Parts) {
    std::fs::create_dir_all(folder).expect("made");
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).expect("written");
    write_tensors(&folder.join("adapter_model.safetensors"), parts);
}

fn words(tokens: &[u32]) -> String {
    let words: Vec<String> = tokens.iter().map(|token| format!("w{token}")).collect();
    words.join(" ")
}

fn names(fixture: &Value) -> Vec<String> {
    let names = fixture["names"].as_array().expect("names").iter();
    names.map(|name| words(&ids(name))).collect()
}

/// The model's term of each name after a prompt, in the order of names.
pub fn terms(model: &mut Constrained, fixture: &Value, prompt: &Prompt) -> Vec<f32> {
    let names = names(fixture);
    let request = ScoreRequest {
        prompt: prompt.clone(),
        n: names.len(),
        ..ScoreRequest::default()
    };
    let names = Arc::new(Names { version: 1, names });
    model.set_names(names).expect("set");
    let response = model.score(&[request]).expect("scored").remove(0);
    let mut named = response.named;
    named.sort_by_key(|named| named.pu);
    named.iter().map(|named| named.model).collect()
}

pub fn prompt(nth: u32) -> Prompt {
    let tokens = [20 + nth % 3, 21 + nth % 5, 30 - nth % 4, 5];
    words(&tokens).as_str().into()
}

/// Users whose prompt says what they buy, beside a mixture that does not know it.
fn cases() -> Vec<TuneCase> {
    (0..24)
        .map(|nth| TuneCase {
            prompt: prompt(nth),
            products: (0..8).collect(),
            offset: vec![0.0, 0.5, -0.5, 0.2, 0.1, 0.0, -0.3, 0.0],
            targets: vec![nth % 3],
            is_tune: nth % 4 == 3,
        })
        .collect()
}

fn options(trained: Trained) -> TuneOptions {
    TuneOptions {
        trained,
        steps: 12,
        batch: 3,
        rate: 0.01,
        warm_up: 2,
        checkpoint_every: 3,
        ..TuneOptions::default()
    }
}

fn lora() -> Trained {
    Trained::Lora(Lora {
        rank: 3,
        alpha: 6.0,
        ..Lora::default()
    })
}

fn tuner(model: &Path, fixture: &Value, options: TuneOptions) -> Tuner {
    Tuner::open(model, names(fixture), options).expect("opens")
}

/// Trains until the end, or until `last` steps are done.
fn train(tuner: &mut Tuner, folder: &Path, resume: bool, last: usize) -> Option<Tuned> {
    let mut each = |step: Step| match step.step < last {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    };
    tuner
        .run(&cases(), folder, resume, &mut each)
        .expect("trains")
}

fn refused(error: Result<impl Sized, impl std::fmt::Display>, parts: &[&str]) {
    let error = match error {
        Ok(_) => panic!("not refused: {parts:?} expected"),
        Err(error) => error.to_string(),
    };
    for part in parts {
        assert!(error.contains(part), "{error} does not have {part}");
    }
}

#[test]
fn an_adapter_of_peft_gives_the_logits_of_peft_and_a_revision_of_its_own() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
    write_model(&base, &fixture);
    let theirs = &fixture["adapter"];
    write_adapter(&adapter, &theirs["config"], &parts(&theirs["tensors"]));
    let plain = Constrained::load(&base, REFERENCE).expect("loads");
    let adapted = Constrained::load_adapted(&base, Some(&adapter), REFERENCE).expect("loads");
    let expected = floats(&theirs["logits"]);
    let all: Vec<u32> = (0..expected.len() as u32).collect();
    let tokens = ids(&fixture["prompt"]);
    let (with, without) = (adapted.logits(&tokens, &all), plain.logits(&tokens, &all));
    let (with, without) = (with.expect("logits"), without.expect("logits"));
    let off = |ours: &[f32]| {
        let each = ours.iter().zip(&expected);
        each.map(|(ours, theirs)| (f64::from(*ours) - theirs).abs())
            .fold(0.0, f64::max)
    };
    assert!(off(&with) < 1e-4, "{}", off(&with));
    assert!(
        off(&without) > 0.1,
        "the adapter changes little: {}",
        off(&without)
    );
    assert_eq!(adapted.info().name, "base + adapter");
    assert_ne!(adapted.info().revision, plain.info().revision);
    // One number of the adapter makes another revision; the same adapter makes the same.
    let again = Constrained::load_adapted(&base, Some(&adapter), REFERENCE).expect("loads");
    assert_eq!(again.info(), adapted.info());
    let mut changed = parts(&theirs["tensors"]);
    changed[0].2[0] += 0.001;
    write_adapter(&adapter, &theirs["config"], &changed);
    let other = Constrained::load_adapted(&base, Some(&adapter), REFERENCE).expect("loads");
    assert_ne!(other.info().revision, adapted.info().revision);
}

#[test]
fn what_is_trained_is_written_loaded_and_scores_as_in_training() {
    let fixture = fixture_json("tune.json");
    for trained in [lora(), Trained::Full] {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, out) = (folder.path().join("base"), folder.path().join("out"));
        write_model(&base, &fixture);
        let mut tuner = tuner(&base, &fixture, options(trained.clone()));
        let all: Vec<u32> = (0..8).collect();
        let before = tuner.scores(&prompt(1), &all, &all).expect("scores");
        let mut plain = Constrained::load(&base, REFERENCE).expect("loads");
        near(&before, &terms(&mut plain, &fixture, &prompt(1)));
        let tuned = train(&mut tuner, &out, false, 99).expect("not stopped");
        assert!(tuned.after < tuned.before - 0.2, "{tuned:?}");
        assert_eq!((tuned.cases, tuned.tune_cases), (18, 6));
        let mut model = match trained {
            Trained::Full => Constrained::load(&out, REFERENCE),
            Trained::Lora(_) => Constrained::load_adapted(&base, Some(&out), REFERENCE),
        }
        .expect("loads");
        for nth in 0..4 {
            let after = tuner.scores(&prompt(nth), &all, &all).expect("scores");
            near(&after, &terms(&mut model, &fixture, &prompt(nth)));
        }
        assert_ne!(model.info().revision, plain.info().revision);
    }
}

fn near(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_run_that_was_stopped_and_resumed_writes_the_same_bytes() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let base = folder.path().join("base");
    write_model(&base, &fixture);
    for (trained, file) in [
        (lora(), "adapter_model.safetensors"),
        (Trained::Full, "model.safetensors"),
    ] {
        let out = |name: &str| folder.path().join(format!("{name} {file}"));
        let options = options(trained);
        let whole = train(
            &mut tuner(&base, &fixture, options.clone()),
            &out("whole"),
            false,
            99,
        );
        // In the middle between two checkpoints, before the first one, and while a file was being written.
        for last in [0, 1, 7, 11] {
            let cut = out(&format!("cut {last}"));
            let stopped = train(
                &mut tuner(&base, &fixture, options.clone()),
                &cut,
                false,
                last,
            );
            assert_eq!(stopped, None);
            std::fs::create_dir_all(&cut).expect("made");
            std::fs::write(cut.join("checkpoint.safetensors.part"), "torn").expect("written");
            let resumed = train(&mut tuner(&base, &fixture, options.clone()), &cut, true, 99);
            assert_eq!(resumed, whole, "stopped at {last}");
            for file in [file, "checkpoint.safetensors"] {
                let read = |folder: &Path| std::fs::read(folder.join(file)).expect("written");
                assert!(
                    read(&cut) == read(&out("whole")),
                    "{file}, stopped at {last}"
                );
            }
        }
        // Another order of cases is another adapter, so equal bytes say something.
        let other = TuneOptions { seed: 2, ..options };
        train(&mut tuner(&base, &fixture, other), &out("other"), false, 99);
        let read = |name: &str| std::fs::read(out(name).join(file)).expect("written");
        assert!(read("other") != read("whole"));
    }
}

#[test]
fn a_loss_that_is_no_number_stops_training_and_the_last_checkpoint_stays() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, &fixture);
    let options = TuneOptions {
        rate: 1e30,
        decay: 0.0,
        warm_up: 0,
        ..options(lora())
    };
    let mut checkpoint = Vec::new();
    let mut each = |step: Step| {
        if step.step == 0 {
            return ControlFlow::Continue(());
        }
        checkpoint = std::fs::read(out.join("checkpoint.safetensors")).expect("written");
        ControlFlow::Continue(())
    };
    let error = tuner(&base, &fixture, options.clone()).run(&cases(), &out, false, &mut each);
    let error = error.expect_err("no numbers");
    assert!(matches!(error, TuneError::Loss { step: 2, .. }), "{error}");
    assert!(
        error.to_string().contains("is not a finite number"),
        "{error}"
    );
    let now = std::fs::read(out.join("checkpoint.safetensors")).expect("still there");
    assert!(!checkpoint.is_empty() && checkpoint == now);
    assert!(!out.join("adapter_config.json").exists());
    // Other options are another run.
    let mut other = tuner(&base, &fixture, self::options(lora()));
    let mut go_on = |_: Step| ControlFlow::Continue(());
    refused(
        other.run(&cases(), &out, true, &mut go_on),
        &["checkpoint.safetensors", "of other cases, options"],
    );
    refused(
        other.run(&cases(), &out, false, &mut go_on),
        &["is there: resume"],
    );
    std::fs::write(out.join("checkpoint.safetensors"), &now[..now.len() / 2]).expect("written");
    let mut same = tuner(&base, &fixture, options);
    refused(
        same.run(&cases(), &out, true, &mut go_on),
        &["checkpoint.safetensors"],
    );
}

#[test]
fn training_stops_where_tune_cases_get_no_better_and_writes_the_best() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, &fixture);
    let mut cases = cases();
    // What tune users buy is the opposite of what is learned.
    for case in cases.iter_mut().filter(|case| case.is_tune) {
        case.targets = vec![7];
    }
    let options = TuneOptions {
        checkpoint_every: 1,
        patience: 2,
        ..options(lora())
    };
    let mut tuner = tuner(&base, &fixture, options);
    let mut looks = Vec::new();
    let mut each = |step: Step| {
        looks.extend(step.tune);
        ControlFlow::Continue(())
    };
    let tuned = tuner
        .run(&cases, &out, false, &mut each)
        .expect("trains")
        .expect("not stopped");
    assert!(tuned.stopped_early && tuned.steps < 12, "{tuned:?}");
    assert_eq!(tuned.steps, tuned.best_step + 2);
    let least = looks.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!((tuned.before, tuned.after), (looks[0], least));
    // What is written has that loss: a run over nothing but a look says so.
    let mut model = Constrained::load_adapted(&base, Some(&out), REFERENCE).expect("loads");
    let all: Vec<u32> = (0..8).collect();
    let written = tuner.scores(&prompt(3), &all, &all).expect("scores");
    near(&written, &terms(&mut model, &fixture, &prompt(3)));
}

#[test]
fn models_and_cases_that_cannot_be_trained_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let families = fixture_json("folders.json");
    let words = ["milk".to_owned(), "bread".to_owned()];
    let open = |case: &str| {
        let all = families["cases"].as_array().expect("cases").iter();
        let found = all.clone().find(|of| of["name"] == case).expect("a case");
        let path = folder.path().join(case);
        std::fs::create_dir_all(&path).expect("made");
        crate::files::write_folder(&path, found, 1);
        Tuner::open(&path, words.to_vec(), options(lora()))
    };
    refused(open("gemma3"), &["gemma3", "training does not support"]);
    refused(
        open("mistral, window in all layers"),
        &["mistral", "sliding windows"],
    );
    refused(
        open("phi3, window in all layers"),
        &["phi3", "training does not support"],
    );
    for fine in [
        "qwen3",
        "qwen2, yarn",
        "smollm3",
        "mistral, no window",
        "llama, attention biases",
    ] {
        assert!(open(fine).is_ok(), "{fine}");
    }
    let gguf = crate::files::fixture("qwen2.gguf");
    if gguf.exists() {
        refused(
            Tuner::open(&gguf, words.to_vec(), options(Trained::Full)),
            &["is no folder"],
        );
    }
    let fixture = fixture_json("tune.json");
    let base = folder.path().join("base");
    write_model(&base, &fixture);
    let mut tuner = tuner(&base, &fixture, options(lora()));
    let mut go_on = |_: Step| ControlFlow::Continue(());
    let mut taught = cases();
    taught.retain(|case| !case.is_tune);
    refused(
        tuner.run(&taught, folder.path(), false, &mut go_on),
        &["18 cases to learn from and 0 tune cases"],
    );
    taught[2].offset[1] = f32::INFINITY;
    refused(
        tuner.run(&taught, folder.path(), false, &mut go_on),
        &["case 2", "finite"],
    );
}

/// Changes the settings or the tensors of an adapter.
type Change = fn(&mut Value, &mut Parts);

/// What makes an adapter unfit, and what the refusal says.
const MISFITS: [(Change, &[&str]); 10] = [
    (
        |config, _| config["use_dora"] = json!(true),
        &["adapter_config.json", "use_dora"],
    ),
    (
        |config, _| config["bias"] = json!("lora_only"),
        &["key bias"],
    ),
    (
        |config, _| config["modules_to_save"] = json!(["lm_head"]),
        &["modules_to_save"],
    ),
    (
        |config, _| config["r"] = json!(4),
        &["is of rank 3", "r = 4"],
    ),
    (|_, parts| drop(parts.pop()), &["without its other half"]),
    (
        |_, parts| parts[0].0 = "base_model.model.lm_head.lora_A.weight".into(),
        &["lm_head.lora_A", "can have an adapter"],
    ),
    (|_, parts| parts[0].2[1] = f32::NAN, &["not finite"]),
    (
        |_, parts| {
            parts
                .iter_mut()
                .for_each(|part| part.0 = part.0.replace("layers.1.", "layers.2."))
        },
        &["layers.2.", "llama of 2 layers", "of another model"],
    ),
    (
        |_, parts| {
            // A of one product has fewer columns.
            let part = &mut parts[0];
            part.1[1] -= 1;
            part.2.truncate(part.1[0] * part.1[1]);
        },
        &["shapes", "of another model"],
    ),
    (
        |_, parts| parts.retain(|part| !part.0.contains("v_proj")),
        &["no tensors of v_proj"],
    ),
];

#[test]
fn adapters_that_do_not_fit_are_refused_by_what_does_not_fit() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let base = folder.path().join("base");
    write_model(&base, &fixture);
    let theirs = &fixture["adapter"];
    for (nth, (change, expected)) in MISFITS.into_iter().enumerate() {
        let adapter = folder.path().join(format!("adapter {nth}"));
        let (mut config, mut parts) = (theirs["config"].clone(), parts(&theirs["tensors"]));
        change(&mut config, &mut parts);
        write_adapter(&adapter, &config, &parts);
        refused(
            Constrained::load_adapted(&base, Some(&adapter), REFERENCE),
            expected,
        );
    }
}

#[test]
fn a_folder_without_an_adapter_and_one_that_is_cut_short_are_refused() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let base = folder.path().join("base");
    write_model(&base, &fixture);
    let theirs = &fixture["adapter"];
    let empty = folder.path().join("empty");
    std::fs::create_dir_all(&empty).expect("made");
    refused(
        Constrained::load_adapted(&base, Some(&empty), REFERENCE),
        &["has no adapter_config.json"],
    );
    let cut = folder.path().join("cut");
    write_adapter(&cut, &theirs["config"], &parts(&theirs["tensors"]));
    let file = cut.join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).expect("there");
    std::fs::write(&file, &bytes[..bytes.len() - 9]).expect("written");
    refused(
        Constrained::load_adapted(&base, Some(&cut), REFERENCE),
        &["cut short"],
    );
}

#[test]
fn an_adapter_that_was_trained_here_is_refused_beside_another_model_of_the_same_sizes() {
    let (fixture, folder) = (
        fixture_json("tune.json"),
        tempfile::tempdir().expect("a folder"),
    );
    let (base, out) = (folder.path().join("base"), folder.path().join("out"));
    write_model(&base, &fixture);
    let options = TuneOptions {
        steps: 1,
        ..options(lora())
    };
    train(&mut tuner(&base, &fixture, options), &out, false, 99);
    Constrained::load_adapted(&base, Some(&out), REFERENCE).expect("loads");
    let mut other = fixture.clone();
    other["base"]["model.norm.weight"]["numbers"][3] = json!(0.5);
    let path = folder.path().join("other");
    write_model(&path, &other);
    refused(
        Constrained::load_adapted(&path, Some(&out), REFERENCE),
        &["was trained beside the model of revision", "train it again"],
    );
}
