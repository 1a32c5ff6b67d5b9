//! Decodes records of the three source topics: strict about required fields, tolerant of unknown ones.
//!
//! Invariant: any bytes give a value or a [`Reject`], never a panic, and nothing larger than its limit reaches the
//! state. It knows neither clock nor topic names: `now` is an argument, and the caller chooses the decoder.

use std::borrow::Cow;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::connect::{UNAVAILABLE, is_unavailable};
use super::envelope::{is_deleted, key_in_envelope, plain_row, row_after};
use super::fields::{Fields, Found, KnownFields, Top, depth};
use super::foreign::looks_like;
use super::{Accepted, Change, Event, Item, Kind, Profile, Reject, ShownIn, Sku, UserId};
use crate::text::{first_change, is_normal, normalise};
use crate::user::record::{Record, Timestamp};

/// 2000-01-01T00:00:00Z.
const YEAR_2000: i64 = 946_684_800_000;
/// 2101-01-01T00:00:00Z: the first instant after the year 2100.
const YEAR_2101: i64 = 4_133_980_800_000;

/// What to do about a change event where a plain profile is expected.
const PROFILE_ADVICE: &str =
    "set `topics.profile_format = \"debezium\"` if Debezium wrote it, else send the row alone";
/// What to do about a change event where there is no format but the plain one.
const ROW_ADVICE: &str = "send the row alone, for example by Debezium's ExtractNewRecordState";

/// Limits on a record's size, nesting, texts and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most bytes of a value.
    pub max_bytes: usize,
    /// Deepest nesting of a value.
    pub max_depth: usize,
    /// Most bytes of a user id, SKU id or product name; a longer search query is truncated instead of refused.
    pub max_text: usize,
    /// Most that a record's time may be ahead of `now`.
    #[serde(with = "humantime_serde")]
    pub max_ahead: Duration,
    /// Current time, on a live topic with CreateTime; a backfill uses the time of its creation. `None`: not checked.
    #[serde(skip)]
    pub now: Option<Timestamp>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 20,
            max_depth: 32,
            max_text: 512,
            max_ahead: Duration::from_secs(300),
            now: None,
        }
    }
}

/// Format of the values on `profile-changes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The profile as a JSON object.
    #[default]
    Plain,
    /// A Debezium change event around the profile, with or without `schema` and `payload`.
    Debezium,
}

/// Topic that a user's record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `user-events`.
    Events,
    /// `profile-changes`, in this format.
    Profiles(Format),
}

/// Decodes a record of a user from either topic.
pub fn decode_user(record: &Record, source: Source, limits: &Limits) -> Result<Accepted, Reject> {
    match source {
        Source::Events => decode_event(record, limits),
        Source::Profiles(format) => decode_profile(record, format, limits),
    }
}

/// Decodes a record of `user-events`.
pub fn decode_event(record: &Record, limits: &Limits) -> Result<Accepted, Reject> {
    whole_event(record, limits).map_err(|reject| named(record, reject))
}

/// A refusal by what the record looks like, where what it lacks is not the point.
fn named(record: &Record, reject: Reject) -> Reject {
    let lacks = matches!(
        reject,
        Reject::NoKey
            | Reject::EmptyKey
            | Reject::MissingField(_)
            | Reject::WrongType { .. }
            | Reject::UnknownType(_)
    );
    match looks_like(record).filter(|_| lacks) {
        Some((looks, see)) => Reject::Foreign { looks, see },
        None => reject,
    }
}

fn whole_event(record: &Record, limits: &Limits) -> Result<Accepted, Reject> {
    let user = key(record, limits)?;
    check_time(record.occurred(), limits)?;
    let bytes = record.value.as_deref().ok_or(Reject::NullValue)?;
    let read = KnownFields::read(parsable(bytes, limits)?);
    match read.map_err(|e| Reject::MalformedJson(e.to_string()))? {
        Top::Object(fields) => {
            let event = event(&fields, limits)?;
            Ok(accepted(record, user, Change::Event(event)))
        }
        Top::Other(other) => Err(Reject::NotAnObject {
            found: other.what(),
        }),
    }
}

