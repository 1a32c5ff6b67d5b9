//! Settings of Kafka clients: [`KafkaSettings`], and the librdkafka configuration made from them.
//!
//! Decides which properties an operator cannot set: those on which guarantees depend (manual commits, the assignor,
//! idempotence). All others are passed to librdkafka unchanged. `consumer` and `producer` override `properties`, which
//! override the defaults here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{oauth, protection};
use nearshore_core::ports::log::Error;
use nearshore_core::text::decode_secret;
use nearshore_core::user::record::Partition;

/// The property that makes a member static: it keeps its partitions while it restarts.
const INSTANCE: &str = "group.instance.id";

/// Properties on which guarantees depend; a configuration must not set them.
const RESERVED: [&str; 9] = [
    "bootstrap.servers",
    "client.id",
    "group.id",
    INSTANCE,
    "enable.auto.commit",
    "enable.auto.offset.store",
    "partition.assignment.strategy",
    "enable.idempotence",
    "acks",
];

/// Properties whose value is a secret: they belong into a file that only the process can read.
const SECRET: [&str; 7] = [
    "sasl.password",
    oauth::SECRET,
    oauth::TOKEN,
    "sasl.oauthbearer.config",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
];

/// What stands between a client id and the id of an installation.
pub(super) const INSTALLATION_MARK: &str = ".redis-";

/// Memory of librdkafka's queue per consumer, in KiB. A pause drops the queue, so a long stall reads as much again.
const PREFETCH_KILOBYTES: &str = "16384";

/// Largest record that the producer sends, in bytes: a dead letter keeps the original whole, which may be 2 MB.
const RECORD_MAX: &str = "8388608";

/// The `[kafka]` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaSettings {
    /// Bootstrap servers, `host:port`, comma-separated.
    pub brokers: String,
    /// Client id, for the brokers' logs and quotas.
    pub client_id: String,
    /// What the names of all consumer groups begin with. Installations that share a Kafka need one each.
    pub group_prefix: String,
    /// librdkafka properties for every client.
    pub properties: BTreeMap<String, String>,
    /// librdkafka properties for consumers only.
    pub consumer: BTreeMap<String, String>,
    /// librdkafka properties for producers only.
    pub producer: BTreeMap<String, String>,
    /// librdkafka properties whose value is read from a file (passwords); a final newline is dropped.
    pub secret_files: BTreeMap<String, PathBuf>,
    /// How long a silent member keeps its partitions.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub session_timeout: Duration,
    /// How long a write, a commit or a question to the cluster may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "nearshore_core::schema::DurationText")]
    pub ack_timeout: Duration,
    /// Name by which a restarted member of ingest and stock is the same member (static membership); `None`: a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Id of the installation, which members of groups add to their client id: see [`GroupMember::installation`].
    ///
    /// [`GroupMember::installation`]: crate::GroupMember::installation
    #[serde(skip)]
    pub installation: Option<String>,
    /// Incarnation per topic, raised when the topic is recreated; 0 where absent.
    pub incarnations: BTreeMap<String, u32>,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".into(),
            client_id: "nearshore".into(),
            group_prefix: "nearshore".into(),
            properties: BTreeMap::new(),
            consumer: BTreeMap::new(),
            producer: BTreeMap::new(),
            secret_files: BTreeMap::new(),
            session_timeout: Duration::from_secs(15),
            ack_timeout: Duration::from_secs(30),
            instance_id: None,
            installation: None,
            incarnations: BTreeMap::new(),
        }
    }
}

