//! Signs of life of a client, for health pages and metrics: [`Health`] and [`Lag`].
//!
//! Decides when Kafka counts as unreachable: when librdkafka's statistics show no broker up, or when it
//! says so itself, which is sooner. Invariant: reading a sign never waits for Kafka. It does not know
//! whether anybody is ready; that is put together elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Deserialize;

use super::intake::Intake;
pub use super::intake::Standing;

#[derive(Default)]
struct Signs {
    polls: AtomicU64,
    errors: AtomicU64,
    /// Partitions assigned plus one; 0 before the first assignment.
    assigned: AtomicI64,
    /// No broker can be reached; statistics lift it.
    fault: ArcSwapOption<String>,
    /// Something is refused or failed although brokers answer; the next assignment lifts it.
    refusal: ArcSwapOption<String>,
    last: ArcSwapOption<String>,
}

/// Signs of life of one client. Cheap to clone; outlives the client.
#[derive(Clone, Default)]
pub struct Health(Arc<Signs>);

impl Health {
    /// Turns of the poll loop so far: one that stands still for seconds is stuck.
    pub fn polls(&self) -> u64 {
        self.0.polls.load(Ordering::Relaxed)
    }

    /// Errors that the client reported so far.
    pub fn errors(&self) -> u64 {
        self.0.errors.load(Ordering::Relaxed)
    }

    /// How many partitions are ours; `None` as long as the group has not answered.
    pub fn assigned(&self) -> Option<usize> {
        usize::try_from(self.0.assigned.load(Ordering::Relaxed) - 1).ok()
    }

    /// Why Kafka cannot be used now; `None` when all is well.
    pub fn fault(&self) -> Option<String> {
        let fault = self.0.fault.load();
        let refusal = self.0.refusal.load();
        fault.as_deref().or(refusal.as_deref()).cloned()
    }

    /// Whether any broker can be reached, as far as is known.
    pub fn reachable(&self) -> bool {
        self.0.fault.load().is_none()
    }

    pub(super) fn beat(&self) {
        self.0.polls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn assign(&self, partitions: usize) {
        let partitions = i64::try_from(partitions).unwrap_or(i64::MAX - 1);
        self.0.assigned.store(partitions + 1, Ordering::Relaxed);
        self.0.refusal.store(None);
    }

    pub(super) fn refused(&self, why: String) {
        self.0.refusal.store(Some(Arc::new(why)));
    }

    fn unreachable(&self, why: String) {
        self.0.fault.store(Some(Arc::new(why)));
    }

    fn error(&self, error: &KafkaError, reason: &str) {
        self.0.errors.fetch_add(1, Ordering::Relaxed);
        let down = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SaslAuthenticationFailed
                    | RDKafkaErrorCode::SSL
                    | RDKafkaErrorCode::Resolve
            )
        );
        // "All brokers are down" comes after the reason of the last one, which says more.
        let all = matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::AllBrokersDown)
        );
        if !all {
            self.0.last.store(Some(Arc::new(reason.to_owned())));
        }
        if down {
            let last = self.0.last.load().as_deref().cloned();
            self.unreachable(last.unwrap_or_else(|| reason.to_owned()));
        }
    }

    fn brokers(&self, up: usize, known: usize) {
        if up > 0 {
            self.0.fault.store(None);
        } else if known > 0 && self.reachable() {
            let last = self.0.last.load().as_deref().cloned();
            self.unreachable(last.unwrap_or_else(|| format!("none of {known} brokers is up")));
        }
    }
}

/// Where the partitions of one consumer stand, for metrics. Cheap to clone.
#[derive(Clone)]
pub struct Lag(pub(super) Arc<Intake>);

impl Lag {
    /// Each assigned partition, sorted.
    pub fn read(&self) -> Vec<Standing> {
        self.0.standing()
    }
}

/// librdkafka's callbacks: log lines become tracing events, errors and statistics become [`Health`].
#[derive(Clone)]
pub(super) struct Watch(pub Health);

#[derive(Deserialize)]
struct Statistics {
    brokers: BTreeMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    state: String,
    nodeid: i64,
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "kafka", facility, "{message}");
            }
            // What librdkafka calls an error it goes on to retry.
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
        // The group coordinator's connection is listed beside its broker, as node -1 like a bootstrap server.
        let up = |broker: &&Broker| broker.state == "UP";
        let all = statistics.brokers.values();
        let known = all.clone().filter(|broker| broker.nodeid >= 0).count();
        self.0
            .brokers(all.clone().filter(up).count(), known.max(all.len().min(1)));
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(&error, reason);
        tracing::warn!(target: "kafka", "{error}: {reason}");
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
    fn a_fault_names_the_broker_and_passes_when_one_is_up() {
        let watch = Watch(Health::default());
        let down = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
        watch.error(down, "kafka:9092/1: Connection refused");
        assert_eq!(watch.0.fault(), None, "one broker of several may be gone");
        watch.error(
            KafkaError::Global(RDKafkaErrorCode::AllBrokersDown),
            "1/1 brokers are down",
        );
        assert_eq!(
            watch.0.fault().as_deref(),
            Some("kafka:9092/1: Connection refused")
        );
        watch.stats_raw(statistics(&["DOWN", "UP"]).as_bytes());
        assert_eq!(watch.0.fault(), None);
        watch.stats_raw(statistics(&["DOWN", "CONNECT"]).as_bytes());
        assert!(watch.0.fault().is_some());
        assert_eq!(watch.0.errors(), 2);
    }

    #[test]
    fn an_empty_assignment_is_not_a_missing_one() {
        let health = Health::default();
        assert_eq!(health.assigned(), None);
        health.assign(0);
        assert_eq!(health.assigned(), Some(0));
    }
}
