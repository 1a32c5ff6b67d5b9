//! Dead letters on a real broker: written whatever the broker refuses, listed, sent back once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use nearshore::members::dlq::send_dead_letters;
use nearshore::ops::dlq::{ReplayFate, ReplayOrder, list, replay};
use nearshore_core::ports::log::{Log, Outgoing};
use nearshore_core::user::record::{Record, Timestamp};
use nearshore_kafka::dlq::{DeadLetter, Failure, Filter, dead};
use nearshore_kafka::tail;

use crate::harness::fresh;
use crate::log::{Kafka, Rig, TIME};
use crate::log_kafka::{noise, read_until_ready};

fn poison(topic: &str, nth: i64, value: Bytes, time: i64) -> Record {
    Record {
        position: format!("0/{topic}/0:{nth}").parse().expect("valid"),
        time: Timestamp(time),
        key: Some(format!("user-{nth}").into()),
        value: Some(value),
        headers: vec![("trace".into(), Bytes::from_static(b"abc"))],
    }
}

/// A dlq and the topic that its dead letters come from.
struct Dlq {
    kafka: Kafka,
    dlq: String,
    events: String,
}

impl Dlq {
    async fn new() -> Self {
        let kafka = Kafka::real();
        let (dlq, events) = (kafka.topic(2).await, kafka.topic(1).await);
        Self { kafka, dlq, events }
    }

    fn dead_letter(&self, nth: i64, code: &str, value: Bytes, time: i64) -> Outgoing {
        let failure = Failure {
            group: "g",
            member: "m",
            stage: "decode",
            code,
            message: "why",
            causes: "",
        };
        let record = poison(&self.events, nth, value, time);
        dead(&record, &failure, &self.dlq.as_str().into())
    }

    async fn send_dead_letters(&self, dead_letters: Vec<Outgoing>) {
        let log = self.kafka.join(&fresh("g"), &self.events);
        send_dead_letters(&log, dead_letters)
            .await
            .expect("no dead letter stops a partition");
        log.close().await;
    }

    async fn list(&self, code: &str) -> Vec<DeadLetter> {
        let listed = list(&self.kafka.settings, &self.dlq, &only(code), 10).await;
        listed.expect("the dlq is listed")
    }

    /// Offsets of dead letters by the name of their fate.
    async fn replay(&self, filter: Filter, dry_run: bool) -> BTreeMap<String, BTreeSet<i64>> {
        let order = ReplayOrder {
            topic: self.dlq.clone(),
            filter,
            replays_max: 2,
            dry_run,
            topics: Default::default(),
            limits: Default::default(),
        };
        let mut fates = BTreeMap::<String, BTreeSet<i64>>::new();
        let on = |dead_letter: &DeadLetter, fate: &ReplayFate| {
            let name = format!("{fate:?}");
            let name = name.split(['(', '{']).next().unwrap_or_default().to_owned();
            let offset = dead_letter.offset.expect("it has an origin");
            fates.entry(name).or_default().insert(offset);
        };
        let replayed = replay(&self.kafka.settings, &order, on).await;
        replayed.expect("the dlq is replayed");
        fates
    }
}

fn only(code: &str) -> Filter {
    Filter {
        code: Some(code.into()),
        ..Filter::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_kept_whatever_the_broker_refuses() {
    let dlq = Dlq::new().await;
    let year_9999 = 253_370_764_800_000;
    let mut dead_letters: Vec<Outgoing> = (0..10)
        .map(|nth| dlq.dead_letter(nth, "plain", "x".into(), TIME))
        .collect();
    dead_letters.push(dlq.dead_letter(40, "time", "y".into(), year_9999));
    dead_letters.push(dlq.dead_letter(41, "large", noise(2_000_000), TIME));
    dlq.send_dead_letters(dead_letters).await;
    let plain = dlq.list("plain").await;
    assert_eq!(plain.len(), 10, "each once");
    assert!(plain.iter().all(|it| it.time == Timestamp(TIME)));
    assert_eq!(dlq.list("time").await[0].time, Timestamp(year_9999));
    let large = &dlq.list("large").await[0];
    assert_eq!(large.value_dropped, Some(2_000_000));
    assert_eq!(
        large.headers,
        [("trace".to_owned(), Bytes::from_static(b"abc"))]
    );
    let fates = dlq.replay(Filter::default(), false).await;
    assert_eq!(fates["Hindered"], BTreeSet::from([41]));
    assert_eq!(fates["Refused"], BTreeSet::from([40]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_sent_back_once() {
    let dlq = Dlq::new().await;
    let code = |nth: i64| ["even", "odd"][usize::from(nth % 2 == 1)];
    let dead_letters = (0..40).map(|nth| dlq.dead_letter(nth, code(nth), "x".into(), TIME));
    dlq.send_dead_letters(dead_letters.collect()).await;
    // A crash before the commit: the same record comes again and is written to the dlq again.
    dlq.send_dead_letters(vec![dlq.dead_letter(3, "odd", "x".into(), TIME)])
        .await;

    let even: BTreeSet<i64> = (0..40).filter(|nth| nth % 2 == 0).collect();
    let odd: BTreeSet<i64> = (0..40).filter(|nth| nth % 2 == 1).collect();
    assert_eq!(dlq.replay(only("even"), true).await["Replayed"], even);
    assert_eq!(dlq.replay(only("even"), false).await["Replayed"], even);
    let again = dlq.replay(only("even"), false).await;
    assert!(!again.contains_key("Replayed"), "once: {again:?}");
    let rest = dlq.replay(Filter::default(), false).await;
    assert_eq!(
        rest["Replayed"], odd,
        "dead letters that a filter left are still there"
    );
    assert_eq!(rest["Duplicate"], BTreeSet::from([3]));

    let settings = &dlq.kafka.settings;
    let mut back = tail(settings, &dlq.events, &BTreeMap::new())
        .await
        .expect("topic");
    let back = read_until_ready(&mut back).await;
    let keys: BTreeSet<_> = back.iter().map(|it| it.key.clone()).collect();
    assert_eq!((back.len(), keys.len()), (40, 40));
    let names: Vec<_> = back[0]
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "trace",
            "nearshore.time",
            "nearshore.replays",
            "nearshore.origin"
        ]
    );
}
