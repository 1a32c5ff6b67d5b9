//! Maps records of a shop's own topics to records of our contract: [`Inputs`], each an [`Input`].
//!
//! Decides what one source record becomes: none, one or many records, which the decoders of our own topics then read.
//! Invariant: all that a source record becomes has its position and its time, and any bytes give records or a
//! [`Reject`]. A mapping by pointers is computed here; for a program ([`Input::program`]) only what it is given and what its
//! answers mean, because running it needs a process. It knows neither clock nor Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::user::event::{Format, Limits, Reject, Source};
use crate::user::record::{Record, TIME_HEADER};

mod fields;
mod frame;
mod pointer;
mod sample;
mod settings;

pub use frame::Framing;
pub use sample::{Sample, became};
pub use settings::{InputSettings, compile};

use fields::Fields;
use frame::Framed;

/// What the records of a topic are read as.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ReadAs {
    /// Events of users, as on `user-events`.
    Events,
    /// Profiles of users, as on `profile-changes`.
    Profiles,
    /// SKUs, as on `catalog`.
    Catalog,
}

/// How a record becomes records of our contract.
#[derive(Clone, Debug, PartialEq)]
enum How {
    /// By pointers into its value.
    Pointers(Box<Fields>),
    /// By a jq program, whose text this is.
    Program(Arc<str>),
}

/// What one source record became: all records of it, or why it became none.
pub type Outcome = Result<Vec<Record>, Reject>;

/// The mapping of one topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The topic.
    pub topic: Arc<str>,
    /// What its records are read as.
    pub read_as: ReadAs,
    /// How its values are framed.
    pub framing: Framing,
    /// How its records are mapped.
    how: How,
}

/// The mapped topics by name; none by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inputs(BTreeMap<Arc<str>, Input>);

impl FromIterator<Input> for Inputs {
    fn from_iter<I: IntoIterator<Item = Input>>(inputs: I) -> Self {
        let named = inputs.into_iter().map(|input| (input.topic.clone(), input));
        Self(named.collect())
    }
}

impl Inputs {
    /// The mapping of a topic.
    pub fn get(&self, topic: &str) -> Option<&Input> {
        self.0.get(topic)
    }

    /// All mappings, by topic.
    pub fn iter(&self) -> impl Iterator<Item = &Input> {
        self.0.values()
    }

    /// Whether no topic is mapped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ReadAs {
    /// How to decode what the mapping makes; `None` for SKUs, which are of no user.
    pub fn source(self) -> Option<Source> {
        match self {
            Self::Events => Some(Source::Events),
            Self::Profiles => Some(Source::Profiles(Format::Plain)),
            Self::Catalog => None,
        }
    }

    /// Whether a null value deletes what its key names.
    fn has_tombstones(self) -> bool {
        self != Self::Events
    }
}

impl Input {
    /// The text of the jq program that maps its records; `None` where pointers do.
    pub fn program(&self) -> Option<&Arc<str>> {
        match &self.how {
            How::Pointers(_) => None,
            How::Program(text) => Some(text),
        }
    }

    /// What a record becomes by pointers; nothing where there is a [`Input::program`].
    pub fn apply(&self, record: &Record, limits: &Limits) -> Result<Vec<Record>, Reject> {
        let How::Pointers(fields) = &self.how else {
            return Ok(Vec::new());
        };
        let made = match self.framing.read(record, self.read_as, limits)? {
            Framed::Nothing => Vec::new(),
            Framed::Removed(row) => {
                let key = fields.key_of_removed(record, self.framing, row.as_ref())?;
                vec![(key, None)]
            }
            Framed::Text(text) => fields.of_text(&text, record, (self.framing, self.read_as))?,
            Framed::Value(value) => {
                fields.of_value(&value, record, (self.framing, self.read_as))?
            }
        };
        let made = made.into_iter();
        Ok(made
            .map(|(key, value)| piece(record, Some(key.into()), value.map(Bytes::from)))
            .collect())
    }

    /// What a program is given of a record: a JSON object with `key`, `value`, `headers`, `time` (milliseconds) and
    /// `topic`. `None` if there is nothing to be mapped.
    pub fn question(&self, record: &Record, limits: &Limits) -> Result<Option<String>, Reject> {
        let value = match self.framing.read(record, self.read_as, limits)? {
            Framed::Nothing => return Ok(None),
            Framed::Removed(None) => "null".to_owned(),
            Framed::Removed(Some(row)) => {
                // The program sees which row it was, and that there is none any more.
                return Ok(Some(question(record, "null", Some(&row))));
            }
            Framed::Text(text) => {
                // The program's parser is more lenient than ours.
                serde_json::from_str::<serde::de::IgnoredAny>(&text)
                    .map_err(|e| Reject::MalformedJson(e.to_string()))?;
                text.into_owned()
            }
            Framed::Value(value) => value.to_string(),
        };
        Ok(Some(question(record, &value, None)))
    }

    /// What a program's answer means: records of our contract.
    pub fn answers(&self, record: &Record, answers: &[Value]) -> Result<Vec<Record>, Reject> {
        let each = answers.iter().map(|answer| self.answer(record, answer));
        each.collect()
    }

    fn answer(&self, record: &Record, answer: &Value) -> Result<Record, Reject> {
        let refused = |what: String| Reject::ProgramFailed(what);
        let Value::Object(made) = answer else {
            let what = format!(
                "it made {}, not an object with key and value",
                short(answer)
            );
            return Err(refused(what));
        };
        if let Some(other) = made.keys().find(|name| *name != "key" && *name != "value") {
            let what = format!("it made an object with {other:?}; it has key and value alone");
            return Err(refused(what));
        }
        let key = match made.get("key") {
            None => record.key.clone(),
            Some(key) => match fields::text_of(key) {
                Some(key) => Some(Bytes::from(key)),
                None => return Err(refused(format!("key is {}, not a text", short(key)))),
            },
        };
        match made.get("value") {
            None => Err(refused("it made an object without value".into())),
            Some(Value::Null) => Ok(piece(record, key, None)),
            Some(value) => Ok(piece(record, key, Some(value.to_string().into()))),
        }
    }
}

/// The text of a program's question. Written by hand: the value is long, and is JSON already.
fn question(record: &Record, value: &str, removed: Option<&Value>) -> String {
    let text = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    let key = record.key.as_deref().map_or(Value::Null, text);
    let headers: serde_json::Map<String, Value> = record
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), text(value)))
        .collect();
    let topic = Value::from(&*record.position.partition.topic);
    let (headers, time) = (Value::from(headers), record.time.0);
    let removed = removed.map_or(String::new(), |row| format!(",\"removed\":{row}"));
    format!(
        "{{\"key\":{key},\"value\":{value},\"headers\":{headers},\"time\":{time},\"topic\":{topic}{removed}}}"
    )
}

/// A record of our contract that a source record became.
fn piece(record: &Record, key: Option<Bytes>, value: Option<Bytes>) -> Record {
    let is_time = |(name, _): &&(String, Bytes)| name == TIME_HEADER;
    Record {
        position: record.position.clone(),
        time: record.time,
        key,
        value,
        headers: record.headers.iter().filter(is_time).cloned().collect(),
    }
}

/// A value as an error names it.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
