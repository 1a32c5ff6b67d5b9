//! JSON pointers, and finding what many of them name in one pass over a text.
//!
//! Invariant: [`Wanted::read`] finds in a text what [`Wanted::find`] finds in its parsed tree (of names that occur twice,
//! the last). What no pointer names is checked by the parser and not kept: a tree of a whole tracker record costs more
//! than all that is done with it.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A pointer of RFC 6901 into a record's value, or with `@` before it into one item of `each`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Pointer {
    /// Whether it begins at the item.
    pub(super) in_item: bool,
    pub(super) steps: Vec<String>,
}

impl TryFrom<String> for Pointer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (in_item, path) = match text.strip_prefix('@') {
            Some(path) => (true, path),
            None => (false, &*text),
        };
        let steps = match path {
            "" => Vec::new(),
            path => {
                let Some(rest) = path.strip_prefix('/') else {
                    return Err(format!(
                        "{text:?} is not a JSON pointer such as \"/user/id\", or \"@/id\" for an item of `each`"
                    ));
                };
                let unescaped = |step: &str| step.replace("~1", "/").replace("~0", "~");
                rest.split('/').map(unescaped).collect()
            }
        };
        Ok(Self { in_item, steps })
    }
}

impl From<Pointer> for String {
    fn from(pointer: Pointer) -> Self {
        pointer.to_string()
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.in_item {
            f.write_str("@")?;
        }
        for step in &self.steps {
            write!(f, "/{}", step.replace('~', "~0").replace('/', "~1"))?;
        }
        Ok(())
    }
}

impl Pointer {
    /// What it names in a value.
    pub(super) fn find<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.steps
            .iter()
            .try_fold(value, |value, step| step_into(value, step))
    }
}

fn step_into<'v>(value: &'v Value, step: &str) -> Option<&'v Value> {
    match value {
        Value::Object(fields) => fields.get(step),
        Value::Array(items) => items.get(index(step)?),
        _ => None,
    }
}

/// An index of RFC 6901: no sign, no zero before it.
fn index(step: &str) -> Option<usize> {
    let written = step.bytes().all(|byte| byte.is_ascii_digit());
    let padded = step.len() > 1 && step.starts_with('0');
    step.parse().ok().filter(|_| written && !padded)
}

/// What several pointers want, as a tree of their steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    root: Node,
    slots: usize,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    /// Where what is here goes.
    slot: Option<usize>,
    children: Vec<(String, Node)>,
}

/// What was found, by slot.
pub(super) type Found = Vec<Option<Value>>;

impl Wanted {
    /// Adds a pointer and returns its slot. Equal pointers share one.
    pub(super) fn add(&mut self, pointer: &Pointer) -> usize {
        let mut node = &mut self.root;
        for step in &pointer.steps {
            let at = node.children.iter().position(|(name, _)| name == step);
            let at = at.unwrap_or_else(|| {
                node.children.push((step.clone(), Node::default()));
                node.children.len() - 1
            });
            node = &mut node.children[at].1;
        }
        *node.slot.get_or_insert_with(|| {
            self.slots += 1;
            self.slots - 1
        })
    }

    /// Finds everything in a JSON text.
    pub(super) fn read(&self, text: &str) -> Result<Found, serde_json::Error> {
        let mut found = vec![None; self.slots];
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let seek = Seek {
            node: &self.root,
            found: &mut found,
        };
        seek.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(found)
    }

    /// Finds everything in a value.
    pub(super) fn find(&self, value: &Value) -> Found {
        let mut found = vec![None; self.slots];
        self.root.fill(value, &mut found);
        found
    }
}

impl Node {
    fn fill(&self, value: &Value, found: &mut Found) {
        if let Some(slot) = self.slot {
            found[slot] = Some(value.clone());
        }
        for (step, child) in &self.children {
            match step_into(value, step) {
                Some(inner) => child.fill(inner, found),
                None => child.clear(found),
            }
        }
    }

    /// Forgets what an earlier field of the same name had.
    fn clear(&self, found: &mut Found) {
        if let Some(slot) = self.slot {
            found[slot] = None;
        }
        for (_, child) in &self.children {
            child.clear(found);
        }
    }

    fn child(&self, name: &str) -> Option<usize> {
        self.children.iter().position(|(step, _)| step == name)
    }
}

/// Reads one value and keeps what its node and those below want.
struct Seek<'n, 'f> {
    node: &'n Node,
    found: &'f mut Found,
}

