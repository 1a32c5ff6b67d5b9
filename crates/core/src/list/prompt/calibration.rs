//! Calibration prompts of an arm, frozen in a file; the mean of the model's logits over them is what it says to all
//! users.
//!
//! Decides the content of such a file and whether it fits an arm. Invariant: prompts frozen with another template or
//! another tokenizer are refused, because their mean would belong to other prompts. It does not know models.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::view::{NAME_MAX, VALUE_MAX, clean};
use super::{Error, Line, Template, View, sha256};
use crate::names::scoring::{Calibration, Prompt};
use crate::user::event::Kind;

/// Schema number of the file. Schema 1 had each prompt as one text.
const SCHEMA: u32 = 2;

/// Recommended number of prompts: with fewer, single prompts dominate the mean.
pub const PROMPTS: usize = 8;

/// A frozen set of calibration prompts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    schema: u32,
    /// [`Template::hash`] of the template.
    template: String,
    /// Hash of the tokenizer and its chat template.
    tokenizer: String,
    /// Rendered prompts.
    prompts: Vec<Prompt>,
}

/// Calibration prompts by visible history: each set is for users with so many visible products or more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibrations(BTreeMap<usize, Arc<Calibration>>);

impl Calibrations {
    /// One set for all users.
    pub fn of_all(calibration: Arc<Calibration>) -> Self {
        Self([(0, calibration)].into())
    }

    /// The set for a user with so many visible products; `None` if nothing is to be subtracted.
    pub fn at(&self, visible: usize) -> Option<&Arc<Calibration>> {
        Some(self.0.range(..=visible).next_back()?.1)
    }

    /// All sets, those of the least visible history first.
    pub fn sets(&self) -> impl Iterator<Item = &Arc<Calibration>> {
        self.0.values()
    }

    /// Reads the sets that [`references`] wrote, for an arm whose template and tokenizer are given by hash.
    pub fn read(text: &str, template: &str, tokenizer: &str) -> Result<Self, FrozenError> {
        let sets: BTreeMap<usize, serde_json::Value> = serde_json::from_str(text)?;
        let read = |(visible, set): (usize, serde_json::Value)| {
            let set = Frozen::read(&set.to_string(), template, tokenizer)?;
            Ok((visible, Arc::new(set)))
        };
        let sets: Result<_, FrozenError> = sets.into_iter().map(read).collect();
        Ok(Self(sets?))
    }
}

/// The text of a file with a set of prompts per least number of visible products.
pub fn references(sets: &BTreeMap<usize, Frozen>) -> String {
    serde_json::to_string_pretty(sets).expect("strings and numbers")
}

/// What every schema of the file has.
#[derive(Deserialize)]
struct Form {
    schema: u32,
    #[serde(default)]
    prompts: Vec<serde::de::IgnoredAny>,
}

/// A typical person for a calibration prompt, as a line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Person {
    /// The user's turn of a rendered prompt; profile, bought and segment are then ignored.
    pub prompt: Option<String>,
    /// The start of the assistant's turn of that prompt.
    pub assistant: Option<String>,
    /// Profile field to its value in words.
    pub profile: BTreeMap<String, String>,
    /// Names of bought products, newest first.
    pub bought: Vec<String>,
    /// Segment.
    pub segment: String,
}

/// Reason why a frozen set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FrozenError {
    /// The file is not what was written.
    #[error("not a file of calibration prompts: {0}")]
    Corrupt(#[from] serde_json::Error),
    /// The file is of another release, or has no prompts.
    #[error(
        "schema {schema} with {prompts} prompts; this release reads schema {SCHEMA} with at least one prompt: freeze \
         them again with `nearshore calibrate --force` and raise the arm's epoch"
    )]
    Form {
        /// Its schema.
        schema: u32,
        /// Number of prompts.
        prompts: usize,
    },
    /// A person's prompt is not one.
    #[error("person {nth}: {what}")]
    Person {
        /// Number of the person, from 1.
        nth: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The template fails on a person.
    #[error(transparent)]
    Template(#[from] Error),
    /// Template or tokenizer changed since the prompts were frozen.
    #[error(
        "frozen with another {what} ({frozen}, now {now}), so the mean would belong to other prompts; freeze them \
         again with `nearshore calibrate --force` and raise the arm's epoch"
    )]
    Changed {
        /// `template` or `tokenizer`.
        what: &'static str,
        /// Hash in the file.
        frozen: String,
        /// Hash of the arm's.
        now: String,
    },
}

