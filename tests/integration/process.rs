//! The real binary as child processes: a [`Site`] is everything that one test's processes share and nobody
//! else touches (topics, namespace, a Redis, a configuration file), a [`Process`] is one `nearshore run`.
//!
//! Two consumer groups have one name for all namespaces, so tests with processes take turns.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::{Peek, Users};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::{Record, Timestamp};
use nearshore_kafka::{Admin, KafkaSettings, NewTopic, Producer, Tailed, tail};
use nearshore_redis::RedisStore;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, MutexGuard};

use crate::harness::{eventually, fresh, variable};
use crate::store_faults::Server;

/// Longer than a start with a model, a takeover or a few lists on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);
/// What SIGTERM to the end may take.
pub const DRAIN: Duration = Duration::from_secs(10);

static TURN: Mutex<()> = Mutex::const_new(());

/// Products of the test's shop, with their category; each has two SKUs.
pub const SHELF: [(&str, &str); 15] = [
    ("FLUID MILK", "DAIRY"),
    ("YOGURT", "DAIRY"),
    ("CHEDDAR CHEESE", "DAIRY"),
    ("WHITE BREAD", "BAKERY"),
    ("BAGELS", "BAKERY"),
    ("CAKES", "BAKERY"),
    ("RED WINE", "WINE"),
    ("WHITE WINE", "WINE"),
    ("SPARKLING WINE", "WINE"),
    ("BABY DIAPERS", "BABY"),
    ("INFANT FORMULA", "BABY"),
    ("BABY FOOD", "BABY"),
    ("DRY DOG FOOD", "PETS"),
    ("CAT LITTER", "PETS"),
    ("CAT FOOD", "PETS"),
];

/// A topic of a site that is not as all others: key in `[topics]`, partitions, topic configuration.
pub type Special<'a> = (&'a str, i32, &'a [(&'a str, &'a str)]);

