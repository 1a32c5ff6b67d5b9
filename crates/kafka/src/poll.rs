//! The poll thread: librdkafka's consumer -> batches in the [`Intake`].
//!
//! Decides where a batch is cut ([`BATCH_RECORDS`], [`BATCH_BYTES`], [`BATCH_AGE`]) and what happens when the role does
//! not keep up. The client must be polled for the member to stay in its group, but each poll hands out a
//! record, and a pause throws away what was fetched ahead. So: a full intake is waited for without
//! polling for up to [`PATIENCE`], which is what a busy role needs and delays nothing but a rebalance, by
//! a quarter of a second; only then are the partitions paused and polling goes on, for hours if it must,
//! until the intake is half empty. A stall costs at most one prefetch read again; memory stays bounded
//! by the intake, the batches in hand and `queued.max.messages.kbytes`.
//!
//! Invariants: records of a partition leave in rising offset order without repetition, whatever a resume
//! delivers again; callbacks only post and return; no record keeps librdkafka's buffers alive.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Message, TopicPartitionList};

use super::health::{Health, Watch};
use super::intake::{self, Intake};
use super::lost::Place;
use super::wake::Waker;
use super::{KafkaSettings, native};
use crate::metrics as measures;
use nearshore_core::ports::log::Batch;
use nearshore_core::user::record::{Offset, Partition, Record, Resume};

/// Records of a batch: enough that a flush's round trips are shared, few enough to fold in milliseconds.
const BATCH_RECORDS: usize = 500;
/// Bytes of a batch, for a topic of large records.
const BATCH_BYTES: usize = 1 << 20;
/// Age of a batch's first record at which it leaves: what a quiet topic pays in latency.
const BATCH_AGE: Duration = Duration::from_millis(5);
/// How long a full intake is waited for before partitions are paused.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a seek may take.
const SEEK: Duration = Duration::from_secs(1);
/// How often end offsets are noted.
const ENDS: Duration = Duration::from_secs(1);

/// What a rebalance did, for the poll thread to act on after the poll that served it.
enum Change {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
}

/// Callbacks of a group member.
pub(super) struct Member {
    pub watch: Watch,
    pub intake: Arc<Intake>,
    pub settings: KafkaSettings,
    waker: Waker,
    changes: Mutex<Vec<Change>>,
    paused: Mutex<TopicPartitionList>,
}

impl Member {
    pub fn new(
        settings: &KafkaSettings,
        intake: Arc<Intake>,
        health: Health,
        waker: Waker,
    ) -> Self {
        Self {
            waker,
            watch: Watch::new(settings, health),
            intake,
            settings: settings.clone(),
            changes: Mutex::default(),
            paused: Mutex::new(TopicPartitionList::new()),
        }
    }

    fn post(&self, change: Change) {
        self.changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(change);
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        // `elements` of an empty list reads a null pointer.
        if list.count() == 0 {
            return Vec::new();
        }
        list.elements()
            .iter()
            .map(|element| {
                self.settings
                    .partition(element.topic(), element.partition())
            })
            .collect()
    }

    /// What we keep was paused by librdkafka around this callback: see [`super::wake`].
    fn wake(&self, consumer: &BaseConsumer<Self>) {
        if let Ok(ours) = consumer.assignment() {
            self.waker.wake(&ours);
        }
    }

