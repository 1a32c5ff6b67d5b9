//! Promise: `nearshore align --neighbours` says what goes with each SKU, to files, artefact and Redis; who was erased is
//! in none of it, and what is sold out is not shown.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nearshore_core::learn::related::NeighbourDoc;
use nearshore_core::ports::store::{Availability, Stock, StockRecord};
use nearshore_core::user::record::{Offset, Partition, Timestamp};
use nearshore_redis::RedisStore;
use serde_json::json;

use crate::store::settings;
use crate::store_faults::Server;

const START: i64 = 1_700_000_000_000;
const HOUR: i64 = 3_600_000;

/// Twelve users buy bread with butter, and six of them milk at other times; one more user alone buys wine with it all.
fn log(folder: &Path, with_the_one: bool) -> [PathBuf; 2] {
    let skus = [
        ("bread-1", "BREAD"),
        ("bread-2", "BREAD"),
        ("butter-1", "BUTTER"),
        ("milk-1", "MILK"),
        ("wine-1", "WINE"),
        ("wine-2", "WINE"),
    ];
    let mut catalog = String::new();
    for (sku, pu) in skus {
        let value = json!({"pu": pu, "category": "FOOD", "title": sku, "stock": 5});
        catalog += &format!(
            "{}\n",
            json!({"key": sku, "timestamp": START, "value": value})
        );
    }
    let mut events = "user,timestamp,type,sku\n".to_owned();
    let mut buy = |user: &str, hour: i64, skus: &[&str]| {
        for sku in skus {
            events += &format!("{user},{},purchase,{sku}\n", START + hour * HOUR);
        }
    };
    for user in 0..12 {
        let id = format!("u{user:02}");
        buy(&id, user, &["bread-1", "butter-1"]);
        buy(&id, 100 + user, &["bread-2", "butter-1"]);
        if user % 2 == 0 {
            buy(&id, 200 + user, &["milk-1"]);
        }
    }
    if with_the_one {
        for hour in 0..9 {
            buy("the-one", hour, &["wine-1", "wine-2", "bread-1", "milk-1"]);
        }
    }
    let files = [folder.join("events.csv"), folder.join("catalog.jsonl")];
    std::fs::write(&files[0], events).expect("written");
    std::fs::write(&files[1], catalog).expect("written");
    files
}

fn align(folder: &Path, files: &[PathBuf; 2], more: &[&str]) -> Output {
    let [events, catalog] = files.each_ref().map(|path| path.to_str().expect("a path"));
    let config = folder.join("nearshore.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearshore"));
    command.args(["align", "--events", events, "--catalog", catalog]);
    command.args(["--neighbours", "--neighbours-only", "--config"]);
    command
        .arg(config)
        .args(more)
        .output()
        .expect("the binary starts")
}

/// The file that `align` writes.
fn lines(folder: &Path, files: &[PathBuf; 2], more: &[&str]) -> String {
    let out = folder.join("neighbours.jsonl");
    let path = out.to_str().expect("a path");
    let output = align(folder, files, &[&["--neighbours-out", path], more].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    std::fs::read_to_string(out).expect("it was written")
}

fn doc(lines: &str, sku: &str) -> NeighbourDoc {
    let mut docs = lines
        .lines()
        .map(|line| NeighbourDoc::parse(line).expect("a document"));
    let found = docs.find(|doc| doc.sku.as_deref() == Some(sku));
    found.unwrap_or_else(|| panic!("{sku} has no line"))
}

#[test]
fn a_build_after_an_erase_is_that_of_a_log_without_the_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::write(folder.join("nearshore.toml"), "namespace = \"n\"\n").expect("written");
    let without = lines(folder, &log(folder, false), &["--no-erases"]);
    let with = log(folder, true);
    assert_ne!(
        lines(folder, &with, &["--no-erases"]),
        without,
        "one more user buys bread"
    );
    let erased = folder.join("erased.jsonl");
    let line = json!({"user": "the-one", "at": START + 1_000 * HOUR});
    std::fs::write(&erased, format!("{line}\n")).expect("written");
    let erased = ["--erased", erased.to_str().expect("a path")];
    assert_eq!(lines(folder, &with, &erased), without);
}

