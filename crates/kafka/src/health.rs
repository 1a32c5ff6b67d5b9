//! Health of a client, for `/healthz`, `/readyz` and metrics: [`Health`] and [`Lag`].
//!
//! Decides when Kafka counts as unreachable: when librdkafka's statistics show no broker up, or when librdkafka reports
//! it, which is sooner; [`super::secure`] says which key a fault of TLS or of a login is about. Invariant: reading the
//! health never waits for Kafka. It does not decide whether the process is ready.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Deserialize;

use super::KafkaSettings;
use super::intake::Intake;
pub use super::intake::PartitionStatus;
use super::secure::{self, Complaint};

/// What a reason that names a key of ours begins with.
const OURS: &str = "kafka.";

/// States of a connection that is being made.
const TRYING: [&str; 6] = [
    "TRY_CONNECT",
    "CONNECT",
    "SSL_HANDSHAKE",
    "APIVERSION_QUERY",
    "AUTH_HANDSHAKE",
    "AUTH_REQ",
];

#[derive(Default)]
struct Counters {
    polls: AtomicU64,
    errors: AtomicU64,
    /// Records deleted before they were read.
    lost: AtomicU64,
    /// Assigned partitions plus one; 0 before the first assignment.
    assigned: AtomicI64,
    /// Why no broker can be reached; cleared when statistics show one up.
    fault: ArcSwapOption<String>,
    /// What is refused or failed although brokers answer; cleared by the next assignment.
    refusal: ArcSwapOption<String>,
    /// The last reported reason, for the text of a fault.
    last: ArcSwapOption<String>,
    /// Whether a thread looks at a broker to explain the last reason.
    looking: AtomicBool,
}

/// Health of one client. Cheap to clone; outlives the client.
#[derive(Clone, Default)]
pub struct Health(Arc<Counters>);

impl Health {
    /// Turns of the poll loop so far. A loop without a turn for seconds is stuck.
    pub fn polls(&self) -> u64 {
        self.0.polls.load(Ordering::Relaxed)
    }

    /// Errors that the client reported so far.
    pub fn errors(&self) -> u64 {
        self.0.errors.load(Ordering::Relaxed)
    }

