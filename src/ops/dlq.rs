//! Lists and replays the dead letters in the topic `dlq`: [`list`], [`replay`]. [`crate::members::dlq`] writes them.
//!
//! Replays are recorded in the positions of the group [`group`], so that a dead letter is sent back once, however often
//! a replay is interrupted or run with other filters. The position is that of the first dead letter that was not sent
//! back; the ones sent back after it are in the note that Kafka keeps with a position (`Ledger`). Two replays at once
//! share the partitions like members of any group. A dead letter is recorded as sent back only after its delivery
//! report.
//!
//! A record of a mapped topic is not sent back to it: other programs of the shop read that topic, too. It is mapped as the
//! configuration says now, and what that makes is sent to our own topic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::Value;

use crate::map::Mapper;
use nearshore_core::map::became;
use nearshore_core::ports::log::{Batch, Delivery, Error, Log, Outgoing};
use nearshore_core::queue::topics::Topics;
use nearshore_core::user::event::Limits;
use nearshore_core::user::record::{Offset, Partition, Position, Record, Resume};
use nearshore_kafka::dlq::{DeadLetter, Filter, NotReplayable, is_ours};
use nearshore_kafka::{Admin, Extent};
use nearshore_kafka::{KafkaLog, KafkaSettings};
use nearshore_kafka::{Tailed, tail};

/// The consumer group whose positions say what was replayed.
pub(crate) fn group(kafka: &KafkaSettings) -> String {
    kafka.group("dlq-replay")
}
/// Kafka keeps notes up to 4,096 bytes.
const NOTE_MAX: usize = 4_000;
/// If no partition delivers anything for this long, another replay has the rest.
const IDLE: Duration = Duration::from_secs(15);

/// The last `limit` dead letters that match, oldest first.
pub async fn list(
    settings: &KafkaSettings,
    topic: &str,
    filter: &Filter,
    limit: usize,
) -> Result<Vec<DeadLetter>, Error> {
    let mut tail = tail(settings, topic, &BTreeMap::new()).await?;
    let mut last = VecDeque::new();
    while let Tailed::Record(record) = tail.next().await? {
        let dead_letter = DeadLetter::read(&record);
        if filter.matches(&dead_letter) {
            last.push_back(dead_letter);
            if last.len() > limit {
                last.pop_front();
            }
        }
    }
    let mut last = Vec::from(last);
    last.sort_by_key(|dead_letter| dead_letter.time);
    Ok(last)
}

/// What a replay sends back.
#[derive(Clone, Debug)]
pub struct ReplayOrder {
    /// The dlq topic.
    pub topic: String,
    /// Which dead letters.
    pub filter: Filter,
    /// Most times that one record may be sent back, over all replays.
    pub replays_max: u32,
    /// Reports what would be sent, and sends nothing.
    pub dry_run: bool,
    /// Our topics, and those that are mapped.
    pub topics: Topics,
    /// Limits of what a mapping makes.
    pub limits: Limits,
}

/// What a replay did with a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayFate {
    /// It was sent back, or would be in a dry run.
    Replayed,
    /// The filter does not match it.
    Left,
    /// It cannot be sent back.
    Hindered(NotReplayable),
    /// The broker refused it; the reason.
    Refused(String),
    /// This replay has already sent back the same record: a redelivery wrote it to the dlq twice.
    Duplicate,
}

/// Sends dead letters that were in the topic at the start back to their topics; calls `on` with the fate of each.
pub async fn replay(
    settings: &KafkaSettings,
    order: &ReplayOrder,
    on: impl FnMut(&DeadLetter, &ReplayFate),
) -> Result<(), Error> {
    let extents = Admin::new(settings)?.extents(&order.topic).await?;
    if extents.is_empty() {
        return Err(Error::Refused {
            what: format!("replay {}", order.topic),
            reason: "the topic does not exist; see topics.dlq".into(),
        });
    }
    let mut log = KafkaLog::join(settings, &group(settings), &[&order.topic])?;
    let mut run = Run {
        order,
        on,
        mapper: Mapper::new(&order.topics),
        ledgers: BTreeMap::new(),
        sent: BTreeSet::new(),
    };
    let outcome = run.all(&mut log, &extents).await;
    log.close().await;
    outcome
}

