//! Promise: of 289 hand-made bad records and 148 that are nearly bad, over all topics, each bad one is written to `dlq`
//! once, whole and with the right headers, each good one is folded, and no process crashes or stops.
//!
//! `tests/corpus/*.jsonl` has one record per line; `is` says what becomes of it. Text is its UTF-8 bytes; `{"hex": …}`,
//! `{"repeat": [part, times]}`, `{"join": [part, …]}` and `{"noise": bytes}` are other bytes; `$ns` is the namespace.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::Users;
use nearshore_core::user::event::{
    Change, Format, Limits, Source, UserId, decode_sku, decode_user,
};
use nearshore_core::user::record::{Position, Record, Timestamp};
use nearshore_core::user::trigger::Request;
use nearshore_kafka::dlq::DeadLetter;
use serde_json::Value;

use crate::harness::eventually;
use crate::log_kafka::noise;
use crate::poison::everything_is_read;
use crate::process::{LIMIT, Process, Site, now};

/// One line of a corpus file.
pub struct Case {
    pub name: String,
    /// `folded`, `erased`, or `dlq` and a code.
    pub is: String,
    pub record: Outgoing,
    /// Timestamp relative to now, in seconds.
    ahead: Option<i64>,
}

impl Case {
    /// The reject code, if it goes to `dlq`.
    pub fn code(&self) -> Option<&str> {
        self.is.strip_prefix("dlq ")
    }

    /// The record as it is sent to this topic now.
    fn sent(&self, topic: &str) -> Outgoing {
        let mut record = self.record.clone();
        record.topic = topic.into();
        if let Some(ahead) = self.ahead {
            record.time = Some(Timestamp(now().0 + ahead * 1_000));
        }
        record
    }
}

fn part(value: &Value, ns: &str) -> Vec<u8> {
    if let Value::String(text) = value {
        return text.replace("$ns", ns).into_bytes();
    }
    let (what, of) = value
        .as_object()
        .and_then(|it| it.iter().next())
        .expect("an object with one entry");
    match what.as_str() {
        "hex" => hex::decode(of.as_str().expect("digits")).expect("hexadecimal"),
        "repeat" => part(&of[0], ns).repeat(of[1].as_u64().expect("times") as usize),
        "join" => of
            .as_array()
            .expect("parts")
            .iter()
            .flat_map(|it| part(it, ns))
            .collect(),
        "noise" => hex::encode(noise(of.as_u64().expect("bytes") as usize / 2)).into_bytes(),
        other => panic!("no part is called {other}"),
    }
}

/// The lines of one file of the corpus.
pub fn cases(file: &str, ns: &str) -> Vec<Case> {
    let path = format!("{}/tests/corpus/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the corpus is there");
    let case = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        let bytes = |of: &Value| (!of.is_null()).then(|| Bytes::from(part(of, ns)));
        let headers = line["headers"].as_array().into_iter().flatten();
        Case {
            name: line["name"].as_str().expect("a name").into(),
            is: line["is"].as_str().expect("a verdict").into(),
            record: Outgoing {
                topic: "".into(),
                key: bytes(&line["key"]),
                value: bytes(&line["value"]),
                headers: headers
                    .map(|it| {
                        (
                            it[0].as_str().expect("a name").into(),
                            part(&it[1], ns).into(),
                        )
                    })
                    .collect(),
                time: line["time"].as_i64().map(Timestamp),
            },
            ahead: line["ahead"].as_i64(),
        }
    };
    text.lines().map(case).collect()
}

const FILES: [&str; 5] = [
    "user-events",
    "profile-changes",
    "debezium",
    "catalog",
    "requests",
];

/// What the decoder of that file makes of a record, as `is` would say it.
fn verdict(file: &str, record: &Record) -> String {
    let limits = Limits {
        now: Some(now()),
        ..Limits::default()
    };
    let user = |source| {
        decode_user(record, source, &limits).map(|accepted| match accepted.change {
            Change::Erase => "erased",
            Change::Event(_) | Change::Profile(_) => "folded",
        })
    };
    let decoded = match file {
        "user-events" => user(Source::Events),
        "profile-changes" => user(Source::Profiles(Format::Plain)),
        "debezium" => user(Source::Profiles(Format::Debezium)),
        // As the stock member calls it: the time of a catalogue record decides nothing.
        "catalog" => decode_sku(record, &Limits::default()).map(|_| "folded"),
        _ => Request::decode(record).map(|_| "folded"),
    };
    decoded.map_or_else(|reject| format!("dlq {}", reject.code()), str::to_owned)
}

fn delivered(sent: Outgoing, offset: i64) -> Record {
    Record {
        position: format!("0/t/0:{offset}").parse().expect("valid"),
        time: sent.time.unwrap_or_else(now),
        key: sent.key,
        value: sent.value,
        headers: sent.headers,
    }
}

