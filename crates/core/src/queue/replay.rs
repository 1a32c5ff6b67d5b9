//! Plans a replay and tracks its progress: start and end points -> [`Plan`], records read -> records left.
//!
//! Invariant: a plan is made once and its ends never change, so a process that continues it folds the same records,
//! wherever the previous one was killed. Profiles are read completely before the first event, so that an event is
//! counted in the segment of its user. It does not know how records are read, nor what they contain.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::user::record::{Offset, Partition, Position, Record, Resume, Timestamp};

/// A point in the log, as given by the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// The first retained record.
    Earliest,
    /// After the last record.
    Latest,
    /// The first record at or after this time.
    Time(Timestamp),
    /// The first record within this time before now.
    Last(Duration),
    /// An offset per partition; a partition that is not named is not limited.
    Offsets(BTreeMap<(String, i32), i64>),
}

/// A text that is not a point in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a point in the log: give earliest, latest, 2026-01-31T00:00:00Z, last=7d, or topic:0=1200,topic:1=1180"
)]
pub struct PointError(String);

impl std::str::FromStr for Point {
    type Err = PointError;

    fn from_str(text: &str) -> Result<Self, PointError> {
        let invalid = || PointError(text.into());
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Some(length) = text.strip_prefix("last=") {
            let length = humantime::parse_duration(length).map_err(|_| invalid())?;
            return Ok(Self::Last(length));
        }
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Ok(Self::Time(Timestamp(time.as_millisecond())));
        }
        let offset = |part: &str| {
            let (place, offset) = part.split_once('=')?;
            let (topic, number) = place.rsplit_once(':')?;
            let offset = offset.parse().ok().filter(|offset| *offset >= 0)?;
            let number: i32 = number.parse().ok().filter(|number| *number >= 0)?;
            let named = (!topic.is_empty()).then(|| topic.to_owned())?;
            Some(((named, number), offset))
        };
        let parts: Option<Vec<_>> = text.split(',').map(|part| offset(part.trim())).collect();
        let parts = parts.ok_or_else(invalid)?;
        let count = parts.len();
        let offsets: BTreeMap<_, _> = parts.into_iter().collect();
        // A partition named twice is ambiguous.
        if offsets.len() == count {
            Ok(Self::Offsets(offsets))
        } else {
            Err(invalid())
        }
    }
}

/// Extent of a partition in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The partition.
    pub partition: Partition,
    /// Offset of the first retained record.
    pub begin: Offset,
    /// One past the last record.
    pub end: Offset,
    /// Time of the first record; `None` if there is no record.
    pub oldest: Option<Timestamp>,
}

/// Reason why a replay cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Wanted records are deleted.
    #[error("{partition}: {wanted} is no longer retained; the earliest is offset {begin}{}", of_time(*oldest))]
    NotRetained {
        /// Partition.
        partition: Partition,
        /// Point that was given.
        wanted: String,
        /// First retained offset.
        begin: i64,
        /// Its time.
        oldest: Option<Timestamp>,
    },
    /// A given offset is beyond the end.
    #[error("{partition}: offset {wanted} is beyond its end {end}; give a lower one")]
    BeyondEnd {
        /// Partition.
        partition: Partition,
        /// Point that was given.
        wanted: i64,
        /// End of the partition.
        end: i64,
    },
    /// A given partition does not exist.
    #[error("{topic} has no partition {number}")]
    NoPartition {
        /// Topic as given.
        topic: String,
        /// Partition as given.
        number: i32,
    },
    /// The end is before the start.
    #[error(
        "{partition}: the end, offset {end}, is before the start, offset {start}; give a later end"
    )]
    Backwards {
        /// Partition.
        partition: Partition,
        /// First offset.
        start: i64,
        /// End offset.
        end: i64,
    },
}

fn of_time(oldest: Option<Timestamp>) -> String {
    oldest.map_or(String::new(), |time| format!(" of {}", Moment(time)))
}

/// A time, displayed as RFC 3339 text.
#[derive(Clone, Copy, Debug)]
pub struct Moment(pub Timestamp);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0.0) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "{} ms", self.0.0),
        }
    }
}

/// A point in the log as an offset per partition.
pub type Since = BTreeMap<Partition, Resume>;

