//! Dead letters: records that cannot be used, kept whole with the reason, and their replay.
//!
//! Decides the form of a dead letter: key, value, headers and timestamp of the original, followed by Kafka Connect's
//! error headers and the reject code. Header names may repeat, so no header of the original is overwritten: new
//! headers are appended, and a reader takes the last of each name. [`DeadLetter::replay`] removes exactly the
//! appended headers, so that a record which is rejected twice shows the last reason. `nearshore.origin` keeps its
//! first position, and `nearshore.replays` counts its replays. Pure code, no I/O.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use nearshore_core::ports::log::Outgoing;
use nearshore_core::user::record::{Position, Record, TIME_HEADER, Timestamp};

const TOPIC: &str = "__connect.errors.topic";
const PARTITION: &str = "__connect.errors.partition";
const OFFSET: &str = "__connect.errors.offset";
const CONNECTOR: &str = "__connect.errors.connector.name";
const TASK: &str = "__connect.errors.task.id";
const STAGE: &str = "__connect.errors.stage";
const CLASS: &str = "__connect.errors.class.name";
const EXCEPTION: &str = "__connect.errors.exception.class.name";
const MESSAGE: &str = "__connect.errors.exception.message";
const TRACE: &str = "__connect.errors.exception.stacktrace";
/// The reject's code, as in metrics.
const CODE: &str = "nearshore.error.code";
/// The original timestamp: the broker may set the timestamps of a dlq topic, or refuse the year 9999.
const TIME: &str = TIME_HEADER;
/// Size of a dropped value, which no broker would accept.
const VALUE_DROPPED: &str = "nearshore.value.dropped";
/// How often the record was replayed.
const REPLAYS: &str = "nearshore.replays";
/// `topic/partition:offset` where the record was first rejected.
const ORIGIN: &str = "nearshore.origin";

/// Headers that [`dead`] appends and a replay removes.
const APPENDED: [&str; 13] = [
    TOPIC,
    PARTITION,
    OFFSET,
    CONNECTOR,
    TASK,
    STAGE,
    CLASS,
    EXCEPTION,
    MESSAGE,
    TRACE,
    CODE,
    TIME,
    VALUE_DROPPED,
];
/// Longest message kept, in bytes: a decoder may quote the whole record.
const MESSAGE_MAX: usize = 1_024;

/// Why a record is rejected, and by which member.
#[derive(Clone, Debug)]
pub struct Failure<'a> {
    /// Consumer group that read it.
    pub group: &'a str,
    /// Member that read it.
    pub member: &'a str,
    /// Step that failed, e.g. `decode`.
    pub stage: &'a str,
    /// Stable code of the reason.
    pub code: &'a str,
    /// The reason in words.
    pub message: &'a str,
    /// Causes of the reason, one a line; may be empty.
    pub causes: &'a str,
}

/// The dead letter of a record, for the topic `dlq`.
pub fn dead(record: &Record, failure: &Failure<'_>, dlq: &Arc<str>) -> Outgoing {
    let position = &record.position;
    let message = shortened(failure.message);
    let causes = shortened(failure.causes);
    let appended: [(&str, String); 12] = [
        (TOPIC, position.partition.topic.to_string()),
        (PARTITION, position.partition.number.to_string()),
        (OFFSET, position.offset.0.to_string()),
        (CONNECTOR, failure.group.into()),
        (TASK, failure.member.into()),
        (STAGE, failure.stage.into()),
        (CLASS, format!("nearshore.{}", failure.stage)),
        (EXCEPTION, format!("nearshore.{}", failure.code)),
        (MESSAGE, message.into()),
        (TRACE, causes.into()),
        (CODE, failure.code.into()),
        (TIME, record.occurred().0.to_string()),
    ];
    let mut headers = record.headers.clone();
    headers.extend(appended.map(|(name, text)| (name.to_owned(), Bytes::from(text))));
    Outgoing {
        topic: dlq.clone(),
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
        // Kafka refuses a negative timestamp.
        time: Some(record.time).filter(|time| time.0 >= 0),
    }
}

fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Smaller forms of a dead letter, for a broker that refuses it: without the timestamp, without the value, without
/// both, and last with nothing of the original but its position.
pub fn lighter(dead: &Outgoing) -> [Outgoing; 4] {
    let untimed = Outgoing {
        time: None,
        ..dead.clone()
    };
    let mut empty = dead.clone();
    let size = dead.value.as_ref().map_or(0, Bytes::len);
    empty.value = dead.value.as_ref().map(|_| Bytes::new());
    empty
        .headers
        .push((VALUE_DROPPED.into(), size.to_string().into()));
    let both = Outgoing {
        time: None,
        ..empty.clone()
    };
    let bare = Outgoing {
        key: None,
        headers: last_of_each(&both.headers),
        ..both.clone()
    };
    [untimed, empty, both, bare]
}

fn last_of_each(headers: &[(String, Bytes)]) -> Vec<(String, Bytes)> {
    let last = |name: &&str| headers.iter().rfind(|(key, _)| key == name).cloned();
    APPENDED.iter().filter_map(last).collect()
}

/// A dead letter as read from a dlq topic. Fields that another writer left out are empty.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Position in the dlq topic.
    pub position: Position,
    /// The original's timestamp.
    pub time: Timestamp,
    /// Topic that it came from.
    pub topic: Option<String>,
    /// Partition that it came from.
    pub partition: Option<i32>,
    /// Offset that it had there.
    pub offset: Option<i64>,
    /// Consumer group that rejected it.
    pub group: String,
    /// Step that failed.
    pub stage: String,
    /// Code of the reason.
    pub code: String,
    /// The reason in words.
    pub message: String,
    /// How often it was replayed already.
    pub replays: u32,
    /// Size of the value, if it was too large to keep.
    pub value_dropped: Option<u64>,
    /// The original's key.
    pub key: Option<Bytes>,
    /// The original's value.
    pub value: Option<Bytes>,
    /// The original's headers.
    pub headers: Vec<(String, Bytes)>,
}

/// Why a dead letter cannot be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReplayable {
    /// It has no header with its topic.
    #[error("it has no header with the topic it came from")]
    NoOrigin,
    /// Its value was too large for the dlq.
    #[error("its value was too large to be kept")]
    ValueDropped,
    /// It was replayed as often as allowed.
    #[error("it has been replayed {0} times already")]
    Replayed(u32),
}

impl DeadLetter {
    /// Reads any record of a dlq topic, including those of Kafka Connect.
    pub fn read(record: &Record) -> Self {
        let text = |name: &str| {
            let found = record.headers.iter().rfind(|(key, _)| key == name);
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        let number = |name: &str| text(name).and_then(|text| text.parse::<i64>().ok());
        let exception = || text(EXCEPTION).unwrap_or_default();
        Self {
            position: record.position.clone(),
            time: number(TIME).map_or(record.time, Timestamp),
            topic: text(TOPIC).filter(|topic| !topic.is_empty()),
            partition: number(PARTITION).and_then(|number| i32::try_from(number).ok()),
            offset: number(OFFSET),
            group: text(CONNECTOR).unwrap_or_default(),
            stage: text(STAGE).unwrap_or_default(),
            code: text(CODE).unwrap_or_else(exception),
            message: text(MESSAGE).unwrap_or_default(),
            replays: number(REPLAYS).map_or(0, |number| u32::try_from(number).unwrap_or(u32::MAX)),
            value_dropped: number(VALUE_DROPPED).and_then(|number| u64::try_from(number).ok()),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: original(&record.headers),
        }
    }

    /// The original record for its topic, unless it was already replayed `replays_max` times.
    pub fn replay(&self, replays_max: u32) -> Result<Outgoing, NotReplayable> {
        let topic = self.topic.as_deref().ok_or(NotReplayable::NoOrigin)?;
        if self.value_dropped.is_some() {
            return Err(NotReplayable::ValueDropped);
        }
        if self.replays >= replays_max {
            return Err(NotReplayable::Replayed(self.replays));
        }
        let mut headers = self.headers.clone();
        // The time is also a header: a topic with LogAppendTime sets a new timestamp, and a decoder uses the earlier
        // one.
        headers.retain(|(name, _)| name != REPLAYS && name != TIME);
        headers.push((TIME.into(), self.time.0.to_string().into()));
        headers.push((REPLAYS.into(), (self.replays + 1).to_string().into()));
        if let (Some(partition), Some(offset)) = (self.partition, self.offset)
            && !headers.iter().any(|(name, _)| name == ORIGIN)
        {
            let origin = format!("{topic}/{partition}:{offset}");
            headers.push((ORIGIN.into(), origin.into()));
        }
        Ok(Outgoing {
            topic: topic.into(),
            key: self.key.clone(),
            value: self.value.clone(),
            headers,
            // The original time: a replayed record must not be newer than an erase that came after it.
            time: Some(self.time).filter(|time| time.0 >= 0),
        })
    }

    /// JSON for `--json`: bytes as text if they are UTF-8, else as hexadecimal digits.
    pub fn json(&self) -> Value {
        let headers: Vec<Value> = self
            .headers
            .iter()
            .map(|(name, value)| json!([name, shown(Some(value))]))
            .collect();
        json!({
            "position": self.position.to_string(),
            "time": self.time.0,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "group": self.group,
            "stage": self.stage,
            "code": self.code,
            "message": self.message,
            "replays": self.replays,
            "value_dropped": self.value_dropped,
            "key": shown(self.key.as_ref()),
            "value": shown(self.value.as_ref()),
            "headers": headers,
        })
    }
}

fn shown(bytes: Option<&Bytes>) -> Value {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => Value::Null,
        Some((Ok(text), _)) => text.into(),
        Some((Err(_), bytes)) => json!({ "hex": hex::encode(bytes) }),
    }
}

