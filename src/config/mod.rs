//! Builds one checked [`Config`] from the configuration file and the environment.
//!
//! Invariant: a [`Config`] that [`Config::load`] returned satisfies every rule of `verify.rs`, and every key of it is
//! in `config/nearshore.toml`, the reference. Only files are read here; `nearshore check` ([`crate::cli::check`]) asks
//! brokers and Redis.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use nearshore_core::list::prompt::Arm;
use nearshore_core::queue::topics::Topics;
use nearshore_core::schema::DurationText;
use nearshore_core::shop::naming::Naming;
use nearshore_core::shop::rules::{Rule, Segment};

mod env;
mod free;
mod inputs;
mod load;
mod problem;
mod reference;
mod repeats;
mod show;
mod texts;
mod trace;
mod verify;

pub use problem::{Place, Problem};
pub use reference::TEXT as REFERENCE;
pub(crate) use texts::{matcher as text_matcher, needs as text_needs};
pub use trace::{error_line, init_tracing, log_panics};

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Redis prefix and consumer group suffix: `[a-z0-9-]{1,32}`.
    pub namespace: String,
    /// Seed of the hash that gives a user their arm.
    pub arm_seed: String,
    /// Connection to Kafka.
    pub kafka: nearshore_kafka::KafkaSettings,
    /// Names of topics.
    pub topics: Topics,
    /// How the catalogue is read.
    pub catalog: Catalog,
    /// Topics of the shop that are mapped; compiled they are in `topics`.
    pub inputs: Vec<nearshore_core::map::InputSettings>,
    /// Connection to Redis.
    pub redis: nearshore_redis::RedisSettings,
    /// Which record times are accepted.
    pub time: Time,
    /// Which events are used.
    pub events: Events,
    /// What is kept of a user.
    pub state: State,
    /// When a list is requested.
    pub trigger: nearshore_core::user::trigger::Policy,
    /// How the lanes share the model.
    pub lanes: nearshore_core::queue::lanes::Policy,
    /// Backfills, and the deletion of namespaces.
    pub backfill: Backfill,
    /// How counts become demand.
    pub demand: nearshore_core::shop::demand::Policy,
    /// How the SKUs of a PU are chosen.
    pub selection: nearshore_core::list::select::Policy,
    /// When a bought product is not needed again.
    pub needs: nearshore_core::shop::rules::Needs,
    /// Which texts of users are matched with products.
    pub text: nearshore_core::names::meaning::TextSettings,
    /// What `nearshore align` may keep.
    pub align: Align,
    /// The merchant's boosts, pins and most names of one category.
    pub merchant: nearshore_core::shop::merchant::Policy,
    /// How the model is run.
    pub engine: Engine,
    /// Lists for users without one of their own.
    pub fallback: Fallback,
    /// What is measured.
    pub metrics: Metrics,
    /// `[audit]`.
    pub audit: AuditSettings,
    /// Health, metrics and the inspect page.
    pub http: Http,
    /// Log lines.
    pub log: Lines,
    /// Products that users may not be offered.
    pub rules: Vec<Rule>,
    /// Coarse groups of users; the first match wins.
    pub segments: Vec<Segment>,
    /// Combinations of model, prompt, weights and thresholds.
    pub arms: Vec<Arm>,
    /// Folder of the file; relative paths start there.
    #[serde(skip)]
    pub base: PathBuf,
    /// What `catalog.naming` says; read once, with the configuration.
    #[serde(skip)]
    pub naming: Option<Arc<Naming>>,
}

/// `[time]`: which record times are accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Time {
    /// A record whose time is further ahead of now goes to the dlq; only on live topics with CreateTime.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub max_ahead: Duration,
}

impl Default for Time {
    fn default() -> Self {
        Self {
            max_ahead: Duration::from_secs(300),
        }
    }
}

/// `[catalog]`: how the catalogue is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Catalog {
    /// Map of `nearshore catalog name`, by which SKUs without a product get one; empty is none.
    pub naming: String,
}

/// `[events]`: which events are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// Types that are counted and passed: neither folded nor sent to the dlq.
    pub ignore: Vec<String>,
}

impl Events {
    /// The ignored types, sorted.
    pub fn ignored(&self) -> std::collections::BTreeSet<String> {
        self.ignore.iter().cloned().collect()
    }
}

/// `[state]`: what is kept of a user.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Most events kept per user; the newest are kept.
    pub window: usize,
    /// Version of the encoding in which states are written.
    pub write_version: u8,
    /// Users whose state one ingest process keeps in memory.
    pub cache_users: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            window: 50,
            write_version: nearshore_core::user::state::VERSION_CURRENT,
            cache_users: 20_000,
        }
    }
}