struct Run<'a, F> {
    order: &'a ReplayOrder,
    on: F,
    mapper: Mapper,
    ledgers: BTreeMap<Partition, Ledger>,
    /// Topic, partition and offset of the records that this replay sent back.
    sent: BTreeSet<(String, i32, i64)>,
}

impl<F: FnMut(&DeadLetter, &ReplayFate)> Run<'_, F> {
    async fn all(&mut self, log: &mut KafkaLog, extents: &[Extent]) -> Result<(), Error> {
        while !extents.iter().all(|extent| self.reached(extent)) {
            let Ok(delivery) = tokio::time::timeout(IDLE, log.next()).await else {
                break;
            };
            match delivery? {
                Delivery::Assigned(partitions) => {
                    let mut ledgers = BTreeMap::new();
                    for (partition, resume, note) in
                        log.committed_with_metadata(partitions.clone()).await?
                    {
                        ledgers.insert(partition, Ledger::read(resume, &note));
                    }
                    for partition in partitions {
                        let ledger = ledgers.remove(&partition).unwrap_or_default();
                        self.ledgers.insert(partition, ledger);
                    }
                }
                Delivery::Revoked { partitions, .. } => {
                    self.ledgers
                        .retain(|partition, _| !partitions.contains(partition));
                }
                Delivery::Batch(mut batch) => {
                    let end = extents
                        .iter()
                        .find(|extent| extent.partition == batch.partition)
                        .map_or(0, |extent| extent.end.0);
                    // A record that fails again is left for the next replay.
                    batch.records.retain(|it| it.position.offset.0 < end);
                    self.batch(log, batch).await?;
                }
            }
        }
        Ok(())
    }

    fn reached(&self, extent: &Extent) -> bool {
        extent.begin == extent.end
            || self
                .ledgers
                .get(&extent.partition)
                .is_some_and(|ledger| ledger.seen >= extent.end.0)
    }

    async fn batch(&mut self, log: &KafkaLog, batch: Batch) -> Result<(), Error> {
        let Some(ledger) = self.ledgers.get_mut(&batch.partition) else {
            return Ok(());
        };
        let mut sent = 0;
        for record in &batch.records {
            let offset = record.position.offset.0;
            if ledger.has(offset) {
                ledger.pass(offset);
                continue;
            }
            let dead_letter = DeadLetter::read(record);
            let origin = origin(&dead_letter);
            let again = origin.as_ref().is_some_and(|it| self.sent.contains(it));
            let fate = match again {
                true => ReplayFate::Duplicate,
                false => fate(self.order, &mut self.mapper, &dead_letter, log).await?,
            };
            (self.on)(&dead_letter, &fate);
            if matches!(fate, ReplayFate::Replayed | ReplayFate::Duplicate) {
                self.sent.extend(origin);
                ledger.done(offset);
                sent += 1;
            } else {
                ledger.leave(offset);
            }
        }
        if sent == 0 || self.order.dry_run {
            return Ok(());
        }
        let (resume, note) = ledger.write();
        if note.len() > NOTE_MAX {
            return Err(Error::Refused {
                what: format!("replay of {}", batch.partition),
                reason: "too many dead letters were left out between those sent back; replay those first, with \
                         fewer filters"
                    .into(),
            });
        }
        log.commit_with_metadata(vec![(batch.partition, resume, note)])
            .await
    }
}

/// Topic, partition and offset of the record that failed.
fn origin(dead_letter: &DeadLetter) -> Option<(String, i32, i64)> {
    Some((
        dead_letter.topic.clone()?,
        dead_letter.partition?,
        dead_letter.offset?,
    ))
}

