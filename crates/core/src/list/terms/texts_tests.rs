//! Texts of users and names: values by hand, and what changes none of them.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use crate::list::terms::{TermInput, own_products, score_terms, table, term};
use crate::shop::catalogue::tests::sku;
use crate::shop::demand::Demand;
use crate::shop::rules::Table;
use crate::user::event::{Accepted, Change, Event, Item, UserId};
use crate::user::fold::fold;
use crate::user::record::{Offset, Partition, Position};

fn catalogue() -> Catalogue {
    let names = ["ALE", "BREAD", "MILK", "TEA"];
    let skus = names.map(|name| sku(&name.to_lowercase(), name, json!({})));
    Catalogue::load(skus.to_vec())
}

/// Vectors of length 1 in a plane: ALE to the right, BREAD upwards, MILK between them; TEA has none.
fn vectors() -> Arc<Vectors> {
    let mut vectors = Vectors::new("by hand", 2);
    for (text, vector) in [
        ("ALE", [1.0, 0.0]),
        ("BREAD", [0.0, 1.0]),
        ("MILK", [0.8, 0.6]),
        ("age 65+", [0.0, 1.0]),
        ("pet yes", [1.0, 0.0]),
    ] {
        vectors.insert(text, &vector).expect("fits");
    }
    Arc::new(vectors)
}

fn record(offset: i64, time: i64, change: Change) -> Accepted {
    Accepted {
        user: UserId("u".into()),
        position: Position {
            partition: Partition {
                incarnation: 0,
                topic: "t".into(),
                number: offset as i32,
            },
            offset: Offset(offset),
        },
        time: Timestamp(time),
        change,
    }
}

fn event(kind: Kind, item: &str) -> Change {
    Change::Event(Event {
        kind,
        item: Item::Sku(item.into()),
        qty: 1,
        price: None,
        ts: None,
        shown_in: None,
    })
}

fn profile(value: serde_json::Value) -> Change {
    Change::Profile(serde_json::from_value(value).expect("an object"))
}

fn state(records: &[Accepted]) -> UserState {
    let mut state = UserState::default();
    for record in records {
        fold(&mut state, record, 50);
    }
    state
}

fn texts_of(state: &UserState, catalogue: &Catalogue) -> Vec<OwnText> {
    own_texts(state, (&own_products(state, catalogue), &[]), catalogue)
}

fn close(found: &[f32], expected: [f32; 4]) {
    for (one, other) in found.iter().zip(expected) {
        assert!((one - other).abs() < 0.005, "{found:?} {expected:?}");
    }
    assert_eq!(found.len(), 4);
}

#[test]
fn values_are_those_computed_by_hand() {
    let catalogue = catalogue();
    let texts = Texts::bind(vec![vectors()], &catalogue).expect("there are vectors");
    // The mean of the three names is (0.6, 0.5333): cosines 0.6, 0.5333 and 0.8, whose mean is 0.6444.
    close(&texts.typical(), [-0.0444, -0.1111, 0.1556, 0.0]);
    let bought = state(&[record(1, 5, event(Kind::Purchase, "ale"))]);
    let own = texts_of(&bought, &catalogue);
    // ALE is not compared with itself: 0 - 0.5333 and 0.8 - 0.8 remain.
    close(
        &texts.similar(&own).expect("ALE has a vector"),
        [0.0, -0.5333, 0.0, 0.0],
    );
    // ALE counts 1, the two values of the profile a half each: the mean is (0.75, 0.25), and (0.5, 0.5) for ALE.
    let profile = profile(json!({"age": "65+", "pet": true}));
    let more = state(&[
        record(1, 5, event(Kind::Purchase, "ale")),
        record(2, 6, profile),
    ]);
    let own = texts_of(&more, &catalogue);
    close(
        &texts.similar(&own).expect("all have vectors"),
        [-0.1, -0.2833, -0.05, 0.0],
    );
    assert_eq!(texts.lacking(), 1, "TEA");
}

#[test]
fn what_has_no_vector_says_nothing_and_is_told() {
    let catalogue = catalogue();
    let texts = Texts::bind(vec![vectors()], &catalogue).expect("there are vectors");
    let seen = [
        record(1, 5, event(Kind::View, "tea")),
        record(2, 6, profile(json!({"city": "Ulm"}))),
    ];
    let own = texts_of(&state(&seen), &catalogue);
    assert_eq!(texts.similar(&own), None);
    let without: Vec<&str> = texts.without(&own).collect();
    assert_eq!(without, ["TEA", "city Ulm"]);
    // Vectors that were made later are looked up behind the first.
    let mut later = Vectors::new("by hand", 2);
    later.insert("TEA", &[0.0, 1.0]).expect("fits");
    let texts = Texts::bind(vec![vectors(), Arc::new(later)], &catalogue).expect("two");
    assert_eq!(
        (texts.lacking(), texts.without(&own).count()),
        (0, 1),
        "the city"
    );
    assert!(texts.similar(&own).expect("TEA")[1] > 0.1);
    assert!(Texts::bind(Vec::new(), &catalogue).is_none());
    let unknown = Texts::bind(vec![Arc::new(Vectors::new("by hand", 2))], &catalogue);
    assert_eq!(*unknown.expect("none of ours").typical(), [0.0; 4]);
}

