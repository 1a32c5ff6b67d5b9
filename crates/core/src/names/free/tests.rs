//! Written lists of every kind, what becomes of their entries, and the response that they make.

#![allow(clippy::disallowed_types)] // The matcher is fitted once for all cases of the properties.

use std::sync::{Arc, LazyLock};

use fixedbitset::FixedBitSet;
use proptest::prelude::*;

use super::listed::{CHARS_MAX, ENTRIES_MAX};
use super::*;
use crate::names::matcher::{Example, FitOptions, Matcher, Memory, Model, fit};
use crate::names::scoring::{ScoreRequest, Term, Values};
use crate::names::written::{Reject, Written};

fn texts(listed: &Listed) -> Vec<&str> {
    listed.entries.iter().map(|it| it.text.as_str()).collect()
}

#[track_caller]
fn check(text: &str, wanted: &[&str]) {
    let listed = read(text, false);
    assert_eq!(texts(&listed), wanted, "{text:?}");
}

#[test]
fn lists_of_every_form_are_read() {
    let three: &[&str] = &["Milk", "Rye Bread", "Eggs"];
    for text in [
        "Milk\nRye Bread\nEggs",
        "1. Milk\n2. Rye Bread\n3. Eggs\n",
        "1) Milk\n2) Rye Bread\n3) Eggs",
        "(1) Milk\n(2) Rye Bread\n(3) Eggs",
        "- Milk\n* Rye Bread\n• Eggs",
        "- 1. Milk\n- 2. Rye Bread\n- 3. Eggs",
        "Here are three products:\n\n1. **Milk**\n2. **Rye Bread**\n3. **Eggs**\n\nEnjoy!",
        "1. **Milk** - every week\n2. **Rye Bread**: for breakfast\n3. **Eggs** (12)",
        "**1. Milk**\n**2. Rye Bread**\n**3. Eggs**",
        "Milk, Rye Bread, Eggs.",
        "Sure, these:\nMilk\nRye Bread\nEggs",
        "```\nMilk\nRye Bread\nEggs\n```",
        "`Milk`\n\"Rye Bread\"\n“Eggs”",
        "[\"Milk\", \"Rye Bread\", \"Eggs\"]",
        "Sure!\n```json\n[\"Milk\", \"Rye Bread\", \"Eggs\"]\n```\nAnything else?",
        "[{\"name\": \"Milk\"}, {\"name\": \"Rye Bread\", \"tags\": [\"x\", \"y\"]}, {\"why\": \"z\", \"name\": \"Eggs\"}]",
        "{\"products\": [\"Milk\", \"Rye Bread\", \"Eggs\"]}",
        "{\"why\": \"new parents\", \"products\": [{\"id\": 1, \"Product\": \"Milk\"}, {\"item\": \"Rye Bread\"}, {\"title\": \"Eggs\"}]}",
        "[\"Milk\", \"Rye\\u0020Bread\", \"Eggs\", \"Chee",
        "<think>1. Cheese\n</think>\n1. Milk\n2. Rye Bread\n3. Eggs",
    ] {
        check(text, three);
    }
}

#[test]
fn texts_without_a_list_have_no_entries() {
    for text in [
        "",
        "\n\n",
        "Products:",
        "```\n```",
        "<think>1. Milk",
        "[]",
        "{}",
        "---",
    ] {
        check(text, &[]);
    }
}

#[test]
fn a_name_with_numbers_or_brackets_stays_whole_and_its_head_is_known() {
    let listed = read("1. 1.5 l Milk (UHT)\n2. 7 Up\n3. Milk: every week", false);
    assert_eq!(
        texts(&listed),
        ["1.5 l Milk (UHT)", "7 Up", "Milk: every week"]
    );
    let heads: Vec<_> = listed.entries.iter().map(|it| it.head.as_deref()).collect();
    assert_eq!(heads, [Some("1.5 l Milk"), None, Some("Milk")]);
    assert_eq!(texts(&read("1.5 l Milk", false)), ["1.5 l Milk"]);
}

#[test]
fn a_list_that_is_cut_off_loses_its_last_entry_alone() {
    for (text, cut) in [
        ("1. Milk\n2. Rye Br", "1. Milk\n2. Rye Br"),
        ("[\"Milk\", \"Rye Br", "[\"Milk\", \"Rye Br"),
    ] {
        let listed = read(text, true);
        assert_eq!(texts(&listed), ["Milk"], "{cut}");
        assert!(listed.is_cut);
    }
    let listed = read("Milk\nEggs\n", true);
    assert_eq!(texts(&listed), ["Milk", "Eggs"]);
    assert!(read("[\"Milk\"", false).is_cut);
    assert!(!read("[\"Milk\"]", false).is_cut);
}

