//! Checks `[text]`: its files, and whether matcher and need terms are of this catalogue.

use super::Item;
use crate::config::{Config, text_matcher, text_needs};
use crate::members::generate::KNOWN_MIN;
use nearshore_core::names::matcher::Model;
use nearshore_core::shop::catalogue::Catalogue;

/// Most need terms that are shown one by one.
const TERMS_MAX: usize = 10;

/// Checks the files. What cannot be read was refused before.
pub(super) fn files(config: &Config) -> Vec<Item> {
    if config.text.matcher.is_empty() {
        return Vec::new();
    }
    let matcher = match text_matcher(config) {
        Ok(model) => matcher(&model),
        Err(what) => Item::fail("text.matcher", what),
    };
    let needs = match text_needs(config) {
        Ok(needs) => Item::ok("text.terms", format!("{} need terms", needs.len())),
        Err(what) => Item::fail("text.terms", what),
    };
    vec![matcher, needs]
}

fn matcher(model: &Model) -> Item {
    if model.theta > 1.0 {
        let found = format!("no theta reaches a precision of {}", model.precision);
        let advice = "nothing is matched; fit it again with more labels, or state less";
        return Item::warn("text.matcher", found).advise(advice);
    }
    let (theta, precision) = (model.theta, model.precision);
    let found = format!("theta {theta:.3} for a precision of {precision}");
    Item::ok("text.matcher", found)
}

/// Checks the files against a catalogue.
pub(super) fn of_catalogue(config: &Config, catalogue: &Catalogue) -> Vec<Item> {
    if config.text.matcher.is_empty() || catalogue.pus().is_empty() {
        return Vec::new();
    }
    let mut items = Vec::new();
    if let Ok(model) = text_matcher(config) {
        items.push(known(&model, catalogue));
    }
    let unmatched = text_needs(config).map(|needs| needs.unmatched(catalogue));
    let unmatched = unmatched.unwrap_or_default();
    let more = unmatched.len().saturating_sub(TERMS_MAX);
    items.extend(unmatched.into_iter().take(TERMS_MAX).map(|(term, what)| {
        let advice = "correct the line of text.terms, or take it out";
        Item::warn(format!("need term {term}"), what).advise(advice)
    }));
    if more > 0 {
        let found = format!("{more} further products and categories are not in the catalogue");
        items.push(Item::warn("text.terms", found));
    }
    items
}

fn known(model: &Model, catalogue: &Catalogue) -> Item {
    let item = "text.matcher of this catalogue";
    let known = model.known(catalogue.pus().iter().map(|pu| &*pu.name));
    let advice =
        "fit it for this catalogue: `nearshore match --catalog FILE --labels FILE --fit FILE`";
    match known {
        None => {
            Item::warn(item, "the file does not say which names it was fitted for").advise(advice)
        }
        Some(known) if known < KNOWN_MIN => {
            let found = format!(
                "the catalogue has {:.0} % of the names that it was fitted for; no text is read",
                known * 100.0
            );
            Item::fail(item, found).advise(advice)
        }
        Some(known) => Item::ok(
            item,
            format!("{:.0} % of its names are sold", known * 100.0),
        ),
    }
}
