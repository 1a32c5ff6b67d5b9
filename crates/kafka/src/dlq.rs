//! Dead letters: a record that cannot be used, kept whole with the reason, and the way back.
//!
//! Decides what a dead letter looks like: key, value, headers and timestamp of the original, and behind them
//! Kafka Connect's error headers and our code. Headers of a record may repeat, so nothing of the original is
//! ever overwritten: ours are appended, and a reader takes the last of each name. [`DeadLetter::replay`] takes exactly
//! those away again, so that a record which dies twice tells of its last death; `nearshore.origin` keeps where it
//! first stood, `nearshore.replays` how often it was sent back. Pure; it writes and reads nothing.

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
/// The original timestamp: a dlq topic may stamp records itself, or refuse the year 9999.
const TIME: &str = TIME_HEADER;
/// Size of a value that no broker would take.
const VALUE_DROPPED: &str = "nearshore.value.dropped";
/// How often the record was sent back.
const REPLAYS: &str = "nearshore.replays";
/// `topic/partition:offset` of the first death.
const ORIGIN: &str = "nearshore.origin";

/// What [`dead`] appends, and a replay takes away.
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
/// Longest message kept: a decoder may quote the whole record.
const MESSAGE_MAX: usize = 1_024;

/// Why and where a record died.
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
    /// Causes behind it, one a line; may be empty.
    pub causes: &'a str,
}

/// The record as it goes to the topic `dlq`.
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

/// Forms of a dead letter that ask less and less of a broker: without the timestamp, without the value,
/// without both, and at last with nothing of the original but where it stood.
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

/// A dead letter as read back. Fields that a foreign writer left out are empty.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Where it stands in the dlq.
    pub position: Position,
    /// The original's timestamp.
    pub time: Timestamp,
    /// Topic that it came from.
    pub topic: Option<String>,
    /// Partition that it came from.
    pub partition: Option<i32>,
    /// Offset that it had there.
    pub offset: Option<i64>,
    /// Group that could not use it.
    pub group: String,
    /// Step that failed.
    pub stage: String,
    /// Code of the reason.
    pub code: String,
    /// The reason in words.
    pub message: String,
    /// How often it was sent back already.
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

/// Why a dead letter cannot be sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hindrance {
    /// It does not say where it came from.
    #[error("it does not say which topic it came from")]
    NoOrigin,
    /// Its value was too large for the dlq.
    #[error("its value was too large to be kept")]
    ValueDropped,
    /// It was sent back often enough.
    #[error("it has been replayed {0} times already")]
    Replayed(u32),
}

impl DeadLetter {
    /// Reads any record of a dlq topic, also one of Kafka Connect.
    pub fn read(record: &Record) -> Self {
        let text = |name: &str| {
            let found = record.headers.iter().rfind(|(key, _)| key == name);
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        let number = |name: &str| text(name).and_then(|text| text.parse::<i64>().ok());
        let class = || text(EXCEPTION).unwrap_or_default();
        Self {
            position: record.position.clone(),
            time: number(TIME).map_or(record.time, Timestamp),
            topic: text(TOPIC).filter(|topic| !topic.is_empty()),
            partition: number(PARTITION).and_then(|it| i32::try_from(it).ok()),
            offset: number(OFFSET),
            group: text(CONNECTOR).unwrap_or_default(),
            stage: text(STAGE).unwrap_or_default(),
            code: text(CODE).unwrap_or_else(class),
            message: text(MESSAGE).unwrap_or_default(),
            replays: number(REPLAYS).map_or(0, |it| u32::try_from(it).unwrap_or(u32::MAX)),
            value_dropped: number(VALUE_DROPPED).and_then(|it| u64::try_from(it).ok()),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: original(&record.headers),
        }
    }

    /// The original, to be sent back to its topic, unless it was already sent back `replays_max` times.
    pub fn replay(&self, replays_max: u32) -> Result<Outgoing, Hindrance> {
        let topic = self.topic.as_deref().ok_or(Hindrance::NoOrigin)?;
        if self.value_dropped.is_some() {
            return Err(Hindrance::ValueDropped);
        }
        if self.replays >= replays_max {
            return Err(Hindrance::Replayed(self.replays));
        }
        let mut headers = self.headers.clone();
        // The time once more as a header: a topic with LogAppendTime stamps the record anew, and a decoder
        // takes the earlier of the two.
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
            // What happened then happened then: a replay must not outlive an erase.
            time: Some(self.time).filter(|time| time.0 >= 0),
        })
    }

    /// For `--json`: bytes as text where they are text, else as hexadecimal digits.
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

/// Headers without the last of each name that [`dead`] appends.
fn original(headers: &[(String, Bytes)]) -> Vec<(String, Bytes)> {
    let mut left = headers.to_vec();
    for name in APPENDED {
        if let Some(at) = left.iter().rposition(|(key, _)| key == name) {
            left.remove(at);
        }
    }
    left
}