#[test]
fn each_record_of_the_corpus_is_decoded_or_rejected_as_its_line_says() {
    let mut wrong = Vec::new();
    let (mut good, mut bad) = (0, 0);
    let mut codes = BTreeSet::new();
    for file in FILES {
        for (nth, case) in cases(file, "main").iter().enumerate() {
            let found = verdict(file, &delivered(case.sent("t"), nth as i64));
            if found != case.is {
                wrong.push(format!("{file}: {}: {found}, not {}", case.name, case.is));
            }
            match case.code() {
                Some(code) => {
                    bad += 1;
                    codes.insert(code.to_owned());
                }
                None => good += 1,
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(bad >= 200 && good >= 100, "{bad} bad, {good} good");
    // The first depends on what is stored, not on the record; the others are of mapped topics, see `mapping`.
    let elsewhere = [
        "unreadable_value",
        "bad_frame",
        "unmapped",
        "program_failed",
    ];
    let missing: Vec<_> = nearshore_core::user::event::Reject::ALL_CODES
        .iter()
        .filter(|code| !codes.contains(**code) && !elsewhere.contains(*code))
        .collect();
    assert!(missing.is_empty(), "no record has {missing:?}");
}

/// What was sent, by topic and offset: topics have one partition, so the offset is the number of records before.
type Sent = BTreeMap<(String, i64), Case>;

async fn send(site: &Site, (topic, file): (&str, &str)) -> Sent {
    let mut sent = Sent::new();
    let first = site.count(topic).await;
    let cases = cases(file, &site.ns);
    let records = cases.iter().map(|case| case.sent(topic));
    site.send(records.collect()).await;
    for (nth, case) in cases.into_iter().enumerate() {
        sent.insert((topic.to_owned(), first + nth as i64), case);
    }
    sent
}

/// Configuration of a topic that admits records of any size and time.
const ADMITS: &[(&str, &str)] = &[
    ("max.message.bytes", "8000000"),
    ("message.timestamp.after.max.ms", "9223372036854775807"),
];

/// Waits until all is read, then compares `dlq` with the bad records, header by header.
async fn each_bad_record_is_in_the_dlq_once(site: &Site, process: &Process, sent: &Sent) {
    everything_is_read(site).await;
    let mut found: BTreeMap<(String, i64), Vec<DeadLetter>> = BTreeMap::new();
    for record in site.read(&site.topics.dlq).await {
        let dead_letter = DeadLetter::read(&record);
        let place = (
            dead_letter.topic.clone().expect("it names its topic"),
            dead_letter.offset.expect("it names its offset"),
        );
        found.entry(place).or_default().push(dead_letter);
    }
    let stages = BTreeMap::from([
        (&*site.topics.user_events, "event"),
        (&*site.topics.profile_changes, "profile"),
        (&*site.topics.catalog, "catalog"),
        (&*site.topics.regen_live, "request"),
    ]);
    for (place, case) in sent {
        let name = format!("{}: {}", place.0, case.name);
        let dead_letters = found.remove(place).unwrap_or_default();
        let Some(code) = case.code() else {
            assert!(
                dead_letters.is_empty(),
                "{name} is good, and in dlq: {dead_letters:?}"
            );
            continue;
        };
        assert_eq!(dead_letters.len(), 1, "{name}");
        let dead_letter = &dead_letters[0];
        assert_eq!(
            (dead_letter.code.as_str(), dead_letter.stage.as_str()),
            (code, stages[&*place.0]),
            "{name}"
        );
        assert_eq!(
            (&dead_letter.key, &dead_letter.value),
            (&case.record.key, &case.record.value),
            "{name}"
        );
        assert_eq!(dead_letter.headers, case.record.headers, "{name}");
        assert_eq!(dead_letter.partition, Some(0), "{name}");
        assert!(
            !dead_letter.message.is_empty() && dead_letter.message.len() <= 1_024,
            "{name}"
        );
        if let Some(time) = case.record.time {
            assert_eq!(dead_letter.time, time, "{name}");
        }
    }
    assert!(found.is_empty(), "in dlq and not sent: {:?}", found.keys());
    assert_eq!(
        process.metric("nearshore_partitions_stopped", "").await,
        0.0
    );
    assert_eq!(
        process.metric("nearshore_dlq_waiting_records", "").await,
        0.0
    );
    assert_eq!(process.get("/healthz").await.expect("it answers").0, 200);
}

/// The metric of records by outcome adds up to the records of each topic, and its `dlq` to the bad ones.
async fn the_counts_add_up(site: &Site, process: &Process, sent: &Sent) {
    for topic in [
        &site.topics.user_events,
        &site.topics.profile_changes,
        &site.topics.catalog,
        &site.topics.regen_live,
    ] {
        let of = |outcome: &str| format!("topic=\"{topic}\",outcome=\"{outcome}\"");
        let all = format!("topic=\"{topic}\"");
        eventually(LIMIT, || async {
            let all_records = site.count(topic).await as f64;
            match process.metric("nearshore_records_total", &all).await {
                found if found == all_records => Ok(()),
                found => Err(format!("{topic}: {found} of {all_records}")),
            }
        })
        .await;
        let bad = sent
            .iter()
            .filter(|((of, _), case)| **of == **topic && case.code().is_some());
        let counted = process.metric("nearshore_records_total", &of("dlq")).await;
        assert_eq!(counted, bad.count() as f64, "{topic}");
        let twice = process
            .metric("nearshore_records_total", &of("duplicate"))
            .await;
        assert_eq!(twice, 0.0, "{topic}: a record was delivered twice");
    }
}

/// The fences contain every good record, and the window every good event.
async fn what_is_good_is_folded(site: &Site, sent: &Sent) {
    for topic in [&site.topics.user_events, &site.topics.profile_changes] {
        let source = site.topics.source(topic);
        for ((_, offset), case) in sent.iter().filter(|((of, _), _)| **of == **topic) {
            if case.code().is_some() {
                continue;
            }
            let mut record = delivered(case.sent(topic), *offset);
            record.position.partition.topic = (**topic).into();
            let accepted = decode_user(&record, source, &Limits::default()).expect(&case.name);
            let user = [UserId(accepted.user.0.clone())];
            let loaded = site.store.load(&site.ns, &user).await;
            let loaded = loaded.expect("Redis answers").remove(0);
            let at = Position::clone(&record.position);
            assert!(
                loaded.state.fences.contains(&at),
                "{}: {:?}",
                case.name,
                loaded.state.fences
            );
            if matches!(accepted.change, Change::Event(_)) {
                let mut window = loaded.state.window.iter();
                let kept = window.any(|event| event.position == at);
                assert!(kept, "{}: not in the window of {:?}", case.name, user[0]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_corpus_goes_through_a_process_without_stopping_it() {
    let site = Site::open(&[
        ("user_events", 1, ADMITS),
        ("profile_changes", 1, ADMITS),
        ("catalog", 1, ADMITS),
        ("regen_live", 1, ADMITS),
        ("dlq", 2, ADMITS),
    ])
    .await;
    site.catalogue().await;
    let process = Process::ready(&site, "all").await;
    let topics = &site.topics;
    let mut sent = Sent::new();
    // Requests first: once there are events, the process writes requests of its own between them.
    for (topic, file) in [
        (&topics.regen_live, "requests"),
        (&topics.user_events, "user-events"),
        (&topics.profile_changes, "profile-changes"),
        (&topics.catalog, "catalog"),
    ] {
        sent.append(&mut send(&site, (topic, file)).await);
    }
    // After all bad records: these must still be folded.
    site.send(vec![site.bought("behind", 3), site.sku(4, 0)])
        .await;
    each_bad_record_is_in_the_dlq_once(&site, &process, &sent).await;
    what_is_good_is_folded(&site, &sent).await;
    eventually(LIMIT, || async {
        let list = site.peek("behind").await.list.filter(|list| list.claim > 0);
        list.map(drop)
            .ok_or_else(|| "no list by the model".to_owned())
    })
    .await;
    everything_is_read(&site).await;
    the_counts_add_up(&site, &process, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_debezium_corpus_goes_through_a_process_without_stopping_it() {
    let site = Site::open(&[("profile_changes", 1, ADMITS), ("dlq", 1, ADMITS)]).await;
    let process = Process::with(
        &site,
        "ingest",
        &[("NEARSHORE__TOPICS__PROFILE_FORMAT", "debezium")],
    )
    .await;
    let mut sent = send(&site, (&site.topics.profile_changes, "debezium")).await;
    let key = br#"{"id":"behind"}"#;
    let mut behind = site.profile("", &serde_json::json!({"op": "c", "after": {"age": 1}}));
    behind.key = Some(Bytes::from_static(key));
    site.send(vec![behind]).await;
    site.committed().await;
    each_bad_record_is_in_the_dlq_once(&site, &process, &sent).await;
    let user = [UserId("behind".into())];
    let loaded = site.store.load(&site.ns, &user).await;
    let loaded = loaded.expect("Redis answers").remove(0);
    assert!(
        loaded.state.profile.is_some(),
        "the profile after the bad records is folded"
    );
    sent.retain(|_, case| case.is == "erased");
    assert!(!sent.is_empty());
    eventually(LIMIT, || async {
        // The delete and its tombstone are one erase, and no record of this user follows.
        let user = [UserId("db-1".into())];
        let loaded = site.store.load(&site.ns, &user).await;
        let loaded = loaded.map_err(|error| error.to_string())?;
        match loaded[0].state.is_vacant() && loaded[0].state.erased_at > Timestamp(0) {
            true => Ok(()),
            false => Err(format!("{:?}", loaded[0].state)),
        }
    })
    .await;
}