    /// Records that the broker deleted before they were read. Detected seconds later, and only where the group's
    /// position was known.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    pub(super) fn count_lost(&self, records: u64) {
        self.0.lost.fetch_add(records, Ordering::Relaxed);
    }

    /// Number of assigned partitions; `None` before the group's first answer.
    pub fn assigned(&self) -> Option<usize> {
        usize::try_from(self.0.assigned.load(Ordering::Relaxed) - 1).ok()
    }

    /// Why Kafka cannot be used now; `None` without a fault.
    pub fn fault(&self) -> Option<String> {
        let fault = self.0.fault.load();
        let refusal = self.0.refusal.load();
        fault.as_deref().or(refusal.as_deref()).cloned()
    }

    /// Whether some broker can be reached, as far as is known.
    pub fn reachable(&self) -> bool {
        self.0.fault.load().is_none()
    }

    pub(super) fn count_poll(&self) {
        self.0.polls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_assigned(&self, partitions: usize) {
        let partitions = i64::try_from(partitions).unwrap_or(i64::MAX - 1);
        self.0.assigned.store(partitions + 1, Ordering::Relaxed);
        self.0.refusal.store(None);
    }

    pub(super) fn set_refusal(&self, reason: String) {
        self.0.refusal.store(Some(Arc::new(reason)));
    }

    /// Forgets the fault: a broker answered.
    pub(super) fn clear(&self) {
        self.0.fault.store(None);
        self.0.last.store(None);
    }

    /// The fault of TLS or of a login, which begins with our key; `None` if there is none of this kind.
    pub(super) fn by_key(&self) -> Option<String> {
        self.fault().filter(|fault| fault.starts_with(OURS))
    }

    /// Whether the fault is told by our key, or will be in a moment.
    fn is_explained(&self) -> bool {
        self.0.looking.load(Ordering::Acquire) || self.by_key().is_some()
    }

    /// [`Health::by_key`], after a wait, blocking, until a fault is explained.
    pub(super) fn explained(&self, limit: Duration) -> Option<String> {
        let deadline = Instant::now() + limit;
        while self.0.looking.load(Ordering::Acquire) && Instant::now() < deadline {
            #[expect(
                clippy::disallowed_methods,
                reason = "one poll of a wait with a deadline, on a blocking thread"
            )]
            std::thread::sleep(Duration::from_millis(20));
        }
        self.by_key()
    }

    /// Sets why no broker can be reached, by our key.
    pub(super) fn explain(&self, text: &str) {
        let text = Arc::new(text.to_owned());
        self.0.last.store(Some(text.clone()));
        self.0.fault.store(Some(text));
    }

    /// Explains, on a thread of its own, a complaint whose reason a look at the broker shows. A broker that answers
    /// meanwhile ends the complaint.
    fn look(&self, settings: &Arc<KafkaSettings>, (complaint, raw): (Complaint, String)) {
        if self.0.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (health, settings) = (self.clone(), settings.clone());
        let look = move || {
            let found = secure::look(&settings, &complaint);
            if health.0.last.load().is_some() {
                match found {
                    Some(text) => {
                        health.explain(&text);
                        tell(&text);
                    }
                    None => warn(&raw),
                }
            }
            health.0.looking.store(false, Ordering::Release);
        };
        if std::thread::Builder::new()
            .name("log-look".into())
            .spawn(look)
            .is_err()
        {
            self.0.looking.store(false, Ordering::Release);
        }
    }

    fn error(&self, brokers: &str, error: &KafkaError, reason: &str) {
        use RDKafkaErrorCode as Code;
        self.0.errors.fetch_add(1, Ordering::Relaxed);
        match error.rdkafka_error_code() {
            // Reported before or after the reason of the last broker.
            Some(Code::AllBrokersDown) => self.unreachable(brokers),
            Some(
                Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL | Code::Resolve,
            ) => {
                self.0.last.store(Some(Arc::new(reason.to_owned())));
                self.unreachable(brokers);
            }
            // Other brokers may be up.
            _ => self.0.last.store(Some(Arc::new(reason.to_owned()))),
        }
    }

    /// Judges the states of all connections. An idle client may have none, so that no broker is up is a fault only if a
    /// connection was tried.
    fn brokers(&self, brokers: &str, states: &[&str]) {
        if states.contains(&"UP") {
            self.clear();
        } else if self.0.last.load().is_some() || states.iter().any(|state| TRYING.contains(state))
        {
            self.unreachable(brokers);
        }
    }

    fn unreachable(&self, brokers: &str) {
        let last = self.0.last.load();
        let fault = match last.as_deref() {
            // It begins with our key.
            Some(reason) if reason.starts_with(OURS) => reason.clone(),
            Some(reason) => format!("{brokers}: {reason}"),
            None => format!("{brokers}: no broker is up"),
        };
        self.0.fault.store(Some(Arc::new(fault)));
    }
}

/// Positions and lag of one consumer's partitions, for metrics. Cheap to clone.
#[derive(Clone)]
pub struct Lag(pub(super) Arc<Intake>);

impl Lag {
    /// Status of each assigned partition, sorted.
    pub fn read(&self) -> Vec<PartitionStatus> {
        self.0.status()
    }
}

/// librdkafka's callbacks: log lines become tracing events, errors and statistics become [`Health`].
#[derive(Clone)]
pub(super) struct Watch {
    pub health: Health,
    /// For the text of a fault: librdkafka's may be no more than "1/1 brokers are down".
    settings: Arc<KafkaSettings>,
}

pub(super) fn warn(text: &str) {
    tracing::warn!(target: "kafka", "{text}; the client tries again");
}

