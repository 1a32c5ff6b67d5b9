//! Dead letters on their way to the topic `dlq`: [`DeadLetterWriter`].
//!
//! Decides what is tried when a broker refuses a letter: a lighter form where the letter itself is at fault
//! ([`Error::Unfit`]), and waiting where it is the topic (gone, closed to us, unreachable). Invariant: a letter counts
//! as buried only after its delivery report, and one that is buried is not sent again by the same member, however
//! often its batch is tried. A report that never came may mean that the letter is there: then it is there twice.
//! It does not know why a record died.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nearshore_core::ports::log::{Error, Log, Outgoing};
use nearshore_core::user::event::Reject;
use nearshore_core::user::record::{Partition, Position, Record};
use nearshore_kafka::dlq::{Failure, dead, lighter};

use super::error;
use crate::metrics::{self, RecordOutcome, Stage};

/// Letters that are acknowledged while their batches are still in hand.
#[derive(Debug, Default)]
pub struct DeadLetterWriter {
    done: BTreeSet<Position>,
}

/// What became of letters handed to [`DeadLetterWriter::bury`].
#[derive(Debug)]
pub struct Written {
    /// Which of them were acknowledged by this call, by their place in it.
    pub new: Vec<usize>,
    /// How many are not yet in `dlq`.
    pub left: usize,
    /// Why, if any is left.
    pub outcome: Result<(), Error>,
}

impl DeadLetterWriter {
    /// Writes letters, each named by where its record stands; those that were acknowledged before are left out.
    pub async fn write<L: Log>(&mut self, log: &L, dead: Vec<(Position, Outgoing)>) -> Written {
        let todo = dead
            .iter()
            .enumerate()
            .filter(|(_, (position, _))| !self.done.contains(position));
        let (places, letters): (Vec<usize>, Vec<Outgoing>) =
            todo.map(|(nth, (_, letter))| (nth, letter.clone())).unzip();
        let mut buried = Written {
            new: Vec::new(),
            left: 0,
            outcome: Ok(()),
        };
        for (nth, outcome) in places.into_iter().zip(each(log, &letters).await) {
            match outcome {
                Ok(()) => {
                    self.done.insert(dead[nth].0.clone());
                    buried.new.push(nth);
                }
                Err(error) => {
                    buried.left += 1;
                    buried.outcome = buried.outcome.and(Err(error));
                }
            }
        }
        buried
    }

