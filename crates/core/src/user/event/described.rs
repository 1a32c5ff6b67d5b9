//! JSON Schemas of the records that the decoders read by hand.
//!
//! Invariant: a schema refuses a value only if its decoder refuses it or, of a Debezium row, if it is none. It accepts
//! more than the decoder where JSON Schema cannot say what is checked; docs/schema/README.md lists that. These types
//! describe; nothing is read into them.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, json_schema};
use serde_json::{Value, json};

use super::{Kind, UNAVAILABLE};

/// The value of a record of `user-events`.
#[derive(JsonSchema)]
#[schemars(rename = "UserEvent", transform = refine_event)]
#[allow(dead_code)]
pub struct EventValue {
    /// What the user did.
    r#type: Kind,
    /// The product of the event, by SKU id.
    #[schemars(default)]
    sku: Value,
    /// The product of the event, by PU id; used only without `sku`.
    #[schemars(default)]
    pu: Value,
    /// The words of a search; ignored in every other type.
    #[schemars(default)]
    query: Value,
    /// Pieces; 1 if absent.
    #[schemars(default, range(max = 4_294_967_295_u64))]
    qty: Option<u32>,
    /// Price of one piece.
    #[schemars(default, range(min = 0))]
    price: Option<f64>,
    /// The event's own time: milliseconds since 1970, or RFC 3339 text. It is checked for its type only.
    #[schemars(default)]
    ts: Option<OwnTime>,
    /// The list in which the product was shown, for `evaluate --off-policy`.
    #[schemars(default, length(max = 512))]
    list_id: Option<String>,
    /// The place of the SKU under its name in that list, from 1.
    #[schemars(default, range(min = 1, max = 4_294_967_295_u64))]
    position: Option<u32>,
}

/// Milliseconds since 1970, or RFC 3339 text.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)]
enum OwnTime {
    Milliseconds(
        #[schemars(range(min = -9_223_372_036_854_775_808_i64, max = 9_223_372_036_854_775_807_i64))]
         i64,
    ),
    /// With a zone: `Z`, or an offset.
    Text(
        #[schemars(regex(
            pattern = r"^[+-]?\d{4,6}-?\d\d-?\d\d[ Tt].*([Zz]|[+-]\d\d(:?\d\d){0,2})(\[[^\]]*\])*$"
        ))]
        String,
    ),
}

/// The value of a record of `profile-changes`: the whole profile, any JSON object. A record without a value erases the
/// user.
#[derive(JsonSchema)]
#[schemars(rename = "Profile", transform = refine_plain_row)]
#[allow(dead_code)]
pub struct ProfileValue {
    #[schemars(flatten)]
    fields: BTreeMap<String, Value>,
}

/// The value of a record of `profile-changes` with `topics.profile_format = "debezium"`: a change event, with or without
/// `schema` and `payload` around it. A record without a value erases the user.
pub struct ChangeValue;

impl JsonSchema for ChangeValue {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DebeziumProfile".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> Schema {
        let change = json!({
            "type": ["object", "null"],
            "anyOf": [
                {"type": "null"},
                {"properties": {"op": {"const": "d"}}, "required": ["op"]},
                {"properties": {"after": {"type": ["object", "null"]}}, "required": ["after"]},
                {
                    "not": {"required": ["after"]},
                    "anyOf": [{"required": ["__deleted"]}, {"required": ["__op"]}],
                    "allOf": marks(),
                },
            ],
        });
        json_schema!({
            "description": "A change event of Debezium, with or without `schema` and `payload` around it, or a row that ExtractNewRecordState made.",
            "if": {"type": "object", "required": ["payload"]},
            "then": {"properties": {"payload": change}},
            "else": change,
        })
    }
}

/// The value of a record of `catalog`: the whole SKU. A record without a value says that the SKU is gone.
#[derive(JsonSchema)]
#[schemars(rename = "CatalogueSku", transform = refine_sku)]
#[allow(dead_code)]
pub struct SkuValue {
    /// The standardised product's name, as the model says it. Needed, but for SKUs that `[catalog] naming` names.
    pu: String,
    /// Pieces; 0 or less is sold out.
    #[schemars(range(min = -9_223_372_036_854_775_808_i64, max = 9_223_372_036_854_775_807_i64))]
    stock: i64,
    /// The product's id; by default its name.
    #[schemars(default)]
    pu_id: Option<String>,
    /// Category of the product; rules, `[needs]` and `[merchant]` read it.
    #[schemars(default)]
    category: Option<String>,
    /// Title of the SKU, for people; by default the name.
    #[schemars(default)]
    title: Option<String>,
    /// Price of one piece.
    #[schemars(default, range(min = 0))]
    price: Option<f64>,
    /// Attributes of any name; rules read them.
    #[schemars(default)]
    attributes: Option<BTreeMap<String, Value>>,
}

/// At least one character that can be seen, to the extent that a pattern can say it.
const SEEN: &str = r"\S";

