//! Promise: where the dlq takes no letter, because its broker is gone, it is closed to us or too small, the partition waits,
//! says so, and goes on when it can: no record is lost, none is passed before its letter is acknowledged.

use std::path::Path;
use std::process::Command;

use nearshore_core::ports::store::Users;
use nearshore_core::user::event::UserId;
use nearshore_kafka::dlq::DeadLetter;
use serde_json::Value;

use crate::harness::{eventually, variable};
use crate::process::{LIMIT, Process, Site};

/// A broker of this test's own, to be stopped and started; ends with the test's process at the latest.
struct Broker {
    dir: tempfile::TempDir,
    address: String,
}

impl Broker {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let address = run(dir.path(), &["start"]);
        Self { dir, address }
    }

    fn kill(&self) {
        run(self.dir.path(), &["stop", "--kill"]);
    }

    fn start_again(&self) {
        assert_eq!(run(self.dir.path(), &["start"]), self.address);
    }

    /// One of Kafka's own tools.
    fn tool(&self, class: &str, words: &[&str]) {
        let home = variable("NEARSHORE_TEST_KAFKA_HOME");
        let output = Command::new(format!("{home}/kafka"))
            .args(["tool", class, "--bootstrap-server", &self.address])
            .args(words)
            .output()
            .expect("starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {said}{error}");
    }

    /// Whether anybody may write to a topic.
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
    let output = command.output().expect("starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What `/readyz` says of a gate: whether it is open, and why not.
async fn gate(process: &Process, name: &str) -> (bool, String) {
    let (_, body) = process.get("/readyz").await.expect("answers");
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

async fn shut(process: &Process, name: &str, why: &str) {
    eventually(LIMIT, || async {
        match gate(process, name).await {
            (false, said) if said.contains(why) => Ok(()),
            said => Err(format!("{said:?}")),
        }
    })
    .await;
}

async fn position(site: &Site) -> i64 {
    let group = format!("nearshore-ingest-{}", site.ns);
    let committed = site
        .admin
        .committed(&group, &[&site.topics.user_events])
        .await;
    let committed = committed.expect("answered");
    committed.into_values().next().map_or(0, |at| at.0)
}

async fn window(site: &Site) -> usize {
    let user = [UserId("good".into())];
    let held = site.store.load(&site.ns, &user).await.expect("answered");
    held[0].state.window.len()
}

/// How many letters of the one bad record there are, each whole.
async fn letters(site: &Site, value: &Option<bytes::Bytes>, offset: i64) -> f64 {
    let letters = site.read(&site.topics.dlq).await;
    // A broker that dies, or is slow, may have taken a letter without a report: then it is written once more.
    assert!(!letters.is_empty(), "the letter is lost");
    for letter in &letters {
        let letter = DeadLetter::read(letter);
        let place = (letter.value, letter.offset);
        assert_eq!(place, (value.clone(), Some(offset)));
        assert_eq!(letter.value_dropped, None);
    }
    letters.len() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dlq_that_takes_nothing_is_waited_for_and_nothing_is_lost() {
    let broker = Broker::start();
    let one = |key| (key, 1, &[][..]);
    let site = Site::open_on(
        &broker.address,
        &[one("user_events"), one("catalog"), one("dlq")],
    )
    .await;
    site.catalogue().await;
    // A broker that is away must be noticed in the test's time.
    let quick = [("NEARSHORE__KAFKA__ACK_TIMEOUT", "2s")];
    let process = Process::with(&site, "ingest", &quick).await;
    site.send(vec![site.bought("good", 0)]).await;
    site.committed().await;
    let passed = position(&site).await;

    // Closed to us: the letter waits whole, it is not made lighter until something fits.
    broker.close(&site.topics.dlq, true);
    let mut bad = site.bought("bad", 1);
    bad.value = Some("no JSON".into());
    site.send(vec![bad.clone(), site.bought("good", 1)]).await;
    let why = "1 dead letters wait for the dlq";
    shut(&process, "dlq-ingest", why).await;
    let labels = "stage=\"event\"";
    let metric = "nearshore_dlq_waiting_records";
    assert_eq!(process.metric(metric, labels).await, 1.0);
    assert_eq!(
        process.metric("nearshore_partitions_stopped", "").await,
        0.0
    );
    assert!(
        process.log().contains("dead letters wait for the dlq"),
        "{}",
        process.log()
    );
    assert_eq!(process.get("/healthz").await.expect("answers").0, 200);

    // And its broker goes away and comes back meanwhile.
    broker.kill();
    shut(&process, "ingest", &broker.address).await;
    shut(&process, "dlq-ingest", why).await;
    broker.start_again();
    site.send(vec![site.bought("good", 2)]).await;
    shut(&process, "dlq-ingest", "authorization failed").await;
    assert_eq!(
        position(&site).await,
        passed,
        "passed only after the delivery report"
    );
    assert_eq!(site.count(&site.topics.dlq).await, 0);

    broker.close(&site.topics.dlq, false);
    site.committed().await;
    let letters = letters(&site, &bad.value, passed).await;
    assert_eq!(window(&site).await, 3, "what stands behind it is folded");
    assert_eq!(process.metric(metric, labels).await, 0.0);
    let counted = process.metric("nearshore_dlq_records_total", "").await;
    // Counted are the reports.
    assert!((1.0..=letters).contains(&counted), "{counted} of {letters}");
    let (open, said) = gate(&process, "dlq-ingest").await;
    assert!(open, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dlq_too_small_even_for_headers_is_waited_for_by_all_who_bury() {
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
    let with = |mut record: nearshore_core::ports::log::Outgoing| {
        record.value = Some("no JSON".into());
        record
    };
    let mut request = with(site.bought("bad", 1));
    request.topic = site.topics.regen_live.clone();
    site.send(vec![
        with(site.bought("bad", 1)),
        with(site.sku(3, 0)),
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
                (false, said) if said.contains("wait for the dlq") => Ok(()),
                said => Err(format!("{name}: {said:?}")),
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
    each_letter_is_whole(&site).await;
    assert_eq!(
        process.metric("nearshore_partitions_stopped", "").await,
        0.0
    );
}

/// One letter of each role, as it was.
async fn each_letter_is_whole(site: &Site) {
    let letters = site.read(&site.topics.dlq).await;
    let mut topics: Vec<_> = letters
        .iter()
        .map(|it| DeadLetter::read(it).topic.expect("ours"))
        .collect();
    topics.sort();
    let mut wanted: Vec<String> = [
        &site.topics.user_events,
        &site.topics.catalog,
        &site.topics.regen_live,
    ]
    .map(|topic| topic.to_string())
    .into();
    wanted.sort();
    assert_eq!(topics, wanted, "each once");
    // Whole: it is the topic that was too small, and it grew.
    assert!(
        letters
            .iter()
            .all(|it| it.value.as_deref() == Some(b"no JSON"))
    );
}
