//! Promise: `nearshore align` learns from a log, writes the same artefact each time, and nothing broken is served.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nearshore_core::learn::product_table::{BoundTable, ProductTable};
use nearshore_core::list::terms::bound::bind_table;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::text::vectors::Vectors;
use nearshore_core::user::event::Sku;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Value, json};

use crate::evaluate::Slice;
use crate::harness::variable;

fn nearshore(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(args)
        .output()
        .expect("the binary starts")
}

fn align(files: &[PathBuf; 3], out: &Path, more: &[&str]) -> Output {
    let [events, profiles, catalog] = files.each_ref().map(|path| path.to_str().expect("a path"));
    let out = out.to_str().expect("a path");
    let mut args = vec!["align", "--json", "--samples", "300", "--out", out];
    if !more.contains(&"--erased") {
        args.push("--no-erases");
    }
    args.extend([
        "--events",
        events,
        "--profiles",
        profiles,
        "--catalog",
        catalog,
    ]);
    args.extend(more);
    nearshore(&args)
}

fn report(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The files of an artefact's folder with their content, sorted.
pub(crate) fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn an_artefact_is_a_function_of_the_log_and_its_weights_help() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let found = report(&align(&files, &one, &[]));
    let pointer = two.join("current");
    let point = ["--point", pointer.to_str().expect("a path")];
    assert_eq!(found, report(&align(&files, &two, &point)));
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    assert_eq!(content(&one.join(&name)), content(&two.join(&name)));
    let pointed = std::fs::read_to_string(&pointer).expect("it was written");
    assert_eq!(pointed, format!("{name}\n"));
    assert_ne!(
        found["artefact"],
        report(&align(&files, &two, &["--seed", "2"]))["artefact"]
    );
    let most = &found["buckets"]["20"];
    let gain = most["nats"]["low"].as_f64().expect("a number");
    assert!(gain > 0.0, "{most}");
    assert!(
        most["weights"]["repeat"].as_f64().expect("it helps") > 0.0,
        "{most}"
    );
    for (bucket, fit) in found["buckets"].as_object().expect("buckets") {
        // Ranks are fitted to terms that say something beside demand alone, too.
        let form = fit["form"].as_str().expect("a form");
        if form.starts_with("ranks") {
            continue;
        }
        for (term, fitted) in fit["fitted"].as_object().expect("terms") {
            let told = fitted["low"].as_f64() > Some(0.0) || fitted["high"].as_f64() < Some(0.0);
            let used = fit["weights"].get(term).is_some();
            assert!(
                told || !used || term == "demand",
                "{bucket} {term}: {fitted}"
            );
        }
    }
}

/// A value of a row of a Parquet file.
fn column<'a>(row: &'a parquet::record::Row, name: &str) -> &'a Field {
    let found = row.get_column_iter().find(|(column, _)| *column == name);
    found.unwrap_or_else(|| panic!("no column {name}")).1
}

fn texts(field: &Field) -> Vec<String> {
    let Field::ListInternal(list) = field else {
        panic!("{field} is no list")
    };
    list.elements()
        .iter()
        .map(|it| match it {
            Field::Str(text) => text.clone(),
            other => panic!("{other} is no text"),
        })
        .collect()
}

