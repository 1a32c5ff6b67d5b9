//! Validates rules and segments for the configuration check, and describes each problem.

use std::collections::BTreeSet;

use super::{Condition, DEFAULT_SEGMENT, Matcher, Rule, Segment};
use crate::text::first_change;

/// Validates rules and segments. Returns each problem with its rule or segment; empty if there is none.
pub fn validate(rules: &[Rule], segments: &[Segment]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut ids = BTreeSet::new();
    for rule in rules {
        let name = format!("rule {:?}", rule.id);
        if rule.id.trim().is_empty() {
            problems.push("a rule has no id".into());
        } else if !ids.insert(&rule.id) {
            problems.push(format!("{name} is defined twice"));
        }
        problems.extend(unseen(&rule.id).map(|what| format!("{name}: {what}")));
        if rule.id.starts_with("need:") {
            problems.push(format!(
                "{name}: ids that begin with need: are reserved for the need filter"
            ));
        }
        problems.extend(condition(&rule.when).map(|what| format!("{name}: {what}")));
        problems.extend(matcher(&rule.forbid).map(|what| format!("{name}: {what}")));
    }
    ids.clear();
    for segment in segments {
        let name = format!("segment {:?}", segment.id);
        if segment.id.trim().is_empty() {
            problems.push("a segment has no id".into());
        } else if !ids.insert(&segment.id) {
            problems.push(format!("{name} is defined twice"));
        }
        problems.extend(unseen(&segment.id).map(|what| format!("{name}: {what}")));
        if segment.id == DEFAULT_SEGMENT {
            problems.push(format!(
                "{name} is reserved for users whom no segment matches; choose another id"
            ));
        }
        if segment.when.is_empty() {
            problems.push(format!(
                "{name} has no condition and would match every user"
            ));
        }
        for when in &segment.when {
            problems.extend(condition(when).map(|what| format!("{name}: {what}")));
        }
    }
    problems
}

/// Refuses an id that looks like another one.
fn unseen(id: &str) -> Option<String> {
    let (at, c) = first_change(id)?;
    Some(format!(
        "the id has U+{:04X} at character {at}: write it without characters that cannot be seen and without spaces at \
         its ends",
        u32::from(c)
    ))
}

fn condition(when: &Condition) -> Option<String> {
    let field = &when.field;
    let range = when.below.is_some() || when.at_least.is_some();
    let given = [when.equals.is_some(), when.any_of.is_some(), range];
    let what = match given.iter().filter(|given| **given).count() {
        0 => "gives no comparison: one of equals, in, below, at_least",
        2.. => "gives more than one comparison",
        _ if field.is_empty() || field.split('.').any(str::is_empty) => "names no field",
        _ if when.any_of.as_ref().is_some_and(Vec::is_empty) => {
            "in is empty and never holds: give values"
        }
        _ if when.birth_date && !range => "birth_date needs below or at_least",
        _ if [when.below, when.at_least]
            .iter()
            .flatten()
            .any(|bound| !bound.is_finite()) =>
        {
            "a bound is not a finite number"
        }
        _ => match (when.at_least, when.below) {
            (Some(least), Some(end)) if least >= end => {
                "at_least is not less than below: it never holds"
            }
            _ => return None,
        },
    };
    Some(format!("condition on {field:?}: {what}"))
}

fn matcher(forbid: &Matcher) -> Option<String> {
    if forbid.pus.is_empty() && forbid.categories.is_empty() && forbid.attributes.is_empty() {
        return Some("forbid names no products: give pus, categories or attributes".into());
    }
    let (name, _) = forbid
        .attributes
        .iter()
        .find(|(_, values)| values.is_empty())?;
    Some(format!(
        "forbid: attribute {name:?} has no values and never matches: give values"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(rules: serde_json::Value, segments: serde_json::Value, expected: &[&str]) {
        let rules: Vec<Rule> = serde_json::from_value(rules).expect("rules");
        let segments: Vec<Segment> = serde_json::from_value(segments).expect("segments");
        assert_eq!(validate(&rules, &segments), expected);
    }

    #[test]
    fn valid_rules_have_no_problems() {
        check(
            json!([{"id": "a", "when": {"field": "age", "at_least": 12, "below": 18}, "forbid": {"categories": ["wine"]}}]),
            json!([{"id": "young", "when": [{"field": "age", "below": 30}]}]),
            &[],
        );
    }

    #[test]
    fn an_id_that_looks_like_another_is_refused() {
        check(
            json!([{"id": "a\u{feff}", "when": {"field": "age", "below": 18}, "forbid": {"pus": ["p"]}}]),
            json!([{"id": "young ", "when": [{"field": "age", "below": 30}]}]),
            &[
                "rule \"a\\u{feff}\": the id has U+FEFF at character 2: write it without characters that cannot be seen \
                 and without spaces at its ends",
                "segment \"young \": the id has U+0020 at character 6: write it without characters that cannot be seen \
                 and without spaces at its ends",
            ],
        );
    }

    #[test]
    fn each_problem_is_reported_with_its_rule_or_segment() {
        check(
            json!([
                {"id": "a", "when": {"field": "x"}, "forbid": {"pus": ["p"]}},
                {"id": "a", "when": {"field": "x", "equals": 1, "below": 2}, "forbid": {"pus": ["p"]}},
                {"id": "need:b", "when": {"field": "x", "in": []}, "forbid": {}},
                {"id": "c", "when": {"field": "x", "at_least": 5, "below": 5}, "forbid": {"attributes": {"k": []}}},
                {"id": "", "when": {"field": "x..y", "equals": 1}, "forbid": {"pus": ["p"]}},
                {"id": "d", "when": {"field": "b", "equals": 1, "birth_date": true}, "forbid": {"pus": ["p"]}},
            ]),
            json!([{"id": "default", "when": []}]),
            &[
                "rule \"a\": condition on \"x\": gives no comparison: one of equals, in, below, at_least",
                "rule \"a\" is defined twice",
                "rule \"a\": condition on \"x\": gives more than one comparison",
                "rule \"need:b\": ids that begin with need: are reserved for the need filter",
                "rule \"need:b\": condition on \"x\": in is empty and never holds: give values",
                "rule \"need:b\": forbid names no products: give pus, categories or attributes",
                "rule \"c\": condition on \"x\": at_least is not less than below: it never holds",
                "rule \"c\": forbid: attribute \"k\" has no values and never matches: give values",
                "a rule has no id",
                "rule \"\": condition on \"x..y\": names no field",
                "rule \"d\": condition on \"b\": birth_date needs below or at_least",
                "segment \"default\" is reserved for users whom no segment matches; choose another id",
                "segment \"default\" has no condition and would match every user",
            ],
        );
    }
}
