//! Promise: an erased user is deleted everywhere, stays deleted through replays, backfills and dead letters that are
//! sent back, and starts anew with the first record after the erase; the receipt of `nearshore forget --proof` is
//! right.

use std::time::Duration;

use bytes::Bytes;
use nearshore_core::ports::keys;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::{Stored, Users};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Record, Timestamp};
use nearshore_core::user::state::LoadedUser;
use nearshore_kafka::dlq::{Failure, dead};
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, TABLE, now};

async fn load(site: &Site, ns: &str, user: &str) -> LoadedUser {
    let user = [UserId(user.into())];
    let loaded = site.store.load(ns, &user).await;
    loaded.expect("Redis answers").remove(0)
}

/// How long a receipt waits until it is clean.
const WAIT: &str = "240s";

/// The receipt, and whether the exit code was that of a clean one.
async fn receipt(site: &Site, user: &str, more: &[&str]) -> (Value, bool) {
    let mut words = vec!["forget", "--proof", user, "--json"];
    words.extend(more);
    let output = site.cli(&words).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let receipt: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{error}"));
    assert_eq!(
        receipt["clean"],
        json!(output.status.success()),
        "{receipt:#}"
    );
    (receipt, output.status.success())
}

/// Findings with this verdict, as "place: what was found".
fn found(receipt: &Value, verdict: &str) -> Vec<String> {
    let findings = receipt["findings"].as_array().expect("a list").iter();
    findings
        .filter(|it| it["verdict"] == verdict)
        .map(|it| {
            format!(
                "{}: {}",
                it["place"].as_str().unwrap_or(""),
                it["found"].as_str().unwrap_or("")
            )
        })
        .collect()
}

/// Waits until all that was sent is folded, and a list has seen it and no request is out.
async fn has_a_list(site: &Site, user: &str) {
    site.committed().await;
    eventually(LIMIT, || async {
        let peek = site.peek(user).await;
        let seen = |list: &Stored| list.seen.contains_all(&peek.fences);
        match (&peek.list, &peek.pending) {
            (Some(list), None) if list.claim > 0 && seen(list) => Ok(()),
            (list, pending) => Err(format!("{user}: {list:?}, pending {pending:?}")),
        }
    })
    .await;
}

/// The last record of a key on `recall-updates`.
async fn last_update(site: &Site, ns: &str, user: &str) -> Option<Record> {
    let key = format!("{ns}/{user}");
    let all = site.read(&site.topics.recall_updates).await;
    all.into_iter()
        .rfind(|it| it.key.as_deref() == Some(key.as_bytes()))
}

/// Answers `found` if a key's value contains a word, whatever the key's type.
const SEARCH: &str = "local kind, values = redis.call('TYPE', KEYS[1]).ok, {} \
    if kind == 'hash' then values = redis.call('HGETALL', KEYS[1]) end \
    if kind == 'string' then values = {redis.call('GET', KEYS[1])} end \
    for _, value in ipairs(values) do if string.find(value, ARGV[1], 1, true) then return 'found' end end \
    return 'nothing'";

/// No key of the user in this namespace contains one of the words.
async fn redis_has_none_of(site: &Site, ns: &str, user: &str, words: &[&str]) {
    let keys = keys::user(ns, &UserId(user.into())).expect("keys");
    for key in [&keys.state, &keys.profile, &keys.recall] {
        for word in words {
            let found = site.redis.ask(&["EVAL", SEARCH, "1", key, word]).await;
            assert_eq!(found, "nothing", "{key} contains {word}");
        }
    }
}

/// A user whose id a key must encode.
const ENCODED: &str = "zoë {7}%*";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_user_is_deleted_everywhere_and_the_receipt_is_clean() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let mut process = Process::ready(&site, "all").await;
    for user in [ENCODED, "other"] {
        let profile = site.profile(user, &json!({"hobby": "falconry"}));
        site.send(vec![profile, site.bought(user, 3), site.bought(user, 5)])
            .await;
    }
    // A dead letter with their key, too: a record that is not JSON.
    let mut bad = site.bought(ENCODED, 1);
    bad.value = Some("falconry".into());
    site.send(vec![bad]).await;
    has_a_list(&site, ENCODED).await;
    has_a_list(&site, "other").await;
    let state = keys::user(&site.ns, &UserId(ENCODED.into()))
        .expect("keys")
        .state;
    let searched = site.redis.ask(&["EVAL", SEARCH, "1", &state, "sku-"]).await;
    assert_eq!(searched, "found", "the search itself works");

    let (before, clean) = receipt(&site, ENCODED, &[]).await;
    assert!(!clean, "the user is not erased yet: {before:#}");
    assert_eq!(before["erased_at"], Value::Null);
    assert_eq!(
        found(&before, "left").len(),
        4,
        "state, profile, list, update: {before:#}"
    );

    let forgotten = site.output(&["forget", ENCODED, "--json"]).await;
    let forgotten: Value = serde_json::from_str(&forgotten).expect("JSON");
    assert_eq!(forgotten["user"], ENCODED);
    is_deleted_everywhere(&site, &forgotten).await;
    let text = process.log();
    assert!(!text.contains("zo"), "a log line names the user: {text}");

    // The other user is unchanged.
    let (other, clean) = receipt(&site, "other", &[]).await;
    assert!(!clean && found(&other, "left").len() == 4, "{other:#}");

    // The first record after the erase belongs to a new user.
    site.send(vec![site.bought(ENCODED, 7)]).await;
    has_a_list(&site, ENCODED).await;
    let back = load(&site, &site.ns, ENCODED).await.state;
    assert_eq!((back.window.len(), back.profile.is_none()), (1, true));
    let (again, clean) = receipt(&site, ENCODED, &["--wait", WAIT]).await;
    assert!(clean, "records after the erase are allowed: {again:#}");
    process.terminate().await;
}

