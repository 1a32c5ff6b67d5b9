//! Promise: of the purchases of users who have a list, it is counted once how many were on it and how many would have
//! been on the fallback; and `nearshore arms` says what each arm's lists earned and whether users fit the shares.

use std::time::Duration;

use nearshore_core::list::document::Stage;
use nearshore_core::list::hits::{Earned, ListKind};
use nearshore_core::ports::store::{Arms, Claim, ClaimOutcome, Publish, Published, Stored, Users};
use nearshore_core::user::event::UserId;
use serde_json::{Value, json};

use crate::harness::{eventually, fresh};
use crate::process::{LIMIT, PRODUCTS, Process, Site, now, record, sku_id};

/// All users are compared, and demand is read once, before there is any: the fallback is in the order of ids.
const SETTINGS: &str = "[metrics]\nhits_sample = 1.0\n[demand]\nevery = \"1h\"\n";

/// Stores a list of the model for a user, as a worker would.
async fn publish(site: &Site, user: &str, arm: &str, names: &[&str]) {
    let user = UserId(user.into());
    let peek = site.store.peek(&site.ns, std::slice::from_ref(&user)).await;
    let claim = Claim {
        user: user.clone(),
        due: now(),
        expected: peek.expect("Redis answers")[0].ver,
    };
    let claimed = site.store.claim(&site.ns, &[claim]).await;
    let claimed = claimed.expect("Redis answers");
    let [ClaimOutcome::Claimed(claimed)] = &claimed[..] else {
        panic!("not claimed: {claimed:?}");
    };
    let skus = names.iter().map(|name| {
        let at = PRODUCTS.iter().position(|(pu, _)| pu == name);
        [sku_id(2 * at.expect("a product of the site"))]
    });
    let doc = json!({
        "schema": 1, "list_id": "l", "user": user.0, "arm": arm, "source": "model", "at": now().0,
        "segment": "default", "names": names, "scores": vec![-1.0; names.len()],
        "skus": skus.collect::<Vec<_>>(),
    });
    let list = Publish {
        list: Stored {
            doc: doc.to_string(),
            claim: claimed.claim,
            stage: Stage::Model,
            seen: claimed.state.fences.clone(),
            epoch: 1,
            at: now(),
            audit: "{}".into(),
        },
        user,
        erased_at: claimed.state.erased_at,
        force: true,
        only_if_absent: false,
    };
    let stored = site.store.publish(&site.ns, &[list]).await;
    assert_eq!(stored.expect("Redis answers"), [Published::Stored]);
    // Records are compared with the time of the store in milliseconds.
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Purchases, hits and hits of the fallback of lists of one kind, by the metrics of a process.
async fn counted(process: &Process, arm: &str, source: &str) -> [f64; 3] {
    let labels = format!("arm=\"{arm}\",source=\"{source}\"");
    let mut found = [0.0; 3];
    for (found, what) in found.iter_mut().zip(["purchases", "hits", "fallback_hits"]) {
        let name = format!("nearshore_list_{what}_total");
        *found = process.metric(&name, &labels).await;
    }
    found
}

async fn becomes(process: &Process, (arm, source): (&str, &str), expected: [f64; 3]) {
    eventually(LIMIT, || async {
        match counted(process, arm, source).await {
            found if found == expected => Ok(()),
            found => Err(format!("{arm} {source}: {found:?}, not {expected:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_purchase_is_compared_once_with_the_list_and_the_fallback() {
    let site = Site::open(&[]).await;
    site.append(SETTINGS);
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    let view = json!({"type": "view", "sku": "sku-00"});
    site.send(vec![record(&site.topics.user_events, "u", &view)])
        .await;
    site.committed().await;
    // BAGELS are on the list, and among the first three by id, which the fallback has; CAT LITTER is on neither.
    publish(&site, "u", "test", &["BAGELS", "YOGURT", "RED WINE"]).await;
    site.send(vec![site.bought("u", 8), site.bought("u", 26)])
        .await;
    becomes(&process, ("test", "model"), [2.0, 1.0, 1.0]).await;

    // Of the fallback count as many products as the list has: BABY DIAPERS and BABY FOOD.
    publish(&site, "u", "test", &["FLUID MILK", "CAT FOOD"]).await;
    let bought = [0, 0, 28, 18, 8].map(|sku| site.bought("u", sku));
    site.send(bought.to_vec()).await;
    // A user without a list before.
    site.send(vec![site.bought("new", 0)]).await;
    becomes(&process, ("test", "model"), [7.0, 4.0, 2.0]).await;
    site.committed().await;
    let kind = ListKind {
        arm: "test".into(),
        epoch: 1,
        source: nearshore_core::list::document::Source::Model,
    };
    let earned = Earned {
        lists: 0,
        purchases: 7,
        hits: 4,
        fallback_hits: 2,
    };
    let stored = site.store.earned(&site.ns).await.expect("Redis answers");
    assert_eq!((stored.get(&kind), stored.len()), (Some(&earned), 1));
    drop(process);

    // A group that begins anew gets all records again: they are folded, so none counts.
    let group = |prefix: &str| format!("group_prefix = \"{prefix}\"");
    let before = group(&site.settings.group_prefix);
    site.edit(&[(&before, &group(&fresh("again")))]);
    let process = Process::ready(&site, "ingest").await;
    eventually(LIMIT, || async {
        let labels = "outcome=\"duplicate\"";
        match process.metric("nearshore_events_total", labels).await {
            9.0 => Ok(()),
            other => Err(format!("{other} of 9")),
        }
    })
    .await;
    assert_eq!(counted(&process, "test", "model").await, [0.0; 3]);
    let again = site.store.earned(&site.ns).await.expect("Redis answers");
    assert_eq!(again, stored);
    // This process has read the demand: what was bought twice leads the fallback, too.
    site.send(vec![site.bought("u", 1)]).await;
    becomes(&process, ("test", "model"), [1.0, 1.0, 1.0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arms_says_what_lists_earned_and_that_users_do_not_fit_the_shares() {
    let site = Site::open(&[]).await;
    let other = "[[arms]]\nid = \"other\"\nepoch = 2\ntemplate = \"basket.j2\"\nmodel = \"table:1ms\"\n[topics]\n";
    site.edit(&[("[topics]\n", other)]);
    site.append(SETTINGS);
    site.catalogue().await;
    let users: Vec<String> = (0..40).map(|nth| format!("u{nth}")).collect();
    let arms = async || -> Value {
        let text = site.output(&["arms", "--json"]).await;
        serde_json::from_str(text.trim()).expect("JSON")
    };
    let process = Process::ready(&site, "all").await;
    let bought = users.iter().map(|user| site.bought(user, 0));
    site.send(bought.collect()).await;
    let report = eventually(LIMIT, || async {
        let report = arms().await;
        let of_model = |nth: usize| report["arms"][nth]["exposures"].as_u64().unwrap_or(0);
        match of_model(0) + of_model(1) >= 40 {
            true => Ok(report),
            false => Err(report.to_string()),
        }
    })
    .await;
    let users_of = |report: &Value, nth: usize| report["arms"][nth]["users"].as_u64().unwrap_or(0);
    assert_eq!(users_of(&report, 0) + users_of(&report, 1), 40, "{report}");
    let row = &report["arms"][1];
    assert_eq!(
        (&row["arm"], &row["epoch"], &row["share"]),
        (&json!("other"), &json!(2), &json!(0.5))
    );
    assert_eq!(
        (&report["mismatch"], &report["moved"]),
        (&json!(false), &json!(0)),
        "{report}"
    );
    drop(process);

    for user in &users {
        publish(&site, user, "test", &["FLUID MILK"]).await;
    }
    let report = arms().await;
    assert_eq!(users_of(&report, 0), 40, "{report}");
    assert_eq!(report["test"]["chi_square"], 40.0, "{report}");
    assert_eq!(report["mismatch"], true, "{report}");
    let text = site.output(&["arms"]).await;
    assert!(text.contains("sample ratio mismatch"), "{text}");
    assert!(
        text.contains("lists are of another arm than the user's is now"),
        "{text}"
    );
}
