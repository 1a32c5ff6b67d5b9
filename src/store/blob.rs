//! What of a user is stored as which bytes: the seam between the store and [`crate::state`].
//!
//! Invariant: what this version cannot read is [`Error::Corrupt`] and stays as it is.

use super::Error;
use crate::event::{Item, Kind, Profile};
use crate::record::{Fences, Position, Timestamp};
use crate::state::{Mark, Pace, Pending, Profiled, Seen, UserState};

type Row = (Timestamp, Position, Kind, Item, u32, Option<f64>);

/// Drops everything with time <= `at` and raises `life`.
pub(super) fn erase(state: &mut UserState, at: Timestamp) {
    state.window.retain(|seen| seen.time > at);
    state.profile.take_if(|profile| profile.time <= at);
    state.life = state.life.max(at);
}

/// The mark after a take.
pub(super) fn taken(mark: &mut Mark, due: Timestamp) {
    let pace = &mut mark.pace;
    let today = due.0.div_euclid(86_400_000);
    if pace.takes == 0 || today > pace.day {
        pace.day = today;
        pace.takes = 0;
    }
    pace.last = pace.last.max(due);
    pace.takes = pace.takes.saturating_add(1);
    mark.pending = None;
    mark.moved = 0;
}

pub(super) fn encode(state: &UserState) -> Vec<u8> {
    let rows: Vec<Row> = state
        .window
        .iter()
        .map(|s| {
            (
                s.time,
                s.position.clone(),
                s.kind,
                s.item.clone(),
                s.qty,
                s.price,
            )
        })
        .collect();
    let mut bytes = vec![1];
    bytes.extend(
        postcard::to_stdvec(&(rows, state.fences.to_string(), state.life))
            .expect("plain values encode"),
    );
    bytes
}

pub(super) fn corrupt(key: &str, reason: impl ToString) -> Error {
    Error::Corrupt {
        key: key.into(),
        reason: reason.to_string(),
    }
}

pub(super) fn decode(
    key: &str,
    bytes: &[u8],
    profile: Option<Profiled>,
    life: Timestamp,
) -> Result<UserState, Error> {
    let (&version, rest) = bytes.split_first().ok_or_else(|| corrupt(key, "empty"))?;
    if version > 1 {
        return Err(corrupt(
            key,
            format!("version {version} is newer than 1, which this program knows"),
        ));
    }
    let (rows, fences, lived): (Vec<Row>, String, Timestamp) =
        postcard::from_bytes(rest).map_err(|e| corrupt(key, e))?;
    let mut state = UserState {
        window: rows
            .into_iter()
            .map(|(time, position, kind, item, qty, price)| Seen {
                time,
                position,
                kind,
                item,
                qty,
                price,
            })
            .collect(),
        fences: fences.parse::<Fences>().map_err(|e| corrupt(key, e))?,
        life: lived,
        profile,
    };
    if life > state.life {
        erase(&mut state, life);
    }
    Ok(state)
}

pub(super) fn profile_text(profile: &Profiled) -> String {
    serde_json::to_string(&(profile.time, profile.position.to_string(), &profile.profile))
        .expect("a profile is JSON")
}

pub(super) fn profile(key: &str, text: &str) -> Result<Profiled, Error> {
    let (time, position, profile): (Timestamp, String, Profile) =
        serde_json::from_str(text).map_err(|e| corrupt(key, e))?;
    Ok(Profiled {
        time,
        position: position.parse().map_err(|e| corrupt(key, e))?,
        profile,
    })
}

pub(super) fn pending_text(pending: Option<&Pending>) -> String {
    match pending {
        None => String::new(),
        Some(Pending { source, due }) => {
            let source = source.as_ref().map(Position::to_string);
            format!("{} {}", due.0, source.unwrap_or_default())
        }
    }
}

pub(super) fn pending(key: &str, text: &str) -> Result<Option<Pending>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let (due, source) = text
        .split_once(' ')
        .ok_or_else(|| corrupt(key, "pending"))?;
    let source = match source {
        "" => None,
        source => Some(source.parse().map_err(|e| corrupt(key, e))?),
    };
    let due = Timestamp(due.parse().map_err(|e| corrupt(key, e))?);
    Ok(Some(Pending { source, due }))
}

pub(super) fn pace_text(pace: &Pace) -> String {
    format!("{}:{}:{}", pace.last.0, pace.day, pace.takes)
}

pub(super) fn pace(key: &str, text: &str) -> Result<Pace, Error> {
    let parse = || {
        let (last, rest) = text.split_once(':')?;
        let (day, takes) = rest.split_once(':')?;
        Some(Pace {
            last: Timestamp(last.parse().ok()?),
            day: day.parse().ok()?,
            takes: takes.parse().ok()?,
        })
    };
    parse().ok_or_else(|| corrupt(key, format!("{text:?} is no pace")))
}