/// `[backfill]`: backfills, and the deletion of namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Backfill {
    /// Most records that one backfill process folds per second; 0 is no limit.
    pub records_per_second: u32,
    /// How long clients may cache which namespace is served.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Engine {
    /// Threads of the model; 0 is one per core that the process may use.
    pub threads: usize,
    /// Precision of the weights.
    pub precision: nearshore_engine::Precision,
    /// Where the model is computed.
    pub device: nearshore_engine::Place,
    /// Most rows (trie nodes over all users) forwarded in one wave.
    pub batch_rows_max: usize,
    /// Memory for keys and values of all users of a batch, in MiB; users that do not fit wait.
    pub kv_mb_max: usize,
    /// Memory for keys and values of earlier prompts that each model keeps for later lists, in MiB; 0 keeps none.
    pub prompts_mb_max: usize,
    /// Arms with adapters of one model share its weights: each adapter is computed beside them, in f32.
    pub share_adapted: bool,
    /// Folder of the sentence encoder that makes vectors of texts; empty is none.
    pub encoder: String,
    /// Longest generation; a user who is not done by then gets the fallback.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
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
            prompts_mb_max: 0,
            share_adapted: false,
            encoder: String::new(),
            generation_max: Duration::from_secs(120),
        }
    }
}

/// `[align]`: what `nearshore align` may keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Align {
    /// Fewest users who have bought a pair of products, or have a value of a profile; at least 2.
    pub users_min: u32,
    /// Prompts of the model's table of products; each has `{name}` once, where the product's name is.
    pub table_wordings: Vec<String>,
}

impl Default for Align {
    fn default() -> Self {
        let wordings = [
            "A customer who buys {name} also buys",
            "Shopping list: {name},",
            "People who need {name} often need",
        ];
        Self {
            users_min: 3,
            table_wordings: wordings.map(str::to_owned).into(),
        }
    }
}

/// `[fallback]`: lists for users without one of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Fallback {
    /// How often each segment's list is written.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "DurationText")]
    pub every: Duration,
    /// Names on such a list.
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

/// `[audit]`: whose audits Redis keeps, and whose tell candidates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSettings {
    /// Share of the users whose audits are stored beside their lists, 0 to 1. `recall-updates` has every audit.
    pub keep: f64,
    /// Share of the users whose updates tell the SKUs that each name could have shown, 0 to 1.
    pub candidates: f64,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            keep: 1.0,
            candidates: 0.05,
        }
    }
}

/// `[metrics]`: what is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// Share of the users whose purchases are compared with their stored lists, 0 to 1.
    pub hits_sample: f64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { hits_sample: 0.1 }
    }
}

/// `[http]`: health, metrics and the inspect page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Whether `/inspect` is served; it shows the events of users.
    pub inspect: bool,
    /// File with the token of `/inspect`, which is needed where `listen` is not loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inspect_token_file: Option<PathBuf>,
    /// A second address for `/healthz` and `/readyz` alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_listen: Option<SocketAddr>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)),
            inspect: true,
            inspect_token_file: None,
            health_listen: None,
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Plain text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Whether text lines have colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// `[log]`: log lines, on standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lines {
    /// `error`, `warn`, `info`, `debug`, `trace`, or filters such as `info,nearshore_kafka=debug`.
    pub level: String,
    /// Format of the lines.
    pub format: Format,
    /// Colours of text lines.
    pub color: Color,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: Format::Text,
            color: Color::Auto,
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
            catalog: Catalog::default(),
            inputs: Vec::new(),
            redis: nearshore_redis::RedisSettings::default(),
            time: Time::default(),
            events: Events::default(),
            state: State::default(),
            trigger: nearshore_core::user::trigger::Policy::default(),
            lanes: nearshore_core::queue::lanes::Policy::default(),
            backfill: Backfill::default(),
            demand: nearshore_core::shop::demand::Policy::default(),
            selection: nearshore_core::list::select::Policy::default(),
            needs: nearshore_core::shop::rules::Needs::default(),
            text: Default::default(),
            align: Align::default(),
            merchant: nearshore_core::shop::merchant::Policy::default(),
            engine: Engine::default(),
            fallback: Fallback::default(),
            metrics: Metrics::default(),
            audit: AuditSettings::default(),
            http: Http::default(),
            log: Lines::default(),
            rules: Vec::new(),
            segments: Vec::new(),
            arms: Vec::new(),
            base: PathBuf::new(),
            naming: None,
        }
    }
}

impl Config {
    /// Reads file and environment and checks everything; returns all problems at once, in the file's order.
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

    /// The effective configuration as TOML, with secrets masked.
    pub fn effective(&self) -> String {
        show::effective(self)
    }

    /// Makes the paths of secret files absolute: Kafka, Redis and HTTP open these files and do not know the folder.
    fn resolve_secrets(&mut self) {
        let base = self.base.clone();
        let secrets = self.kafka.secret_files.values_mut();
        let redis = &mut self.redis;
        let files = [
            &mut redis.password_file,
            &mut redis.tls_ca,
            &mut redis.tls_cert,
            &mut redis.tls_key,
            &mut redis.sentinel_password_file,
            &mut self.http.inspect_token_file,
        ];
        for path in secrets.chain(files.into_iter().flatten()) {
            *path = base.join(&*path);
        }
        self.kafka.resolve_tls_files(&base);
    }

    /// The folder of the configured sentence encoder, if there is one.
    pub(crate) fn encoder(&self) -> Option<PathBuf> {
        let folder = Some(&self.engine.encoder).filter(|folder| !folder.is_empty());
        folder.map(|folder| self.resolve(folder))
    }

    /// The path of an arm's template, model or calibration file, relative to the folder of the configuration file.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base.join(path)
    }
}
