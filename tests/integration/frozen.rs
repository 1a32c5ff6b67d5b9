//! Promise: with frozen counts a list is a function of the log: two backfills over the same bytes end in the same lists, whoever
//! made them, in whatever batches, and however often work was dropped; with a table of scores and with real weights.

use std::collections::BTreeMap;

use nearshore_core::list::document::{Audit, Document, Source};
use nearshore_core::ports::store::Users;
use nearshore_core::queue::replay::Moment;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use serde_json::json;

use crate::harness::{eventually, fresh, variable};
use crate::process::{LIMIT, Process, SHELF, Site, now};

const DAY: i64 = 86_400_000;

/// What a reader sees and may depend on: names with scores and SKUs, as of when, for which segment.
type Lists = BTreeMap<String, serde_json::Value>;

fn user(nth: usize) -> String {
    format!("u{nth:03}")
}

/// A site whose template tells how long ago things were bought, and whose shop does not offer again what was bought
/// within a week: both depend on when a list is made.
async fn site(model: &str) -> Site {
    let site = Site::open(&[("user_events", 3, &[]), ("regen_backfill", 2, &[])]).await;
    let file = site.folder().join("nearshore.toml");
    let text = std::fs::read_to_string(&file).expect("written by the site");
    let frozen = Moment(Timestamp(now().0 - 20 * DAY));
    let text = text
        .replace(&variable("NEARSHORE_TEST_MODEL"), model)
        .replace("basket.j2", "days.j2")
        + &format!(
            "[demand]\nevery = \"1s\"\nas_of = \"{frozen}\"\n[needs]\nnot_again_within = {{ DAIRY = \"7days\" }}\n"
        );
    site.write("nearshore.toml", &text);
    site.write(
        "days.j2",
        "What will they buy next?\n{% for line in events %}{{ line.name }} {{ line.days_ago }} days ago, \
         {% endfor %}\n---assistant---\nThey will next buy:",
    );
    site.catalogue().await;
    site
}

/// Purchases of a year, half of them after the time at which counts are frozen.
async fn year(site: &Site, (users, events): (usize, usize)) {
    let start = now().0 - 40 * DAY;
    let records = (0..events).map(|nth| {
        let who = (nth * 7919) % users;
        let mut record = site.bought(&user(who), nth * 13 + who);
        record.time = Some(Timestamp(start + nth as i64 * (39 * DAY / events as i64)));
        record
    });
    site.send(records.collect()).await;
}

async fn fill(site: &Site, ns: &str) {
    site.said(&["backfill", "--namespace", ns, "--from", "earliest"])
        .await;
}

/// Waits for everyone's list of the model.
async fn lists(site: &Site, ns: &str, users: usize) -> Lists {
    eventually(LIMIT * 2, || read(site, ns, users)).await
}

/// Everyone's list of the model, without what names the list itself; who has none yet.
async fn read(site: &Site, ns: &str, users: usize) -> Result<Lists, String> {
    let ids: Vec<UserId> = (0..users).map(|nth| UserId(user(nth).into())).collect();
    let peeks = site.store.peek(ns, &ids).await;
    let mut lists = Lists::new();
    for (user, peek) in ids.iter().zip(peeks.map_err(|error| error.to_string())?) {
        let stored = peek.list.ok_or(format!("{user} has no list"))?;
        let list = Document::parse(&stored.doc).map_err(|error| error.to_string())?;
        if list.source != Source::Model {
            return Err(format!("{user} has a fallback"));
        }
        let audit: Audit = serde_json::from_str(&stored.audit).expect("an audit");
        let mut doc: serde_json::Value = serde_json::from_str(&stored.doc).expect("JSON");
        doc.as_object_mut().expect("an object").remove("list_id");
        let more = json!({"prompt": audit.prompt, "demand": audit.demand, "rules": audit.rules, "names": audit.names});
        lists.insert(user.to_string(), json!([doc, more]));
    }
    Ok(lists)
}

/// Two backfills whose lists are made by other batches, one of them by workers that are killed.
async fn twice(model: &str, (users, events): (usize, usize)) {
    let site = site(model).await;
    year(&site, (users, events)).await;
    let (whole, broken) = (fresh("whole"), fresh("broken"));
    // Workers run all the while: the first of their lists must not be made with the counts of half a fold.
    let worker = Process::with(&site, "generate", &[("NEARSHORE__LANES__BATCH_MAX", "1")]).await;
    fill(&site, &whole).await;
    let first = lists(&site, &whole, users).await;
    drop(worker);
    fill(&site, &broken).await;
    for _ in 0..3 {
        let mut worker = Process::ready(&site, "generate").await;
        eventually(LIMIT, || async {
            let made = worker.metric("nearshore_lists_published_total", "lane=\"backfill\"");
            // A quick worker before it may have left nothing to make.
            if made.await > 0.0 || read(&site, &broken, users).await.is_ok() {
                return Ok(());
            }
            Err("no list yet".into())
        })
        .await;
        worker.kill();
    }
    let worker = Process::ready(&site, "generate").await;
    let second = lists(&site, &broken, users).await;
    assert_eq!(first.len(), users);
    for (user, list) in &first {
        assert_eq!(Some(list), second.get(user), "{user}");
    }
    // Asked for once more, at another time, they are the same again.
    site.said(&["refresh", "--all", "--namespace", &whole])
        .await;
    eventually(LIMIT, || async {
        let ids = [UserId(user(0).into())];
        let peek = site.store.peek(&whole, &ids).await.expect("answered");
        let claim = peek[0].list.as_ref().map_or(0, |list| list.claim);
        (claim > 1).then_some(()).ok_or(format!("claim {claim}"))
    })
    .await;
    let again = lists(&site, &whole, users).await;
    assert_eq!(again, first);
    drop(worker);
    let names: std::collections::BTreeSet<&str> = first
        .values()
        .flat_map(|list| list[0]["names"].as_array().expect("names"))
        .filter_map(|name| name.as_str())
        .collect();
    assert!(names.len() > 5 && names.len() <= SHELF.len(), "{names:?}");
}

#[tokio::test]
async fn frozen_counts_give_equal_lists_with_a_table() {
    twice("table:20ms", (60, 2_000)).await;
}

#[tokio::test]
async fn frozen_counts_give_equal_lists_with_real_weights() {
    twice(&variable("NEARSHORE_TEST_MODEL"), (10, 300)).await;
}
