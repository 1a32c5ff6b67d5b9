//! Promise: two installations (each with its own Redis) may share one Kafka and its topics. With a group prefix each,
//! both get every stock record and every list; without, both say that they take records from each other.

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, sku_id};

/// Waits until this installation has a list of the model for a user, and half of the catalogue as sold out.
async fn has_everything(site: &Site, user: &str) {
    site.committed().await;
    eventually(LIMIT, || async {
        // It fails until there is a list.
        let got = site.cli(&["get", user, "--json"]).await;
        let text = String::from_utf8_lossy(&got.stdout).into_owned();
        let shown = |nth: &usize| text.contains(&format!("\"{}\"", sku_id(*nth)));
        if !text.contains("\"source\":\"model\"") {
            return Err(format!("no list of the model: {text}"));
        }
        let sold_out: Vec<usize> = (0..30).step_by(2).filter(shown).collect();
        match sold_out.is_empty() {
            true => Ok(()),
            false => Err(format!("{sold_out:?} are sold out and shown")),
        }
    })
    .await;
}

async fn says(process: &Process, wanted: bool) -> Result<(), String> {
    let members = process.metric("nearshore_foreign_members", "").await;
    let (status, body) = process.get("/readyz").await.expect("it answers");
    let told = body.contains("kafka.group_prefix");
    if (members > 0.0, told, status == 503) == (wanted, wanted, wanted) {
        Ok(())
    } else {
        Err(format!("{members} foreign members, {status}: {body}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installations_with_a_prefix_each_get_all_stock_records_and_all_lists() {
    let one = Site::open(&[]).await;
    let two = one.another(&format!("{}-two", one.ns)).await;
    let mut processes = [
        Process::ready(&one, "all").await,
        Process::ready(&two, "all").await,
    ];
    one.catalogue().await;
    one.send((0..30).step_by(2).map(|nth| one.sku(nth, 0)).collect())
        .await;
    one.send((0..6).map(|nth| one.bought("ann", nth)).collect())
        .await;
    for (site, process) in [&one, &two].into_iter().zip(&mut processes) {
        has_everything(site, "ann").await;
        process.becomes_ready().await;
        eventually(LIMIT, || says(process, false)).await;
        let report = site.output(&["check"]).await;
        assert!(
            report.contains("no other one is in the consumer groups"),
            "{report}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installations_in_the_same_groups_both_say_so_until_one_of_them_leaves() {
    let one = Site::open(&[]).await;
    let two = one.another(&one.settings.group_prefix).await;
    let mut first = Process::ready(&one, "all").await;
    let second = Process::start(&two, "all");
    for process in [&first, &second] {
        eventually(LIMIT, || says(process, true)).await;
    }
    assert!(
        first.log().contains("kafka.group_prefix"),
        "{}",
        first.log()
    );
    check_fails(&one).await;
    drop(second);
    eventually(LIMIT, || says(&first, false)).await;
    first.becomes_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installations_in_the_same_groups_of_kip_848_are_seen_by_check() {
    let one = Site::open(&[]).await;
    let two = one.another(&one.settings.group_prefix).await;
    for site in [&one, &two] {
        site.append("[kafka.consumer]\n\"group.protocol\" = \"consumer\"\n");
    }
    let _first = Process::ready(&one, "all").await;
    let _second = Process::ready(&two, "all").await;
    for site in [&one, &two] {
        check_fails(site).await;
    }
}

async fn check_fails(site: &Site) {
    let report = site.cli(&["check"]).await;
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(report.contains("[fail] installation"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_a_namespace_that_this_redis_does_not_have_is_counted_and_deletes_nothing() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let process = Process::ready(&site, "all").await;
    let now = crate::process::now();
    let value = serde_json::json!({
        "v": 1, "ns": "elsewhere", "user": "ann", "reason": "activity", "time": now, "due": now, "lane": "live",
    });
    site.send(vec![crate::process::record(
        &site.topics.regen_live,
        "ann",
        &value,
    )])
    .await;
    let metric = "nearshore_requests_unknown_namespace_total";
    eventually(LIMIT, || async {
        match process.metric(metric, "").await {
            1.0 => Ok(()),
            counted => Err(format!("{counted}; {}", process.log())),
        }
    })
    .await;
    assert_eq!(site.count(&site.topics.recall_updates).await, 0);
    assert_eq!(site.count(&site.topics.dlq).await, 0);
}