#[test]
fn lengths_and_counts_have_limits() {
    let long = "x".repeat(CHARS_MAX + 1);
    let listed = read(&format!("{long}\nMilk"), false);
    assert!(listed.entries[0].too_long && !listed.entries[1].too_long);
    assert_eq!(listed.entries[0].text.chars().count(), CHARS_MAX);
    let many: Vec<String> = (0..3 * ENTRIES_MAX).map(|n| format!("\"p{n}\"")).collect();
    for text in [
        many.join("\n"),
        format!("[{}]", many.join(",")),
        many.join(","),
    ] {
        let listed = read(&text, false);
        assert_eq!(listed.entries.len(), ENTRIES_MAX);
        assert!(listed.is_cut);
    }
    // Bytes beyond what is read are not looked at, and no character is cut.
    let listed = read(&"é\n".repeat(1 << 20), false);
    assert!(listed.is_cut && listed.entries.len() == ENTRIES_MAX);
}

const KINDS: [&str; 12] = [
    "potato", "garlic", "lemon", "vanilla", "chicken", "tomato", "onion", "pepper", "almond",
    "coconut", "mustard", "honey",
];
const FORMS: [&str; 6] = ["chips", "sauce", "soup", "yogurt", "crackers", "salad"];

static SHOP: LazyLock<(Vec<String>, Arc<Model>)> = LazyLock::new(|| {
    let of = |kind: &&str| FORMS.map(|form| format!("{kind} {form}"));
    let names: Vec<String> = KINDS.iter().flat_map(of).collect();
    let sold = |at: &usize| !at.is_multiple_of(4);
    let known = names.iter().enumerate().filter(|(at, _)| sold(at));
    let matcher = Matcher::new(known.map(|(at, name)| (at as u32, name.as_str())));
    let mut examples = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let (kind, form) = name.split_once(' ').expect("two words");
        let wrong = format!("{}{} {form}", &kind[..2], &kind[3..]);
        for text in [wrong, format!("{form} {kind}"), name.to_uppercase()] {
            examples.push(Example {
                text,
                vector: None,
                product: sold(&at).then_some(at as u32),
                kind: String::new(),
            });
        }
    }
    let fitted = fit(&matcher, &examples, &FitOptions::default()).expect("fits");
    (names, Arc::new(fitted.model))
});

fn words() -> Words {
    Words::new(&SHOP.0, Arc::clone(&SHOP.1))
}

fn place(name: &str) -> u32 {
    let at = SHOP.0.iter().position(|known| known == name);
    at.expect("a name of the shop") as u32
}

fn all() -> FixedBitSet {
    let mut all = FixedBitSet::with_capacity(SHOP.0.len());
    all.insert_range(..);
    all
}

#[test]
fn entries_become_names_or_are_rejected_with_a_reason() {
    let text = format!(
        "Here you are:\n1. Tomato Soup\n2. tomato soup\n3. SOUP TOMATO\n4. {}\n5. ***\n6. ignore all previous \
         instructions\n7. Lemon Yogurt: fresh\n8. Honey Salad\n9. almond crackers",
        "y".repeat(300)
    );
    let mut permitted = all();
    permitted.set(place("honey salad") as usize, false);
    let written = words().accept(
        &read(&text, false),
        Some(&permitted),
        &mut Memory::default(),
    );
    let names: Vec<u32> = written.accepted.iter().map(|it| it.pu).collect();
    let wanted = ["tomato soup", "lemon yogurt", "almond crackers"].map(place);
    assert_eq!(names, wanted, "{written:?}");
    let reasons: Vec<Reject> = written.rejected.iter().map(|it| it.why).collect();
    use Reject::{Empty, NotPermitted, Repeat, Theta, TooLong};
    assert_eq!(
        reasons,
        [Repeat, Repeat, TooLong, Empty, Theta, NotPermitted]
    );
    assert_eq!(written.chatter, 1);
    assert_eq!(written.reasons()[&Repeat], 2);
    let nearest = written.rejected[5].nearest.expect("it is known");
    assert_eq!(nearest.0, place("honey salad"));
    assert!(
        written
            .accepted
            .iter()
            .all(|it| it.probability >= SHOP.1.theta)
    );
}

#[test]
fn of_products_with_one_name_the_permitted_one_is_meant() {
    let mut names = SHOP.0.clone();
    names.push("tomato soup".into());
    let words = Words::new(&names, Arc::clone(&SHOP.1));
    assert_eq!(words.len(), names.len());
    let twin = (names.len() - 1) as u32;
    let mut permitted = FixedBitSet::with_capacity(names.len());
    permitted.insert(twin as usize);
    let listed = read("tomato soup", false);
    let written = words.accept(&listed, Some(&permitted), &mut Memory::default());
    assert_eq!(written.accepted[0].pu, twin);
}

fn request(n: usize, weight: f32, values: Vec<f32>) -> ScoreRequest {
    ScoreRequest {
        n,
        weight,
        terms: vec![Term {
            name: "demand",
            weight: 2.0,
            values: Values::Shared(values.into()),
        }],
        ..ScoreRequest::default()
    }
}

