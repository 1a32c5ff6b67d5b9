//! Dead letters in the topic `dlq`: [`list`] them, [`replay`] them. How they get there is [`crate::members::dlq`]'s.
//!
//! Replays are kept in the positions of the group [`GROUP`], so that a letter is sent back once, however often a
//! replay is broken off or run with other filters: the position stands at the first letter that is left, and
//! what was sent behind it stands in the note that Kafka keeps beside a position (`Ledger`). Two replays at
//! once share the partitions like members of any group. A letter is marked only after its delivery report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nearshore_core::ports::log::{Batch, Delivery, Error, Log};
use nearshore_core::user::record::{Partition, Resume};
use nearshore_kafka::dlq::{DeadLetter, Filter, Hindrance};
use nearshore_kafka::{Admin, Extent};
use nearshore_kafka::{KafkaLog, KafkaSettings};
use nearshore_kafka::{Tailed, tail};

/// The consumer group whose positions say what was replayed.
pub const GROUP: &str = "nearshore-dlq-replay";
/// Kafka keeps notes up to 4,096 bytes.
const NOTE_MAX: usize = 4_000;
/// A partition that brings nothing for so long is another replay's.
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
        let letter = DeadLetter::read(&record);
        if filter.matches(&letter) {
            last.push_back(letter);
            if last.len() > limit {
                last.pop_front();
            }
        }
    }
    let mut last = Vec::from(last);
    last.sort_by_key(|letter| letter.time);
    Ok(last)
}

/// What is to be replayed.
#[derive(Clone, Debug)]
pub struct Order {
    /// The dlq topic.
    pub topic: String,
    /// Which letters.
    pub filter: Filter,
    /// How often a record may be sent back in its erased_at.
    pub replays_max: u32,
    /// Only say what would happen.
    pub dry_run: bool,
}

/// What became of a letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Sent back, or would be.
    Replayed,
    /// The filter does not mean it.
    Left,
    /// It cannot be sent back.
    Hindered(Hindrance),
    /// Its topic refuses it.
    Refused(String),
    /// The same record died in the same place a moment ago: a redelivery was buried twice.
    Duplicate,
}

/// Sends dead letters that were there at start back to their topics; tells `on` the fate of each.
pub async fn replay(
    settings: &KafkaSettings,
    order: &Order,
    on: impl FnMut(&DeadLetter, &Fate),
) -> Result<(), Error> {
    let extents = Admin::new(settings)?.extents(&order.topic).await?;
    if extents.is_empty() {
        return Err(Error::Refused {
            what: format!("replay {}", order.topic),
            reason: "there is no such topic".into(),
        });
    }
    let mut log = KafkaLog::join(settings, GROUP, &[&order.topic])?;
    let mut run = Run {
        order,
        on,
        ledgers: BTreeMap::new(),
        sent: BTreeSet::new(),
    };
    let outcome = run.all(&mut log, &extents).await;
    log.close().await;
    outcome
}

struct Run<'a, F> {
    order: &'a Order,
    on: F,
    ledgers: BTreeMap<Partition, Ledger>,
    /// Topic, partition and offset of what was sent back by this run.
    sent: BTreeSet<(String, i32, i64)>,
}

