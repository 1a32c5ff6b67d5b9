//! Product tables: values by hand, rows that are cut, products that come and go, bytes.

use proptest::prelude::*;

use super::*;
use crate::text::DecodeError;

fn ids(names: &str) -> Vec<String> {
    names.chars().map(String::from).collect()
}

fn origin() -> Origin {
    Origin {
        model: "abc".into(),
        wordings: vec!["Who buys {name} buys".into()],
    }
}

fn three() -> ProductTable {
    let scores = [[-1.0, -2.0, -6.0], [-2.0, -1.0, -3.0], [-3.0, -5.0, -1.0]];
    ProductTable::build(origin(), ids("ABC"), &scores.map(|row| row.to_vec()))
}

/// With D, which has no column.
fn four() -> ProductTable {
    three().extended(&ids("ABCD"), &[vec![-1.0, -4.0, -2.0, -1.0]])
}

fn values(table: &ProductTable, catalogue: &str, own: &str) -> Vec<f32> {
    let place = |id: &str| catalogue.find(id).map(|at| at as u32);
    let bound = BoundTable::new(table, catalogue.len(), place);
    let own = own.chars().filter_map(|id| place(&String::from(id)));
    bound.values(own).expect("a row").to_vec()
}

fn close(found: &[f32], expected: &[f32]) {
    let same = found
        .iter()
        .zip(expected)
        .all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(
        same && found.len() == expected.len(),
        "{found:?} {expected:?}"
    );
}