impl KafkaSettings {
    /// Settings with defaults for these bootstrap servers.
    pub fn of(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            ..Self::default()
        }
    }

    /// The consumer group of this name, with the prefix of this installation.
    pub fn group(&self, name: &str) -> String {
        format!("{}-{name}", self.group_prefix)
    }

    /// Checks that librdkafka accepts these settings. Reads the secret files; connects to nothing.
    pub fn check(&self) -> Result<(), Error> {
        for (section, map) in [
            ("properties", &self.properties),
            ("consumer", &self.consumer),
            ("producer", &self.producer),
        ] {
            for key in map.keys() {
                let reason = if key == INSTANCE {
                    "each process needs its own, and not every group may have one; set kafka.instance_id instead".into()
                } else if RESERVED.contains(&key.as_str()) {
                    "Nearshore sets it itself, since its guarantees depend on it; remove it".into()
                } else if SECRET.contains(&key.as_str()) {
                    format!(
                        "it is a secret; write it into a file, and kafka.secret_files.\"{key}\" = that file's path"
                    )
                } else {
                    continue;
                };
                return Err(Error::Refused {
                    what: format!("kafka.{section}.\"{key}\""),
                    reason,
                });
            }
        }
        let (consumer, producer) = (self.consuming(&self.group("check"))?, self.producing()?);
        for config in [&consumer, &producer] {
            config
                .create_native_config()
                .map_err(|error| Error::Refused {
                    what: "kafka properties".into(),
                    reason: error.to_string(),
                })?;
        }
        protection::check(self, consumer, producer)
    }

    /// The value of a librdkafka property that is not a secret; `None` if it is not set.
    pub(super) fn property(&self, name: &str) -> Option<&str> {
        let sections = [&self.consumer, &self.producer, &self.properties];
        let found = sections.iter().find_map(|section| section.get(name));
        found.map(String::as_str)
    }

    /// Our key of a librdkafka property: where it is set, or else where it should be.
    pub(super) fn key(&self, name: &str) -> String {
        let sections = [
            ("properties", self.properties.contains_key(name)),
            ("consumer", self.consumer.contains_key(name)),
            ("producer", self.producer.contains_key(name)),
            ("secret_files", self.secret_files.contains_key(name)),
        ];
        let set = sections.iter().find(|(_, has_it)| *has_it);
        let section = match set {
            Some((section, _)) => section,
            None if SECRET.contains(&name) => "secret_files",
            None => "properties",
        };
        format!("kafka.{section}.\"{name}\"")
    }

    /// The partition with the configured incarnation of its topic.
    pub fn partition(&self, topic: &str, number: i32) -> Partition {
        Partition {
            incarnation: self.incarnations.get(topic).copied().unwrap_or(0),
            topic: Arc::from(topic),
            number,
        }
    }

    /// Configuration of a consumer of `group`. A new group starts at the beginning: a first run must not skip a user.
    pub(super) fn consuming(&self, group: &str) -> Result<ClientConfig, Error> {
        let session = self.session_timeout.as_millis();
        let mut config = self.common()?;
        config
            .set("session.timeout.ms", session.to_string())
            .set(
                "heartbeat.interval.ms",
                (session / 5).clamp(100, 3000).to_string(),
            )
            .set("auto.offset.reset", "earliest")
            .set("queued.max.messages.kbytes", PREFETCH_KILOBYTES)
            .set("queued.min.messages", "20000")
            // With the default of one second the consumer is idle each time after its queue was full.
            .set("fetch.queue.backoff.ms", "20")
            .set("fetch.wait.max.ms", "100")
            .set("allow.auto.create.topics", "false");
        apply(&mut config, &self.properties);
        apply(&mut config, &self.consumer);
        protection::complete(&mut config);
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false");
        if let Some(id) = &self.installation {
            config.set(
                "client.id",
                format!("{}{INSTALLATION_MARK}{id}", self.client_id),
            );
            // With the installation: two that share a group by mistake must not end each other's processes.
            if let Some(instance) = &self.instance_id {
                config.set(INSTANCE, format!("{instance}{INSTALLATION_MARK}{id}"));
            }
        }
        if config.get("group.protocol") == Some("consumer") {
            // The broker assigns partitions and sets the session timeout; librdkafka refuses these two properties.
            config.remove("session.timeout.ms");
            config.remove("heartbeat.interval.ms");
        } else {
            config.set("partition.assignment.strategy", "cooperative-sticky");
        }
        Ok(config)
    }

    /// Configuration of a producer. It partitions by key as Java clients do, so that a user has the same partition
    /// number in Nearshore's topics and in those of other writers.
    pub(super) fn producing(&self) -> Result<ClientConfig, Error> {
        let mut config = self.common()?;
        config
            .set("linger.ms", "2")
            .set("compression.type", "lz4")
            .set("partitioner", "murmur2_random")
            .set("message.max.bytes", RECORD_MAX)
            .set("queue.buffering.max.kbytes", "65536")
            .set("queue.buffering.max.messages", "50000")
            .set(
                "message.timeout.ms",
                self.ack_timeout.as_millis().to_string(),
            );
        apply(&mut config, &self.properties);
        apply(&mut config, &self.producer);
        protection::complete(&mut config);
        config.set("enable.idempotence", "true").set("acks", "all");
        Ok(config)
    }

    /// What the file of a secret property has now; `None` if there is no such file.
    fn secret(&self, property: &str) -> Result<Option<String>, Error> {
        let Some(path) = self.secret_files.get(property) else {
            return Ok(None);
        };
        let refused = |reason: String| Error::Refused {
            what: format!("{property} from {}", path.display()),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
        let secret = decode_secret(&bytes).map_err(|what| refused(what.into()))?;
        Ok(Some(secret))
    }

    /// User and password as their files, or the properties, have them now; `None` if one is missing.
    pub(super) fn login(&self) -> Option<(String, String)> {
        let read = |name: &str| match self.secret(name) {
            Ok(Some(secret)) => Some(secret),
            Ok(None) => self.property(name).map(str::to_owned),
            Err(_) => None,
        };
        Some((read("sasl.username")?, read("sasl.password")?))
    }

    fn common(&self) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", &self.client_id)
            .set("statistics.interval.ms", "3000")
            // A broker's failure and its return must be noticed within seconds.
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Info);
        let own = |property: &&String| !oauth::ALL.contains(&property.as_str());
        for property in self.secret_files.keys().filter(own) {
            if let Some(secret) = self.secret(property)? {
                config.set(property, secret);
            }
        }
        Ok(config)
    }
}