impl<F: FnMut(&DeadLetter, &Fate)> Run<'_, F> {
    async fn all(&mut self, log: &mut KafkaLog, extents: &[Extent]) -> Result<(), Error> {
        while !extents.iter().all(|extent| self.reached(extent)) {
            let Ok(delivery) = tokio::time::timeout(IDLE, log.next()).await else {
                break;
            };
            match delivery? {
                Delivery::Assigned(partitions) => {
                    let mut noted = BTreeMap::new();
                    for (partition, resume, note) in log.noted(partitions.clone()).await? {
                        noted.insert(partition, Ledger::read(resume, &note));
                    }
                    for partition in partitions {
                        let ledger = noted.remove(&partition).unwrap_or_default();
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
                    // A letter that dies again is for the next replay.
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
            let letter = DeadLetter::read(record);
            let place = place(&letter);
            let again = place.as_ref().is_some_and(|it| self.sent.contains(it));
            let fate = match again {
                true => Fate::Duplicate,
                false => fate(self.order, &letter, log).await?,
            };
            (self.on)(&letter, &fate);
            if matches!(fate, Fate::Replayed | Fate::Duplicate) {
                self.sent.extend(place);
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
                reason: "too many letters are left between replayed ones; replay those first"
                    .into(),
            });
        }
        log.commit_noted(vec![(batch.partition, resume, note)])
            .await
    }
}

fn place(letter: &DeadLetter) -> Option<(String, i32, i64)> {
    Some((letter.topic.clone()?, letter.partition?, letter.offset?))
}

async fn fate(order: &Order, letter: &DeadLetter, log: &KafkaLog) -> Result<Fate, Error> {
    if !order.filter.matches(letter) {
        return Ok(Fate::Left);
    }
    let record = match letter.replay(order.replays_max) {
        Ok(record) => record,
        Err(hindrance) => return Ok(Fate::Hindered(hindrance)),
    };
    if order.dry_run {
        return Ok(Fate::Replayed);
    }
    match log.send(vec![record]).await {
        Ok(()) => Ok(Fate::Replayed),
        Err(Error::Refused { reason, .. } | Error::Unfit { reason, .. }) => {
            Ok(Fate::Refused(reason))
        }
        Err(error) => Err(error),
    }
}

/// What of a partition was replayed: everything before `resume`, and the runs behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ledger {
    /// First letter that is left, or the end of what was seen.
    resume: i64,
    /// Whether a letter is left at `resume`.
    stuck: bool,
    /// Replayed offsets from `resume` on: start -> end, exclusive, apart from each other.
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

    /// Seen and already replayed, now or earlier.
    fn pass(&mut self, offset: i64) {
        self.seen = self.seen.max(offset + 1);
        if !self.stuck {
            self.resume = self.seen;
            self.runs.retain(|_, to| *to > offset + 1);
        }
    }

    fn done(&mut self, offset: i64) {
        if self.stuck {
            // Nothing is left between the run before and this letter, else it would be the run's end.
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
        /// However often a replay is broken off, and whatever is left by each, a letter is sent once.
        #[test]
        fn no_letter_is_replayed_twice_and_none_is_forgotten(
            wanted in proptest::collection::vec((any::<u8>(), 0_i64..60), 1..8),
            gaps in proptest::collection::btree_set(0_i64..60, 0..20),
        ) {
            let letters: Vec<i64> = (0..60).filter(|offset| !gaps.contains(offset)).collect();
            let mut sent = BTreeMap::<i64, u32>::new();
            let mut kept = (Resume(0), String::new());
            let everything = (0, 60);
            for (mask, until) in wanted.into_iter().chain([everything]) {
                let mut ledger = Ledger::read(kept.0, &kept.1);
                for offset in letters.iter().copied().filter(|it| *it >= kept.0.0 && *it < until) {
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
            prop_assert_eq!(sent.into_keys().collect::<Vec<_>>(), letters);
        }
    }

    /// Compiles iff everything may be spawned on a runtime of several threads.
    #[tokio::test]
    async fn all_of_it_may_run_on_any_thread() {
        fn sendable<T: Send>(_: &T) {}
        fn of_any_log<L: Log>(log: &L) {
            sendable(&crate::members::dlq::send_dead_letters(log, Vec::new()));
        }
        of_any_log(&nearshore_testkit::log::MemoryCluster::new(1).join("g", &[]));
        let settings = KafkaSettings::of("127.0.0.1:1");
        let (filter, nowhere) = (Filter::default(), BTreeMap::new());
        sendable(&list(&settings, "dlq", &filter, 1));
        sendable(&tail(&settings, "dlq", &nowhere));
        let order = Order {
            topic: "dlq".into(),
            filter: Filter::default(),
            replays_max: 1,
            dry_run: true,
        };
        sendable(&replay(&settings, &order, |_, _| {}));
        let admin = Admin::new(&settings).expect("valid settings");
        sendable(&admin.describe(&["t"]));
        sendable(&admin.ensure(&[]));
        sendable(&admin.lag("g", &["t"]));
    }

    #[test]
    fn the_note_lists_runs_behind_the_first_letter_left() {
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
