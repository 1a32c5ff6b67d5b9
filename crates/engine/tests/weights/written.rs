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
    assert!(texts[0].text.contains("Paris"), "{:?}", texts[0]);
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
        println!("{:?}", text.text);
        assert_eq!(text.text, model.text().read(&written));
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
