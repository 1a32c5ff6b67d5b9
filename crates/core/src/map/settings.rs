//! What is written in `[[inputs]]`, and what is meant: [`compile`].
//!
//! Invariant: a mapping that compiles can make records of our contract: it has a place for each needed field, and no
//! field or type that the contract does not know. It does not read files; the caller has the program's text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strum::VariantNames;

use super::fields::{Column, Fields, Form, IGNORE, OtherTypes, Parts, TimeUnit};
use super::pointer::{Pointer, Pointers};
use super::{Framing, How, Input, ReadAs};
use crate::user::event::Kind;

/// One `[[inputs]]`: a topic of the shop and how its records are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InputSettings {
    /// The topic.
    pub topic: String,
    /// What its records are read as.
    pub read_as: ReadAs,
    /// How its values are framed.
    #[serde(default)]
    pub framing: Framing,
    /// A jq program, instead of all pointers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// Sample records, which `nearshore check` maps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<PathBuf>,
    /// Where the user's or the SKU's id is; the record's key if empty.
    #[serde(default)]
    pub key: Pointers,
    /// An array, of which each item becomes a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<Pointer>,
    /// An object that is the whole profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<Pointer>,
    /// Where each field of our contract is.
    #[serde(default)]
    pub fields: BTreeMap<String, Pointers>,
    /// Values of fields where the record has none.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
    /// The shop's types of events, and ours.
    #[serde(default)]
    pub types: BTreeMap<String, String>,
    /// What becomes of types that are not in the table.
    #[serde(default)]
    pub other_types: OtherTypes,
    /// Unit of the field `ts`.
    #[serde(default)]
    pub time: TimeUnit,
}

