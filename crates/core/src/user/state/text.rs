//! Text forms beside the blob: profile, `pending` and `claim_rate` as stored, and the canonical dump.
//!
//! Invariant: what is written is read back equal. `pending` and `claim_rate` are decimal numbers with single spaces, so
//! that a Lua script can parse and write them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ClaimRate, DecodeError, Pending, Profiled, UserState, WindowEvent};
use crate::user::event::{Item, Profile};
use crate::user::record::{Position, PositionError, Timestamp};

#[derive(Serialize, Deserialize)]
struct ProfileText {
    time: Timestamp,
    position: String,
    profile: Profile,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    kept: BTreeMap<String, (Timestamp, String)>,
}

impl Profiled {
    /// As JSON: time in milliseconds, position as text, profile.
    pub fn to_text(&self) -> String {
        let stored = ProfileText {
            time: self.time,
            position: self.position.to_string(),
            profile: self.profile.clone(),
            kept: (self.kept.iter())
                .map(|(field, (time, at))| (field.clone(), (*time, at.to_string())))
                .collect(),
        };
        serde_json::to_string(&stored).expect("string keys and JSON values always write")
    }

    /// Reads what [`Profiled::to_text`] wrote.
    pub fn from_text(text: &str) -> Result<Self, DecodeError> {
        let stored: ProfileText = serde_json::from_str(text).map_err(|e| damaged(&e))?;
        Ok(Self {
            time: stored.time,
            position: stored.position.parse().map_err(|e| damaged(&e))?,
            profile: stored.profile,
            kept: (stored.kept.into_iter())
                .map(|(field, (time, at))| Ok((field, (time, at.parse()?))))
                .collect::<Result<_, PositionError>>()
                .map_err(|e| damaged(&e))?,
        })
    }
}

/// `due`, then the source if there is one: `1700000030000 0/user-events/3:17`.
impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.due.0)?;
        match &self.source {
            Some(source) => write!(f, " {source}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Pending {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let (due, source) = match text.split_once(' ') {
            Some((due, source)) => (due, Some(source)),
            None => (text, None),
        };
        let source: Option<Position> = source
            .map(str::parse)
            .transpose()
            .map_err(|e| damaged(&e))?;
        Ok(Self {
            source,
            due: Timestamp(number(due)?),
        })
    }
}

/// `last day claims`: `1700000030000 19675 3`.
impl fmt::Display for ClaimRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.last.0, self.day, self.claims)
    }
}

impl FromStr for ClaimRate {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [last, day, claims] = parts[..] else {
            return Err(DecodeError::Damaged(format!(
                "{text:?} is not `last day claims`"
            )));
        };
        Ok(Self {
            last: Timestamp(number(last)?),
            day: number(day)?,
            claims: number(claims)?,
        })
    }
}

/// Window, register, fences, profile and erased_at as sorted JSON on one line: equal states have equal dumps. The
/// register is its purchases as `[time, SKU, count]` and the floor as `[time, SKU]`, both only if there are any.
pub fn canonical(state: &UserState) -> String {
    let fences: BTreeMap<String, i64> = state
        .fences
        .iter()
        .map(|(partition, offset)| (partition.to_string(), offset.0))
        .collect();
    let profile = state.profile.as_ref().map(|profile| {
        let mut dump = json!({
            "position": profile.position.to_string(),
            "profile": profile.profile,
            "time": profile.time.0,
        });
        if !profile.kept.is_empty() {
            let of = |(time, at): &(Timestamp, Position)| format!("{} {at}", time.0);
            let kept = profile.kept.iter().map(|(field, from)| (field, of(from)));
            dump["kept"] = kept.collect::<BTreeMap<_, _>>().into_iter().collect();
        }
        dump
    });
    let mut dump = json!({
        "fences": fences,
        "erased_at": state.erased_at.0,
        "profile": profile,
        "window": state.window.iter().map(row).collect::<Vec<_>>(),
    });
    if state.complete_since > Timestamp::default() {
        dump["complete_since"] = json!(state.complete_since.0);
    }
    let purchases = state.register.purchases();
    let purchases: Vec<Value> = purchases
        .map(|bought| json!([bought.time.0, bought.sku, bought.count]))
        .collect();
    if !purchases.is_empty() {
        dump["register"] = purchases.into();
    }
    if let Some((time, sku)) = state.register.floor() {
        dump["register_floor"] = json!([time.0, sku]);
    }
    // A dependency may switch serde_json to insertion order by a feature.
    dump.sort_all_objects();
    dump.to_string()
}

fn row(event: &WindowEvent) -> Value {
    let (field, item) = match &event.item {
        Item::Sku(id) => ("sku", id),
        Item::Pu(id) => ("pu", id),
        Item::Query(words) => ("query", words),
    };
    json!({
        field: item,
        "position": event.position.to_string(),
        "price": event.price,
        "qty": event.qty,
        "time": event.time.0,
        "type": event.kind,
    })
}

fn number<N: FromStr<Err = std::num::ParseIntError>>(text: &str) -> Result<N, DecodeError> {
    text.parse()
        .map_err(|e| DecodeError::Damaged(format!("{text:?}: {e}")))
}

fn damaged(why: &dyn fmt::Display) -> DecodeError {
    DecodeError::Damaged(why.to_string())
}
