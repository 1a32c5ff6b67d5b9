//! Promise: `/inspect` shows in a browser without JavaScript how a list came about, from event to SKU; health,
//! readiness and metrics are served beside it.

use std::path::Path;

use nearshore_core::list::document::{Document, Source, StoredAudit, Update};
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use serde_json::{Value, json};

use crate::harness::{eventually, variable};
use crate::process::{LIMIT, Process, Site, sku_id};

/// The DOM of a page, read by a headless Chromium.
async fn dom(folder: &Path, url: &str) -> String {
    let run = tokio::process::Command::new(variable("NEARSHORE_TEST_CHROMIUM"))
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args(["--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--dump-dom"])
        .arg(format!(
            "--user-data-dir={}",
            folder.join("chromium").display()
        ))
        .arg(url)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, run)
        .await
        .expect("Chromium ends");
    let output = output.expect("Chromium starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("the output is text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inspect_page_shows_in_a_browser_how_a_list_came_about() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let script = "<script>document.title = 'taken over'</script>";
    let profile = json!({"household": script, "avoids": ["WINE"]});
    site.send(vec![site.profile("ann", &profile)]).await;
    site.send(vec![site.bought("ann", 0), site.bought("ann", 20)])
        .await;
    let process = Process::ready(&site, "all").await;
    let list = eventually(LIMIT, || async {
        let peek = site.peek("ann").await;
        let list = peek
            .list
            .filter(|list| list.seen.contains_all(&peek.fences));
        let document = Document::parse(&list.ok_or("no list has seen all records")?.doc);
        let document = document.map_err(|error| error.to_string())?;
        match document.source {
            Source::Model | Source::Mixture => Ok(document),
            Source::Fallback => Err("the list is a fallback".to_owned()),
        }
    })
    .await;

    let page = dom(site.folder(), &process.url("/inspect?user=ann")).await;
    for pu in &list.pus {
        assert!(page.contains(&pu.name), "{} in {page}", pu.name);
        for sku in &pu.skus {
            assert!(page.contains(sku.as_str()), "{sku} in {page}");
        }
    }
    for part in [
        "You know how households shop",
        "no-wine",
        &sku_id(20),
        &list.list_id,
        "&lt;script&gt;document.title = 'taken over'&lt;/script&gt;",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(!page.contains("<script"), "{page}");
    assert!(!page.contains("<title>taken over"), "{page}");
    assert!(page.contains("<title>ann"), "{page}");

    let unknown = dom(site.folder(), &process.url("/inspect?user=unknown")).await;
    assert!(unknown.contains("unknown") && !unknown.contains(&list.list_id));
    the_other_pages_answer(&process).await;
    every_metric_of_the_way_has_counted(&process).await;
    nearshore_inspect_prints_the_same(&site, &list).await;
    inspect_says_why_a_product_is_not_on_the_list(&site, &list).await;
    the_page_says_why_a_product_is_not_on_the_list(&process).await;
    inspect_says_what_a_purchase_would_change_and_stores_nothing(&site, &list).await;
    top_shows_this_process_and_one_that_is_not_there(&process).await;
}

async fn the_page_says_why_a_product_is_not_on_the_list(process: &Process) {
    for (product, part) in [
        ("RED%20WINE", "no: forbidden by no-wine"),
        ("RED%20WINES", "did you mean RED WINE?"),
    ] {
        let path = format!("/inspect?user=ann&why_not={product}");
        let (status, body) = process.get(&path).await.expect("it answers");
        assert!(status == 200 && body.contains(part), "{path}: {body}");
    }
}

/// The events are in the list that is printed, and in no state and no stored list.
async fn inspect_says_what_a_purchase_would_change_and_stores_nothing(
    site: &Site,
    list: &Document,
) {
    let before = site.peek("ann").await;
    let sku = &list.pus[0].skus[0];
    let events = format!(
        "{{\"type\":\"cart\",\"sku\":\"{sku}\"}}\n{{\"type\":\"view\",\"sku\":\"nobody-sells-it\"}}\n"
    );
    let file = site.write("what-if.jsonl", &events);
    let file = file.to_str().expect("a path that is text");
    let text = site
        .output(&["inspect", "ann", "--what-if", file, "--json"])
        .await;
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found["events"], json!(2), "{text}");
    assert_eq!(found["list_id"], json!(list.list_id), "{text}");
    let names = found["list"]["names"].as_array().expect("names");
    assert!(!names.is_empty(), "{text}");
    // Both lists without the model have as many names, and the stored list's places are those of the document.
    for name in names {
        let stored = list.pus.iter().position(|pu| name["pu"] == json!(pu.pu));
        assert_eq!(name["stored"], json!(stored.map(|nth| nth + 1)), "{name}");
    }
    let after = site.peek("ann").await;
    assert_eq!((after.fences, after.list), (before.fences, before.list));
    let bad = site.write("bad.jsonl", "{\"type\":\"buy\",\"sku\":\"a\"}\n");
    let bad = bad.to_str().expect("a path that is text");
    let output = site.cli(&["inspect", "ann", "--what-if", bad]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && error.contains("line 1: type \"buy\"")
            && error.contains("unknown_type"),
        "{error}"
    );
}

