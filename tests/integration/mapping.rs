//! Promise: topics that a shop has already are read by `[[inputs]]`: a record of Segment becomes events and a list, a row
//! of Debezium becomes a SKU, and what a mapping or its program cannot use costs only its record, which a replay sends to
//! our topics once the mapping is mended.

use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::{Stock, Users};
use nearshore_core::user::event::{Item, UserId};
use nearshore_core::user::record::Record;
use nearshore_kafka::NewTopic;
use nearshore_kafka::dlq::DeadLetter;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::process::{LIMIT, PRODUCTS, Process, Site, record, sku_id};

/// A site with a topic of the shop's own, which a recipe or a section maps.
async fn site_with(topics: &[(&str, &str)]) -> Site {
    let site = Site::open(&[]).await;
    for (name, section) in topics {
        let topic = format!("{}-{name}", site.ns);
        let new = NewTopic {
            name: topic.clone(),
            partitions: 1,
            config: Default::default(),
        };
        site.admin.ensure(&[new]).await.expect("it is created");
        let is_kept = |line: &&str| !line.starts_with("topic =") && !line.starts_with("samples =");
        let lines: Vec<&str> = section.lines().filter(is_kept).collect();
        let named = lines
            .join("\n")
            .replace("[[inputs]]", &format!("[[inputs]]\ntopic = \"{topic}\""));
        site.append(&format!("{named}\n"));
    }
    site
}

/// A record of one of the shop's own topics.
fn foreign(site: &Site, topic: &str, key: Option<&str>, value: Option<&Value>) -> Outgoing {
    Outgoing {
        key: key.map(|key| key.to_owned().into()),
        value: value.map(|value| value.to_string().into()),
        ..record(&format!("{}-{topic}", site.ns), "", &Value::Null)
    }
}

/// The SKUs in a user's window, in its order.
async fn window(site: &Site, user: &str) -> Vec<String> {
    let user = [UserId(user.into())];
    let loaded = site
        .store
        .load(&site.ns, &user)
        .await
        .expect("Redis answers");
    let events = loaded[0].state.window.iter();
    let sku = |item: &Item| match item {
        Item::Sku(sku) => Some(sku.clone()),
        Item::Pu(_) | Item::Query(_) => None,
    };
    events.filter_map(|event| sku(&event.item)).collect()
}

