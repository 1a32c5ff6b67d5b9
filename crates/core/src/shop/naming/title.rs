//! What of a SKU's title names the product: sizes, brands and labels of departments are cut off.
//!
//! Invariant: something is left of any title with a letter or a digit, and what is cut depends on the row and the
//! [`Labels`] alone. It does not know other titles: those have made the labels.

use std::collections::BTreeSet;

use crate::names::matcher::Form;
use crate::text::normalise;

/// A SKU that has no product yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Untitled {
    /// Its id.
    pub sku: String,
    /// Its title.
    pub title: String,
    /// Its category.
    pub category: Option<String>,
    /// Its brand, from an attribute of this name.
    pub brand: Option<String>,
    /// Texts of its other attributes.
    pub attributes: Vec<String>,
}

/// The most bytes of a product's name.
pub(super) const NAME_MAX: usize = 512;

/// What is cut off, learned from all titles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels {
    /// Words that begin titles of many products, in their form.
    pub brands: BTreeSet<String>,
    /// What is in brackets or behind commas of many products, in its form.
    pub tails: BTreeSet<String>,
}

/// Units of sizes and packs, without a full stop, in lower case and in the singular.
const UNITS: &[&str] = &[
    "oz", "ounce", "floz", "fl", "lb", "pound", "g", "gr", "gram", "kg", "kilo", "mg", "mcg", "ml",
    "cl", "dl", "l", "lt", "ltr", "liter", "litre", "gal", "gallon", "qt", "quart", "pt", "pint",
    "ct", "count", "pk", "pack", "pkg", "pc", "piece", "dz", "dozen", "ea", "each", "bag", "box",
    "roll", "sheet", "tablet", "capsule", "cm", "mm", "m", "inch", "ft", "sz", "lbs", "ozs", "pks",
    "pcs",
];

impl Labels {
    /// The part of a title that names the product.
    pub(crate) fn core(&self, row: &Untitled) -> String {
        let title = normalise(&row.title);
        let own = self.own(row);
        let title = without_brackets(&title, |part| self.is_label(part, &own));
        let title = self.without_tails(&title, &own);
        let title = self.without_brand(title, row.brand.as_deref());
        let mut end = NAME_MAX.min(title.len());
        while !title.is_char_boundary(end) {
            end -= 1;
        }
        normalise(&title[..end]).into_owned()
    }

    /// Forms of the row's own category, brand and attributes.
    fn own(&self, row: &Untitled) -> BTreeSet<String> {
        let texts = row.category.iter().chain(&row.brand).chain(&row.attributes);
        texts.map(|text| line(text)).collect()
    }

    /// Whether a part says no more than what the row says elsewhere, or what many products have.
    fn is_label(&self, part: &str, own: &BTreeSet<String>) -> bool {
        let form = line(part);
        let bare = form.strip_suffix(" brand").unwrap_or(&form);
        form.is_empty() || own.contains(bare) || self.tails.contains(&form) || is_size(part)
    }

    /// Cuts labels and sizes from the end, as long as something is left.
    fn without_tails(&self, title: &str, own: &BTreeSet<String>) -> String {
        let mut left = title.trim_end_matches(PUNCTUATION);
        loop {
            let shorter = match left.rsplit_once([',', ';', '|']) {
                Some((before, part)) if self.is_label(part, own) => Some(before),
                _ => before_size(left),
            };
            match shorter.map(|shorter| shorter.trim_end_matches(PUNCTUATION)) {
                Some(shorter) if !line(shorter).is_empty() => left = shorter,
                _ => return left.trim_start_matches(PUNCTUATION).to_owned(),
            }
        }
    }

    /// Cuts the row's brand, or one that was learned, from the beginning.
    fn without_brand(&self, title: String, brand: Option<&str>) -> String {
        let brand = brand.map(line).filter(|brand| !brand.is_empty());
        for words in [3, 2, 1] {
            let Some((first, rest)) = split_words(&title, words) else {
                continue;
            };
            let form = line(first);
            if (brand.as_ref() == Some(&form) || self.brands.contains(&form))
                && !line(rest).is_empty()
            {
                return rest.trim_start_matches(PUNCTUATION).to_owned();
            }
        }
        title
    }
}

/// What a cut leaves hanging.
const PUNCTUATION: [char; 9] = [' ', ',', ';', ':', '-', '/', '|', '.', '&'];

/// The words of a text in their form.
pub(super) fn line(text: &str) -> String {
    Form::of(text).words.join(" ")
}

