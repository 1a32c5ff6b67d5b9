//! What the texts of a user mean for a list: products of interest, and what the audit says of each text.
//!
//! Decides which texts count: searches of the window, and the profile's fields that configuration names as free text.
//! Invariant: a product that a text denies is no interest by that text nor by an older one about the same subject; what
//! is said of another person may be an interest, and is no fact about the user; no text permits or forbids a product.
//! It does not know how a text is read ([`crate::names::meaning`]), nor what an interest is worth.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::list::document::{ClauseAudit, TextsAudit, four_digits};
use crate::names::meaning::{
    Meaning, NeedProducts, NeedTable, Reading, Said, Subject, TextSettings,
};
use crate::shop::catalogue::Catalogue;
use crate::shop::rules::texts_at;
use crate::user::event::{Item, Kind};
use crate::user::record::Timestamp;
use crate::user::state::UserState;

/// A need term of more products says too little of what the user likes.
const NARROW: usize = 3;

/// Makes or looks up the reading of a user's text.
pub type ReadText<'a> = dyn Fn(&str, &str) -> Arc<Reading> + Send + Sync + 'a;

/// How texts are read for the lists of one catalogue.
#[derive(Clone, Copy)]
pub struct TextContext<'a> {
    /// Settings.
    pub settings: &'a TextSettings,
    /// The need terms.
    pub needs: &'a NeedTable,
    /// Their products in the catalogue.
    pub products: &'a NeedProducts,
    /// Hash of what decides a reading beside the catalogue.
    pub version: &'a str,
    /// The reading of a user's text: user, then text.
    pub read: &'a ReadText<'a>,
}

/// How many clauses were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextCounts {
    /// Clauses that mean something and are not negated.
    pub matched: usize,
    /// Clauses that mean nothing that is likely enough.
    pub unmatched: usize,
    /// Clauses that are negated, whether they mean something or not.
    pub negated: usize,
}

/// What a user's texts mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeantTexts {
    /// What the audit says; `None` if the user has no texts.
    pub(crate) audit: Option<TextsAudit>,
    /// Products of interest with how much: 1 is a text of now that certainly means it. Ascending.
    pub interests: Vec<(u32, f32)>,
    /// Products meant by texts about the user, or about nobody in particular, with the time.
    pub own: Vec<(u32, Timestamp)>,
    /// Clauses.
    pub counts: TextCounts,
}

/// A text with its time; a profile's text does not age.
struct Text {
    time: Timestamp,
    ages: bool,
    source: String,
    text: String,
}

/// What the texts of a user mean for a list of the time `at`.
pub fn meant(
    (user, state): (&str, &UserState),
    (catalogue, at): (&Catalogue, Timestamp),
    context: &TextContext<'_>,
) -> MeantTexts {
    let mut meant = MeantTexts::default();
    let mut interests: BTreeMap<u32, f32> = BTreeMap::new();
    let mut denied: BTreeSet<(u32, bool)> = BTreeSet::new();
    let mut audit = TextsAudit {
        reader: context.version.to_owned(),
        clauses: Vec::new(),
    };
    for text in texts(state, context.settings) {
        let reading = (context.read)(user, &text.text);
        let named = |said: &Said| -> Vec<u32> {
            match &said.meant {
                Some((Meaning::Name(pus), _)) => pus.to_vec(),
                Some((Meaning::Need(need), _)) => context.products.of(*need).to_vec(),
                None => Vec::new(),
            }
        };
        for said in reading.said.iter().filter(|said| said.slots.negated) {
            let other = said.slots.subject == Subject::Other;
            denied.extend(named(said).into_iter().map(|pu| (pu, other)));
        }
        for said in &reading.said {
            count(&mut meant.counts, said);
            audit
                .clauses
                .push(clause(said, &text.source, (catalogue, context)));
            let Some((_, probability)) = said.meant.as_ref().filter(|_| !said.slots.negated) else {
                continue;
            };
            let other = said.slots.subject == Subject::Other;
            let pus = named(said);
            let narrow = pus.len() <= NARROW;
            for pu in pus.into_iter().filter(|pu| !denied.contains(&(*pu, other))) {
                let share = match text.ages {
                    true => halved(at, text.time, context.settings),
                    false => 1.0,
                };
                let value = (probability * share) as f32;
                let known = interests.entry(pu).or_default();
                *known = known.max(value);
                if narrow && !other {
                    meant.own.push((pu, text.time));
                }
            }
        }
    }
    meant.interests = interests
        .into_iter()
        .filter(|(_, value)| *value > 0.0)
        .collect();
    meant.audit = Some(audit).filter(|audit| !audit.clauses.is_empty());
    meant
}

/// The user's texts, the newest first.
fn texts(state: &UserState, settings: &TextSettings) -> Vec<Text> {
    let mut texts = Vec::new();
    if let Some(profiled) = &state.profile {
        for path in &settings.profile_fields {
            let of_field = texts_at(&profiled.profile, path).into_iter();
            texts.extend(of_field.map(|text| Text {
                time: profiled.time,
                ages: false,
                source: format!("profile:{path}"),
                text,
            }));
        }
    }
    let searches = state.window.iter().rev();
    texts.extend(
        searches.filter_map(|event| match (&event.kind, &event.item) {
            (Kind::Search, Item::Query(query)) => Some(Text {
                time: event.time,
                ages: true,
                source: event.position.to_string(),
                text: query.clone(),
            }),
            _ => None,
        }),
    );
    // Stable: the order of positions decides between texts of one time.
    texts.sort_by_key(|text| std::cmp::Reverse(text.time));
    texts
}

/// How much of an interest is left at a time.
fn halved(at: Timestamp, time: Timestamp, settings: &TextSettings) -> f64 {
    let half_life = settings.half_life.as_secs_f64();
    if half_life <= 0.0 {
        return 1.0;
    }
    libm::exp2(-at.since(time).as_secs_f64() / half_life)
}

fn count(counts: &mut TextCounts, said: &Said) {
    match (said.slots.negated, &said.meant) {
        (true, _) => counts.negated += 1,
        (false, Some(_)) => counts.matched += 1,
        (false, None) => counts.unmatched += 1,
    }
}

/// What the audit says of a clause.
fn clause(
    said: &Said,
    source: &str,
    (catalogue, context): (&Catalogue, &TextContext<'_>),
) -> ClauseAudit {
    let id = |pu: &u32| Some(catalogue.pus().get(*pu as usize)?.id.to_string());
    let (need, pus) = match &said.meant {
        Some((Meaning::Need(need), _)) => (Some(context.needs.name(*need).to_owned()), Vec::new()),
        Some((Meaning::Name(pus), _)) => (None, pus.iter().filter_map(id).collect()),
        None => (None, Vec::new()),
    };
    let probability = said.meant.as_ref().map_or(0.0, |(_, p)| four_digits(*p));
    ClauseAudit {
        source: source.to_owned(),
        negated: said.slots.negated,
        subject: said.slots.subject,
        days: said.slots.days,
        need,
        pus,
        probability,
    }
}

#[cfg(test)]
#[path = "meant_tests.rs"]
mod tests;