#[test]
fn samples_are_the_cases_of_the_log_without_ids() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let write = |name: &str| -> Vec<u8> {
        let path = folder.path().join(name);
        let more = ["--samples-out", path.to_str().expect("a path")];
        report(&align(&files, &folder.path().join("out"), &more));
        std::fs::read(&path).expect("it was written")
    };
    let bytes = write("one.parquet");
    assert!(bytes == write("two.parquet"), "equal logs, equal files");
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("a Parquet file");
    let rows: Vec<_> = reader
        .get_row_iter(None)
        .expect("rows")
        .map(|row| row.expect("a row"))
        .collect();
    let people = std::fs::read_to_string(&files[1]).expect("profiles");
    let ids: BTreeSet<String> = people
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).expect("JSON");
            row["key"].as_str().expect("an id").to_owned()
        })
        .collect();
    let mut visible_of_more = 0;
    for row in &rows {
        let (own, targets) = (texts(column(row, "own")), texts(column(row, "targets")));
        let new = texts(column(row, "new_targets"));
        let Field::Int(visible) = column(row, "visible") else {
            panic!("{row}")
        };
        assert_eq!(usize::try_from(*visible), Ok(own.len()), "{row}");
        assert!(
            !targets.is_empty() && new.iter().all(|it| targets.contains(it)),
            "{row}"
        );
        assert!(new.iter().all(|it| !own.contains(it)), "{row}");
        visible_of_more = visible_of_more.max(own.len());
        let Field::Str(user) = column(row, "user") else {
            panic!("{row}")
        };
        assert!(!ids.contains(user), "{user} is an id");
    }
    assert!(
        rows.len() > 300 && visible_of_more > 10,
        "{} rows",
        rows.len()
    );
}

#[test]
fn with_an_encoder_an_artefact_has_vectors_of_names_and_of_values_that_several_share() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let profiles = std::fs::read_to_string(&files[1]).expect("profiles");
    let first: Value = serde_json::from_str(profiles.lines().next().expect("one")).expect("JSON");
    let secret = json!({"key": first["key"], "value": {"age": "45-54", "diary": "saw a heron"}});
    std::fs::write(&files[1], format!("{profiles}{secret}\n")).expect("written");
    let encoder = variable("NEARSHORE_TEST_ENCODER");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let found = report(&align(&files, &one, &["--encoder", &encoder]));
    assert_eq!(
        found,
        report(&align(&files, &two, &["--encoder", &encoder]))
    );
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    assert_eq!(content(&one.join(&name)), content(&two.join(&name)));
    for (bucket, fit) in found["buckets"].as_object().expect("buckets") {
        let fitted = fit["fitted"].as_object().expect("terms");
        let has = ["text", "typical"].map(|term| fitted.contains_key(term));
        assert_eq!(has, [!fitted.is_empty(); 2], "{bucket}");
    }
    let bytes = std::fs::read(one.join(&name).join("vectors.nstv")).expect("vectors");
    let vectors = Vectors::decode(&bytes).expect("just written");
    assert_eq!(vectors.width(), 384);
    let tables = std::fs::read(one.join(&name).join("tables.json")).expect("tables");
    let tables: Value = serde_json::from_slice(&tables).expect("JSON");
    for product in tables["products"].as_array().expect("products") {
        let product = product.as_str().expect("an id");
        assert!(vectors.get(product).is_some(), "{product}");
    }
    assert!(vectors.get("age 45-54").is_some());
    assert!(vectors.get("diary saw a heron").is_none(), "of one person");
    let without = report(&align(&files, &two, &[]));
    assert_ne!(found["artefact"], without["artefact"]);
    let path = two.join(format!(
        "artefact-{}",
        without["artefact"].as_str().expect("a hash")
    ));
    assert!(!path.join("vectors.nstv").exists());
}

