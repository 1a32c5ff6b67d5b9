//! Promise: with frozen counts a list is a function of the log: two backfills over the same bytes end in the same
//! lists, whatever the workers, their batches and their deaths; with a table of scores and with real weights.

use std::collections::BTreeMap;
use std::time::Duration;

use nearshore_core::list::document::Document;
use nearshore_core::ports::store::Users;
use nearshore_core::queue::replay::Moment;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use serde_json::json;

use crate::harness::{eventually, fresh};
use crate::process::{LIMIT, PRODUCTS, Process, Site, WEIGHTS_LIMIT, now};

const DAY: i64 = 86_400_000;

/// What a reader may depend on: names with scores and SKUs, their time and segment; by user.
type Lists = BTreeMap<String, serde_json::Value>;

fn user(nth: usize) -> String {
    format!("u{nth:03}")
}

/// How large a run is, and how long its lists may take.
struct Size {
    users: usize,
    events: usize,
    /// Workers that are killed.
    kills: usize,
    /// Least number of different names on all lists.
    names: usize,
    limit: Duration,
}

/// A site whose template shows how long ago products were bought, and whose lists leave out what was bought within a
/// week: both depend on the time of a list.
async fn site() -> Site {
    let site = Site::open(&[("user_events", 3, &[]), ("regen_backfill", 2, &[])]).await;
    let frozen = Moment(Timestamp(now().0 - 20 * DAY));
    site.edit(&[
        ("basket.j2", "days.j2"),
        // A killed worker keeps its partitions for so long.
        ("session_timeout = \"6s\"", "session_timeout = \"3s\""),
    ]);
    site.append(&format!(
        "[demand]\nevery = \"1s\"\nas_of = \"{frozen}\"\n[needs]\nnot_again_within = {{ DAIRY = \"7days\" }}\n"
    ));
    site.write(
        "days.j2",
        "What will they buy next?\n{% for line in events %}{{ line.name }} {{ line.days_ago }} days ago, \
         {% endfor %}\n---assistant---\nThey will next buy:",
    );
    site.catalogue().await;
    site
}

/// Sends purchases of forty days, half of them after the time at which counts are frozen.
async fn forty_days(site: &Site, (users, events): (usize, usize)) {
    let start = now().0 - 40 * DAY;
    let records = (0..events).map(|nth| {
        let buyer = (nth * 7919) % users;
        let mut record = site.bought(&user(buyer), nth * 13 + buyer);
        record.time = Some(Timestamp(start + nth as i64 * (39 * DAY / events as i64)));
        record
    });
    site.send(records.collect()).await;
}

async fn fill(site: &Site, ns: &str) {
    site.output(&["backfill", "--namespace", ns, "--from", "earliest"])
        .await;
}

/// Waits for a list by the model of every user.
async fn lists(site: &Site, ns: &str, size: &Size) -> Lists {
    eventually(size.limit, || read(site, ns, size.users)).await
}

/// Every user's list by the model without its id; `Err` names a user without one.
async fn read(site: &Site, ns: &str, users: usize) -> Result<Lists, String> {
    let ids: Vec<UserId> = (0..users).map(|nth| UserId(user(nth).into())).collect();
    let peeks = site.store.peek(ns, &ids).await;
    let mut lists = Lists::new();
    for (user, peek) in ids.iter().zip(peeks.map_err(|error| error.to_string())?) {
        let stored = peek.list.ok_or(format!("{user} has no list"))?;
        let list = Document::parse(&stored.doc).map_err(|error| error.to_string())?;
        if !list.source.is_exposure() {
            return Err(format!("{user} has a fallback"));
        }
        let audit = stored.audit.read().expect("an audit");
        let mut doc: serde_json::Value = serde_json::from_str(&stored.doc).expect("JSON");
        doc.as_object_mut().expect("an object").remove("list_id");
        let more = json!({"prompt": audit.prompt, "demand": audit.demand, "rules": audit.rules, "names": audit.names});
        lists.insert(user.to_string(), json!([doc, more]));
    }
    Ok(lists)
}

/// Two backfills whose lists are made in different batches, those of the second by workers that are killed.
async fn twice(site: Site, size: Size) {
    let users = size.users;
    forty_days(&site, (users, size.events)).await;
    let (whole, broken) = (fresh("whole"), fresh("broken"));
    // The worker runs during the fold: no list may be made from half-folded counts.
    let worker = Process::with(&site, "generate", &[("NEARSHORE__LANES__BATCH_MAX", "1")]).await;
    fill(&site, &whole).await;
    let first = lists(&site, &whole, &size).await;
    drop(worker);
    fill(&site, &broken).await;
    for _ in 0..size.kills {
        let mut worker = Process::ready(&site, "generate").await;
        eventually(size.limit, || async {
            let made = worker.metric("nearshore_lists_published_total", "lane=\"backfill\"");
            // The worker before may have made all of them.
            if made.await > 0.0 || read(&site, &broken, users).await.is_ok() {
                return Ok(());
            }
            Err("no list yet".into())
        })
        .await;
        worker.kill();
    }
    let worker = Process::ready(&site, "generate").await;
    let second = lists(&site, &broken, &size).await;
    assert_eq!(first.len(), users);
    for (user, list) in &first {
        assert_eq!(Some(list), second.get(user), "{user}");
    }
    // Lists that are requested once more, at a later time, are the same.
    site.output(&["refresh", "--all", "--namespace", &whole])
        .await;
    eventually(size.limit, || async {
        let ids = [UserId(user(0).into())];
        let peek = site.store.peek(&whole, &ids).await.expect("Redis answers");
        let claim = peek[0].list.as_ref().map_or(0, |list| list.claim);
        (claim > 1).then_some(()).ok_or(format!("claim {claim}"))
    })
    .await;
    let again = lists(&site, &whole, &size).await;
    assert_eq!(again, first);
    drop(worker);
    let names: std::collections::BTreeSet<&str> = first
        .values()
        .flat_map(|list| list[0]["names"].as_array().expect("names"))
        .filter_map(|name| name.as_str())
        .collect();
    assert!(
        (size.names..=PRODUCTS.len()).contains(&names.len()),
        "{names:?}"
    );
}

#[tokio::test]
async fn frozen_counts_give_equal_lists_with_a_table() {
    let size = Size {
        users: 30,
        events: 1_000,
        kills: 3,
        names: 6,
        limit: LIMIT,
    };
    twice(site().await, size).await;
}

#[tokio::test]
async fn frozen_counts_give_equal_lists_with_real_weights() {
    // Few: a slow core takes minutes for a batch.
    let size = Size {
        users: 4,
        events: 80,
        kills: 1,
        names: 3,
        limit: WEIGHTS_LIMIT,
    };
    let site = site().await;
    site.use_weights();
    twice(site, size).await;
}