/// Which dead letters are meant; an empty filter means all.
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
    /// Whether this one is meant.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|it| Some(it) == found)
        };
        let key = letter.key.as_deref().map(String::from_utf8_lossy);
        same(&self.topic, letter.topic.as_deref())
            && same(&self.stage, Some(&letter.stage))
            && same(&self.code, Some(&letter.code))
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

    fn back(written: &Outgoing) -> Record {
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
        fn a_dead_letter_gives_the_original_back(
            headers in proptest::collection::vec(header(), 0..6), time in 0_i64..1 << 42,
        ) {
            // A foreign VALUE_DROPPED stays the foreign writer's: it is not ours to take away.
            let headers: Vec<_> = headers.into_iter().filter(|(name, _)| name != VALUE_DROPPED).collect();
            let original = record(headers, time);
            let occurred = original.occurred();
            let written = dead(&original, &failure(), &"dlq".into());
            prop_assert!(written.headers.starts_with(&original.headers), "nothing is overwritten");
            let letter = DeadLetter::read(&back(&written));
            prop_assert_eq!(&letter.headers, &original.headers);
            prop_assert_eq!(letter.code.as_str(), "malformed_json");
            let again = letter.replay(3).expect("first replay");
            prop_assert_eq!((&*again.topic, again.key, again.value), ("user-events", original.key.clone(), original.value.clone()));
            prop_assert_eq!(again.time, Some(occurred).filter(|time| time.0 >= 0));
            // On a topic that stamps it anew it still is as old as it was, also when it dies again.
            let stamped = Record { headers: again.headers, time: Timestamp(i64::MAX), ..original };
            prop_assert_eq!(stamped.occurred(), occurred);
            let twice = DeadLetter::read(&back(&dead(&stamped, &failure(), &"dlq".into())));
            prop_assert_eq!(twice.time, occurred);
        }
    }

    #[test]
    fn a_record_that_dies_again_counts_its_replays_and_keeps_its_first_place() {
        let mut original = record(vec![("trace".into(), Bytes::from_static(b"t"))], 5);
        for nth in 1..=2 {
            let letter = DeadLetter::read(&back(&dead(&original, &failure(), &"dlq".into())));
            assert_eq!(letter.replays, nth - 1);
            let again = letter.replay(2).expect("below the maximum");
            original.headers = again.headers;
            original.position = "0/user-events/3:99".parse().expect("valid");
        }
        let origin = original.headers.iter().find(|(name, _)| name == ORIGIN);
        assert_eq!(origin.expect("kept").1, "user-events/3:42");
        assert_eq!(original.headers.len(), 4, "{:?}", original.headers);
        let letter = DeadLetter::read(&back(&dead(&original, &failure(), &"dlq".into())));
        assert_eq!(letter.replay(2), Err(Hindrance::Replayed(2)));
    }

    #[test]
    fn lighter_forms_still_say_what_died_where() {
        let written = dead(
            &record(Vec::new(), 253_370_764_800_000),
            &failure(),
            &"dlq".into(),
        );
        for (nth, form) in lighter(&written).iter().enumerate() {
            let letter = DeadLetter::read(&back(form));
            assert_eq!(letter.offset, Some(42), "form {nth}");
            assert_eq!(letter.time, Timestamp(253_370_764_800_000), "form {nth}");
            assert_eq!(letter.value_dropped.is_some(), nth > 0, "form {nth}");
        }
        let empty = DeadLetter::read(&back(&lighter(&written)[1]));
        assert_eq!(empty.value_dropped, Some(9));
        assert_eq!(empty.replay(9), Err(Hindrance::ValueDropped));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = "é".repeat(2_000);
        let failure = Failure {
            message: &long,
            ..failure()
        };
        let letter = DeadLetter::read(&back(&dead(&record(vec![], 1), &failure, &"dlq".into())));
        assert_eq!(letter.message.len(), MESSAGE_MAX);
    }

    #[test]
    fn a_filter_asks_all_of_its_fields() {
        let letter = DeadLetter::read(&back(&dead(&record(vec![], 1), &failure(), &"dlq".into())));
        let filter = |code: &str| Filter {
            stage: Some("decode".into()),
            code: Some(code.into()),
            ..Filter::default()
        };
        assert!(Filter::default().matches(&letter));
        assert!(filter("malformed_json").matches(&letter));
        assert!(!filter("no_key").matches(&letter));
    }

    #[test]
    fn json_shows_bytes_that_are_no_text_as_digits() {
        let letter = DeadLetter::read(&back(&dead(&record(vec![], 1), &failure(), &"dlq".into())));
        assert_eq!(letter.json()["key"], json!({ "hex": "75ff31" }));
        assert_eq!(letter.json()["value"], json!("{not json"));
    }
}