impl Frozen {
    /// Renders the prompts of `people` with `template`, within `budget` tokens as counted by `count`.
    pub fn freeze(
        people: &[Person],
        (template, tokenizer): (&Template, &str),
        (budget, count): (usize, &dyn Fn(&str) -> usize),
    ) -> Result<Self, FrozenError> {
        let render = |(nth, person): (usize, &Person)| match &person.prompt {
            Some(prompt) => {
                let prompt = super::written(prompt.clone(), person.assistant.clone());
                prompt.map_err(|what| FrozenError::Person { nth: nth + 1, what })
            }
            None => Ok(template.render(&person.view(), budget, count)?.prompt),
        };
        let prompts = people.iter().enumerate().map(render);
        Ok(Self {
            schema: SCHEMA,
            template: template.hash.clone(),
            tokenizer: tokenizer.to_owned(),
            prompts: prompts.collect::<Result<_, FrozenError>>()?,
        })
    }

    /// The text of the file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and a number")
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there are no prompts.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Reads the text of a file for an arm, whose template and tokenizer are given by hash.
    pub fn read(text: &str, template: &str, tokenizer: &str) -> Result<Calibration, FrozenError> {
        let Form { schema, prompts } = serde_json::from_str(text)?;
        if schema != SCHEMA || prompts.is_empty() {
            let prompts = prompts.len();
            return Err(FrozenError::Form { schema, prompts });
        }
        let frozen: Self = serde_json::from_str(text)?;
        let both = [
            ("template", &frozen.template, template),
            ("tokenizer", &frozen.tokenizer, tokenizer),
        ];
        for (what, frozen, now) in both {
            if frozen != now {
                let short = |hash: &str| hash.chars().take(12).collect();
                let (frozen, now) = (short(frozen), short(now));
                return Err(FrozenError::Changed { what, frozen, now });
            }
        }
        Ok(Calibration {
            hash: sha256(&frozen.to_json()),
            prompts: frozen.prompts,
        })
    }
}

