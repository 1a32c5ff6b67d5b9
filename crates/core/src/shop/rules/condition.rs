//! Evaluates a condition on a profile: it holds, does not hold, or is unknown.
//!
//! Invariant: a field that is missing, null or of a type that cannot be compared is *unknown*, never *no*, so that a
//! `required` rule fires. It does not know the consequences.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::Condition;
use crate::user::event::Profile;
use crate::user::record::Timestamp;

impl Condition {
    /// Whether the condition holds at a time; `None` if the field is unknown.
    pub(super) fn holds(&self, profile: Option<&Profile>, at: Timestamp) -> Option<bool> {
        let value = field(profile?, &self.field)?;
        if let Some(wanted) = &self.equals {
            return same(wanted, value);
        }
        if let Some(wanted) = &self.any_of {
            return one_of(wanted, value);
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

/// A field by its path; the whole path is tried as a name first, for flat profiles with dots. Null is unknown.
fn field<'a>(profile: &'a Profile, path: &str) -> Option<&'a Value> {
    let whole = profile.0.get(path);
    let found = whole.or_else(|| {
        let mut steps = path.split('.');
        let first = profile.0.get(steps.next()?)?;
        steps.try_fold(first, |value, step| value.get(step))
    })?;
    (!found.is_null()).then_some(found)
}

/// Whether two values are equal; a number or a boolean may be written as a string.
pub(super) fn same(wanted: &Value, found: &Value) -> Option<bool> {
    match (wanted, found) {
        (Value::String(a), Value::String(b)) => Some(a == b),
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

fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(text) => text.parse().ok(),
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
        assert_eq!(holds, expected, "{condition} of {profile}");
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
