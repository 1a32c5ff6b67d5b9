//! From what pointers found to records of our contract: [`Fields`].
//!
//! Decides which type, key and fields a record gets. Invariant: a value is only written otherwise (a number as text, a
//! time in milliseconds) where our contract wants it so; what cannot be is left as it is, and the decoder refuses it by
//! its name. Of an ignored type nothing else must be right.

use schemars::JsonSchema;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use super::frame::Framing;
use super::pointer::{Found, Pointer, Pointers, Wanted};
use super::{ReadAs, short};
use crate::user::event::{Reject, key_in_envelope};
use crate::user::record::Record;

/// The unit of a tracker's own time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// Seconds since 1970.
    S,
    /// Milliseconds since 1970.
    #[default]
    Ms,
    /// Microseconds since 1970.
    Us,
    /// Text of RFC 3339; without a zone it is UTC.
    Rfc3339,
}

/// What becomes of a type that is not in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OtherTypes {
    /// The record goes to the dlq.
    #[default]
    Refuse,
    /// The record is counted as ignored.
    Ignore,
}

/// In which form our contract wants a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Whole,
    Number,
    Time,
    AsIs,
}

/// A field of our contract, and where its value is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    /// Its name, or the names that lead to it.
    pub(super) path: Vec<String>,
    pub(super) from: Pointers,
    pub(super) form: Form,
}

/// Everything by pointers, as configured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fields {
    wanted: Wanted,
    key: Vec<Place>,
    key_pointers: Pointers,
    each: Option<usize>,
    whole: Option<Place>,
    kind: Vec<Place>,
    kind_pointers: Pointers,
    columns: Vec<(Vec<String>, Vec<Place>, Form)>,
    set: Vec<(Vec<String>, Value)>,
    /// Whether each field has one name.
    is_flat: bool,
    types: std::collections::BTreeMap<String, String>,
    others: OtherTypes,
    time: TimeUnit,
}

/// Where a pointer's value is: in a slot, or in the item.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    Slot(usize),
    Item(Pointer),
}

/// What [`Fields`] are made of.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) key: Pointers,
    pub(super) each: Option<Pointer>,
    pub(super) whole: Option<Pointer>,
    pub(super) kind: Pointers,
    pub(super) columns: Vec<Column>,
    pub(super) set: Vec<(Vec<String>, Value)>,
    pub(super) types: std::collections::BTreeMap<String, String>,
    pub(super) others: OtherTypes,
    pub(super) time: TimeUnit,
}

/// A key and a value; `None` is a tombstone.
type Made = (String, Option<Vec<u8>>);

/// The word of the table for types of which no record is made.
pub(super) const IGNORE: &str = "ignore";

impl Fields {
    pub(super) fn of(parts: Parts) -> Self {
        let mut wanted = Wanted::default();
        let mut place = |pointer: &Pointer| match pointer.in_item {
            true => Place::Item(pointer.clone()),
            false => Place::Slot(wanted.add(pointer)),
        };
        let mut places = |pointers: &Pointers| pointers.0.iter().map(&mut place).collect();
        let key: Vec<Place> = places(&parts.key);
        let kind = places(&parts.kind);
        let columns = parts.columns.iter();
        let columns = columns
            .map(|column| (column.path.clone(), places(&column.from), column.form))
            .collect();
        let whole = parts.whole.as_ref().map(&mut place);
        let paths = parts.columns.iter().map(|column| &column.path);
        let mut paths = paths.chain(parts.set.iter().map(|(path, _)| path));
        let is_flat = paths.all(|path| path.len() == 1);
        let each = parts.each.as_ref().map(|pointer| wanted.add(pointer));
        Self {
            wanted,
            key,
            key_pointers: parts.key,
            each,
            whole,
            kind,
            kind_pointers: parts.kind,
            columns,
            is_flat,
            set: parts.set,
            types: parts.types,
            others: parts.others,
            time: parts.time,
        }
    }

    /// What a JSON text becomes.
    pub(super) fn of_text(
        &self,
        text: &str,
        record: &Record,
        how: (Framing, ReadAs),
    ) -> Result<Vec<Made>, Reject> {
        let found = self.wanted.read(text);
        let found = found.map_err(|e| Reject::MalformedJson(e.to_string()))?;
        self.records(&found, record, how)
    }

    /// What a JSON value becomes.
    pub(super) fn of_value(
        &self,
        value: &Value,
        record: &Record,
        how: (Framing, ReadAs),
    ) -> Result<Vec<Made>, Reject> {
        self.records(&self.wanted.find(value), record, how)
    }