    /// Forgets letters of these partitions: their batches are done, or somebody else's.
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

/// Writes letters; resolves when all are acknowledged. None is written twice by one call.
pub async fn send_dead_letters<L: Log>(log: &L, dead: Vec<Outgoing>) -> Result<(), Error> {
    each(log, &dead).await.into_iter().collect()
}

async fn each<L: Log>(log: &L, dead: &[Outgoing]) -> Vec<Result<(), Error>> {
    let one = async |letter: &Outgoing| log.send(vec![letter.clone()]).await;
    let mut outcomes = futures::future::join_all(dead.iter().map(one)).await;
    for (letter, outcome) in dead.iter().zip(&mut outcomes) {
        if !matches!(outcome, Err(Error::Unfit { .. })) {
            continue;
        }
        // Alone once more: a broker refuses a batch for one of its records.
        *outcome = one(letter).await;
        for form in lighter(letter) {
            match outcome {
                Err(Error::Unfit { .. }) => *outcome = one(&form).await,
                _ => break,
            }
        }
    }
    outcomes
}

/// A record that cannot be used, as it goes to `dlq`.
pub fn dead_letter(
    (dlq, group): (&Arc<str>, &str),
    record: &Record,
    (stage, reject): (Stage, &Reject),
) -> Outgoing {
    let failure = Failure {
        group,
        // Connect numbers its tasks; members of a group have no number.
        member: "0",
        stage: stage.text(),
        code: reject.code(),
        message: &reject.to_string(),
        causes: "",
    };
    dead(record, &failure, dlq)
}

/// Buries what cannot be used; counts each letter once, when it is acknowledged, and those that wait until then.
pub async fn write_rejects<L: Log>(
    writer: &mut DeadLetterWriter,
    log: &L,
    (dlq, group): (&Arc<str>, &str),
    rejects: &[(&Record, Stage, &Reject)],
) -> Result<(), error::Error> {
    if rejects.is_empty() {
        return Ok(());
    }
    let mut waiting: BTreeMap<Stage, usize> = BTreeMap::new();
    for (_, stage, _) in rejects {
        *waiting.entry(*stage).or_default() += 1;
    }
    for (stage, letters) in &waiting {
        metrics::dlq_waiting(*stage, *letters);
    }
    let letters = rejects.iter().map(|(record, stage, reject)| {
        let letter = dead_letter((dlq, group), record, (*stage, reject));
        (record.position.clone(), letter)
    });
    let buried = writer.write(log, letters.collect()).await;
    for nth in buried.new {
        let (record, stage, reject) = rejects[nth];
        metrics::dlq(stage, reject.code(), 1);
        metrics::records(&record.position.partition.topic, RecordOutcome::Dlq, 1);
    }
    let left = buried.left;
    if let Err(source) = buried.outcome {
        return Err(error::Error::Dlq { left, source });
    }
    for stage in waiting.into_keys() {
        metrics::dlq_waiting(stage, 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use nearshore_core::ports::log::{Committed, Delivery};
    use nearshore_core::user::record::{Offset, Resume};

    /// Answers each send by what a test wants.
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

    fn letter(nth: i64) -> (Position, Outgoing) {
        let position = format!("0/t/0:{nth}").parse().expect("valid");
        let letter = Outgoing {
            topic: "dlq".into(),
            key: Some(nth.to_string().into()),
            value: Some("bad".into()),
            headers: Vec::new(),
            time: None,
        };
        (position, letter)
    }

    fn down() -> Error {
        Error::Timeout {
            topic: "dlq".into(),
            limit: Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn what_is_acknowledged_is_not_sent_again_and_counted_once() {
        // The third send and the next fail, whatever they are.
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
        let mut dead_letters = DeadLetterWriter::default();
        let letters: Vec<_> = (0..4).map(letter).collect();
        let first = dead_letters.write(&broker, letters.clone()).await;
        assert_eq!((first.new, first.left), (vec![0, 1], 2));
        assert!(first.outcome.is_err());
        let second = dead_letters.write(&broker, letters.clone()).await;
        assert_eq!((second.new, second.left), (vec![2, 3], 0));
        assert!(
            dead_letters
                .write(&broker, letters.clone())
                .await
                .new
                .is_empty()
        );
        assert_eq!(broker.1.lock().expect("one thread").len(), 4);
        // Of a later batch they would be other letters.
        dead_letters.forget([&letters[0].0.partition]);
        assert_eq!(dead_letters.write(&broker, letters).await.new.len(), 4);
    }

    #[tokio::test]
    async fn a_topic_that_is_closed_for_a_moment_costs_no_letter_its_value() {
        let broker = Broker(
            |_: &Outgoing, _| {
                Err(Error::Refused {
                    what: "write to dlq".into(),
                    reason: "TopicAuthorizationFailed".into(),
                })
            },
            Mutex::default(),
        );
        let refused = send_dead_letters(&broker, vec![letter(0).1]).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        let small = Broker(
            |letter: &Outgoing, _| match letter.value.as_deref() {
                Some(b"bad") => Err(Error::Unfit {
                    what: "write to dlq".into(),
                    reason: "MessageSizeTooLarge".into(),
                }),
                _ => Ok(()),
            },
            Mutex::default(),
        );
        send_dead_letters(&small, vec![letter(0).1])
            .await
            .expect("a lighter form");
        let sent = small.1.lock().expect("one thread");
        assert_eq!(sent[0].value.as_deref(), Some(&b""[..]));
    }
}
