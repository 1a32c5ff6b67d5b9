//! Calibration prompts of an arm, frozen in a file: what the model says behind them is what it says to everyone.
//!
//! Decides what such a file holds and whether it fits an arm. Invariant: prompts frozen with another template
//! or another tokenizer are refused, for their means would be of other questions. It does not know models.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, Line, Template, View, sha256};
use crate::names::scoring::Calibration;
use crate::user::event::Kind;

/// Version of the file's form.
const SCHEMA: u32 = 1;

/// How many prompts a set should have: fewer leave one prompt's whims in the mean.
pub const PROMPTS: usize = 8;

/// A frozen set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frozen {
    schema: u32,
    /// [`Template::hash`] of the template.
    template: String,
    /// Hash of the tokenizer and its chat template.
    tokenizer: String,
    /// Rendered prompts.
    prompts: Vec<String>,
}

/// Someone who stands for many, as a line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Person {
    /// A prompt that is rendered already; the other fields do not count then.
    pub prompt: Option<String>,
    /// Profile field to its value in words.
    pub profile: BTreeMap<String, String>,
    /// Product names, newest first.
    pub bought: Vec<String>,
    /// Segment.
    pub segment: String,
}

/// Why a frozen set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// It is not what was written.
    #[error("not a file of calibration prompts: {0}")]
    Corrupt(#[from] serde_json::Error),
    /// Of a later program, or empty.
    #[error(
        "schema {schema} with {prompts} prompts; this program reads schema {SCHEMA} with at least one"
    )]
    Form {
        /// Its schema.
        schema: u32,
        /// How many prompts.
        prompts: usize,
    },
    /// Something changed since.
    #[error(
        "frozen with another {what} ({frozen}, now {now}): its means would be of other questions; freeze it \
         anew with `nearshore calibration --force` and raise the arm's epoch"
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
    /// Renders people's prompts with `template`, within `budget` tokens as `count` counts them.
    pub fn freeze(
        people: &[Person],
        (template, tokenizer): (&Template, &str),
        (budget, count): (usize, &dyn Fn(&str) -> usize),
    ) -> Result<Self, Error> {
        let render = |person: &Person| match &person.prompt {
            Some(prompt) => Ok(prompt.clone()),
            None => Ok(template.render(&person.view(), budget, count)?.text()),
        };
        Ok(Self {
            schema: SCHEMA,
            template: template.hash.clone(),
            tokenizer: tokenizer.to_owned(),
            prompts: people.iter().map(render).collect::<Result<_, Error>>()?,
        })
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and a number")
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Reads a file's text for an arm with this template and tokenizer, both by hash.
    pub fn read(text: &str, template: &str, tokenizer: &str) -> Result<Calibration, Misfit> {
        let frozen: Self = serde_json::from_str(text)?;
        if frozen.schema != SCHEMA || frozen.prompts.is_empty() {
            let (schema, prompts) = (frozen.schema, frozen.prompts.len());
            return Err(Misfit::Form { schema, prompts });
        }
        let both = [
            ("template", &frozen.template, template),
            ("tokenizer", &frozen.tokenizer, tokenizer),
        ];
        for (what, frozen, now) in both {
            if frozen != now {
                let short = |hash: &str| hash.chars().take(12).collect();
                let (frozen, now) = (short(frozen), short(now));
                return Err(Misfit::Changed { what, frozen, now });
            }
        }
        Ok(Calibration {
            hash: sha256(&frozen.to_json()),
            prompts: frozen.prompts,
        })
    }
}

impl Person {
    fn view(&self) -> View {
        let line = |(nth, name): (usize, &String)| Line {
            kind: Kind::Purchase,
            name: name.clone(),
            qty: 1,
            price: None,
            days_ago: nth as u64,
            count: 1,
            positions: Vec::new(),
        };
        View {
            profile: self.profile.clone(),
            events: self.bought.iter().enumerate().map(line).collect(),
            segment: self.segment.clone(),
            unresolved: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_frozen_is_read_again_and_refused_when_template_or_tokenizer_changed() {
        let template = Template::load(
            "{% for e in events %}{{ e.name }} {% endfor %}\n---assistant---\nNext:",
            "t",
        );
        let template = template.expect("it loads");
        let people: Vec<Person> = [
            r#"{"bought": ["TEA", "MILK"]}"#,
            r#"{"prompt": "as it is"}"#,
        ]
        .map(|line| serde_json::from_str(line).expect("a person"))
        .into();
        let frozen =
            Frozen::freeze(&people, (&template, "tok"), (100, &str::len)).expect("it renders");
        let text = frozen.to_json();
        let read = Frozen::read(&text, &template.hash, "tok").expect("it fits");
        assert_eq!(
            read.prompts,
            ["TEA MILK\n---assistant---\nNext:", "as it is"]
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
            other.to_string().contains("nearshore calibration --force"),
            "{other}"
        );
        assert!(Frozen::read("{}", "", "").is_err());
        let none = Frozen::freeze(&[], (&template, "tok"), (9, &str::len)).expect("nothing to do");
        assert!(Frozen::read(&none.to_json(), &template.hash, "tok").is_err());
    }
}