    /// The key of what is gone: from the row as it was, else from the record's key.
    pub(super) fn key_of_removed(
        &self,
        record: &Record,
        framing: Framing,
        row: Option<&Value>,
    ) -> Result<String, Reject> {
        let by_pointers = |value: &Value| {
            let mut found = self.key_pointers.0.iter().filter_map(|it| it.find(value));
            found.find_map(text_of)
        };
        if let Some(key) = row.and_then(by_pointers) {
            return Ok(key);
        }
        let key = framing.key(record)?.ok_or(Reject::NoKey)?;
        if let Ok(value) = serde_json::from_str::<Value>(&key)
            && let Some(key) = by_pointers(value.get("payload").unwrap_or(&value))
        {
            return Ok(key);
        }
        match framing {
            Framing::Debezium => key_in_envelope(key.into_owned()),
            _ => Ok(key.into_owned()),
        }
    }

    fn records(
        &self,
        found: &Found,
        record: &Record,
        (framing, read_as): (Framing, ReadAs),
    ) -> Result<Vec<Made>, Reject> {
        let items = match self.each.and_then(|slot| found[slot].as_ref()) {
            Some(Value::Array(items)) if !items.is_empty() => items.iter().map(Some).collect(),
            _ => vec![None],
        };
        let mut made = Vec::with_capacity(items.len());
        for item in items {
            let context = Context { found, item };
            let kind = match read_as {
                ReadAs::Events => match self.kind(&context)? {
                    Some(kind) => Some(kind),
                    None => continue,
                },
                ReadAs::Profiles | ReadAs::Catalog => None,
            };
            let key = self.key(&context, record, framing)?;
            let bytes = match &self.whole {
                None if self.is_flat => self.flat(&context, kind.as_deref()),
                whole => {
                    let whole = whole.as_ref().map(|place| self.whole(&context, place));
                    let fields = self.nested(&context, whole.transpose()?.unwrap_or_default());
                    serde_json::to_vec(&fields)
                }
            };
            made.push((
                key,
                Some(bytes.expect("JSON values are written to a vector")),
            ));
        }
        Ok(made)
    }

    /// Writes fields that have one name each, without a tree of them: most records are events.
    fn flat(&self, context: &Context<'_>, kind: Option<&str>) -> serde_json::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(160);
        let mut serializer = serde_json::Serializer::new(&mut bytes);
        let mut fields = serializer.serialize_map(None)?;
        if let Some(kind) = kind {
            fields.serialize_entry("type", kind)?;
        }
        let left = self.set.iter();
        let mut left: Vec<_> = left
            .filter(|(path, _)| kind.is_none() || path[0] != "type")
            .collect();
        for (path, places, form) in &self.columns {
            let Some(value) = context.first(places) else {
                continue;
            };
            left.retain(|(set, _)| set != path);
            match form.of(value, self.time) {
                Some(formed) => fields.serialize_entry(&path[0], &formed)?,
                None => fields.serialize_entry(&path[0], value)?,
            }
        }
        for (path, value) in left {
            fields.serialize_entry(&path[0], value)?;
        }
        fields.end()?;
        Ok(bytes)
    }

    /// Adds the fields to an object.
    fn nested(&self, context: &Context<'_>, mut fields: Map<String, Value>) -> Map<String, Value> {
        for (path, value) in &self.set {
            put(&mut fields, path, value.clone());
        }
        for (path, places, form) in &self.columns {
            if let Some(value) = context.first(places) {
                let formed = form.of(value, self.time);
                put(&mut fields, path, formed.unwrap_or_else(|| value.clone()));
            }
        }
        fields
    }

    /// The type of our contract; `None` if the record is to be ignored.
    fn kind(&self, context: &Context<'_>) -> Result<Option<String>, Reject> {
        let Some(found) = context.first(&self.kind) else {
            let set = self.set.iter().find(|(path, _)| path == &["type"]);
            return match set {
                Some((_, value)) => Ok(value.as_str().map(str::to_owned)),
                None => {
                    let what = format!("no type: nothing at {}", self.kind_pointers);
                    Err(Reject::Unmapped(what))
                }
            };
        };
        let kind = text_of(found);
        if self.types.is_empty() {
            // The decoder says what is wrong with it.
            return Ok(Some(kind.unwrap_or_default()));
        }
        match kind.as_ref().and_then(|kind| self.types.get(kind)) {
            Some(ours) if ours == IGNORE => Ok(None),
            Some(ours) => Ok(Some(ours.clone())),
            None if self.others == OtherTypes::Ignore => Ok(None),
            None => {
                let what = format!(
                    "type {} is not in its table of types: add it, with \"{IGNORE}\" where it has no use",
                    short(found)
                );
                Err(Reject::Unmapped(what))
            }
        }
    }