#[test]
fn a_broken_artefact_is_refused_with_its_file_and_what_to_do() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let found = report(&align(&files, folder.path(), &[]));
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    std::fs::write(folder.path().join("t.j2"), "{{ segment }}").expect("written");
    let config = folder.path().join("nearshore.toml");
    let text = format!(
        "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"none.gguf\"\nartefact = \"{name}\"\n"
    );
    std::fs::write(&config, &text).expect("written");
    let check = || {
        let output = nearshore(&[
            "check",
            "--offline",
            "--config",
            config.to_str().expect("a path"),
        ]);
        let code = output.status.code().expect("it ends");
        (code, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = check();
    // The model is not there, and not needed: no weight is its.
    assert!(code == 0 && said.contains("learned from"), "{said}");
    let tables = folder.path().join(&name).join("tables.json");
    let whole = std::fs::read(&tables).expect("tables");
    std::fs::write(&tables, &whole[..whole.len() / 2]).expect("written");
    let (code, said) = check();
    assert!(
        code == 1 && said.contains("tables.json is not the file"),
        "{said}"
    );
    std::fs::remove_dir_all(folder.path().join(&name)).expect("removed");
    let (code, said) = check();
    assert!(code == 1 && said.contains("artefact.json"), "{said}");
    // Weights by hand take the place of the artefact's; a table that it does not have can have none.
    let artefact = report(&align(&files, folder.path(), &[]))["artefact"].clone();
    assert!(name.ends_with(artefact.as_str().expect("a hash")));
    let by_hand = |weights: &str| format!("{text}weights = {{ {weights} }}\n");
    std::fs::write(&config, by_hand("demand = 1.0, repeat = 0.5")).expect("written");
    let (code, said) = check();
    assert!(code == 0 && said.contains("learned from"), "{said}");
    std::fs::write(&config, by_hand("table = 0.5")).expect("written");
    let (code, said) = check();
    assert!(
        code == 1 && said.contains("has no table of products"),
        "{said}"
    );
}

#[test]
fn too_small_a_log_is_told_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let files = [
        file(
            "e.csv",
            "user,timestamp,type,sku\nu,1700000000000,purchase,1\nu,1710000000000,purchase,1\n",
        ),
        file("p.csv", "user,age\nu,30\n"),
        file("c.csv", "sku,pu,stock\n1,TEA,4\n2,MILK,4\n"),
    ];
    let out = folder.path().join("out");
    for (more, says) in [
        (&[][..], "weights cannot be fitted; use demand alone"),
        (&["--window", "3650days"], "shorter than one window"),
    ] {
        let output = align(&files, &out, more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains(says) && !error.contains("panicked"),
            "{error}"
        );
    }
    assert!(!out.exists());
}

#[test]
fn a_model_is_asked_and_has_a_weight_only_where_it_helps() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    write(
        "t.j2",
        "Bought: {% for e in events %}{{ e.name }}, {% endfor %}",
    );
    // A model whose scores depend on nothing but the prompt's and the name's hash.
    let arm = "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"table:0ms\"\n";
    let config = write("nearshore.toml", arm);
    let asked = ["--config", &config, "--arm", "a", "--model-users", "60"];
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let found = report(&align(&files, &one, &asked));
    assert_eq!(found, report(&align(&files, &two, &asked)));
    let fits = found["model"].as_object().expect("buckets");
    assert_eq!(fits.len(), 6);
    for (bucket, fit) in fits {
        let weights = &found["buckets"][bucket]["weights"];
        assert!(fit["samples"].as_u64() <= Some(60), "{bucket}: {fit}");
        assert_ne!(fit["reason"], "", "{bucket}: {fit}");
        assert!(weights.get("model").is_none(), "{bucket}: {weights}");
    }
    let least = fits["3"]["samples"].as_u64();
    assert!(least > Some(30), "{least:?} cases with three products");
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    assert!(!one.join(&name).join("references.json").exists());

    let unknown = align(&files, &one, &["--config", &config, "--arm", "b"]);
    let error = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_ne!(unknown.status.code(), Some(0));
    assert!(
        error.contains("--arm \"b\" is not one of [[arms]]"),
        "{error}"
    );
}