async fn fate(
    order: &ReplayOrder,
    mapper: &mut Mapper,
    dead_letter: &DeadLetter,
    log: &KafkaLog,
) -> Result<ReplayFate, Error> {
    if !order.filter.matches(dead_letter) {
        return Ok(ReplayFate::Left);
    }
    let record = match dead_letter.replay(order.replays_max) {
        Ok(record) => record,
        Err(hindrance) => return Ok(ReplayFate::Hindered(hindrance)),
    };
    let records = match mapped(order, mapper, record).await {
        Ok(records) => records,
        Err(why) => return Ok(ReplayFate::Refused(why)),
    };
    if order.dry_run {
        return Ok(ReplayFate::Replayed);
    }
    match log.send(records).await {
        Ok(()) => Ok(ReplayFate::Replayed),
        Err(Error::Refused { reason, .. } | Error::Unfit { reason, .. }) => {
            Ok(ReplayFate::Refused(reason))
        }
        Err(error) => Err(error),
    }
}

/// The record itself, or if its topic is mapped, what the mapping makes of it now; else why it makes nothing.
async fn mapped(
    order: &ReplayOrder,
    mapper: &mut Mapper,
    record: Outgoing,
) -> Result<Vec<Outgoing>, String> {
    let inputs = order.topics.inputs.clone();
    let Some(input) = inputs.get(&record.topic) else {
        return Ok(vec![record]);
    };
    let (ours, theirs): (Vec<_>, Vec<_>) = record
        .headers
        .into_iter()
        .partition(|(name, _)| is_ours(name));
    let source = Record {
        position: Position {
            partition: Partition {
                incarnation: 0,
                topic: record.topic.clone(),
                number: 0,
            },
            offset: Offset(0),
        },
        time: record.time.unwrap_or_default(),
        key: record.key,
        value: record.value,
        headers: theirs,
    };
    let outcome = mapper
        .records(&record.topic, &[source], &order.limits)
        .await;
    let outcome = outcome.map_err(|error| error.to_string())?;
    let outcome = outcome
        .into_iter()
        .flatten()
        .next()
        .unwrap_or(Ok(Vec::new()));
    // A part that our decoder refuses would be in the dlq again, without the record that it was made of.
    if let (Value::String(code), Some(why)) = became(input, &outcome, &order.limits) {
        return Err(format!("{code}: {why}"));
    }
    let made = outcome.map_err(|reject| reject.to_string())?.into_iter();
    let topic = order.topics.own(input.read_as);
    Ok(made
        .map(|piece| Outgoing {
            topic: topic.clone(),
            key: piece.key,
            value: piece.value,
            headers: ours.clone(),
            time: record.time,
        })
        .collect())
}

/// What of a partition was replayed: everything before `resume`, and the runs after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ledger {
    /// Offset of the first dead letter that was left, or the end of what was seen.
    resume: i64,
    /// Whether a dead letter was left at `resume`.
    stuck: bool,
    /// Runs of replayed offsets after `resume`: start -> end, exclusive; no two runs touch.
    runs: BTreeMap<i64, i64>,
    /// End of what was seen.
    seen: i64,
}

impl Ledger {
    fn read(resume: Resume, note: &str) -> Self {
        let run = |text: &str| {
            let (from, to) = text.split_once('-')?;
            Some((from.parse().ok()?, to.parse().ok()?))
        };
        Self {
            resume: resume.0,
            stuck: false,
            runs: note.split(',').filter_map(run).collect(),
            seen: resume.0,
        }
    }

    fn write(&self) -> (Resume, String) {
        let runs: Vec<String> = self
            .runs
            .iter()
            .map(|(from, to)| format!("{from}-{to}"))
            .collect();
        (Resume(self.resume), runs.join(","))
    }

    fn has(&self, offset: i64) -> bool {
        let run = self.runs.range(..=offset).next_back();
        offset < self.resume || run.is_some_and(|(_, to)| offset < *to)
    }

