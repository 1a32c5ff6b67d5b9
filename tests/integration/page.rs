//! Promise: one can see how a list came about, in a browser without JavaScript, from event to SKU; and
//! health, readiness and metrics answer beside it.

use std::path::Path;

use nearshore_core::list::document::{Document, Source};
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use serde_json::{Value, json};

use crate::harness::{eventually, variable};
use crate::process::{LIMIT, Process, Site, sku_id};

/// The page as a browser without a window understands it.
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
    let output = tokio::time::timeout(LIMIT, run).await.expect("ends");
    let output = output.expect("Chromium starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_in_a_browser_how_a_list_came_about() {
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
        let document = Document::parse(&list.ok_or("none covers all")?.doc);
        let document = document.map_err(|error| error.to_string())?;
        match document.source {
            Source::Model => Ok(document),
            Source::Fallback => Err("a fallback".to_owned()),
        }
    })
    .await;

    let page = dom(site.folder(), &process.url("/inspect?user=ann")).await;
    for shown in &list.pus {
        assert!(page.contains(&shown.name), "{} in {page}", shown.name);
        for sku in &shown.skus {
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

    let nobody = dom(site.folder(), &process.url("/inspect?user=nobody")).await;
    assert!(nobody.contains("nobody") && !nobody.contains(&list.list_id));
    the_other_pages_answer(&process).await;
    what_happened_is_counted(&process).await;
    the_command_tells_the_same(&site, &list).await;
}

async fn the_other_pages_answer(process: &Process) {
    for (path, part) in [
        ("/metrics", "nearshore_lists_published_total{"),
        ("/healthz", "\"healthy\":true"),
        ("/readyz", "\"ready\":true}"),
        ("/", "/inspect"),
    ] {
        let (status, body) = process.get(path).await.expect("answers");
        assert!(
            status == 200 && body.contains(part),
            "{path}: {status} {body}"
        );
    }
    let (status, _) = process.get("/inspect?user=nobody").await.expect("answers");
    assert_eq!(status, 404);
}

/// What happened in this test is counted: each of these has moved.
async fn what_happened_is_counted(process: &Process) {
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

async fn the_command_tells_the_same(site: &Site, list: &Document) {
    let text = site.said(&["inspect", "ann", "--json"]).await;
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert!(told.to_string().contains(&list.list_id), "{text}");
    let user = [UserId("ann".into())];
    let held = site.store.load(&site.ns, &user).await.expect("answered");
    assert_eq!(told["state"]["ver"], json!(held[0].ver), "{text}");
}
