//! Writing dead letters to the topic `dlq`: [`DeadLetterWriter`].
//!
//! Decides what is tried when the broker refuses a dead letter. If the record itself is refused ([`Error::Unfit`]), a
//! lighter form of it is sent. If the topic is at fault (missing, not permitted, unreachable), the caller waits.
//! Invariant: a dead letter counts as written only after its delivery report, and one that is written is not sent again
//! by the same member, however often its batch is tried. A report that never came may mean that the dead letter was
//! stored: then it is there twice. This module does not know why a record was rejected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nearshore_core::ports::log::{Error, Log, Outgoing};
use nearshore_core::user::event::Reject;
use nearshore_core::user::record::{Partition, Position, Record};
use nearshore_kafka::dlq::{Failure, dead, lighter};

use super::error;
use crate::metrics::{self, RecordOutcome, Stage};

/// A record that cannot be used.
#[derive(Debug)]
pub struct Rejected<'a> {
    /// The record as it was read.
    pub record: &'a Record,
    /// The step that rejected it.
    pub stage: Stage,
    /// Why.
    pub reject: Reject,
}

/// Writes dead letters. It remembers which are acknowledged while their batches are still in hand.
#[derive(Debug, Default)]
pub struct DeadLetterWriter {
    done: BTreeSet<Position>,
}

/// What became of dead letters handed to [`DeadLetterWriter::write`].
#[derive(Debug)]
struct Written {
    /// Indices of those that were acknowledged by this call.
    new: Vec<usize>,
    /// Number of those that are not in `dlq` yet.
    left: usize,
    /// The first error, if any is left.
    outcome: Result<(), Error>,
}

impl DeadLetterWriter {
    /// Writes rejected records to the topic `dlq` and resolves when all are acknowledged.
    ///
    /// Each record is counted once, when it is acknowledged; those that still wait are a gauge of their stage.
    pub async fn write_rejects<L: Log>(
        &mut self,
        log: &L,
        dlq: &Arc<str>,
        group: &str,
        rejects: &[Rejected<'_>],
    ) -> Result<(), error::Error> {
        if rejects.is_empty() {
            return Ok(());
        }
        let mut waiting: BTreeMap<Stage, usize> = BTreeMap::new();
        for rejected in rejects {
            *waiting.entry(rejected.stage).or_default() += 1;
        }
        for (stage, n) in &waiting {
            metrics::dlq_waiting(*stage, *n);
        }
        let dead_letters = rejects.iter().map(|rejected| {
            let dead_letter = dead_letter(dlq, group, rejected);
            (rejected.record.position.clone(), dead_letter)
        });
        let written = self.write(log, dead_letters.collect()).await;
        for index in written.new {
            let Rejected {
                record,
                stage,
                reject,
            } = &rejects[index];
            metrics::dlq(*stage, reject.code(), 1);
            metrics::records(&record.position.partition.topic, RecordOutcome::Dlq, 1);
        }
        let left = written.left;
        if let Err(source) = written.outcome {
            return Err(error::Error::Dlq { left, source });
        }
        for stage in waiting.into_keys() {
            metrics::dlq_waiting(stage, 0);
        }
        Ok(())
    }

    /// Writes dead letters, each with the position of its record; those that were acknowledged before are left out.
    async fn write<L: Log>(&mut self, log: &L, dead_letters: Vec<(Position, Outgoing)>) -> Written {
        let todo = dead_letters
            .iter()
            .enumerate()
            .filter(|(_, (position, _))| !self.done.contains(position));
        let (indices, records): (Vec<usize>, Vec<Outgoing>) = todo
            .map(|(index, (_, record))| (index, record.clone()))
            .unzip();
        let mut written = Written {
            new: Vec::new(),
            left: 0,
            outcome: Ok(()),
        };
        for (index, outcome) in indices.into_iter().zip(send_each(log, &records).await) {
            match outcome {
                Ok(()) => {
                    self.done.insert(dead_letters[index].0.clone());
                    written.new.push(index);
                }
                Err(error) => {
                    written.left += 1;
                    written.outcome = written.outcome.and(Err(error));
                }
            }
        }
        written
    }

    /// Forgets the dead letters of these partitions, because their batches are done or belong to another member.
    pub fn forget<'a>(&mut self, partitions: impl IntoIterator<Item = &'a Partition>) {
        if self.done.is_empty() {
            return;
        }
        for partition in partitions {
            self.done
                .retain(|position| position.partition != *partition);
        }
    }
}

/// Sends dead letters and resolves when all are acknowledged. No dead letter is stored twice by one call.
pub async fn send_dead_letters<L: Log>(log: &L, dead: Vec<Outgoing>) -> Result<(), Error> {
    send_each(log, &dead).await.into_iter().collect()
}

