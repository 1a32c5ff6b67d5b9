//! The fields of an object by name, whether they stand in a tree or only the known ones were read.
//!
//! Invariant: [`Known::read`] accepts and refuses the same texts as a tree would, and finds the same values. A tree of
//! all that an event carries along costs more than the rest of its decoding, so what is not asked for is read over: checked
//! in the same way, and not kept.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A value, as far as a decoder needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Found<'a> {
    Null,
    Bool,
    Number(Number),
    Text(Cow<'a, str>),
    Array,
    Object,
}

impl<'a> From<&'a Value> for Found<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            Value::Array(_) => Self::Array,
            Value::Object(_) => Self::Object,
        }
    }
}

impl Found<'_> {
    /// For people.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number(n) if n.is_f64() => "a fraction",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

/// An object's fields by name.
pub(super) trait Fields {
    /// The field's value; of two of one name the last.
    fn field(&self, name: &str) -> Option<Found<'_>>;
}

impl Fields for Map<String, Value> {
    fn field(&self, name: &str) -> Option<Found<'_>> {
        self.get(name).map(Found::from)
    }
}

/// The fields of an event.
const NAMES: [&str; 7] = ["type", "sku", "pu", "query", "qty", "price", "ts"];

/// [`NAMES`] with their values.
#[derive(Debug, Default)]
pub(super) struct Known<'a>([Option<Found<'a>>; NAMES.len()]);

impl Fields for Known<'_> {
    fn field(&self, name: &str) -> Option<Found<'_>> {
        let nth = NAMES.iter().position(|known| *known == name)?;
        Some(match self.0[nth].as_ref()? {
            Found::Text(text) => Found::Text(Cow::Borrowed(text)),
            other => other.clone(),
        })
    }
}

/// What a text is.
pub(super) enum Top<'a> {
    Object(Known<'a>),
    Other(Found<'a>),
}

impl<'a> Known<'a> {
    /// The known fields of an object, or what else the text is.
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

/// The outermost value; its known fields are kept.
struct Outer<'k, 'a>(&'k mut Known<'a>);

impl<'a> DeserializeSeed<'a> for Outer<'_, 'a> {
    type Value = Found<'a>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Found<'a>, D::Error> {
        deserializer.deserialize_any(Each(Some(self.0)))
    }
}

impl<'a> Deserialize<'a> for Found<'a> {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Each(None))
    }
}

/// Takes any value; the fields of an object go where they are kept, if anywhere.
struct Each<'k, 'a>(Option<&'k mut Known<'a>>);

impl<'a> Visitor<'a> for Each<'_, 'a> {
    type Value = Found<'a>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any valid JSON value") // as a tree says it
    }

    fn visit_unit<E>(self) -> Result<Found<'a>, E> {
        Ok(Found::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found<'a>, E> {
        Ok(Found::Bool)
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
        while let Some(Name(nth)) = all.next_key()? {
            let value = all.next_value()?;
            if let (Some(known), Some(nth)) = (&mut kept, nth) {
                known.0[nth] = Some(value);
            }
        }
        Ok(Found::Object)
    }
}

/// Which of [`NAMES`] a key is.
struct Name(Option<usize>);

impl<'a> Deserialize<'a> for Name {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        struct Key;
        impl Visitor<'_> for Key {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string key") // as a tree says it
            }

            fn visit_str<E>(self, key: &str) -> Result<Name, E> {
                Ok(Name(NAMES.iter().position(|name| *name == key)))
            }
        }
        deserializer.deserialize_str(Key)
    }
}