    fn key(
        &self,
        context: &Context<'_>,
        record: &Record,
        framing: Framing,
    ) -> Result<String, Reject> {
        if self.key.is_empty() {
            let key = framing.key(record)?.ok_or(Reject::NoKey)?;
            return match framing {
                Framing::Debezium => key_in_envelope(key.into_owned()),
                _ => Ok(key.into_owned()),
            };
        }
        let Some(found) = context.first(&self.key) else {
            let what = format!("no key: nothing at {}", self.key_pointers);
            return Err(Reject::Unmapped(what));
        };
        text_of(found).ok_or_else(|| {
            let what = format!("the key is {}, not a text or an integer", short(found));
            Reject::Unmapped(what)
        })
    }

    fn whole(&self, context: &Context<'_>, place: &Place) -> Result<Map<String, Value>, Reject> {
        match context.at(place) {
            Some(Value::Object(fields)) => Ok(fields.clone()),
            Some(other) => {
                let what = format!("the whole profile is {}, not an object", short(other));
                Err(Reject::Unmapped(what))
            }
            None => Err(Reject::Unmapped("the whole profile: nothing there".into())),
        }
    }
}

/// What was found in a record, and one item of it.
struct Context<'r> {
    found: &'r Found,
    item: Option<&'r Value>,
}

impl<'r> Context<'r> {
    fn at(&self, place: &Place) -> Option<&'r Value> {
        let value = match place {
            Place::Slot(slot) => self.found[*slot].as_ref(),
            Place::Item(pointer) => self.item.and_then(|item| pointer.find(item)),
        };
        value.filter(|value| !value.is_null())
    }

    /// The first that is there and not null.
    fn first(&self, places: &[Place]) -> Option<&'r Value> {
        places.iter().find_map(|place| self.at(place))
    }
}

fn put(fields: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => {}
        [name] => {
            fields.insert(name.clone(), value);
        }
        [name, rest @ ..] => {
            let inner = fields.entry(name).or_insert_with(|| Map::new().into());
            if !inner.is_object() {
                *inner = Map::new().into();
            }
            if let Value::Object(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

/// A text, or an integer as text; `None` for anything else.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

/// A number, also written as text.
fn number_of(value: &Value) -> Option<Number> {
    match value {
        Value::Number(number) => Some(number.clone()),
        Value::String(text) => {
            let text = text.trim();
            let whole = text.parse::<i64>().ok().map(Number::from);
            whole.or_else(|| Number::from_f64(text.parse().ok()?))
        }
        _ => None,
    }
}

/// A whole number, also written as `2.0`.
fn whole_of(value: &Value) -> Option<i64> {
    if let Value::Bool(is) = value {
        return Some(i64::from(*is));
    }
    let number = number_of(value)?;
    number.as_i64().or_else(|| {
        let float = number.as_f64()?;
        let fits = float.fract() == 0.0 && float.abs() < 9e15;
        fits.then_some(float as i64)
    })
}

impl Form {
    /// The value in this form; `None` if it stays as it is.
    fn of(self, value: &Value, unit: TimeUnit) -> Option<Value> {
        match self {
            Self::AsIs => None,
            Self::Text => match value {
                Value::Number(number) => Some(number.to_string().into()),
                _ => None,
            },
            Self::Whole => whole_of(value).map(Value::from),
            Self::Number => number_of(value).map(Value::Number),
            Self::Time => time_of(value, unit).map(Value::from),
        }
    }
}

/// Milliseconds since 1970.
fn time_of(value: &Value, unit: TimeUnit) -> Option<i64> {
    let parts = |per_ms: f64| {
        let number = number_of(value)?;
        match (number.as_i64(), per_ms) {
            (Some(ms), 1.0) => Some(ms),
            (Some(us), 1_000.0) => Some(us.div_euclid(1_000)),
            (Some(s), _) if per_ms < 1.0 => s.checked_mul(1_000),
            _ => {
                let ms = number.as_f64()? / per_ms;
                (ms.abs() < 9e15).then(|| ms.floor() as i64)
            }
        }
    };
    match unit {
        TimeUnit::S => parts(0.001),
        TimeUnit::Ms => parts(1.0),
        TimeUnit::Us => parts(1_000.0),
        TimeUnit::Rfc3339 => {
            let text = value.as_str()?.trim();
            let zoned = text.parse::<jiff::Timestamp>().ok();
            let utc = || {
                let civil = text.parse::<jiff::civil::DateTime>().ok()?;
                Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
            };
            zoned.or_else(utc).map(|time| time.as_millisecond())
        }
    }
}
