//! Finds the profile fields that rules and segments ask for and that no profile has: [`ProfileFields`].
//!
//! Decides when enough profiles were seen to report one. Invariant: a field that one profile had is not reported any
//! more. It keeps names of fields and a number, and no profile. It does not know where profiles come from.

use std::collections::BTreeSet;

use super::unmatched::like;
use super::{Condition, Rule, Segment, Unmatched, UnmatchedKind};
use crate::user::event::Profile;

/// So many profiles without a field are enough to report it. Where fewer are stored, all of them are.
const PROFILES_MIN: usize = 1_000;

/// Names of fields that are kept at most, to say what was meant.
const NAMES_MAX: usize = 256;

/// What rules and segments ask for and no profile had so far.
#[derive(Clone, Debug, Default)]
pub struct ProfileFields {
    asked: Vec<Asked>,
    /// Fields of the profiles seen, with those of objects in them behind a dot.
    names: BTreeSet<String>,
    /// Profiles seen in this pass over all of them, and in the whole pass before it.
    pass: usize,
    last_pass: usize,
    enough: bool,
}

/// What asks for a field.
#[derive(Clone, Debug)]
struct Asked {
    who: String,
    when: Condition,
    so: &'static str,
}

impl ProfileFields {
    /// The fields that rules and segments ask for; no profile was seen yet.
    pub fn new(rules: &[Rule], segments: &[Segment]) -> Self {
        let rules = rules.iter().map(|rule| Asked {
            who: format!("rule {:?}", rule.id),
            when: rule.when.clone(),
            so: match rule.required {
                true => "it is required, so it forbids for everyone",
                false => "the rule is off for everyone",
            },
        });
        let segments = segments.iter().flat_map(|segment| {
            segment.when.iter().map(|when| Asked {
                who: format!("segment {:?}", segment.id),
                when: when.clone(),
                so: "no user is in it",
            })
        });
        Self {
            asked: rules.chain(segments).collect(),
            ..Self::default()
        }
    }

    /// Whether each field was in a profile, so that no more profiles need to be seen.
    pub fn all_found(&self) -> bool {
        self.asked.is_empty()
    }

    /// Whether enough profiles were seen to report a field.
    pub fn is_enough(&self) -> bool {
        self.enough
    }

    /// Looks at the next profile of this pass.
    pub fn see(&mut self, profile: &Profile) {
        self.pass += 1;
        self.enough |= self.pass >= PROFILES_MIN;
        if self.all_found() {
            return;
        }
        self.asked.retain(|asked| asked.when.is_absent(profile));
        for (name, value) in &profile.0 {
            let inner = value.as_object().into_iter().flat_map(|inner| inner.keys());
            let inner = inner.map(|inner| format!("{name}.{inner}"));
            for name in std::iter::once(name.clone()).chain(inner) {
                if self.names.len() < NAMES_MAX {
                    self.names.insert(name);
                }
            }
        }
    }

    /// All profiles were seen; the next one begins another pass. A shop with few profiles has enough of them once a
    /// pass finds no more than the one before: until then they are only being sent.
    pub fn end_pass(&mut self) {
        self.enough |= self.pass > 0 && self.pass == self.last_pass;
        self.last_pass = std::mem::take(&mut self.pass);
    }

    /// What asks for a field that no profile had; nothing until enough profiles were seen.
    pub fn absent(&self) -> Vec<Unmatched> {
        if !self.enough {
            return Vec::new();
        }
        let names: BTreeSet<&str> = self.names.iter().map(String::as_str).collect();
        let absent = self.asked.iter().map(|asked| {
            let field = &asked.when.field;
            let (who, so, like) = (&asked.who, asked.so, like(field, &names));
            Unmatched {
                kind: UnmatchedKind::Field,
                id: field.clone(),
                what: format!("{who} asks for {field:?}, which no profile has{like}; {so}"),
            }
        });
        absent.collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fields() -> ProfileFields {
        let rule = |id: &str, field: &str, required: bool| -> Rule {
            let rule = json!({"id": id, "when": {"field": field, "equals": true},
                "forbid": {"categories": ["WINE"]}, "required": required});
            serde_json::from_value(rule).expect("a rule")
        };
        let segment = json!({"id": "young", "when": [{"field": "age", "below": 30}, {"field": "kids", "equals": 0}]});
        ProfileFields::new(
            &[
                rule("adults", "adullt", false),
                rule("safe", "health.pregant", true),
            ],
            &[serde_json::from_value(segment).expect("a segment")],
        )
    }

    fn profile(value: Value) -> Profile {
        serde_json::from_value(value).expect("a profile")
    }

    fn what(fields: &ProfileFields) -> Vec<String> {
        fields.absent().into_iter().map(|it| it.what).collect()
    }

    #[test]
    fn a_field_that_no_profile_has_is_reported_with_what_was_meant_until_one_has_it() {
        let mut fields = fields();
        let usual = profile(json!({"adult": true, "age": 40, "health": {"pregnant": false}}));
        for _ in 1..PROFILES_MIN {
            fields.see(&usual);
        }
        assert_eq!(what(&fields), [""; 0], "too few to know");
        fields.see(&usual);
        assert_eq!(
            what(&fields),
            [
                "rule \"adults\" asks for \"adullt\", which no profile has; did you mean \"adult\"?; the rule is off for everyone",
                "rule \"safe\" asks for \"health.pregant\", which no profile has; did you mean \"health.pregnant\"?; it is required, so it forbids for everyone",
                "segment \"young\" asks for \"kids\", which no profile has; no user is in it",
            ]
        );
        fields.see(&profile(json!({"health": "{\"pregant\": 0}", "adullt": 1})));
        let ids: Vec<_> = fields.absent().into_iter().map(|it| it.id).collect();
        assert_eq!(ids, ["kids"]);
        fields.see(&profile(json!({"kids": 2})));
        assert!(fields.all_found() && fields.absent().is_empty());
    }

    #[test]
    fn of_few_profiles_a_field_is_reported_when_no_more_of_them_come() {
        let mut fields = fields();
        for profiles in [0, 0, 3, 5] {
            for _ in 0..profiles {
                fields.see(&profile(json!({"age": 40})));
            }
            fields.end_pass();
            assert!(!fields.is_enough(), "{profiles}");
        }
        for _ in 0..5 {
            fields.see(&profile(json!({"age": 40})));
        }
        fields.end_pass();
        assert_eq!(what(&fields).len(), 3);
    }

    #[test]
    fn few_names_of_fields_are_kept_of_many() {
        let mut fields = fields();
        for nth in 0..2 * NAMES_MAX {
            fields.see(&profile(json!({format!("field-{nth}"): 1})));
        }
        assert_eq!(fields.names.len(), NAMES_MAX);
    }
}
