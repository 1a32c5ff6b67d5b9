//! Texts by real weights: what the textbook's passes give, the same alone and among many.

use nearshore_core::names::scoring::{Ended, Prompt};
use nearshore_core::names::writing::{Decoding, WriteRequest, WriteResponse};
use nearshore_engine::search::constrained::{Constrained, Limits};
use nearshore_engine::{Model, Options, Precision};

use super::{Plain, UNTIMED, model_path, options, turns};

fn request(prompt: Prompt, decoding: Decoding) -> WriteRequest {
    WriteRequest {
        prompt,
        decoding,
        ..WriteRequest::default()
    }
}

fn bounded(max_tokens: u32) -> Decoding {
    Decoding {
        max_tokens,
        ..Decoding::default()
    }
}

fn write(model: &mut Constrained, requests: &[WriteRequest]) -> Vec<WriteResponse> {
    let texts = model.write(requests).expect("written");
    assert!(texts.iter().all(|text| text.ended == Ended::Complete));
    texts
}

#[test]
fn a_greedy_text_is_what_a_textbook_s_passes_give() {
    let mut model = super::load(2);
    let prompts = [
        turns("What is the capital of France? One word.", ""),
        turns("Continue this list of groceries:\nmilk\nbread\neggs", "1."),
    ];
    let requests = prompts.map(|prompt| request(prompt, bounded(20)));
    let texts = write(&mut model, &requests);
    assert_eq!(texts[0].text, "The capital of France is Paris.");
    let plain = Plain::load(&model_path());
    for (request, text) in requests.iter().zip(&texts) {
        let mut tokens = model.text().prompt(&request.prompt).expect("tokens");
        let from = tokens.len();
        while tokens.len() < from + 20 {
            let logits = plain.logits(&tokens, 1).expect("logits").remove(0);
            let best = (0..).zip(logits).max_by(|a, b| a.1.total_cmp(&b.1));
            let (best, _): (u32, f32) = best.expect("a vocabulary");
            if best == model.text().end() {
                break;
            }
            tokens.push(best);
        }
        let written = tokens.split_off(from);
        // `read` shows tokens apart, with a sign for each space and line.
        let shown = model.text().read(&written).replace(' ', "");
        let shown = shown.replace('\u{120}', " ").replace('\u{10a}', "\n");
        assert_eq!(text.text, shown);
        assert_eq!(text.is_cut, written.len() == 20);
    }
}

#[test]
fn a_text_is_the_same_alone_among_many_and_in_the_place_of_another() {
    for precision in [Precision::Bf16, Precision::Int8] {
        let loaded = |threads, limits: Limits| {
            let options = Options {
                precision,
                ..options(threads)
            };
            let model = Constrained::load(&model_path(), options);
            model.expect("the test model loads").limited(limits)
        };
        let one = |nth: usize| {
            let bought = ["BREAD", "FLUID MILK", "TEA BAGS"][..1 + nth % 3].join(", ");
            let decoding = Decoding {
                temperature: [0.0, 0.9][nth % 2],
                top_p: [1.0, 0.9][nth % 2],
                seed: nth as u32 / 4,
                ..bounded([4, 11][nth / 2 % 2])
            };
            request(
                turns(format!("Bought: {bought}. Write a list."), "1."),
                decoding,
            )
        };
        let requests: Vec<WriteRequest> = (0..20).map(one).collect();
        let together = write(&mut loaded(2, UNTIMED), &requests);
        assert!(together[5].shared_tokens > 20, "{:?}", together[5]);
        // Memory for two or three texts at once.
        let narrow = Limits {
            rows_max: 30,
            kv_max: 8 << 20,
            ..UNTIMED
        };
        let narrow = write(&mut loaded(1, narrow), &requests);
        let mut apart = loaded(1, UNTIMED);
        for (nth, request) in requests.iter().enumerate() {
            let alone = write(&mut apart, std::slice::from_ref(request));
            for other in [&alone[0], &narrow[nth]] {
                let of = |it: &WriteResponse| (it.text.clone(), it.tokens, it.is_cut);
                assert_eq!(of(other), of(&together[nth]), "{precision:?}, text {nth}");
            }
        }
    }
}

/// Prints how many tokens a second are written: `scripts/test -p nearshore-engine --test weights speed -- --ignored
/// --nocapture`.
#[test]
#[ignore = "a measurement: it prints and checks nothing"]
fn speed_of_writing_alone_and_in_batches() {
    let options = Options {
        precision: Precision::default(),
        ..options(2)
    };
    let model = Constrained::load(&model_path(), options).expect("the test model loads");
    let mut model = model.limited(UNTIMED);
    let goods = "milk bread eggs coffee apples rice pasta butter cheese tea beans fish salt honey flour yogurt";
    let goods: Vec<&str> = goods.split(' ').collect();
    let one = |nth: usize| {
        let bought: Vec<&str> = (0..3 + nth % 4)
            .map(|k| goods[(nth + k * 3) % 16])
            .collect();
        let user = format!(
            "A customer of a grocer bought lately: {}. Write 20 other products of a grocer that this customer may need \
             next, one per line, names only.",
            bought.join(", ")
        );
        request(turns(user, ""), bounded(48))
    };
    for batch in [1, 8, 32] {
        let requests: Vec<WriteRequest> = (0..batch).map(one).collect();
        let start = std::time::Instant::now();
        let texts = write(&mut model, &requests);
        let seconds = start.elapsed().as_secs_f64();
        let tokens: u32 = texts.iter().map(|text| text.tokens).sum();
        let speed = f64::from(tokens) / seconds;
        println!("{batch} at once: {tokens} tokens in {seconds:.1} s, {speed:.1} a second");
        println!("{:?} {:?}", model.clocks().take(), texts[0].text);
    }
}
