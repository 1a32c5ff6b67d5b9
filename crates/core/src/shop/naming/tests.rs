//! Proposing, editing and applying a map of products.

use proptest::prelude::*;

use super::{Map, Named, Naming, Untitled, propose};

fn row(sku: &str, title: &str, category: &str) -> Untitled {
    Untitled {
        sku: sku.to_owned(),
        title: title.to_owned(),
        category: Some(category.to_owned()),
        ..Untitled::default()
    }
}

fn shop() -> Vec<Untitled> {
    let mut rows = Vec::new();
    for n in 0..12 {
        rows.push(row(
            &format!("a{n}"),
            &format!("Potato Chips, {n} OZ"),
            "SNACKS",
        ));
        rows.push(row(&format!("b{n}"), "Green Tea 20 CT", "TEA"));
    }
    rows.push(row("a-plural", "chip potato 5oz", "SNACKS"));
    rows.push(row("a-wrong", "Potatoe Chips", "SNACKS"));
    rows.push(row("c", "Potatoe Chips", "TOYS"));
    rows.push(row("d", "Black Tea", "TEA"));
    rows
}

fn named(map: &Map, rows: &[Untitled]) -> Vec<String> {
    let naming = Naming::new(map.clone());
    rows.iter()
        .map(|row| naming.name(row).expect("a title").pu_id)
        .collect()
}

#[test]
fn titles_with_the_same_words_are_one_product() {
    let rows = shop();
    let map = propose(&rows, &Map::default());
    let ids = named(&map, &rows);
    assert_eq!(ids[0], ids[2], "sizes");
    assert_eq!(ids[0], ids[24], "order, case and plural");
    assert_eq!(ids[0], ids[25], "a typing error");
    assert_ne!(ids[0], ids[1]);
    assert_ne!(ids[1], ids[27], "black tea is not green tea");
    let chips = map
        .lines
        .iter()
        .find(|line| line.pu_id == ids[0])
        .expect("chips");
    assert_eq!((chips.pu.as_str(), chips.skus), ("Potato Chips", 15));
    assert!(
        chips.confidence > 0.9 && chips.confidence < 1.0,
        "{}",
        chips.confidence
    );
}

#[test]
fn a_map_that_was_edited_is_applied_and_kept() {
    let rows = shop();
    let text = propose(&rows, &Map::default()).write();
    let edited = text.replace("\"pu\":\"Green Tea\"", "\"pu\":\"Tea, green\"")
        + "{\"sku\":\"d\",\"pu\":\"Tea, black\"}\n";
    let map = Map::read(&edited).expect("a map");
    let tea = Naming::new(map.clone()).name(&rows[1]).expect("a title");
    assert_eq!(tea.pu, "Tea, green");
    let black = Naming::new(map.clone())
        .name(&rows[27])
        .expect("set by hand");
    assert_eq!(
        black,
        Named {
            pu_id: "Tea, black".into(),
            pu: "Tea, black".into()
        }
    );
    let mut grown = rows.clone();
    grown.push(row("e", "Oat Milk 1 L", "MILK"));
    grown.push(row("f", "Green Tea Bags", "TEA"));
    let again = propose(&grown, &map);
    assert_eq!(
        named(&again, &rows),
        named(&map, &rows),
        "ids and names stay"
    );
    assert_eq!(Naming::new(again).name(&rows[1]).expect("a title"), tea);
}

#[test]
fn a_title_that_the_map_lacks_gets_the_id_that_a_new_run_gives_it() {
    let map = propose(&shop(), &Map::default());
    let milk = row("e", "Oat Milk 1 L", "MILK");
    let early = Naming::new(map.clone()).name(&milk).expect("a title");
    assert_eq!(early.pu, "Oat Milk");
    let mut grown = shop();
    grown.push(milk.clone());
    let late = Naming::new(propose(&grown, &map))
        .name(&milk)
        .expect("a title");
    assert_eq!(early, late);
}

#[test]
fn brands_are_recognised_by_what_they_stand_before() {
    let kinds = [
        "Milk", "Bread", "Tea", "Soap", "Rice", "Corn", "Salt", "Pasta", "Juice",
    ];
    let mut rows = Vec::new();
    for brand in ["Fenbar", "Dalgil", "Lomsel", "Mirhos"] {
        for kind in kinds {
            rows.push(row("x", &format!("{brand} {kind}"), "FOOD"));
            rows.push(row("x", &format!("{brand} Organic {kind}"), "FOOD"));
        }
    }
    let map = propose(&rows, &Map::default());
    assert!(
        map.labels.brands.contains("fenbar"),
        "{:?}",
        map.labels.brands
    );
    assert!(
        !map.labels.brands.contains("organic"),
        "{:?}",
        map.labels.brands
    );
    assert_eq!(map.lines.len(), 18);
}

#[test]
fn a_file_that_cannot_be_used_is_refused_with_its_line() {
    let head = "{\"naming\":1,\"brands\":[],\"tails\":[]}\n";
    let line = "{\"pu_id\":\"a\",\"pu\":\"A\",\"keys\":[\"a\"]}\n";
    for (text, expected) in [
        (String::new(), "line 1: the file is empty"),
        (line.to_owned(), "line 1: not the first line"),
        (head.replace('1', "9"), "line 1: version 9 is not known"),
        (
            format!("{head}{line}{line}"),
            "line 3: the key \"a\" is on line 2 as well",
        ),
        (
            format!("{head}{{\"pu_id\":\"a\",\"pu\":\" \",\"keys\":[]}}"),
            "line 2: \"pu\" is empty",
        ),
        (
            format!("{head}{{\"pu_id\":\"\",\"pu\":\"A\",\"keys\":[]}}"),
            "line 2: \"pu_id\" is empty",
        ),
        (format!("{head}{{"), "line 2: EOF"),
        (
            format!("{head}{{\"pu\":\"A\",\"colour\":1}}"),
            "line 2: unknown field `colour`",
        ),
    ] {
        let error = Map::read(&text).expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

proptest! {
    #[test]
    fn any_titles_have_products_in_any_order(titles in prop::collection::vec(any::<String>(), 1..20)) {
        let rows: Vec<Untitled> =
            titles.iter().enumerate().map(|(n, title)| row(&n.to_string(), title, "X")).collect();
        let map = propose(&rows, &Map::default());
        let mut reversed = rows.clone();
        reversed.reverse();
        prop_assert_eq!(&propose(&reversed, &Map::default()), &map);
        prop_assert_eq!(&Map::read(&map.write()).expect("a map"), &map);
    }
}