/// Offset per partition at which a replay from `from` starts. `since`: the broker's offsets for a point in time.
pub fn starts(
    from: &Point,
    kept: &[Kept],
    (since, time): (&Since, Timestamp),
) -> Result<Since, Unfit> {
    check_partitions(from, kept)?;
    let start = |kept: &Kept| {
        let begin = Resume(kept.begin.0);
        let not_retained = |wanted: String| Unfit::NotRetained {
            partition: kept.partition.clone(),
            wanted,
            begin: kept.begin.0,
            oldest: kept.oldest,
        };
        match from {
            Point::Earliest => Ok(begin),
            Point::Latest => Ok(Resume(kept.end.0)),
            Point::Time(_) | Point::Last(_) => {
                // Where the log begins with offset 0, nothing was deleted.
                let complete =
                    kept.begin.0 == 0 || kept.oldest.is_some_and(|oldest| oldest <= time);
                if !complete && kept.oldest.is_some() {
                    return Err(not_retained(Moment(time).to_string()));
                }
                Ok(since.get(&kept.partition).copied().unwrap_or(begin))
            }
            Point::Offsets(offsets) => {
                let key = (kept.partition.topic.to_string(), kept.partition.number);
                match offsets.get(&key).copied() {
                    None => Ok(begin),
                    Some(wanted) if wanted < kept.begin.0 => {
                        Err(not_retained(format!("offset {wanted}")))
                    }
                    Some(wanted) if wanted > kept.end.0 => Err(Unfit::BeyondEnd {
                        partition: kept.partition.clone(),
                        wanted,
                        end: kept.end.0,
                    }),
                    Some(wanted) => Ok(Resume(wanted)),
                }
            }
        }
    };
    kept.iter()
        .map(|kept| Ok((kept.partition.clone(), start(kept)?)))
        .collect()
}

/// Offset per partition at which a replay to `to` ends.
pub fn ends(to: &Point, kept: &[Kept], since: &Since) -> Result<Since, Unfit> {
    check_partitions(to, kept)?;
    let end = |kept: &Kept| match to {
        Point::Latest => Ok(Resume(kept.end.0)),
        Point::Earliest => Ok(Resume(kept.begin.0)),
        Point::Time(_) | Point::Last(_) => {
            let end = since.get(&kept.partition).map_or(kept.end.0, |at| at.0);
            Ok(Resume(end.clamp(kept.begin.0, kept.end.0)))
        }
        Point::Offsets(offsets) => {
            let key = (kept.partition.topic.to_string(), kept.partition.number);
            let wanted = offsets.get(&key).copied().unwrap_or(kept.end.0);
            if wanted > kept.end.0 {
                return Err(Unfit::BeyondEnd {
                    partition: kept.partition.clone(),
                    wanted,
                    end: kept.end.0,
                });
            }
            Ok(Resume(wanted.max(kept.begin.0)))
        }
    };
    kept.iter()
        .map(|kept| Ok((kept.partition.clone(), end(kept)?)))
        .collect()
}

fn check_partitions(point: &Point, kept: &[Kept]) -> Result<(), Unfit> {
    let Point::Offsets(offsets) = point else {
        return Ok(());
    };
    for (topic, number) in offsets.keys() {
        let has =
            |kept: &Kept| *kept.partition.topic == **topic && kept.partition.number == *number;
        if !kept.iter().any(has) {
            return Err(Unfit::NoPartition {
                topic: topic.clone(),
                number: *number,
            });
        }
    }
    Ok(())
}

/// Stage of a replay; each may be entered again after a crash.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The plan is written; the consumer group is not at its start yet.
    Placing,
    /// Profiles are folded.
    Profiles,
    /// Events are folded.
    Events,
    /// Lists are requested for users whose list is older than their state.
    Sweep,
    /// Done.
    Done,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Placing => "placing",
            Self::Profiles => "profiles",
            Self::Events => "events",
            Self::Sweep => "sweep",
            Self::Done => "done",
        })
    }
}

/// Counts of a replay. After a kill the records of the last seconds are counted twice, but never folded twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Records folded.
    pub folded: u64,
    /// Records skipped: at or below a fence, because they were folded before.
    pub skipped: u64,
    /// Records sent to the dlq.
    pub dead: u64,
    /// Events of a type in `events.ignore`.
    pub ignored: u64,
    /// Records found deleted by the broker before they were read.
    pub lost: u64,
    /// Users checked by the sweep.
    pub users: u64,
    /// Lists requested by the sweep.
    pub requested: u64,
    /// Time spent folding, in milliseconds.
    pub fold_ms: u64,
}

impl Totals {
    /// Number of records handled.
    pub fn records(&self) -> u64 {
        self.folded + self.skipped + self.dead + self.ignored
    }

    /// Records handled per second of folding; `None` before the first record.
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.fold_ms as f64 / 1000.0;
        (self.records() > 0 && seconds > 0.0).then(|| self.records() as f64 / seconds)
    }
}

