//! Writing to Kafka: [`Producer`], idempotent, acknowledged by all in-sync replicas.
//!
//! Decides which broker errors are final ([`permanent`]). Invariant: [`Producer::send`] answers `Ok` only when every
//! record of the call has its delivery report; a full queue is waited for, never dropped from. It does
//! not retry a record itself: librdkafka does, in order, until `ack_timeout`.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::KafkaSettings;
use super::health::{Health, Watch};
use nearshore_core::ports::log::{Error, Outgoing};

/// A handle to one producing client; clones share it.
#[derive(Clone)]
pub struct Producer {
    client: FutureProducer<Watch>,
    health: Health,
    limit: Duration,
}

impl Producer {
    /// A producer; connects in the background.
    pub fn new(settings: &KafkaSettings) -> Result<Self, Error> {
        let health = Health::default();
        let client = settings
            .producing()?
            .create_with_context(Watch::new(settings, health.clone()))
            .map_err(|error| refused("producer", &error))?;
        Ok(Self {
            client,
            health,
            limit: settings.ack_timeout,
        })
    }

    /// Signs of life of this client.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Writes records; resolves when all are acknowledged. On an error some of them may be written.
    pub async fn send(&self, records: Vec<Outgoing>) -> Result<(), Error> {
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
        // All reports are awaited even after a failure: the caller's retry must not overtake this call.
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

    /// Waits for what is still under way; blocks.
    pub(super) fn flush(&self, limit: Duration) {
        if let Err(error) = self.client.flush(limit) {
            tracing::warn!(target: "kafka", "not all records were written before the end: {error}");
        }
    }

    async fn enqueue(&self, record: &Outgoing) -> Result<DeliveryFuture, Error> {
        let start = Instant::now();
        let mut wanted = wire(record);
        loop {
            match self.client.send_result(wanted) {
                Ok(report) => return Ok(report),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    // The queue empties within `message.timeout.ms` whatever happens.
                    if start.elapsed() > self.limit * 2 {
                        return Err(self.timeout(record));
                    }
                    wanted = back;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err((error, _)) => return Err(self.error(record, &error)),
            }
        }
    }

    fn timeout(&self, record: &Outgoing) -> Error {
        Error::Timeout {
            topic: record.topic.to_string(),
            limit: self.limit,
        }
    }

    fn error(&self, record: &Outgoing, error: &KafkaError) -> Error {
        if let Some((code, reason)) = self.client.client().fatal_error() {
            return Error::Stopped(format!("{code}: {reason}"));
        }
        match error.rdkafka_error_code() {
            Some(code) if unfit(code) => Error::Unfit {
                what: format!("write to {}", record.topic),
                reason: code.to_string(),
            },
            Some(code) if permanent(code) => refused(&format!("write to {}", record.topic), error),
            _ if matches!(error, KafkaError::Canceled) => {
                Error::Stopped("the producer was closed".into())
            }
            // Writes are fenced where they are read: another try is always safe.
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

/// Errors that are the record's own doing: another record, or a lighter form of it, may go through.
fn unfit(code: RDKafkaErrorCode) -> bool {
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

/// Errors that another try does not mend. All others pass, sooner or later.
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
