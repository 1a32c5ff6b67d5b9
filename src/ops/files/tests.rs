//! Files of logs: one result in each format, and what is wrong with a row.

use std::io::Write;
use std::sync::Arc;

use nearshore_core::shop::naming::Naming;
use nearshore_core::user::event::{Change, Item, Kind};
use nearshore_core::user::record::Timestamp;
use serde_json::json;

use super::*;

/// Writes a file and reads it as the rows of a topic.
fn rows(topic: Topic, name: &str, text: &[u8]) -> Result<Vec<Row>, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    let mut file = File::create(&path).expect("created");
    file.write_all(text).expect("written");
    let mut rows = Vec::new();
    let bar = ProgressBar::hidden();
    let read = read(&path, (topic, 0), &bar, &mut |row| rows.push(row));
    let folder = format!("{}/", folder.path().display());
    read.map(|()| rows)
        .map_err(|error| error.to_string().replace(&folder, ""))
}

fn decoding() -> Decoding {
    Decoding {
        topics: Default::default(),
        limits: Default::default(),
        ignore: Default::default(),
        naming: None,
    }
}

fn logs(files: &[(Topic, &str, &str)]) -> Logs {
    let folder = tempfile::tempdir().expect("a folder");
    let mut source = LogsSource::default();
    for (topic, name, text) in files {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        match topic {
            Topic::Events => source.events.push(path),
            Topic::Profiles => source.profiles.push(path),
            Topic::Catalog | Topic::Titles | Topic::Rows => source.catalog.push(path),
        }
    }
    let mut logs = Logs::default()
        .read(&source, &decoding(), &ProgressBar::hidden())
        .expect("read");
    let folder = format!("{}/", folder.path().display());
    logs.rejects
        .first
        .iter_mut()
        .for_each(|it| *it = it.replace(&folder, ""));
    logs
}

const PURCHASES: [(&str, &str); 6] = [
    (
        "a.jsonl",
        r#"{"key":"7","timestamp":1700000000000,"value":{"type":"purchase","sku":"s1","qty":2,"price":1.99}}"#,
    ),
    (
        "b.jsonl",
        r#"{"topic":"user-events","partition":3,"offset":17,"tstype":"create","ts":1700000000000,"broker":1,"key":"7","payload":"{\"type\":\"purchase\",\"sku\":\"s1\",\"qty\":2,\"price\":1.99}"}"#,
    ),
    (
        "c.ndjson",
        r#"{"user":7,"timestamp":"2023-11-14T22:13:20Z","type":"purchase","sku":"s1","qty":2,"price":1.99}"#,
    ),
    (
        "d.csv",
        "user,timestamp,type,sku,qty,price,note\n7,1700000000000,purchase,s1,2,1.99,\n",
    ),
    (
        "e.CSV",
        "price,qty,sku,user,type,timestamp\r\n1.99,2.0,s1,7,purchase,2023-11-14 22:13:20\r\n",
    ),
    (
        "f.csv",
        "key,timestamp,value\n7,1700000000000,\"{\"\"type\"\":\"\"purchase\"\",\"\"sku\"\":\"\"s1\"\",\"\"qty\"\":2,\"\"price\"\":1.99}\"\n",
    ),
];

#[test]
fn one_purchase_is_the_same_record_in_every_shape() {
    for (name, text) in PURCHASES {
        let logs = logs(&[(Topic::Events, name, text)]);
        assert_eq!(logs.rejects, Rejects::default(), "{name}");
        let [record] = &logs.records[..] else {
            panic!("{name}: {:?}", logs.records);
        };
        assert_eq!(
            (&*record.user.0, record.time),
            ("7", Timestamp(1_700_000_000_000)),
            "{name}"
        );
        let Change::Event(event) = &record.change else {
            panic!("{name}");
        };
        assert_eq!(
            (event.kind, event.qty, event.price),
            (Kind::Purchase, 2, Some(1.99)),
            "{name}"
        );
        assert_eq!(event.item, Item::Sku("s1".into()), "{name}");
        assert_eq!(record.position.to_string(), "0/user-events/0:0", "{name}");
    }
}

#[test]
fn a_bad_row_is_counted_with_its_line_and_the_others_are_read() {
    let lines = [
        r#"{"key":"7","timestamp":1700000000000,"value":{"type":"purchase","sku":"s1"}}"#,
        "",
        "{not json",
        r#"[1]"#,
        r#"{"key":"7","value":{"type":"purchase","sku":"s1"}}"#,
        r#"{"key":"7","timestamp":"yesterday","value":{"type":"purchase","sku":"s1"}}"#,
        r#"{"key":null,"timestamp":1700000000000,"value":{"type":"purchase","sku":"s1"}}"#,
        r#"{"user":"7","timestamp":1700000000,"type":"purchase","sku":"s1"}"#,
        r#"{"user":"7","timestamp":1700000000000,"type":"bought","sku":"s1"}"#,
        r#"{"user":"7","timestamp":1700000000001,"type":"purchase","sku":"s1"}"#,
    ];
    let logs = logs(&[(Topic::Events, "e.jsonl", &lines.join("\n"))]);
    assert_eq!(logs.records.len(), 2);
    let codes: Vec<_> = logs
        .rejects
        .codes
        .iter()
        .map(|(code, n)| (*code, *n))
        .collect();
    let expected = [
        "malformed_json",
        "missing_field",
        "no_key",
        "not_an_object",
        "time_out_of_range",
        "unknown_type",
        "wrong_type",
    ];
    assert_eq!(codes, expected.map(|code| (code, 1)));
    assert!(
        logs.rejects.first[0].starts_with("e.jsonl:3: "),
        "{:?}",
        logs.rejects.first
    );
    assert!(
        logs.rejects.first[3]
            .contains("e.jsonl:6: timestamp is a text of another form, not milliseconds"),
        "{:?}",
        logs.rejects.first
    );
    assert_eq!(logs.rejects.first.len(), NAMED_IN_TESTS);
}