#[test]
fn options_of_samples_and_prompts_are_compared_and_change_nothing_by_themselves() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let template = "Age {{ profile.age }}: {% for e in events %}{{ e.name }}, {% endfor %}";
    std::fs::write(folder.path().join("t.j2"), template).expect("written");
    let config = folder.path().join("nearshore.toml");
    let arm = "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"table:0ms\"\n";
    std::fs::write(&config, arm).expect("written");
    let config = config.to_str().expect("a path");
    let asked = ["--config", config, "--arm", "a", "--model-users", "60"];
    let out = folder.path().join("out");
    let plain = report(&align(&files, &out, &asked));
    let compared = ["--ablate", "--prompt-events", "1", "--prompt-fields", "age"];
    let found = report(&align(&files, &out, &[&asked[..], &compared].concat()));
    assert_eq!(found["artefact"], plain["artefact"], "it is only measured");
    let rows = found["ablation"].as_array().expect("rows");
    let all = rows.iter().filter(|row| row.get("visible").is_none());
    let options: Vec<&str> = all
        .map(|row| row["option"].as_str().expect("text"))
        .collect();
    let expected = ["--samples-per-user 1", "--tail-weight 0.5", "--dedup"];
    assert_eq!(options, expected);
    let samples = |nth: usize| rows[0]["samples"][nth].as_u64().expect("a number");
    assert!(samples(1) < samples(0), "a cap leaves fewer: {}", rows[0]);
    assert_ne!(rows[7]["nats"]["mean"], 0.0, "{}", rows[7]);
    let prompts = found["prompts"].as_array().expect("rows");
    assert_eq!(prompts.len(), 3 * 6);
    for (row, says) in [(6, "profile[\"age\"]"), (12, "events[:1]")] {
        let path = prompts[row]["template"].as_str().expect("a path");
        let text = std::fs::read_to_string(path).expect("it was written");
        assert!(text.contains(says) && text.ends_with(template), "{text}");
    }
    let capped = align(
        &files,
        &out,
        &["--samples-per-user", "1", "--tail-weight", "0.5"],
    );
    assert_ne!(report(&capped)["artefact"], plain["artefact"]);
}

/// A shop's files with these products and no event.
fn shop_of(folder: &Path, products: &[&str]) -> [PathBuf; 3] {
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let skus = (0..).zip(products);
    let skus: String = skus
        .map(|(nth, name)| format!("{nth},{name},4\n"))
        .collect();
    [
        file("e.csv", "user,timestamp,type,sku\n"),
        file("p.csv", "user,age\n"),
        file("c.csv", &format!("sku,pu,stock\n{skus}")),
    ]
}

/// Catalogue and bound table of an artefact.
fn table_of(folder: &Path, products: &[&str]) -> (Vec<u8>, BoundTable) {
    let skus = (0..).zip(products).map(|(nth, name)| Sku {
        sku: nth.to_string(),
        pu: (*name).to_owned(),
        pu_id: (*name).to_owned(),
        category: None,
        title: String::new(),
        stock: 4,
        price: None,
        attributes: Default::default(),
    });
    let catalogue = Catalogue::load(skus.collect());
    let bytes = std::fs::read(folder.join("table.nspt")).expect("a table");
    let table = ProductTable::decode(&bytes).expect("just written");
    (bytes, bind_table(&table, &catalogue))
}

#[test]
fn a_table_of_a_real_model_knows_what_goes_together_and_is_extended_by_new_products() {
    let folder = tempfile::tempdir().expect("a folder");
    let products = [
        "TOOTHPASTE",
        "TOOTHBRUSH",
        "DOG FOOD",
        "CAT FOOD",
        "SHAMPOO",
        "HAIR CONDITIONER",
    ];
    let files = shop_of(folder.path(), &products);
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    write("t.j2", "{{ segment }}");
    let model = variable("NEARSHORE_TEST_MODEL");
    let arm =
        format!("[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"{model}\"\n");
    let config = write("nearshore.toml", &arm);
    let asked = ["--config", &config, "--arm", "a", "--table", "--table-only"];
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let found = report(&align(&files, &one, &asked));
    assert_eq!(found, report(&align(&files, &two, &asked)));
    assert_eq!(found["table"]["products"], 6);
    assert_eq!(found["table"]["prompts"], 18);
    assert!(found["table"]["tokens"].as_u64() > Some(18), "{found}");
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    assert_eq!(content(&one.join(&name)), content(&two.join(&name)));
    let (_, table) = table_of(&one.join(&name), &products);
    for (own, goes, does_not) in [(0, 1, 2), (2, 3, 0), (4, 5, 3)] {
        let values = table.values([own].into_iter()).expect("a row");
        assert!(values[goes] > values[does_not], "{own}: {values:?}");
    }

    let more: Vec<&str> = products.iter().copied().chain(["MOUTHWASH"]).collect();
    let files = shop_of(folder.path(), &more);
    let first = one.join(&name);
    let from = ["--table-from", first.to_str().expect("a path")];
    let extended = report(&align(&files, &one, &[&asked[..], &from[..]].concat()));
    assert_eq!(extended["table"]["computed"], 1);
    assert_eq!(extended["table"]["prompts"], 3);
    let longer = one.join(format!(
        "artefact-{}",
        extended["artefact"].as_str().expect("a hash")
    ));
    let (_, with_new) = table_of(&longer, &more);
    assert_eq!(with_new.lacking(), 0);
    let before = table.values([0].into_iter()).expect("a row");
    let after = with_new.values([0].into_iter()).expect("a row");
    assert_eq!(before[..], after[..6]);
    let new = with_new.values([6].into_iter()).expect("a row");
    assert_eq!(after[6], new[0], "its row is its column");

    let other = format!("{arm}\n[align]\ntable_wordings = [\"{{name}} and\"]\n");
    std::fs::write(&config, other).expect("written");
    let refused = align(&files, &one, &[&asked[..], &from[..]].concat());
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("of other align.table_wordings"), "{error}");

    an_arm_by_hand_reads_the_table(&longer, (&arm, &config));
}

