//! Cases of what a first-seen user gets, and of what one event adds to demand.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::list::fallback::{FORBIDDEN, FallbackSettings, SnapshotParts, serving_snapshot};
use crate::shop::catalogue::Catalogue;
use crate::shop::demand::Demand;
use crate::shop::rules::{Rule, Table};
use crate::user::event::Event;
use crate::user::fold::tests::BASE;

/// A shop of products, each with its stock, whose fallback has two of them.
fn shop(products: &[(&str, i64)]) -> Snapshot {
    let mut catalogue = Catalogue::default();
    for (pu, stock) in products {
        let sku = json!({
            "sku": format!("sku of {pu}"), "pu_id": pu, "pu": pu, "category": pu, "title": pu, "stock": stock,
            "price": null, "attributes": {},
        });
        let sku = serde_json::from_value(sku).expect("a SKU");
        catalogue.apply(format!("sku of {pu}"), Some(sku));
    }
    let catalogue = Arc::new(catalogue);
    let rule = |category: &str| -> Rule {
        let rule = json!({
            "id": category, "when": {"field": "avoids", "in": [category]},
            "forbid": {"categories": [category]},
        });
        serde_json::from_value(rule).expect("a rule")
    };
    let rules = ["A", "B", "C"].map(rule);
    let rules = Arc::new(Table::compile(&rules, &[], &catalogue));
    let none = std::iter::empty();
    let demand = Demand::build(none, &catalogue, &Default::default(), Timestamp(0));
    let parts = SnapshotParts {
        catalogue,
        rules,
        demand: Arc::new(demand),
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: 2,
        selection: &Default::default(),
    };
    serving_snapshot(parts, fallbacks)
}

fn record(offset: i64, change: Change) -> Accepted {
    Accepted {
        user: UserId("u".into()),
        position: format!("0/t/0:{offset}").parse().expect("valid"),
        time: Timestamp(BASE),
        change,
    }
}

fn avoids(categories: &[&str]) -> Accepted {
    let profile = json!({ "avoids": categories });
    record(
        0,
        Change::Profile(serde_json::from_value(profile).expect("a profile")),
    )
}

fn bought(qty: u32) -> Accepted {
    let event = Event {
        kind: Kind::Purchase,
        item: Item::Sku("sku of A".into()),
        qty,
        price: None,
        ts: None,
    };
    record(1, Change::Event(event))
}

fn planned(snapshot: &Snapshot, records: &[Accepted]) -> Plan {
    let book = PlanContext {
        snapshot,
        policy: &Policy::default(),
        ns: "n",
        window: 9,
        triggers: true,
        history_before: Timestamp(0),
        units_max: 20,
        complete_since: &BTreeMap::new(),
    };
    plan(LoadedUser::default(), records, None, &book)
}

/// Names and reason of the first list, if one is stored.
fn first(products: &[(&str, i64)], avoided: &[&str]) -> Option<(Vec<String>, Option<String>)> {
    match planned(&shop(products), &[avoids(avoided)]).edit {
        Edit::First(list, _) => {
            let names = list.pus.iter().map(|pu| pu.name.clone());
            Some((names.collect(), list.reason.clone()))
        }
        Edit::Keep => None,
        Edit::Strip(list) => panic!("a new user has no list: {list:?}"),
    }
}

#[test]
fn a_first_fallback_is_stored_only_if_it_names_something_or_rules_forbid_all() {
    let all = &[("A", 1), ("B", 1), ("C", 1)];
    assert_eq!(first(&[], &[]), None, "no catalogue yet");
    assert_eq!(first(&[("A", 0), ("B", 0)], &["A"]), None, "all sold out");
    let names = |avoided: &[&str]| first(all, avoided).expect("a list").0;
    assert_eq!(names(&[]), ["A", "B"]);
    assert_eq!(names(&["A"]), ["B"]);
    // Rules take all of the segment's list, and not all of the shop.
    assert_eq!(names(&["A", "B"]), ["C"]);
    let (names, reason) = first(all, &["A", "B", "C"]).expect("a list");
    assert!(names.is_empty());
    assert_eq!(reason.as_deref(), Some(FORBIDDEN));
    // What is sold out would not be shown anyway: rules forbid the rest.
    let (names, reason) = first(&[("A", 1), ("B", 0)], &["A"]).expect("a list");
    assert_eq!((names.len(), reason.as_deref()), (0, Some(FORBIDDEN)));
}

#[test]
fn one_purchase_adds_at_most_units_max_to_demand() {
    for (qty, counted) in [(1, 1), (20, 20), (21, 20), (u32::MAX, 20)] {
        let plan = planned(&shop(&[("A", 1)]), &[bought(qty)]);
        assert_eq!(plan.counted[0].n, counted, "{qty}");
    }
}
