//! Cases of what a new profile leaves of a list, and of what one event adds to demand.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::list::fallback::{FORBIDDEN, FallbackSettings, SnapshotParts, serving_snapshot};
use crate::shop::catalogue::Catalogue;
use crate::shop::demand::Demand;
use crate::shop::rules::{Rule, Table, Verdict};
use crate::user::event::Event;
use crate::user::fold::tests::BASE;
use crate::user::trigger::Reason;

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
        merchant: Arc::default(),
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
        shown_in: None,
    };
    record(1, Change::Event(event))
}

fn planned(snapshot: &Snapshot, records: &[Accepted]) -> Plan {
    planned_after(LoadedUser::default(), records, None, snapshot)
}

fn planned_after(
    stored: LoadedUser,
    records: &[Accepted],
    list: Option<&StoredList>,
    snapshot: &Snapshot,
) -> Plan {
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
    plan(stored, records, list, &book)
}

fn event_of(kind: Kind, sku: &str, qty: u32) -> Change {
    Change::Event(Event {
        kind,
        item: Item::Sku(sku.into()),
        qty,
        price: None,
        ts: None,
        shown_in: None,
    })
}

/// Kinds and SKUs of a plan's window, in its order.
fn window(plan: &Plan) -> Vec<(Kind, Item)> {
    let window = plan.held.state.window.iter();
    window
        .map(|event| (event.kind, event.item.clone()))
        .collect()
}

/// What a plan counts of a SKU: pieces bought, and buyers.
fn sums(plan: &Plan, of: &str) -> [u64; 2] {
    [CountKind::Event(Kind::Purchase), CountKind::Buyer].map(|kind| {
        let each = plan.counted.iter();
        let each = each.filter(|it| it.kind == kind && it.sku == of);
        each.map(|it| it.n).sum()
    })
}

#[test]
fn all_that_one_record_became_is_folded_in_its_order_and_once() {
    let shop = shop(&[("A", 1), ("B", 1)]);
    let (a, b) = ("sku of A", "sku of B");
    let lines = [
        (Kind::Purchase, a),
        (Kind::Purchase, b),
        (Kind::Purchase, a),
        (Kind::View, b),
    ];
    let before = [record(7, event_of(Kind::View, a, 1))].into_iter();
    let records: Vec<Accepted> = before
        .chain(lines.map(|(kind, sku)| record(8, event_of(kind, sku, 2))))
        .collect();
    let first = planned(&shop, &records);
    let expected: Vec<(Kind, Item)> = [(Kind::View, a)]
        .into_iter()
        .chain(lines)
        .map(|(kind, sku)| (kind, Item::Sku(sku.to_owned())))
        .collect();
    assert_eq!(window(&first), expected);
    let counted = [[4, 1], [2, 1]];
    assert_eq!([sums(&first, a), sums(&first, b)], counted, "one buyer");
    assert!(first.steps.iter().all(|step| *step == Step::Folded));

    // As it is stored and loaded again, nothing is folded twice, and it counts the same.
    let state = &first.held.state;
    let bytes = crate::user::state::encode(state, crate::user::state::VERSION_CURRENT);
    let state = crate::user::state::decode(&bytes, None, Timestamp(0));
    let stored = LoadedUser {
        ver: 1,
        state: state.expect("a window with events at one position is whole"),
        ..LoadedUser::default()
    };
    let again = planned_after(stored, &records, None, &shop);
    assert!(again.steps.iter().all(|step| *step == Step::Duplicate) && !again.changed);
    assert_eq!(window(&again), expected);
    assert_eq!([sums(&again, a), sums(&again, b)], counted);
}

#[test]
fn a_full_window_keeps_the_last_of_what_one_record_became() {
    let many: Vec<Accepted> = (0..12)
        .map(|nth| record(9, event_of(Kind::View, &format!("s{nth:02}"), 1)))
        .collect();
    let kept = window(&planned(&shop(&[]), &many));
    let last = (3..12).map(|nth| (Kind::View, Item::Sku(format!("s{nth:02}"))));
    assert_eq!(kept, last.collect::<Vec<_>>());
}