async fn window_is(site: &Site, user: &str, skus: &[&str]) {
    eventually(LIMIT, || async {
        let found = window(site, user).await;
        if found == skus {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}

async fn dead_letters(site: &Site, n: usize) -> Vec<DeadLetter> {
    eventually(LIMIT, || async {
        let all: Vec<Record> = site.read(&site.topics.dlq).await;
        if all.len() == n {
            Ok(all)
        } else {
            Err(format!("{} dead letters", all.len()))
        }
    })
    .await
    .iter()
    .map(DeadLetter::read)
    .collect()
}

/// A row of the shop's table of products.
fn product(site: &Site, nth: usize, stock: i64) -> Outgoing {
    let (pu, category) = PRODUCTS[nth / 2];
    let row = json!({"id": sku_id(nth), "product_name": pu, "category": category, "stock": stock, "price": "2.50"});
    let key = json!({"id": sku_id(nth)}).to_string();
    let change = json!({"op": "c", "before": null, "after": row});
    foreign(site, "products", Some(&key), Some(&change))
}

/// A track of the user u-1.
fn track(site: &Site, event: &str, properties: &Value) -> Outgoing {
    let value = json!({"type": "track", "event": event, "userId": "u-1", "messageId": "m",
        "timestamp": "2026-01-31T17:30:00Z", "properties": properties});
    foreign(site, "segment", None, Some(&value))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_segment_and_debezium_become_lists_and_stock() {
    let site = site_with(&[
        ("segment", include_str!("../../config/recipes/segment.toml")),
        (
            "products",
            include_str!("../../config/recipes/debezium.toml"),
        ),
    ])
    .await;
    let product = |nth: usize, stock: i64| product(&site, nth, stock);
    site.send((0..2 * PRODUCTS.len()).map(|nth| product(nth, 9)).collect())
        .await;
    let process = Process::ready(&site, "all").await;

    let track = |event: &str, properties: Value| track(&site, event, &properties);
    let products =
        json!([{"sku": sku_id(0), "quantity": 2}, {"sku": sku_id(6)}, {"sku": sku_id(0)}]);
    let order = track("Order Completed", json!({"products": products}));
    let torn = json!([{"sku": sku_id(8)}, {"sku": sku_id(9), "quantity": -1}]);
    let page = json!({"type": "page", "userId": "u-1", "messageId": "m"});
    site.send(vec![
        order,
        foreign(&site, "segment", None, Some(&page)),
        track("Order Completed", json!({"products": torn})),
        track("Product Viewed", json!({"sku": sku_id(12)})),
    ])
    .await;
    // All lines of the order, in their order; of the torn one none.
    window_is(
        &site,
        "u-1",
        &[&sku_id(0), &sku_id(6), &sku_id(0), &sku_id(12)],
    )
    .await;
    eventually(LIMIT, || async {
        let list = site.peek("u-1").await.list;
        list.map(|list| list.claim)
            .ok_or_else(|| "no list".to_owned())
    })
    .await;
    let dead = dead_letters(&site, 1).await;
    assert_eq!(
        (&*dead[0].stage, &*dead[0].code),
        ("map", "negative_quantity")
    );
    assert_eq!(
        dead[0].topic.as_deref(),
        Some(&*format!("{}-segment", site.ns))
    );
    eventually(LIMIT, || async {
        let ignored = process.metric("nearshore_records_total", "outcome=\"ignored\"");
        match ignored.await {
            1.0 => Ok(()),
            other => Err(format!("{other} ignored")),
        }
    })
    .await;

    rows_that_are_gone_are_sold_out(&site, product(3, 0)).await;

    // Ours is read besides: a tombstone erases, and the user's later events are the user's again.
    site.output(&["forget", "u-1"]).await;
    window_is(&site, "u-1", &[]).await;
}

/// A deleted row and its tombstone are one removal.
async fn rows_that_are_gone_are_sold_out(site: &Site, sold_out: Outgoing) {
    let key = json!({"id": sku_id(1)}).to_string();
    let deleted = json!({"op": "d", "before": {"id": sku_id(1)}, "after": null});
    site.send(vec![
        foreign(site, "products", Some(&key), Some(&deleted)),
        foreign(site, "products", Some(&key), None),
        sold_out,
    ])
    .await;
    let skus = [sku_id(1), sku_id(3), sku_id(5)];
    eventually(LIMIT, || async {
        let out = site.store.sold_out(&skus).await.expect("Redis answers");
        if out == [true, true, false] {
            Ok(())
        } else {
            Err(format!("{out:?}"))
        }
    })
    .await;
}

/// Loops, allocates or answers without end, recurses, or fails, as a record says; else makes an event for each SKU.
const POISON: &str = r#"
def loop: loop;
def deep: 1 + deep;
def double: [., .] | tojson | double;
.value
| if .bad == "loop" then loop
  elif .bad == "memory" then [range(1e12)]
  elif .bad == "deep" then deep
  elif .bad == "million" then range(1000000) | {key: "u", value: {}}
  elif .bad == "double" then double
  elif .bad == "error" then error("no use")
  elif .bad == "shape" then {type: "view"}
  else .skus[] as $sku | {key: .who, value: {type: "purchase", sku: $sku}} end
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_record_costs_a_program_only_itself() {
    let section = "[[inputs]]\nread_as = \"events\"\nprogram = \"orders.jq\"\n";
    let site = site_with(&[("orders", section)]).await;
    site.write("orders.jq", POISON);
    site.catalogue().await;
    let process = Process::ready(&site, "all").await;
    let order = |who: &str, nth: usize| {
        let value = json!({"who": who, "skus": [sku_id(nth), sku_id(nth + 2)]});
        foreign(&site, "orders", None, Some(&value))
    };
    let bad = [
        "loop", "memory", "deep", "million", "double", "error", "shape",
    ];
    let mut records = vec![order("a", 0)];
    for (nth, bad) in bad.iter().enumerate() {
        records.push(foreign(
            &site,
            "orders",
            None,
            Some(&json!({"bad": bad, "who": "m", "skus": [sku_id(nth)]})),
        ));
        records.push(order("b", nth));
    }
    records.push(order("c", 4));
    site.send(records).await;
    let of_b: Vec<String> = (0..bad.len())
        .flat_map(|nth| [sku_id(nth), sku_id(nth + 2)])
        .collect();
    let of_b: Vec<&str> = of_b.iter().map(String::as_str).collect();
    window_is(&site, "b", &of_b).await;
    window_is(&site, "a", &[&sku_id(0), &sku_id(2)]).await;
    window_is(&site, "c", &[&sku_id(4), &sku_id(6)]).await;
    let mut dead = dead_letters(&site, bad.len()).await;
    dead.sort_by_key(|dead| dead.offset);
    for (dead, bad) in dead.iter().zip(bad) {
        assert_eq!(
            (&*dead.stage, &*dead.code),
            ("map", "program_failed"),
            "{bad}: {}",
            dead.message
        );
    }
    let says = |nth: usize, what: &str| {
        assert!(
            dead[nth].message.contains(what),
            "{}: {}",
            bad[nth],
            dead[nth].message
        );
    };
    says(0, "did not end");
    says(2, "its process ended");
    says(3, "more than 1000 records");
    says(5, "no use");
    says(6, "key and value");
    assert!(
        process.log().lines().all(|line| !line.contains("panicked")),
        "{}",
        process.log()
    );
    a_replay_runs_the_mended_program(&site, bad.len()).await;
}

/// Mended, the program is run by the replay, and its records go to our topic.
async fn a_replay_runs_the_mended_program(site: &Site, bad: usize) {
    let before = site.count(&format!("{}-orders", site.ns)).await;
    site.write(
        "orders.jq",
        ".value | .skus[] as $sku | {key: .who, value: {type: \"view\", sku: $sku}}",
    );
    let replayed = site
        .output(&["dlq", "replay", "--stage", "map", "--json"])
        .await;
    let replayed: Value = serde_json::from_str(&replayed).expect("JSON");
    assert_eq!(replayed["sent"], bad, "{replayed}");
    let of_m: Vec<String> = (0..bad).map(sku_id).collect();
    let of_m: Vec<&str> = of_m.iter().map(String::as_str).collect();
    eventually(LIMIT, || async {
        let mut found = window(site, "m").await;
        found.sort();
        if found == of_m {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
    let after = site.count(&format!("{}-orders", site.ns)).await;
    assert_eq!(
        before, after,
        "a replay writes nothing into the shop's topic"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn map_and_check_show_what_samples_become_and_refuse_what_does_not_compile() {
    let recipe = include_str!("../../config/recipes/ga4.toml");
    let site = site_with(&[("ga4", recipe)]).await;
    site.write("ga4.jsonl", include_str!("../../config/recipes/ga4.jsonl"));
    let config = site.config();
    site.edit(&[(
        "read_as = \"events\"",
        "read_as = \"events\"\nsamples = \"ga4.jsonl\"",
    )]);
    let shown = site.output(&["map"]).await;
    assert!(shown.contains("-> {\"key\":\"u-1\""), "{shown}");
    assert!(
        shown.contains("refused: unmapped: the mapping makes no record of it: no key"),
        "{shown}"
    );
    let json = site.output(&["map", "--json"]).await;
    for line in json.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["right"], true, "{line}");
    }
    let checked = site.cli(&["check", "--offline"]).await;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        checked.status.success() && text.contains("6 samples become what they should"),
        "{text}"
    );

    site.edit(&[("view_item = \"view\"", "view_item = \"click\"")]);
    let wrong = site.cli(&["map"]).await;
    assert_eq!(
        wrong.status.code(),
        Some(1),
        "a sample becomes something else"
    );
    let checked = site.cli(&["check", "--offline"]).await;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(
        !checked.status.success() && text.contains("sample 1: it became"),
        "{text}"
    );

    site.write("nearshore.toml", &config);
    site.append("[[inputs]]\ntopic = \"x\"\nread_as = \"events\"\nprogram = \"x.jq\"\n");
    for (program, what) in [
        (
            ".value | {key: now, value: .}",
            "line 1, column 16: there is no filter \"now\"",
        ),
        ("env | .", "there is no filter \"env\""),
        ("[.value | input]", "there is no filter \"input\""),
        ("$ENV", "there is no variable \"$ENV\""),
        (".value |\n {key: ", "line 2"),
        ("halt", "there is no filter \"halt\""),
        ("debug", "there is no filter \"debug\""),
    ] {
        site.write("x.jq", program);
        let refused = site.cli(&["map", "--topic", "x"]).await;
        assert_eq!(refused.status.code(), Some(2), "{program}");
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            text.contains(what) && text.contains("inputs[1].program"),
            "{program}: {text}"
        );
    }
}
