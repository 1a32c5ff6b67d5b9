//! Promise: `nearshore evaluate` says the same of one log in JSON lines, CSV and Parquet, and what it says is sound.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use nearshore_core::ports::log::Outgoing;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use crate::harness::variable;
use crate::process::{Site, record};

/// Households and product types of the slice.
const HOUSEHOLDS: usize = 250;
const TYPES: usize = 80;

/// A slice of the real data.
pub(crate) struct Slice {
    /// SKU, its type and category.
    skus: Vec<(String, String, String)>,
    /// User and profile.
    profiles: Vec<(String, BTreeMap<String, String>)>,
    /// User, time, SKU, quantity, price.
    bought: Vec<(String, i64, String, i64, f64)>,
}

fn lines(name: &str) -> Vec<String> {
    let path = PathBuf::from(variable("NEARSHORE_TEST_DATA")).join(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(str::to_owned).collect()
}

impl Slice {
    /// The first households with a profile, and the types of the drug store that most of them buy.
    pub(crate) fn read() -> Self {
        let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let households: Vec<Value> = lines("households.jsonl")
            .iter()
            .take(HOUSEHOLDS)
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let users: BTreeSet<String> = households.iter().map(|it| text(it, "user")).collect();
        let mut types: BTreeMap<String, (String, String)> = BTreeMap::new();
        for line in lines("products.jsonl") {
            let value: Value = serde_json::from_str(&line).expect("JSON");
            if text(&value, "department") == "DRUG GM" {
                types.insert(
                    text(&value, "sku"),
                    (text(&value, "pu"), text(&value, "category")),
                );
            }
        }
        let mut bought = Vec::new();
        let mut buyers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for line in lines("transactions.csv").iter().skip(1) {
            let cells: Vec<&str> = line.split(',').collect();
            let Some((pu, _)) = types.get(cells[2]).filter(|_| users.contains(cells[1])) else {
                continue;
            };
            buyers.entry(pu).or_default().insert(cells[1].to_owned());
            let number = |at: usize| cells[at].parse::<f64>().expect("a number");
            bought.push((
                cells[1].to_owned(),
                cells[0].parse().expect("a time"),
                cells[2].to_owned(),
                number(3).clamp(1.0, 1000.0) as i64,
                number(4).max(0.0),
            ));
        }
        let mut ranked: Vec<(usize, &str)> = buyers
            .iter()
            .map(|(pu, users)| (users.len(), *pu))
            .collect();
        ranked.sort_by(|a, b| b.cmp(a));
        let kept: BTreeSet<String> = ranked
            .iter()
            .take(TYPES)
            .map(|(_, pu)| (*pu).to_owned())
            .collect();
        bought.retain(|line| kept.contains(&types[&line.2].0));
        let skus = types.into_iter().filter(|(_, (pu, _))| kept.contains(pu));
        let profile = |value: &Value| {
            let fields = ["age", "kids_count", "marital_status"]
                .map(|name| (name.to_owned(), text(value, name)));
            (
                text(value, "user"),
                fields
                    .into_iter()
                    .filter(|(_, text)| !text.is_empty())
                    .collect(),
            )
        };
        Self {
            skus: skus
                .map(|(sku, (pu, category))| (sku, pu, category))
                .collect(),
            profiles: households.iter().map(profile).collect(),
            bought,
        }
    }

    pub(crate) fn json_lines(&self, folder: &Path) -> [PathBuf; 3] {
        let write = |name: &str, rows: Vec<Value>| {
            let path = folder.join(name);
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            std::fs::write(&path, text).expect("written");
            path
        };
        let events = self.bought.iter().map(|(user, at, sku, qty, price)| {
            let value = json!({"type": "purchase", "sku": sku, "qty": qty, "price": price});
            json!({"key": user, "timestamp": at, "value": value})
        });
        let profiles = self
            .profiles
            .iter()
            .map(|(user, fields)| json!({"key": user, "value": fields}));
        let skus = self.skus.iter().map(|(sku, pu, category)| {
            let value = json!({"pu": pu, "category": category, "stock": 5});
            // As kcat writes it.
            json!({"topic": "catalog", "key": sku, "payload": value.to_string()})
        });
        [
            write("events.jsonl", events.collect()),
            write("profiles.ndjson", profiles.collect()),
            write("catalog.jsonl", skus.collect()),
        ]
    }

    fn csv(&self, folder: &Path) -> [PathBuf; 3] {
        let write = |name: &str, rows: Vec<Vec<String>>| {
            let path = folder.join(name);
            let mut writer = csv::Writer::from_path(&path).expect("created");
            rows.iter()
                .for_each(|row| writer.write_record(row).expect("written"));
            writer.flush().expect("written");
            path
        };
        let header = |names: &str| names.split(',').map(str::to_owned).collect::<Vec<_>>();
        let mut events = vec![header("user,timestamp,type,sku,qty,price")];
        events.extend(self.bought.iter().map(|(user, at, sku, qty, price)| {
            vec![
                user.clone(),
                at.to_string(),
                "purchase".into(),
                sku.clone(),
                qty.to_string(),
                price.to_string(),
            ]
        }));
        let fields = ["age", "kids_count", "marital_status"];
        let mut profiles = vec![header("user,age,kids_count,marital_status")];
        profiles.extend(self.profiles.iter().map(|(user, found)| {
            let cells = fields.map(|name| found.get(name).cloned().unwrap_or_default());
            [user.clone()].into_iter().chain(cells).collect()
        }));
        let mut skus = vec![header("sku,pu,category,stock")];
        skus.extend(self.skus.iter().map(|(sku, pu, category)| {
            vec![sku.clone(), pu.clone(), category.clone(), "5".into()]
        }));
        [
            write("events.csv", events),
            write("profiles.csv", profiles),
            write("catalog.csv", skus),
        ]
    }

    fn parquet(&self, folder: &Path) -> [PathBuf; 3] {
        let text = |values: Vec<Option<String>>| Column::Text(values);
        let all = |values: &dyn Fn(usize) -> String, n: usize| {
            text((0..n).map(|nth| Some(values(nth))).collect())
        };
        let n = self.bought.len();
        let events = Parquet::new(folder.join("events.parquet"))
            .column(
                "required binary user (UTF8)",
                all(&|nth| self.bought[nth].0.clone(), n),
            )
            // As pandas writes times: nanoseconds, without a converted type.
            .column(
                "required int64 timestamp (TIMESTAMP(NANOS,false))",
                Column::Integer(self.bought.iter().map(|it| it.1 * 1_000_000).collect()),
            )
            .column(
                "required binary type (UTF8)",
                all(&|_| "purchase".into(), n),
            )
            .column(
                "required binary sku (UTF8)",
                all(&|nth| self.bought[nth].2.clone(), n),
            )
            // A column with a missing value somewhere is one of floats.
            .column(
                "required double qty",
                Column::Float(self.bought.iter().map(|it| it.3 as f64).collect()),
            )
            .column(
                "required double price",
                Column::Float(self.bought.iter().map(|it| it.4).collect()),
            )
            .write();
        let field = |name: &str| {
            text(
                self.profiles
                    .iter()
                    .map(|it| it.1.get(name).cloned())
                    .collect(),
            )
        };
        let profiles = Parquet::new(folder.join("profiles.parquet"))
            .column(
                "required binary user (UTF8)",
                text(self.profiles.iter().map(|it| Some(it.0.clone())).collect()),
            )
            .column("optional binary age (UTF8)", field("age"))
            .column("optional binary kids_count (UTF8)", field("kids_count"))
            .column(
                "optional binary marital_status (UTF8)",
                field("marital_status"),
            )
            .write();
        let n = self.skus.len();
        let catalog = Parquet::new(folder.join("catalog.parquet"))
            .column(
                "required binary sku (UTF8)",
                all(&|nth| self.skus[nth].0.clone(), n),
            )
            .column(
                "required binary pu (UTF8)",
                all(&|nth| self.skus[nth].1.clone(), n),
            )
            .column(
                "required binary category (UTF8)",
                all(&|nth| self.skus[nth].2.clone(), n),
            )
            .column("required int64 stock", Column::Integer(vec![5; n]))
            .write();
        [events, profiles, catalog]
    }
}

enum Column {
    Text(Vec<Option<String>>),
    Integer(Vec<i64>),
    Float(Vec<f64>),
}

/// A Parquet file to be written.
struct Parquet {
    path: PathBuf,
    schema: String,
    /// Whether a value may be missing, and the values.
    columns: Vec<(bool, Column)>,
}

impl Parquet {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            schema: String::new(),
            columns: Vec::new(),
        }
    }

    fn column(mut self, schema: &str, column: Column) -> Self {
        self.schema.push_str(&format!("{schema};\n"));
        self.columns.push((schema.starts_with("optional"), column));
        self
    }

    fn write(self) -> PathBuf {
        let schema =
            parse_message_type(&format!("message rows {{ {} }}", self.schema)).expect("a schema");
        let file = File::create(&self.path).expect("created");
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer =
            SerializedFileWriter::new(file, Arc::new(schema), properties).expect("a writer");
        let mut group = writer.next_row_group().expect("a group");
        for (optional, column) in &self.columns {
            let mut out = group.next_column().expect("a column").expect("a column");
            put(&mut out, *optional, column);
            out.close().expect("written");
        }
        group.close().expect("written");
        writer.close().expect("written");
        self.path
    }
}

