//! Records of the log, their positions, and the fences of folded offsets.
//!
//! Invariant: a fence in [`Fences`] only rises. It does not know what a record contains ([`crate::user::event`]) nor
//! how it was read ([`crate::ports::log`]).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Kafka record timestamp: milliseconds since 1970-01-01 UTC. The only time in any decision.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Adds a duration, saturating at the ends of the range.
    pub fn after(self, wait: std::time::Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// Subtracts a duration, saturating at the ends of the range.
    pub fn before(self, wait: std::time::Duration) -> Self {
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(wait))
    }

    /// Time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_millis(
            u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0),
        )
    }
}

/// Offset of one record in its partition.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Offset(pub i64);

/// Where reading resumes, as Kafka stores it: one past the last record that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resume(pub i64);

impl Resume {
    /// Resumes after a record that is done.
    pub fn after(done: Offset) -> Self {
        Self(done.0 + 1)
    }
}

/// One partition of one incarnation of a topic. `incarnation` is configured and raised when a topic is recreated, so
/// that the new topic's offsets are not mistaken for the old one's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition {
    /// Configured incarnation of the topic.
    pub incarnation: u32,
    /// Topic name.
    pub topic: Arc<str>,
    /// Kafka partition number.
    pub number: i32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.incarnation, self.topic, self.number)
    }
}

impl FromStr for Partition {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let at: Position = format!("{text}:0").parse()?;
        Ok(at.partition)
    }
}

/// Position of a record in the log: partition and offset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The record's partition.
    pub partition: Partition,
    /// Its offset in the partition.
    pub offset: Offset,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition, self.offset.0)
    }
}

/// A text that is not `incarnation/topic/partition:offset`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not incarnation/topic/partition:offset")]
pub struct PositionError(pub String);

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let parse = || {
            let (place, offset) = text.rsplit_once(':')?;
            let (incarnation, rest) = place.split_once('/')?;
            let (topic, number) = rest.rsplit_once('/')?;
            Some(Self {
                partition: Partition {
                    incarnation: incarnation.parse().ok()?,
                    topic: topic.into(),
                    number: number.parse().ok()?,
                },
                offset: Offset(offset.parse().ok()?),
            })
        };
        parse().ok_or_else(|| PositionError(text.into()))
    }
}

/// Header with the original timestamp, decimal milliseconds: of a dead letter, and of a record redriven from the dlq.
pub const TIME_HEADER: &str = "nearshore.time";

/// One record as the log delivered it, not yet decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its position.
    pub position: Position,
    /// Kafka timestamp.
    pub time: Timestamp,
    /// Key bytes, `None` when the record has none.
    pub key: Option<Bytes>,
    /// Value bytes, `None` for a tombstone.
    pub value: Option<Bytes>,
    /// Headers in their order.
    pub headers: Vec<(String, Bytes)>,
}

impl Record {
    /// Time of the record: its timestamp, or the earlier original one in [`TIME_HEADER`].
    ///
    /// A dead letter that is sent back to a topic with LogAppendTime gets a new timestamp, and would survive an erase.
    /// The header can only make a record older, never newer.
    pub fn occurred(&self) -> Timestamp {
        let original = self.headers.iter().rfind(|(name, _)| name == TIME_HEADER);
        let earlier = original
            .and_then(|(_, text)| std::str::from_utf8(text).ok()?.parse::<i64>().ok())
            .filter(|ms| *ms < self.time.0);
        earlier.map_or(self.time, Timestamp)
    }
}

/// The highest folded offset per partition. As text: sorted `incarnation/topic/partition:offset`, comma-separated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fences(BTreeMap<Partition, Offset>);

impl Fences {
    /// The fence of one partition; `None` if nothing of it was folded.
    pub fn get(&self, partition: &Partition) -> Option<Offset> {
        self.0.get(partition).copied()
    }

    /// Whether the record at `position` is folded. `>=`, not `>`: after a lost commit Kafka delivers the last folded
    /// record again.
    pub fn contains(&self, position: &Position) -> bool {
        self.get(&position.partition) >= Some(position.offset)
    }

    /// Whether every record folded under `other` is folded under `self` too.
    pub fn contains_all(&self, other: &Self) -> bool {
        other
            .iter()
            .all(|(partition, offset)| self.get(partition) >= Some(offset))
    }

    /// Raises the fence of the position's partition; never lowers it.
    pub fn raise(&mut self, position: &Position) {
        let fence = self
            .0
            .entry(position.partition.clone())
            .or_insert(position.offset);
        *fence = (*fence).max(position.offset);
    }

    /// Partitions with their fences, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&Partition, Offset)> {
        self.0
            .iter()
            .map(|(partition, offset)| (partition, *offset))
    }

    /// Whether there is no fence.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Position> for Fences {
    fn from_iter<I: IntoIterator<Item = Position>>(positions: I) -> Self {
        let mut fences = Self::default();
        for position in positions {
            fences.raise(&position);
        }
        fences
    }
}

impl fmt::Display for Fences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (partition, offset)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{partition}:{}", offset.0)?;
        }
        Ok(())
    }
}

impl FromStr for Fences {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_survive_a_round_trip_through_text() {
        let text = "0/a/b/1:7,0/user-events/0:12,1/user-events/10:3";
        let fences: Fences = text.parse().expect("valid");
        assert_eq!(fences.to_string(), text);
        assert!(fences.contains(&"0/user-events/0:12".parse().expect("valid")));
        assert!(!fences.contains(&"0/user-events/0:13".parse().expect("valid")));
        assert!(!fences.contains(&"2/user-events/0:1".parse().expect("valid")));
    }

    #[test]
    fn a_fence_never_falls() {
        let mut fences: Fences = "0/t/0:5".parse().expect("valid");
        fences.raise(&"0/t/0:3".parse().expect("valid"));
        assert_eq!(fences.to_string(), "0/t/0:5");
    }

    #[test]
    fn a_time_header_makes_a_record_older_and_never_newer() {
        let at = |headers: &[&str]| {
            let header = |text: &&str| (TIME_HEADER.to_owned(), Bytes::from((*text).to_owned()));
            let record = Record {
                position: "0/t/0:1".parse().expect("valid"),
                time: Timestamp(1_000),
                key: None,
                value: None,
                headers: headers.iter().map(header).collect(),
            };
            record.occurred().0
        };
        assert_eq!(at(&[]), 1_000);
        assert_eq!(at(&["7"]), 7);
        assert_eq!(at(&["7", "8"]), 8, "the last header of a name counts");
        for ignored in ["1001", "-", "", "7.5", "9223372036854775808"] {
            assert_eq!(at(&[ignored]), 1_000, "{ignored:?}");
        }
    }

    #[test]
    fn a_damaged_position_is_refused() {
        for bad in ["0/t:1", "x/t/0:1", "0/t/0:", "0/t/0"] {
            assert!(bad.parse::<Position>().is_err(), "{bad}");
        }
    }
}
