//! Promise: this version and the one before live together, through a rolling upgrade and back: states, requests, lists and
//! scripts of one are read by the other, and nothing is lost or doubled.
//!
//! With two binaries it is played by hand, once per release: `scripts/old-binary` builds the one before, and
//! `NEARSHORE_TEST_OLD_BINARY` names it (docs/runbook.md, "An upgrade, and back"). What always runs is bytes that the one
//! before writes: of states, kept in `src/state/blob_tests.rs`; of the wire, composed here from its code.

use std::collections::BTreeSet;

use nearshore_core::list::document::{Document, Source};
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_core::user::trigger::{Lane, Request};
use serde_json::{Value, json};

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
            if doc.source != Source::Model || !list.seen.contains_all(&peek.fences) {
                return Err(format!(
                    "{user}: {:?} covers {} of {}",
                    doc.source, list.seen, peek.fences
                ));
            }
        }
        Ok(())
    })
    .await;
}

/// A request as the version before writes it.
const REQUEST: &str = r#"{"v":1,"ns":"main","user":"u1","reason":"activity","source":"0/user-events/1:42","time":1700000000000,"due":1700000030000,"lane":"live"}"#;

/// A list as the version before writes it.
const LIST: &str = r#"{"schema":1,"list_id":"00f1","user":"u1","arm":"test","source":"model","at":1700000000000,"segment":"default","names":["BAGELS"],"scores":[-1.5],"skus":[["sku-08"]]}"#;

#[test]
fn requests_and_lists_of_the_version_before_are_read_and_ours_have_all_that_it_knows() {
    let topics = nearshore_core::queue::topics::Topics::default();
    let record = nearshore_core::user::record::Record {
        position: "0/regen-live/0:1".parse().expect("a position"),
        time: nearshore_core::user::record::Timestamp(1_700_000_000_000),
        key: Some("u1".into()),
        value: Some(REQUEST.into()),
        headers: Vec::new(),
    };
    let request = Request::decode(&record).expect("read");
    assert_eq!((request.force, request.lane), (false, Lane::Live));
    let ours = nearshore::members::records::request_record(&topics, &request);
    let list = Document::parse(LIST).expect("read");
    assert_eq!(list.pus.len(), 1);
    for (theirs, ours) in [
        (REQUEST, ours.value.expect("a request").to_vec()),
        (LIST, list.to_json().into_bytes()),
    ] {
        let theirs: Value = serde_json::from_str(theirs).expect("JSON");
        let ours: Value = serde_json::from_slice(&ours).expect("JSON");
        for (field, value) in theirs.as_object().expect("an object") {
            assert_eq!(ours.get(field), Some(value), "{field}");
        }
    }
}

async fn ready(site: &Site, binary: &str) -> [Process; 2] {
    let mut both = ["ingest", "generate"].map(|role| Process::start_of(binary, site, role));
    for process in &mut both {
        process.becomes_ready().await;
    }
    both
}

#[tokio::test]
#[ignore = "needs NEARSHORE_TEST_OLD_BINARY, an earlier build: see scripts/old-binary --help"]
async fn a_rolling_upgrade_and_its_rollback_lose_and_double_nothing() {
    let old = crate::harness::variable("NEARSHORE_TEST_OLD_BINARY");
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
