//! What is written in the configuration file and the environment becomes one [`Config`], checked once.
//!
//! Invariant: a [`Config`] that [`Config::load`] returned satisfies every rule of `verify.rs`, and every
//! key of it is in `config/nearshore.toml`, the reference. It reads files and nothing else: whether a
//! broker or Redis answers is asked by `nearshore check` ([`crate::cli::check`]).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use nearshore_core::list::prompt::Arm;
use nearshore_core::queue::topics::Topics;
use nearshore_core::shop::rules::{Rule, Segment};

mod env;
mod load;
mod problem;
mod reference;
mod show;
mod trace;
mod verify;

pub use problem::{Place, Problem};
pub use reference::TEXT as REFERENCE;
pub use trace::init_tracing;

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Redis prefix and consumer group suffix: `[a-z0-9-]{1,32}`.
    pub namespace: String,
    /// Seed of the hash that gives a user their arm.
    pub arm_seed: String,
    /// How Kafka is reached.
    pub kafka: nearshore_kafka::KafkaSettings,
    /// Names of topics.
    pub topics: Topics,
    /// How Redis is reached.
    pub redis: nearshore_redis::RedisSettings,
    /// Which record times are believed.
    pub time: Time,
    /// What is kept of a user.
    pub state: State,
    /// When to ask for a list.
    pub trigger: nearshore_core::user::trigger::Policy,
    /// How the lanes share the engine.
    pub lanes: nearshore_core::queue::lanes::Policy,
    /// Replays, and the end of namespaces.
    pub backfill: Backfill,
    /// How counts become demand.
    pub demand: nearshore_core::shop::demand::Policy,
    /// How SKUs are chosen under a PU.
    pub selection: nearshore_core::list::select::Policy,
    /// What a user needs no more.
    pub needs: nearshore_core::shop::rules::Needs,
    /// How the model is run.
    pub engine: Engine,
    /// Lists for users without one of their own.
    pub fallback: Fallback,
    /// Health, metrics and the inspect page.
    pub http: Http,
    /// Log lines.
    pub log: Lines,
    /// Who may not be offered what.
    pub rules: Vec<Rule>,
    /// Coarse groups of users, first match wins.
    pub segments: Vec<Segment>,
    /// What lists are made with.
    pub arms: Vec<Arm>,
    /// Folder that relative paths start from: that of the file.
    #[serde(skip)]
    pub base: PathBuf,
}

/// `[time]`: which record times are believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Time {
    /// On a live CreateTime topic a record further ahead of now than this goes to the dlq.
    #[serde(with = "humantime_serde")]
    pub max_ahead: Duration,
}

impl Default for Time {
    fn default() -> Self {
        Self {
            max_ahead: Duration::from_secs(300),
        }
    }
}

/// `[state]`: what is kept of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Newest events kept.
    pub window: usize,
    /// Version of the stored encoding that is written.
    pub write_version: u8,
    /// Users whose state one ingest process keeps in memory.
    pub cache_users: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            window: 50,
            write_version: nearshore_core::user::state::VERSION_BEFORE,
            cache_users: 100_000,
        }
    }
}

/// `[backfill]`: replays, and the end of namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backfill {
    /// Most records that one backfill process folds per second; 0: as many as it can.
    pub records_per_second: u32,
    /// How long clients may cache which namespace is served.
    #[serde(with = "humantime_serde")]
    pub active_ttl: Duration,
    /// Most keys that `namespace retire` deletes per second.
    pub keys_per_second: u32,
}

impl Default for Backfill {
    fn default() -> Self {
        Self {
            records_per_second: 0,
            active_ttl: Duration::from_secs(60),
            keys_per_second: 5_000,
        }
    }
}

/// `[engine]`: how the model is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Threads of the model; 0 = cores - 1, so that the poll thread is never starved.
    pub threads: usize,
    /// How weights are kept and multiplied.
    pub precision: nearshore_engine::Precision,
    /// Where the model is computed.
    pub device: nearshore_engine::Place,
    /// Most rows (trie nodes over all users) forwarded in one wave.
    pub batch_rows_max: usize,
    /// Memory for keys and values of all users of a batch, in MiB; who does not fit waits.
    pub kv_mb_max: usize,
    /// Time of one generation; who is not done by then gets the fallback.
    #[serde(with = "humantime_serde")]
    pub generation_max: Duration,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            threads: 0,
            precision: nearshore_engine::Precision::default(),
            device: nearshore_engine::Place::default(),
            batch_rows_max: 512,
            kv_mb_max: 1024,
            generation_max: Duration::from_secs(120),
        }
    }
}

/// `[fallback]`: lists for users without one of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fallback {
    /// How often each segment's list is written.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Names on it.
    pub names: usize,
}

impl Default for Fallback {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(60),
            names: 20,
        }
    }
}

/// `[http]`: health, metrics and the inspect page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Whether `/inspect` is served: it shows what users did.
    pub inspect: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)),
            inspect: true,
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `[log]`: log lines, on standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lines {
    /// `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,nearshore::log=debug`.
    pub level: String,
    /// How they are written.
    pub format: Format,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: Format::Text,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "main".into(),
            arm_seed: "nearshore".into(),
            kafka: nearshore_kafka::KafkaSettings::default(),
            topics: Topics::default(),
            redis: nearshore_redis::RedisSettings::default(),
            time: Time::default(),
            state: State::default(),
            trigger: nearshore_core::user::trigger::Policy::default(),
            lanes: nearshore_core::queue::lanes::Policy::default(),
            backfill: Backfill::default(),
            demand: nearshore_core::shop::demand::Policy::default(),
            selection: nearshore_core::list::select::Policy::default(),
            needs: nearshore_core::shop::rules::Needs::default(),
            engine: Engine::default(),
            fallback: Fallback::default(),
            http: Http::default(),
            log: Lines::default(),
            rules: Vec::new(),
            segments: Vec::new(),
            arms: Vec::new(),
            base: PathBuf::new(),
        }
    }
}

impl Config {
    /// Reads file and environment, and checks everything; all problems at once, in the file's order.
    ///
    /// `env`: the whole environment; variables not beginning with `NEARSHORE__` are ignored.
    pub fn load(
        path: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<Problem>> {
        load::load(path, env)
    }

    /// Limits of decoding, as configured.
    pub fn limits(&self) -> nearshore_core::user::event::Limits {
        nearshore_core::user::event::Limits {
            max_ahead: self.time.max_ahead,
            ..nearshore_core::user::event::Limits::default()
        }
    }

    /// What is in force, as TOML, secrets masked.
    pub fn effective(&self) -> String {
        show::effective(self)
    }

    /// Kafka and Redis open their secrets' files themselves and know no base.
    fn place_secrets(&mut self) {
        let base = self.base.clone();
        let secrets = self.kafka.secret_files.values_mut();
        for path in secrets.chain(self.redis.password_file.as_mut()) {
            *path = base.join(&*path);
        }
    }

    /// A template or model of an arm, relative to the file's folder.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base.join(path)
    }
}
