//! Promise: an erased user is gone from every place, stays gone through replays, backfills and dead letters sent back,
//! and comes back empty with the first record after; the receipt tells the truth about it.

use std::time::Duration;

use bytes::Bytes;
use nearshore_core::ports::keys;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Record, Timestamp};
use nearshore_core::user::state::Held;
use nearshore_kafka::dlq::{Failure, dead};
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::process::{LIMIT, Process, Site, now};

async fn held(site: &Site, ns: &str, user: &str) -> Held {
    let user = [UserId(user.into())];
    let held = site.store.load(ns, &user).await;
    held.expect("answered").remove(0)
}

/// The receipt, and whether its exit code said clean.
async fn receipt(site: &Site, user: &str, more: &[&str]) -> (Value, bool) {
    let mut words = vec!["forget", "--proof", user, "--json"];
    words.extend(more);
    let output = site.cli(&words).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let receipt: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}{error}"));
    assert_eq!(
        receipt["clean"],
        json!(output.status.success()),
        "{receipt:#}"
    );
    (receipt, output.status.success())
}

/// Findings of a verdict: place and what was found.
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

async fn has_a_list(site: &Site, user: &str) {
    eventually(LIMIT, || async {
        let peek = site.peek(user).await;
        let list = peek.list.filter(|list| list.claim > 0);
        list.map(drop)
            .ok_or_else(|| format!("no list of the model for {user}"))
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

/// Says `found` if a word stands in a key, whatever its type.
const SEARCH: &str = "local kind, values = redis.call('TYPE', KEYS[1]).ok, {} \
    if kind == 'hash' then values = redis.call('HGETALL', KEYS[1]) end \
    if kind == 'string' then values = {redis.call('GET', KEYS[1])} end \
    for _, value in ipairs(values) do if string.find(value, ARGV[1], 1, true) then return 'found' end end \
    return 'nothing'";

/// Nothing that Redis holds under a key of this namespace has the words.
async fn redis_is_silent(site: &Site, ns: &str, user: &str, words: &[&str]) {
    let keys = keys::user(ns, &UserId(user.into())).expect("keys");
    for key in [&keys.state, &keys.profile, &keys.recall] {
        for word in words {
            let said = site.redis.told(&["EVAL", SEARCH, "1", key, word]).await;
            assert_eq!(said, "nothing", "{key} still says {word}");
        }
    }
}

const ODD: &str = "zoë {7}%*";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_user_is_gone_everywhere_and_the_receipt_says_so() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let mut process = Process::ready(&site, "all").await;
    for user in [ODD, "other"] {
        let profile = site.profile(user, &json!({"hobby": "falconry"}));
        site.send(vec![profile, site.bought(user, 3), site.bought(user, 5)])
            .await;
    }
    // A letter of theirs, too: it is not JSON.
    let mut bad = site.bought(ODD, 1);
    bad.value = Some("falconry".into());
    site.send(vec![bad]).await;
    has_a_list(&site, ODD).await;
    has_a_list(&site, "other").await;
    let state = keys::user(&site.ns, &UserId(ODD.into()))
        .expect("keys")
        .state;
    let said = site
        .redis
        .told(&["EVAL", SEARCH, "1", &state, "sku-"])
        .await;
    assert_eq!(said, "found", "the search finds what is there");

    let (before, clean) = receipt(&site, ODD, &[]).await;
    assert!(!clean, "nobody was erased yet: {before:#}");
    assert_eq!(before["erased_at"], Value::Null);
    assert_eq!(
        found(&before, "left").len(),
        4,
        "state, profile, list, update: {before:#}"
    );

    let told = site.said(&["forget", ODD, "--json"]).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["user"], ODD);
    gone_from_everywhere(&site, &told).await;
    let text = process.log();
    assert!(!text.contains("zo"), "no log line names a user: {text}");

    // The other one is as before.
    let (other, clean) = receipt(&site, "other", &[]).await;
    assert!(!clean && found(&other, "left").len() == 4, "{other:#}");

    // The first record after finds somebody unknown.
    site.send(vec![site.bought(ODD, 7)]).await;
    has_a_list(&site, ODD).await;
    let back = held(&site, &site.ns, ODD).await.state;
    assert_eq!((back.window.len(), back.profile.is_none()), (1, true));
    let (again, clean) = receipt(&site, ODD, &["--wait", "10s"]).await;
    assert!(clean, "what came since is theirs: {again:#}");
    process.terminate().await;
}

/// The receipt after an erase, and what it says.
async fn gone_from_everywhere(site: &Site, told: &Value) {
    let (after, clean) = receipt(site, ODD, &["--wait", "60s", "--scan"]).await;
    assert!(clean, "{after:#}");
    assert!(
        after["erased_at"].as_i64() >= told["at"].as_i64(),
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
        "the source keeps them: {leaves}"
    );
    redis_is_silent(site, &site.ns, ODD, &["falconry", "sku-"]).await;
    let last = last_update(site, &site.ns, ODD).await;
    assert_eq!(
        last.expect("told").value,
        None,
        "recall-updates has a tombstone"
    );
    assert!(held(site, &site.ns, ODD).await.state.is_vacant());
    let text = site.cli(&["forget", ODD, "--proof"]).await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.ends_with("clean: nothing is left that should not be\n"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_from_the_beginning_in_another_namespace_brings_nobody_back() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    let profile = site.profile("ann", &json!({"hobby": "falconry"}));
    site.send(vec![profile, site.bought("ann", 3), site.bought("bob", 4)])
        .await;
    site.committed().await;
    site.said(&["forget", "ann"]).await;
    site.committed().await;
    drop(process);

    // All records again, from offset 0, by a group that never read them.
    let again = format!("{}-b", site.ns);
    let process = Process::with(&site, "ingest", &[("NEARSHORE__NAMESPACE", &again)]).await;
    eventually(LIMIT, || async {
        let bob = held(&site, &again, "bob").await;
        let ann = held(&site, &again, "ann").await;
        match bob.state.window.len() == 1 && ann.state.fences.iter().count() == 2 {
            true => Ok(()),
            false => Err(format!("{:?}", (bob.state, ann.state))),
        }
    })
    .await;
    assert!(held(&site, &again, "ann").await.state.is_vacant());
    redis_is_silent(&site, &again, "ann", &["falconry", "sku-"]).await;
    let (receipt, clean) = receipt(&site, "ann", &["--wait", "10s"]).await;
    assert!(clean, "{receipt:#}");
    let places = found(&receipt, "kept").join("\n");
    assert!(
        places.contains(&format!("redis {again}:{{ann}}:state")),
        "{places}"
    );
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_nobody_follows_makes_the_receipt_unclean() {
    let site = Site::open(&[]).await;
    let (old, new) = (site.ns.clone(), format!("{}-b", site.ns));
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 3)]).await;
    site.committed().await;
    drop(process);
    // The next one folds the erase; the first is not running any more.
    let process = Process::with(&site, "ingest", &[("NEARSHORE__NAMESPACE", &new)]).await;
    site.said(&["forget", "ann"]).await;
    eventually(LIMIT, || async {
        match held(&site, &new, "ann").await.state.erased_at {
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
    let (mended, clean) = receipt(&site, "ann", &["--wait", "60s"]).await;
    assert!(clean, "{mended:#}");
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_from_before_the_erase_is_passed_over_when_it_is_sent_back_to_a_topic_that_stamps_it_anew()
 {
    let stamps: &[(&str, &str)] = &[("message.timestamp.type", "LogAppendTime")];
    let site = Site::open(&[("user_events", 1, stamps), ("profile_changes", 1, stamps)]).await;
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    // Died of a decoder that has been mended since: good bytes in the dlq.
    let topics = &site.topics;
    let letter = |nth: i64, sent: Outgoing, time: Timestamp| {
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
    site.said(&["forget", "ann"]).await;
    site.committed().await;
    let after = now();
    site.send(vec![
        letter(100, site.bought("ann", 3), before),
        letter(
            101,
            site.profile("ann", &json!({"hobby": "falconry"})),
            before,
        ),
        letter(102, site.bought("bob", 3), before),
        letter(103, site.bought("ann", 4), after),
    ])
    .await;
    let told = site.said(&["dlq", "replay", "--json"]).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["sent"], 4);
    site.committed().await;
    let (ann, bob) = (
        held(&site, &site.ns, "ann").await,
        held(&site, &site.ns, "bob").await,
    );
    let times: Vec<Timestamp> = ann.state.window.iter().map(|seen| seen.time).collect();
    assert_eq!(
        times,
        [after],
        "only what came after the erase, at its own time"
    );
    assert_eq!(ann.state.profile, None);
    assert_eq!(bob.state.window[0].time, before, "a replay keeps its time");
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tombstones_kept_elsewhere_are_restored_before_a_replay() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let mut process = Process::ready(&site, "ingest").await;
    let profile = site.profile("ann", &json!({"hobby": "falconry"}));
    site.send(vec![
        profile,
        site.bought("ann", 3),
        site.bought(ODD, 2),
        site.bought("bob", 4),
    ])
    .await;
    site.committed().await;
    let user = keys::user(&site.ns, &UserId("ann".into())).expect("keys");
    site.said(&["forget", "ann"]).await;
    site.said(&["forget", ODD]).await;
    site.committed().await;
    process.terminate().await;

    let file = site.folder().join("erased.jsonl");
    let path = file.to_str().expect("text");
    let told = site.said(&["forget", "--export", path, "--json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&told).expect("JSON"),
        json!({"exported": 2})
    );
    let lines = std::fs::read_to_string(&file).expect("written");
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert_eq!(
        site.said(&["forget", "--export", "-"])
            .await
            .lines()
            .count(),
        2
    );

    lost_and_back_as_of_before(&site).await;
    let told = site.said(&["forget", "--import", path, "--json"]).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told, json!({"read": 2, "raised": 2, "cleaned": 1}));
    redis_is_silent(&site, &site.ns, "ann", &["falconry"]).await;
    assert_eq!(
        site.redis.told(&["EXISTS", &user.recall]).await,
        "0",
        "the list is gone as well"
    );
    let again = site.said(&["forget", "--import", path, "--json"]).await;
    let again: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!(again, json!({"read": 2, "raised": 0, "cleaned": 0}));
    let bad = site.write("bad.jsonl", "{\"user\":\"x\",\"at\":5}\n");
    let refused = site
        .cli(&["forget", "--import", bad.to_str().expect("text")])
        .await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.status.code() == Some(1) && said.contains("line 1"),
        "{said}"
    );

    read_again_brings_nobody_back(&site).await;
}

/// Redis is lost, and comes back with a state of before.
async fn lost_and_back_as_of_before(site: &Site) {
    site.redis.told(&["FLUSHALL"]).await;
    let store = &site.store;
    let mut old = Held::default();
    old.state.profile = Some(nearshore_core::user::state::Profiled {
        time: Timestamp(1_700_000_000_000),
        position: "0/p/0:1".parse().expect("valid"),
        profile: serde_json::from_value(json!({"hobby": "falconry"})).expect("a profile"),
    });
    let write = nearshore_core::ports::store::FoldWrite {
        user: UserId("ann".into()),
        expected: 0,
        state: old.state,
        activity: old.activity,
        profile_changed: true,
        list: nearshore_core::ports::store::ListEdit::First {
            doc: "{}".into(),
            audit: "{}".into(),
            at: Timestamp(1_700_000_000_000),
        },
    };
    store.fold(&site.ns, &[write]).await.expect("written");
}

/// The whole log once more, in a namespace of its own: it would bring them all back.
async fn read_again_brings_nobody_back(site: &Site) {
    let fresh = format!("{}-c", site.ns);
    let process = Process::with(site, "ingest", &[("NEARSHORE__NAMESPACE", &fresh)]).await;
    eventually(LIMIT, || async {
        match held(site, &fresh, "bob").await.state.window.len() {
            1 => Ok(()),
            other => Err(format!("{other} events")),
        }
    })
    .await;
    eventually(Duration::from_secs(30), || async {
        let fences = held(site, &fresh, "ann").await.state.fences;
        match fences.iter().count() {
            2 => Ok(()),
            _ => Err(fences.to_string()),
        }
    })
    .await;
    for user in ["ann", ODD] {
        assert!(held(site, &fresh, user).await.state.is_vacant(), "{user}");
    }
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erase_takes_also_what_a_clock_ahead_of_ours_has_stamped() {
    let site = Site::open(&[]).await;
    site.catalogue().await;
    let process = Process::ready(&site, "ingest").await;
    let mut ahead = site.bought("ann", 3);
    ahead.time = Some(now().after(Duration::from_secs(240)));
    site.send(vec![ahead]).await;
    site.committed().await;
    site.said(&["forget", "ann"]).await;
    site.committed().await;
    let state = held(&site, &site.ns, "ann").await.state;
    assert!(state.is_vacant(), "{state:?}");
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_still_unread_makes_no_list_of_an_erased_user() {
    let site = Site::open(&[("regen_urgent", 1, &[]), ("regen_live", 1, &[])]).await;
    site.catalogue().await;
    // Nobody reads the lanes yet.
    let ingest = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 3), site.bought("bob", 3)])
        .await;
    site.committed().await;
    site.said(&["forget", "ann"]).await;
    let (receipt, clean) = receipt(&site, "ann", &["--wait", "60s"]).await;
    assert!(clean, "{receipt:#}");
    let leaves = found(&receipt, "leaves").join("\n");
    assert!(leaves.contains("1 requests, 1 of them unread"), "{leaves}");
    let generate = Process::ready(&site, "generate").await;
    has_a_list(&site, "bob").await;
    crate::poison::everything_is_read(&site).await;
    assert_eq!(site.peek("ann").await.list, None);
    let told = site.read(&site.topics.recall_updates).await;
    let key = Bytes::from(format!("{}/ann", site.ns));
    let lists = told
        .iter()
        .filter(|it| it.key.as_ref() == Some(&key) && it.value.is_some());
    assert_eq!(lists.count(), 0);
    drop((ingest, generate));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erase_calls_off_the_list_that_is_being_made() {
    let site = Site::open(&[]).await;
    let path = site.folder().join("nearshore.toml");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let model = crate::harness::variable("NEARSHORE_TEST_MODEL");
    site.write("nearshore.toml", &text.replace(&model, "table:5s"));
    site.catalogue().await;
    let all = Process::ready(&site, "all").await;
    site.send(vec![site.bought("ann", 3)]).await;
    eventually(LIMIT, || async {
        match all.metric("nearshore_requests_running", "").await {
            0.0 => Err("nothing runs".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    site.said(&["forget", "ann"]).await;
    eventually(LIMIT, || async {
        let log = all.log();
        let said = log.contains("the lists are cancelled");
        said.then_some(()).ok_or(log)
    })
    .await;
    site.send(vec![site.bought("bob", 3)]).await;
    has_a_list(&site, "bob").await;
    assert_eq!(site.peek("ann").await.list, None);
}
