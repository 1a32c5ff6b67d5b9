//! [`KafkaLog`]: one member of a consumer group, with a producer.
//!
//! Threads: the poll thread ([`super::poll`]), a thread that wakes fetchers ([`super::wake`]), and a commit thread,
//! since librdkafka's synchronous commit blocks and its asynchronous one is answered only behind all prefetched
//! messages. The role owns the handle.
//!
//! A commit is sent only for partitions that are assigned to this member at that moment. Kafka does not check that:
//! it accepts any offset from any member of the present generation, even one that sets the new owner back. A revoke
//! may come between the check and librdkafka's queue. Then the new owner's position is set back and it processes some
//! records again, which its fences ignore. Invariant: after `Revoked` was delivered, a commit of its partitions is
//! always refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::health::{Health, Lag};
use super::intake::Intake;
use super::poll::{Member, Poller};
use super::producer::{Producer, permanent, refused};
use super::{KafkaSettings, wake};
use nearshore_core::ports::log::{Committed, Delivery, Error, Log, Outgoing};
use nearshore_core::user::record::{Offset, Partition, Resume};

/// How long [`Log::close`] takes at most; after that the group expires the session.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// An offset to commit, with the metadata that Kafka stores beside it.
pub(super) type Commit = (Partition, Resume, String);

/// The metadata of a position that [`Log::commit`] committed.
const DONE: &str = "done";

enum Job {
    Commit(Vec<Commit>, oneshot::Sender<Result<(), Error>>),
    /// Asks for the group's positions and their metadata.
    Committed(Vec<Partition>, oneshot::Sender<Result<Vec<Commit>, Error>>),
    /// Asks for the group's positions, for the lag only.
    ReadLag(Vec<Partition>),
    /// Asks for a partition's end offset.
    End(Partition, oneshot::Sender<Result<Offset, Error>>),
}

/// One member of a consumer group, with a producer; see the module.
pub struct KafkaLog {
    intake: Arc<Intake>,
    health: Health,
    producer: Producer,
    stop: Arc<AtomicBool>,
    /// Jobs for the commit thread. Capacity 1: a second commit waits for the first anyway.
    jobs: Option<mpsc::Sender<Job>>,
    ended: Option<oneshot::Receiver<()>>,
    limit: Duration,
}

impl KafkaLog {
    /// Joins `group` to read `topics`. Returns at once; [`Delivery::Assigned`] comes when the group has answered.
    pub fn join(settings: &KafkaSettings, group: &str, topics: &[&str]) -> Result<Self, Error> {
        let intake = Arc::new(Intake::default());
        let health = Health::default();
        let (waker, wakes) = wake::channel();
        let member = Member::new(settings, intake.clone(), health.clone(), waker);
        let consumer: BaseConsumer<Member> = settings
            .consuming(group)?
            .create_with_context(member)
            .map_err(|error| refused("consumer", &error))?;
        consumer
            .subscribe(topics)
            .map_err(|error| refused("subscribe", &error))?;
        let consumer = Arc::new(consumer);
        let stop = Arc::new(AtomicBool::new(false));
        let (jobs, queue) = mpsc::channel(1);
        let (done, ended) = oneshot::channel();
        let committer = Committer {
            consumer: consumer.clone(),
            limit: settings.ack_timeout,
        };
        spawn("log-commit", move || committer.run(queue))?;
        let weak = Arc::downgrade(&consumer);
        spawn("log-wake", move || wakes.run(&weak))?;
        let poller = Poller::new(consumer, stop.clone());
        let (stopped, polled) = (intake.clone(), health.clone());
        spawn("log-poll", move || {
            // A panic of the thread must end the role instead of leaving it waiting.
            let _end = StopOnDrop(stopped);
            poll_and_leave(poller, &polled);
            let _ = done.send(());
        })?;
        Ok(Self {
            intake,
            health,
            producer: Producer::new(settings)?,
            stop,
            jobs: Some(jobs),
            ended: Some(ended),
            limit: settings.ack_timeout,
        })
    }

    /// Health of the consumer.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Positions and lag of the assigned partitions.
    pub fn lag(&self) -> Lag {
        Lag(self.intake.clone())
    }

    /// The producer of this member.
    pub fn producer(&self) -> Producer {
        self.producer.clone()
    }

