//! Looks up an object's fields by name, in a parsed tree or in a reading of the known fields alone.
//!
//! Invariant: [`KnownFields::read`] accepts and refuses the same texts as parsing a tree, and finds the same values. A
//! tree of everything in an event costs more than the rest of its decoding, so unknown fields are checked in the same
//! way but not kept.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A JSON value, as far as a decoder needs it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    Array,
    Object,
}

impl<'a> From<&'a Value> for Found<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(bool) => Self::Bool(*bool),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            Value::Array(_) => Self::Array,
            Value::Object(_) => Self::Object,
        }
    }
}

impl Found<'_> {
    /// Name of the type for error texts.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(n) if n.is_f64() => "a fraction",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

/// Deepest nesting of brackets outside strings.
pub(super) fn depth(text: &str) -> usize {
    let (mut now, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in text.bytes() {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => {
                now += 1;
                deepest = deepest.max(now);
            }
            (false, b'}' | b']') => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Access to an object's fields by name.
pub(super) trait Fields {
    /// The field's value; if a name occurs twice, the last one.
    fn field(&self, name: &str) -> Option<Found<'_>>;
}

impl Fields for Map<String, Value> {
    fn field(&self, name: &str) -> Option<Found<'_>> {
        self.get(name).map(Found::from)
    }
}

/// Names of the fields that an event's decoder reads.
const NAMES: [&str; 11] = [
    "type",
    "sku",
    "pu",
    "query",
    "qty",
    "price",
    "ts",
    "list_id",
    "position",
    "__deleted",
    "__op",
];

/// Values of the fields in [`NAMES`].
#[derive(Debug, Default)]
pub(super) struct KnownFields<'a>([Option<Found<'a>>; NAMES.len()]);

impl Fields for KnownFields<'_> {
    fn field(&self, name: &str) -> Option<Found<'_>> {
        let index = NAMES.iter().position(|known| *known == name)?;
        Some(match self.0[index].as_ref()? {
            Found::Text(text) => Found::Text(Cow::Borrowed(text)),
            other => other.clone(),
        })
    }
}

/// The outermost value of a text.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time on the stack; a box would cost an allocation for each event"
)]
pub(super) enum Top<'a> {
    Object(KnownFields<'a>),
    Other(Found<'a>),
}

impl<'a> KnownFields<'a> {
    /// Reads the known fields of an object, or any other JSON value.
    pub(super) fn read(text: &'a str) -> Result<Top<'a>, serde_json::Error> {
        let mut known = Self::default();
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let other = Outer(&mut known).deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(match other {
            Found::Object => Top::Object(known),
            other => Top::Other(other),
        })
    }
}

/// Reads the outermost value and keeps its known fields.
struct Outer<'k, 'a>(&'k mut KnownFields<'a>);

impl<'a> DeserializeSeed<'a> for Outer<'_, 'a> {
    type Value = Found<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Found<'a>, D::Error> {
        deserializer.deserialize_any(AnyValue(Some(self.0)))
    }
}

impl<'a> Deserialize<'a> for Found<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue(None))
    }
}

/// Visits any value; with a [`KnownFields`], keeps the known fields of an object in it.
struct AnyValue<'k, 'a>(Option<&'k mut KnownFields<'a>>);

impl<'a> Visitor<'a> for AnyValue<'_, 'a> {
    type Value = Found<'a>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any valid JSON value") // the same text as serde_json's tree
    }

    fn visit_unit<E>(self) -> Result<Found<'a>, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Found<'a>, E> {
        Ok(Found::Bool(bool))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Found<'a>, E> {
        Ok(Found::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Found<'a>, E> {
        Ok(Found::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Found<'a>, E> {
        Ok(Number::from_f64(number).map_or(Found::Null, Found::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Found<'a>, E> {
        Ok(Found::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Found<'a>, E> {
        Ok(Found::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut all: A) -> Result<Found<'a>, A::Error> {
        while all.next_element::<Found>()?.is_some() {}
        Ok(Found::Array)
    }

    fn visit_map<A: MapAccess<'a>>(self, mut all: A) -> Result<Found<'a>, A::Error> {
        let mut kept = self.0;
        while let Some(Name(index)) = all.next_key()? {
            let value = all.next_value()?;
            if let (Some(known), Some(index)) = (&mut kept, index) {
                known.0[index] = Some(value);
            }
        }
        Ok(Found::Object)
    }
}

/// Index of a key in [`NAMES`], if it is known.
struct Name(Option<usize>);

impl<'a> Deserialize<'a> for Name {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string key") // the same text as serde_json's tree
            }

            fn visit_str<E>(self, key: &str) -> Result<Name, E> {
                Ok(Name(NAMES.iter().position(|name| *name == key)))
            }
        }
        deserializer.deserialize_str(Key)
    }
}
