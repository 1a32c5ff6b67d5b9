//! Promise: `check --acl` prints the rights that each role and every command needs on Kafka and Redis; with exactly
//! these all of it works, and `check` names each one that is taken away. A right that is missing inside a script is a
//! fault of the login, not of the user whose record met it.

use std::process::{Command, Output};

use nearshore_core::ports::store::{Error, FoldWrite, Users};
use nearshore_redis::{RedisSettings, RedisStore, Use, acl};
use serde_json::Value;

use crate::harness::{eventually, variable};
use crate::process::{LIMIT, Site};
use crate::store::{user, write};
use crate::store_faults::Server;
use crate::tls::{Access, free_port, shown};

const USES: [(&str, Use); 3] = [
    ("ingest", Use::Ingest),
    ("generate", Use::Generate),
    ("operator", Use::Operate),
];

fn login(server: &Server, name: &str) -> RedisSettings {
    RedisSettings {
        url: server.url().replace("//", &format!("//{name}:secret@")),
        ..RedisSettings::default()
    }
}

/// Gives a user of Redis these rights and nothing else.
async fn grant(server: &Server, rule: &str) {
    let words: Vec<&str> = rule.split(' ').chain([">secret"]).collect();
    server.ask(&words).await;
}

/// What a new connection of this login lacks; empty if it has everything.
async fn lacks(settings: &RedisSettings, usage: Use) -> String {
    let store = RedisStore::new(settings.clone()).expect("valid settings");
    match store.check_rights(&[usage]).await {
        Ok(checks) => checks
            .into_iter()
            .filter_map(|(_, found)| found.err())
            .collect(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_in_redis_that_is_taken_away_is_named() {
    let server = Server::start(&[]).await;
    for (name, usage) in USES {
        let settings = login(&server, name);
        let rule = acl(name, &[usage], &settings).expect("valid settings");
        grant(&server, &rule).await;
        assert_eq!(lacks(&settings, usage).await, "", "{rule}");
        let rights: Vec<&str> = rule
            .split(' ')
            .filter(|word| word.starts_with(['+', '~']))
            .collect();
        assert!(rights.len() > 20, "{rule}");
        for right in rights {
            let less = rule.replace(&format!(" {right} "), " ");
            let less = less.strip_suffix(&format!(" {right}")).unwrap_or(&less);
            assert_ne!(less, rule);
            grant(&server, less).await;
            let told = lacks(&settings, usage).await;
            // A right that the connection itself needs is told in Redis' words.
            let named = told.contains(right)
                || told.contains(&format!("'{}'", right.trim_start_matches('+')));
            assert!(named, "without {right}: {told:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_of_rights_leaves_nothing_that_stays() {
    let server = Server::start(&[]).await;
    let settings = RedisSettings {
        url: server.url(),
        ..RedisSettings::default()
    };
    assert_eq!(lacks(&settings, Use::Operate).await, "");
    let client = redis::Client::open(server.url()).expect("an address");
    let mut conn = client
        .get_multiplexed_async_connection()
        .await
        .expect("it answers");
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut conn)
        .await
        .expect("an answer");
    assert!(!keys.is_empty());
    for key in keys {
        assert!(
            key.starts_with("nearshore:probe:{nearshore-probe-}"),
            "{key}"
        );
        let ttl: i64 = redis::cmd("PTTL")
            .arg(&key)
            .query_async(&mut conn)
            .await
            .expect("an answer");
        assert!(ttl > 0, "{key} stays");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_a_script_lacks_is_a_fault_of_the_login() {
    let server = Server::start(&[]).await;
    let settings = login(&server, "ingest");
    let rule = acl("ingest", &[Use::Ingest], &settings).expect("valid settings");
    grant(&server, &rule.replace(" +hset", "")).await;
    let store = RedisStore::new(settings).expect("valid settings");
    let error = store
        .fold("main", &[first("ann")])
        .await
        .expect_err("HSET is forbidden");
    assert!(
        matches!(&error, Error::Unavailable { reason, .. } if reason.contains("lacks a right")),
        "{error:?}"
    );
    grant(&server, &rule).await;
    store
        .fold("main", &[first("ann")])
        .await
        .expect("HSET is permitted");
}

/// The first write of a user.
fn first(name: &str) -> FoldWrite {
    write(&user(name), 0, 1)
}

/// A broker that permits nothing but what its ACL says; whoever comes without a login is its administrator.
struct Broker {
    dir: tempfile::TempDir,
    plain: u16,
    login: u16,
}

impl Broker {
    fn start() -> Self {
        let broker = Self {
            dir: tempfile::tempdir().expect("a folder"),
            plain: free_port(),
            login: free_port(),
        };
        let controller = free_port();
        let listeners = format!(
            "PLAINTEXT://127.0.0.1:{},LOGIN://127.0.0.1:{}",
            broker.plain, broker.login
        );
        let users: String = USES
            .iter()
            .map(|(name, _)| format!(" user_{name}=\"secret\""))
            .collect();
        let settings = [
            format!("listeners={listeners},CONTROLLER://127.0.0.1:{controller}"),
            format!("advertised.listeners={listeners}"),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT".into(),
            format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
            "listener.name.login.sasl.enabled.mechanisms=PLAIN".into(),
            format!("listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required{users};"),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".into(),
            "super.users=User:ANONYMOUS".into(),
        ];
        let (owner, port) = (std::process::id().to_string(), broker.plain.to_string());
        let dir = shown(broker.dir.path());
        let words = settings.iter().flat_map(|setting| ["--set", setting]);
        let start = ["start", "--owner", &owner, "--port", &port, "--dir"];
        let words: Vec<&str> = start.into_iter().chain([&*dir]).chain(words).collect();
        kafka(&words);
        broker
    }

    fn plain(&self) -> String {
        format!("127.0.0.1:{}", self.plain)
    }

    /// Adds or removes ACLs as a printed line says.
    fn acls(&self, line: &str, from: &str, to: &str) {
        let line = line.replace(from, to);
        let words = line.split(' ').skip(3).map(|word| word.trim_matches('\''));
        let plain = self.plain();
        let tool = [
            "tool",
            "org.apache.kafka.tools.AclCommand",
            "--bootstrap-server",
            &plain,
        ];
        kafka(&tool.into_iter().chain(words).collect::<Vec<_>>());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        kafka(&["stop", "--kill", "--dir", &shown(self.dir.path())]);
    }
}

/// Runs `scripts/kafka`.
fn kafka(words: &[&str]) {
    let home = variable("NEARSHORE_TEST_KAFKA_HOME");
    let run = Command::new(format!("{home}/kafka")).args(words).output();
    let output: Output = run.expect("scripts/kafka starts");
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&said)
    );
}

/// How a login of this name reaches both.
fn access(site: &Site, broker: &Broker, name: &str) -> Access {
    let secret = site.write("secret", "secret");
    let properties = format!(
        "{{ \"security.protocol\" = \"sasl_plaintext\", \"sasl.mechanism\" = \"PLAIN\", \"sasl.username\" = \"{name}\" }}"
    );
    Access(vec![
        (
            "NEARSHORE__KAFKA__BROKERS",
            format!("127.0.0.1:{}", broker.login),
        ),
        ("NEARSHORE__KAFKA__PROPERTIES", properties),
        (
            "NEARSHORE__KAFKA__SECRET_FILES",
            format!("{{ \"sasl.password\" = {:?} }}", shown(&secret)),
        ),
        ("NEARSHORE__REDIS__USERNAME", name.into()),
        ("NEARSHORE__REDIS__PASSWORD_FILE", shown(&secret)),
    ])
}

/// Grants what `check --acl` prints for this login; the lines for Kafka.
async fn grant_printed(site: &Site, broker: &Broker, name: &str) -> Vec<String> {
    let words = ["check", "--acl", "--role", name, "--json"];
    let printed = access(site, broker, name).cli(site, &words).await;
    let printed: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    let rule = printed["redis"].as_str().expect("a rule");
    assert!(rule.starts_with(&format!("ACL SETUSER {name} ")), "{rule}");
    grant(&site.redis, rule).await;
    let lines = printed["kafka"].as_array().expect("lines").iter();
    let lines: Vec<String> = lines.filter_map(Value::as_str).map(String::from).collect();
    std::thread::scope(|scope| {
        for line in &lines {
            scope.spawn(|| broker.acls(line, "", ""));
        }
    });
    lines
}

async fn succeeds(access: &Access, site: &Site, words: &[&str]) {
    let output = access.cli(site, words).await;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {said}");
    for refusal in ["lacks", "uthorization", "NOPERM"] {
        assert!(!said.contains(refusal), "{words:?}: {said}");
    }
}

async fn report(access: &Access, site: &Site, role: &str) -> (Option<i32>, String) {
    let output = access.cli(site, &["check", "--role", role]).await;
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_role_and_command_works_with_exactly_the_rights_that_are_printed() {
    let broker = tokio::task::spawn_blocking(Broker::start)
        .await
        .expect("it starts");
    let site = Site::open_on(&broker.plain(), &[]).await;
    site.catalogue().await;
    let mut granted = Vec::new();
    for (name, _) in USES {
        granted.push(grant_printed(&site, &broker, name).await);
    }
    let [ingest, generate, operator] = USES.map(|(name, _)| access(&site, &broker, name));
    for (access, (name, _)) in [&ingest, &generate, &operator].into_iter().zip(USES) {
        let (code, report) = report(access, &site, name).await;
        assert_eq!(code, Some(0), "{report}");
        assert!(report.contains("all that are needed, on "), "{report}");
    }
    let mut processes = [
        ingest.start(&site, "ingest"),
        generate.start(&site, "generate"),
    ];
    for process in &mut processes {
        process.becomes_ready().await;
    }
    site.send((0..4).map(|nth| site.bought("ann", nth)).collect())
        .await;
    site.send(vec![
        site.profile("ann", &serde_json::json!({"avoids": ["WINE"]})),
    ])
    .await;
    eventually(LIMIT, || async {
        let list = site.peek("ann").await.list;
        list.map(drop)
            .ok_or_else(|| processes.each_ref().map(|it| it.log()).concat())
    })
    .await;
    commands(&operator, &site).await;
    for process in &processes {
        let log = process.log();
        for refusal in ["lacks a right", "uthorization", "NOPERM"] {
            assert!(!log.contains(refusal), "{log}");
        }
    }
    drop(processes);
    taken_away(&site, &broker, &generate, &granted[1]).await;
}

/// Every command that reaches Kafka or Redis.
async fn commands(operator: &Access, site: &Site) {
    let (next, ns) = (format!("{}-2", site.ns), &*site.ns);
    let row = "{\"user\":\"bob\",\"type\":\"view\",\"sku\":\"sku-01\",\"timestamp\":\"2026-01-31T17:30:00Z\"}\n";
    let file = shown(&site.write("events.jsonl", row));
    let supposed = "{\"type\":\"view\",\"sku\":\"sku-01\"}\n";
    let supposed = shown(&site.write("supposed.jsonl", supposed));
    let orders: &[&[&str]] = &[
        &["import", "--events", &file],
        &["get", "ann"],
        &["inspect", "ann"],
        &["inspect", "ann", "--why-not", "RED WINE"],
        &["inspect", "ann", "--what-if", &supposed],
        &["tap", "--user", "ann", "--for", "2s"],
        &["arms"],
        &["block", "sku-01", "--reason", "a test"],
        &["unblock", "sku-01"],
        &["sweep"],
        &["refresh", "--all", "--force"],
        &["dlq", "list"],
        &["dlq", "replay"],
        &["backfill", "--namespace", &next, "--from", "earliest"],
        &["namespace", "list"],
        &["namespace", "dump", ns],
        &["namespace", "diff", ns, &next, "--all"],
        &["namespace", "promote", &next, "--force"],
        &["namespace", "promote", ns, "--force"],
        &["namespace", "retire", &next],
        &["forget", "ann"],
        &["forget", "--export", "-"],
    ];
    for order in orders {
        succeeds(operator, site, order).await;
    }
}

/// Three rights of Kafka are taken away, one of each kind and one after the other; `check` names each.
async fn taken_away(site: &Site, broker: &Broker, generate: &Access, granted: &[String]) {
    let with = |part: &str| {
        granted
            .iter()
            .find(|line| line.contains(part))
            .expect("a line")
    };
    let lane = &*site.topics.regen_live;
    let group = site.settings.group("generate");
    let cases = [
        (
            with(lane),
            format!("--topic {lane}"),
            "Write",
            format!("Write on topic {lane}"),
        ),
        (
            with(&site.topics.catalog),
            format!("--topic {}", site.topics.catalog),
            "DescribeConfigs",
            format!("DescribeConfigs on topic {}", site.topics.catalog),
        ),
        (
            with(&format!(
                "--operation Read --operation Describe --group {group}"
            )),
            format!("--group {group}"),
            "Read",
            format!("Read on group {group}"),
        ),
    ];
    for (line, name, operation, told) in cases {
        let principal = line.split(" --operation ").next().expect("a principal");
        let one = format!("{principal} --operation {operation} {name}");
        broker.acls(&one, "--add", "--remove --force");
        let (code, report) = eventually(LIMIT, || async {
            let (code, report) = report(generate, site, "generate").await;
            match report.contains(&told) {
                true => Ok((code, report)),
                false => Err(report),
            }
        })
        .await;
        assert_eq!(code, Some(1), "{report}");
    }
}
