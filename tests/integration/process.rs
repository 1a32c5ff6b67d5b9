//! The real binary as child processes: a [`Site`] is what the processes of one test share and no other test touches
//! (topics, namespace, a Redis, a configuration file); a [`Process`] is one `nearshore run`.
//!
//! Lists come from a table of scores unless a test is about the model's weights: see [`Site::use_weights`].
//!
//! Each site has its own `kafka.group_prefix`, so the processes of tests that run side by side on one broker share no
//! consumer group.

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

pub use crate::harness::LIMIT;
use crate::harness::{ANSWER_MAX, eventually, fresh, variable};
use crate::store_faults::Server;

/// Deadline of a wait for lists by real weights: a batch takes minutes on a slow core.
pub const WEIGHTS_LIMIT: Duration = Duration::from_secs(1_800);
/// Longest drain, SIGTERM to exit, that passes. The promise is 10 s, of which timers are 7; only a hang takes ten times
/// as long. `scripts/chaos` measures the promise.
pub const DRAIN_MAX: Duration = Duration::from_secs(100);
/// The model of a site's arm.
pub const TABLE: &str = "table:20ms";

/// Products of the site's catalogue, with their category; each has two SKUs.
pub const PRODUCTS: [(&str, &str); 15] = [
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

/// A topic that differs from the site's others: key in `[topics]`, partitions, topic configuration.
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
}