/// Whether a replay adds a header of this name.
pub fn is_ours(name: &str) -> bool {
    [TIME, REPLAYS, ORIGIN].contains(&name)
}

/// Headers of the original: all but the last of each name in [`APPENDED`].
fn original(headers: &[(String, Bytes)]) -> Vec<(String, Bytes)> {
    let mut left = headers.to_vec();
    for name in APPENDED {
        if let Some(at) = left.iter().rposition(|(key, _)| key == name) {
            left.remove(at);
        }
    }
    left
}

/// Which dead letters are selected; an empty filter selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Topic that they came from.
    pub topic: Option<String>,
    /// Step that failed.
    pub stage: Option<String>,
    /// Code of the reason.
    pub code: Option<String>,
    /// Key of the record.
    pub key: Option<String>,
}

impl Filter {
    /// Whether the filter selects this dead letter.
    pub fn matches(&self, dead_letter: &DeadLetter) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        let key = dead_letter.key.as_deref().map(String::from_utf8_lossy);
        same(&self.topic, dead_letter.topic.as_deref())
            && same(&self.stage, Some(&dead_letter.stage))
            && same(&self.code, Some(&dead_letter.code))
            && same(&self.key, key.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(headers: Vec<(String, Bytes)>, time: i64) -> Record {
        Record {
            position: "0/user-events/3:42".parse().expect("valid"),
            time: Timestamp(time),
            key: Some(Bytes::from_static(b"u\xff1")),
            value: Some(Bytes::from_static(b"{not json")),
            headers,
        }
    }

    fn failure() -> Failure<'static> {
        Failure {
            group: "nearshore-ingest-a",
            member: "pod-1",
            stage: "decode",
            code: "malformed_json",
            message: "expected a string at 1:2",
            causes: "",
        }
    }

    fn read_back(written: &Outgoing) -> Record {
        Record {
            position: "0/dlq/0:7".parse().expect("valid"),
            time: written.time.unwrap_or_default(),
            key: written.key.clone(),
            value: written.value.clone(),
            headers: written.headers.clone(),
        }
    }

    fn header() -> impl Strategy<Value = (String, Bytes)> {
        let name = prop_oneof![
            "[a-z]{1,6}",
            proptest::sample::select(&APPENDED[..]).prop_map(String::from),
        ];
        (name, ".{0,8}".prop_map(Bytes::from))
    }

