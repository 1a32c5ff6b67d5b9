//! Laws and cases of the catalogue.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A SKU `id` of the PU `pu`, in stock, with attributes as JSON.
pub(crate) fn sku(id: &str, pu: &str, attributes: serde_json::Value) -> Sku {
    Sku {
        sku: id.into(),
        pu: pu.into(),
        pu_id: pu.into(),
        category: Some("food".into()),
        title: format!("{pu} {id}"),
        stock: 5,
        price: Some(1.0),
        attributes: serde_json::from_value(attributes).expect("an object"),
    }
}

fn small() -> Catalogue {
    let mut out = sku("b2", "BREAD", json!({}));
    out.stock = 0;
    Catalogue::load(vec![
        sku("b1", "BREAD", json!({})),
        out,
        sku("m1", "MILK", json!({})),
    ])
}

fn in_stock(catalogue: &Catalogue) -> Vec<&str> {
    let pus = catalogue.in_stock().ones();
    pus.map(|ix| &*catalogue.pus()[ix].name).collect()
}

#[test]
fn selling_out_the_last_sku_takes_its_pu_out_of_stock() {
    let mut catalogue = small();
    let mut sold_out = sku("b1", "BREAD", json!({}));
    sold_out.stock = -3;
    let patch = catalogue.apply("b1".into(), Some(sold_out));
    assert_eq!(patch.stock, BTreeSet::from([PuIx(0)]));
    assert!(!patch.names && patch.rules.is_empty());
    assert_eq!(in_stock(&catalogue), ["MILK"]);
    let back = catalogue.apply("b2".into(), Some(sku("b2", "BREAD", json!({}))));
    assert_eq!(back.stock, BTreeSet::from([PuIx(0)]));
}

#[test]
fn a_pu_with_all_skus_deleted_keeps_index_and_name_but_is_out_of_stock() {
    let mut catalogue = small();
    catalogue.apply("m1".into(), None);
    let milk = catalogue.by_pu("MILK").expect("stays");
    assert!(catalogue.pu(milk).skus.is_empty());
    assert!(!catalogue.in_stock().contains(milk.at()));
    let item = Item::Sku("m1".into());
    assert_eq!(catalogue.name_of_item(&item).as_deref(), Some("MILK"));
    assert!(catalogue.apply("m1".into(), None).is_empty());
    assert!(catalogue.apply("never".into(), None).is_empty());
}

#[test]
fn a_sku_moved_to_another_pu_leaves_the_old_one() {
    let mut catalogue = small();
    let patch = catalogue.apply("m1".into(), Some(sku("m1", "BREAD", json!({}))));
    assert_eq!(patch.stock, BTreeSet::from([PuIx(1)]));
    assert_eq!(in_stock(&catalogue), ["BREAD"]);
    assert_eq!(catalogue.pu(PuIx(0)).skus.len(), 3);
}

#[test]
fn the_newest_name_of_a_pu_wins_and_is_reported() {
    let mut catalogue = small();
    let mut renamed = sku("b3", "BROWN BREAD", json!({}));
    renamed.pu_id = "BREAD".into();
    let patch = catalogue.apply("b3".into(), Some(renamed));
    assert!(patch.names);
    assert_eq!(patch.renamed, BTreeMap::from([(PuIx(0), "BREAD".into())]));
    assert_eq!(catalogue.names()[0], "BROWN BREAD");
}

/// A SKU in stock of a PU with this id, name and category.
fn named(id: &str, pu_id: &str, name: &str, category: Option<&str>) -> Sku {
    Sku {
        pu_id: pu_id.into(),
        category: category.map(str::to_owned),
        ..sku(id, name, json!({}))
    }
}

#[test]
fn pus_that_share_a_name_are_told_apart_by_category_and_never_by_id() {
    let catalogue = Catalogue::load(vec![
        named("a", "1", "BREAD", Some("food")),
        named("b", "7", "BREAD", Some("bakery")),
        named("c", "8", "BREAD", Some("bakery")),
        named("d", "9", "BREAD", None),
        named("e", "10", "MILK", Some("food")),
    ]);
    let bakery = "BREAD (bakery)";
    assert_eq!(
        catalogue.names(),
        ["BREAD (food)", bakery, bakery, "BREAD", "MILK"]
    );
    let ids = ["7", "8"].map(String::from).to_vec();
    assert_eq!(
        catalogue.repeated_labels(),
        [(bakery.to_owned(), ids)].into()
    );
    let kept = |mass: &[f32]| {
        let mut set = catalogue.in_stock().clone();
        catalogue.keep_one_per_label(&mut set, mass);
        set.ones().collect::<Vec<_>>()
    };
    assert_eq!(kept(&[0.2, 0.2, 0.2, 0.2, 0.2]), [0, 1, 3, 4]);
    assert_eq!(kept(&[0.2, 0.1, 0.2, 0.2, 0.2]), [0, 2, 3, 4]);
}

