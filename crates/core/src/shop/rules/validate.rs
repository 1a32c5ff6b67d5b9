//! Validates rules and segments for the configuration check, and describes each problem.

use std::collections::BTreeSet;

use super::condition::Answer;
use super::{Condition, DEFAULT_SEGMENT, Matcher, Rule, Segment};
use crate::text::{first_change, same};
use crate::user::event::Profile;
use crate::user::record::Timestamp;

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
        problems.extend(contradiction(&segment.when).map(|what| format!("{name}: {what}")));
    }
    problems
}

/// The segments that no user can be in, by index, each with the earlier segment that every such user is in: one whose
/// conditions are among its own.
pub fn unreachable(segments: &[Segment]) -> Vec<(usize, &str)> {
    let normal: Vec<Segment> = segments.iter().map(Segment::normalised).collect();
    let behind = |(nth, segment): (usize, &Segment)| {
        let includes = |earlier: &&Segment| {
            let mut conditions = earlier.when.iter();
            !earlier.when.is_empty() && conditions.all(|when| segment.when.contains(when))
        };
        let at = normal[..nth]
            .iter()
            .position(|earlier| includes(&earlier))?;
        Some((nth, segments[at].id.as_str()))
    };
    normal.iter().enumerate().filter_map(behind).collect()
}

/// Two conditions on one field that no value meets both of.
fn contradiction(when: &[Condition]) -> Option<String> {
    let pairs = when.iter().enumerate();
    let mut pairs = pairs.flat_map(|(nth, a)| when[nth + 1..].iter().map(move |b| (a, b)));
    let (a, _) = pairs.find(|(a, b)| same(&a.field, &b.field) && exclude(a, b))?;
    let field = &a.field;
    Some(format!(
        "two conditions on {field:?} exclude each other: no user is ever in it"
    ))
}

/// Whether no value meets both conditions on a field, as far as that can be seen.
fn exclude(a: &Condition, b: &Condition) -> bool {
    let is_range = |when: &Condition| when.at_least.is_some() || when.below.is_some();
    if is_range(a) && is_range(b) && a.birth_date == b.birth_date {
        let least = a.at_least.into_iter().chain(b.at_least).reduce(f64::max);
        let end = a.below.into_iter().chain(b.below).reduce(f64::min);
        return least.zip(end).is_some_and(|(least, end)| least >= end);
    }
    // A value that one condition names must meet the other one.
    let refuses = |named: &Condition, other: &Condition| {
        let Some(value) = &named.equals else {
            return false;
        };
        let field = [(other.field.clone(), value.clone())].into();
        other.holds(Some(&Profile(field)), Timestamp(0)) == Answer::No
    };
    !(a.birth_date || b.birth_date) && (refuses(a, b) || refuses(b, a))
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
    fn a_segment_that_no_user_can_be_in_is_reported() {
        let never =
            "segment \"s\": two conditions on \"f\" exclude each other: no user is ever in it";
        for (a, b, excluded) in [
            (
                json!({"field": "f", "below": 18}),
                json!({"field": "f", "at_least": 18}),
                true,
            ),
            (
                json!({"field": "f", "below": 18}),
                json!({"field": "f", "at_least": 17}),
                false,
            ),
            (
                json!({"field": "f", "equals": "a"}),
                json!({"field": "f", "equals": "b"}),
                true,
            ),
            (
                json!({"field": "f", "equals": 3}),
                json!({"field": "f ", "below": 3}),
                true,
            ),
            (
                json!({"field": "f", "equals": 3}),
                json!({"field": "f", "below": 4}),
                false,
            ),
            (
                json!({"field": "f", "in": ["a", "b"]}),
                json!({"field": "f", "equals": "c"}),
                true,
            ),
            // A list field may contain both.
            (
                json!({"field": "f", "in": ["a"]}),
                json!({"field": "f", "in": ["b"]}),
                false,
            ),
            (
                json!({"field": "f", "below": 18}),
                json!({"field": "g", "at_least": 18}),
                false,
            ),
        ] {
            let expected: &[&str] = if excluded { &[never] } else { &[] };
            check(json!([]), json!([{"id": "s", "when": [a, b]}]), expected);
        }
        let segments = json!([
            {"id": "a", "when": [{"field": "x", "below": 5}]},
            {"id": "b", "when": [{"field": "y", "equals": 1}, {"field": "x ", "below": 5}]},
            {"id": "c", "when": [{"field": "y", "equals": 1}]},
        ]);
        let segments: Vec<Segment> = serde_json::from_value(segments).expect("segments");
        assert_eq!(unreachable(&segments), [(1, "a")]);
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
