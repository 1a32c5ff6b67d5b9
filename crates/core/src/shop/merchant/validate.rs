//! Validates the merchant's policy for the configuration check, and describes each problem under its key.

use std::collections::BTreeMap;

use super::{Boost, Pin, Policy};
use crate::text::normalise;

/// Everything that is wrong with a policy: pairs of a key below `[merchant]` (`boosts[0].factor`) and what is wrong.
pub fn validate(policy: &Policy) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (nth, boost) in policy.boosts.iter().enumerate() {
        for (key, what) in of_boost(boost) {
            found.push((format!("boosts[{nth}]{key}"), what));
        }
    }
    let mut places: BTreeMap<usize, usize> = BTreeMap::new();
    let mut pinned: BTreeMap<String, usize> = BTreeMap::new();
    for (nth, pin) in policy.pins.iter().enumerate() {
        for (key, what) in of_pin(pin) {
            found.push((format!("pins[{nth}]{key}"), what));
        }
        let pu = normalise(&pin.pu).into_owned();
        if let Some(first) = pinned.get(&pu) {
            let what = format!("{pu:?} is already pinned by pins[{first}]; pin a product once");
            found.push((format!("pins[{nth}].pu"), what));
        }
        pinned.entry(pu).or_insert(nth);
        let Some(position) = pin.position else {
            continue;
        };
        if let Some(first) = places.get(&position) {
            let what = format!("place {position} is already that of pins[{first}]; give another");
            found.push((format!("pins[{nth}].position"), what));
        }
        places.entry(position).or_insert(nth);
    }
    found
}

fn of_boost(boost: &Boost) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    match (&boost.pu, &boost.category) {
        (Some(_), Some(_)) => {
            let what = "has both a pu and a category; make two boosts of it";
            found.push(("", what.to_owned()));
        }
        (None, None) => found.push(("", "has neither a pu nor a category; give one".to_owned())),
        (Some(text), None) if text.trim().is_empty() => found.push((".pu", empty("a PU id"))),
        (None, Some(text)) if text.trim().is_empty() => {
            found.push((".category", empty("a category")));
        }
        (Some(_), None) | (None, Some(_)) => {}
    }
    // Beyond these its weight is no number that a score can bear: e^±20 puts a product first or last of any list.
    if !(1e-9..=1e9).contains(&boost.factor) {
        let what = format!(
            "{} must be above 0, and within 1e-9 and 1e9; to keep a product off lists write a rule or block it",
            boost.factor
        );
        found.push((".factor", what));
    }
    if let (Some(from), Some(until)) = (boost.from, boost.until)
        && from >= until
    {
        found.push((".until", "must be after from".to_owned()));
    }
    found
}

fn of_pin(pin: &Pin) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if pin.pu.trim().is_empty() {
        found.push((".pu", empty("a PU id")));
    }
    match (pin.position, pin.top) {
        (Some(_), Some(_)) => {
            let what = "has both a position and a top; give one of them";
            found.push(("", what.to_owned()));
        }
        (None, None) => {
            let what = "has no place; give a position, or a top: among the first so many";
            found.push(("", what.to_owned()));
        }
        (Some(0), None) => found.push((".position", "must be at least 1".to_owned())),
        (None, Some(0)) => found.push((".top", "must be at least 1".to_owned())),
        (Some(_), None) | (None, Some(_)) => {}
    }
    found
}

fn empty(what: &str) -> String {
    format!("is empty; give {what}")
}
