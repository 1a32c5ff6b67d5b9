//! Cases of what counts as a purchase, as a hit, and as a hit of the fallback.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::list::document::{Stage, list_id};
use crate::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use crate::shop::catalogue::Catalogue;
use crate::shop::catalogue::tests::sku;
use crate::shop::demand::Demand;
use crate::shop::rules::{Rule, Table};
use crate::user::event::{Item, UserId};

const STORED: i64 = 1_000;

/// Products `A` to `E`, each with one SKU `sku of A`; the fallback has A, B, C, as nothing was bought. `A` is forbidden
/// to users who avoid it.
fn shop(sold_out: &[&str]) -> Snapshot {
    let mut skus = ["A", "B", "C", "D", "E"].map(|pu| sku(&format!("sku of {pu}"), pu, json!({})));
    for sku in &mut skus {
        sku.stock = i64::from(!sold_out.contains(&&*sku.pu));
    }
    let catalogue = Arc::new(Catalogue::load(skus.to_vec()));
    let rule: Rule = serde_json::from_value(json!({
        "id": "r", "when": {"field": "avoids", "in": ["A"]}, "forbid": {"pus": ["A"]},
    }))
    .expect("a rule");
    let demand = Demand::build([], &catalogue, &Default::default(), Timestamp(0));
    let parts = SnapshotParts {
        rules: Arc::new(Table::compile(&[rule], &[], &catalogue)),
        catalogue,
        demand: Arc::new(demand),
        merchant: Arc::default(),
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: 3,
        selection: &Default::default(),
    };
    serving_snapshot(parts, fallbacks)
}

fn list(pus: &[&str]) -> ShownList {
    let shown = pus.iter().map(|pu| Shown {
        pu: (*pu).into(),
        name: (*pu).into(),
        score: -1.0,
        skus: vec![format!("sku of {pu}")],
    });
    ShownList {
        doc: Document {
            list_id: list_id("n", "u", (1, Stage::Model), Timestamp(0)),
            user: Some("u".into()),
            arm: "a".into(),
            source: Source::Model,
            at: Timestamp(0),
            segment: "default".into(),
            stale: false,
            reason: None,
            pus: shown.collect(),
        },
        epoch: 3,
        stored_at: Timestamp(STORED),
    }
}

fn event(time: i64, kind: Kind, item: Item) -> Accepted {
    let event = Event {
        kind,
        item,
        qty: 7,
        price: None,
        ts: None,
        shown_in: None,
    };
    Accepted {
        user: UserId("u".into()),
        position: format!("0/t/0:{time}").parse().expect("a position"),
        time: Timestamp(time),
        change: Change::Event(event),
    }
}

fn bought(pu: &str) -> Accepted {
    let item = Item::Sku(format!("sku of {pu}"));
    event(STORED + 1, Kind::Purchase, item)
}

/// Purchases, hits and hits of the fallback.
fn check(list: &ShownList, records: &[Accepted], expected: (u64, u64, u64)) {
    let steps = vec![Step::Folded; records.len()];
    check_in(&shop(&[]), None, list, records, &steps, expected);
}

fn check_in(
    snapshot: &Snapshot,
    profile: Option<&Profile>,
    list: &ShownList,
    records: &[Accepted],
    steps: &[Step],
    expected: (u64, u64, u64),
) {
    let context = HitContext {
        snapshot,
        profile,
        history_before: Timestamp(500),
    };
    let found = earned(list, records, steps, &context);
    assert_eq!(found.lists, 0);
    let found = (found.purchases, found.hits, found.fallback_hits);
    assert_eq!(found, expected, "{records:?}");
}

#[test]
fn a_purchase_is_a_hit_if_its_product_is_on_the_list() {
    let list = list(&["D", "B", "E"]);
    check(&list, &[bought("D")], (1, 1, 0));
    check(&list, &[bought("B")], (1, 1, 1));
    check(&list, &[bought("A")], (1, 0, 1));
    check(&list, &[bought("D"), bought("D"), bought("C")], (3, 2, 1));
    check(&list, &[bought("of another shop")], (1, 0, 0));
    let by_product = event(STORED + 1, Kind::Purchase, Item::Pu("E".into()));
    check(&list, &[by_product], (1, 1, 0));
}

#[test]
fn only_purchases_after_the_list_was_stored_count() {
    let list = list(&["A"]);
    let at = |time| event(time, Kind::Purchase, Item::Sku("sku of A".into()));
    check(&list, &[at(STORED - 1)], (0, 0, 0));
    check(&list, &[at(STORED)], (0, 0, 0));
    check(&list, &[at(STORED + 1)], (1, 1, 1));
    for kind in [Kind::View, Kind::Click, Kind::Cart, Kind::Impression] {
        let other = event(STORED + 1, kind, Item::Sku("sku of A".into()));
        check(&list, &[other], (0, 0, 0));
    }
}

#[test]
fn history_and_records_that_are_not_folded_do_not_count() {
    let mut list = list(&["A"]);
    list.stored_at = Timestamp(0);
    let at = |time| event(time, Kind::Purchase, Item::Sku("sku of A".into()));
    check(&list, &[at(499)], (0, 0, 0));
    check(&list, &[at(500)], (1, 1, 1));
    for step in [Step::Duplicate, Step::Passed] {
        let records = [at(600), at(601)];
        let steps = [step, Step::Folded];
        check_in(&shop(&[]), None, &list, &records, &steps, (1, 1, 1));
    }
}

#[test]
fn the_fallback_is_compared_over_as_many_products_as_the_list_has() {
    check(&list(&["D", "E", "B"]), &[bought("C")], (1, 0, 1));
    check(&list(&["D", "E"]), &[bought("C")], (1, 0, 0));
    check(&list(&[]), &[bought("A")], (1, 0, 0));
}

#[test]
fn rules_and_stock_are_applied_to_both_alike() {
    let steps = [Step::Folded];
    let list = list(&["A", "D", "B"]);
    // Sold out: neither shows it, and D comes up on the fallback.
    let without_a = shop(&["A"]);
    check_in(&without_a, None, &list, &[bought("A")], &steps, (1, 0, 0));
    check_in(&without_a, None, &list, &[bought("C")], &steps, (1, 0, 1));
    let avoids: Profile = serde_json::from_value(json!({"avoids": ["A"]})).expect("a profile");
    let (all, avoids) = (shop(&[]), Some(&avoids));
    check_in(&all, avoids, &list, &[bought("A")], &steps, (1, 0, 0));
    check_in(&all, avoids, &list, &[bought("B")], &steps, (1, 1, 1));
}

#[test]
fn the_sample_is_the_wanted_share_of_users_and_grows_with_it() {
    let users: Vec<String> = (0..10_000).map(|n| format!("u{n}")).collect();
    let sampled = |share| users.iter().filter(|user| is_sampled(user, share)).count();
    assert_eq!((sampled(0.0), sampled(1.0)), (0, 10_000));
    assert!(sampled(0.1).abs_diff(1_000) < 100, "{}", sampled(0.1));
    let grows = |user: &String| !is_sampled(user, 0.1) || is_sampled(user, 0.2);
    assert!(users.iter().all(grows));
}