/// What the processes of one test share.
pub struct Site {
    pub ns: String,
    pub topics: Topics,
    pub settings: KafkaSettings,
    pub producer: Producer,
    pub admin: Admin,
    pub redis: Server,
    pub store: RedisStore,
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    /// A shop with topics, an empty Redis and a configuration; topics have two partitions unless said.
    pub async fn open(special: &[Special<'_>]) -> Self {
        Self::open_on(&variable("NEARSHORE_TEST_KAFKA"), special).await
    }

    /// The same on a broker of the test's own.
    pub async fn open_on(brokers: &str, special: &[Special<'_>]) -> Self {
        let turn = TURN.lock().await;
        let ns = fresh("way");
        let settings = KafkaSettings {
            session_timeout: Duration::from_secs(6),
            ..KafkaSettings::of(brokers)
        };
        let admin = Admin::new(&settings).expect("valid settings");
        let topics = named(&ns);
        admin
            .ensure(&new_topics(&topics, special))
            .await
            .expect("created");
        let redis = Server::start(&[]).await;
        let store = nearshore_redis::RedisSettings {
            url: redis.url(),
            ..Default::default()
        };
        let site = Self {
            producer: Producer::new(&settings).expect("valid settings"),
            store: RedisStore::new(store).expect("valid settings"),
            dir: tempfile::tempdir().expect("a folder"),
            ns,
            topics,
            settings,
            admin,
            redis,
            _turn: turn,
        };
        site.write(
            "basket.j2",
            include_str!("../../config/templates/basket.j2"),
        );
        site.write("nearshore.toml", &site.configuration());
        site
    }

    fn configuration(&self) -> String {
        let mut text = format!(
            "namespace = \"{}\"\n[kafka]\nbrokers = \"{}\"\nsession_timeout = \"6s\"\n[redis]\nurl = \"{}\"\n\
             [trigger]\nquiet_period = \"200ms\"\nclaim_every = \"200ms\"\nclaims_per_day = 1000\n\
             [lanes]\nbatch_max = 4\n[fallback]\nevery = \"1s\"\nnames = 5\n\
             [[arms]]\nid = \"test\"\nepoch = 1\ntemplate = \"basket.j2\"\nmodel = \"{}\"\nnames = 3\n\
             prompt_tokens = 256\n[topics]\n",
            self.ns,
            self.settings.brokers,
            self.redis.url(),
            variable("NEARSHORE_TEST_MODEL"),
        );
        for (key, name) in self.topics.keyed() {
            text += &format!("{key} = \"{name}\"\n");
        }
        for category in ["DAIRY", "BAKERY", "WINE", "BABY", "PETS"] {
            text += &format!(
                "[[rules]]\nid = \"no-{}\"\nwhen = {{ field = \"avoids\", in = [\"{category}\"] }}\n\
                 forbid = {{ categories = [\"{category}\"] }}\n",
                category.to_lowercase()
            );
        }
        text
    }

    /// A file in the site's folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// A folder of the site's.
    pub fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Runs a command of the binary on the site's configuration.
    pub async fn cli(&self, words: &[&str]) -> Output {
        let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
            .args(words)
            .arg("--config")
            .arg(self.dir.path().join("nearshore.toml"))
            .output();
        let output = tokio::time::timeout(LIMIT, run).await;
        output.expect("ends in time").expect("starts")
    }

    /// Runs a command that must succeed; its standard output.
    pub async fn said(&self, words: &[&str]) -> String {
        let output = self.cli(words).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Writes records, acknowledged and in order.
    pub async fn send(&self, records: Vec<Outgoing>) {
        self.producer.send(records).await.expect("written");
    }

    /// Writes the whole catalogue, all in stock.
    pub async fn catalogue(&self) {
        let skus = (0..2 * SHELF.len()).map(|nth| self.sku(nth, 20)).collect();
        self.send(skus).await;
    }

    /// A SKU's record.
    pub fn sku(&self, nth: usize, stock: i64) -> Outgoing {
        let (pu, category) = SHELF[nth / 2];
        let title = format!("{pu} {}", nth % 2);
        let value =
            json!({"pu": pu, "category": category, "title": title, "stock": stock, "price": 2.5});
        record(&self.topics.catalog, &sku_id(nth), &value)
    }

    /// A purchase.
    pub fn bought(&self, user: &str, nth: usize) -> Outgoing {
        let value =
            json!({"type": "purchase", "sku": sku_id(nth % 30), "qty": 1 + nth % 3, "price": 2.5});
        record(&self.topics.user_events, user, &value)
    }

    /// A profile.
    pub fn profile(&self, user: &str, value: &Value) -> Outgoing {
        record(&self.topics.profile_changes, user, value)
    }

    /// Everything on a topic now, in the order of each partition.
    pub async fn read(&self, topic: &str) -> Vec<Record> {
        let all = async {
            let mut tail = tail(&self.settings, topic, &BTreeMap::new())
                .await
                .expect("the topic is there");
            let mut records = Vec::new();
            while let Tailed::Record(record) = tail.next().await.expect("goes on") {
                records.push(record);
            }
            records
        };
        tokio::time::timeout(LIMIT, all)
            .await
            .expect("read in time")
    }

    /// How many records a topic holds.
    pub async fn count(&self, topic: &str) -> i64 {
        let extents = self.admin.extents(topic).await.expect("answered");
        extents.iter().map(|it| it.end.0 - it.begin.0).sum()
    }

    /// What a reader sees of a user.
    pub async fn peek(&self, user: &str) -> Peek {
        let user = [UserId(user.into())];
        let peeks = self.store.peek(&self.ns, &user).await.expect("answered");
        peeks.into_iter().next().expect("one")
    }

    /// Waits until the ingest group has committed all of both topics.
    pub async fn committed(&self) {
        let topics = [&*self.topics.user_events, &*self.topics.profile_changes];
        let group = format!("nearshore-ingest-{}", self.ns);
        eventually(LIMIT, || async {
            let lag = self.admin.lag(&group, &topics).await;
            let lag = lag.map_err(|error| error.to_string())?;
            if lag.values().all(|behind| *behind == 0) {
                Ok(())
            } else {
                Err(format!("{lag:?}"))
            }
        })
        .await;
    }
}

/// A SKU's id.
pub fn sku_id(nth: usize) -> String {
    format!("sku-{nth:02}")
}

/// A record of JSON.
pub fn record(topic: &str, key: &str, value: &Value) -> Outgoing {
    Outgoing {
        topic: topic.into(),
        key: Some(key.to_owned().into()),
        value: Some(value.to_string().into()),
        headers: Vec::new(),
        time: None,
    }
}

/// Now, as a record's timestamp.
pub fn now() -> Timestamp {
    nearshore::members::clock::wall_clock()
}

fn named(ns: &str) -> Topics {
    let name = |topic: &str| format!("{ns}-{topic}").into();
    Topics {
        user_events: name("events"),
        profile_changes: name("profiles"),
        catalog: name("catalog"),
        regen_urgent: name("urgent"),
        regen_live: name("live"),
        regen_backfill: name("backfill"),
        recall_updates: name("updates"),
        dlq: name("dlq"),
        ..Topics::default()
    }
}

fn new_topics(topics: &Topics, special: &[Special<'_>]) -> Vec<NewTopic> {
    let new = |(key, name): (&str, &str)| {
        let special = special.iter().find(|(of, ..)| *of == key);
        let config = special.map_or(&[][..], |(_, _, config)| config);
        NewTopic {
            name: name.to_owned(),
            partitions: special.map_or(2, |(_, partitions, _)| *partitions),
            config: config
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    };
    topics.keyed().into_iter().map(new).collect()
}

/// One `nearshore run`; asked to stop, then killed, when dropped.
pub struct Process {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Process {
    /// Starts a role.
    pub fn start(site: &Site, role: &str) -> Self {
        Self::start_with(site, role, &[])
    }

    /// Starts a role with more in its environment, and waits until it is ready.
    pub async fn with(site: &Site, role: &str, environment: &[(&str, &str)]) -> Self {
        let mut process = Self::start_with(site, role, environment);
        process.becomes_ready().await;
        process
    }

    /// Starts a role with more in its environment.
    pub fn start_with(site: &Site, role: &str, environment: &[(&str, &str)]) -> Self {
        Self::launch((env!("CARGO_BIN_EXE_nearshore"), role), site, environment)
    }

    /// Starts a role of another build.
    pub fn start_of(binary: &str, site: &Site, role: &str) -> Self {
        Self::launch((binary, role), site, &[])
    }

    fn launch((binary, role): (&str, &str), site: &Site, environment: &[(&str, &str)]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let log = site.dir.path().join(format!("{role}-{port}.log"));
        let stderr = std::fs::File::create(&log).expect("a file");
        let child = Command::new(binary)
            .args(["run", "--role", role, "--config"])
            .arg(site.dir.path().join("nearshore.toml"))
            // The address is a process's own, the file is shared: as an operator would do it.
            .env("NEARSHORE__HTTP__LISTEN", format!("127.0.0.1:{port}"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        Self { child, port, log }
    }

    /// Starts a role and waits until it is ready.
    pub async fn ready(site: &Site, role: &str) -> Self {
        let mut process = Self::start(site, role);
        process.becomes_ready().await;
        process
    }

    /// Waits for `/readyz`.
    pub async fn becomes_ready(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ended = self.child.try_wait().expect("asked");
            assert_eq!(ended, None, "{}", self.log());
            let last = match self.get("/readyz").await {
                Ok((200, _)) => return,
                Ok((_, body)) => body,
                Err(error) => error.to_string(),
            };
            assert!(Instant::now() < deadline, "{last}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Status and body of a page.
    pub async fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
            let ask = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            stream.write_all(ask.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
        let answer = tokio::time::timeout(DRAIN, ask).await.map_err(late)??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.unwrap_or(0), body.to_owned()))
    }

    /// Where a page is.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Sum of all series of a metric that have these labels.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, text) = self.get("/metrics").await.expect("metrics");
        let of = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(of).filter_map(value).sum()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log lines so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM; how it ended and how long that took.
    pub async fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal_term();
        loop {
            if let Some(status) = self.child.try_wait().expect("asked") {
                return (status, start.elapsed());
            }
            assert!(start.elapsed() < LIMIT, "does not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn signal_term(&self) {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(told.expect("kill runs").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // A member that leaves its groups spares the next test a session timeout.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = Instant::now() + DRAIN;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
