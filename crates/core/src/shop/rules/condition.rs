//! Evaluates a condition on a profile: it holds, does not hold, or is unknown.
//!
//! Invariant: a field that is missing, null or of a type that cannot be compared is *unknown*, never *no*, so that a
//! `required` rule fires. A value that is there and cannot be compared is told apart from a missing one, because the
//! rule would otherwise be off without a trace. It does not know the consequences.

use std::borrow::Cow;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::Condition;
use crate::text;
use crate::user::event::{Profile, is_unavailable, is_undecoded};
use crate::user::record::Timestamp;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It holds.
    Yes,
    /// It does not hold.
    No,
    /// Unknown: the field is missing or null.
    Absent,
    /// Unknown: the field has a value that cannot be compared.
    Unreadable,
}

impl Answer {
    /// Whether the condition holds; `None` if it is unknown.
    pub(super) fn known(self) -> Option<bool> {
        match self {
            Self::Yes => Some(true),
            Self::No => Some(false),
            Self::Absent | Self::Unreadable => None,
        }
    }
}

impl Condition {
    /// Whether the condition holds at a time.
    pub(super) fn holds(&self, profile: Option<&Profile>, at: Timestamp) -> Answer {
        let Some(profile) = profile else {
            return Answer::Absent;
        };
        let compared = match field(profile, &self.field) {
            Found::Absent => return Answer::Absent,
            Found::Unreadable => None,
            Found::Value(value) => self.compare(&value, at),
        };
        match compared {
            Some(true) => Answer::Yes,
            Some(false) => Answer::No,
            None => Answer::Unreadable,
        }
    }

    /// Whether a profile has nothing under the condition's field: a field that no profile has is likely misspelt.
    pub fn is_absent(&self, profile: &Profile) -> bool {
        matches!(field(profile, &text::normalise(&self.field)), Found::Absent)
    }

    /// Compares a value; `None` if it cannot be compared.
    fn compare(&self, value: &Value, at: Timestamp) -> Option<bool> {
        if is_unavailable(value) || is_undecoded(value) {
            return None;
        }
        if let Some(wanted) = &self.equals {
            return same(wanted, &unpacked(value, std::slice::from_ref(wanted)));
        }
        if let Some(wanted) = &self.any_of {
            return one_of(wanted, &unpacked(value, wanted));
        }
        let number = if self.birth_date {
            age(value.as_str()?, at)?
        } else {
            number(value)?
        };
        Some(
            self.at_least.is_none_or(|least| number >= least)
                && self.below.is_none_or(|end| number < end),
        )
    }
}

/// The texts under a path: a text, or those of an array; none of a value that is not known.
pub(crate) fn texts_at(profile: &Profile, path: &str) -> Vec<String> {
    let Found::Value(value) = field(profile, &text::normalise(path)) else {
        return Vec::new();
    };
    match &*value {
        value if is_unavailable(value) || is_undecoded(value) => Vec::new(),
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => {
            let texts = items.iter().filter_map(Value::as_str);
            texts.map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

/// What is under a path.
enum Found<'a> {
    Absent,
    /// A step leads into a value that has no fields.
    Unreadable,
    Value(Cow<'a, Value>),
}

/// A field by its path; the whole path is tried as a name first, for flat profiles with dots. Null is absent. A text on
/// the way is read as a JSON object, because databases and connectors write JSON columns as text.
fn field<'a>(profile: &'a Profile, path: &str) -> Found<'a> {
    let mut steps = path.split('.');
    let first = steps.next().and_then(|step| profile.0.get(step));
    let (mut at, steps) = match profile.0.get(path) {
        Some(whole) => (Cow::Borrowed(whole), None),
        None => match first {
            Some(first) => (Cow::Borrowed(first), Some(steps)),
            None => return Found::Absent,
        },
    };
    for step in steps.into_iter().flatten() {
        let inner = match &*at {
            Value::Null => return Found::Absent,
            Value::Object(_) if is_undecoded(&at) => return Found::Unreadable,
            Value::Object(_) => match at {
                Cow::Borrowed(object) => object.get(step).map(Cow::Borrowed),
                Cow::Owned(mut object) => {
                    object.get_mut(step).map(|value| Cow::Owned(value.take()))
                }
            },
            Value::String(text) => match serde_json::from_str(text) {
                Ok(Value::Object(mut fields)) => fields.remove(step).map(Cow::Owned),
                Ok(Value::Null) => return Found::Absent,
                Ok(_) | Err(_) => return Found::Unreadable,
            },
            Value::Bool(_) | Value::Number(_) | Value::Array(_) => return Found::Unreadable,
        };
        match inner {
            Some(inner) => at = inner,
            None => return Found::Absent,
        }
    }
    match *at {
        Value::Null => Found::Absent,
        _ => Found::Value(at),
    }
}

/// An array or object that is written as JSON text, unless the text itself is wanted.
pub(super) fn unpacked<'a>(value: &'a Value, wanted: &[Value]) -> Cow<'a, Value> {
    match value {
        Value::String(text)
            if text.trim_start().starts_with(['[', '{']) && !wanted.contains(value) =>
        {
            match serde_json::from_str(text) {
                Ok(inner @ (Value::Array(_) | Value::Object(_))) => Cow::Owned(inner),
                Ok(_) | Err(_) => Cow::Borrowed(value),
            }
        }
        _ => Cow::Borrowed(value),
    }
}