/// The receipt after an erase is clean, and right about each place.
async fn is_deleted_everywhere(site: &Site, forgotten: &Value) {
    let (after, clean) = receipt(site, ENCODED, &["--wait", WAIT, "--scan"]).await;
    assert!(clean, "{after:#}");
    assert!(
        after["erased_at"].as_i64() >= forgotten["at"].as_i64(),
        "{after:#}"
    );
    assert_eq!(
        found(&after, "kept").len(),
        3,
        "tombstone, offsets, counts: {after:#}"
    );
    let leaves = found(&after, "leaves").join("\n");
    assert!(
        leaves.contains("1 records with this key, 1 from before the erase"),
        "{leaves}"
    );
    assert!(
        leaves.contains("events: 3 records from before the erase"),
        "the source topic keeps records: {leaves}"
    );
    redis_has_none_of(site, &site.ns, ENCODED, &["falconry", "sku-"]).await;
    let last = last_update(site, &site.ns, ENCODED).await;
    let last = last.expect("an update");
    assert_eq!(last.value, None, "recall-updates has a tombstone");
    assert!(load(site, &site.ns, ENCODED).await.state.is_vacant());
    let text = site.cli(&["forget", ENCODED, "--proof"]).await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.ends_with("clean: nothing is left that should not be\n"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_into_another_namespace_restores_no_erased_user() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    let profile = site.profile("ann", &json!({"hobby": "falconry"}));
    site.send(vec![profile, site.bought("ann", 3), site.bought("bob", 4)])
        .await;
    site.committed().await;
    site.output(&["forget", "ann"]).await;
    site.committed().await;
    drop(process);

    // All records from offset 0, by a group that never read them.
    let again = format!("{}-b", site.ns);
    let process = Process::with(&site, "ingest", &[("NEARSHORE__NAMESPACE", &again)]).await;
    eventually(LIMIT, || async {
        let bob = load(&site, &again, "bob").await;
        let ann = load(&site, &again, "ann").await;
        match bob.state.window.len() == 1 && ann.state.fences.iter().count() == 2 {
            true => Ok(()),
            false => Err(format!("{:?}", (bob.state, ann.state))),
        }
    })
    .await;
    assert!(load(&site, &again, "ann").await.state.is_vacant());
    redis_has_none_of(&site, &again, "ann", &["falconry", "sku-"]).await;
    let (receipt, clean) = receipt(&site, "ann", &["--wait", WAIT]).await;
    assert!(clean, "{receipt:#}");
    let places = found(&receipt, "kept").join("\n");
    assert!(
        places.contains(&format!("redis {again}:{{ann}}:state")),
        "{places}"
    );
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_without_a_member_makes_the_receipt_unclean() {
    let site = Site::open(&[]).await;
    let (old, new) = (site.ns.clone(), format!("{}-b", site.ns));
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 3)]).await;
    site.committed().await;
    drop(process);
    // Only a member of the other namespace runs and folds the erase.
    let process = Process::with(&site, "ingest", &[("NEARSHORE__NAMESPACE", &new)]).await;
    site.output(&["forget", "ann"]).await;
    eventually(LIMIT, || async {
        match load(&site, &new, "ann").await.state.erased_at {
            Timestamp(0) => Err("not erased yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    let (unclean, clean) = receipt(&site, "ann", &[]).await;
    assert!(!clean, "{unclean:#}");
    let left = found(&unclean, "left");
    let state = format!("redis {old}:{{ann}}:state");
    assert!(left.iter().any(|it| it.starts_with(&state)), "{left:?}");
    drop(process);
    let process = Process::ready(&site, "ingest").await;
    let (after, clean) = receipt(&site, "ann", &["--wait", WAIT]).await;
    assert!(clean, "{after:#}");
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_from_before_the_erase_is_skipped_when_the_topic_stamps_it_anew() {
    let stamps: &[(&str, &str)] = &[("message.timestamp.type", "LogAppendTime")];
    let site = Site::open(&[("user_events", 1, stamps), ("profile_changes", 1, stamps)]).await;
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    // As if a decoder with a bug, fixed since, had rejected a good record.
    let topics = &site.topics;
    let dead_letter = |nth: i64, sent: Outgoing, time: Timestamp| {
        let record = Record {
            position: format!("0/{}/0:{nth}", sent.topic).parse().expect("valid"),
            time,
            key: sent.key,
            value: sent.value,
            headers: sent.headers,
        };
        let failure = Failure {
            group: "g",
            member: "0",
            stage: "event",
            code: "malformed_json",
            message: "why",
            causes: "",
        };
        dead(&record, &failure, &topics.dlq)
    };
    let before = now();
    site.output(&["forget", "ann"]).await;
    site.committed().await;
    let after = now();
    site.send(vec![
        dead_letter(100, site.bought("ann", 3), before),
        dead_letter(
            101,
            site.profile("ann", &json!({"hobby": "falconry"})),
            before,
        ),
        dead_letter(102, site.bought("bob", 3), before),
        dead_letter(103, site.bought("ann", 4), after),
    ])
    .await;
    let report = site.output(&["dlq", "replay", "--json"]).await;
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["sent"], 4);
    site.committed().await;
    let (ann, bob) = (
        load(&site, &site.ns, "ann").await,
        load(&site, &site.ns, "bob").await,
    );
    let times: Vec<Timestamp> = ann.state.window.iter().map(|event| event.time).collect();
    assert_eq!(
        times,
        [after],
        "only the event after the erase, at its original time"
    );
    assert_eq!(ann.state.profile, None);
    assert_eq!(
        bob.state.window[0].time, before,
        "a replay keeps the original time"
    );
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exported_tombstones_are_imported_before_a_replay() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let mut process = Process::ready(&site, "ingest").await;
    let profile = site.profile("ann", &json!({"hobby": "falconry"}));
    site.send(vec![
        profile,
        site.bought("ann", 3),
        site.bought(ENCODED, 2),
        site.bought("bob", 4),
    ])
    .await;
    site.committed().await;
    let user = keys::user(&site.ns, &UserId("ann".into())).expect("keys");
    site.output(&["forget", "ann"]).await;
    site.output(&["forget", ENCODED]).await;
    site.committed().await;
    process.terminate().await;

    let file = site.folder().join("erased.jsonl");
    let path = file.to_str().expect("text");
    let report = site.output(&["forget", "--export", path, "--json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&report).expect("JSON"),
        json!({"exported": 2})
    );
    let lines = std::fs::read_to_string(&file).expect("the file is written");
    assert_eq!(lines.lines().count(), 2, "{lines}");
    let printed = site.output(&["forget", "--export", "-"]).await;
    assert_eq!(printed.lines().count(), 2);

    restore_an_old_redis(&site).await;
    let report = site.output(&["forget", "--import", path, "--json"]).await;
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report, json!({"read": 2, "raised": 2, "cleaned": 1}));
    redis_has_none_of(&site, &site.ns, "ann", &["falconry"]).await;
    assert_eq!(
        site.redis.ask(&["EXISTS", &user.recall]).await,
        "0",
        "the list is deleted as well"
    );
    let again = site.output(&["forget", "--import", path, "--json"]).await;
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again, json!({"read": 2, "raised": 0, "cleaned": 0}));
    let bad = site.write("bad.jsonl", "{\"user\":\"x\",\"at\":5}\n");
    let refused = site
        .cli(&["forget", "--import", bad.to_str().expect("text")])
        .await;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1) && error.contains("line 1"),
        "{error}"
    );

    // A copy that was cut off to nothing must not look like a restored one; marks and line ends of an editor do not matter.
    let empty = site.write("empty.jsonl", "\u{feff}\r\n");
    let refused = site
        .cli(&["forget", "--import", empty.to_str().expect("text")])
        .await;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1) && error.contains("empty.jsonl is empty"),
        "{error}"
    );
    let edited = format!("\u{feff}{}", lines.replace('\n', "\r\n"));
    let edited = site.write("edited.jsonl", &edited);
    let path = edited.to_str().expect("text");
    let again = site.output(&["forget", "--import", path, "--json"]).await;
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again, json!({"read": 2, "raised": 0, "cleaned": 0}));

    reading_again_restores_no_erased_user(&site).await;
}

