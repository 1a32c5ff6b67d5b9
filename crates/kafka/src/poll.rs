//! The poll thread: collects messages of librdkafka's consumer into batches for the [`Intake`].
//!
//! Decides when a batch is complete ([`BATCH_RECORDS`], [`BATCH_BYTES`], [`BATCH_AGE`]) and what happens when the
//! member is too slow. The client must be polled for the member to stay in its group, but each poll returns a
//! message, and a pause drops what was fetched ahead. So: the thread first waits for a full intake without polling,
//! for up to [`PATIENCE`]. A busy member needs no more, and only a rebalance is delayed, by a quarter of a second.
//! Only then are the partitions paused, and polling continues, for hours if necessary, until the intake is half
//! empty. A stall costs at most one prefetch, which is read again. Memory is bounded by the intake, the open batches
//! and `queued.max.messages.kbytes`.
//!
//! Invariants: records of a partition leave in rising offset order without repetition, even if a resume delivers them
//! again; callbacks only post and return; no record keeps librdkafka's buffers alive.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Message, TopicPartitionList};

use super::health::{Health, Watch};
use super::intake::{self, Intake};
use super::login::Login;
use super::lost::Place;
use super::wake::Waker;
use super::{KafkaSettings, native};
use crate::metrics as measures;
use nearshore_core::ports::log::Batch;
use nearshore_core::user::record::{Offset, Partition, Record, Resume};

/// Records of a batch: enough to share the round trips of a flush, few enough to fold in milliseconds.
const BATCH_RECORDS: usize = 500;
/// Bytes of a batch, for topics of large records.
const BATCH_BYTES: usize = 1 << 20;
/// Age of the first record at which a batch is complete: the latency that this adds on a quiet topic.
const BATCH_AGE: Duration = Duration::from_millis(5);
/// How long the thread waits for a full intake before it pauses partitions.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a seek may take.
const SEEK_MAX: Duration = Duration::from_secs(1);
/// How often known end offsets are read.
const ENDS_EVERY: Duration = Duration::from_secs(1);

/// A change of the assignment, which the poll thread handles after the poll that called the callback.
enum Change {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
}

/// Context of a group member: its callbacks, and what they share with the poll thread.
pub(super) struct Member {
    pub(super) watch: Watch,
    pub(super) intake: Arc<Intake>,
    pub(super) settings: KafkaSettings,
    waker: Waker,
    changes: Mutex<Vec<Change>>,
    paused: Mutex<TopicPartitionList>,
}

