//! The sentence encoder on real weights: equal to `transformers`, and to itself in any batch.
//!
//! Needs the folder that `NEARSHORE_TEST_ENCODER` names; `scripts/test` downloads it. Reference by
//! `scripts/make-encoder-reference`.

use std::path::PathBuf;
use std::sync::LazyLock;

use nearshore_engine::encoder::Encoder;
use proptest::prelude::*;
use serde_json::Value;

static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    let path = std::env::var_os("NEARSHORE_TEST_ENCODER");
    let path: PathBuf = path
        .expect("NEARSHORE_TEST_ENCODER is not set: run scripts/test")
        .into();
    Encoder::load(&path).expect("the test encoder loads")
});

fn reference() -> Vec<Value> {
    let text = include_str!("../fixtures/encoder.json");
    let all: Value = serde_json::from_str(text).expect("fixture");
    all["texts"].as_array().expect("texts").clone()
}

fn text_of(case: &Value) -> String {
    let text = case["text"].as_str().expect("text");
    text.repeat(case["repeated"].as_u64().expect("a number") as usize)
}

fn floats(value: &Value) -> Vec<f64> {
    let all = value.as_array().expect("numbers").iter();
    all.map(|x| x.as_f64().expect("a number")).collect()
}

fn encode(texts: &[&str]) -> Vec<Vec<f32>> {
    let vectors = ENCODER.encode(texts).expect("encoded");
    assert_eq!(vectors.len(), texts.len(), "one vector per text");
    vectors
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let each = a.iter().zip(b);
    each.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn vectors_agree_with_the_reference() {
    let cases = reference();
    assert_eq!(cases.len(), 20);
    let texts: Vec<String> = cases.iter().map(text_of).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = encode(&texts);
    let (mut worst_first, mut worst_cosine) = (0f64, 0f64);
    for (case, vector) in cases.iter().zip(&vectors) {
        assert_eq!(vector.len(), ENCODER.width());
        for (ours, theirs) in vector.iter().zip(floats(&case["first"])) {
            worst_first = worst_first.max((f64::from(*ours) - theirs).abs());
        }
        for (other, theirs) in vectors.iter().zip(floats(&case["cosines"])) {
            worst_cosine = worst_cosine.max((cosine(vector, other) - theirs).abs());
        }
    }
    println!("greatest difference: a number {worst_first:.7}, a cosine {worst_cosine:.7}");
    assert!(worst_first <= 1e-5, "{worst_first}");
    assert!(worst_cosine <= 1e-5, "{worst_cosine}");
}

#[test]
fn a_text_alone_has_the_same_vector_as_in_a_batch_on_any_threads() {
    let texts: Vec<String> = reference().iter().map(text_of).collect();
    let names = include_str!("../fixtures/names.txt").lines();
    let texts: Vec<&str> = texts.iter().map(String::as_str).chain(names).collect();
    let batch = encode(&texts);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.expect("a pool");
    for nth in (0..20).chain([20, 57, 219]) {
        let alone = pool.install(|| encode(&[texts[nth]]));
        assert_eq!(alone[0], batch[nth], "{:?}, bit for bit", texts[nth]);
    }
    let mut reversed = texts.clone();
    reversed.reverse();
    let mut again = encode(&reversed);
    again.reverse();
    assert_eq!(again, batch);
}

#[test]
fn the_empty_text_has_a_vector_and_no_texts_have_none() {
    assert!(encode(&[]).is_empty());
    let [empty, blank] = &encode(&["", " \t\u{200b}\n"])[..] else {
        panic!("two vectors")
    };
    assert_eq!(empty, blank, "what has no letters is the empty text");
    assert!((cosine(empty, empty) - 1.0).abs() < 1e-6);
}

#[test]
fn what_is_behind_256_tokens_is_not_read() {
    let long = "shampoo ".repeat(254);
    let texts = [
        long.clone(),
        format!("{long} beer"),
        format!("beer {long}"),
        long.repeat(1000),
    ];
    let vectors = encode(&texts.each_ref().map(String::as_str));
    assert_eq!(vectors[0], vectors[1]);
    assert_ne!(vectors[0], vectors[2]);
    assert_eq!(vectors[0], vectors[3]);
}

#[test]
fn a_special_token_in_a_text_is_text() {
    for (special, plain) in [
        ("shampoo [SEP] beer", "shampoo [sep] beer"),
        ("[MASK] [CLS]", "[mask] [cls]"),
        ("[PAD]", "[pad]"),
    ] {
        let vectors = encode(&[special, plain, &special.replace(['[', ']'], "")]);
        assert_eq!(vectors[0], vectors[1], "{special}");
        assert_ne!(vectors[0], vectors[2], "{special}");
    }
}

#[test]
fn names_of_like_things_are_nearer_than_others() {
    for (name, near, far) in [
        ("SHAMPOO", "hair conditioner", "beer"),
        ("ORAL HYGIENE PRODUCTS", "toothpaste", "frozen pizza"),
        ("ADULT ANALGESICS", "painkiller", "candy bar"),
    ] {
        let vectors = encode(&[name, near, far]);
        let (near, far) = (
            cosine(&vectors[0], &vectors[1]),
            cosine(&vectors[0], &vectors[2]),
        );
        assert!(near > far + 0.05, "{name}: {near} {far}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn any_text_has_a_vector_of_length_1(
        text in any::<String>(), signs in "[\\[\\]#A-Z \u{301}\u{4e00}\u{200d}]{0,40}",
    ) {
        for vector in encode(&[&text, &signs]) {
            prop_assert_eq!(vector.len(), 384);
            prop_assert!((cosine(&vector, &vector) - 1.0).abs() < 1e-6);
        }
    }
}