/// The `type` of a record of `user-events`, whatever else is in it; `None` if it has none.
pub fn event_type(record: &Record, limits: &Limits) -> Option<String> {
    let text = parsable(record.value.as_deref()?, limits).ok()?;
    let Ok(Top::Object(fields)) = KnownFields::read(text) else {
        return None;
    };
    match fields.field("type")? {
        Found::Text(kind) => Some(kind.into_owned()),
        _ => None,
    }
}

fn event(fields: &impl Fields, limits: &Limits) -> Result<Event, Reject> {
    // An event that was deleted at its source would be folded a second time.
    if is_deleted(fields)? {
        return Err(Reject::Enveloped {
            fields: "__deleted, __op",
            advice: "it says that the event was deleted; events are never taken back",
        });
    }
    let kind = kind(fields)?;
    Ok(Event {
        kind,
        item: item(fields, kind, limits)?,
        qty: quantity(fields)?,
        price: price(fields)?,
        ts: own_time(fields)?,
        shown_in: shown_in(fields, limits)?,
    })
}

/// Decodes a record of `profile-changes`. Null erases the user, and so does a row that is marked as deleted; a second
/// erase changes nothing.
pub fn decode_profile(
    record: &Record,
    format: Format,
    limits: &Limits,
) -> Result<Accepted, Reject> {
    let decoded = whole_profile(record, format, limits);
    decoded.map_err(|reject| match format {
        Format::Plain => named(record, reject),
        // A change event is what this topic has: what it lacks is the point.
        Format::Debezium => reject,
    })
}

fn whole_profile(record: &Record, format: Format, limits: &Limits) -> Result<Accepted, Reject> {
    let key = key(record, limits)?;
    check_time(record.occurred(), limits)?;
    let user = match format {
        Format::Plain => key,
        Format::Debezium => key_in_envelope(key)?,
    };
    let Some(bytes) = record.value.as_deref() else {
        return Ok(accepted(record, user, Change::Erase));
    };
    let after = match format {
        Format::Plain => plain_row(object(bytes, limits)?.0, PROFILE_ADVICE, limits.max_depth)?,
        Format::Debezium => row_after(value(bytes, limits)?, limits.max_depth)?,
    };
    let change = match after {
        None => Change::Erase,
        Some(fields) => {
            let mut fields = with_normal_names(fields);
            // Sorted at every depth, so that equal profiles have equal bytes.
            fields.values_mut().for_each(Value::sort_all_objects);
            Change::Profile(Profile(fields.into_iter().collect()))
        }
    };
    Ok(accepted(record, user, change))
}

/// Decodes a record of `catalog` into the SKU id and the whole SKU; `None` if the SKU was deleted.
pub fn decode_sku(record: &Record, limits: &Limits) -> Result<(String, Option<Sku>), Reject> {
    whole_sku(record, limits).map_err(|reject| named(record, reject))
}

fn whole_sku(record: &Record, limits: &Limits) -> Result<(String, Option<Sku>), Reject> {
    let sku = key(record, limits)?;
    check_seen("the key", &sku)?;
    check_time(record.occurred(), limits)?;
    let Some(bytes) = record.value.as_deref() else {
        return Ok((sku, None));
    };
    let Object(fields) = object(bytes, limits)?;
    let Some(mut fields) = plain_row(fields, ROW_ADVICE, limits.max_depth)? else {
        return Ok((sku, None));
    };
    // Only for people, so a column that was not sent is no reason to refuse the SKU.
    if fields.get("title").is_some_and(is_unavailable) {
        fields.remove("title");
    }
    let pu = name(&fields, "pu", limits)?.ok_or(Reject::MissingField("pu"))?;
    let attributes = match fields.remove("attributes") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("attributes", &Found::from(&other), "an object")),
    };
    let whole = Sku {
        sku: sku.clone(),
        pu_id: name(&fields, "pu_id", limits)?.unwrap_or_else(|| pu.clone()),
        category: name(&fields, "category", limits)?,
        title: text(&fields, "title")?
            .map(|title| cut(&normalise(&title), limits.max_text))
            .filter(|title| !title.is_empty())
            .unwrap_or_else(|| pu.clone()),
        stock: stock(&fields)?,
        price: price(&fields)?,
        attributes: with_normal_names(attributes).into_iter().collect(),
        pu,
    };
    Ok((sku, Some(whole)))
}

