//! Counts, lists and erases of neighbours, on small shops.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::baskets::{Baskets, Counter};
use super::*;

/// SKUs 0 to 2 are of product 0, 3 and 4 of 1, 5 to 7 of 2.
const PRODUCT_OF: [u32; 8] = [0, 0, 0, 1, 1, 2, 2, 2];

fn bought(user: u32, at: i64, item: u32) -> Bought {
    Bought { user, at, item }
}

fn options(users_min: u32) -> RelatedOptions {
    RelatedOptions {
        users_min,
        ..RelatedOptions::default()
    }
}

/// The lists of every SKU.
fn lists(lines: &[Bought], options: RelatedOptions) -> Vec<Lists> {
    let shop = Shop {
        lines,
        product_of: &PRODUCT_OF,
        products: 3,
        known: Known {
            categories: &[0, 1, 1],
            similar: None,
        },
    };
    let counted = Counted::new(&shop, options);
    let related = Related::fit(&shop, &counted, options);
    let mut scratch = related.scratch();
    let of = |product: u32| {
        let skus = (0..8).filter(|sku| PRODUCT_OF[*sku as usize] == product);
        let skus: Vec<Option<u32>> = skus
            .map(|sku| related.is_listed(sku).then_some(sku))
            .collect();
        related.product_lists(product, &skus, &mut scratch)
    };
    (0..3).flat_map(of).collect()
}

fn lines() -> impl Strategy<Value = Vec<Bought>> {
    let line = (0u32..6, 0i64..4, 0u32..8).prop_map(|(user, at, item)| bought(user, at, item));
    proptest::collection::vec(line, 0..60)
}

/// Weight and users of a pair by the definition of a basket: equal user and time.
fn brute(lines: &[Bought], one: u32, other: u32) -> (f64, usize) {
    let mut baskets: BTreeMap<(u32, i64), BTreeSet<u32>> = BTreeMap::new();
    for line in lines {
        baskets
            .entry((line.user, line.at))
            .or_default()
            .insert(line.item);
    }
    let with = baskets
        .iter()
        .filter(|(_, items)| items.contains(&one) && items.contains(&other));
    let with: Vec<_> = with.collect();
    let users: BTreeSet<u32> = with.iter().map(|((user, _), _)| *user).collect();
    let weight = with
        .iter()
        .map(|(_, items)| 1.0 / (items.len() as f64 - 1.0))
        .sum();
    (weight, users.len())
}

proptest! {
    #[test]
    fn pairs_of_a_basket_are_those_of_brute_force(lines in lines(), users_min in 1u32..4) {
        let baskets = Baskets::new(8, &lines, 0);
        let mut counter = Counter::new(8);
        for one in 0..8 {
            let pairs = baskets.together(one, users_min, &mut counter);
            for other in (0..8).filter(|other| *other != one) {
                let (weight, users) = brute(&lines, one, other);
                let found = pairs.iter().find(|pair| pair.item == other);
                prop_assert_eq!(found.is_some(), users >= users_min as usize);
                if let Some(found) = found {
                    prop_assert!((found.count - weight).abs() < 1e-4);
                    prop_assert_eq!(found.users as usize, users);
                }
            }
        }
    }

    #[test]
    fn the_order_of_lines_and_the_numbers_of_users_change_no_bit(lines in lines()) {
        let mut other: Vec<Bought> = lines.iter().map(|line| Bought { user: 90 - line.user, ..*line }).collect();
        other.reverse();
        prop_assert_eq!(lists(&lines, options(2)), lists(&other, options(2)));
    }

    #[test]
    fn a_sku_that_too_few_users_bought_is_never_listed(lines in lines()) {
        for list in lists(&lines, options(3)) {
            for neighbour in list.substitutes.iter().chain(&list.complements) {
                let buyers: BTreeSet<u32> =
                    lines.iter().filter(|line| line.item == neighbour.sku).map(|line| line.user).collect();
                prop_assert!(buyers.len() >= 3);
                prop_assert!(neighbour.score.is_finite() && neighbour.score > 0.0);
            }
        }
    }

    #[test]
    fn a_pair_that_is_called_counted_has_enough_users(lines in lines()) {
        for (sku, list) in (0..).zip(lists(&lines, options(2))) {
            let counted = |neighbour: &&Neighbour| neighbour.basis == Basis::Sku;
            for neighbour in list.complements.iter().filter(counted) {
                prop_assert!(brute(&lines, sku, neighbour.sku).1 >= 2);
            }
            for neighbour in list.substitutes.iter().filter(counted) {
                let users = |item| -> BTreeSet<u32> {
                    lines.iter().filter(|line| line.item == item).map(|line| line.user).collect()
                };
                prop_assert!(users(sku).intersection(&users(neighbour.sku)).count() >= 2);
            }
        }
    }
}