async fn top_shows_this_process_and_one_that_is_not_there(process: &Process) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let gone = listener.local_addr().expect("an address").to_string();
    drop(listener);
    let url = process.url("/metrics");
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
        .args(["top", &url, &gone, "--once", "--json", "--every", "500ms"])
        .output();
    let output = output.await.expect("the binary starts");
    let reading: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(reading["answered"], json!(1), "{reading}");
    assert_eq!(reading["replicas"][0]["error"], Value::Null, "{reading}");
    assert!(reading["replicas"][1]["error"].is_string(), "{reading}");
    for lane in ["urgent", "live", "backfill"] {
        assert!(
            reading["total"]["lanes"][lane]["waiting"].is_number(),
            "{reading}"
        );
    }
    assert!(
        reading["total"]["records_per_second"].is_number(),
        "{reading}"
    );
}

async fn the_other_pages_answer(process: &Process) {
    for (path, part) in [
        ("/metrics", "nearshore_lists_published_total{"),
        ("/healthz", "\"healthy\":true"),
        ("/readyz", "\"ready\":true}"),
        ("/", "/inspect"),
    ] {
        let (status, body) = process.get(path).await.expect("it answers");
        assert!(
            status == 200 && body.contains(part),
            "{path}: {status} {body}"
        );
    }
    let (status, _) = process
        .get("/inspect?user=unknown")
        .await
        .expect("it answers");
    assert_eq!(status, 404);
}

/// Each metric of what this test did is above zero.
async fn every_metric_of_the_way_has_counted(process: &Process) {
    for name in [
        "nearshore_records_total",
        "nearshore_lists_published_total",
        "nearshore_prompt_tokens_total",
        "nearshore_stock_ops_total",
        "nearshore_stock_to_filter_seconds_count",
        "nearshore_event_to_list_seconds_count",
        "nearshore_rebalanced_partitions_total",
        "nearshore_redis_round_trips_total",
        "nearshore_engine_busy_seconds_sum",
    ] {
        assert!(process.metric(name, "").await > 0.0, "{name}");
    }
    assert_eq!(process.metric("nearshore_catalogue_skus", "").await, 30.0);
}

async fn nearshore_inspect_prints_the_same(site: &Site, list: &Document) {
    let text = site.output(&["inspect", "ann", "--json"]).await;
    let inspected: Value = serde_json::from_str(&text).expect("JSON");
    assert!(inspected.to_string().contains(&list.list_id), "{text}");
    let user = [UserId("ann".into())];
    let loaded = site.store.load(&site.ns, &user).await;
    let loaded = loaded.expect("Redis answers");
    assert_eq!(inspected["state"]["ver"], json!(loaded[0].ver), "{text}");
}

/// The rule keeps WINE from ann; a product of the list is at its place; of another one the rank is told.
async fn inspect_says_why_a_product_is_not_on_the_list(site: &Site, list: &Document) {
    let why_not = |product: String| async move {
        let words = ["inspect", "ann", "--why-not", &product, "--json"];
        let text = site.output(&words).await;
        serde_json::from_str::<Value>(&text).expect("JSON")
    };
    let wine = why_not("red wine".into()).await;
    assert_eq!(wine["now"]["forbidden_by"], json!(["no-wine"]), "{wine}");
    assert_eq!(
        (&wine["now"]["permitted"], &wine["place"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(wine["list_id"], json!(list.list_id));
    let second = why_not(list.pus[1].pu.clone()).await;
    assert_eq!(
        (&second["place"], &second["now"]["permitted"]),
        (&json!(2), &json!(true))
    );
    // By a SKU of it, the same; but for its rank, for all products are equal here, and each process numbers them as it
    // reads them.
    let by_sku = why_not(list.pus[1].skus[0].clone()).await;
    for field in [
        "pu",
        "name",
        "permitted",
        "skus",
        "available",
        "of",
        "names",
    ] {
        assert_eq!(by_sku["now"][field], second["now"][field], "{field}");
    }
    let text = site
        .output(&["inspect", "ann", "--why-not", "RED WINE"])
        .await;
    assert!(text.contains("no: forbidden by no-wine"), "{text}");
    let unknown = site
        .cli(&["inspect", "ann", "--why-not", "RED WINES"])
        .await;
    let error = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        !unknown.status.success() && error.contains("did you mean RED WINE?"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_that_redis_does_not_keep_is_on_recall_updates() {
    let site = Site::open(&[]).await;
    site.append("[audit]\nkeep = 0.0\ncandidates = 0.0\n");
    site.catalogue().await;
    let _process = Process::ready(&site, "all").await;
    site.send(vec![site.bought("ann", 0)]).await;
    let list = eventually(LIMIT, || async {
        site.peek("ann")
            .await
            .list
            .ok_or_else(|| "no list of ann".to_owned())
    })
    .await;
    assert_eq!(list.audit, StoredAudit::default());
    let text = site.output(&["inspect", "ann"]).await;
    assert!(text.contains("audit.keep"), "{text}");
    let update = eventually(LIMIT, || async {
        let updates = site.read(&site.topics.recall_updates).await;
        updates
            .into_iter()
            .next()
            .ok_or_else(|| "no update".to_owned())
    })
    .await;
    let update = Update::parse(&update.value.expect("a list")).expect("an update");
    assert_eq!(update.audit.list_id, update.doc.list_id);
    assert!(!update.audit.names.is_empty() && !update.audit.seen.is_empty());
    let told = update
        .audit
        .names
        .iter()
        .any(|name| name.candidates.is_some());
    assert!(!told && update.audit.selection.is_none());
}