/// Names and reason of what a list of A alone becomes once the profile avoids these.
fn stripped(products: &[(&str, i64)], avoided: &[&str]) -> Option<(Vec<String>, Option<String>)> {
    let shop = shop(products);
    let listed = of_segment(&self::shop(&[("A", 1)]), "default", &Verdict::default());
    let list = StoredList {
        claim: 1,
        stage: Stage::Mixture,
        epoch: 1,
        seen: Fences::default(),
        doc: listed.expect("A is in stock"),
        audit: "{}".into(),
    };
    let stored = LoadedUser {
        ver: 1,
        ..LoadedUser::default()
    };
    match planned_after(stored, &[avoids(avoided)], Some(&list), &shop).edit {
        Edit::Strip(list) => {
            let names = list.doc.pus.iter().map(|pu| pu.name.clone());
            Some((names.collect(), list.doc.reason.clone()))
        }
        Edit::Keep => None,
    }
}

#[test]
fn a_list_of_which_a_new_profile_leaves_nothing_becomes_the_fallback() {
    let all = &[("A", 1), ("B", 1), ("C", 1)];
    assert_eq!(
        stripped(all, &["B"]),
        None,
        "nothing of the list is forbidden"
    );
    let names = |avoided: &[&str]| stripped(all, avoided).expect("a list").0;
    assert_eq!(names(&["A"]), ["B"]);
    // Rules take all of the segment's list, and not all of the shop.
    assert_eq!(names(&["A", "B"]), ["C"]);
    let (names, reason) = stripped(all, &["A", "B", "C"]).expect("a list");
    assert!(names.is_empty());
    assert_eq!(reason.as_deref(), Some(FORBIDDEN));
    // What is sold out would not be shown anyway: rules forbid the rest.
    let (names, reason) = stripped(&[("A", 1), ("B", 0)], &["A"]).expect("a list");
    assert_eq!((names.len(), reason.as_deref()), (0, Some(FORBIDDEN)));
}

#[test]
fn a_new_user_has_no_list_before_generate_makes_one() {
    let plan = planned(&shop(&[("A", 1)]), &[avoids(&[])]);
    assert_eq!(
        (plan.edit, plan.requests[0].reason),
        (Edit::Keep, Reason::First)
    );
}

#[test]
fn one_purchase_adds_at_most_units_max_to_demand() {
    for (qty, counted) in [(1, 1), (20, 20), (21, 20), (u32::MAX, 20)] {
        let plan = planned(&shop(&[("A", 1)]), &[bought(qty)]);
        assert_eq!(plan.counted[0].n, counted, "{qty}");
        let buyer = (plan.counted[1].kind, plan.counted[1].n);
        assert_eq!(buyer, (CountKind::Buyer, 1), "{qty}");
    }
}

/// Purchases and views of one user over three weeks on one partition, with times that run backwards.
fn log() -> impl Strategy<Value = Vec<Accepted>> {
    let row = (0i64..21, 0usize..4, prop::bool::weighted(0.8));
    prop::collection::vec(row, 1..60).prop_map(|rows| {
        let record = |(nth, (day, sku, bought)): (usize, (i64, usize, bool))| {
            let event = Event {
                kind: if bought { Kind::Purchase } else { Kind::View },
                item: Item::Sku(["a", "b", "7", "8"][sku].into()),
                qty: 3,
                price: None,
                ts: None,
                shown_in: None,
            };
            Accepted {
                time: Timestamp(BASE + day * 86_400_000),
                ..record(nth as i64, Change::Event(event))
            }
        };
        rows.into_iter().enumerate().map(record).collect()
    })
}