/// A name or a query, which is neither empty nor Debezium's placeholder.
fn name() -> Value {
    json!({"type": "string", "pattern": SEEN, "not": {"const": UNAVAILABLE}})
}

/// Adds what an event needs by its type.
fn refine_event(schema: &mut Schema) {
    let search = json!({"properties": {"type": {"const": "search"}}});
    let query = json!({"properties": {"query": name()}, "required": ["query"]});
    let no_sku = json!({"properties": {"sku": {"enum": [null, ""]}}});
    let product = json!({
        "if": no_sku,
        "then": {"properties": {"pu": name()}, "required": ["pu"]},
        "else": {"properties": {"sku": {"type": "string", "maxLength": 512, "not": {"const": UNAVAILABLE}}}},
    });
    schema.insert("if".into(), search);
    schema.insert("then".into(), query);
    schema.insert("else".into(), product);
    let deleted = json!({
        "__deleted": {"enum": [false, "false", null]},
        "__op": {"not": {"const": "d"}},
    });
    add(schema, json!([{"properties": deleted}]));
}

fn refine_plain_row(schema: &mut Schema) {
    schema.insert("not".into(), json!({"anyOf": envelopes()}));
    add(schema, marks());
}

/// Adds that a row which is marked as deleted needs nothing else.
fn refine_sku(schema: &mut Schema) {
    let mut whole = std::mem::take(schema);
    let description = whole.remove("description");
    for field in ["pu", "pu_id", "category"] {
        let of = whole.pointer_mut(&format!("/properties/{field}"));
        let of = of.and_then(Value::as_object_mut);
        of.into_iter().for_each(|of| {
            of.insert("not".into(), json!({"const": UNAVAILABLE}));
            of.insert("maxLength".into(), json!(512));
            if field == "pu" {
                of.insert("pattern".into(), SEEN.into());
            }
        });
    }
    if let Some(title) = whole
        .pointer_mut("/properties/title")
        .and_then(Value::as_object_mut)
    {
        // Debezium's placeholder in an array is no title, and is left out.
        title.insert("type".into(), json!(["string", "null", "array"]));
        title.insert("items".into(), json!({"const": UNAVAILABLE}));
        title.insert("maxItems".into(), json!(1));
        title.insert("minItems".into(), json!(1));
    }
    let deleted = json!({"anyOf": [
        {"properties": {"__deleted": {"enum": [true, "true"]}}, "required": ["__deleted"]},
        {"properties": {"__op": {"const": "d"}}, "required": ["__op"]},
    ]});
    *schema = json_schema!({
        "type": "object",
        "not": {"anyOf": envelopes()},
        "if": deleted,
        "else": whole,
    });
    if let Some(description) = description {
        schema.insert("description".into(), description);
    }
    add(schema, marks());
}

fn add(schema: &mut Schema, all: Value) {
    schema.insert("allOf".into(), all);
}

/// What the marks of ExtractNewRecordState may be.
fn marks() -> Value {
    json!([
        {"properties": {"__deleted": {"enum": [true, "true", false, "false", null]}}},
        {"not": {
            "properties": {"__deleted": {"enum": [false, "false"]}, "__op": {"const": "d"}},
            "required": ["__deleted", "__op"],
        }},
    ])
}

/// Values that are clearly the envelope of a change event, of the tools that are known.
fn envelopes() -> Value {
    let row = json!({"type": ["object", "null"]});
    let has_row = |field: &str| json!({"properties": {field: row}, "required": [field]});
    let plain = json!([
        {"required": ["schema", "payload"]},
        {"required": ["op", "before", "after"]},
        {
            "properties": {"op": {"enum": ["c", "r", "u", "d", "t"]}},
            "required": ["op"],
            "anyOf": [has_row("before"), has_row("after")],
        },
        {
            "properties": {"type": {"type": "string", "pattern": any_case(&["insert", "update", "delete", "bootstrap-insert"])}},
            "required": ["database", "table", "data", "type"],
        },
        {
            "properties": {"op_type": {"type": "string", "pattern": any_case(&["I", "U", "D", "T"])}},
            "required": ["table", "op_type"],
            "anyOf": [has_row("before"), has_row("after")],
        },
        {
            "properties": {"metadata": {"type": "object", "required": ["operation"]}, "data": row},
            "required": ["metadata", "data"],
        },
    ]);
    let mut all = plain.as_array().cloned().unwrap_or_default();
    all.push(json!({
        "properties": {"payload": {"type": "object", "anyOf": plain}},
        "required": ["payload"],
    }));
    all.into()
}

/// A pattern of these words in any case: JSON Schema's patterns have no flag for it.
fn any_case(words: &[&str]) -> String {
    let letters = |word: &&str| -> String {
        let letter = |c: char| match c.is_ascii_alphabetic() {
            true => format!("[{}{}]", c.to_ascii_lowercase(), c.to_ascii_uppercase()),
            false => c.to_string(),
        };
        word.chars().map(letter).collect()
    };
    let words: Vec<String> = words.iter().map(letters).collect();
    format!("^({})$", words.join("|"))
}
