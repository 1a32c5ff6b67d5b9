//! Says which list a user would have with further events, by what Kafka, Redis and the configuration have now.

use std::fmt::Write;

use anyhow::Context;
use bytes::Bytes;
use nearshore_core::list::what_if::{self, Placed, WhatIf};
use nearshore_core::ports::store::Store;
use nearshore_core::user::event::{Accepted, Limits, UserId, decode_event};
use nearshore_core::user::record::{Offset, Partition, Position, Record, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::now::UserNow;
use super::read_catalogue;
use crate::config::Config;
use crate::ops::visible::visible;

/// Most events of a file: more are no question about a list, and each costs memory.
const EVENTS_MAX: usize = 10_000;

/// The list of a user with further events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Supposed {
    /// The user's id.
    pub user: String,
    /// The namespace that was read.
    pub namespace: String,
    /// The user's arm.
    pub arm: String,
    /// Number of events that were added.
    pub events: usize,
    /// The id of the stored list; none if there is none.
    pub list_id: Option<String>,
    /// Shares of the score that are not in this list, and why.
    pub unknown: Vec<String>,
    /// The list, and what it would not have.
    pub list: WhatIf,
}

/// Composes the list that the user would have with these events. Nothing is written.
pub async fn what_if<S: Store>(
    config: &Config,
    store: S,
    user: &UserId,
    text: &str,
) -> anyhow::Result<Supposed> {
    let catalogue = read_catalogue(config).await?.catalogue;
    let now = UserNow::read(config, store, user, catalogue).await?;
    let events = events(text, user, (now.time(), &config.limits()))?;
    let list = what_if::what_if(
        &now.claimed(),
        (&events, config.state.window),
        &now.snapshot,
        &now.context(),
        now.list.as_ref(),
    );
    Ok(Supposed {
        user: user.0.to_string(),
        namespace: now.ns.clone(),
        arm: now.arm.clone(),
        events: events.len(),
        list_id: now.list.as_ref().map(|list| list.list_id.clone()),
        unknown: now.unknown(),
        list,
    })
}

/// Reads events, a JSON object a line: the value of a record of `user-events`, or a record with `key`, `timestamp` and
/// `value` as [`crate::ops::files`] reads it. An event without a timestamp is of `now`.
fn events(
    text: &str,
    user: &UserId,
    (now, limits): (Timestamp, &Limits),
) -> anyhow::Result<Vec<Accepted>> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let mut events = Vec::new();
    for (nth, line) in lines {
        let place = || format!("line {}", nth + 1);
        anyhow::ensure!(
            events.len() < EVENTS_MAX,
            "{}: more than {EVENTS_MAX} events; leave out the oldest, a state keeps the newest alone",
            place()
        );
        let record = record(line, user, (now, events.len())).with_context(place)?;
        let event = decode_event(&record, limits);
        events.push(
            event.map_err(|reject| anyhow::anyhow!("{}: {reject} ({})", place(), reject.code()))?,
        );
    }
    anyhow::ensure!(!events.is_empty(), "there is no event in it");
    Ok(events)
}

fn record(line: &str, user: &UserId, (now, nth): (Timestamp, usize)) -> anyhow::Result<Record> {
    let mut fields: Map<String, Value> = serde_json::from_str(line)
        .context("an event is a JSON object, such as {\"type\":\"view\",\"sku\":\"845208\"}")?;
    let time = match fields.remove("timestamp") {
        None | Some(Value::Null) => now,
        Some(time) => Timestamp(
            time.as_i64()
                .context("timestamp is in milliseconds since 1970")?,
        ),
    };
    for of_user in ["key", "user"] {
        match fields.remove(of_user) {
            None | Some(Value::Null) => {}
            Some(named) if named == *user.0 => {}
            Some(named) => {
                anyhow::bail!("{of_user} is {named}, but the list asked for is of user {user}")
            }
        }
    }
    let value = match fields.remove("value") {
        Some(Value::String(text)) => text,
        Some(value) => value.to_string(),
        None => Value::Object(fields).to_string(),
    };
    Ok(Record {
        position: Position {
            partition: Partition {
                incarnation: 0,
                topic: "what-if".into(),
                number: 0,
            },
            offset: Offset(nth as i64),
        },
        time,
        key: Some(Bytes::copy_from_slice(user.0.as_bytes())),
        value: Some(value.into()),
        headers: Vec::new(),
    })
}