/// Whether two values are equal. A number or a boolean may be written as a string, a boolean as 0 or 1.
pub(super) fn same(wanted: &Value, found: &Value) -> Option<bool> {
    match (wanted, found) {
        (Value::String(a), Value::String(b)) => Some(text::same(a, b)),
        (Value::Bool(a), _) => boolean(found).map(|b| *a == b),
        (_, Value::Bool(b)) => boolean(wanted).map(|a| a == *b),
        (Value::Number(_), _) | (_, Value::Number(_)) => Some(number(wanted)? == number(found)?),
        (Value::Array(_), Value::Array(_)) | (Value::Object(_), Value::Object(_)) => {
            Some(wanted == found)
        }
        _ => None,
    }
}

/// Whether a value, or an item of an array, is among the wanted values.
pub(super) fn one_of(wanted: &[Value], found: &Value) -> Option<bool> {
    if is_unavailable(found) || is_undecoded(found) {
        return None;
    }
    let Value::Array(values) = found else {
        let answers: Vec<_> = wanted.iter().map(|value| same(value, found)).collect();
        return if answers.contains(&Some(true)) {
            Some(true)
        } else {
            answers.iter().any(Option::is_some).then_some(false)
        };
    };
    let answers: Vec<_> = values.iter().map(|value| one_of(wanted, value)).collect();
    if answers.contains(&Some(true)) {
        return Some(true);
    }
    // An item that cannot be compared might be a wanted one.
    answers.iter().all(Option::is_some).then_some(false)
}