impl Member {
    pub(super) fn new(
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
        self.changes.lock().push(change);
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

    /// Wakes the fetchers of kept partitions, which librdkafka pauses around a callback: see [`super::wake`].
    fn wake(&self, consumer: &BaseConsumer<Self>) {
        if let Ok(assignment) = consumer.assignment() {
            self.waker.wake(&assignment);
        }
    }

    fn failed(&self, what: &str, error: &KafkaError) {
        self.watch.health.set_refusal(format!("{what}: {error}"));
        tracing::error!(target: "kafka", "{what} failed: {error}; readiness reports it until the next assignment");
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
    /// Assigns or unassigns once and checks the answer, which the default does not. Runs on the poll thread.
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let _timer = CallbackTimer(Instant::now());
        let partitions = self.partitions(list);
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if let Err(error) = consumer.incremental_assign(list) {
                return self.failed("assign", &error);
            }
            // The health first: a member that gets the assignment may ask for it.
            self.watch
                .health
                .set_assigned(self.intake.count() + partitions.len());
            if !partitions.is_empty() {
                self.intake.assign(partitions.clone());
            }
            self.wake(consumer);
            self.post(Change::Assigned(partitions));
            return;
        }
        let lost = consumer.assignment_lost();
        if !partitions.is_empty() {
            // Before anything else: from here on a commit of these partitions is refused.
            self.intake.revoke(&partitions, lost);
            self.watch.health.set_assigned(self.intake.count());
        }
        // librdkafka keeps a pause after unassign: a partition that is assigned again would never be fetched.
        let mut resumed = TopicPartitionList::new();
        let paused = self.paused.lock();
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

/// Why a member cannot go on, by our key where another process took its place.
fn why_for_good(fatal: Option<(RDKafkaErrorCode, String)>, settings: &KafkaSettings) -> String {
    match (fatal, &settings.instance_id) {
        (Some((RDKafkaErrorCode::FencedInstanceId, _)), Some(id)) => format!(
            "another process joined with the same kafka.instance_id = {id:?}, and has the partitions now; give each \
             process its own, such as the name of its pod"
        ),
        (Some((code, reason)), _) => format!("{code}: {reason}"),
        (None, _) => "the client does not say why".into(),
    }
}

/// Measures a callback until it returns.
struct CallbackTimer(Instant);

impl Drop for CallbackTimer {
    fn drop(&mut self) {
        measures::callback(self.0.elapsed());
    }
}

/// A batch being collected.
struct OpenBatch {
    partition: Partition,
    /// The lowest offset that was not collected before.
    next: i64,
    place: Place,
    records: Vec<Record>,
    bytes: usize,
    since: Instant,
}

impl OpenBatch {
    fn due(&self, now: Instant) -> bool {
        !self.records.is_empty()
            && (self.records.len() >= BATCH_RECORDS
                || self.bytes >= BATCH_BYTES
                || now.duration_since(self.since) >= BATCH_AGE)
    }
}

/// State of the poll thread.
pub(super) struct Poller {
    pub(super) consumer: Arc<BaseConsumer<Member>>,
    pub(super) stop: Arc<AtomicBool>,
    /// Open batches by topic and partition.
    open: BTreeMap<Arc<str>, BTreeMap<i32, OpenBatch>>,
    /// When the oldest collected record of any partition came.
    oldest: Option<Instant>,
    /// Whether some batch has reached its size.
    any_full: bool,
    /// Whether all partitions are paused because the intake is full.
    stalled: bool,
    /// Topics that the member paused; they stay paused when the intake has room.
    paused_topics: BTreeSet<Arc<str>>,
    ends_read: Instant,
    login: Login,
}

impl Poller {
    pub(super) fn new(consumer: Arc<BaseConsumer<Member>>, stop: Arc<AtomicBool>) -> Self {
        Self {
            login: Login::new(&consumer.context().settings),
            consumer,
            stop,
            open: BTreeMap::new(),
            oldest: None,
            any_full: false,
            stalled: false,
            paused_topics: BTreeSet::new(),
            ends_read: Instant::now(),
        }
    }

    /// Polls until `stop` is set or the client reports a fatal error.
    pub(super) fn run(&mut self) {
        let health = self.consumer.context().watch.health.clone();
        while !self.stop.load(Ordering::Relaxed) {
            health.count_poll();
            let now = Instant::now();
            self.rewind();
            self.follow_pauses();
            if !self.deliver(now) {
                self.stall();
            } else if self.stalled && !self.room(PATIENCE) {
                self.turn(Duration::ZERO);
            } else {
                self.resume();
                self.turn(self.wait(now));
            }
            if now.duration_since(self.ends_read) >= ENDS_EVERY {
                self.ends_read = now;
                self.read_ends();
                self.login.renew(
                    self.consumer.client(),
                    &self.consumer.context().watch.health,
                );
            }
        }
    }

    fn intake(&self) -> &Intake {
        &self.consumer.context().intake
    }

    fn room(&self, limit: Duration) -> bool {
        self.intake().wait_for_room(limit)
    }

    /// How long a poll may sleep: until the oldest open batch is due.
    fn wait(&self, now: Instant) -> Duration {
        self.oldest.map_or(Duration::from_millis(100), |oldest| {
            (oldest + BATCH_AGE)
                .saturating_duration_since(now)
                .max(Duration::from_millis(1))
        })
    }

    /// Offers all due batches to the intake; false if it is full.
    fn deliver(&mut self, now: Instant) -> bool {
        let aged = self
            .oldest
            .is_some_and(|oldest| now.duration_since(oldest) >= BATCH_AGE);
        if !self.any_full && !aged {
            return true;
        }
        let context = self.consumer.context().clone();
        let client = self.consumer.client();
        let (mut oldest, mut has_room) = (None, true);
        for open in self.open.values_mut().flat_map(BTreeMap::values_mut) {
            if has_room && open.due(now) {
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
                        has_room = false;
                    }
                }
            }
            if !open.records.is_empty() {
                oldest = Some(oldest.map_or(open.since, |other: Instant| other.min(open.since)));
            }
        }
        self.oldest = oldest;
        self.any_full = !has_room;
        has_room
    }