/// Empties Redis and writes a state from before the erase, as a restored backup would.
async fn restore_an_old_redis(site: &Site) {
    site.redis.ask(&["FLUSHALL"]).await;
    let store = &site.store;
    let mut old = LoadedUser::default();
    old.state.profile = Some(nearshore_core::user::state::Profiled {
        time: Timestamp(1_700_000_000_000),
        position: "0/p/0:1".parse().expect("valid"),
        profile: serde_json::from_value(json!({"hobby": "falconry"})).expect("a profile"),
        kept: Default::default(),
    });
    let write = nearshore_core::ports::store::FoldWrite {
        user: UserId("ann".into()),
        expected: 0,
        state: old.state,
        activity: old.activity,
        profile_changed: true,
        list: nearshore_core::ports::store::ListEdit::Keep,
    };
    let stored = store.fold(&site.ns, &[write]).await;
    stored.expect("Redis answers");
    let ann = UserId("ann".into());
    let claimed = crate::store::claim(store, &site.ns, &ann, 1_700_000_000_000).await;
    claimed.expect("there is a state");
    let list = crate::store::list(&ann, 1);
    let published = crate::store::publish(store, &site.ns, list).await;
    assert_eq!(published, nearshore_core::ports::store::Published::Stored);
}

/// Reads the whole log once more, into a new namespace, where nothing but the tombstones prevents their states.
async fn reading_again_restores_no_erased_user(site: &Site) {
    let fresh = format!("{}-c", site.ns);
    let process = Process::with(site, "ingest", &[("NEARSHORE__NAMESPACE", &fresh)]).await;
    eventually(LIMIT, || async {
        match load(site, &fresh, "bob").await.state.window.len() {
            1 => Ok(()),
            other => Err(format!("{other} events")),
        }
    })
    .await;
    eventually(LIMIT, || async {
        let fences = load(site, &fresh, "ann").await.state.fences;
        match fences.iter().count() {
            2 => Ok(()),
            _ => Err(fences.to_string()),
        }
    })
    .await;
    for user in ["ann", ENCODED] {
        assert!(load(site, &fresh, user).await.state.is_vacant(), "{user}");
    }
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erase_includes_events_whose_timestamps_are_ahead_of_the_clock() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    let mut ahead = site.bought("ann", 3);
    ahead.time = Some(now().after(Duration::from_secs(240)));
    site.send(vec![ahead]).await;
    site.committed().await;
    site.output(&["forget", "ann"]).await;
    site.committed().await;
    let state = load(&site, &site.ns, "ann").await.state;
    assert!(state.is_vacant(), "{state:?}");
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_request_makes_no_list_of_an_erased_user() {
    let site = Site::open(&[("regen_urgent", 1, &[]), ("regen_live", 1, &[])]).await;
    site.catalogue().await;
    // No member reads the lanes yet.
    let ingest = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 3), site.bought("bob", 3)])
        .await;
    site.committed().await;
    site.output(&["forget", "ann"]).await;
    let (receipt, clean) = receipt(&site, "ann", &["--wait", WAIT]).await;
    assert!(clean, "{receipt:#}");
    let leaves = found(&receipt, "leaves").join("\n");
    assert!(leaves.contains("1 requests, 1 of them unread"), "{leaves}");
    let generate = Process::ready(&site, "generate").await;
    has_a_list(&site, "bob").await;
    crate::poison::everything_is_read(&site).await;
    assert_eq!(site.peek("ann").await.list, None);
    let updates = site.read(&site.topics.recall_updates).await;
    let key = Bytes::from(format!("{}/ann", site.ns));
    let lists = updates
        .iter()
        .filter(|it| it.key.as_ref() == Some(&key) && it.value.is_some());
    assert_eq!(lists.count(), 0);
    drop((ingest, generate));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erase_cancels_the_list_that_is_being_made() {
    let site = Site::open(&[]).await;
    site.edit(&[(TABLE, "table:5s")]);
    site.catalogue().await;
    let all = Process::ready(&site, "all").await;
    let running = async || all.metric("nearshore_requests_running", "").await;
    // On a slow machine a batch may end before its user is erased; then the next user is tried.
    for nth in 0.. {
        assert!(nth < 10, "no list was cancelled\n{}", all.log());
        let user = format!("ann-{nth}");
        site.send(vec![site.bought(&user, 3)]).await;
        eventually(LIMIT, || async {
            match running().await {
                0.0 => Err("no request is being served".to_owned()),
                _ => Ok(()),
            }
        })
        .await;
        site.output(&["forget", &user]).await;
        let cancelled = eventually(LIMIT, || async {
            let log = all.log();
            let mut lines = log.lines();
            let cancelled = lines.any(|line| line.contains("erased") && line.contains("lists"));
            match cancelled || running().await == 0.0 {
                true => Ok(cancelled),
                false => Err(log),
            }
        })
        .await;
        if cancelled {
            break;
        }
    }
    site.send(vec![site.bought("bob", 3)]).await;
    has_a_list(&site, "bob").await;
    assert_eq!(site.peek("ann-0").await.list, None);
}