impl<'de> DeserializeSeed<'de> for Seek<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if let Some(slot) = self.node.slot {
            let value = Value::deserialize(deserializer)?;
            match self.node.children.is_empty() {
                true => self.found[slot] = Some(value),
                false => self.node.fill(&value, self.found),
            }
            return Ok(());
        }
        self.node.clear(self.found);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for nth in 0.. {
            let child = self
                .node
                .children
                .iter()
                .find(|(step, _)| index(step) == Some(nth));
            let more = match child {
                Some((_, node)) => {
                    let found = &mut *self.found;
                    items.next_element_seed(Seek { node, found })?.is_some()
                }
                None => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(child) = fields.next_key_seed(Name(self.node))? {
            match child {
                Some(at) => {
                    let (node, found) = (&self.node.children[at].1, &mut *self.found);
                    fields.next_value_seed(Seek { node, found })?;
                }
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Finds the child of a field's name without keeping the name.
struct Name<'n>(&'n Node);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string key")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.child(name))
    }
}

/// One pointer or several, of which the first that names something counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct Pointers(pub(super) Vec<Pointer>);

#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum OneOrMany {
    One(Pointer),
    Many(Vec<Pointer>),
}

impl From<OneOrMany> for Pointers {
    fn from(written: OneOrMany) -> Self {
        Self(match written {
            OneOrMany::One(pointer) => vec![pointer],
            OneOrMany::Many(pointers) => pointers,
        })
    }
}

impl From<Pointers> for OneOrMany {
    fn from(Pointers(mut pointers): Pointers) -> Self {
        match (pointers.pop(), pointers.is_empty()) {
            (Some(only), true) => Self::One(only),
            (last, _) => {
                pointers.extend(last);
                Self::Many(pointers)
            }
        }
    }
}

impl fmt::Display for Pointers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |pointer: &Pointer| match pointer.to_string() {
            root if root.is_empty() => Cow::Borrowed("the root"),
            text => Cow::Owned(text),
        };
        let all: Vec<_> = self.0.iter().map(shown).collect();
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pointer(text: &str) -> Pointer {
        Pointer::try_from(text.to_owned()).expect("valid")
    }

    #[test]
    fn pointers_are_those_of_rfc_6901() {
        let value = json!({"a": {"b/c": [7, {"~": 8}]}, "": 9});
        for (text, expected) in [
            ("/a/b~1c/0", Some(json!(7))),
            ("/a/b~1c/1/~0", Some(json!(8))),
            ("/", Some(json!(9))),
            ("/a/b~1c/00", None),
            ("/a/b~1c/2", None),
            ("/a/x", None),
            ("", Some(value.clone())),
        ] {
            assert_eq!(pointer(text).find(&value).cloned(), expected, "{text}");
            assert_eq!(pointer(text).to_string(), text);
        }
        assert!(Pointer::try_from("a/b".to_owned()).is_err());
        assert!(pointer("@/a").in_item && pointer("@").steps.is_empty());
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c\"é]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// One pass over the text finds what the pointers name in the tree.
        #[test]
        fn a_text_is_searched_as_its_tree(
            value in values(),
            paths in prop::collection::vec("(/([a-c]|[0-3])){0,3}", 1..6),
        ) {
            let mut wanted = Wanted::default();
            let pointers: Vec<Pointer> = paths.iter().map(|path| pointer(path)).collect();
            let slots: Vec<usize> = pointers.iter().map(|it| wanted.add(it)).collect();
            let found = wanted.read(&value.to_string()).expect("valid JSON");
            prop_assert_eq!(&found, &wanted.find(&value));
            for (pointer, slot) in pointers.iter().zip(slots) {
                prop_assert_eq!(found[slot].as_ref(), pointer.find(&value), "{}", pointer);
            }
        }
    }

    #[test]
    fn of_a_name_that_occurs_twice_the_last_counts() {
        let mut wanted = Wanted::default();
        let (deep, next) = (wanted.add(&pointer("/a/b")), wanted.add(&pointer("/c")));
        let text = r#"{"a":{"b":1},"c":2,"a":{"x":1},"c":3}"#;
        let found = wanted.read(text).expect("valid JSON");
        let tree: Value = serde_json::from_str(text).expect("valid JSON");
        assert_eq!(found, wanted.find(&tree));
        assert_eq!((&found[deep], &found[next]), (&None, &Some(json!(3))));
    }

    #[test]
    fn what_is_skipped_must_still_be_json() {
        let mut wanted = Wanted::default();
        wanted.add(&pointer("/a"));
        for bad in [r#"{"b":tru,"a":1}"#, r#"{"a":1"#, r#"{"a":1}}"#, ""] {
            assert!(wanted.read(bad).is_err(), "{bad}");
        }
    }
}