    fn failed(&self, what: &str, error: &KafkaError) {
        self.watch.health.refused(format!("{what}: {error}"));
        tracing::error!(target: "kafka", "{what}: {error}");
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.watch.log(level, facility, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.watch.stats_raw(statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.error(error, reason);
    }
}

impl ConsumerContext for Member {
    /// Assigns once and checks the answer, which the default does not. Runs on the poll thread.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let _timed = Timed(Instant::now());
        let partitions = self.partitions(list);
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if let Err(error) = consumer.incremental_assign(list) {
                return self.failed("assign", &error);
            }
            // Signs first: who is told of the assignment may ask for them.
            self.watch
                .health
                .assign(self.intake.count() + partitions.len());
            if !partitions.is_empty() {
                self.intake.assign(partitions.clone());
            }
            self.wake(consumer);
            self.post(Change::Assigned(partitions));
            return;
        }
        let lost = consumer.assignment_lost();
        if !partitions.is_empty() {
            // First of all: from here on a commit of these is refused.
            self.intake.revoke(&partitions, lost);
            self.watch.health.assign(self.intake.count());
        }
        // librdkafka keeps a pause over unassign: a partition that came back would stay silent for ever.
        let mut resumed = TopicPartitionList::new();
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in &partitions {
            if paused
                .find_partition(&partition.topic, partition.number)
                .is_some()
            {
                resumed.add_partition(&partition.topic, partition.number);
            }
        }
        drop(paused);
        if resumed.count() > 0
            && let Err(error) = consumer.resume(&resumed)
        {
            self.failed("resume", &error);
        }
        if let Err(error) = consumer.incremental_unassign(list) {
            self.failed("unassign", &error);
        }
        self.wake(consumer);
        self.post(Change::Revoked(partitions));
    }
}

/// Measures a callback to its end, whichever that is.
struct Timed(Instant);

impl Drop for Timed {
    fn drop(&mut self) {
        measures::callback(self.0.elapsed());
    }
}

/// A batch being collected.
struct Open {
    partition: Partition,
    /// The next offset that is news.
    next: i64,
    place: Place,
    records: Vec<Record>,
    bytes: usize,
    since: Instant,
}

impl Open {
    fn due(&self, now: Instant) -> bool {
        !self.records.is_empty()
            && (self.records.len() >= BATCH_RECORDS
                || self.bytes >= BATCH_BYTES
                || now.duration_since(self.since) >= BATCH_AGE)
    }
}

/// The poll thread's own.
pub(super) struct Poller {
    pub consumer: Arc<BaseConsumer<Member>>,
    pub stop: Arc<AtomicBool>,
    hand: BTreeMap<Arc<str>, BTreeMap<i32, Open>>,
    /// First record in hand of any partition.
    oldest: Option<Instant>,
    /// Some batch reached its size.
    sized: bool,
    paused: bool,
    /// Topics that the role holds back: paused, whatever the intake.
    held: BTreeSet<Arc<str>>,
    ended: Instant,
}

impl Poller {
    pub fn new(consumer: Arc<BaseConsumer<Member>>, stop: Arc<AtomicBool>) -> Self {
        Self {
            consumer,
            stop,
            hand: BTreeMap::new(),
            oldest: None,
            sized: false,
            paused: false,
            held: BTreeSet::new(),
            ended: Instant::now(),
        }
    }

    /// Polls until told to stop, or until the client says that it cannot go on.
    pub fn run(&mut self) {
        let health = self.consumer.context().watch.health.clone();
        while !self.stop.load(Ordering::Relaxed) {
            health.beat();
            let now = Instant::now();
            self.rewind();
            self.hold();
            if !self.deliver(now) {
                self.stall();
            } else if self.paused && !self.room(PATIENCE) {
                self.turn(Duration::ZERO);
            } else {
                self.resume();
                self.turn(self.wait(now));
            }
            if now.duration_since(self.ended) >= ENDS {
                self.ended = now;
                self.note_ends();
            }
        }
    }

    /// Gives the consumer back, to be closed.
    pub fn into_consumer(self) -> Arc<BaseConsumer<Member>> {
        self.consumer
    }

    fn intake(&self) -> &Intake {
        &self.consumer.context().intake
    }

    fn room(&self, limit: Duration) -> bool {
        self.intake().wait_for_room(limit)
    }

    /// How long a poll may sleep: until the oldest batch in hand is due.
    fn wait(&self, now: Instant) -> Duration {
        self.oldest.map_or(Duration::from_millis(100), |oldest| {
            (oldest + BATCH_AGE)
                .saturating_duration_since(now)
                .max(Duration::from_millis(1))
        })
    }