fn put(out: &mut SerializedColumnWriter, optional: bool, column: &Column) {
    match column {
        Column::Text(values) => {
            let levels: Vec<i16> = values
                .iter()
                .map(|value| i16::from(value.is_some()))
                .collect();
            let found: Vec<ByteArray> = values
                .iter()
                .flatten()
                .map(|text| text.as_str().into())
                .collect();
            let levels = optional.then_some(&levels[..]);
            out.typed::<ByteArrayType>()
                .write_batch(&found, levels, None)
                .expect("written");
        }
        Column::Integer(values) => {
            out.typed::<Int64Type>()
                .write_batch(values, None, None)
                .expect("written");
        }
        Column::Float(values) => {
            out.typed::<DoubleType>()
                .write_batch(values, None, None)
                .expect("written");
        }
    }
}

fn evaluate(files: &[PathBuf; 3], more: &[&str]) -> Output {
    let [events, profiles, catalog] = files;
    std::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(["evaluate", "--resamples", "200", "--events"])
        .arg(events)
        .arg("--profiles")
        .arg(profiles)
        .arg("--catalog")
        .arg(catalog)
        .args(more)
        .output()
        .expect("the binary starts")
}

/// The result without its times, as text.
fn result(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let mut value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    value.as_object_mut().expect("an object").remove("times");
    value.to_string()
}