/// An arm for the first day: weights by hand, and a file that is cut short is refused by name.
fn an_arm_by_hand_reads_the_table(artefact: &Path, (arm, config): (&str, &str)) {
    let path = artefact.to_str().expect("a path");
    let by_hand = format!("artefact = \"{path}\"\nweights = {{ assortment = 1.0, table = 0.5 }}\n");
    std::fs::write(config, format!("{arm}{by_hand}")).expect("written");
    let check = || nearshore(&["check", "--offline", "--config", config]);
    let said = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let output = check();
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let file = artefact.join("table.nspt");
    let bytes = std::fs::read(&file).expect("a table");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("written");
    let output = check();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("table.nspt is not the file"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_table_is_fitted_like_every_term_and_evaluated_without_any_log() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let config = folder.path().join("nearshore.toml");
    std::fs::write(folder.path().join("t.j2"), "{{ segment }}").expect("written");
    let arm = "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"table:0ms\"\n";
    std::fs::write(&config, arm).expect("written");
    let config = config.to_str().expect("a path");
    let asked = [
        "--config",
        config,
        "--arm",
        "a",
        "--table",
        "--model-users",
        "0",
    ];
    let out = folder.path().join("out");
    let found = report(&align(&files, &out, &asked));
    assert!(found.get("model").is_none(), "{found}");
    let fitted = &found["buckets"]["3"]["fitted"]["table"];
    assert!(fitted["kept"].is_boolean(), "{}", found["buckets"]["3"]);
    let name = format!("artefact-{}", found["artefact"].as_str().expect("a hash"));
    let table = out.join(&name);
    let [events, profiles, catalog] = files.each_ref().map(|path| path.to_str().expect("a path"));
    let output = nearshore(&[
        "evaluate",
        "--json",
        "--resamples",
        "100",
        "--visible",
        "0,3",
        "--events",
        events,
        "--profiles",
        profiles,
        "--catalog",
        catalog,
        "--table",
        table.to_str().expect("a path"),
    ]);
    let found = report(&output);
    let has = |part: &str, route: &str| {
        let cells = found[part].as_array().expect("cells");
        let in_cell = |cell: &Value| match cell["routes"].as_array() {
            Some(routes) => routes.iter().any(|it| it["route"] == route),
            None => cell["route"] == route,
        };
        cells.iter().any(in_cell)
    };
    for part in ["cells", "curve", "cold"] {
        for route in ["table", "SKU count + table", "aligned"] {
            assert!(has(part, route), "{part} {route}");
        }
        assert!(
            !has(part, "SKU count + texts + table"),
            "there are no texts"
        );
    }
}
