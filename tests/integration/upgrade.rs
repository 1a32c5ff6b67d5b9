//! Promise: this version and the one before live together, through a rolling upgrade and back: states, requests, lists and
//! scripts of one are read by the other, and nothing is lost or doubled.
//!
//! The one before is `NEARSHORE_TEST_OLD_BINARY`, see `scripts/old-binary`; without it the test says so and passes.

use std::collections::BTreeSet;

use nearshore::event::UserId;
use nearshore::list::{Document, Source};
use nearshore::store::Store;
use serde_json::json;

use crate::harness::{eventually, fresh};
use crate::process::{LIMIT, Process, Site};

const USERS: usize = 12;

fn user(nth: usize) -> String {
    format!("u{nth}")
}

/// A round: everyone buys, some change their profile.
async fn round(site: &Site, nth: usize) {
    let bought = (0..USERS).map(|who| site.bought(&user(who), who + 7 * nth));
    let mut records: Vec<_> = bought.collect();
    let changed = (0..USERS).step_by(3);
    records.extend(changed.map(|who| site.profile(&user(who), &json!({"round": nth}))));
    site.send(records).await;
    site.committed().await;
}

/// Waits until everyone has a list of the model that has seen all of their state.
async fn served(site: &Site) {
    eventually(LIMIT, || async {
        let users: Vec<UserId> = (0..USERS).map(|nth| UserId(user(nth).into())).collect();
        let peeks = site.store.peek(&site.ns, &users).await;
        for (user, peek) in users.iter().zip(peeks.map_err(|error| error.to_string())?) {
            let list = peek.list.ok_or(format!("{user}: no list"))?;
            let doc = Document::parse(&list.doc).map_err(|error| error.to_string())?;
            if doc.source != Source::Model || !list.covers.cover_all(&peek.fences) {
                return Err(format!(
                    "{user}: {:?} covers {} of {}",
                    doc.source, list.covers, peek.fences
                ));
            }
        }
        Ok(())
    })
    .await;
}

async fn ready(site: &Site, binary: &str) -> [Process; 2] {
    let mut both = ["ingest", "generate"].map(|role| Process::start_of(binary, site, role));
    for process in &mut both {
        process.becomes_ready().await;
    }
    both
}

#[tokio::test]
async fn a_rolling_upgrade_and_its_rollback_lose_and_double_nothing() {
    let Ok(old) = std::env::var("NEARSHORE_TEST_OLD_BINARY") else {
        println!("skipped: NEARSHORE_TEST_OLD_BINARY is not set, see scripts/old-binary");
        return;
    };
    let new = env!("CARGO_BIN_EXE_nearshore");
    let site = Site::open(&[]).await;
    let file = site.folder().join("nearshore.toml");
    let text = std::fs::read_to_string(&file).expect("written by the site");
    let model = crate::harness::variable("NEARSHORE_TEST_MODEL");
    site.write("nearshore.toml", &text.replace(&model, "table:5ms"));
    site.catalogue().await;

    let before = ready(&site, &old).await;
    round(&site, 0).await;
    served(&site).await;
    // Both together, each with a share of the partitions.
    let after = ready(&site, new).await;
    round(&site, 1).await;
    served(&site).await;
    drop(before);
    round(&site, 2).await;
    served(&site).await;
    // A request of the new version, with a field that the old one does not know, is served by the old one.
    let again = ready(&site, &old).await;
    drop(after);
    site.said(&["refresh", "--all", "--force"]).await;
    round(&site, 3).await;
    served(&site).await;
    drop(again);

    let letters: BTreeSet<String> = site
        .read(&site.topics.dlq.clone())
        .await
        .iter()
        .map(|letter| format!("{:?}", letter.headers))
        .collect();
    assert!(letters.is_empty(), "{letters:?}");
    // The fold of all that, by two versions, is the fold of the new one alone.
    let alone = fresh("alone");
    site.said(&["backfill", "--namespace", &alone, "--from", "earliest"])
        .await;
    let digest = |ns: String| {
        let site = &site;
        async move { site.said(&["namespace", "dump", &ns, "--digest"]).await }
    };
    assert_eq!(digest(site.ns.clone()).await, digest(alone).await);
}