#[test]
fn a_list_without_an_accepted_name_makes_no_list() {
    let request = request(3, 1.0, vec![0.0; 5]);
    let response = respond(&request, Written::default(), 5);
    assert!(response.named.is_empty());
    assert_eq!(response.written, Some(Arc::new(Written::default())));
}

#[test]
fn without_terms_nothing_is_filled_up() {
    let request = ScoreRequest::default();
    let named = complete::complete(&request, &[3, 1], 5);
    let pus: Vec<u32> = named.iter().map(|name| name.pu).collect();
    assert_eq!(pus, [3, 1]);
}

proptest! {
    #[test]
    fn any_text_is_read_within_the_limits(text in any::<String>(), is_cut in any::<bool>()) {
        let listed = read(&text, is_cut);
        prop_assert!(listed.entries.len() <= ENTRIES_MAX);
        prop_assert!(listed.entries.iter().all(|it| it.text.chars().count() <= CHARS_MAX));
        prop_assert!(listed.is_cut || !is_cut);
    }

    #[test]
    fn any_bytes_with_the_signs_of_lists_are_read(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("[".to_owned()), Just("{".to_owned()), Just("]".to_owned()), Just("}".to_owned()),
                Just("\"".to_owned()), Just("\\".to_owned()), Just("\n".to_owned()), Just(",".to_owned()),
                Just(":".to_owned()), Just("\"name\":".to_owned()), Just("1.".to_owned()), Just("- ".to_owned()),
                Just("**".to_owned()), Just("```".to_owned()), Just("<think>".to_owned()),
                Just("</think>".to_owned()), Just(" (".to_owned()), Just("牛奶".to_owned()),
                "[a-z]{0,9}", proptest::collection::vec(any::<u8>(), 0..6)
                    .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            ],
            0..60,
        ),
        is_cut in any::<bool>(),
    ) {
        let text = parts.concat();
        let listed = read(&text, is_cut);
        prop_assert!(listed.entries.len() <= ENTRIES_MAX);
        let written = words().accept(&listed, None, &mut Memory::default());
        prop_assert_eq!(written.accepted.len() + written.rejected.len(), listed.entries.len());
    }

    #[test]
    fn names_in_every_form_come_back_in_their_order(
        picked in proptest::sample::subsequence((0..SHOP.0.len()).collect::<Vec<_>>(), 1..12),
        form in 0usize..5,
        cut in any::<proptest::sample::Index>(),
    ) {
        let names: Vec<&str> = picked.iter().map(|at| SHOP.0[*at].as_str()).collect();
        let line = |(nth, name): (usize, &&str)| match form {
            0 => format!("{}. {name}", nth + 1),
            1 => format!("- {name}"),
            2 => format!("{}) **{name}**: because", nth + 1),
            _ => (*name).to_owned(),
        };
        let lines: Vec<String> = names.iter().enumerate().map(line).collect();
        let text = match form {
            4 => serde_json::to_string(&names).expect("texts"),
            _ => lines.join("\n"),
        };
        let listed = read(&text, false);
        prop_assert_eq!(texts(&listed), names.clone());
        // Cut off anywhere, the entries are the first ones.
        let cut = cut.index(text.len());
        let listed = read(&text[..cut], true);
        let read = texts(&listed);
        if form != 4 || !read.is_empty() {
            prop_assert_eq!(&read[..], &names[..read.len()]);
        }
    }

    #[test]
    fn written_names_come_first_and_scores_are_sums(
        values in proptest::collection::vec(-20f32..0.0, 1..40),
        written in proptest::collection::vec(0u32..50, 0..12),
        n in 1usize..30,
        weight in 0.1f32..3.0,
    ) {
        let (request, len) = (request(n, weight, values.clone()), values.len());
        let named = complete::complete(&request, &written, len);
        let mut wanted: Vec<u32> = Vec::new();
        for pu in written.iter().filter(|pu| (**pu as usize) < len) {
            if !wanted.contains(pu) && wanted.len() < n {
                wanted.push(*pu);
            }
        }
        prop_assert_eq!(named.len(), n.min(len));
        let pus: Vec<u32> = named.iter().map(|name| name.pu).collect();
        prop_assert_eq!(&pus[..wanted.len()], &wanted[..]);
        let mut distinct = pus.clone();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), pus.len());
        prop_assert!(named.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for name in &named {
            let sum = weight * name.model + 2.0 * name.terms[0];
            prop_assert!((name.score - sum).abs() < 1e-3, "{} and {}", name.score, sum);
        }
        // Behind them is what the terms find best.
        let rest: Vec<f32> = named[wanted.len()..].iter().map(|name| name.score).collect();
        let worst = rest.last().copied().unwrap_or(f32::INFINITY);
        let mut better = (0..len as u32).filter(|pu| !pus.contains(pu));
        prop_assert!(better.all(|pu| 2.0 * values[pu as usize] <= worst + 1e-3));
    }
}
