//! Promise: this version and the one before run side by side, through a rolling upgrade and a rollback: each reads
//! states, requests, lists and scripts of the other, and nothing is lost or doubled.
//!
//! The test with two binaries is run by hand, once per release: `scripts/old-binary` builds the version before, and
//! `NEARSHORE_TEST_OLD_BINARY` names it (docs/runbook.md, "An upgrade, and back"). What always runs is bytes of the
//! version before: states in `crates/core/src/user/state/blob_tests.rs`, requests and lists here.

use std::collections::BTreeSet;

use nearshore_core::list::document::Document;
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

/// Sends a purchase of every user and a profile of every third, and waits until they are folded.
async fn round(site: &Site, nth: usize) {
    let bought = (0..USERS).map(|who| site.bought(&user(who), who + 7 * nth));
    let mut records: Vec<_> = bought.collect();
    let changed = (0..USERS).step_by(3);
    records.extend(changed.map(|who| site.profile(&user(who), &json!({"round": nth}))));
    site.send(records).await;
    site.committed().await;
}

/// Waits until every user has a list by the model that has seen all of their state.
async fn served(site: &Site) {
    eventually(LIMIT, || async {
        let users: Vec<UserId> = (0..USERS).map(|nth| UserId(user(nth).into())).collect();
        let peeks = site.store.peek(&site.ns, &users).await;
        for (user, peek) in users.iter().zip(peeks.map_err(|error| error.to_string())?) {
            let list = peek.list.ok_or(format!("{user}: no list"))?;
            let doc = Document::parse(&list.doc).map_err(|error| error.to_string())?;
            if !doc.source.is_exposure() || !list.seen.contains_all(&peek.fences) {
                return Err(format!(
                    "{user}: the list is by {:?} and has seen {}, not {}",
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
fn requests_and_lists_of_the_version_before_are_read_and_written_with_all_their_fields() {
    let topics = nearshore_core::queue::topics::Topics::default();
    let record = nearshore_core::user::record::Record {
        position: "0/regen-live/0:1".parse().expect("a position"),
        time: nearshore_core::user::record::Timestamp(1_700_000_000_000),
        key: Some("u1".into()),
        value: Some(REQUEST.into()),
        headers: Vec::new(),
    };
    let request = Request::decode(&record).expect("it is read");
    assert_eq!((request.force, request.lane), (false, Lane::Live));
    let record = nearshore::members::records::request_record(&topics, &request);
    let list = Document::parse(LIST).expect("it is read");
    assert_eq!(list.pus.len(), 1);
    for (old, new) in [
        (REQUEST, record.value.expect("a request").to_vec()),
        (LIST, list.to_json().into_bytes()),
    ] {
        let old: Value = serde_json::from_str(old).expect("JSON");
        let new: Value = serde_json::from_slice(&new).expect("JSON");
        for (field, value) in old.as_object().expect("an object") {
            assert_eq!(new.get(field), Some(value), "{field}");
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
    // What both versions read.
    site.append("[state]\nwrite_version = 3\n");
    site.catalogue().await;

    let before = ready(&site, &old).await;
    round(&site, 0).await;
    served(&site).await;
    // Both versions together, each with a share of the partitions.
    let after = ready(&site, new).await;
    round(&site, 1).await;
    served(&site).await;
    drop(before);
    round(&site, 2).await;
    served(&site).await;
    // A request of the new version, with a field that the old one ignores, is served by the old one.
    let again = ready(&site, &old).await;
    drop(after);
    site.output(&["refresh", "--all", "--force"]).await;
    round(&site, 3).await;
    served(&site).await;
    drop(again);

    let dead_letters: BTreeSet<String> = site
        .read(&site.topics.dlq.clone())
        .await
        .iter()
        .map(|record| format!("{:?}", record.headers))
        .collect();
    assert!(dead_letters.is_empty(), "{dead_letters:?}");
    // What two versions folded equals what the new one folds alone.
    let alone = fresh("alone");
    site.output(&["backfill", "--namespace", &alone, "--from", "earliest"])
        .await;
    // But for buyers, which the version before did not count.
    let dump = |ns: String| {
        let site = &site;
        async move {
            let lines = site.output(&["namespace", "dump", &ns]).await;
            let others = lines
                .lines()
                .filter(|line| !line.contains(r#""kind":"buyer""#));
            others.map(str::to_owned).collect::<Vec<_>>()
        }
    };
    assert_eq!(dump(site.ns.clone()).await, dump(alone).await);
}