impl Site {
    /// Creates topics, an empty Redis and a configuration; topics have two partitions unless `special` says otherwise.
    pub async fn open(special: &[Special<'_>]) -> Self {
        Self::open_on(&variable("NEARSHORE_TEST_KAFKA"), special).await
    }

    /// The same on a broker of the test's own.
    pub async fn open_on(broker: &str, special: &[Special<'_>]) -> Self {
        let ns = fresh("way");
        let settings = KafkaSettings {
            session_timeout: Duration::from_secs(6),
            ack_timeout: ANSWER_MAX,
            group_prefix: ns.clone(),
            ..KafkaSettings::of(broker)
        };
        let topics = named(&ns);
        let admin = Admin::new(&settings).expect("valid settings");
        admin
            .ensure(&new_topics(&topics, special))
            .await
            .expect("topics are created");
        Self::of(ns, topics, settings).await
    }

    /// Another installation on the topics of this one: the same namespace, a Redis of its own.
    pub async fn another(&self, group_prefix: &str) -> Self {
        let settings = KafkaSettings {
            group_prefix: group_prefix.into(),
            ..self.settings.clone()
        };
        Self::of(self.ns.clone(), self.topics.clone(), settings).await
    }

    async fn of(ns: String, topics: Topics, settings: KafkaSettings) -> Self {
        let admin = Admin::new(&settings).expect("valid settings");
        let redis = Server::start(&[]).await;
        let store = nearshore_redis::RedisSettings {
            url: redis.url(),
            response_max: ANSWER_MAX,
            connect_max: ANSWER_MAX,
            ..Default::default()
        };
        let site = Self {
            producer: Producer::new(&settings).expect("valid settings"),
            store: RedisStore::new(store).expect("valid settings"),
            dir: tempfile::tempdir().expect("a temporary folder"),
            ns,
            topics,
            settings,
            admin,
            redis,
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
            "namespace = \"{}\"\n[kafka]\nbrokers = \"{}\"\ngroup_prefix = \"{}\"\nsession_timeout = \"6s\"\n[redis]\nurl = \"{}\"\n\
             [trigger]\nquiet_period = \"200ms\"\nclaim_every = \"200ms\"\nclaims_per_day = 1000\n\
             [lanes]\nbatch_max = 4\n[fallback]\nevery = \"1s\"\nnames = 5\n\
             [[arms]]\nid = \"test\"\nepoch = 1\ntemplate = \"basket.j2\"\nmodel = \"{}\"\nnames = 3\n\
             weights = {{ model = 1.0 }}\nprompt_tokens = 256\n[topics]\n",
            self.ns,
            self.settings.brokers,
            self.settings.group_prefix,
            self.redis.url(),
            TABLE,
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

    /// Writes a file in the site's folder; its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        path
    }

    /// The site's folder, with `nearshore.toml`.
    pub fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The configuration file's text.
    pub fn config(&self) -> String {
        let path = self.dir.path().join("nearshore.toml");
        std::fs::read_to_string(path).expect("the site wrote its configuration")
    }

    /// Replaces texts of the configuration file; each must occur in it.
    pub fn edit(&self, changes: &[(&str, &str)]) {
        let mut text = self.config();
        for (old, new) in changes {
            assert!(
                text.contains(old),
                "no {old:?} in the configuration:\n{text}"
            );
            text = text.replace(old, new);
        }
        self.write("nearshore.toml", &text);
    }

    /// Appends sections to the configuration file.
    pub fn append(&self, sections: &str) {
        self.write("nearshore.toml", &(self.config() + sections));
    }

    /// Makes the arm's lists by real weights, however long the model takes on this machine. Wait [`WEIGHTS_LIMIT`] for
    /// them.
    pub fn use_weights(&self) {
        self.edit(&[
            (TABLE, &variable("NEARSHORE_TEST_MODEL")),
            ("prompt_tokens = 256", "prompt_tokens = 128"),
            ("[lanes]\n", "[lanes]\nmax_wait = \"2h\"\n"),
        ]);
        self.append("[engine]\ngeneration_max = \"30m\"\n");
    }

    /// Runs a command of the binary with the site's configuration.
    pub async fn cli(&self, words: &[&str]) -> Output {
        let run = tokio::process::Command::new(env!("CARGO_BIN_EXE_nearshore"))
            .args(words)
            .arg("--config")
            .arg(self.dir.path().join("nearshore.toml"))
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, run).await;
        let output = output.unwrap_or_else(|_| panic!("{words:?} did not end within {LIMIT:?}"));
        output.expect("the binary starts")
    }

    /// Runs a command that must succeed; its standard output.
    pub async fn output(&self, words: &[&str]) -> String {
        let output = self.cli(words).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {error}");
        String::from_utf8(output.stdout).expect("the output is text")
    }

    /// Writes records in order and waits for their acknowledgement.
    pub async fn send(&self, records: Vec<Outgoing>) {
        let sent = self.producer.send(records).await;
        sent.expect("the records are written");
    }

    /// Writes the whole catalogue, all in stock.
    pub async fn catalogue(&self) {
        let skus = (0..2 * PRODUCTS.len())
            .map(|nth| self.sku(nth, 20))
            .collect();
        self.send(skus).await;
    }

    /// A SKU's record.
    pub fn sku(&self, nth: usize, stock: i64) -> Outgoing {
        let (pu, category) = PRODUCTS[nth / 2];
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

    /// All records of a topic as of now, in the order of each partition.
    pub async fn read(&self, topic: &str) -> Vec<Record> {
        let all = async {
            let mut tail = tail(&self.settings, topic, &BTreeMap::new())
                .await
                .expect("the topic exists");
            let mut records = Vec::new();
            while let Tailed::Record(record) = tail.next().await.expect("the topic is read") {
                records.push(record);
            }
            records
        };
        let records = tokio::time::timeout(LIMIT, all).await;
        records.unwrap_or_else(|_| panic!("{topic} was not read within {LIMIT:?}"))
    }

    /// Number of records of a topic.
    pub async fn count(&self, topic: &str) -> i64 {
        let extents = self.admin.extents(topic).await.expect("Kafka answers");
        extents.iter().map(|it| it.end.0 - it.begin.0).sum()
    }

    /// What the store shows of a user.
    pub async fn peek(&self, user: &str) -> Peek {
        let user = [UserId(user.into())];
        let peeks = self
            .store
            .peek(&self.ns, &user)
            .await
            .expect("Redis answers");
        peeks.into_iter().next().expect("one answer per user")
    }

    /// The consumer group that fills the site's namespace.
    pub fn ingest_group(&self) -> String {
        self.settings.group(&format!("ingest-{}", self.ns))
    }

    /// Waits until the ingest group has committed both topics to their ends.
    pub async fn committed(&self) {
        let topics = [&*self.topics.user_events, &*self.topics.profile_changes];
        let group = self.ingest_group();
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

/// The id of the nth SKU.
pub fn sku_id(nth: usize) -> String {
    format!("sku-{nth:02}")
}

/// A record whose value is JSON.
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

/// One `nearshore run`. When dropped it gets SIGTERM, and SIGKILL if that does not end it.
pub struct Process {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Process {
    /// Starts a process with this role.
    pub fn start(site: &Site, role: &str) -> Self {
        Self::start_with(site, role, &[])
    }

    /// Starts a process with these environment variables and waits until it is ready.
    pub async fn with(site: &Site, role: &str, environment: &[(&str, &str)]) -> Self {
        let mut process = Self::start_with(site, role, environment);
        process.becomes_ready().await;
        process
    }

    /// Starts a process with these environment variables.
    pub fn start_with(site: &Site, role: &str, environment: &[(&str, &str)]) -> Self {
        Self::launch((env!("CARGO_BIN_EXE_nearshore"), role), site, environment)
    }

    /// Starts a process of another build.
    pub fn start_of(binary: &str, site: &Site, role: &str) -> Self {
        Self::launch((binary, role), site, &[])
    }

    /// Starts a process that may open so many descriptors.
    pub fn start_limited(site: &Site, role: &str, descriptors: usize) -> Self {
        let limit = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &limit, env!("CARGO_BIN_EXE_nearshore")]);
        Self::run(shell, role, site)
    }

    fn launch((binary, role): (&str, &str), site: &Site, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary);
        command.envs(environment.iter().copied());
        Self::run(command, role, site)
    }

    fn run(mut command: Command, role: &str, site: &Site) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let log = site.dir.path().join(format!("{role}-{port}.log"));
        let stderr = std::fs::File::create(&log).expect("a file");
        let child = command
            .args(["run", "--role", role, "--config"])
            .arg(site.dir.path().join("nearshore.toml"))
            // Each process has its own address; the file is shared.
            .env("NEARSHORE__HTTP__LISTEN", format!("127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the binary starts");
        Self { child, port, log }
    }

    /// Starts a process with this role and waits until it is ready.
    pub async fn ready(site: &Site, role: &str) -> Self {
        let mut process = Self::start(site, role);
        process.becomes_ready().await;
        process
    }

    /// Waits for `/readyz`.
    pub async fn becomes_ready(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ended = self.child.try_wait().expect("the status is known");
            assert_eq!(ended, None, "{}", self.log());
            let last = match self.get("/readyz").await {
                Ok((200, _)) => return,
                Ok((_, body)) => body,
                Err(error) => error.to_string(),
            };
            let late = Instant::now() > deadline;
            assert!(!late, "not ready within {LIMIT:?}: {last}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Status and body of a path on its HTTP address.
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
        let answer = tokio::time::timeout(LIMIT, ask).await.map_err(late)??;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.unwrap_or(0), body.to_owned()))
    }

    /// URL of a path on its HTTP address.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Sum of all series of a metric whose line has these labels.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, text) = self.get("/metrics").await.expect("it answers");
        let of = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
        };
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        text.lines().filter(of).filter_map(value).sum()
    }

    /// Number of its open descriptors.
    pub fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        open.map_or(0, Iterator::count)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log lines so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Sends SIGTERM; the exit status, and the time until the end.
    pub async fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal_term();
        loop {
            if let Some(status) = self.child.try_wait().expect("the status is known") {
                return (status, start.elapsed());
            }
            let late = start.elapsed() > LIMIT;
            assert!(
                !late,
                "SIGTERM did not end it within {LIMIT:?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn signal_term(&self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // A member that leaves its groups saves the next test a session timeout.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let deadline = Instant::now() + DRAIN_MAX;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            #[expect(clippy::disallowed_methods, reason = "drop cannot wait asynchronously")]
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