/// The user id in a record's key, whatever its value; `None` if the key cannot be used.
pub fn key_user(record: &Record, source: Source) -> Option<String> {
    // A record with too long a key is refused, but its key still names a user.
    let limits = Limits {
        max_text: usize::MAX,
        ..Limits::default()
    };
    let key = key(record, &limits).ok()?;
    match source {
        Source::Events | Source::Profiles(Format::Plain) => Some(key),
        Source::Profiles(Format::Debezium) => key_in_envelope(key).ok(),
    }
}

fn accepted(record: &Record, user: String, change: Change) -> Accepted {
    Accepted {
        user: UserId(user.into()),
        position: record.position.clone(),
        time: record.occurred(),
        change,
    }
}

fn key(record: &Record, limits: &Limits) -> Result<String, Reject> {
    let bytes = record.key.as_deref().ok_or(Reject::NoKey)?;
    if bytes.first() == Some(&0) {
        return Err(Reject::FramedPayload { part: "key" });
    }
    let key = std::str::from_utf8(bytes).map_err(|e| Reject::KeyNotUtf8 {
        at: e.valid_up_to(),
        len: bytes.len(),
    })?;
    if key.is_empty() {
        return Err(Reject::EmptyKey);
    }
    check_length("the key", key, limits)?;
    Ok(key.into())
}

/// Refuses a time outside the years 2000-2100: no source means such a time, and sums with it overflow.
pub fn check_year_range(time: Timestamp) -> Result<(), Reject> {
    if !(YEAR_2000..YEAR_2101).contains(&time.0) {
        return Err(Reject::TimeOutOfRange(time.0));
    }
    Ok(())
}

fn check_time(time: Timestamp, limits: &Limits) -> Result<(), Reject> {
    check_year_range(time)?;
    let ahead = limits.now.map_or(Duration::ZERO, |now| time.since(now));
    if ahead > limits.max_ahead {
        return Err(Reject::TimeAhead {
            ahead,
            limit: limits.max_ahead,
        });
    }
    Ok(())
}

/// An object's fields, checked against the limits.
struct Object(Map<String, Value>);

fn value(bytes: &[u8], limits: &Limits) -> Result<Value, Reject> {
    serde_json::from_str(parsable(bytes, limits)?).map_err(|e| Reject::MalformedJson(e.to_string()))
}

/// Checks a value's size, encoding and nesting, and returns the text for the parser.
pub(crate) fn parsable<'a>(bytes: &'a [u8], limits: &Limits) -> Result<&'a str, Reject> {
    if bytes.len() > limits.max_bytes {
        return Err(Reject::TooLarge {
            found: bytes.len(),
            limit: limits.max_bytes,
        });
    }
    if bytes.first() == Some(&0) {
        return Err(Reject::FramedPayload { part: "value" });
    }
    let text = std::str::from_utf8(bytes).map_err(|e| Reject::NotUtf8 {
        at: e.valid_up_to(),
        len: bytes.len(),
    })?;
    // Checked before parsing, which recurses; the parser's own limit of 128 is the last resort. Nesting is never deeper
    // than the number of opening brackets, which is quick to count.
    let limit = limits.max_depth.min(127);
    let opening = bytes.iter().filter(|byte| matches!(byte, b'{' | b'['));
    if opening.count() > limit && depth(text) > limit {
        return Err(Reject::TooDeep { limit });
    }
    Ok(text)
}

fn object(bytes: &[u8], limits: &Limits) -> Result<Object, Reject> {
    match value(bytes, limits)? {
        Value::Object(fields) => Ok(Object(fields)),
        other => Err(Reject::NotAnObject {
            found: Found::from(&other).what(),
        }),
    }
}