    proptest! {
        #[test]
        fn a_replay_returns_the_original_record(
            headers in proptest::collection::vec(header(), 0..6), time in 0_i64..1 << 42,
        ) {
            // A VALUE_DROPPED of another writer belongs to the original and is not removed.
            let headers: Vec<_> = headers.into_iter().filter(|(name, _)| name != VALUE_DROPPED).collect();
            let original = record(headers, time);
            let occurred = original.occurred();
            let written = dead(&original, &failure(), &"dlq".into());
            prop_assert!(written.headers.starts_with(&original.headers), "nothing is overwritten");
            let dead_letter = DeadLetter::read(&read_back(&written));
            prop_assert_eq!(&dead_letter.headers, &original.headers);
            prop_assert_eq!(dead_letter.code.as_str(), "malformed_json");
            let again = dead_letter.replay(3).expect("first replay");
            prop_assert_eq!((&*again.topic, again.key, again.value), ("user-events", original.key.clone(), original.value.clone()));
            prop_assert_eq!(again.time, Some(occurred).filter(|time| time.0 >= 0));
            // On a topic that sets timestamps itself the record keeps its age, even if it is rejected again.
            let stamped = Record { headers: again.headers, time: Timestamp(i64::MAX), ..original };
            prop_assert_eq!(stamped.occurred(), occurred);
            let twice = DeadLetter::read(&read_back(&dead(&stamped, &failure(), &"dlq".into())));
            prop_assert_eq!(twice.time, occurred);
        }
    }

    #[test]
    fn a_record_rejected_again_counts_its_replays_and_keeps_its_first_position() {
        let mut original = record(vec![("trace".into(), Bytes::from_static(b"t"))], 5);
        for nth in 1..=2 {
            let dead_letter =
                DeadLetter::read(&read_back(&dead(&original, &failure(), &"dlq".into())));
            assert_eq!(dead_letter.replays, nth - 1);
            let again = dead_letter.replay(2).expect("below the maximum");
            original.headers = again.headers;
            original.position = "0/user-events/3:99".parse().expect("valid");
        }
        let origin = original.headers.iter().find(|(name, _)| name == ORIGIN);
        assert_eq!(origin.expect("kept").1, "user-events/3:42");
        assert_eq!(original.headers.len(), 4, "{:?}", original.headers);
        let dead_letter = DeadLetter::read(&read_back(&dead(&original, &failure(), &"dlq".into())));
        assert_eq!(dead_letter.replay(2), Err(NotReplayable::Replayed(2)));
    }

    #[test]
    fn smaller_forms_keep_the_position_and_time_of_the_record() {
        let written = dead(
            &record(Vec::new(), 253_370_764_800_000),
            &failure(),
            &"dlq".into(),
        );
        for (nth, form) in lighter(&written).iter().enumerate() {
            let dead_letter = DeadLetter::read(&read_back(form));
            assert_eq!(dead_letter.offset, Some(42), "form {nth}");
            assert_eq!(
                dead_letter.time,
                Timestamp(253_370_764_800_000),
                "form {nth}"
            );
            assert_eq!(dead_letter.value_dropped.is_some(), nth > 0, "form {nth}");
        }
        let empty = DeadLetter::read(&read_back(&lighter(&written)[1]));
        assert_eq!(empty.value_dropped, Some(9));
        assert_eq!(empty.replay(9), Err(NotReplayable::ValueDropped));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "é".repeat(2_000);
        let failure = Failure {
            message: &long,
            ..failure()
        };
        let dead_letter = DeadLetter::read(&read_back(&dead(
            &record(vec![], 1),
            &failure,
            &"dlq".into(),
        )));
        assert_eq!(dead_letter.message.len(), MESSAGE_MAX);
    }

    #[test]
    fn a_filter_selects_by_all_its_fields() {
        let dead_letter = DeadLetter::read(&read_back(&dead(
            &record(vec![], 1),
            &failure(),
            &"dlq".into(),
        )));
        let filter = |code: &str| Filter {
            stage: Some("decode".into()),
            code: Some(code.into()),
            ..Filter::default()
        };
        assert!(Filter::default().matches(&dead_letter));
        assert!(filter("malformed_json").matches(&dead_letter));
        assert!(!filter("no_key").matches(&dead_letter));
    }

    #[test]
    fn json_shows_bytes_that_are_not_utf8_as_hexadecimal_digits() {
        let dead_letter = DeadLetter::read(&read_back(&dead(
            &record(vec![], 1),
            &failure(),
            &"dlq".into(),
        )));
        assert_eq!(dead_letter.json()["key"], json!({ "hex": "75ff31" }));
        assert_eq!(dead_letter.json()["value"], json!("{not json"));
    }
}
