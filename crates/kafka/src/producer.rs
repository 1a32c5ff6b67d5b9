//! Writes to Kafka: [`Producer`], idempotent, acknowledged by all in-sync replicas.
//!
//! Decides which broker errors are final ([`permanent`]). Invariant: [`Producer::send`] returns `Ok` only after every
//! record of the call has its delivery report. It waits for a full queue and never drops a record. It does not retry
//! a record: librdkafka does, in order, until `ack_timeout`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::KafkaSettings;
use super::health::{Health, Watch};
use super::login::Login;
use nearshore_core::ports::log::{Error, Outgoing};

/// A handle to one producing client; clones share it.
#[derive(Clone)]
pub struct Producer {
    client: FutureProducer<Watch>,
    health: Health,
    login: Arc<Login>,
    limit: Duration,
}

impl Producer {
    /// Creates a producer, which connects in the background.
    pub fn new(settings: &KafkaSettings) -> Result<Self, Error> {
        let health = Health::default();
        let client = settings
            .producing()?
            .create_with_context(Watch::new(settings, health.clone()))
            .map_err(|error| refused("producer", &error))?;
        Ok(Self {
            client,
            health,
            login: Arc::new(Login::new(settings)),
            limit: settings.ack_timeout,
        })
    }

    /// Health of this client.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Writes records; resolves when all are acknowledged. After an error some of them may be written.
    pub async fn send(&self, records: Vec<Outgoing>) -> Result<(), Error> {
        if self.login.waits() {
            let (login, client, health) =
                (self.login.clone(), self.client.clone(), self.health.clone());
            let first = move || login.ready(client.client(), &health);
            // Records wait in the client all the same if there is no token yet.
            let _ended = tokio::task::spawn_blocking(first).await;
        }
        self.login.renew(self.client.client(), &self.health);
        let mut reports = Vec::with_capacity(records.len());
        let mut failed = None;
        for record in &records {
            match self.enqueue(record).await {
                Ok(report) => reports.push(report),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        // All reports are awaited, even after a failure: the caller's retry must not overtake this call.
        for (report, record) in reports.into_iter().zip(&records) {
            let error = match report.await {
                Ok(Ok(_)) => continue,
                Ok(Err((error, _))) => error,
                Err(_) => KafkaError::Canceled,
            };
            failed.get_or_insert(self.error(record, &error));
        }
        failed.map_or(Ok(()), Err)
    }

    /// Waits for records that are not acknowledged yet; blocks.
    pub(super) fn flush(&self, limit: Duration) {
        if let Err(error) = self.client.flush(limit) {
            tracing::warn!(target: "kafka", "the producer stops before all records were acknowledged: {error}; the next owner writes them again");
        }
    }

    async fn enqueue(&self, record: &Outgoing) -> Result<DeliveryFuture, Error> {
        let start = Instant::now();
        let mut queued = wire(record);
        loop {
            match self.client.send_result(queued) {
                Ok(report) => return Ok(report),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    // The queue has room again within `message.timeout.ms` at the latest.
                    if start.elapsed() > self.limit * 2 {
                        return Err(self.timeout(record));
                    }
                    queued = unsent;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err((error, _)) => return Err(self.error(record, &error)),
            }
        }
    }

    fn timeout(&self, record: &Outgoing) -> Error {
        match self.health.by_key() {
            Some(fault) => Error::Unreachable(fault),
            None => Error::Timeout {
                topic: record.topic.to_string(),
                limit: self.limit,
            },
        }
    }

    fn error(&self, record: &Outgoing, error: &KafkaError) -> Error {
        if let Some((code, reason)) = self.client.client().fatal_error() {
            return Error::Stopped(format!("{code}: {reason}"));
        }
        match error.rdkafka_error_code() {
            Some(code) if is_record_error(code) => Error::Unfit {
                what: format!("write to {}", record.topic),
                reason: code.to_string(),
            },
            Some(code) if permanent(code) => refused(&format!("write to {}", record.topic), error),
            _ if matches!(error, KafkaError::Canceled) => {
                Error::Stopped("the producer was closed".into())
            }
            // Readers fence duplicates, so another try is always safe.
            _ => self.timeout(record),
        }
    }
}

fn wire(record: &Outgoing) -> FutureRecord<'_, [u8], [u8]> {
    let headers = (!record.headers.is_empty()).then(|| {
        let empty = OwnedHeaders::new_with_capacity(record.headers.len());
        record.headers.iter().fold(empty, |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(&**value),
            })
        })
    });
    FutureRecord {
        topic: &record.topic,
        partition: None,
        payload: record.value.as_deref(),
        key: record.key.as_deref(),
        timestamp: record.time.map(|time| time.0),
        headers,
    }
}

pub(super) fn refused(what: &str, error: &KafkaError) -> Error {
    Error::Refused {
        what: what.into(),
        reason: error
            .rdkafka_error_code()
            .map_or_else(|| error.to_string(), |code| code.to_string()),
    }
}

/// Whether an error is caused by the record itself: another record, or a smaller form of it, may be accepted.
fn is_record_error(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidMessage
            | Code::InvalidRecord
            | Code::InvalidTimestamp
    )
}

/// Whether an error stays the same however often the call is repeated. All other errors are temporary.
pub(super) fn permanent(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::InvalidMessage
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidArgument
            | Code::InvalidTopic
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::PolicyViolation
            | Code::UnsupportedVersion
            | Code::UnsupportedFeature
            | Code::OffsetMetadataTooLarge
    )
}