/// The same object with the names of its fields normalised, at every depth, so that rules find them. Of two fields with
/// one name, the one that was written normally stays. Values keep their text; rules compare its normal form.
fn with_normal_names(fields: Map<String, Value>) -> Map<String, Value> {
    let mut normal = Map::new();
    let (kept, changed): (Vec<_>, Vec<_>) = fields
        .into_iter()
        .map(|(name, value)| (name, value_with_normal_names(value)))
        .partition(|(name, _)| is_normal(name));
    normal.extend(kept);
    for (name, value) in changed {
        normal.entry(normalise(&name)).or_insert(value);
    }
    normal
}

fn value_with_normal_names(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(with_normal_names(fields)),
        Value::Array(values) => {
            Value::Array(values.into_iter().map(value_with_normal_names).collect())
        }
        other => other,
    }
}

fn kind(fields: &impl Fields) -> Result<Kind, Reject> {
    let found = text(fields, "type")?.ok_or(Reject::MissingField("type"))?;
    Ok(match &*found {
        "impression" => Kind::Impression,
        "view" => Kind::View,
        "click" => Kind::Click,
        "cart" => Kind::Cart,
        "purchase" => Kind::Purchase,
        "search" => Kind::Search,
        other => return Err(Reject::UnknownType(cut(&normalise(other), 64))),
    })
}

/// The object of an event: the query of a search, else the product, by SKU if both ids are given. A query beside a
/// product (a click among results) is ignored.
fn item(fields: &impl Fields, kind: Kind, limits: &Limits) -> Result<Item, Reject> {
    if kind == Kind::Search {
        let query = text(fields, "query")?.map(|words| cut(&normalise(&words), limits.max_text));
        return match query {
            Some(words) if !words.is_empty() => Ok(Item::Query(words)),
            _ => Err(Reject::MissingField("query")),
        };
    }
    if let Some(sku) = id(fields, "sku", limits)? {
        return Ok(Item::Sku(sku));
    }
    name(fields, "pu", limits)?
        .map(Item::Pu)
        .ok_or(Reject::MissingField("sku or pu"))
}

fn quantity(fields: &impl Fields) -> Result<u32, Reject> {
    match fields.field("qty") {
        None | Some(Found::Null) => Ok(1),
        Some(Found::Number(n)) => {
            if n.as_f64().is_some_and(|q| q < 0.0) {
                return Err(Reject::NegativeQuantity(n.to_string()));
            }
            let Some(whole) = n.as_u64() else {
                return Err(wrong_type("qty", &Found::Number(n), "a whole number"));
            };
            u32::try_from(whole).map_err(|_| Reject::BadNumber {
                field: "qty",
                found: n.to_string(),
            })
        }
        Some(other) => Err(wrong_type("qty", &other, "a whole number")),
    }
}

/// Where the product was shown; none without a list.
fn shown_in(fields: &impl Fields, limits: &Limits) -> Result<Option<Box<ShownIn>>, Reject> {
    let position = position(fields)?;
    let list_id = text(fields, "list_id")?.filter(|id| !id.is_empty());
    let Some(list_id) = list_id else {
        return Ok(None);
    };
    check_length("list_id", &list_id, limits)?;
    let list_id = list_id.into_owned();
    Ok(Some(Box::new(ShownIn { list_id, position })))
}

fn position(fields: &impl Fields) -> Result<Option<u32>, Reject> {
    match fields.field("position") {
        None | Some(Found::Null) => Ok(None),
        Some(Found::Number(n)) if n.is_f64() => {
            Err(wrong_type("position", &Found::Number(n), "a whole number"))
        }
        Some(Found::Number(n)) => {
            let place = n.as_u64().and_then(|n| u32::try_from(n).ok());
            let place = place.filter(|place| *place > 0);
            let bad = || Reject::BadNumber {
                field: "position",
                found: n.to_string(),
            };
            place.map(Some).ok_or_else(bad)
        }
        Some(other) => Err(wrong_type("position", &other, "a whole number")),
    }
}