    /// Batches that are due leave; false if the intake is full.
    fn deliver(&mut self, now: Instant) -> bool {
        let aged = self
            .oldest
            .is_some_and(|oldest| now.duration_since(oldest) >= BATCH_AGE);
        if !self.sized && !aged {
            return true;
        }
        let context = self.consumer.context().clone();
        let client = self.consumer.client();
        let (mut oldest, mut all) = (None, true);
        for open in self.hand.values_mut().flat_map(BTreeMap::values_mut) {
            if all && open.due(now) {
                let known = native::known(client, &open.partition).1;
                let batch = Batch {
                    partition: open.partition.clone(),
                    records: std::mem::take(&mut open.records),
                    end: known.unwrap_or_default().max(Offset(open.next)),
                };
                match context.intake.offer(batch) {
                    Ok(()) => open.bytes = 0,
                    Err(batch) => {
                        open.records = batch.records;
                        all = false;
                    }
                }
            }
            if !open.records.is_empty() {
                oldest = Some(oldest.map_or(open.since, |other: Instant| other.min(open.since)));
            }
        }
        self.oldest = oldest;
        self.sized = !all;
        all
    }

    /// The intake is full: see the module.
    fn stall(&mut self) {
        if self.room(PATIENCE) {
            return;
        }
        if !self.paused {
            self.paused = true;
            let all: Vec<Partition> = self.owned().cloned().collect();
            self.pause(&all);
        }
        self.turn(Duration::ZERO);
    }

    fn owned(&self) -> impl Iterator<Item = &Partition> {
        self.hand
            .values()
            .flat_map(BTreeMap::values)
            .map(|open| &open.partition)
    }