/// What a crash loses of a batch whose state was written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Crash {
    Never,
    BeforeCounts,
    BeforeCommit,
    /// The counts of one of two shards are written.
    BetweenShards,
}

fn crashes() -> impl Strategy<Value = Crash> {
    prop::sample::select(
        &[
            Crash::Never,
            Crash::BeforeCounts,
            Crash::BeforeCommit,
            Crash::BetweenShards,
        ][..],
    )
}

/// Counts with a fence per shard, as the store has them.
#[derive(Default)]
struct CountStore {
    fences: BTreeMap<u8, i64>,
    cells: BTreeMap<(String, CountKind, i64), u64>,
}

impl CountStore {
    fn add(&mut self, counted: &[Counted], shards: std::ops::Range<u8>) {
        let shard = |counted: &Counted| crate::ports::keys::shard(&counted.sku) % 2;
        for at in shards {
            let fence = self.fences.get(&at).copied().unwrap_or(-1);
            for new in counted.iter().filter(|it| shard(it) == at) {
                let offset = new.position.offset.0;
                if offset > fence {
                    let bucket = new.time.0.div_euclid(crate::shop::demand::BUCKET_MS);
                    let cell = (new.sku.clone(), new.kind, bucket);
                    *self.cells.entry(cell).or_default() += new.n;
                    let fence = self.fences.entry(at).or_insert(-1);
                    *fence = (*fence).max(offset);
                }
            }
        }
    }
}

/// Plans records of a stored user, with a window of three events.
fn replan(snapshot: &Snapshot, loaded: LoadedUser, records: &[Accepted]) -> Plan {
    let (policy, complete_since) = (Policy::default(), BTreeMap::new());
    let book = PlanContext {
        snapshot,
        policy: &policy,
        ns: "n",
        window: 3,
        triggers: true,
        history_before: Timestamp(0),
        units_max: 20,
        complete_since: &complete_since,
    };
    plan(loaded, records, None, &book)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn buyers_and_pieces_are_exact_under_any_batches_crashes_and_redelivery(
        log in log(),
        batches in prop::collection::vec((1usize..9, crashes(), any::<prop::sample::Index>()), 1..30),
    ) {
        let snapshot = shop(&[("A", 1)]);
        let (mut user, mut counts, mut committed) = (LoadedUser::default(), CountStore::default(), 0);
        let batches = batches.into_iter().map(|(len, crash, to)| (len, crash, Some(to)));
        for (len, crash, rewind) in batches.chain([(log.len(), Crash::Never, None)]) {
            let end = (committed + len).min(log.len());
            // The state is written whatever comes after.
            let done = replan(&snapshot, user, &log[committed..end]);
            user = LoadedUser { ver: done.held.ver + 1, ..done.held };
            let shards = match crash {
                Crash::BeforeCounts => 0..0,
                Crash::BetweenShards => 0..1,
                Crash::Never | Crash::BeforeCommit => 0..2,
            };
            counts.add(&done.counted, shards);
            match crash {
                Crash::Never => committed = end,
                // A rebalance may go back further than the last commit.
                Crash::BeforeCommit => committed = rewind.map_or(committed, |to| to.index(committed + 1)),
                Crash::BeforeCounts | Crash::BetweenShards => {}
            }
        }
        let mut expected: BTreeMap<(String, CountKind, i64), u64> = BTreeMap::new();
        for record in &log {
            let Change::Event(Event { kind, item: Item::Sku(sku), .. }) = &record.change else { continue };
            let bucket = record.time.0.div_euclid(crate::shop::demand::BUCKET_MS);
            let bought = *kind == Kind::Purchase;
            let cell = (sku.clone(), CountKind::Event(*kind), bucket);
            *expected.entry(cell).or_default() += if bought { 3 } else { 1 };
            if bought {
                expected.insert((sku.clone(), CountKind::Buyer, bucket), 1);
            }
        }
        prop_assert_eq!(counts.cells, expected);
    }
}