#[test]
fn impressions_and_searches_are_no_texts_and_old_names_make_room() {
    let names: Vec<String> = (0..40).map(|nth| format!("N{nth:02}")).collect();
    let catalogue = Catalogue::load(names.iter().map(|n| sku(n, n, json!({}))).collect());
    let mut records: Vec<Accepted> = (0..40)
        .map(|nth| record(nth, nth, event(Kind::View, &names[nth as usize])))
        .collect();
    records.push(record(50, 90, event(Kind::Impression, "N00")));
    let mut search = record(51, 91, event(Kind::Search, "N01"));
    if let Change::Event(event) = &mut search.change {
        event.item = Item::Query("N01".into());
    }
    records.push(search);
    let own = texts_of(&state(&records), &catalogue);
    let found: Vec<&str> = own.iter().map(|own| &own.text[..]).collect();
    let expected: Vec<&str> = names[8..].iter().rev().map(|name| &name[..]).collect();
    assert_eq!(found, expected);
}

#[test]
fn terms_are_part_of_a_request_with_a_weight_and_vectors() {
    let catalogue = Arc::new(catalogue());
    let parts = SnapshotParts {
        rules: Arc::new(Table::compile(&[], &[], &catalogue)),
        demand: Arc::new(Demand::build(
            [],
            &catalogue,
            &Default::default(),
            Timestamp(0),
        )),
        merchant: Arc::default(),
        catalogue: Arc::clone(&catalogue),
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: 3,
        selection: &Default::default(),
    };
    let snapshot = serving_snapshot(parts, fallbacks);
    let texts = Texts::bind(vec![vectors()], &catalogue);
    let own_texts = [OwnText {
        text: "ALE".into(),
        pu: Some(0),
        weight: 1.0,
    }];
    let input = TermInput {
        snapshot: &snapshot,
        segment: "",
        own: &[],
        at: Timestamp(0),
        learned: None,
        texts: texts.as_ref(),
        own_texts: &own_texts,
        meant: &[],
    };
    let weights: BTreeMap<String, f64> = ["text", "typical"]
        .map(|name| (name.to_owned(), 2.0))
        .into();
    let names = |input: &TermInput<'_>| -> Vec<&str> {
        let terms = score_terms(&weights, input);
        terms.iter().map(|term| term.name).collect()
    };
    let has = |input: &TermInput<'_>, name| names(input).contains(&name);
    assert!(has(&input, "text") && has(&input, "typical"));
    close(
        &table(
            term("text")
                .and_then(|term| term.values(&input))
                .expect("values"),
            4,
        ),
        [0.0, -0.5333, 0.0, 0.0],
    );
    let nobody = TermInput {
        own_texts: &[],
        ..input
    };
    assert!(!has(&nobody, "text") && has(&nobody, "typical"));
    let without = TermInput {
        texts: None,
        ..input
    };
    assert!(!has(&without, "text") && !has(&without, "typical"));
}

proptest! {
    #[test]
    fn the_order_of_texts_changes_no_value(
        bought in prop::collection::vec((0usize..4, 0i64..5, 0usize..3), 1..12), order in any::<u64>(),
    ) {
        let (catalogue, kinds) = (catalogue(), [Kind::View, Kind::Cart, Kind::Purchase]);
        let texts = Texts::bind(vec![vectors()], &catalogue).expect("there are vectors");
        let names = ["ale", "bread", "milk", "tea"];
        let mut records: Vec<Accepted> = (0..)
            .zip(&bought)
            .map(|(nth, (name, time, kind))| record(nth, *time, event(kinds[*kind], names[*name])))
            .collect();
        records.push(record(90, 3, profile(json!({"age": "65+", "pet": true}))));
        let before = texts_of(&state(&records), &catalogue);
        let key = |record: &Accepted| (record.position.offset.0 as u64 + 1).wrapping_mul(order | 1);
        records.sort_by_key(key);
        let after = texts_of(&state(&records), &catalogue);
        prop_assert_eq!(&before, &after);
        prop_assert_eq!(texts.similar(&before), texts.similar(&after));
        // Nor does the order of vectors in their file, which is sorted by text.
        let read = Vectors::decode(&vectors().encode()).expect("just written");
        let again = Texts::bind(vec![Arc::new(read)], &catalogue).expect("the same");
        prop_assert_eq!(texts.similar(&before), again.similar(&before));
    }
}