    fn pause(&self, partitions: &[Partition]) {
        let context = self.consumer.context();
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&partition.topic, partition.number);
        }
        if list.count() == 0 {
            return;
        }
        if let Err(error) = self.consumer.pause(&list) {
            return context.failed("pause", &error);
        }
        let mut paused = context
            .paused
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for partition in partitions {
            paused.add_partition(&partition.topic, partition.number);
        }
    }

    /// Pauses what the role holds back, and resumes what it holds no more.
    fn hold(&mut self) {
        let held = self.intake().held();
        if held == self.held {
            return;
        }
        let before = std::mem::replace(&mut self.held, held);
        let fresh = |it: &&Partition| self.held.contains(&it.topic) && !before.contains(&it.topic);
        let fresh: Vec<Partition> = self.owned().filter(fresh).cloned().collect();
        if !self.paused {
            self.pause(&fresh);
            self.resume_rest();
        }
    }

    fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.resume_rest();
        }
    }

    /// Resumes what was paused and is not held back, and nothing else: a resume of a running partition reads it again.
    fn resume_rest(&self) {
        let context = self.consumer.context();
        let mut paused = context
            .paused
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut list, mut still) = (TopicPartitionList::new(), TopicPartitionList::new());
        for partition in self.owned() {
            let (topic, number) = (&partition.topic, partition.number);
            if paused.find_partition(topic, number).is_some() {
                let held = self.held.contains(topic);
                let list = if held { &mut still } else { &mut list };
                list.add_partition(topic, number);
            }
        }
        *paused = still;
        drop(paused);
        if list.count() == 0 {
            return;
        }
        match self.consumer.resume(&list) {
            Ok(()) => context.waker.wake(&list),
            Err(error) => context.failed("resume", &error),
        }
    }

    /// One poll and what comes of it.
    fn turn(&mut self, limit: Duration) {
        let consumer = self.consumer.clone();
        let polled = consumer.poll(limit);
        self.follow();
        match polled {
            None => {}
            Some(Ok(message)) => self.collect(&message),
            Some(Err(error)) => self.complain(&error),
        }
    }

    /// Follows what the rebalance callbacks posted during the poll.
    fn follow(&mut self) {
        let context = self.consumer.context().clone();
        let changes = std::mem::take(
            &mut *context
                .changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for change in changes {
            match change {
                Change::Assigned(partitions) => {
                    for partition in &partitions {
                        self.open(partition, Place::default());
                    }
                    let stopped = |it: &Partition| self.paused || self.held.contains(&it.topic);
                    let stopped: Vec<Partition> = partitions.into_iter().filter(stopped).collect();
                    self.pause(&stopped);
                }
                Change::Revoked(partitions) => {
                    for partition in &partitions {
                        if let Some(topic) = self.hand.get_mut(&partition.topic) {
                            topic.remove(&partition.number);
                        }
                    }
                }
            }
        }
    }

    /// Reads on elsewhere, as the role asked. Synchronous, which ends when librdkafka's main thread has taken it up:
    /// from then on it hands out nothing that it had fetched before.
    fn rewind(&mut self) {
        let context = self.consumer.context().clone();
        for (partition, to) in context.intake.rewinds() {
            let at = rdkafka::Offset::Offset(to.0);
            let (topic, number) = (&partition.topic, partition.number);
            match self.consumer.seek(topic, number, at, SEEK) {
                Ok(()) => {
                    self.open(&partition, Place::at(to));
                    context.intake.rewound(&partition, to);
                    tracing::info!(target: "kafka", %partition, to = to.0, "read again from here");
                }
                // Assigned a moment ago, or on its way out: the next turn knows more.
                Err(error) => {
                    tracing::debug!(target: "kafka", %partition, %error, "cannot be set back yet");
                    self.turn(Duration::from_millis(10));
                }
            }
        }
    }

    fn open(&mut self, partition: &Partition, place: Place) {
        let open = Open {
            partition: partition.clone(),
            next: 0,
            place,
            records: Vec::new(),
            bytes: 0,
            since: Instant::now(),
        };
        self.hand
            .entry(partition.topic.clone())
            .or_default()
            .insert(partition.number, open);
    }

    fn collect(&mut self, message: &BorrowedMessage<'_>) {
        let Some(open) = self
            .hand
            .get_mut(message.topic())
            .and_then(|topic| topic.get_mut(&message.partition()))
        else {
            return; // Revoked in this very poll.
        };
        if message.offset() < open.next {
            let end = native::known(self.consumer.client(), &open.partition).1;
            if end.is_none_or(|end| end.0 >= open.next) {
                return; // Delivered again by a resume.
            }
            // Truncated, or recreated: the role must see it, for its fences now outlive their log.
            let (partition, next) = (&open.partition, open.next);
            let why = format!("{partition} was read up to {next} but ends at {end:?}");
            tracing::error!(target: "kafka", "{why}");
            self.consumer.context().watch.health.refused(why);
            open.records.clear();
            open.bytes = 0;
            open.place = Place::at(Resume(message.offset()));
        }
        let record = native::copy(message, &open.partition);
        open.next = message.offset() + 1;
        open.place.read(Offset(message.offset()), Instant::now);
        if open.records.is_empty() {
            open.since = Instant::now();
            self.oldest.get_or_insert(open.since);
        }
        open.bytes += intake::size(&record);
        open.records.push(record);
        self.sized |= open.records.len() >= BATCH_RECORDS || open.bytes >= BATCH_BYTES;
    }

    fn complain(&mut self, error: &KafkaError) {
        let context = self.consumer.context();
        if let KafkaError::MessageConsumptionFatal(code) = error {
            tracing::error!(target: "kafka", "the consumer cannot go on: {code}");
            context.intake.stop(&code.to_string());
            self.stop.store(true, Ordering::Relaxed);
            return;
        }
        // A missing topic, a missing right, a deleted offset: librdkafka goes on asking.
        tracing::warn!(target: "kafka", "{error}");
        if let Some(code) = error.rdkafka_error_code()
            && super::producer::permanent(code)
        {
            context.watch.health.refused(error.to_string());
        }
    }

    /// What is known of the partitions' ends and beginnings: the ones are lag, the others may be losses.
    fn note_ends(&mut self) {
        let (context, now) = (self.consumer.context().clone(), Instant::now());
        for open in self.hand.values_mut().flat_map(BTreeMap::values_mut) {
            let partition = &open.partition;
            let (begin, end) = native::known(self.consumer.client(), partition);
            if let Some(end) = end {
                context.intake.ended(partition, end);
            }
            let Some(begin) = begin else { continue };
            let began = context.intake.began(partition);
            for Range { start, end } in open.place.lost((begin, began), now) {
                let records = (end - start) as u64;
                measures::lost(&partition.topic, records);
                context.watch.health.lose(records);
                tracing::error!(
                    target: "kafka", %partition, from = start, to = end, records,
                    "records were deleted by the broker before they were read: keep the topic longer (retention.ms), or read it sooner"
                );
            }
        }
    }
}
