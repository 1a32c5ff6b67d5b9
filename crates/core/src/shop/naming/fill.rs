//! Gives records of `catalog` their products before they are decoded.
//!
//! Decides which records are changed: JSON objects with a title and without `pu`. Invariant: every other record stays as
//! it is, byte by byte, so that it is decoded or refused as without a map. It does not know where records come from.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Naming, Untitled};
use crate::user::event::{self, Limits, Reject, Sku};
use crate::user::record::Record;

/// Attribute that has the brand.
const BRAND: &str = "brand";

/// Decodes a record of `catalog`, with the product of its title where there is a map and it has none of its own. Errors are
/// those of [`event::decode_sku`].
pub fn decode_sku(
    naming: Option<&Naming>,
    record: &Record,
    limits: &Limits,
) -> Result<(String, Option<Sku>), Reject> {
    match naming {
        Some(naming) => event::decode_sku(&naming.fill(record), limits),
        None => event::decode_sku(record, limits),
    }
}

impl Naming {
    /// The record with the product of its title, if it has none of its own.
    pub(crate) fn fill<'a>(&self, record: &'a Record) -> Cow<'a, Record> {
        match self.filled(record) {
            Some(value) => Cow::Owned(Record {
                value: Some(value),
                ..record.clone()
            }),
            None => Cow::Borrowed(record),
        }
    }

    fn filled(&self, record: &Record) -> Option<Bytes> {
        let sku = str::from_utf8(record.key.as_deref()?).ok()?;
        let Ok(Value::Object(mut fields)) = serde_json::from_slice(record.value.as_deref()?) else {
            return None;
        };
        if fields.get("pu").is_some_and(|pu| !pu.is_null()) {
            return None;
        }
        let named = self.name(&row(sku, &fields)?)?;
        fields.insert("pu".into(), named.pu.into());
        fields.insert("pu_id".into(), named.pu_id.into());
        Some(Value::Object(fields).to_string().into())
    }
}

/// What a record says of a SKU.
fn row(sku: &str, fields: &Map<String, Value>) -> Option<Untitled> {
    let text =
        |fields: &Map<String, Value>, name: &str| Some(fields.get(name)?.as_str()?.to_owned());
    let none = Map::new();
    let attributes = fields
        .get("attributes")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let others = attributes.iter().filter(|(name, _)| *name != BRAND);
    Some(Untitled {
        sku: sku.to_owned(),
        title: text(fields, "title")?,
        category: text(fields, "category"),
        brand: text(attributes, BRAND),
        attributes: others
            .filter_map(|(_, value)| Some(value.as_str()?.to_owned()))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Map as NamingMap;
    use super::*;
    use crate::user::event::{Limits, decode_sku};
    use crate::user::record::{Offset, Partition, Position, Timestamp};

    fn record(value: Option<&str>) -> Record {
        let partition = Partition {
            incarnation: 0,
            topic: "catalog".into(),
            number: 0,
        };
        Record {
            position: Position {
                partition,
                offset: Offset(7),
            },
            time: Timestamp(1_700_000_000_000),
            key: Some(Bytes::from_static(b"s1")),
            value: value.map(|value| Bytes::from(value.to_owned())),
            headers: Vec::new(),
        }
    }

    #[test]
    fn a_sku_without_a_product_gets_that_of_its_title() {
        let naming = Naming::new(NamingMap::default());
        let value = r#"{"title":"Oat Milk, 1 L","stock":3,"attributes":{"brand":"Fenbar"}}"#;
        let (_, sku) =
            decode_sku(&naming.fill(&record(Some(value))), &Limits::default()).expect("a SKU");
        let sku = sku.expect("there");
        assert_eq!(
            (sku.pu.as_str(), sku.stock, sku.title.as_str()),
            ("Oat Milk", 3, "Oat Milk, 1 L")
        );
        assert!(sku.pu_id.starts_with("n-"), "{}", sku.pu_id);
        assert_eq!(sku.attributes["brand"], "Fenbar");
    }

    #[test]
    fn every_other_record_stays_as_it_is() {
        let naming = Naming::new(NamingMap::default());
        for value in [
            None,
            Some(""),
            Some("{"),
            Some("[]"),
            Some(r#"{"pu":"A","title":"Oat Milk","stock":1}"#),
            Some(r#"{"pu":7,"title":"Oat Milk","stock":1}"#),
            Some(r#"{"title":"","stock":1}"#),
            Some(r#"{"title":7,"stock":1}"#),
            Some(r#"{"stock":1}"#),
        ] {
            let record = record(value);
            assert!(
                matches!(naming.fill(&record), Cow::Borrowed(_)),
                "{value:?}"
            );
        }
    }
}
