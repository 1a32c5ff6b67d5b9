//! Promise: a record that cannot be used is written to `dlq` once, with the reason, and stops nothing; a state that
//! must not be overwritten stops its partition and no other; a wrong configuration is reported before anything runs.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use nearshore_core::ports::keys;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::{Stock, Users};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Partition, Record};
use nearshore_kafka::dlq::DeadLetter;
use serde_json::{Value, json};

use crate::harness::eventually;
use crate::log_kafka::noise;
use crate::process::{LIMIT, Process, Site, now};

/// 31 December 9999.
const YEAR_9999: i64 = 253_402_214_400_000;

/// Topic and offset of a bad record, and its reject code.
type Rejected = (String, i64, String);

/// The header of every bad record.
const TRACE: &str = "trace";

/// A record with a header, to be sent to any topic.
fn raw(key: &'static [u8], value: &str) -> Outgoing {
    Outgoing {
        topic: "".into(),
        key: Some(Bytes::from_static(key)),
        value: Some(value.to_owned().into()),
        headers: vec![(TRACE.into(), Bytes::from_static(b"\xff7"))],
        time: None,
    }
}

const VIEW: &str = r#"{"type":"view","sku":"sku-01"}"#;

/// Bad events with their reject codes.
fn bad_events() -> Vec<(Outgoing, &'static str)> {
    let with = |change: fn(&mut Outgoing)| {
        let mut record = raw(b"bad", VIEW);
        change(&mut record);
        record
    };
    let deep = format!(
        r#"{{"type":"view","sku":"a","context":{}{}}}"#,
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    let large = format!(
        r#"{{"type":"view","sku":"a","context":"{}"}}"#,
        hex::encode(noise(5 << 18))
    );
    vec![
        (raw(b"bad", r#"{"type":"purchase""#), "malformed_json"),
        (with(|it| it.value = None), "null_value"),
        (raw(b"\xff\xfe", VIEW), "key_not_utf8"),
        (with(|it| it.key = None), "no_key"),
        (raw(b"", VIEW), "empty_key"),
        (raw(b"bad", r#"{"type":"view","sku":7}"#), "wrong_type"),
        (raw(b"bad", r#"{"type":"view"}"#), "missing_field"),
        (raw(b"bad", r#"{"sku":"sku-01"}"#), "missing_field"),
        (raw(b"bad", "[]"), "not_an_object"),
        (raw(b"bad", &large), "too_large"),
        (raw(b"bad", &deep), "too_deep"),
        (
            raw(b"bad", r#"{"type":"steal","sku":"sku-01"}"#),
            "unknown_type",
        ),
        (
            raw(b"bad", r#"{"type":"purchase","sku":"a","qty":-2}"#),
            "negative_quantity",
        ),
        (
            raw(b"bad", r#"{"type":"purchase","sku":"a","price":-1}"#),
            "bad_number",
        ),
        (
            with(|it| it.time = Some(nearshore_core::user::record::Timestamp(YEAR_9999))),
            "time_out_of_range",
        ),
        (
            with(|it| it.time = Some(now().after(Duration::from_secs(3_600)))),
            "time_ahead",
        ),
        (
            with(|it| it.value = Some(Bytes::from_static(b"\"\xc3\x28\""))),
            "not_utf8",
        ),
        (
            with(|it| it.value = Some(Bytes::from_static(b"\0\0\0\0\x01{}"))),
            "framed_payload",
        ),
    ]
}

fn bad_profiles() -> Vec<(Outgoing, &'static str)> {
    vec![
        (raw(b"bad", "{"), "malformed_json"),
        (raw(b"\xc0", "{}"), "key_not_utf8"),
        (raw(b"bad", "3"), "not_an_object"),
        (
            raw(b"bad", r#"{"op":"u","before":null,"after":{}}"#),
            "enveloped",
        ),
    ]
}

fn bad_skus() -> Vec<(Outgoing, &'static str)> {
    vec![
        (raw(b"sku-99", "nothing"), "malformed_json"),
        (raw(b"sku-99", r#"{"stock":1}"#), "missing_field"),
        (raw(b"sku-99", r#"{"pu":"CAKES"}"#), "missing_field"),
        (
            raw(b"sku-99", r#"{"pu":"CAKES","stock":"some"}"#),
            "wrong_type",
        ),
    ]
}

fn bad_requests() -> Vec<(Outgoing, &'static str)> {
    let mut null = raw(b"bad", "");
    null.value = None;
    vec![
        (raw(b"bad", r#"{"v":1}"#), "malformed_json"),
        (raw(b"bad", "now!"), "malformed_json"),
        (null, "null_value"),
    ]
}

/// Sends bad records to a topic of one partition, a good one after each; the bad ones with their offsets.
async fn poison(
    site: &Site,
    (topic, bad): (&str, Vec<(Outgoing, &'static str)>),
    good: impl Fn(usize) -> Option<Outgoing>,
) -> Vec<Rejected> {
    let mut codes = Vec::new();
    for (nth, (mut record, code)) in bad.into_iter().enumerate() {
        record.topic = topic.into();
        codes.push(code);
        // One at a time, so that a refusal names its record.
        site.send(vec![record]).await;
        site.send(good(nth).into_iter().collect()).await;
    }
    // Their offsets are read, not counted: the process itself writes requests meanwhile.
    let is_bad = |record: &Record| record.headers.iter().any(|(name, _)| name == TRACE);
    let sent = site.read(topic).await.into_iter().filter(is_bad);
    let offsets: Vec<i64> = sent.map(|record| record.position.offset.0).collect();
    assert_eq!(offsets.len(), codes.len(), "{topic}");
    let rejected = |(offset, code): (i64, &str)| (topic.to_owned(), offset, code.to_owned());
    offsets.into_iter().zip(codes).map(rejected).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_records_go_to_the_dlq_once_and_stop_nothing() {
    let admits: &[(&str, &str)] = &[
        ("max.message.bytes", "4000000"),
        ("message.timestamp.after.max.ms", "9223372036854775807"),
    ];
    let site = Site::open(&[
        ("user_events", 1, admits),
        ("profile_changes", 1, &[]),
        ("catalog", 1, &[]),
        ("regen_live", 1, &[]),
    ])
    .await;
    let topics = &site.topics;
    site.catalogue().await;
    site.append("[events]\nignore = [\"add_to_wishlist\"]\n");
    let process = Process::ready(&site, "all").await;
    let mut rejected = poison(&site, (&topics.user_events, bad_events()), |nth| {
        Some(site.bought("good", nth))
    })
    .await;
    let profiles = (&*topics.profile_changes, bad_profiles());
    let profile = |nth| Some(site.profile("good", &json!({"nth": nth})));
    rejected.extend(poison(&site, profiles, profile).await);
    let catalog = (&*topics.catalog, bad_skus());
    rejected.extend(poison(&site, catalog, |nth| Some(site.sku(nth, 0))).await);
    let requests = (&*topics.regen_live, bad_requests());
    rejected.extend(poison(&site, requests, |_| None).await);
    let unknown = json!({"type": "purchase", "sku": "no-such-sku"});
    let unknown = crate::process::record(&topics.user_events, "good", &unknown);
    site.send(vec![unknown]).await;
    let wish = json!({"type": "add_to_wishlist", "list": 7});
    let wish = crate::process::record(&topics.user_events, "good", &wish);
    let anonymous = Outgoing {
        key: None,
        ..wish.clone()
    };
    site.send(vec![wish, anonymous]).await;
    rejected.sort();

    everything_is_read(&site).await;
    let dead_letters = site.read(&topics.dlq).await;
    let mut found: Vec<Rejected> = dead_letters.iter().map(origin).collect();
    found.sort();
    assert_eq!(found, rejected);
    dead_letters.iter().for_each(has_the_headers_of_connect);
    what_is_good_is_folded(&site, &process).await;
    let counted = process.metric("nearshore_dlq_records_total", "").await;
    assert_eq!(counted, rejected.len() as f64);
    let ignored = process.metric("nearshore_records_total", "outcome=\"ignored\"");
    assert_eq!(ignored.await, 2.0);
    assert_eq!(
        process.metric("nearshore_partitions_stopped", "").await,
        0.0
    );
    dead_letters_are_listed_and_sent_back(&site, &rejected).await;
}

/// Waits until all groups have committed all of their topics to the end.
pub async fn everything_is_read(site: &Site) {
    site.committed().await;
    for (group, topic) in [
        ("stock", &site.topics.catalog),
        ("generate", &site.topics.regen_live),
    ] {
        eventually(LIMIT, || async {
            let group = site.settings.group(group);
            let lag = site.admin.lag(&group, &[topic]).await;
            let lag = lag.map_err(|error| error.to_string())?;
            let behind: u64 = lag.values().sum();
            if behind == 0 {
                Ok(())
            } else {
                Err(format!("{group}: {lag:?}"))
            }
        })
        .await;
    }
}

fn origin(record: &Record) -> Rejected {
    let dead_letter = DeadLetter::read(record);
    assert_eq!(dead_letter.partition, Some(0));
    let topic = dead_letter.topic.expect("it names its topic");
    let offset = dead_letter.offset.expect("it names its offset");
    (topic, offset, dead_letter.code)
}

fn has_the_headers_of_connect(record: &Record) {
    for name in [
        "topic",
        "partition",
        "offset",
        "connector.name",
        "stage",
        "exception.class.name",
        "exception.message",
    ] {
        let name = format!("__connect.errors.{name}");
        let found = record.headers.iter().any(|(key, _)| *key == name);
        assert!(found, "{name} in {:?}", record.headers);
    }
    let kept = (TRACE.to_owned(), Bytes::from_static(b"\xff7"));
    assert!(
        record.headers.contains(&kept),
        "the original headers are missing"
    );
}

async fn what_is_good_is_folded(site: &Site, process: &Process) {
    let user = [UserId("good".into())];
    let loaded = site.store.load(&site.ns, &user).await;
    let loaded = loaded.expect("Redis answers");
    let events = bad_events().len();
    assert_eq!(loaded[0].state.window.len(), events + 1);
    let profile = loaded[0].state.profile.as_ref();
    let profile = profile.expect("a profile");
    let last = bad_profiles().len() - 1;
    assert_eq!(profile.profile.0["nth"], json!(last));
    let skus: Vec<String> = (0..5).map(crate::process::sku_id).collect();
    let out = site.store.sold_out(&skus).await.expect("Redis answers");
    assert_eq!(out, [true, true, true, true, false]);
    assert_eq!(
        process.metric("nearshore_unknown_skus_total", "").await,
        1.0
    );
    // The lane is served, too: the list is by the model.
    eventually(LIMIT, || async {
        let peek = site.peek("good").await;
        let list = peek.list.filter(|list| list.claim > 0);
        let list = list.ok_or("no list by the model")?;
        if list.seen.contains_all(&peek.fences) {
            Ok(())
        } else {
            Err(format!(
                "the list has seen {}, not {}",
                list.seen, peek.fences
            ))
        }
    })
    .await;
}

async fn dead_letters_are_listed_and_sent_back(site: &Site, rejected: &[Rejected]) {
    let text = site.output(&["dlq", "list", "--json"]).await;
    let line = |line: &str| -> Rejected {
        let dead_letter: Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| dead_letter[key].as_str().expect("text").to_owned();
        (
            text("topic"),
            dead_letter["offset"].as_i64().expect("a number"),
            text("code"),
        )
    };
    let mut listed: Vec<Rejected> = text.lines().map(line).collect();
    listed.sort();
    assert_eq!(listed, rejected);

    let dlq = &site.topics.dlq;
    let before = (
        site.count(dlq).await,
        site.count(&site.topics.user_events).await,
    );
    let text = site.output(&["dlq", "replay", "--dry-run", "--json"]).await;
    let report: Value = serde_json::from_str(&text).expect("JSON");
    // All but the one that was too large for the dlq.
    let wanted = json!({"sent": rejected.len() - 1, "left": 0, "hindered": 1, "dry_run": true});
    assert_eq!(report, wanted);
    let after = (
        site.count(dlq).await,
        site.count(&site.topics.user_events).await,
    );
    assert_eq!(before, after, "a dry run writes nothing");

    let words = ["dlq", "replay", "--code", "unknown_type", "--json"];
    let report: Value = serde_json::from_str(&site.output(&words).await).expect("JSON");
    assert_eq!(report["sent"], 1);
    // It is rejected again.
    eventually(LIMIT, || async {
        match site.count(dlq).await - before.0 {
            1 => Ok(()),
            more => Err(format!("{more} more dead letters")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_a_newer_version_stops_its_partition_only_and_is_kept() {
    let site = Site::open(&[("user_events", 4, &[])]).await;
    site.catalogue().await;
    let member = Process::ready(&site, "ingest").await;
    site.send(vec![site.bought("ann", 1)]).await;
    site.committed().await;
    let ann = UserId("ann".into());
    let loaded = site.store.load(&site.ns, std::slice::from_ref(&ann)).await;
    let fences = loaded.expect("Redis answers").remove(0).state.fences;
    let (stuck, offset) = fences.iter().next().expect("one event is folded");
    let key = keys::user(&site.ns, &ann).expect("keys").state;
    // As a later version would write it: its first byte is the version, 99.
    site.redis.ask(&["HSET", &key, "blob", "c-newer"]).await;
    site.redis.ask(&["HINCRBY", &key, "ver", "1"]).await;

    let others = (0..40).map(|nth| site.bought(&format!("user-{nth}"), nth));
    let events = std::iter::once(site.bought("ann", 2)).chain(others);
    site.send(events.collect()).await;
    eventually(LIMIT, || async {
        match member.metric("nearshore_partitions_stopped", "").await {
            1.0 => Ok(()),
            other => Err(format!("{other} stopped")),
        }
    })
    .await;
    all_but(&site, stuck).await;
    assert_eq!(committed(&site).await.get(stuck), Some(&(offset.0 + 1)));
    assert_eq!(site.redis.ask(&["HGET", &key, "blob"]).await, "c-newer");
    assert!(member.log().contains("stopped"), "{}", member.log());
    assert_eq!(member.get("/healthz").await.expect("it answers").0, 200);
    drop(member);

    // A new member stops it again. When the cause is removed it goes on by itself.
    let member = Process::start(&site, "ingest");
    eventually(LIMIT, || async {
        match member.get("/readyz").await {
            Ok((503, body)) if body.contains("newer") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_eq!(site.redis.ask(&["HGET", &key, "blob"]).await, "c-newer");
    site.redis.ask(&["DEL", &key]).await;
    site.committed().await;
}

async fn committed(site: &Site) -> BTreeMap<Partition, i64> {
    let group = site.ingest_group();
    let topic = &*site.topics.user_events;
    let committed = site.admin.committed(&group, &[topic]).await;
    let committed = committed.expect("Kafka answers");
    committed
        .into_iter()
        .map(|(partition, at)| (partition, at.0))
        .collect()
}

/// Waits until all partitions but one are committed to their end.
async fn all_but(site: &Site, stuck: &Partition) {
    let group = site.ingest_group();
    let topic = &*site.topics.user_events;
    eventually(LIMIT, || async {
        let lag = site.admin.lag(&group, &[topic]).await;
        let mut lag = lag.map_err(|error| error.to_string())?;
        lag.remove(stuck);
        if lag.len() == 3 && lag.values().all(|behind| *behind == 0) {
            Ok(())
        } else {
            Err(format!("{lag:?}"))
        }
    })
    .await;
}

#[test]
fn a_wrong_configuration_is_reported_before_anything_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bad.toml");
    std::fs::write(
        &file,
        "namespace = \"a\"\n[trigger]\n  quiet_perod = \"1s\"\n",
    )
    .expect("the file is written");
    let run = |name: &str, value: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_nearshore"))
            .args(["run", "--config"])
            .arg(&file)
            .env(name, value)
            .output()
            .expect("the binary starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, error) = run("OTHER", "1");
    assert_eq!(code, Some(2), "{error}");
    let wanted = "bad.toml:3:3 trigger.quiet_perod: unknown key; did you mean quiet_period?";
    assert!(error.contains(wanted), "{error}");

    std::fs::write(&file, "").expect("the file is written");
    let (code, error) = run("NEARSHORE__TRIGER__QUIET_PERIOD", "1s");
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("NEARSHORE__TRIGER__QUIET_PERIOD"), "{error}");
}
