//! Texts that small random models write: by the model's own logits, within their bounds, the same alone and among many.

use std::time::Duration;

use nearshore_core::names::scoring::{Ended, Prompt};
use nearshore_core::names::writing::{Decoding, WriteRequest, WriteResponse};
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_engine::{Model, Options, Place, Precision};

use crate::files::{REFERENCE, fixture};

/// Without a limit of time.
const UNTIMED: Limits = Limits {
    rows_max: 512,
    kv_max: 1 << 30,
    prompts_max: 0,
    time_max: Duration::from_secs(24 * 60 * 60),
};

fn loaded(file: &str, options: Options, limits: Limits) -> Constrained {
    let model = Constrained::load(&fixture(file), options);
    model.expect("loads").limited(limits)
}

fn decoding(max_tokens: u32) -> Decoding {
    Decoding {
        max_tokens,
        ..Decoding::default()
    }
}

fn request(user: &str, decoding: Decoding) -> WriteRequest {
    WriteRequest {
        prompt: Prompt {
            user: user.into(),
            assistant: "Next:".into(),
        },
        decoding,
        ..WriteRequest::default()
    }
}

/// Requests of several lengths and bounds whose prompts share a beginning, every second one sampled.
fn requests(count: usize) -> Vec<WriteRequest> {
    let shared = "You know how households shop. This one lives in a city and buys most of its food on Fridays. ";
    let one = |nth: usize| {
        let user = format!("{shared}Bought: {}.", "MILK, BREAD, ".repeat(nth % 5));
        let sampled = Decoding {
            temperature: 1.5,
            top_p: [1.0, 0.8][nth / 2 % 2],
            seed: nth as u32,
            ..decoding(0)
        };
        let plain = [decoding(0), sampled][nth % 2];
        let max_tokens = [3, 17, 40][nth % 3];
        request(
            &user,
            Decoding {
                max_tokens,
                ..plain
            },
        )
    };
    (0..count).map(one).collect()
}

fn write(model: &mut Constrained, requests: &[WriteRequest]) -> Vec<WriteResponse> {
    let responses = model.write(requests).expect("written");
    assert_eq!(responses.len(), requests.len());
    responses
}

/// The likeliest tokens by the model's logits, each after one pass over the whole text that shares nothing.
fn naive(model: &Constrained, request: &WriteRequest) -> Vec<u32> {
    let mut tokens = model.text().prompt(&request.prompt).expect("tokens");
    let from = tokens.len();
    let all: Vec<u32> = (0..model.vocabulary() as u32).collect();
    for _ in 0..request.decoding.max_tokens {
        let logits = model.logits(&tokens, &all).expect("logits");
        let best = all.iter().copied().max_by(|a, b| {
            let (a, b) = (*a as usize, *b as usize);
            logits[a].total_cmp(&logits[b]).then(b.cmp(&a))
        });
        let best = best.expect("a vocabulary");
        // A token that begins another turn ends the text, too.
        if best == model.text().end() || model.text().read(&[best]).starts_with("<|") {
            break;
        }
        tokens.push(best);
    }
    tokens.split_off(from)
}

#[test]
fn a_greedy_text_is_what_the_likeliest_token_of_a_whole_pass_gives_each_time() {
    for file in ["llama.gguf", "qwen2.gguf", "qwen3.gguf", "gemma3.gguf"] {
        let mut model = loaded(file, REFERENCE, UNTIMED);
        let requests = [
            request("Bought: BREAD, MILK.", decoding(40)),
            request("Write a list.", decoding(90)),
        ];
        let texts = write(&mut model, &requests);
        for (request, text) in requests.iter().zip(texts) {
            let expected = naive(&model, request);
            // `read` shows some tokenizers' tokens apart, and none of the signs here depends on that.
            let digits =
                |text: &str| -> String { text.chars().filter(char::is_ascii_digit).collect() };
            let shown = model.text().read(&expected);
            // Here tokens of single bytes have digits in their names.
            if file != "gemma3.gguf" {
                assert_eq!(digits(&text.text), digits(&shown), "{file}");
            }
            assert!(
                !text.text.contains(['\u{120}', '\u{2581}']),
                "{file}: {:?}",
                text.text
            );
            let tokens = expected.len() as u32 + u32::from(!text.is_cut);
            assert_eq!(text.tokens, tokens, "{file}");
            let most = request.decoding.max_tokens;
            assert_eq!(text.is_cut, expected.len() == most as usize, "{file}");
            assert_eq!((text.ended, text.passes), (Ended::Complete, text.tokens));
        }
    }
}