#[test]
fn a_namesake_without_skus_changes_no_label() {
    let mut catalogue = Catalogue::load(vec![named("a", "1", "BREAD", Some("food"))]);
    let patch = catalogue.apply("b".into(), Some(named("b", "2", "BREAD", Some("bakery"))));
    assert!(patch.names);
    assert_eq!(catalogue.names(), ["BREAD (food)", "BREAD (bakery)"]);
    let patch = catalogue.apply("a".into(), None);
    assert!(patch.names, "the label of the other one changed");
    assert_eq!(catalogue.names(), ["BREAD", "BREAD"]);
    assert!(catalogue.repeated_labels().is_empty());
    let patch = catalogue.apply("a".into(), Some(named("a", "1", "BREAD", Some("food"))));
    assert!(patch.names);
    let patch = catalogue.apply("a".into(), Some(named("a", "1", "TOAST", Some("food"))));
    assert!(patch.names);
    assert_eq!(catalogue.names(), ["TOAST", "BREAD"]);
    let patch = catalogue.apply("b".into(), Some(named("b", "2", "BREAD", Some("snacks"))));
    assert!(
        !patch.names,
        "a category is no part of a label that is not shared"
    );
}

#[test]
fn a_block_applies_to_known_and_later_skus_and_pus() {
    let mut catalogue = small();
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    let patch = catalogue.set_blocks(set(&["MILK"]), set(&["b1"]));
    assert_eq!(patch.stock, BTreeSet::from([PuIx(0), PuIx(1)]));
    assert_eq!(in_stock(&catalogue), [""; 0]);
    catalogue.apply("m2".into(), Some(sku("m2", "MILK", json!({}))));
    assert_eq!(in_stock(&catalogue), [""; 0]);
    catalogue.set_blocks(set(&[]), set(&["b1"]));
    assert_eq!(in_stock(&catalogue), ["MILK"]);
    catalogue.apply("b2".into(), Some(sku("b2", "BREAD", json!({}))));
    assert_eq!(in_stock(&catalogue), ["BREAD", "MILK"]);
}

#[test]
fn ids_that_look_the_same_are_one_product_for_events_and_blocks() {
    let mut catalogue = small();
    assert_eq!(catalogue.by_pu("\u{feff}MILK"), catalogue.by_pu("MILK"));
    assert_eq!(
        catalogue.name_of_item(&Item::Pu("MILK ".into())).as_deref(),
        Some("MILK")
    );
    catalogue.set_blocks(["MILK\u{200b}".into()].into(), [" b1".into()].into());
    assert_eq!(in_stock(&catalogue), [""; 0]);
}

fn change() -> impl Strategy<Value = (u8, Option<(u8, i64)>)> {
    (0u8..12, prop::option::of((0u8..4, -1i64..3)))
}

proptest! {
    #[test]
    fn merged_patches_equal_the_difference_of_catalogues(
        changes in prop::collection::vec((change(), prop::option::of(0u8..16)), 0..80),
    ) {
        let mut catalogue = Catalogue::default();
        let mut bits = BTreeSet::new();
        let mut names = Vec::new();
        for ((id, value), block) in changes {
            let id = id.to_string();
            // Names and categories change with the SKU, so that PUs share, leave and take names.
            let value = value.map(|(pu, stock)| Sku {
                stock,
                pu: format!("N{}", (i64::from(pu) + stock) % 3),
                category: Some(format!("C{}", stock % 2)),
                ..sku(&id, &format!("P{pu}"), json!({}))
            });
            let mut patch = catalogue.apply(id, value);
            prop_assert!(patch.names || catalogue.names() == names, "{:?}", catalogue.names());
            names = catalogue.names();
            for (name, namesakes) in &catalogue.namesakes {
                let all = (0..).zip(catalogue.pus()).filter(|(_, pu)| !pu.skus.is_empty() && pu.name == **name);
                prop_assert!(namesakes.iter().map(|ix| ix.0).eq(all.map(|(ix, _)| ix)));
            }
            let live = catalogue.pus().iter().filter(|pu| !pu.skus.is_empty());
            let distinct: BTreeSet<&str> = live.map(|pu| pu.name.as_str()).collect();
            prop_assert!(catalogue.by_name.len() == distinct.len());
            if let Some(block) = block {
                let blocks = |prefix: &str| BTreeSet::from([format!("{prefix}{}", block % 4)]);
                patch.merge(catalogue.set_blocks(blocks("P"), blocks("")));
            }
            let now: BTreeSet<usize> = catalogue.in_stock().ones().collect();
            for pu in now.symmetric_difference(&bits) {
                prop_assert!(patch.stock.contains(&PuIx(*pu as u32)));
            }
            bits = now;
            for (at, pu) in catalogue.pus().iter().enumerate() {
                let shown = pu.skus.iter().any(|ix| catalogue.available(*ix));
                prop_assert_eq!(catalogue.in_stock().contains(at), shown);
                prop_assert!(pu.skus.is_sorted());
                prop_assert!(pu.skus.iter().all(|ix| catalogue.pu_of(*ix).at() == at));
            }
        }
    }
}

#[test]
fn a_million_skus_load_and_one_patch_touches_one_pu() {
    let count = if cfg!(debug_assertions) {
        92_000
    } else {
        1_000_000
    };
    let skus = (0..count).map(|n| sku(&n.to_string(), &format!("P{}", n % 2240), json!({})));
    let mut catalogue = Catalogue::load(skus.collect());
    let patch = catalogue.apply("77".into(), None);
    assert!(patch.stock.is_empty());
    assert_eq!(catalogue.pus().len(), 2240);
}
