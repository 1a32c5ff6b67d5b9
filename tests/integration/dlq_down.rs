//! Promise: while the dlq takes no dead letter, because its broker is down, writing is forbidden or the topic is too
//! small, the partition waits, reports it, and continues when it can: no record is lost or committed before its dead
//! letter is acknowledged.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_kafka::dlq::DeadLetter;
use serde_json::Value;

use crate::harness::{eventually, variable};
use crate::process::{LIMIT, Process, Site};

/// A broker of one test, to be stopped and started; it ends with the test's process at the latest.
struct Broker {
    dir: tempfile::TempDir,
    address: String,
}

impl Broker {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let address = run(dir.path(), &["start"]);
        Self { dir, address }
    }

    fn kill(&self) {
        run(self.dir.path(), &["stop", "--kill"]);
    }

    fn start_again(&self) {
        assert_eq!(run(self.dir.path(), &["start"]), self.address);
    }

    /// Runs one of Kafka's command-line tools.
    fn tool(&self, class: &str, words: &[&str]) {
        let home = variable("NEARSHORE_TEST_KAFKA_HOME");
        let output = Command::new(format!("{home}/kafka"))
            .args(["tool", class, "--bootstrap-server", &self.address])
            .args(words)
            .output()
            .expect("scripts/kafka starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {text}{error}");
    }

    /// Forbids or allows everyone to write to a topic.
    fn close(&self, topic: &str, closed: bool) {
        let rule = [
            "--deny-principal",
            "User:*",
            "--operation",
            "Write",
            "--topic",
            topic,
        ];
        let words = match closed {
            true => [&["--add"][..], &rule].concat(),
            false => [&["--remove", "--force"][..], &rule].concat(),
        };
        self.tool("org.apache.kafka.tools.AclCommand", &words);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        run(self.dir.path(), &["stop", "--kill"]);
    }
}

