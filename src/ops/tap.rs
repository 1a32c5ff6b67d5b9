//! `nearshore tap`: follows the records of one user, live, from the topics.
//!
//! Invariant: it joins no consumer group and commits nothing; it begins at the ends of the topics, and ends by itself
//! after so many records or so much time. Every topic is read whole, because a topic has no index of users.

use std::time::Duration;

use anyhow::Context;
use nearshore_core::user::event::{Source, UserId, key_user};
use nearshore_core::user::record::{Position, Record, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use strum::IntoStaticStr;

use crate::config::Config;
use crate::map::{Read, open_live_tail};
use crate::ops::inspect::moment;
use crate::ops::visible::visible;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, IntoStaticStr, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum What {
    /// An event of the user.
    Event,
    /// A profile, or an erase.
    Profile,
    /// A request for a list.
    Request,
    /// A list that was stored, or that the user was erased.
    Update,
}

/// A record of the user.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Seen {
    /// What it is.
    pub what: What,
    /// Its timestamp, in milliseconds.
    pub time: Timestamp,
    /// Where it stands.
    pub position: String,
    /// The namespace of a request or an update.
    pub namespace: Option<String>,
    /// Its value: JSON, or the text where it is none; null is a tombstone.
    pub value: Value,
}

/// When it ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// After so many records.
    pub records: usize,
    /// After so much time.
    pub time: Duration,
}

/// Follows the user's records until a bound is reached; `ready` is called once, when it reads all topics from their
/// ends. Returns how many records were seen.
pub async fn tap(
    config: &Config,
    user: &UserId,
    bounds: Bounds,
    ready: impl FnOnce(),
    mut each: impl FnMut(&Seen) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let topics = &config.topics;
    let mut names = topics.of_users();
    names.extend(topics.lanes());
    names.push(topics.recall_updates.clone());
    let tail = open_live_tail(&config.kafka, &names, topics, config.limits());
    let advice = || format!("topics of {}; see `nearshore check`", config.kafka.brokers);
    let mut tail = tail.await.with_context(advice)?;
    let end = tokio::time::Instant::now() + bounds.time;
    let (mut seen, mut ready) = (0, Some(ready));
    while seen < bounds.records {
        let next = match tokio::time::timeout_at(end, tail.next()).await {
            Err(_) => break,
            Ok(next) => next.with_context(advice)?,
        };
        match next {
            Read::Ready => ready.take().into_iter().for_each(|ready| ready()),
            // Whose it is, only its mapping could have said.
            Read::Refused(..) => {}
            Read::Records(position, records) => {
                for record in &records {
                    if let Some(found) = of_user(config, user, (&position, record)) {
                        each(&found)?;
                        seen += 1;
                    }
                }
            }
        }
    }
    Ok(seen)
}

/// The record, if it is of this user.
fn of_user(config: &Config, user: &UserId, (at, record): (&Position, &Record)) -> Option<Seen> {
    let topics = &config.topics;
    let topic = &*record.position.partition.topic;
    let key = || std::str::from_utf8(record.key.as_deref()?).ok();
    let (what, namespace) = if topic == &*topics.recall_updates {
        let (ns, of) = key()?.split_once('/')?;
        (of == &*user.0).then(|| (What::Update, Some(ns.to_owned())))?
    } else if topics.lanes().iter().any(|lane| **lane == *topic) {
        (key()? == &*user.0).then_some((What::Request, None))?
    } else {
        let source = topics.source(topic);
        let what = match source {
            Source::Events => What::Event,
            Source::Profiles(_) => What::Profile,
        };
        let of = key_user(record, source)?;
        (of == *user.0).then_some((what, None))?
    };
    let value = record.value.as_deref().map_or(Value::Null, |bytes| {
        let text = || String::from_utf8_lossy(bytes).into_owned().into();
        serde_json::from_slice(bytes).unwrap_or_else(|_| text())
    });
    let of_request = || Some(value.get("ns")?.as_str()?.to_owned());
    Some(Seen {
        what,
        time: record.time,
        position: at.to_string(),
        namespace: namespace.or_else(of_request),
        value,
    })
}

impl Seen {
    /// The record as a line for a terminal.
    pub fn line(&self) -> String {
        let what: &str = self.what.into();
        let ns = self.namespace.as_deref().map(|ns| format!("{ns} "));
        let ns = ns.unwrap_or_default();
        let said = match (self.what, &self.value) {
            (What::Profile, Value::Null) => "erases the user".to_owned(),
            (What::Update, Value::Null) => "the user was erased".to_owned(),
            (What::Update, update) => list(update),
            // It is no JSON.
            (_, Value::String(text)) => text.clone(),
            (_, value) => value.to_string(),
        };
        format!(
            "{} {what:<7} {ns}{}  {}",
            moment(self.time),
            visible(&said),
            visible(&self.position)
        )
    }
}

/// The list of an update in short.
fn list(update: &Value) -> String {
    let doc = &update["doc"];
    let text = |field: &str| doc[field].as_str().unwrap_or_default().to_owned();
    let names = doc["names"].as_array().map_or(&[][..], Vec::as_slice);
    let first: Vec<&str> = names.iter().take(3).filter_map(Value::as_str).collect();
    let more = match names.len() > first.len() {
        true => format!(" and {} more", names.len() - first.len()),
        false => String::new(),
    };
    format!(
        "list {} ({}, arm {}): {}{more}",
        text("list_id"),
        text("source"),
        text("arm"),
        first.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;

    fn seen(topic: &str, key: &str, value: Option<&str>) -> Option<Seen> {
        let position: Position = format!("0/{topic}/0:7").parse().expect("a position");
        let record = Record {
            position: position.clone(),
            time: Timestamp(1_763_000_000_000),
            key: Some(Bytes::copy_from_slice(key.as_bytes())),
            value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
            headers: Vec::new(),
        };
        let user = UserId("ann/1".into());
        of_user(&Config::default(), &user, (&position, &record))
    }

    #[test]
    fn records_of_the_user_are_told_apart_by_topic_and_others_are_left_out() {
        let event = seen("user-events", "ann/1", Some("{\"type\":\"view\"}")).expect("hers");
        assert_eq!((event.what, &event.namespace), (What::Event, &None));
        assert_eq!(event.value, json!({"type": "view"}));
        let request = seen("regen-live", "ann/1", Some("{\"ns\":\"main\"}")).expect("hers");
        assert_eq!(request.namespace.as_deref(), Some("main"));
        let update = seen("recall-updates", "next/ann/1", None).expect("hers");
        assert_eq!(update.namespace.as_deref(), Some("next"));
        assert!(
            update.line().contains("next the user was erased"),
            "{}",
            update.line()
        );
        let broken = seen("profile-changes", "ann/1", Some("{\u{1b}[2J")).expect("hers");
        assert!(
            broken.line().contains("profile {\\u{1b}[2J"),
            "{}",
            broken.line()
        );
        for (topic, key) in [
            ("user-events", "ann"),
            ("recall-updates", "ann/1"),
            ("recall-updates", "next/ann"),
            ("regen-urgent", "ann/10"),
        ] {
            assert_eq!(seen(topic, key, None), None, "{topic} {key}");
        }
    }

    #[test]
    fn an_update_is_told_by_its_first_names() {
        let doc =
            json!({"list_id": "af", "source": "model", "arm": "a", "names": ["A", "B", "C", "D"]});
        let update = json!({"doc": doc}).to_string();
        let line = seen("recall-updates", "main/ann/1", Some(&update))
            .expect("hers")
            .line();
        assert!(
            line.contains("list af (model, arm a): A, B, C and 1 more"),
            "{line}"
        );
    }
}