fn price(fields: &impl Fields) -> Result<Option<f64>, Reject> {
    match fields.field("price") {
        None | Some(Found::Null) => Ok(None),
        Some(Found::Number(n)) => match n.as_f64() {
            // `+ 0.0` turns -0.0 into 0.0: equal prices have equal bytes.
            Some(price) if price.is_finite() && price >= 0.0 => Ok(Some(price + 0.0)),
            _ => Err(Reject::BadNumber {
                field: "price",
                found: n.to_string(),
            }),
        },
        Some(other) => Err(wrong_type("price", &other, "a number")),
    }
}

fn stock(fields: &impl Fields) -> Result<i64, Reject> {
    match fields.field("stock") {
        None | Some(Found::Null) => Err(Reject::MissingField("stock")),
        Some(Found::Number(n)) if n.as_i64().is_some() => Ok(n.as_i64().unwrap_or_default()),
        Some(found) => Err(wrong_type("stock", &found, "a whole number")),
    }
}

/// The event's own time: milliseconds, or RFC 3339 text.
fn own_time(fields: &impl Fields) -> Result<Option<Timestamp>, Reject> {
    let Some(found) = fields.field("ts").filter(|found| *found != Found::Null) else {
        return Ok(None);
    };
    let ms = match &found {
        Found::Text(text) => text
            .parse::<jiff::Timestamp>()
            .ok()
            .map(|t| t.as_millisecond()),
        Found::Number(number) => number.as_i64(),
        _ => None,
    };
    ms.map(|ms| Some(Timestamp(ms)))
        .ok_or_else(|| wrong_type("ts", &found, "milliseconds or RFC 3339 text"))
}

/// A field's text; `None` if it is absent or null.
fn text<'a>(fields: &'a impl Fields, field: &'static str) -> Result<Option<Cow<'a, str>>, Reject> {
    match fields.field(field) {
        None | Some(Found::Null) => Ok(None),
        Some(Found::Text(text)) if text == UNAVAILABLE => Err(Reject::WrongType {
            field,
            found: "Debezium's unavailable value",
            wanted: "a string",
        }),
        Some(Found::Text(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(field, &other, "a string")),
    }
}

/// The id of a SKU, unchanged; `None` if it is empty.
fn id(
    fields: &impl Fields,
    field: &'static str,
    limits: &Limits,
) -> Result<Option<String>, Reject> {
    let found = text(fields, field)?.filter(|id| !id.is_empty());
    let checked = |id: Cow<'_, str>| {
        check_length(field, &id, limits)?;
        check_seen(field, &id)?;
        Ok(id.into_owned())
    };
    found.map(checked).transpose()
}

/// A name, normalised; `None` if it is empty.
fn name(
    fields: &impl Fields,
    field: &'static str,
    limits: &Limits,
) -> Result<Option<String>, Reject> {
    let found = text(fields, field)?.map(|name| normalise(&name).into_owned());
    let found = found.filter(|name| !name.is_empty());
    found
        .map(|name| check_length(field, &name, limits).map(|()| name))
        .transpose()
}

fn check_length(field: &'static str, text: &str, limits: &Limits) -> Result<(), Reject> {
    if text.len() > limits.max_text {
        return Err(Reject::TooLong {
            field,
            found: text.len(),
            limit: limits.max_text,
        });
    }
    Ok(())
}

/// Refuses an id that is not in its normal form. An id is a key of other systems, so it is not changed; and of two ids
/// that look the same, one would be taken for the other.
fn check_seen(field: &'static str, id: &str) -> Result<(), Reject> {
    match first_change(id) {
        Some((at, c)) => Err(Reject::UnseenCharacter {
            field,
            at,
            code: c.into(),
        }),
        None => Ok(()),
    }
}

/// Truncates a normalised text to at most `limit` bytes of whole characters. Normalised again, because the last
/// character may have been a joiner of what is gone.
fn cut(text: &str, limit: usize) -> String {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    normalise(&text[..end]).into_owned()
}

fn wrong_type(field: &'static str, found: &Found, wanted: &'static str) -> Reject {
    Reject::WrongType {
        field,
        found: found.what(),
        wanted,
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod envelope_tests;
#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