/// The plan of a replay, as stored under its namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Format version, 1.
    pub v: u32,
    /// Start as given.
    pub from: String,
    /// End as given.
    pub to: String,
    /// Offset at which each partition starts.
    #[serde(with = "places")]
    pub starts: Since,
    /// Offset at which each partition ends.
    #[serde(with = "places")]
    pub ends: Since,
    /// Time from which a partition's events are complete, for partitions whose log no longer has all events.
    #[serde(with = "times", default)]
    pub complete_since: BTreeMap<Partition, Timestamp>,
    /// Time of creation, the `now` that limits the times of CreateTime records.
    pub created_at: Timestamp,
    /// Digest of the settings that decide how records are folded.
    pub config: String,
    /// Its stage.
    pub stage: Stage,
    /// Where the sweep continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Counts so far.
    #[serde(default)]
    pub totals: Totals,
}

impl Plan {
    /// The plan as JSON, as it is stored.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a plan is plain data")
    }

    /// Parses what [`Plan::to_json`] wrote.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The part of the plan that reads one topic.
    pub fn goal(&self, topic: &str) -> Goal {
        let of_topic = |places: &Since| -> Since {
            let of = places.iter().filter(|(p, _)| *p.topic == *topic);
            of.map(|(p, at)| (p.clone(), *at)).collect()
        };
        Goal {
            next: of_topic(&self.starts),
            ends: of_topic(&self.ends),
        }
    }

    /// Number of offsets between starts and ends; more than there are records where compaction left gaps.
    pub fn records(&self) -> u64 {
        let of = |(partition, start): (&Partition, &Resume)| {
            let end = self.ends.get(partition).map_or(start.0, |end| end.0);
            u64::try_from(end - start.0).unwrap_or(0)
        };
        self.starts.iter().map(of).sum()
    }

    /// Checks that no partition ends before it starts.
    pub fn check(&self) -> Result<(), Unfit> {
        for (partition, start) in &self.starts {
            let end = self.ends.get(partition).map_or(start.0, |end| end.0);
            if end < start.0 {
                return Err(Unfit::Backwards {
                    partition: partition.clone(),
                    start: start.0,
                    end,
                });
            }
        }
        Ok(())
    }
}

/// The part of one topic that is left to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goal {
    next: Since,
    ends: Since,
}

impl Goal {
    /// Removes records at or after the end from a batch. Returns whether there were any, so that the end is reached.
    pub fn cut(&self, partition: &Partition, records: &mut Vec<Record>) -> bool {
        let end = self.ends.get(partition).map_or(i64::MIN, |end| end.0);
        let before = records.len();
        records.retain(|record| record.position.offset.0 < end);
        records.len() < before
    }

    /// Notes that everything before `at` in a partition is done, by this or another member.
    pub fn passed(&mut self, partition: &Partition, at: Resume) {
        let end = self.end(partition);
        if let Some(next) = self.next.get_mut(partition) {
            *next = (*next).max(at).min(end.max(*next));
        }
    }

    /// The end of a partition; 0 for one that is not in the goal.
    pub fn end(&self, partition: &Partition) -> Resume {
        self.ends.get(partition).copied().unwrap_or(Resume(0))
    }

    /// Partitions with records left, and where these begin.
    pub fn behind(&self) -> impl Iterator<Item = (&Partition, Resume)> {
        let left = |(partition, next): &(&Partition, &Resume)| **next < self.end(partition);
        self.next.iter().filter(left).map(|(p, next)| (p, *next))
    }

    /// Whether no record is left.
    pub fn reached(&self) -> bool {
        self.behind().next().is_none()
    }

    /// Number of offsets left; more than there are records where there are gaps.
    pub fn left(&self) -> u64 {
        self.behind()
            .map(|(partition, next)| u64::try_from(self.end(partition).0 - next.0).unwrap_or(0))
            .sum()
    }

    /// Partitions with their starts.
    pub fn places(&self) -> &Since {
        &self.next
    }
}

mod places {
    //! Serialises offsets per partition as sorted `incarnation/topic/partition:offset`, comma-separated.
    use super::*;
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(places: &Since, s: S) -> Result<S::Ok, S::Error> {
        let texts: Vec<String> = places
            .iter()
            .map(|(p, at)| format!("{p}:{}", at.0))
            .collect();
        s.serialize_str(&texts.join(","))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Since, D::Error> {
        let text = String::deserialize(d)?;
        let place = |part: &str| {
            let at: Position = part.parse().map_err(D::Error::custom)?;
            Ok((at.partition, Resume(at.offset.0)))
        };
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(place)
            .collect()
    }
}

mod times {
    //! Serialises times per partition in the same form.
    use super::*;
    use serde::{Deserializer, Serializer};

    type Times = BTreeMap<Partition, Timestamp>;

    pub(super) fn serialize<S: Serializer>(times: &Times, s: S) -> Result<S::Ok, S::Error> {
        let places = times.iter().map(|(p, at)| (p.clone(), Resume(at.0)));
        super::places::serialize(&places.collect(), s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Times, D::Error> {
        let places = super::places::deserialize(d)?;
        Ok(places
            .into_iter()
            .map(|(p, at)| (p, Timestamp(at.0)))
            .collect())
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