#[test]
fn a_log_gives_one_result_in_every_format_and_a_page() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("report.html");
    let page_text = page.to_str().expect("a path");
    let json = slice.json_lines(folder.path());
    let found = result(&evaluate(
        &json,
        &["--json", "--strict", "--html", page_text],
    ));
    for files in [slice.csv(folder.path()), slice.parquet(folder.path())] {
        assert_eq!(
            found,
            result(&evaluate(&files, &["--json", "--strict"])),
            "{files:?}"
        );
    }
    let value: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(value["log"]["purchases"], slice.bought.len());
    assert_eq!(value["log"]["products"], TYPES);
    assert_eq!(value["illegal"], 0);
    let cells = value["cells"].as_array().expect("cells");
    assert_eq!(
        cells.len(),
        10,
        "five amounts of visible history, all and new targets"
    );
    let recall = |visible: &str, route: &str| {
        let cell = cells
            .iter()
            .find(|it| it["visible"] == visible && it["targets"] == "all");
        let routes = cell.expect("a cell")["routes"]
            .as_array()
            .expect("routes")
            .clone();
        let route = routes
            .into_iter()
            .find(|it| it["route"] == route)
            .expect("a route");
        route["recall"][1]["mean"].as_f64().expect("a number")
    };
    let demand = recall("3", "demand, household-weeks");
    assert!(demand > recall("3", "random") + 0.1, "{demand}");
    assert!(recall("10", "demand + repeat") > demand, "{demand}");
    let page = std::fs::read_to_string(&page).expect("a page");
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("http"));
}