    /// Notes an offset that is replayed, now or earlier.
    fn pass(&mut self, offset: i64) {
        self.seen = self.seen.max(offset + 1);
        if !self.stuck {
            self.resume = self.seen;
            self.runs.retain(|_, to| *to > offset + 1);
        }
    }

    fn done(&mut self, offset: i64) {
        if self.stuck {
            // If no dead letter was left since the previous run, that run ends at `seen` and grows.
            match self.runs.range_mut(..offset).next_back() {
                Some((_, to)) if *to == self.seen => *to = offset + 1,
                _ => {
                    self.runs.insert(offset, offset + 1);
                }
            }
        }
        self.pass(offset);
    }

    fn leave(&mut self, offset: i64) {
        if !self.stuck {
            self.stuck = true;
            self.resume = offset;
        }
        self.seen = self.seen.max(offset + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However often a replay is interrupted, and whatever each one leaves out, a dead letter is sent once.
        #[test]
        fn interrupted_replays_send_each_dead_letter_exactly_once(
            wanted in proptest::collection::vec((any::<u8>(), 0_i64..60), 1..8),
            gaps in proptest::collection::btree_set(0_i64..60, 0..20),
        ) {
            let offsets: Vec<i64> = (0..60).filter(|offset| !gaps.contains(offset)).collect();
            let mut sent = BTreeMap::<i64, u32>::new();
            let mut kept = (Resume(0), String::new());
            let everything = (0, 60);
            for (mask, until) in wanted.into_iter().chain([everything]) {
                let mut ledger = Ledger::read(kept.0, &kept.1);
                for offset in offsets.iter().copied().filter(|it| *it >= kept.0.0 && *it < until) {
                    if ledger.has(offset) {
                        ledger.pass(offset);
                    } else if mask == 0 || mask & (1 << (offset % 8)) == 0 {
                        *sent.entry(offset).or_default() += 1;
                        ledger.done(offset);
                    } else {
                        ledger.leave(offset);
                    }
                }
                kept = ledger.write();
            }
            prop_assert!(sent.values().all(|times| *times == 1), "{sent:?}");
            prop_assert_eq!(sent.into_keys().collect::<Vec<_>>(), offsets);
        }
    }

    /// Compiles only if all futures are `Send`.
    #[tokio::test]
    async fn all_futures_can_run_on_any_thread() {
        fn sendable<T: Send>(_: &T) {}
        fn of_any_log<L: Log>(log: &L) {
            sendable(&crate::members::dlq::send_dead_letters(log, Vec::new()));
        }
        of_any_log(&nearshore_testkit::log::MemoryCluster::new(1).join("g", &[]));
        let settings = KafkaSettings::of("127.0.0.1:1");
        let (filter, from_start) = (Filter::default(), BTreeMap::new());
        sendable(&list(&settings, "dlq", &filter, 1));
        sendable(&tail(&settings, "dlq", &from_start));
        let order = ReplayOrder {
            topic: "dlq".into(),
            filter: Filter::default(),
            replays_max: 1,
            dry_run: true,
            topics: Topics::default(),
            limits: Limits::default(),
        };
        sendable(&replay(&settings, &order, |_, _| {}));
        let admin = Admin::new(&settings).expect("valid settings");
        sendable(&admin.describe(&["t"]));
        sendable(&admin.ensure(&[]));
        sendable(&admin.lag("g", &["t"]));
    }

    #[test]
    fn the_note_lists_runs_after_the_first_dead_letter_left() {
        let mut ledger = Ledger::default();
        ledger.done(0);
        ledger.leave(1);
        ledger.done(2);
        ledger.done(3);
        ledger.leave(4);
        ledger.done(7);
        assert_eq!(ledger.write(), (Resume(1), "2-4,7-8".into()));
        assert!(Ledger::read(Resume(1), "2-4,7-8").has(3));
        assert!(!Ledger::read(Resume(1), "").has(3));
    }
}
