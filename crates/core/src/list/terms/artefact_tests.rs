//! Artefacts: read as written, refused when broken or foreign.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::list::terms::bound::Learned;
use crate::names::head::{Head, Origin, Projection};
use crate::shop::catalogue::Catalogue;
use crate::shop::catalogue::tests::sku;

fn tables() -> Tables {
    Tables {
        products: vec!["BREAD".into(), "MILK".into(), "GONE".into()],
        columns: [("bias".to_owned(), vec![0.5, -0.25, 1.0])].into(),
        ..Tables::default()
    }
}

fn files() -> Files {
    let weights: [BTreeMap<String, f64>; BUCKETS.len()] = std::array::from_fn(|nth| {
        [("demand".to_owned(), 1.0), ("bias".to_owned(), nth as f64)].into()
    });
    let made = Made {
        release: "0.0.0".into(),
        until: 7,
        users: 40,
        purchases: 400,
        seed: 1,
    };
    let (vectors, table) = (vectors(), product_table());
    let optional = Optional {
        references: Some("[]"),
        vectors: Some(&vectors),
        table: Some(&table),
        head: Some(&head()),
        gains: Some([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        choice: Some(&choice_model()),
        neighbours: Some("{}\n"),
    };
    write(&made, &weights, &tables(), optional)
}

fn head() -> Head {
    let projection = |from: f32| Projection::new(vec![from, 2.0], vec![0.5]);
    let read = [("BREAD".to_owned(), vec![1.0, 3.0])];
    Head::new(
        Origin::default(),
        (projection(1.0), projection(4.0)),
        read.into_iter(),
    )
}

fn choice_model() -> ChoiceModel {
    let mut model = ChoiceModel::default();
    model.weights.insert("own".into(), 1.25);
    model
}

fn product_table() -> ProductTable {
    let scores = [[-1.0, -2.0], [-4.0, -1.0]].map(|row| row.to_vec());
    let products = vec!["BREAD".into(), "MILK".into()];
    ProductTable::build(Default::default(), products, &scores)
}

fn vectors() -> Vectors {
    let mut vectors = Vectors::new("an encoder", 2);
    vectors.insert("BREAD", &[1.0, 0.5]).expect("fits");
    vectors
}

fn text(files: &Files) -> String {
    String::from_utf8(files.content[MANIFEST].clone()).expect("JSON")
}

fn read(files: &Files) -> Result<Artefact, ArtefactError> {
    let content = files.content.iter();
    let bytes = content.map(|(name, bytes)| ((*name).to_owned(), bytes.clone()));
    Artefact::read(&text(files), &bytes.collect())
}

#[test]
fn an_artefact_is_read_as_it_was_written_and_named_by_its_content() {
    let files = files();
    let artefact = read(&files).expect("it was just written");
    assert_eq!(artefact.hash, files.hash);
    assert_eq!(artefact.tables, tables());
    assert_eq!(artefact.references.as_deref(), Some("[]"));
    assert_eq!(artefact.vectors.as_deref(), Some(&vectors()));
    assert_eq!(artefact.table.as_deref(), Some(&product_table()));
    assert_eq!(artefact.head.as_deref(), Some(&head()));
    assert_eq!(artefact.choice.as_deref(), Some(&choice_model()));
    assert_eq!(artefact.weights.at(10)["bias"], 4.0);
    let mut other = tables();
    other.columns.insert("bias".into(), vec![0.5, -0.25, 1.5]);
    let changed = write(
        &artefact.made,
        &std::array::from_fn(|_| BTreeMap::new()),
        &other,
        Optional::default(),
    );
    assert_ne!(changed.hash, files.hash);
}

#[test]
fn a_file_that_is_missing_cut_short_or_changed_is_refused_by_name() {
    for file in [TABLES, VECTORS, TABLE, HEAD] {
        for break_it in [
            |files: &mut Files, file| drop(files.content.remove(file)),
            |files: &mut Files, file| {
                files
                    .content
                    .get_mut(file)
                    .expect("it has one")
                    .truncate(20)
            },
            |files: &mut Files, file| files.content.get_mut(file).expect("it has one").push(b' '),
        ] {
            let mut files = files();
            break_it(&mut files, file);
            let error = read(&files).expect_err("it is broken").to_string();
            assert!(
                error.starts_with(&format!("{file} is not the file")),
                "{error}"
            );
        }
    }
}

#[test]
fn files_of_a_newer_version_are_refused_though_their_hash_is_right() {
    for (file, expected) in [
        (VECTORS, "vectors.nstv: version 9 of text vectors is newer"),
        (TABLE, "table.nspt: version 9 of a product table is newer"),
        (HEAD, "head.nshd: version 9 of a head is newer"),
    ] {
        let mut files = files();
        let bytes = files.content.get_mut(file).expect("it has one");
        let before = sha256(bytes);
        bytes[4] = 9;
        let manifest = text(&files).replacen(&before, &sha256(&files.content[file]), 1);
        files.content.insert(MANIFEST, manifest.into_bytes());
        let error = read(&files).expect_err("newer").to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn another_schema_another_term_and_wrong_weights_are_refused_with_advice() {
    for (from, to, says) in [
        (r#"{"schema":1"#, r#"{"schema":2"#, "upgrade nearshore"),
        (
            r#"{"schema":1"#,
            r#"{"schema":0"#,
            "run `nearshore align` again",
        ),
        (
            r#""demand":1}"#,
            r#""demand":9}"#,
            "version 9 of the term \"demand\", this release has 1",
        ),
        (
            r#""bias":1,"#,
            r#""bais":1,"#,
            "version 1 of the term \"bais\", this release has none",
        ),
        (
            r#"{"bias":5.0,"demand":1.0}]"#,
            r#"{"bais":5.0}]"#,
            "\"bais\" is not a term",
        ),
        (
            r#",{"bias":5.0,"demand":1.0}]"#,
            "]",
            "weights for 5 buckets",
        ),
        (r#"{"schema""#, "[", "artefact.json: "),
    ] {
        let mut files = files();
        let manifest = text(&files);
        assert!(manifest.contains(from), "{from}: {manifest}");
        let manifest = manifest.replacen(from, to, 1);
        files.content.insert(MANIFEST, manifest.into_bytes());
        let error = read(&files).expect_err(to).to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn tables_are_bound_to_a_catalogue_by_id_and_a_foreign_one_is_refused() {
    let artefact = Arc::new(read(&files()).expect("it was just written"));
    let catalogue = Catalogue::load(vec![
        sku("a1", "ALE", json!({})),
        sku("b1", "BREAD", json!({})),
        sku("m1", "MILK", json!({})),
    ]);
    let learned = Learned::bind(&artefact, &catalogue).expect("two of three are known");
    let bias = learned.column("bias").expect("it has one");
    let of = |pu: &str| bias[catalogue.by_pu(pu).expect("it is there").at()];
    assert_eq!(["ALE", "BREAD", "MILK"].map(of), [0.0, 0.5, -0.25]);
    let foreign = Catalogue::load(vec![sku("b1", "BREAD", json!({}))]);
    let error = Learned::bind(&artefact, &foreign)
        .expect_err("one of three")
        .to_string();
    assert!(error.contains("1 of its 3 products"), "{error}");
    let products = ["BREAD", "MILK", "SALT", "SUGAR", "TEA"];
    let grown = products.map(|pu| sku(&pu.to_lowercase(), pu, json!({})));
    let error = Learned::bind(&artefact, &Catalogue::load(grown.into()))
        .expect_err("it knows two of five")
        .to_string();
    assert!(
        error.contains("2 of its 3 products are among the 5"),
        "{error}"
    );
}

#[test]
fn an_artefact_without_a_choice_of_skus_is_read_and_one_of_another_release_refused() {
    let weights: [BTreeMap<String, f64>; BUCKETS.len()] = Default::default();
    let write_with = |choice| {
        let optional = Optional {
            choice,
            ..Optional::default()
        };
        write(&Made::default(), &weights, &tables(), optional)
    };
    let without = write_with(None);
    assert_eq!(
        without.content.keys().copied().collect::<Vec<_>>(),
        [MANIFEST, TABLES]
    );
    assert_eq!(read(&without).expect("it was just written").choice, None);
    let mut broken = choice_model();
    broken.kappa = -1.0;
    let error = read(&write_with(Some(&broken))).expect_err("no shares");
    assert!(
        error.to_string().starts_with("choice.json: kappa"),
        "{error}"
    );
}