    /// Asks for the positions of assigned partitions, for the lag only. It does not wait for a busy commit thread:
    /// the next commit shows the positions too.
    fn read_lag(&self, delivery: &Result<Delivery, Error>) {
        if let (Ok(Delivery::Assigned(partitions)), Some(jobs)) = (delivery, &self.jobs) {
            let _ = jobs.try_send(Job::ReadLag(partitions.clone()));
        }
    }

    /// Commits as [`Log::commit`] does, with metadata beside each offset.
    pub async fn commit_with_metadata(&self, done: Vec<Commit>) -> Result<(), Error> {
        self.ask(|reply| Job::Commit(done, reply)).await
    }

    /// Committed positions of these partitions with their metadata; a partition without one is left out.
    pub async fn committed_with_metadata(&self, of: Vec<Partition>) -> Result<Vec<Commit>, Error> {
        self.ask(|reply| Job::Committed(of, reply)).await
    }

    async fn ask<T>(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Job,
    ) -> Result<T, Error> {
        let stopped = || Error::Stopped("the commit thread has ended".into());
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        // librdkafka may wait for a coordinator without limit.
        let answered = tokio::time::timeout(self.limit * 2, async {
            jobs.send(job(reply)).await.map_err(|_| stopped())?;
            answer.await.map_err(|_| stopped())?
        });
        answered
            .await
            .unwrap_or_else(|_| Err(timeout(self.limit * 2)))
    }
}

impl Log for KafkaLog {
    async fn next(&mut self) -> Result<Delivery, Error> {
        let delivery = self.intake.next(true).await;
        self.read_lag(&delivery);
        delivery
    }

    async fn notice(&mut self) -> Result<Delivery, Error> {
        let notice = self.intake.next(false).await;
        self.read_lag(&notice);
        notice
    }

    fn pause(&mut self, topics: &[Arc<str>]) {
        self.intake.pause(topics);
    }

    async fn commit(&self, done: &[(Partition, Resume)]) -> Result<(), Error> {
        if done.is_empty() {
            return Ok(());
        }
        let marked =
            |(partition, resume): &(Partition, Resume)| (partition.clone(), *resume, DONE.into());
        self.commit_with_metadata(done.iter().map(marked).collect())
            .await
    }

    async fn committed(&self, of: &[Partition]) -> Result<Vec<Committed>, Error> {
        let found = self.committed_with_metadata(of.to_vec()).await?;
        let positions = found
            .into_iter()
            .map(|(partition, resume, metadata)| Committed {
                partition,
                resume,
                ours: metadata == DONE,
            });
        Ok(positions.collect())
    }

    async fn rewind(&mut self, to: &[(Partition, Resume)]) -> Result<(), Error> {
        self.intake.rewind(to);
        Ok(())
    }

    async fn end(&self, partition: &Partition) -> Result<Offset, Error> {
        self.ask(|reply| Job::End(partition.clone(), reply)).await
    }

    async fn send(&self, records: Vec<Outgoing>) -> Result<(), Error> {
        self.producer.send(records).await
    }

    async fn close(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        let (flushed, flush) = oneshot::channel();
        let producer = self.producer.clone();
        let flushing = spawn("log-flush", move || {
            producer.flush(CLOSE_MAX);
            let _ = flushed.send(());
        });
        let ended = self.ended.take();
        let all = async {
            if let Some(ended) = ended {
                let _ = ended.await;
            }
            if flushing.is_ok() {
                let _ = flush.await;
            }
        };
        if tokio::time::timeout(CLOSE_MAX, all).await.is_err() {
            tracing::warn!(
                target: "kafka",
                "the client did not stop within {CLOSE_MAX:?}; the process ends without it, and the group expires its session"
            );
        }
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Stops the intake when the poll thread ends.
struct StopOnDrop(Arc<Intake>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop("the poll thread has ended");
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(|_| ())
        .map_err(|error| Error::Stopped(format!("thread {name}: {error}")))
}

fn timeout(limit: Duration) -> Error {
    Error::Timeout {
        topic: "the group's coordinator".into(),
        limit,
    }
}

fn poll_and_leave(mut poller: Poller, health: &Health) {
    poller.run();
    let mut consumer = poller.consumer;
    // The commit thread ends when the role drops its handle; a running commit keeps the consumer until then.
    for _ in 0..200 {
        match Arc::try_unwrap(consumer) {
            Ok(last) if health.reachable() => return drop(last),
            Ok(last) => {
                // With no coordinator librdkafka 2.12 may crash while leaving. The session times out instead.
                tracing::warn!(target: "kafka", "no broker is up, so the group is not left; it expires the session");
                return std::mem::forget(last);
            }
            Err(shared) => consumer = shared,
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "one poll of a wait with a deadline, on a thread of its own"
        )]
        std::thread::sleep(Duration::from_millis(10));
    }
}

struct Committer {
    consumer: Arc<BaseConsumer<Member>>,
    limit: Duration,
}

impl Committer {
    fn run(self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            match job {
                Job::Commit(done, reply) => {
                    let _ = reply.send(self.commit(&done));
                }
                Job::Committed(partitions, reply) => {
                    let _ = reply.send(self.committed(&partitions, true));
                }
                Job::End(partition, reply) => {
                    let _ = reply.send(self.end(&partition));
                }
                Job::ReadLag(partitions) => {
                    let _ = self.committed(&partitions, false);
                }
            }
        }
    }

