//! Promise: a text that looks like another one names the same thing, and a rule or a block that names nothing, or a field
//! that no profile has, is said by `check`, by the log and by a metric.

use serde_json::json;

use crate::harness::eventually;
use crate::process::{LIMIT, PRODUCTS, Process, Site, record};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_or_a_block_that_matches_nothing_is_said_by_check_log_and_metric() {
    let site = Site::open(&[]).await;
    site.append(
        "[[rules]]\nid = \"minors\"\nwhen = { field = \"age\", below = 18 }\n\
         forbid = { pus = [\"red wine\", \"WHITE  WINE\\uFEFF\"] }\n",
    );
    site.catalogue().await;
    // The first product again, as the first line of a file is often written, and a key that looks like another.
    let marked =
        json!({"pu": format!("\u{feff}{}", PRODUCTS[0].0), "category": PRODUCTS[0].1, "stock": 3});
    let topic = &site.topics.catalog;
    site.send(vec![
        record(topic, "sku-marked", &marked),
        record(topic, "\u{feff}sku-00", &marked),
    ])
    .await;

    let check = site.cli(&["check"]).await;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    for says in [
        "15 products, 31 SKUs",
        "1 records cannot be used; the first, ",
        "the key has U+FEFF at character 1",
        "no product has the id \"red wine\"; did you mean \"RED WINE\"?",
    ] {
        assert!(check.contains(says), "{says}: {check}");
    }
    assert_eq!(check.matches("no product has").count(), 1, "{check}");

    let process = Process::ready(&site, "ingest").await;
    let rules = process.metric("nearshore_unmatched", "kind=\"rule\"").await;
    assert_eq!(rules, 1.0);
    assert!(
        process.log().contains("rule \"minors\" matches nothing"),
        "{}",
        process.log()
    );
    let blocked = site.cli(&["block", "s999", "--reason", "a test"]).await;
    let said = String::from_utf8_lossy(&blocked.stderr).into_owned();
    assert!(
        blocked.status.success() && said.contains("no SKU has the id \"s999\""),
        "{said}"
    );
    eventually(LIMIT, || async {
        match process
            .metric("nearshore_unmatched", "kind=\"block\"")
            .await
        {
            1.0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_no_profile_has_is_said_by_check_log_and_metric_until_one_has_it() {
    let site = Site::open(&[]).await;
    site.append(
        "[[rules]]\nid = \"minors\"\nwhen = { field = \"agee\", below = 18 }\n\
         forbid = { categories = [\"WINE\"] }\n",
    );
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    let usual = json!({"age": 40, "avoids": "PETS"});
    let profiles = (0..3).map(|nth| site.profile(&format!("user-{nth}"), &usual));
    site.send(profiles.collect()).await;
    let fields = async |wanted: f64| match process
        .metric("nearshore_unmatched", "kind=\"field\"")
        .await
    {
        found if found == wanted => Ok(()),
        found => Err(format!("{found} fields; {}", process.log())),
    };
    eventually(LIMIT, || fields(1.0)).await;
    let says = "rule \"minors\" asks for \"agee\", which no profile has; did you mean \"age\"?";
    assert_eq!(process.log().matches(says).count(), 1, "{}", process.log());
    // A generate member says it at its start.
    let generate = Process::ready(&site, "generate").await;
    eventually(LIMIT, || async {
        let log = generate.log();
        log.contains(says).then_some(()).ok_or(log)
    })
    .await;
    let check = site.cli(&["check"]).await;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let says = "rule \"minors\" asks for agee, which none of 3 stored profiles has";
    assert!(check.contains(says), "{check}");

    site.send(vec![site.profile("user-3", &json!({"agee": 40}))])
        .await;
    eventually(LIMIT, || fields(0.0)).await;
    let says = "a profile has the field now";
    assert!(process.log().contains(says), "{}", process.log());
    drop(generate);
}