#[test]
fn a_span_joins_purchases_into_one_basket() {
    let lines = [bought(0, 0, 1), bought(0, 50, 2), bought(0, 200, 3)];
    let mut counter = Counter::new(8);
    let mut partners = |span| -> Vec<u32> {
        let pairs = Baskets::new(8, &lines, span).together(2, 1, &mut counter);
        pairs.into_iter().map(|pair| pair.item).collect()
    };
    assert_eq!(partners(0), [] as [u32; 0]);
    assert_eq!(partners(50), [1]);
    assert_eq!(partners(1000), [1, 3]);
}

/// Users who buy 0 with 3, others who buy 1 with 5, and some who bought both 0 and 1 at different times.
fn habits() -> Vec<Bought> {
    let mut lines = Vec::new();
    for user in 0..12 {
        let at = i64::from(user);
        lines.extend([
            bought(user, at, 0),
            bought(user, at, 3),
            bought(user, 100, 4),
        ]);
        lines.extend([bought(user + 20, at, 1), bought(user + 20, at, 5)]);
        if user < 6 {
            lines.extend([bought(user, 300, 1), bought(user, 400, 6)]);
        }
    }
    lines
}

#[test]
fn what_is_bought_with_a_sku_comes_first_and_lists_keep_to_their_products() {
    let found = lists(&habits(), options(3));
    let first = |list: &[Neighbour]| {
        list.first()
            .map(|neighbour| (neighbour.sku, neighbour.basis))
    };
    assert_eq!(first(&found[0].complements), Some((3, Basis::Sku)));
    assert_eq!(first(&found[1].complements), Some((5, Basis::Sku)));
    assert_eq!(first(&found[0].substitutes), Some((1, Basis::Sku)));
    for (sku, list) in found.iter().enumerate() {
        let product = |neighbour: &Neighbour| PRODUCT_OF[neighbour.sku as usize];
        assert!(
            list.substitutes
                .iter()
                .all(|it| product(it) == PRODUCT_OF[sku])
        );
        assert!(
            list.complements
                .iter()
                .all(|it| product(it) != PRODUCT_OF[sku])
        );
    }
}

#[test]
fn a_sku_that_nobody_bought_has_the_neighbours_of_its_product() {
    let found = lists(&habits(), options(3));
    let own = &found[2];
    let skus = |list: &[Neighbour]| -> Vec<u32> { list.iter().map(|it| it.sku).collect() };
    // Most bought first, by the share of the product's buyers.
    assert_eq!(skus(&own.substitutes), [1, 0]);
    assert!(
        own.complements.iter().all(|it| it.basis == Basis::Product),
        "{own:?}"
    );
    assert!(skus(&own.complements).contains(&3));
}

#[test]
fn lists_without_a_user_are_those_of_a_log_that_never_had_them() {
    let mut with = habits();
    for at in 0..30 {
        with.extend([
            bought(7_000, at, 2),
            bought(7_000, at, 6),
            bought(7_000, at, 7),
        ]);
    }
    let without: Vec<Bought> = with
        .iter()
        .filter(|line| line.user != 7_000)
        .copied()
        .collect();
    assert_eq!(lists(&without, options(3)), lists(&habits(), options(3)));
    assert_ne!(lists(&with, options(1)), lists(&without, options(1)));
}

#[test]
fn a_shop_without_purchases_has_empty_lists() {
    assert!(
        lists(&[], options(3))
            .iter()
            .all(|list| *list == Lists::default())
    );
}