fn apply(config: &mut ClientConfig, properties: &BTreeMap<String, String>) {
    for (key, value) in properties {
        // librdkafka refuses them in a build without libcurl; tokens are fetched here.
        if !oauth::ALL.contains(&key.as_str()) {
            config.set(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(
        section: fn(&mut KafkaSettings) -> &mut BTreeMap<String, String>,
        key: &str,
    ) -> KafkaSettings {
        let mut settings = KafkaSettings::default();
        section(&mut settings).insert(key.into(), "1000".into());
        settings
    }

    #[test]
    fn a_reserved_property_cannot_be_set() {
        for key in RESERVED {
            let error = with(|s| &mut s.consumer, key).check().expect_err(key);
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn the_consumer_group_protocol_may_be_chosen() {
        let mut settings = KafkaSettings::default();
        settings
            .consumer
            .insert("group.protocol".into(), "consumer".into());
        settings.check().expect("librdkafka accepts it");
        let config = settings.consuming("g").expect("no secrets");
        for removed in ["partition.assignment.strategy", "session.timeout.ms"] {
            assert_eq!(config.get(removed), None, "{removed}");
        }
    }

    #[test]
    fn only_a_member_of_an_installation_is_static() {
        let mut settings = KafkaSettings {
            instance_id: Some("ingest-0".into()),
            ..KafkaSettings::default()
        };
        let instance = |settings: &KafkaSettings| {
            let config = settings.consuming("g").expect("no secrets");
            config.get(INSTANCE).map(str::to_owned)
        };
        // Commands and probes have no installation: they would end the member whose name they have.
        assert_eq!(instance(&settings), None);
        settings.installation = Some("4711".into());
        assert_eq!(instance(&settings), Some("ingest-0.redis-4711".into()));
        settings.instance_id = None;
        assert_eq!(instance(&settings), None);
    }

    #[test]
    fn an_unknown_property_is_refused_by_name() {
        let error = with(|s| &mut s.properties, "sesion.timeout.ms")
            .check()
            .expect_err("misspelt");
        assert!(error.to_string().contains("sesion.timeout.ms"), "{error}");
    }

    #[test]
    fn a_producer_setting_overrides_a_common_one() {
        let mut settings = with(|s| &mut s.properties, "linger.ms");
        settings.producer.insert("linger.ms".into(), "7".into());
        let config = settings.producing().expect("no secrets");
        assert_eq!(config.get("linger.ms"), Some("7"));
        assert_eq!(config.get("acks"), Some("all"));
        settings.check().expect("valid");
    }

    #[test]
    fn a_secret_among_the_properties_is_refused_without_quoting_it() {
        for key in SECRET {
            let mut settings = KafkaSettings::default();
            settings.properties.insert(key.into(), "hunter2".into());
            let error = settings.check().expect_err(key).to_string();
            assert!(
                error.contains(key) && error.contains("kafka.secret_files"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_read_from_its_file_without_its_newline() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "hunter 2\n").expect("written");
        let mut settings = KafkaSettings::default();
        settings
            .secret_files
            .insert("sasl.password".into(), file.path().into());
        let config = settings.consuming("g").expect("readable");
        assert_eq!(config.get("sasl.password"), Some("hunter 2"));
        // An editor's byte-order mark is no part of a secret, and an empty file is none.
        std::fs::write(file.path(), b"\xef\xbb\xbfhunter 2\r\n").expect("written");
        let config = settings.consuming("g").expect("readable");
        assert_eq!(config.get("sasl.password"), Some("hunter 2"));
        std::fs::write(file.path(), "\n").expect("written");
        let error = settings.check().expect_err("empty").to_string();
        assert!(
            error.contains("the file is empty; write the secret"),
            "{error}"
        );
        settings
            .secret_files
            .insert("ssl.key.password".into(), "/nonexistent".into());
        assert!(settings.check().is_err());
    }

    #[test]
    fn settings_are_read_from_toml_and_unknown_keys_are_refused() {
        let settings: KafkaSettings = toml::from_str(
            "brokers = 'a:1'\nsession_timeout = '6s'\n[consumer]\n'fetch.wait.max.ms' = '5'\n[incarnations]\nevents = 2",
        )
        .expect("valid");
        assert_eq!(settings.session_timeout, Duration::from_secs(6));
        assert_eq!(settings.partition("events", 3).to_string(), "2/events/3");
        assert!(toml::from_str::<KafkaSettings>("broker = 'a:1'").is_err());
    }
}