/// A key within the `[[inputs]]`, and what is wrong with it.
pub(crate) type Wrong = (&'static str, String);

const EVENT: [(&str, Form); 6] = [
    ("sku", Form::Text),
    ("pu", Form::Text),
    ("query", Form::Text),
    ("qty", Form::Whole),
    ("price", Form::Number),
    ("ts", Form::Time),
];
const SKU: [(&str, Form); 6] = [
    ("pu", Form::Text),
    ("pu_id", Form::Text),
    ("category", Form::Text),
    ("title", Form::Text),
    ("stock", Form::Whole),
    ("price", Form::Number),
];

/// The form of a field, if the contract knows it.
fn form(read_as: ReadAs, field: &str) -> Option<Form> {
    let known: &[(&str, Form)] = match read_as {
        ReadAs::Events => &EVENT,
        ReadAs::Catalog if field.starts_with("attributes.") => return Some(Form::AsIs),
        ReadAs::Catalog => &SKU,
        ReadAs::Profiles => return Some(Form::AsIs),
    };
    let found = known.iter().find(|(name, _)| *name == field);
    found.map(|(_, form)| *form)
}

/// The names that lead to a field. Names of profile fields are taken as they are.
fn path(read_as: ReadAs, field: &str) -> Vec<String> {
    match (read_as, field.split_once('.')) {
        (ReadAs::Catalog, Some((outer, inner))) => vec![outer.into(), inner.into()],
        _ => vec![field.into()],
    }
}

/// The mapping that is meant, or everything that is wrong. `program`: the text of [`InputSettings::program`].
pub fn compile(
    settings: &InputSettings,
    program: Option<Arc<str>>,
) -> Result<Input, Vec<(&'static str, String)>> {
    let mut wrong = Vec::new();
    let how = match program {
        Some(program) => {
            no_pointers(settings, &mut wrong);
            How::Program(program)
        }
        None => How::Pointers(Box::new(pointers(settings, &mut wrong))),
    };
    if !wrong.is_empty() {
        return Err(wrong);
    }
    Ok(Input {
        topic: settings.topic.as_str().into(),
        read_as: settings.read_as,
        framing: settings.framing,
        how,
    })
}

fn no_pointers(settings: &InputSettings, wrong: &mut Vec<Wrong>) {
    let is_default = InputSettings {
        key: Pointers::default(),
        each: None,
        whole: None,
        fields: BTreeMap::new(),
        set: BTreeMap::new(),
        types: BTreeMap::new(),
        other_types: OtherTypes::default(),
        time: TimeUnit::default(),
        ..settings.clone()
    };
    if is_default != *settings {
        let what = "a program makes whole records: remove key, each, whole, fields, set, types, other_types and time";
        wrong.push(("program", what.into()));
    }
}

fn pointers(settings: &InputSettings, wrong: &mut Vec<Wrong>) -> Fields {
    let read_as = settings.read_as;
    let has = |field: &str| settings.fields.contains_key(field) || settings.set.contains_key(field);
    let mut columns = Vec::new();
    for (field, from) in &settings.fields {
        if read_as == ReadAs::Events && field == "type" {
            continue;
        }
        match form(read_as, field) {
            Some(form) => columns.push(Column {
                path: path(read_as, field),
                from: from.clone(),
                form,
            }),
            None => wrong.push(("fields", unknown(read_as, field))),
        }
    }
    for field in settings.set.keys() {
        let is_type = read_as == ReadAs::Events && field == "type";
        if !is_type && form(read_as, field).is_none() {
            wrong.push(("set", unknown(read_as, field)));
        }
    }
    let needed: &[&str] = match read_as {
        ReadAs::Events => &["type"],
        ReadAs::Catalog => &["pu", "stock"],
        ReadAs::Profiles => &[],
    };
    for field in needed.iter().filter(|field| !has(field)) {
        let what = format!("{field} is missing: say where it is, or give it a value in set");
        wrong.push(("fields", what));
    }
    if read_as == ReadAs::Profiles && settings.fields.is_empty() && settings.whole.is_none() {
        let what = "a profile needs `whole`, the pointer to its object, or fields";
        wrong.push(("fields", what.into()));
    }
    of_other_kinds(settings, wrong);
    let set = settings.set.iter();
    Fields::of(Parts {
        key: settings.key.clone(),
        each: settings.each.clone(),
        whole: settings.whole.clone(),
        kind: settings
            .fields
            .get("type")
            .cloned()
            .filter(|_| read_as == ReadAs::Events)
            .unwrap_or_default(),
        columns,
        set: set
            .map(|(field, value)| (path(read_as, field), value.clone()))
            .collect(),
        types: settings.types.clone(),
        others: settings.other_types,
        time: settings.time,
    })
}

/// What belongs to events, to profiles, or to items alone.
fn of_other_kinds(settings: &InputSettings, wrong: &mut Vec<Wrong>) {
    if settings.read_as != ReadAs::Events && !settings.types.is_empty() {
        wrong.push(("types", "only events have types".into()));
    }
    if settings.read_as != ReadAs::Profiles && settings.whole.is_some() {
        wrong.push(("whole", "only a profile is one object as a whole".into()));
    }
    for (theirs, ours) in &settings.types {
        if ours != IGNORE && !Kind::VARIANTS.contains(&ours.as_str()) {
            let kinds = Kind::VARIANTS.join(", ");
            let what = format!("{theirs:?} = {ours:?} is none of {kinds} and {IGNORE:?}");
            wrong.push(("types", what));
        }
    }
    if let Some(kind) = settings.set.get("type")
        && settings.read_as == ReadAs::Events
        && !kind
            .as_str()
            .is_some_and(|kind| Kind::VARIANTS.contains(&kind))
    {
        wrong.push((
            "set",
            format!("type = {kind} is none of {}", Kind::VARIANTS.join(", ")),
        ));
    }
    let pointers = settings.fields.values().chain([&settings.key]);
    let in_item = pointers
        .flat_map(|pointers| &pointers.0)
        .find(|it| it.in_item);
    if let (Some(pointer), None) = (in_item, &settings.each) {
        wrong.push((
            "each",
            format!("{pointer} points into an item, and there is no each"),
        ));
    }
    if settings.each.as_ref().is_some_and(|each| each.in_item) {
        wrong.push((
            "each",
            "it is where the items are, not in one of them".into(),
        ));
    }
}

fn unknown(read_as: ReadAs, field: &str) -> String {
    let known: Vec<&str> = match read_as {
        ReadAs::Events => ["type"]
            .into_iter()
            .chain(EVENT.iter().map(|(name, _)| *name))
            .collect(),
        _ => SKU
            .iter()
            .map(|(name, _)| *name)
            .chain(["attributes.NAME"])
            .collect(),
    };
    format!(
        "{field:?} is no field of our contract, which has {}",
        known.join(", ")
    )
}