const NAMED_IN_TESTS: usize = 5;

#[test]
fn a_catalogue_table_has_attributes_and_the_latest_record_of_a_sku_counts() {
    let csv =
        "sku,pu,stock,price,department,attributes.brand\n1,TEA,3,2,GROCERY,Private\n2,MILK,x,,,\n";
    let later = r#"{"key":"1","timestamp":1700000000000,"value":{"pu":"GREEN TEA","stock":4}}
{"key":"3","timestamp":1700000000000,"value":{"pu":"SOAP","stock":4}}
{"key":"3","timestamp":1700000000001,"value":null}"#;
    let one = logs(&[(Topic::Catalog, "c.csv", csv)]);
    let sku = one.catalogue.sku(one.catalogue.by_sku("1").expect("there"));
    assert_eq!(
        (sku.pu.as_str(), sku.stock, sku.price),
        ("TEA", 3, Some(2.0))
    );
    assert_eq!(
        json!(sku.attributes),
        json!({"brand": "Private", "department": "GROCERY"})
    );
    assert_eq!(
        one.rejects.first,
        ["c.csv:3: stock is a string, not a whole number (wrong_type)"]
    );
    let both = logs(&[
        (Topic::Catalog, "c.csv", csv),
        (Topic::Catalog, "d.jsonl", later),
    ]);
    let sku = both
        .catalogue
        .sku(both.catalogue.by_sku("1").expect("there"));
    assert_eq!((sku.pu.as_str(), sku.stock), ("GREEN TEA", 4));
    assert!(both.catalogue.by_sku("3").is_none());
}

#[test]
fn with_a_map_a_catalogue_needs_titles_and_no_products() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.csv");
    let csv =
        "sku,title,stock,brand\n1,\"Fenbar Oat Milk, 1 L\",3,Fenbar\n2,Oat Milk 500 ml,1,\n3,,1,\n";
    std::fs::write(&path, csv).expect("written");
    let source = LogsSource {
        catalog: vec![path],
        ..LogsSource::default()
    };
    let naming = Naming::new(nearshore_core::shop::naming::Map::default());
    let with_map = Decoding {
        naming: Some(Arc::new(naming)),
        ..decoding()
    };
    let logs = Logs::default()
        .read(&source, &with_map, &ProgressBar::hidden())
        .expect("read");
    let names: Vec<&str> = logs
        .catalogue
        .pus()
        .iter()
        .map(|pu| pu.name.as_str())
        .collect();
    assert_eq!(names, ["Oat Milk"], "both SKUs are of one product");
    assert_eq!(
        logs.rejects.codes["missing_field"], 1,
        "the one without a title"
    );
    let error = Logs::default()
        .read(&source, &decoding(), &ProgressBar::hidden())
        .err();
    let error = error.expect("there is no pu").to_string();
    assert!(error.contains("there is no column \"pu\""), "{error}");
}

#[test]
fn profiles_without_a_time_are_of_the_beginning_and_an_empty_value_erases() {
    let csv = "user,age,children\n7,35-44 years,2\n";
    let one = logs(&[(Topic::Profiles, "p.csv", csv)]);
    assert_eq!(one.records[0].time, Timestamp(946_684_800_000));
    let Change::Profile(profile) = &one.records[0].change else {
        panic!("{:?}", one.records);
    };
    assert_eq!(
        json!(profile),
        json!({"age": "35-44 years", "children": "2"})
    );
    let csv = "key,timestamp,value\n7,1700000000000,\n";
    let one = logs(&[(Topic::Profiles, "p.csv", csv)]);
    assert_eq!(one.records[0].change, Change::Erase);
}

#[test]
fn a_file_that_is_not_what_its_ending_says_is_an_error_that_says_what_to_do() {
    for (name, text, expected) in [
        (
            "e.txt",
            "",
            "e.txt ends in none of .jsonl, .ndjson, .csv, .parquet; rename it",
        ),
        ("e", "", "e ends in none of"),
        (
            "e.csv",
            "user,sku\n",
            "e.csv: there is no column \"type\", only user, sku; a file of user-events needs",
        ),
        (
            "e.csv",
            "user;type;sku\n",
            "e.csv: the header is one column; separate the columns by commas",
        ),
        (
            "e.csv",
            "user,type,type,timestamp\n",
            "e.csv: two columns are named \"type\"; rename one",
        ),
        ("e.csv", "", "e.csv: there is no column \"user\""),
        (
            "e.parquet",
            "PAR1 is not enough",
            "e.parquet: not a readable Parquet file: ",
        ),
        ("e.jsonl", "\u{0}", "e.jsonl:1: "),
    ] {
        let error = rows(Topic::Events, name, text.as_bytes()).expect_err(name);
        assert!(error.starts_with(expected), "{error}");
    }
}