/// Logs a fault by our key. Of a target of its own: lines that repeat are limited by target, and one that says less may
/// come first, from another client or while a thread still looks at the broker.
pub(super) fn tell(text: &str) {
    tracing::warn!(target: "kafka::fault", "{text}; the client tries again");
}

impl Watch {
    pub(crate) fn new(settings: &KafkaSettings, health: Health) -> Self {
        Self {
            health,
            settings: Arc::new(settings.clone()),
        }
    }

    /// Tells what a complaint is about, at once or after a look at the broker.
    fn complain(&self, complaint: Complaint, raw: &str) {
        match complaint {
            Complaint::Told(text) => {
                self.health.explain(&text);
                tell(&text);
            }
            complaint => self
                .health
                .look(&self.settings, (complaint, raw.to_owned())),
        }
    }
}

#[derive(Deserialize)]
struct Statistics {
    brokers: BTreeMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    state: String,
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(complaint) = secure::explain(&self.settings, None, message) {
            // Not of the target `kafka`, whose lines are limited: its next line tells the same by our key.
            tracing::debug!(facility, "{message}");
            // An error follows a line of this level, and it is explained then.
            if level as i32 > RDKafkaLogLevel::Error as i32 {
                self.health.0.last.store(Some(Arc::new(message.to_owned())));
                self.complain(complaint, message);
            }
            return;
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "kafka", facility, "{message}");
            }
            // librdkafka retries after what it calls an error.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                tracing::warn!(target: "kafka", facility, "{message}");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "kafka", facility, "{message}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "kafka", facility, "{message}"),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else {
            return;
        };
        let brokers = statistics.brokers.values();
        let states: Vec<&str> = brokers.map(|broker| broker.state.as_str()).collect();
        self.health.brokers(&self.settings.brokers, &states);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // A tail enables end-of-partition events; such an event is no error.
        if matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::PartitionEOF)
        ) {
            return;
        }
        self.health.error(&self.settings.brokers, &error, reason);
        let raw = format!("{error}: {reason}");
        match secure::explain(&self.settings, error.rdkafka_error_code(), reason) {
            // That all brokers are down says less than what is told of one of them.
            None if self.health.is_explained() => tracing::debug!("{raw}"),
            None => warn(&raw),
            Some(complaint) => self.complain(complaint, &raw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(states: &[&str]) -> String {
        let brokers: Vec<String> = states
            .iter()
            .enumerate()
            .map(|(node, state)| {
                format!(r#""b{node}":{{"state":"{state}","nodeid":{node},"x":1}}"#)
            })
            .collect();
        format!(r#"{{"name":"n","brokers":{{{}}}}}"#, brokers.join(","))
    }

    #[test]
    fn a_fault_names_the_broker_and_is_cleared_when_one_is_up() {
        let watch = Watch::new(&KafkaSettings::of("kafka:9092"), Health::default());
        let down = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
        watch.error(down, "kafka:9092/1: Connection refused");
        assert_eq!(watch.health.fault(), None, "another broker may be up");
        watch.error(
            KafkaError::Global(RDKafkaErrorCode::AllBrokersDown),
            "1/1 brokers are down",
        );
        assert_eq!(
            watch.health.fault().as_deref(),
            Some("kafka:9092: kafka:9092/1: Connection refused")
        );
        watch.stats_raw(statistics(&["DOWN", "UP"]).as_bytes());
        assert_eq!(watch.health.fault(), None);
        watch.stats_raw(statistics(&["DOWN", "CONNECT"]).as_bytes());
        let fault = watch.health.fault();
        assert_eq!(fault.as_deref(), Some("kafka:9092: no broker is up"));
        assert_eq!(watch.health.errors(), 2);
    }

    #[test]
    fn an_empty_assignment_counts_as_an_answer_of_the_group() {
        let health = Health::default();
        assert_eq!(health.assigned(), None);
        health.set_assigned(0);
        assert_eq!(health.assigned(), Some(0));
    }
}