    fn intake(&self) -> &Intake {
        &self.consumer.context().intake
    }

    fn end(&self, partition: &Partition) -> Result<Offset, Error> {
        let answer = self
            .consumer
            .fetch_watermarks(&partition.topic, partition.number, self.limit);
        let (_, end) = answer.map_err(|error| unanswered("end offset", &error, self.limit))?;
        Ok(Offset(end))
    }

    fn commit(&self, done: &[Commit]) -> Result<(), Error> {
        let list = positions(done)?;
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(partition) = self
                .intake()
                .first_not_owned(done.iter().map(|(of, ..)| of))
            {
                return Err(Error::NotAssigned { partition });
            }
            let Err(error) = self.consumer.commit(&list, CommitMode::Sync) else {
                for (partition, resume, _) in done {
                    self.intake().set_committed(partition, *resume);
                }
                return Ok(());
            };
            match error.rdkafka_error_code() {
                Some(code) if permanent(code) => return Err(refused("commit", &error)),
                Some(RDKafkaErrorCode::Fatal) => return Err(Error::Stopped(error.to_string())),
                // After a rebalance the partition may be assigned again under a new generation, or revoked. The check
                // above finds out as soon as the poll thread does.
                _ if Instant::now() < deadline => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "one poll of a wait with a deadline, on the committer's thread"
                    )]
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => return Err(timeout(self.limit)),
            }
        }
    }

    /// Asks for committed positions. `metadata` may be true for Nearshore's own groups only: rdkafka panics on
    /// metadata that is not UTF-8.
    fn committed(&self, partitions: &[Partition], metadata: bool) -> Result<Vec<Commit>, Error> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&partition.topic, partition.number);
        }
        let found = self
            .consumer
            .committed_offsets(list, self.limit)
            .map_err(|error| unanswered("committed offsets", &error, self.limit))?;
        let mut all = Vec::new();
        for partition in partitions {
            let element = found.find_partition(&partition.topic, partition.number);
            if let Some(element) = element
                && let rdkafka::Offset::Offset(at) = element.offset()
            {
                self.intake().set_committed(partition, Resume(at));
                let text = if metadata { element.metadata() } else { "" };
                all.push((partition.clone(), Resume(at), text.into()));
            }
        }
        Ok(all)
    }
}

/// The error of a question that was not answered, for now or for good.
pub(super) fn unanswered(what: &str, error: &KafkaError, limit: Duration) -> Error {
    match error.rdkafka_error_code() {
        Some(code) if permanent(code) => refused(what, error),
        Some(_) => Error::Timeout {
            topic: what.into(),
            limit,
        },
        None => refused(what, error),
    }
}

pub(super) fn positions(done: &[Commit]) -> Result<TopicPartitionList, Error> {
    let mut list = TopicPartitionList::new();
    for (partition, resume, metadata) in done {
        let mut element = list.add_partition(&partition.topic, partition.number);
        element
            .set_offset(rdkafka::Offset::Offset(resume.0))
            .map_err(|error| refused("commit", &error))?;
        if !metadata.is_empty() {
            element.set_metadata(metadata);
        }
    }
    Ok(list)
}