impl Person {
    /// The view of a user with this content, its texts cleaned as those of users are.
    fn view(&self) -> View {
        let line = |(index, name): (usize, &String)| Line {
            kind: Kind::Purchase,
            name: clean(name, NAME_MAX),
            qty: 1,
            price: None,
            days_ago: index as u64,
            count: 1,
            since: index + 1,
            said: Default::default(),
            positions: Vec::new(),
        };
        View {
            profile: (self.profile.iter())
                .map(|(field, value)| (clean(field, NAME_MAX), clean(value, VALUE_MAX)))
                .collect(),
            events: self.bought.iter().enumerate().map(line).collect(),
            segment: clean(&self.segment, NAME_MAX),
            unresolved: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_person_are_cleaned_as_those_of_a_user_are() {
        let template =
            "{{ segment }}: {{ profile.age }}; {% for e in events %}{{ e.name }} {% endfor %}";
        let template = Template::load(template, "t").expect("it loads");
        let text = |person: &str| {
            let people: Vec<Person> = vec![serde_json::from_str(person).expect("a person")];
            let frozen = Frozen::freeze(&people, (&template, "tok"), (100, &str::len));
            frozen.expect("it renders").prompts
        };
        let clean = text(r#"{"profile": {"age": "40 years"}, "bought": ["TEA"], "segment": "a"}"#);
        let dirty = text(
            "{\"profile\": {\"\u{feff}age\": \"40  years\"}, \"bought\": [\"\u{feff}TEA \"], \"segment\": \"a\u{200b}\"}",
        );
        assert_eq!(dirty, clean);
    }

    #[test]
    fn a_frozen_set_is_read_again_and_refused_once_template_or_tokenizer_changed() {
        let template = Template::load(
            "{% for e in events %}{{ e.name }} {% endfor %}\n---assistant---\nNext:",
            "t",
        );
        let template = template.expect("it loads");
        let people: Vec<Person> = [
            r#"{"bought": ["TEA", "MILK"]}"#,
            r#"{"prompt": "as it is"}"#,
            r#"{"prompt": "two", "assistant": "parts"}"#,
        ]
        .map(|line| serde_json::from_str(line).expect("a person"))
        .into();
        let frozen =
            Frozen::freeze(&people, (&template, "tok"), (100, &str::len)).expect("it renders");
        let text = frozen.to_json();
        let read = Frozen::read(&text, &template.hash, "tok").expect("it fits");
        let prompts: Vec<(&str, &str)> = (read.prompts.iter())
            .map(|prompt| (prompt.user.as_str(), prompt.assistant.as_str()))
            .collect();
        assert_eq!(
            prompts,
            [("TEA MILK", "Next:"), ("as it is", ""), ("two", "parts")]
        );
        let again = Frozen::read(&text, &template.hash, "tok").expect("it fits");
        assert_eq!(read.hash, again.hash);
        let other = Frozen::read(&text, "another template", "tok").expect_err("changed");
        assert!(
            other
                .to_string()
                .starts_with("frozen with another template"),
            "{other}"
        );
        let other = Frozen::read(&text, &template.hash, "kot").expect_err("changed");
        assert!(
            other
                .to_string()
                .contains("another tokenizer (tok, now kot)"),
            "{other}"
        );
        assert!(
            other.to_string().contains("nearshore calibrate --force"),
            "{other}"
        );
        assert!(Frozen::read("{}", "", "").is_err());
        let none = Frozen::freeze(&[], (&template, "tok"), (9, &str::len)).expect("nothing to do");
        assert!(Frozen::read(&none.to_json(), &template.hash, "tok").is_err());
    }

    #[test]
    fn prompts_frozen_as_one_text_are_refused_with_what_to_do() {
        let old = r#"{"schema": 1, "template": "", "tokenizer": "", "prompts": ["a\n---assistant---\nb"]}"#;
        let error = Frozen::read(old, "", "").expect_err("an older release");
        assert!(matches!(
            error,
            FrozenError::Form {
                schema: 1,
                prompts: 1
            }
        ));
        let error = error.to_string();
        assert!(error.contains("nearshore calibrate --force"), "{error}");
        let template = Template::load("x", "t").expect("it loads");
        let joined = Person {
            prompt: Some("a\n---assistant---\nb".into()),
            ..Person::default()
        };
        let frozen = Frozen::freeze(
            &[Person::default(), joined],
            (&template, ""),
            (9, &str::len),
        );
        let error = frozen.expect_err("two parts in one text").to_string();
        assert!(
            error.starts_with("person 2: ") && error.contains("\"assistant\""),
            "{error}"
        );
    }

    #[test]
    fn a_user_gets_the_set_of_prompts_for_as_much_history() {
        let template = Template::load("{{ events | length }}", "t").expect("it loads");
        let set = |count: usize| {
            let person = Person {
                bought: (0..count).map(|nth| format!("tea {nth}")).collect(),
                ..Person::default()
            };
            let budget: (usize, &dyn Fn(&str) -> usize) = (9, &str::len);
            Frozen::freeze(&[person], (&template, "words"), budget).expect("a set")
        };
        let text = references(&[(3, set(3)), (10, set(10))].into());
        let sets = Calibrations::read(&text, &template.hash, "words").expect("as written");
        let prompt = |visible| Some(sets.at(visible)?.prompts[0].user.clone());
        let found = [0, 2, 3, 9, 10, 99].map(prompt);
        let of = |text: &str| Some(text.to_owned());
        assert_eq!(found, [None, None, of("3"), of("3"), of("10"), of("10")]);
        assert!(Calibrations::read(&text, &template.hash, "other").is_err());
        let all = Calibrations::of_all(Arc::clone(sets.at(3).expect("a set")));
        assert_eq!(all.at(0), sets.at(3));
    }
}