#[test]
fn a_text_is_the_same_alone_among_64_in_places_that_others_left_and_on_any_threads() {
    for (file, precision) in [
        ("llama.gguf", Precision::Bf16),
        ("gemma3.gguf", Precision::F32),
        ("qwen3.gguf", Precision::Int8),
    ] {
        let options = |threads, groups| Options {
            threads,
            groups,
            precision,
            ..REFERENCE
        };
        let requests = requests(64);
        let together = write(&mut loaded(file, options(1, None), UNTIMED), &requests);
        assert!(together.iter().all(|it| it.ended == Ended::Complete));
        let texts = |responses: &[WriteResponse]| -> Vec<(String, u32, bool)> {
            let each = responses.iter();
            each.map(|it| (it.text.clone(), it.tokens, it.is_cut))
                .collect()
        };
        let expected = texts(&together);
        // Memory for a few texts only, passes that end in the middle of prompts, two threads, two groups.
        let narrow = Limits {
            rows_max: 7,
            kv_max: 1 << 17,
            ..UNTIMED
        };
        for (options, limits) in [
            (options(1, None), narrow),
            (options(2, Some(1)), UNTIMED),
            (options(2, Some(2)), narrow),
        ] {
            let mut model = loaded(file, options, limits);
            assert_eq!(texts(&write(&mut model, &requests)), expected, "{file}");
        }
        let mut apart = loaded(file, options(1, None), UNTIMED);
        for (request, expected) in requests.iter().zip(&expected) {
            let alone = write(&mut apart, std::slice::from_ref(request));
            assert_eq!(texts(&alone)[0], *expected, "{file}");
        }
        let mut distinct: Vec<&String> = expected.iter().map(|(text, ..)| text).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(
            distinct.len() > 30,
            "{file}: {} texts differ",
            distinct.len()
        );
    }
}

#[test]
fn a_text_ends_with_the_model_s_end_token_or_at_its_bound() {
    let mut model = loaded("llama.gguf", REFERENCE, UNTIMED);
    let sampled = |seed| {
        let decoding = Decoding {
            temperature: 2.0,
            seed,
            ..decoding(200)
        };
        request("Write.", decoding)
    };
    let requests: Vec<WriteRequest> = (0..40).map(sampled).collect();
    let texts = write(&mut model, &requests);
    let (cut, ended): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| text.is_cut);
    assert!(!ended.is_empty() && !cut.is_empty(), "{}", ended.len());
    assert!(cut.iter().all(|text| text.tokens == 200));
    for text in ended {
        assert!(text.tokens < 200, "{text:?}");
        assert!(!text.text.contains("</s>") && !text.text.contains("<|im_end|>"));
    }
}

#[test]
fn requests_that_cannot_be_written_cost_no_other_request_its_text() {
    let mut model = loaded("llama.gguf", REFERENCE, UNTIMED);
    let good = request("Bought: BREAD.", decoding(5));
    let long = request(&"BREAD, ".repeat(20_000), decoding(5));
    let endless = request("Bought: BREAD.", decoding(u32::MAX));
    let cancelled = request("Bought: BREAD.", decoding(5));
    cancelled.cancel.cancel();
    let alone = write(&mut model, std::slice::from_ref(&good));
    let all = write(&mut model, &[long, good, endless, cancelled]);
    let ended: Vec<Ended> = all.iter().map(|it| it.ended).collect();
    let expected = [
        Ended::TooLong,
        Ended::Complete,
        Ended::TooLong,
        Ended::Cancelled,
    ];
    assert_eq!(ended, expected);
    assert_eq!(all[1].text, alone[0].text);
    assert!(
        all.iter()
            .all(|it| it.text.is_empty() == (it.ended != Ended::Complete))
    );
    let late = Limits {
        time_max: Duration::ZERO,
        ..UNTIMED
    };
    let mut model = loaded("llama.gguf", REFERENCE, late);
    let texts = write(&mut model, &requests(3));
    assert!(
        texts
            .iter()
            .all(|it| it.ended == Ended::Late && it.text.is_empty())
    );
}

#[test]
fn tensors_of_a_device_write_what_the_cpu_writes() {
    let greedy: Vec<WriteRequest> = requests(6).into_iter().step_by(2).collect();
    let cpu = write(&mut loaded("llama.gguf", REFERENCE, UNTIMED), &greedy);
    let options = Options {
        place: Place::Tensors,
        ..REFERENCE
    };
    let device = write(&mut loaded("llama.gguf", options, UNTIMED), &greedy);
    for (cpu, device) in cpu.iter().zip(&device) {
        assert_eq!((&cpu.text, cpu.tokens), (&device.text, device.tokens));
    }
}