    /// Handles a full intake: see the module.
    fn stall(&mut self) {
        if self.room(PATIENCE) {
            return;
        }
        if !self.stalled {
            self.stalled = true;
            let all: Vec<Partition> = self.assigned().cloned().collect();
            self.pause(&all);
        }
        self.turn(Duration::ZERO);
    }

    fn assigned(&self) -> impl Iterator<Item = &Partition> {
        self.open
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
        let mut paused = context.paused.lock();
        for partition in partitions {
            paused.add_partition(&partition.topic, partition.number);
        }
    }

    /// Pauses topics that the member paused since the last turn, and resumes those that it resumed.
    fn follow_pauses(&mut self) {
        let topics = self.intake().paused();
        if topics == self.paused_topics {
            return;
        }
        let before = std::mem::replace(&mut self.paused_topics, topics);
        let new = |partition: &&Partition| {
            self.paused_topics.contains(&partition.topic) && !before.contains(&partition.topic)
        };
        let new: Vec<Partition> = self.assigned().filter(new).cloned().collect();
        if !self.stalled {
            self.pause(&new);
            self.resume_others();
        }
    }

    fn resume(&mut self) {
        if std::mem::take(&mut self.stalled) {
            self.resume_others();
        }
    }

    /// Resumes paused partitions, except those of topics that the member paused. A resume of a running partition
    /// would read it again.
    fn resume_others(&self) {
        let context = self.consumer.context();
        let mut paused = context.paused.lock();
        let (mut list, mut still) = (TopicPartitionList::new(), TopicPartitionList::new());
        for partition in self.assigned() {
            let (topic, number) = (&partition.topic, partition.number);
            if paused.find_partition(topic, number).is_some() {
                let stays = self.paused_topics.contains(topic);
                let list = if stays { &mut still } else { &mut list };
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

    /// Polls once and handles the result.
    fn turn(&mut self, limit: Duration) {
        let consumer = self.consumer.clone();
        let polled = consumer.poll(limit);
        self.follow_changes();
        match polled {
            None => {}
            Some(Ok(message)) => self.collect(&message),
            Some(Err(error)) => self.report(&error),
        }
    }

    /// Handles the changes that rebalance callbacks posted during the poll.
    fn follow_changes(&mut self) {
        let context = self.consumer.context().clone();
        let changes = std::mem::take(&mut *context.changes.lock());
        for change in changes {
            match change {
                Change::Assigned(partitions) => {
                    for partition in &partitions {
                        self.open_batch(partition, Place::default());
                    }
                    let pause = |partition: &Partition| {
                        self.stalled || self.paused_topics.contains(&partition.topic)
                    };
                    let paused: Vec<Partition> = partitions.into_iter().filter(pause).collect();
                    self.pause(&paused);
                }
                Change::Revoked(partitions) => {
                    for partition in &partitions {
                        if let Some(topic) = self.open.get_mut(&partition.topic) {
                            topic.remove(&partition.number);
                        }
                    }
                }
            }
        }
    }

    /// Seeks to the positions that the member requested. The seek is synchronous: when it returns, librdkafka's main
    /// thread has dropped what was fetched before.
    fn rewind(&mut self) {
        let context = self.consumer.context().clone();
        for (partition, to) in context.intake.rewinds() {
            let at = rdkafka::Offset::Offset(to.0);
            let (topic, number) = (&partition.topic, partition.number);
            match self.consumer.seek(topic, number, at, SEEK_MAX) {
                Ok(()) => {
                    self.open_batch(&partition, Place::at(to));
                    context.intake.rewound(&partition, to);
                    tracing::info!(target: "kafka", %partition, to = to.0, "position set back; records from here on are read again");
                }
                // The partition was just assigned, or is being revoked: the next turn tries again.
                Err(error) => {
                    tracing::debug!(target: "kafka", %partition, %error, "position cannot be set back yet; the next turn tries again");
                    self.turn(Duration::from_millis(10));
                }
            }
        }
    }

    fn open_batch(&mut self, partition: &Partition, place: Place) {
        let open = OpenBatch {
            partition: partition.clone(),
            next: 0,
            place,
            records: Vec::new(),
            bytes: 0,
            since: Instant::now(),
        };
        self.open
            .entry(partition.topic.clone())
            .or_default()
            .insert(partition.number, open);
    }

    fn collect(&mut self, message: &BorrowedMessage<'_>) {
        let Some(open) = self
            .open
            .get_mut(message.topic())
            .and_then(|topic| topic.get_mut(&message.partition()))
        else {
            return; // Revoked during this poll.
        };
        if message.offset() < open.next {
            let end = native::known(self.consumer.client(), &open.partition).1;
            if end.is_none_or(|end| end.0 >= open.next) {
                return; // Delivered again by a resume.
            }
            // The log was truncated or recreated. The member must see the record, since its fences belong to the
            // older log.
            let (partition, next) = (&open.partition, open.next);
            let reason = format!(
                "{partition} was read up to {next} but ends at {end:?}; \
                 if the topic was recreated, raise its number in kafka.incarnations"
            );
            tracing::error!(target: "kafka", "{reason}");
            self.consumer.context().watch.health.set_refusal(reason);
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
        self.any_full |= open.records.len() >= BATCH_RECORDS || open.bytes >= BATCH_BYTES;
    }

    fn report(&mut self, error: &KafkaError) {
        let context = self.consumer.context();
        // librdkafka's event says only that an error is for good; the client says which one.
        let fatal = self.consumer.client().fatal_error();
        if fatal.is_some() || matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            let why = why_for_good(fatal, &context.settings);
            tracing::error!(target: "kafka", "the consumer failed for good: {why}; its role ends");
            context.intake.stop(&why);
            self.stop.store(true, Ordering::Relaxed);
            return;
        }
        // A missing topic, a missing right, a deleted offset: librdkafka tries again.
        tracing::warn!(target: "kafka", "{error}; the client tries again");
        if let Some(code) = error.rdkafka_error_code()
            && super::producer::permanent(code)
        {
            context.watch.health.set_refusal(error.to_string());
        }
    }

    /// Reads the known ends and beginnings of the partitions: ends give the lag, beginnings may show losses.
    fn read_ends(&mut self) {
        let (context, now) = (self.consumer.context().clone(), Instant::now());
        for open in self.open.values_mut().flat_map(BTreeMap::values_mut) {
            let partition = &open.partition;
            let (begin, end) = native::known(self.consumer.client(), partition);
            if let Some(end) = end {
                context.intake.set_end(partition, end);
            }
            let Some(begin) = begin else { continue };
            let began = context.intake.began(partition);
            for Range { start, end } in open.place.lost(begin, began, now) {
                let records = (end - start) as u64;
                measures::lost(&partition.topic, records);
                context.watch.health.count_lost(records);
                tracing::error!(
                    target: "kafka", %partition, from = start, to = end, records,
                    "records were deleted by the broker before they were read: keep the topic longer (retention.ms), or read it sooner"
                );
            }
        }
    }
}