impl Supposed {
    /// The list for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _infallible = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let stored = match &self.list_id {
            Some(id) => format!("stored list {}", visible(id)),
            None => "no stored list".into(),
        };
        writeln!(
            out,
            "user {} in namespace {}, arm {}, with {} further events; {stored}; nothing was stored",
            visible(&self.user),
            self.namespace,
            self.arm,
            self.events
        )?;
        for unknown in &self.unknown {
            writeln!(out, "not known here    {unknown}")?;
        }
        writeln!(
            out,
            "\n{:>5} {:>8} {:>7}  name",
            "place", "without", "stored"
        )?;
        if self.list.names.is_empty() {
            writeln!(
                out,
                "the list would be empty: the segment's fallback is served"
            )?;
        }
        for placed in &self.list.names {
            row(out, placed)?;
        }
        if !self.list.gone.is_empty() {
            writeln!(out, "not on it:")?;
        }
        self.list
            .gone
            .iter()
            .try_for_each(|placed| row(out, placed))
    }
}

fn row(out: &mut String, placed: &Placed) -> std::fmt::Result {
    let place = |place: Option<usize>| place.map_or("-".to_owned(), |place| place.to_string());
    let (name, skus) = (visible(&placed.name), visible(&placed.skus.join(" ")));
    let line = format!(
        "{:>5} {:>8} {:>7}  {name:<40} {skus}",
        place(placed.place),
        place(placed.without),
        place(placed.stored)
    );
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearshore_core::user::event::{Change, Item};

    const NOW: Timestamp = Timestamp(1_763_000_000_000);

    fn read(text: &str) -> Result<Vec<Accepted>, String> {
        let limits = Limits::default();
        let events = events(text, &UserId("ann".into()), (NOW, &limits));
        events.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_line_is_an_event_or_a_record_of_this_user() {
        let text = "{\"type\":\"view\",\"sku\":\"s1\"}\n\n\
                    {\"key\":\"ann\",\"timestamp\":1762000000000,\"value\":{\"type\":\"cart\",\"sku\":\"s2\"}}\n\
                    {\"user\":\"ann\",\"type\":\"search\",\"query\":\"tea\"}\n";
        let events = read(text).expect("three events");
        let times: Vec<i64> = events.iter().map(|event| event.time.0).collect();
        assert_eq!(times, [NOW.0, 1_762_000_000_000, NOW.0]);
        let items = events.iter().map(|event| match &event.change {
            Change::Event(event) => event.item.clone(),
            other => panic!("{other:?}"),
        });
        let expected = [
            Item::Sku("s1".into()),
            Item::Sku("s2".into()),
            Item::Query("tea".into()),
        ];
        assert_eq!(items.collect::<Vec<_>>(), expected);
        assert!(
            events
                .windows(2)
                .all(|two| two[0].position < two[1].position)
        );
    }

    #[test]
    fn a_line_that_is_no_event_of_this_user_is_named() {
        for (text, expected) in [
            ("", "there is no event in it"),
            (
                "{\"type\":\"view\",\"sku\":\"a\"}\nview",
                "line 2: an event is a JSON object",
            ),
            (
                "{\"type\":\"buy\",\"sku\":\"a\"}",
                "line 1: type \"buy\" is not one of",
            ),
            ("{\"key\":\"bob\",\"value\":{}}", "line 1: key is \"bob\""),
            (
                "{\"type\":\"view\",\"sku\":\"a\",\"timestamp\":\"today\"}",
                "milliseconds",
            ),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