#[test]
fn a_pair_of_too_few_users_is_not_listed_and_each_sku_has_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::write(folder.join("nearshore.toml"), "namespace = \"n\"\n").expect("written");
    let found = lines(folder, &log(folder, true), &["--no-erases"]);
    let skus: BTreeSet<String> = found
        .lines()
        .filter_map(|line| NeighbourDoc::parse(line).expect("a document").sku)
        .collect();
    assert_eq!(skus.len(), 6);
    let bread = doc(&found, "bread-1");
    assert_eq!(bread.substitutes.skus, ["bread-2"]);
    assert_eq!(bread.complements.skus[0], "butter-1");
    let listed = |doc: NeighbourDoc| doc.skus().cloned().collect::<Vec<_>>();
    let all = skus.iter().flat_map(|sku| listed(doc(&found, sku)));
    assert!(all.clone().all(|sku| !sku.starts_with("wine")), "{found}");
    assert!(all.count() > 0);
    // Nobody but one user bought wine: its lists are those of its kind.
    let wine = doc(&found, "wine-1");
    assert!(wine.substitutes.skus.is_empty());
    assert!(!wine.complements.skus.is_empty());
    // Where two users are enough, one is not either.
    let config = "namespace = \"n\"\n[align]\nusers_min = 2\n";
    std::fs::write(folder.join("nearshore.toml"), config).expect("written");
    let found = lines(folder, &log(folder, true), &["--no-erases"]);
    assert!(
        doc(&found, "bread-1")
            .skus()
            .all(|sku| !sku.starts_with("wine"))
    );
}

fn sold_out(sku: &str) -> StockRecord {
    let partition = Partition {
        incarnation: 0,
        topic: "catalog".into(),
        number: 0,
    };
    StockRecord {
        sku: sku.into(),
        partition,
        offset: Offset(0),
        availability: Availability::SoldOut,
        time: Timestamp(1),
    }
}

#[tokio::test]
async fn a_client_reads_the_neighbours_of_a_sku_without_what_is_sold_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let redis = Server::start(&[]).await;
    let config = format!("namespace = \"n\"\n[redis]\nurl = \"{}\"\n", redis.url());
    std::fs::write(folder.join("nearshore.toml"), config).expect("written");
    let files = log(folder, true);
    let get = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nearshore"));
        command.args(["get", "--neighbours", "bread-1", "--config"]);
        command.arg(folder.join("nearshore.toml")).args(more);
        command.output().expect("the binary starts")
    };
    let none = get(&[]);
    let error = String::from_utf8_lossy(&none.stderr);
    assert!(
        none.status.code() == Some(1) && error.contains("--neighbours-redis"),
        "{error}"
    );
    let output = align(folder, &files, &["--no-erases", "--neighbours-redis"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let store = RedisStore::new(settings(redis.url())).expect("valid settings");
    let stored = store
        .neighbours("n", "bread-1")
        .await
        .expect("Redis answers");
    let written = lines(folder, &files, &["--no-erases"]);
    assert_eq!(stored, Some(doc(&written, "bread-1").to_json()));
    let client = redis::Client::open(redis.url()).expect("an address");
    let mut conn = client
        .get_multiplexed_async_connection()
        .await
        .expect("Redis answers");
    let mut ttl = redis::cmd("TTL");
    let ttl: i64 = ttl
        .arg("n:neighbours:{bread-1}")
        .query_async(&mut conn)
        .await
        .expect("a key");
    assert!((29 * 86_400..=30 * 86_400).contains(&ttl), "{ttl}");

    let read = |output: Output| {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text")
    };
    let seen = NeighbourDoc::parse(&read(get(&["--json"]))).expect("a document");
    assert_eq!(seen, doc(&written, "bread-1"));
    store
        .stock(&[sold_out("butter-1")])
        .await
        .expect("Redis answers");
    let seen = NeighbourDoc::parse(&read(get(&["--json"]))).expect("a document");
    assert!(seen.skus().all(|sku| sku != "butter-1") && seen.skus().count() > 0);
    let text = read(get(&[]));
    assert!(
        text.contains("bread-2") && !text.contains("butter-1"),
        "{text}"
    );
}