/// A boolean, also as databases without that type write it.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// Completed years since an ISO date; text after the date is ignored. `None` for a date in the future.
fn age(birth: &str, at: Timestamp) -> Option<f64> {
    let birth: Date = birth.trim().get(..10)?.parse().ok()?;
    let today = jiff::Timestamp::from_millisecond(at.0)
        .ok()?
        .to_zoned(TimeZone::UTC)
        .date();
    if birth > today {
        return None;
    }
    let before_birthday = (today.month(), today.day()) < (birth.month(), birth.day());
    Some(f64::from(today.year() - birth.year()) - f64::from(u8::from(before_birthday)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(condition: Value, profile: Value, expected: Option<bool>) {
        let parsed: Condition = serde_json::from_value(condition.clone()).expect("a condition");
        let parsed_profile: Profile = serde_json::from_value(profile.clone()).expect("a profile");
        // 2025-02-28T12:00:00Z
        let holds = parsed.holds(Some(&parsed_profile), Timestamp(1_740_744_000_000));
        assert_eq!(holds.known(), expected, "{condition} of {profile}");
    }

    fn check_answer(condition: &Value, profile: Value, expected: Answer) {
        let parsed: Condition = serde_json::from_value(condition.clone()).expect("a condition");
        let of: Profile = serde_json::from_value(profile.clone()).expect("a profile");
        let found = parsed.holds(Some(&of), Timestamp(1_740_744_000_000));
        assert_eq!(found, expected, "{condition} of {profile}");
    }

    #[test]
    fn a_value_that_is_there_and_cannot_be_compared_is_told_apart_from_a_missing_one() {
        use Answer::{Absent, No, Unreadable, Yes};
        let pregnant = json!({"field": "health.pregnant", "equals": true});
        for (health, expected) in [
            (json!(r#"{"pregnant": true}"#), Yes),
            (json!(r#"{"pregnant": 0}"#), No),
            (json!(r#"{"pregnant": "maybe"}"#), Unreadable),
            (json!(r#"{"age": 3}"#), Absent),
            (json!("null"), Absent),
            (json!("{\"pregnant\": tr"), Unreadable),
            (json!({"pregnant": 1}), Yes),
            (json!({"pregnant": "TRUE"}), Yes),
            (json!({"pregnant": "N"}), No),
            (json!({"pregnant": 2}), Unreadable),
            (json!({"pregnant": {"yes": 1}}), Unreadable),
            (json!([{"pregnant": true}]), Unreadable),
            (json!(7), Unreadable),
            (json!("__debezium_unavailable_value"), Unreadable),
            (json!({"undecoded": "a string"}), Unreadable),
            (json!(null), Absent),
            (json!({}), Absent),
        ] {
            check_answer(&pregnant, json!({ "health": health }), expected);
        }
        check_answer(&pregnant, json!({}), Absent);
    }

    #[test]
    fn a_field_of_another_form_than_the_comparison_is_unreadable_unless_it_can_be_read() {
        use Answer::{No, Unreadable, Yes};
        let allergic = json!({"field": "x", "in": ["nuts"]});
        let minor = json!({"field": "x", "below": 18, "birth_date": true});
        let poor = json!({"field": "x", "below": 10});
        for (condition, x, expected) in [
            (&allergic, json!(r#"["milk", "nuts"]"#), Yes),
            (&allergic, json!(r#"["milk"]"#), No),
            (&allergic, json!(r#"[{"name": "nuts"}]"#), Unreadable),
            (&allergic, json!({"nuts": true}), Unreadable),
            (
                &allergic,
                json!(["__debezium_unavailable_value"]),
                Unreadable,
            ),
            (&allergic, json!({"undecoded": "a string"}), Unreadable),
            (&minor, json!(13_880), Unreadable),
            (&minor, json!("1.2.2010"), Unreadable),
            (&poor, json!("AfQ="), Unreadable),
            (&poor, json!("9,5"), Unreadable),
            (&poor, json!(true), Unreadable),
            (&poor, json!(""), Unreadable),
        ] {
            check_answer(condition, json!({ "x": x }), expected);
        }
    }

    #[test]
    fn a_text_that_is_itself_wanted_is_not_read_as_json() {
        let literal = json!({"field": "kind", "in": ["[none]", "[\"a\"]"]});
        check(literal.clone(), json!({"kind": "[\"a\"]"}), Some(true));
        check(literal.clone(), json!({"kind": "[none]"}), Some(true));
        check(literal, json!({"kind": "[other]"}), Some(false));
    }

    #[test]
    fn a_comparison_says_yes_no_or_unknown() {
        let pregnant = json!({"field": "health.pregnant", "equals": true});
        for (profile, expected) in [
            (json!({"health": {"pregnant": true}}), Some(true)),
            (json!({"health": {"pregnant": "true"}}), Some(true)),
            (json!({"health.pregnant": false}), Some(false)),
            (json!({"health": {"pregnant": null}}), None),
            (json!({"health": {"pregnant": "perhaps"}}), None),
            (json!({"health": "fine"}), None),
            (json!({}), None),
        ] {
            check(pregnant.clone(), profile, expected);
        }
    }

    #[test]
    fn a_condition_on_an_array_holds_if_an_item_is_wanted() {
        let nuts = json!({"field": "allergies", "in": ["nuts", "peanuts"]});
        for (profile, expected) in [
            (json!({"allergies": ["milk", "nuts"]}), Some(true)),
            (json!({"allergies": ["milk"]}), Some(false)),
            (json!({"allergies": []}), Some(false)),
            (json!({"allergies": ["milk", 5]}), None),
            (json!({"allergies": "nuts"}), Some(true)),
            (json!({"allergies": "none"}), Some(false)),
            (json!({"allergies": {"nuts": true}}), None),
        ] {
            check(nuts.clone(), profile, expected);
        }
    }

    #[test]
    fn texts_that_look_the_same_are_equal() {
        for found in ["Caf\u{e9} au lait", "\u{feff}Cafe\u{301}  au lait "] {
            check(
                json!({"field": "drinks", "equals": "Cafe\u{301} au lait"}),
                json!({ "drinks": found }),
                Some(true),
            );
        }
        check(
            json!({"field": "drinks", "in": ["tea\u{200b}"]}),
            json!({"drinks": ["milk", "tea"]}),
            Some(true),
        );
        check(
            json!({"field": "drinks", "equals": "Tea"}),
            json!({"drinks": "tea"}),
            Some(false),
        );
    }

    #[test]
    fn numbers_are_compared_as_numbers_also_if_written_as_text() {
        let range = json!({"field": "n", "at_least": 3, "below": 5.5});
        for (n, expected) in [
            (json!(3), Some(true)),
            (json!("5.4"), Some(true)),
            (json!(5.5), Some(false)),
            (json!("2.9 "), Some(false)),
            (json!("NaN"), None),
            (json!("many"), None),
            (json!([3]), None),
        ] {
            check(range.clone(), json!({ "n": n }), expected);
        }
        check(
            json!({"field": "n", "equals": 3}),
            json!({"n": 3.0}),
            Some(true),
        );
        check(
            json!({"field": "n", "equals": "3"}),
            json!({"n": 3}),
            Some(true),
        );
    }

    #[test]
    fn an_age_is_in_completed_years_at_the_source_time() {
        let minor = json!({"field": "born", "below": 18, "birth_date": true});
        for (born, expected) in [
            (json!("2007-02-28"), Some(false)),
            (json!("2007-03-01"), Some(true)),
            (json!("2007-02-27T23:00:00Z"), Some(false)),
            (json!("2004-02-29"), Some(false)),
            (json!("2031-01-01"), None),
            (json!("28.02.2007"), None),
            (json!("2007"), None),
            (json!(2007), None),
            (json!("äöü äöü äöü"), None),
        ] {
            check(minor.clone(), json!({ "born": born }), expected);
        }
    }
}