/// Scores of so many products by a rule that repeats nothing.
fn many(products: usize, seed: u64) -> Vec<Vec<f32>> {
    let score = |i: usize, j: usize| {
        let x = (i as u64 * 7919 + j as u64 * 104_729 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        -((x >> 40) as f32) / 1e6
    };
    let row = |i: usize| (0..products).map(|j| score(i, j)).collect();
    (0..products).map(row).collect()
}

fn numbered(products: usize) -> Vec<String> {
    (0..products).map(|nth| format!("p{nth}")).collect()
}

/// The value of one product after another, by the definition.
fn value(table: &ProductTable, i: usize, j: usize) -> f32 {
    let (row, column) = match (j < table.columns(), i < table.columns()) {
        (true, _) => (&table.rows[i], j),
        (false, true) => (&table.rows[j], i),
        (false, false) => return 0.0,
    };
    let kept = row.kept.iter().find(|(at, _)| *at as usize == column);
    kept.map_or(row.rest, |(_, value)| *value)
}

#[test]
fn scores_are_double_centred_and_a_value_is_a_mean_over_the_other_products() {
    let table = three();
    // Rows less their means -3, -2, -3, then less 2/3, 0, -2/3 of the columns, then less the mean of the two others.
    close(&values(&table, "ABC", "A"), &[0.0, 5.0 / 3.0, -5.0 / 3.0]);
    close(&values(&table, "ABC", "B"), &[-1.0 / 6.0, 0.0, 1.0 / 6.0]);
    close(&values(&table, "ABC", "C"), &[2.0 / 3.0, -2.0 / 3.0, 0.0]);
    close(
        &values(&table, "ABC", "BAB"),
        &[-1.0 / 6.0, 5.0 / 3.0, -0.75],
    );
    // By another catalogue: other numbers, and E, of which nothing is known.
    close(&values(&table, "CEA", "A"), &[-5.0 / 3.0, 0.0, 0.0]);
    close(&values(&table, "CEA", "AE"), &[-5.0 / 3.0, 0.0, 0.0]);
    let place = |id: &str| "CEA".find(id).map(|at| at as u32);
    let bound = BoundTable::new(&table, 3, place);
    assert_eq!(
        bound.lacking(),
        1,
        "B is gone, and of E nothing is in the table"
    );
    assert!(bound.values([1].into_iter()).is_none());
    assert!(bound.values(std::iter::empty()).is_none());
}

#[test]
fn a_new_product_has_a_row_and_its_column_is_its_row() {
    let table = four();
    assert_eq!((table.rows(), table.columns()), (4, 3));
    assert_eq!(three().lacking(&ids("DAXB")), [0, 2]);
    // The row of D, less its mean -7/3 and what is common: 2/3, -5/3, 1.
    close(
        &values(&table, "ABCD", "D"),
        &[2.0 / 3.0, -5.0 / 3.0, 1.0, 0.0],
    );
    close(&values(&table, "ABCD", "A")[3..], &[2.0 / 3.0]);
    close(
        &values(&table, "ABCD", "AD"),
        &[2.0 / 3.0, 0.0, -1.0 / 3.0, 2.0 / 3.0],
    );
    // Two new products say nothing of each other.
    let five = table.extended(&ids("EDCBA"), &[vec![-9.0, -1.0, -2.0, -4.0, -3.0]]);
    assert_eq!((five.rows(), five.columns()), (5, 3));
    close(&values(&five, "ABCDE", "E")[3..], &[0.0, 0.0]);
    close(
        &values(&five, "ABCDE", "D")[..3],
        &values(&table, "ABCD", "D")[..3],
    );
    // And a product that is gone is in no row.
    let fewer = five.extended(&ids("CDB"), &[]);
    assert_eq!((fewer.rows(), fewer.columns()), (3, 2));
    close(&values(&fewer, "BCD", "D"), &[-5.0 / 3.0, 1.0, 0.0]);
    assert_eq!(three().extended(&ids("ABC"), &[]), three());
}

#[test]
fn a_row_keeps_the_best_exactly_and_the_others_have_the_least_of_these() {
    let products = ROW_MAX + 30;
    let scores = many(products, 3);
    let table = ProductTable::build(origin(), numbered(products), &scores);
    for (i, row) in table.rows.iter().enumerate() {
        assert_eq!(row.kept.len(), ROW_MAX);
        let least = row.kept.iter().map(|(_, value)| *value);
        assert_eq!(least.fold(f32::MAX, f32::min), row.rest);
        let all: f64 = (0..products)
            .filter(|j| *j != i)
            .map(|j| f64::from(value(&table, i, j)))
            .sum();
        assert!(all.abs() < 1e-2, "{all}");
        // Differences within a row are those of the scores less what is common.
        let exact = |j: u32| scores[i][j as usize] - table.common[j as usize];
        let (first, of_first) = row.kept[0];
        for (j, value) in &row.kept {
            let expected = exact(*j) - exact(first);
            assert!((value - of_first - expected).abs() < 1e-3);
        }
        let dropped = (0..products as u32)
            .filter(|j| *j as usize != i && !row.kept.iter().any(|(at, _)| at == j));
        let least = exact(first) + row.rest - of_first;
        for j in dropped {
            assert!(exact(j) <= least + 1e-3);
        }
    }
}

proptest! {
    #[test]
    fn values_are_the_mean_by_the_definition_in_any_order(
        seed in any::<u64>(), columns in 1usize..6, more in 0usize..4, own in prop::collection::vec(0u32..10, 1..8),
    ) {
        let all = columns + more;
        let scores = many(all, seed >> 32);
        let old: Vec<Vec<f32>> = scores[..columns].iter().map(|row| row[..columns].to_vec()).collect();
        let table = ProductTable::build(origin(), numbered(columns), &old)
            .extended(&numbered(all), &scores[columns..]);
        // One product more than the table knows.
        let place = |id: &str| id[1..].parse().ok();
        let bound = BoundTable::new(&table, all + 1, place);
        let mut known: Vec<u32> = own.iter().copied().filter(|pu| (*pu as usize) < all).collect();
        known.sort_unstable();
        known.dedup();
        let found = bound.values(own.iter().copied());
        prop_assert_eq!(&found, &bound.values(own.iter().rev().copied()));
        prop_assert_eq!(found.is_none(), known.is_empty());
        for (j, found) in found.iter().flat_map(|values| values.iter().enumerate()) {
            let others = known.iter().filter(|i| **i as usize != j && j < all);
            let all: Vec<f32> = others.map(|i| value(&table, *i as usize, j)).collect();
            let mean = all.iter().sum::<f32>() / all.len().max(1) as f32;
            prop_assert!((found - mean).abs() < 1e-3, "{} {} {}", j, found, mean);
        }
    }

    #[test]
    fn what_is_encoded_decodes_bit_by_bit(seed in any::<u64>(), columns in 0usize..6, more in 0usize..3) {
        let all = columns + more;
        let scores = many(all, seed >> 32);
        let old: Vec<Vec<f32>> = scores[..columns].iter().map(|row| row[..columns].to_vec()).collect();
        let table = ProductTable::build(origin(), numbered(columns), &old)
            .extended(&numbered(all), &scores[columns..]);
        let bytes = table.encode();
        let again = ProductTable::decode(&bytes).expect("decodes");
        prop_assert_eq!(again.encode(), bytes);
        prop_assert_eq!(again, table);
    }

    #[test]
    fn bytes_that_are_cut_anywhere_are_short_and_any_changed_byte_is_an_error(
        at in any::<prop::sample::Index>(), by in 1u8..=255,
    ) {
        let mut bytes = four().encode();
        let at = at.index(bytes.len());
        let error = ProductTable::decode(&bytes[..at]).expect_err("cut");
        prop_assert!(matches!(error, DecodeError::Short { .. }), "{}", error);
        bytes[at] ^= by;
        prop_assert!(ProductTable::decode(&bytes).is_err());
    }

    #[test]
    fn any_bytes_decode_or_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), whole in any::<bool>()) {
        let mut bytes = bytes;
        if whole {
            bytes.splice(0..0, *b"NSPT\x01\0\0\0\x02\0\0\0\x01\0\0\0");
        }
        let _ = ProductTable::decode(&bytes);
    }
}

#[test]
fn other_files_and_newer_versions_are_told_apart() {
    let bytes = three().encode();
    let with = |at: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let error = ProductTable::decode(&bytes).expect_err("refused");
        error.to_string()
    };
    for (error, expected) in [
        (with(0, 7), "not a file of a product table"),
        (
            with(4, 2),
            "version 2 of a product table is newer than 1, the newest that this release reads",
        ),
        (with(4, 0), "version 0"),
        (with(8, 2), "more columns than products"),
        (with(8, u32::MAX), "cut short"),
        (with(12, 2), "it is damaged"),
    ] {
        let error = error.replace("the file of a product table is damaged", "it is damaged");
        assert!(error.contains(expected), "{error}");
    }
    let mut longer = bytes;
    longer.push(0);
    let error = ProductTable::decode(&longer)
        .expect_err("longer")
        .to_string();
    assert!(error.contains("bytes after the end"), "{error}");
}
