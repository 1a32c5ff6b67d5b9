//! Promise: another policy of choosing SKUs is judged by the lists that were published and what users bought afterwards,
//! as the topics have both; Redis has nothing of what only this needs.

use std::collections::BTreeMap;

use nearshore_core::list::document::{Stage, Update};
use nearshore_core::ports::log::Outgoing;
use nearshore_core::user::record::Timestamp;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, now, record};

const USERS: usize = 150;
const DAY: i64 = 86_400_000;

/// A record so many days ago.
fn days_ago(days: i64, record: Outgoing) -> Outgoing {
    Outgoing {
        time: Some(Timestamp(now().0 - days * DAY)),
        ..record
    }
}

/// The model's list of each user, once all have one in Redis and on recall-updates: user to the first SKU.
async fn lists(site: &Site, users: &[String]) -> BTreeMap<String, String> {
    eventually(LIMIT, || async {
        for user in users {
            let list = site.peek(user).await.list;
            let list = list.filter(|list| list.stage == Stage::Model);
            let list = list.ok_or_else(|| format!("no list of the model for {user}"))?;
            let audit = list.audit.read().expect("Redis keeps the audit");
            let told = audit.names.iter().any(|name| name.candidates.is_some());
            assert!(!told && audit.selection.is_none(), "Redis has candidates");
        }
        let mut first = BTreeMap::new();
        for update in site.read(&site.topics.recall_updates).await {
            let update =
                Update::parse(&update.value.expect("nobody is erased")).expect("an update");
            // A fallback places nothing by chance: it has no candidates.
            if !update.doc.source.is_exposure() {
                continue;
            }
            let told = update
                .audit
                .names
                .iter()
                .all(|name| name.candidates.is_some());
            assert!(
                told && update.audit.selection.is_some(),
                "{:?}",
                update.audit
            );
            if update.doc.source.stage() == Stage::Model {
                let user = update.doc.user.clone().expect("a user's list");
                first.insert(user, update.doc.pus[0].skus[0].clone());
            }
        }
        match first.len() == users.len() {
            true => Ok(first),
            false => Err(format!("{} updates with a list of the model", first.len())),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_judged_by_the_lists_that_were_published() {
    let site = Site::open(&[]).await;
    site.append("[audit]\ncandidates = 1.0\n");
    site.catalogue().await;
    let mut process = Process::ready(&site, "all").await;
    let users: Vec<String> = (0..USERS).map(|nth| format!("user-{nth:03}")).collect();
    let all = users.iter().enumerate();
    let bought = all.map(|(nth, user)| days_ago(4, site.bought(user, nth)));
    site.send(bought.collect()).await;
    let first = lists(&site, &users).await;
    process.terminate().await;
    let buys = |(user, sku): (&String, &String)| {
        let value = json!({"type": "purchase", "sku": sku});
        days_ago(3, record(&site.topics.user_events, user, &value))
    };
    site.send(first.iter().map(buys).collect()).await;
    site.send(vec![site.bought("another", 1)]).await;

    let evaluate = [
        "evaluate",
        "--off-policy",
        "--window",
        "2days",
        "--explore",
        "0.2",
        "--json",
    ];
    let text = site.output(&evaluate).await;
    let found: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(found["shown_by"], "published", "{text}");
    assert_eq!(
        (&found["users"], &found["rewards"]),
        (&json!(USERS), &json!(USERS))
    );
    assert_eq!(found["target"]["explore"], 0.2);
    let names = found["names"].as_f64().expect("a number");
    assert!(names > 2.0 * USERS as f64, "{text}");
    let value = found["logged"]["mean"].as_f64().expect("a number");
    assert!(
        (value - 1000.0 * USERS as f64 / names).abs() < 1e-6,
        "{text}"
    );
    let lines = site.output(&evaluate[..evaluate.len() - 1]).await;
    assert!(
        lines.contains("every published list counts as shown"),
        "{lines}"
    );

    let refused = site
        .cli(&["evaluate", "--off-policy", "--window", "30days"])
        .await;
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{error}");
    assert!(error.contains("give a --window of at most"), "{error}");
    let half = site
        .cli(&["evaluate", "--off-policy", "--updates", "none.jsonl"])
        .await;
    let error = String::from_utf8_lossy(&half.stderr);
    assert_eq!(half.status.code(), Some(2), "{error}");
    assert!(error.contains("--events is missing"), "{error}");
}