/// Runs `scripts/kafka` in this folder; its output.
fn run(dir: &Path, words: &[&str]) -> String {
    let home = variable("NEARSHORE_TEST_KAFKA_HOME");
    let mut command = Command::new(format!("{home}/kafka"));
    command.args(words).arg("--dir").arg(dir);
    if words == ["start"] {
        command.args(["--owner", &std::process::id().to_string()]);
        for setting in [
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found=true",
        ] {
            command.args(["--set", setting]);
        }
    }
    let output = command.output().expect("scripts/kafka starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A gate of `/readyz`: whether it is open, and its detail.
async fn gate(process: &Process, name: &str) -> (bool, String) {
    let (_, body) = process.get("/readyz").await.expect("it answers");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let found = find(&body, name).unwrap_or_else(|| panic!("no {name} in {body}"));
    let detail = found["detail"].as_str().unwrap_or_default().to_owned();
    (found["ready"] == Value::Bool(true), detail)
}

fn find<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object
        .get(name)
        .or_else(|| object.values().find_map(|inner| find(inner, name)))
}

/// Waits until a gate is closed with a detail that contains `why`.
async fn is_closed(process: &Process, name: &str, why: &str) {
    eventually(LIMIT, || async {
        match gate(process, name).await {
            (false, detail) if detail.contains(why) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The committed offset of the events.
async fn committed(site: &Site) -> i64 {
    let group = site.ingest_group();
    // A broker that has just started again may not answer a first question within its time.
    let committed = eventually(LIMIT, || async {
        let topics = [&*site.topics.user_events];
        let found = site.admin.committed(&group, &topics).await;
        found.map_err(|error| error.to_string())
    })
    .await;
    committed.into_values().next().map_or(0, |at| at.0)
}

/// Number of events of the user whose records are good.
async fn window(site: &Site) -> usize {
    let user = [UserId("good".into())];
    let loaded = site.store.load(&site.ns, &user).await;
    loaded.expect("Redis answers")[0].state.window.len()
}

/// Number of dead letters of the one bad record; each must be whole.
async fn dead_letters(site: &Site, value: &Option<bytes::Bytes>, offset: i64) -> f64 {
    let records = site.read(&site.topics.dlq).await;
    // A broker that dies or is slow may have written one without a report: then it is written once more.
    assert!(!records.is_empty(), "the dead letter is lost");
    for record in &records {
        let dead_letter = DeadLetter::read(record);
        let found = (dead_letter.value, dead_letter.offset);
        assert_eq!(found, (value.clone(), Some(offset)));
        assert_eq!(dead_letter.value_dropped, None);
    }
    records.len() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_wait_for_a_dlq_that_takes_nothing_and_none_is_lost() {
    let broker = Broker::start();
    let one = |key| (key, 1, &[][..]);
    let site = Site::open_on(
        &broker.address,
        &[one("user_events"), one("catalog"), one("dlq")],
    )
    .await;
    site.catalogue().await;
    // So that a dead broker is noticed soon.
    let quick = [("NEARSHORE__KAFKA__ACK_TIMEOUT", "3s")];
    let process = Process::with(&site, "ingest", &quick).await;
    site.send(vec![site.bought("good", 0)]).await;
    site.committed().await;
    let before = committed(&site).await;

    // Writing is forbidden: the dead letter waits whole, nothing of it is dropped.
    broker.close(&site.topics.dlq, true);
    let mut bad = site.bought("bad", 1);
    bad.value = Some("no JSON".into());
    site.send(vec![bad.clone(), site.bought("good", 1)]).await;
    let why = "dead letters wait for the dlq";
    is_closed(&process, "dlq-ingest", why).await;
    let labels = "stage=\"event\"";
    let metric = "nearshore_dlq_waiting_records";
    assert_eq!(process.metric(metric, labels).await, 1.0);
    assert_eq!(
        process.metric("nearshore_partitions_stopped", "").await,
        0.0
    );
    assert_eq!(process.get("/healthz").await.expect("it answers").0, 200);

    // Its broker dies and comes back meanwhile.
    broker.kill();
    is_closed(&process, "ingest", &broker.address).await;
    is_closed(&process, "dlq-ingest", why).await;
    broker.start_again();
    site.send(vec![site.bought("good", 2)]).await;
    is_closed(&process, "dlq-ingest", "authorization failed").await;
    assert_eq!(
        committed(&site).await,
        before,
        "committed before the delivery report"
    );
    assert_eq!(site.count(&site.topics.dlq).await, 0);

    broker.close(&site.topics.dlq, false);
    site.committed().await;
    let dead_letters = dead_letters(&site, &bad.value, before).await;
    assert_eq!(window(&site).await, 3, "records after it are folded");
    assert_eq!(process.metric(metric, labels).await, 0.0);
    let counted = process.metric("nearshore_dlq_records_total", "").await;
    // The metric counts reports.
    assert!(
        (1.0..=dead_letters).contains(&counted),
        "{counted} of {dead_letters}"
    );
    let (open, detail) = gate(&process, "dlq-ingest").await;
    assert!(open, "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_waits_for_a_dlq_that_is_too_small_even_for_headers() {
    let broker = Broker::start();
    let small: &[(&str, &str)] = &[("max.message.bytes", "100")];
    let one = |key| (key, 1, &[][..]);
    let special = [
        one("user_events"),
        one("catalog"),
        one("regen_live"),
        ("dlq", 1, small),
    ];
    let site = Site::open_on(&broker.address, &special).await;
    site.catalogue().await;
    let process = Process::ready(&site, "all").await;
    let not_json = |mut record: nearshore_core::ports::log::Outgoing| {
        record.value = Some("no JSON".into());
        record
    };
    let mut request = not_json(site.bought("bad", 1));
    request.topic = site.topics.regen_live.clone();
    site.send(vec![
        not_json(site.bought("bad", 1)),
        not_json(site.sku(3, 0)),
        request,
    ])
    .await;
    for (name, stage) in [
        ("ingest", "event"),
        ("stock", "catalog"),
        ("generate", "request"),
    ] {
        eventually(LIMIT, || async {
            match gate(&process, &format!("dlq-{name}")).await {
                (false, detail) if detail.contains("wait for the dlq") => Ok(()),
                other => Err(format!("{name}: {other:?}")),
            }
        })
        .await;
        let labels = format!("stage=\"{stage}\"");
        assert_eq!(
            process
                .metric("nearshore_dlq_waiting_records", &labels)
                .await,
            1.0
        );
    }
    broker.tool(
        "kafka.admin.ConfigCommand",
        &[
            "--alter",
            "--topic",
            &site.topics.dlq,
            "--add-config",
            "max.message.bytes=100000",
        ],
    );
    crate::poison::everything_is_read(&site).await;
    each_dead_letter_is_whole_or_says_what_is_missing(&site).await;
    assert_eq!(
        process.metric("nearshore_partitions_stopped", "").await,
        0.0
    );
}

/// One dead letter of each member, with its whole value or with the size of the value that it had to leave out.
async fn each_dead_letter_is_whole_or_says_what_is_missing(site: &Site) {
    let records = site.read(&site.topics.dlq).await;
    let mut topics: Vec<_> = records
        .iter()
        .map(|it| DeadLetter::read(it).topic.expect("it names its topic"))
        .collect();
    topics.sort();
    // Of a report that never came, the dead letter may be stored twice.
    topics.dedup();
    let mut wanted: Vec<String> = [
        &site.topics.user_events,
        &site.topics.catalog,
        &site.topics.regen_live,
    ]
    .map(|topic| topic.to_string())
    .into();
    wanted.sort();
    assert_eq!(topics, wanted);
    // A lighter form may be on its way while the limit is raised: it is stored then, and the whole one is not sent.
    for record in &records {
        let dropped = DeadLetter::read(record).value_dropped;
        let value = record.value.as_deref().unwrap_or_default();
        match dropped {
            None => assert_eq!(value, b"no JSON"),
            Some(size) => assert_eq!((value, size), (&b""[..], b"no JSON".len() as u64)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_broker_is_told_in_two_lines_a_minute() {
    let broker = Broker::start();
    let site = Site::open_on(&broker.address, &[("user_events", 1, &[])]).await;
    site.catalogue().await;
    let mut process = Process::ready(&site, "all").await;
    let (before, start) = (process.log().lines().count(), Instant::now());
    broker.kill();
    for role in ["ingest", "stock", "generate"] {
        is_closed(&process, role, &broker.address).await;
    }
    broker.start_again();
    process.becomes_ready().await;
    let minutes = start.elapsed().as_secs() as usize / 60 + 1;
    let log = process.log();
    let lines: Vec<&str> = log.lines().skip(before).collect();
    assert!(!lines.is_empty(), "nothing was said");
    assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "colours");
    assert!(
        lines.len() <= 2 * minutes + 2,
        "{} lines in {minutes} minutes: {lines:#?}",
        lines.len()
    );
}