/// The first so many words of a text and the rest, where there is a rest.
pub(super) fn split_words(text: &str, words: usize) -> Option<(&str, &str)> {
    let (at, _) = text.match_indices(' ').nth(words.checked_sub(1)?)?;
    Some((&text[..at], &text[at + 1..]))
}

/// The parts of a text in its brackets, split at commas and semicolons.
pub(super) fn bracket_parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((_, inside, after)) = next_bracket(rest) {
        parts.extend(inside.split([',', ';']).map(str::trim));
        rest = after;
    }
    parts
}

/// What is before, in and after the first brackets.
fn next_bracket(text: &str) -> Option<(&str, &str, &str)> {
    let open = text.find(['(', '['])?;
    let closing = if text[open..].starts_with('(') {
        ')'
    } else {
        ']'
    };
    let close = open + text[open..].find(closing)?;
    Some((&text[..open], &text[open + 1..close], &text[close + 1..]))
}

/// The text without the parts in brackets that are labels.
pub(super) fn without_brackets(text: &str, is_label: impl Fn(&str) -> bool) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, inside, after)) = next_bracket(rest) {
        kept.push_str(before);
        let parts = inside.split([',', ';']).map(str::trim);
        let parts: Vec<&str> = parts.filter(|part| !is_label(part)).collect();
        if !parts.is_empty() {
            kept.push('(');
            kept.push_str(&parts.join(", "));
            kept.push(')');
        }
        rest = after;
    }
    kept.push_str(rest);
    normalise(&kept).into_owned()
}

/// Whether a part is only a size or a number of pieces: `9 OZ`, `126 CT/SZ 4`, `6 x 330ml`.
pub(super) fn is_size(part: &str) -> bool {
    let form = Form::of(part);
    let is_unit = |word: &String| UNITS.contains(&word.as_str());
    let is_number = |word: &String| word.starts_with(|c: char| c.is_numeric());
    form.words.iter().any(is_number)
        && form.words.iter().any(is_unit)
        && form
            .words
            .iter()
            .all(|word| is_number(word) || is_unit(word) || word == "x")
}

/// What is before a size at the end: as many words as make one.
fn before_size(text: &str) -> Option<&str> {
    let blanks: Vec<usize> = text.match_indices(' ').map(|(at, _)| at).collect();
    // The longest size first, so that no number of it is left.
    let starts = blanks.iter().rev().take(5).rev();
    starts
        .copied()
        .find(|at| is_size(&text[at + 1..]))
        .map(|at| &text[..at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn core(title: &str) -> String {
        let labels = Labels {
            brands: ["fenbar", "dal gil"].map(str::to_owned).into(),
            tails: ["grocery", "national brand"].map(str::to_owned).into(),
        };
        labels.core(&Untitled {
            title: title.to_owned(),
            category: Some("Bag Snacks".to_owned()),
            brand: Some("Lomsel".to_owned()),
            ..Untitled::default()
        })
    }

    #[test]
    fn sizes_brands_and_labels_are_cut() {
        for (title, expected) in [
            (
                "Potato Chips, 9 OZ (Bag Snacks, Grocery; National brand)",
                "Potato Chips",
            ),
            ("Fenbar Potato Chips 9oz", "Potato Chips"),
            ("Dal Gil Potato Chips 6 x 330ml", "Potato Chips"),
            ("LOMSEL - Potato Chips (12 CT)", "Potato Chips"),
            ("Baby Diapers, 126 CT/SZ 4", "Baby Diapers"),
            ("Prep Fd: Entrees (Hot)", "Prep Fd: Entrees (Hot)"),
            ("Premium 750ML Wines", "Premium 750ML Wines"),
            ("Fenbar", "Fenbar"),
            ("9 OZ", "9 OZ"),
            ("Vitamin B 12", "Vitamin B 12"),
        ] {
            assert_eq!(core(title), expected, "{title}");
        }
    }

    proptest! {
        #[test]
        fn words_are_left_of_any_title_with_words(title in any::<String>()) {
            let left = core(&title);
            prop_assert_eq!(line(&left).is_empty(), line(&title).is_empty(), "{:?} of {:?}", left, title);
        }

        #[test]
        fn a_core_is_its_own_core_unless_more_can_be_cut(title in "[A-Za-z0-9 ,()]{0,40}") {
            let left = core(&title);
            prop_assert!(core(&left).len() <= left.len());
        }
    }
}
