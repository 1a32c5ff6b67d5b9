//! Promise: `nearshore import` brings history from files into the topics, each record with its own time, also where the
//! broker sets times and where a mapping makes the records; a row that cannot be used is told with file and line, and
//! nothing is written then.

use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, sku_id};

const STAMPED: (&str, &str) = ("message.timestamp.type", "LogAppendTime");

/// Times of the events in a user's window, ms.
async fn times(site: &Site, user: &str) -> Vec<i64> {
    let user = [UserId(user.into())];
    let loaded = site
        .store
        .load(&site.ns, &user)
        .await
        .expect("Redis answers");
    let mut times: Vec<i64> = loaded[0]
        .state
        .window
        .iter()
        .map(|event| event.time.0)
        .collect();
    times.sort_unstable();
    times
}

async fn have(site: &Site, user: &str, expected: &[i64]) {
    eventually(LIMIT, || async {
        let found = times(site, user).await;
        match found == expected {
            true => Ok(()),
            false => Err(format!("{found:?}")),
        }
    })
    .await;
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn bought(user: &str, nth: usize, time: i64) -> Value {
    json!({ "user": user, "type": "purchase", "sku": sku_id(nth), "qty": 1, "timestamp": time })
}

/// Days ago, ms.
fn ago(days: i64) -> i64 {
    crate::process::now().0 - days * 86_400_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_folded_with_its_own_times_where_the_broker_sets_them() {
    let site = Site::open(&[
        ("user_events", 2, &[STAMPED]),
        ("profile_changes", 2, &[STAMPED]),
    ])
    .await;
    site.catalogue().await;
    let (first, second) = (ago(40), ago(10));
    let events = site.write(
        "events.jsonl",
        &lines(&[bought("ann", 1, first), bought("ann", 2, second)]),
    );
    let profiles = site.write("profiles.csv", "user,avoids\nann,WINE\n");
    let (events, profiles) = (events.display().to_string(), profiles.display().to_string());
    let words = [
        "import",
        "--events",
        &events,
        "--profiles",
        &profiles,
        "--json",
    ];
    let dry: Value =
        serde_json::from_str(&site.output(&[&words[..], &["--dry-run"]].concat()).await)
            .expect("JSON");
    assert_eq!(
        (&dry["rows"], &dry["written"]),
        (&json!(3), &json!(false)),
        "{dry}"
    );
    assert_eq!(site.count(&site.topics.user_events).await, 0);
    let done: Value = serde_json::from_str(&site.output(&words).await).expect("JSON");
    assert_eq!(
        (&done["written"], &done["oldest"], &done["newest"]),
        (&json!(true), &json!(first), &json!(second))
    );
    assert_eq!(site.count(&site.topics.user_events).await, 2);
    let mut process = Process::start(&site, "ingest");
    process.becomes_ready().await;
    have(&site, "ann", &[first, second]).await;
    // An erase is not outlived by what was done before it.
    site.output(&["forget", "ann"]).await;
    have(&site, "ann", &[]).await;
    site.output(&["import", "--events", &events]).await;
    site.committed().await;
    assert_eq!(times(&site, "ann").await, Vec::<i64>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_row_is_told_with_its_line_and_nothing_is_written_unless_it_is_left_out() {
    let site = Site::open(&[]).await;
    let rows = lines(&[
        bought("ann", 1, ago(3)),
        json!({ "user": "bob", "type": "purchase" }),
        bought("bob", 2, ago(2)),
    ]);
    let file = site
        .write("events.jsonl", &format!("{rows}no JSON\n"))
        .display()
        .to_string();
    let refused = site.cli(&["import", "--events", &file]).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in [
        "events.jsonl:2: ",
        "events.jsonl:4: ",
        "2 rows cannot be used, so nothing is written",
        "--skip-bad",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(site.count(&site.topics.user_events).await, 0);
    site.output(&["import", "--events", &file, "--skip-bad", "--after", "1"])
        .await;
    let written = site.read(&site.topics.user_events).await;
    assert_eq!(
        written
            .iter()
            .map(|record| record.key.as_deref())
            .collect::<Vec<_>>(),
        [Some(&b"bob"[..])]
    );
    for (words, says) in [
        (&["import"][..], "no file"),
        (
            &["import", "--events", &file, &file, "--after", "3"],
            "--after is a line of one file",
        ),
        (
            &["import", "--rows", &file, "--topic", "orders"],
            "none of those that [[inputs]] maps",
        ),
        (
            &["import", "--events", "/nowhere.jsonl"],
            "/nowhere.jsonl cannot be read",
        ),
    ] {
        let output = site.cli(words).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(says),
            "{words:?}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_the_shop_become_records_of_ours_by_their_mapping() {
    let site = Site::open(&[]).await;
    let topic = format!("{}-orders", site.ns);
    site.append(&format!(
        "[[inputs]]\ntopic = \"{topic}\"\nread_as = \"events\"\nkey = [\"/customer/id\"]\n[inputs.fields]\n\
         type = \"/kind\"\nsku = \"/article\"\nqty = \"/pieces\"\n[inputs.types]\nsale = \"purchase\"\n"
    ));
    let order = |pieces: i64, time: Option<i64>| json!({ "customer": { "id": "ann" }, "kind": "sale", "article": sku_id(3), "pieces": pieces, "timestamp": time });
    let time: Timestamp = Timestamp(ago(20));
    let good = site
        .write("orders.jsonl", &lines(&[order(2, Some(time.0))]))
        .display()
        .to_string();
    site.output(&["import", "--topic", &topic, "--rows", &good])
        .await;
    let written = site.read(&site.topics.user_events).await;
    assert_eq!(written.len(), 1);
    assert_eq!(
        (written[0].key.as_deref(), written[0].occurred()),
        (Some(&b"ann"[..]), time)
    );
    let value: Value =
        serde_json::from_slice(written[0].value.as_deref().expect("a value")).expect("JSON");
    assert_eq!(
        (&value["sku"], &value["qty"]),
        (&json!(sku_id(3)), &json!(2)),
        "{value}"
    );
    let without = site
        .write("later.jsonl", &lines(&[order(1, None)]))
        .display()
        .to_string();
    let refused = site
        .cli(&["import", "--topic", &topic, "--rows", &without])
        .await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1)
            && said.contains("later.jsonl:1: ")
            && said.contains("timestamp"),
        "{said}"
    );
}