/// Sends each dead letter, in lighter forms if the broker refuses it. Returns one outcome each, in order.
async fn send_each<L: Log>(log: &L, dead_letters: &[Outgoing]) -> Vec<Result<(), Error>> {
    let send = async |dead_letter: &Outgoing| log.send(vec![dead_letter.clone()]).await;
    let mut outcomes = futures::future::join_all(dead_letters.iter().map(send)).await;
    for (dead_letter, outcome) in dead_letters.iter().zip(&mut outcomes) {
        if !matches!(outcome, Err(Error::Unfit { .. })) {
            continue;
        }
        // Once more alone: a broker refuses a whole batch for one of its records.
        *outcome = send(dead_letter).await;
        for form in lighter(dead_letter) {
            match outcome {
                Err(Error::Unfit { .. }) => *outcome = send(&form).await,
                _ => break,
            }
        }
    }
    outcomes
}

/// The record that `dlq` gets for a rejected one.
fn dead_letter(dlq: &Arc<str>, group: &str, rejected: &Rejected<'_>) -> Outgoing {
    let failure = Failure {
        group,
        // Connect numbers its tasks; members of a group have no number.
        member: "0",
        stage: rejected.stage.text(),
        code: rejected.reject.code(),
        message: &rejected.reject.to_string(),
        causes: "",
    };
    dead(rejected.record, &failure, dlq)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use nearshore_core::ports::log::{Committed, Delivery};
    use nearshore_core::user::record::{Offset, Resume};

    /// A log whose answer to each record is a test's function of the record and the number of records stored.
    struct Broker<F>(F, Mutex<Vec<Outgoing>>);

    impl<F: Fn(&Outgoing, usize) -> Result<(), Error> + Send + Sync> Log for Broker<F> {
        async fn next(&mut self) -> Result<Delivery, Error> {
            std::future::pending().await
        }

        async fn notice(&mut self) -> Result<Delivery, Error> {
            std::future::pending().await
        }

        async fn committed(&self, _: &[Partition]) -> Result<Vec<Committed>, Error> {
            Ok(Vec::new())
        }

        async fn rewind(&mut self, _: &[(Partition, Resume)]) -> Result<(), Error> {
            Ok(())
        }

        async fn commit(&self, _: &[(Partition, Resume)]) -> Result<(), Error> {
            Ok(())
        }

        async fn end(&self, _: &Partition) -> Result<Offset, Error> {
            Ok(Offset(0))
        }

        async fn send(&self, records: Vec<Outgoing>) -> Result<(), Error> {
            let mut sent = self.1.lock().expect("one thread");
            for record in records {
                (self.0)(&record, sent.len())?;
                sent.push(record);
            }
            Ok(())
        }

        async fn close(self) {}
    }

    fn dead_letter(nth: i64) -> (Position, Outgoing) {
        let position = format!("0/t/0:{nth}").parse().expect("valid");
        let record = Outgoing {
            topic: "dlq".into(),
            key: Some(nth.to_string().into()),
            value: Some("bad".into()),
            headers: Vec::new(),
            time: None,
        };
        (position, record)
    }

    fn down() -> Error {
        Error::Timeout {
            topic: "dlq".into(),
            limit: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn acknowledged_dead_letters_are_neither_sent_nor_counted_again() {
        // The third and the fourth call fail, whatever they send.
        let failing = Mutex::new(0);
        let broker = Broker(
            |_: &Outgoing, _| {
                let mut calls = failing.lock().expect("one thread");
                *calls += 1;
                if (3..=4).contains(&*calls) {
                    Err(down())
                } else {
                    Ok(())
                }
            },
            Mutex::default(),
        );
        let mut writer = DeadLetterWriter::default();
        let dead_letters: Vec<_> = (0..4).map(dead_letter).collect();
        let first = writer.write(&broker, dead_letters.clone()).await;
        assert_eq!((first.new, first.left), (vec![0, 1], 2));
        assert!(first.outcome.is_err());
        let second = writer.write(&broker, dead_letters.clone()).await;
        assert_eq!((second.new, second.left), (vec![2, 3], 0));
        assert!(
            writer
                .write(&broker, dead_letters.clone())
                .await
                .new
                .is_empty()
        );
        assert_eq!(broker.1.lock().expect("one thread").len(), 4);
        // Once their batch is done, the same positions are written again.
        writer.forget([&dead_letters[0].0.partition]);
        assert_eq!(writer.write(&broker, dead_letters).await.new.len(), 4);
    }

    #[tokio::test]
    async fn only_a_record_that_the_broker_refuses_is_sent_without_its_value() {
        let broker = Broker(
            |_: &Outgoing, _| {
                Err(Error::Refused {
                    what: "write to dlq".into(),
                    reason: "TopicAuthorizationFailed".into(),
                })
            },
            Mutex::default(),
        );
        let refused = send_dead_letters(&broker, vec![dead_letter(0).1]).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        let small = Broker(
            |record: &Outgoing, _| match record.value.as_deref() {
                Some(b"bad") => Err(Error::Unfit {
                    what: "write to dlq".into(),
                    reason: "MessageSizeTooLarge".into(),
                }),
                _ => Ok(()),
            },
            Mutex::default(),
        );
        send_dead_letters(&small, vec![dead_letter(0).1])
            .await
            .expect("a lighter form");
        let sent = small.1.lock().expect("one thread");
        assert_eq!(sent[0].value.as_deref(), Some(&b""[..]));
    }
}