/// Writes the slice on a site's topics, profiles before everything, and the same profiles to a file.
pub(crate) async fn write_to_topics(slice: &Slice, site: &Site) -> PathBuf {
    let first = slice.bought.iter().map(|line| line.1).min();
    let before = first.expect("a purchase") - 1_000;
    let at = |time: i64, record: Outgoing| Outgoing {
        time: Some(Timestamp(time)),
        ..record
    };
    let events = slice.bought.iter().map(|(user, time, sku, qty, price)| {
        let value = json!({"type": "purchase", "sku": sku, "qty": qty, "price": price});
        at(*time, record(&site.topics.user_events, user, &value))
    });
    let profiles = slice.profiles.iter().map(|(user, fields)| {
        let topic = &site.topics.profile_changes;
        at(before, record(topic, user, &json!(fields)))
    });
    let skus = slice.skus.iter().map(|(sku, pu, category)| {
        let value = json!({"pu": pu, "category": category, "stock": 5});
        record(&site.topics.catalog, sku, &value)
    });
    site.send(events.chain(profiles).chain(skus).collect())
        .await;
    let rows = slice.profiles.iter();
    let rows =
        rows.map(|(user, fields)| json!({"key": user, "timestamp": before, "value": fields}));
    let text: String = rows.map(|row| format!("{row}\n")).collect();
    site.write("timed.jsonl", &text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_on_topics_gives_the_result_of_its_files() {
    let slice = Slice::read();
    // The purchases are older than a topic keeps records by default.
    let keep: &[(&str, &str)] = &[("retention.ms", "-1")];
    let topics = ["user_events", "profile_changes"];
    let site = Site::open(&topics.map(|topic| (topic, 3, keep))).await;
    // Its rules ask for a field that these profiles do not have, which an evaluation refuses.
    let config = site.config();
    let (without_rules, _) = config.split_once("[[rules]]").expect("it has rules");
    site.write("nearshore.toml", without_rules);
    let profiles = write_to_topics(&slice, &site).await;
    let [events, _, catalog] = slice.json_lines(site.folder());
    let paths = [&events, &profiles, &catalog].map(|path| path.to_str().expect("a path"));
    let order = [
        "evaluate",
        "--json",
        "--strict",
        "--no-align",
        "--no-curve",
        "--cold=0",
        "--visible=3",
        "--model-users=0",
        "--resamples=100",
    ];
    let files = [
        "--events",
        paths[0],
        "--profiles",
        paths[1],
        "--catalog",
        paths[2],
    ];
    let found = async |words: &[&str]| -> Value {
        let text = site.output(&[&order[..], words].concat()).await;
        let mut value: Value = serde_json::from_str(&text).expect("JSON");
        value.as_object_mut().expect("an object").remove("times");
        value
    };
    let of_topics = found(&[]).await;
    assert_eq!(of_topics["log"]["purchases"], slice.bought.len());
    assert_eq!(of_topics, found(&files).await);
    align_leaves_out_users_that_redis_or_a_list_calls_erased(&site, &files).await;
}

async fn align_leaves_out_users_that_redis_or_a_list_calls_erased(site: &Site, files: &[&str]) {
    let out = site.folder().join("artefacts");
    let out = out.to_str().expect("a path");
    let align = async |words: &[&str]| -> Value {
        let order = ["align", "--json", "--samples", "300", "--out", out];
        let text = site.output(&[&order[..], words].concat()).await;
        serde_json::from_str(&text).expect("JSON")
    };
    let whole = align(&[files, &["--no-erases"]].concat()).await;
    assert_eq!(whole, align(&[]).await, "nobody is erased");
    let events = std::fs::read_to_string(files[1]).expect("events");
    let first: Value = serde_json::from_str(events.lines().next().expect("one")).expect("JSON");
    let user = UserId(first["key"].as_str().expect("a user").into());
    let erased = [(user, nearshore::members::clock::wall_clock())];
    site.store.erase(&erased).await.expect("Redis answers");
    let list = site.folder().join("erased.jsonl");
    let list = list.to_str().expect("a path");
    site.output(&["forget", "--export", list]).await;
    let without = align(&[files, &["--erased", list]].concat()).await;
    assert_eq!(without, align(&[]).await, "topics ask Redis");
    let users = |report: &Value| report["made"]["users"].as_u64().expect("a number");
    assert_eq!(users(&without) + 1, users(&whole));
    let refused = site.cli(&[&["align"], files].concat()).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("give --erased FILE"), "{said}");
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn with_an_encoder_the_texts_are_routes_and_an_arm_by_hand_reads_them() {
    let slice = Slice::read();
    let folder = tempfile::tempdir().expect("a folder");
    let files = slice.json_lines(folder.path());
    let encoder = variable("NEARSHORE_TEST_ENCODER");
    std::fs::write(folder.path().join("t.j2"), "{{ segment }}").expect("written");
    let config = folder.path().join("nearshore.toml");
    let arm = "[[arms]]\nid = \"a\"\nepoch = 1\ntemplate = \"t.j2\"\nmodel = \"none.gguf\"\n\
               weights = { assortment = 1.0, typical = 8.0, text = 2.0 }\n";
    let path = config.to_str().expect("a path");
    let quick = [
        "--json",
        "--no-align",
        "--no-curve",
        "--cold",
        "0",
        "--config",
        path,
    ];
    std::fs::write(&config, arm).expect("written");
    let error = evaluate(&files, &quick).stderr;
    let error = String::from_utf8_lossy(&error).into_owned();
    assert!(error.contains("engine.encoder"), "{error}");
    std::fs::write(&config, format!("[engine]\nencoder = {encoder:?}\n{arm}")).expect("written");
    let found: Value = serde_json::from_str(&result(&evaluate(&files, &quick))).expect("JSON");
    for cell in found["cells"].as_array().expect("cells") {
        let routes = cell["routes"].as_array().expect("routes");
        let list = |name: &str| {
            let route = routes.iter().find(|it| it["route"] == name);
            route.unwrap_or_else(|| panic!("{name}"))["recall"].clone()
        };
        assert_ne!(list("text"), list("typical"));
        assert_ne!(list("arm a"), list("SKU count"));
    }
}

#[test]
fn wrong_orders_end_with_2_and_say_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let catalog = file("c.csv", "sku,pu,stock\n1,TEA,4\n2,MILK,4\n");
    let events = file(
        "e.csv",
        "user,timestamp,type,sku\nu,1700000000000,purchase,1\nu,x,purchase,1\n",
    );
    let profiles = file("p.csv", "user,age\nu,30\n");
    let files = [events, profiles.clone(), catalog.clone()];
    let check = |output: Output, code: i32, expected: &str| {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("panicked"), "{error}");
    };
    check(
        evaluate(&files, &[]),
        1,
        "e.csv:3: timestamp is a text of another form",
    );
    check(
        evaluate(&files, &[]),
        1,
        "1 user(s) with purchases cannot be split",
    );
    check(
        evaluate(&files, &["--strict"]),
        1,
        "1 records cannot be used, and --strict is set",
    );
    check(evaluate(&files, &["--folds", "2"]), 2, "1, or 3 to 100");
    check(
        evaluate(&files, &["--cut", "yesterday"]),
        2,
        "write a day as 2026-01-31",
    );
    check(evaluate(&files, &["--window", "2"]), 2, "as in 56days");
    let table = [profiles.clone(), profiles.clone(), catalog.clone()];
    check(
        evaluate(&table, &[]),
        2,
        "there is no column \"type\", only user, age",
    );
    let none = [folder.path().join("absent.csv"), profiles, catalog];
    check(evaluate(&none, &[]), 2, "absent.csv cannot be read");
    let alone = std::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(["evaluate", "--events", "e.csv"])
        .output()
        .expect("the binary starts");
    check(alone, 2, "--catalog is missing: give --catalog FILE too");
}
