//! The texts of a user, and the vectors of a catalogue's names beside which they are set.
//!
//! Decides which texts speak of a user: the names of the newest [`NAMES_MAX`] products that the user viewed, clicked,
//! put into the cart or bought, each once, and the profile, whose values count together as much as one name. Invariant:
//! the order in which a state got its events changes no value. It does not know which encoder made the vectors, nor
//! when. Of searches only the products are read that they mean, if texts are matched: nobody else may have written the
//! same words, so no artefact could have their vectors.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::OwnProduct;
use crate::list::prompt::words;
use crate::shop::catalogue::Catalogue;
use crate::text::vectors::{Similarities, Vector, Vectors};
use crate::user::event::{Kind, Profile};
use crate::user::record::Timestamp;
use crate::user::state::UserState;

/// The most names of a user's texts: what came before says little of what is liked now, and each costs time.
const NAMES_MAX: usize = 32;

/// A text that speaks of a user.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnText {
    /// The text.
    pub text: String,
    /// The product whose name it is; none for a value of the profile.
    pub pu: Option<u32>,
    /// Its share, relative to the user's other texts.
    pub weight: f32,
}

/// The texts of a user, by product and by profile field. `own` is what [`own_products`](super::own_products) gives, and
/// `meant` what the user's texts mean for themselves: it counts as viewed then.
pub fn own_texts(
    state: &UserState,
    (own, meant): (&[OwnProduct], &[(u32, Timestamp)]),
    catalogue: &Catalogue,
) -> Vec<OwnText> {
    let mut newest: BTreeMap<u32, Timestamp> = own.iter().map(|own| (own.pu, own.last)).collect();
    // An impression shows what was offered, not what the user likes.
    let liked = state
        .window
        .iter()
        .filter(|event| event.kind != Kind::Impression);
    for event in liked {
        if let Some(pu) = catalogue.pu_of_item(&event.item) {
            let last = newest.entry(pu.0).or_insert(event.time);
            *last = (*last).max(event.time);
        }
    }
    for (pu, time) in meant {
        let last = newest.entry(*pu).or_insert(*time);
        *last = (*last).max(*time);
    }
    let mut newest: Vec<(Reverse<Timestamp>, u32)> = newest
        .into_iter()
        .map(|(pu, last)| (Reverse(last), pu))
        .collect();
    newest.sort_unstable();
    newest.truncate(NAMES_MAX);
    let names = newest.into_iter().filter_map(|(_, pu)| {
        let text = catalogue.pus().get(pu as usize)?.name.clone();
        Some(OwnText {
            text,
            pu: Some(pu),
            weight: 1.0,
        })
    });
    let profile = state.profile.as_ref().map(|profiled| &profiled.profile);
    let values = profile.map(profile_texts).unwrap_or_default();
    let weight = 1.0 / values.len().max(1) as f32;
    let values = values.into_iter().map(|text| OwnText {
        text,
        pu: None,
        weight,
    });
    names.chain(values).collect()
}

/// The texts of a profile: each value in words, behind the name of its field, which "yes" and "2" need to say anything.
pub fn profile_texts(profile: &Profile) -> Vec<String> {
    let values = words(profile).into_iter();
    values
        .map(|(field, value)| format!("{field} {value}"))
        .collect()
}

/// Vectors of texts, with those of a catalogue's names in one table.
#[derive(Clone, Debug)]
pub struct Texts {
    /// Where vectors are looked up, in this order; all are of one encoder.
    known: Vec<Arc<Vectors>>,
    names: Similarities,
    /// `[names]`: how near a name is to all names, less the mean of that; 0 without a vector.
    typical: Arc<[f32]>,
    /// Number of names without a vector.
    lacking: usize,
}

impl Texts {
    /// Puts the names of a catalogue into a table; `None` without any vectors.
    pub fn bind(known: Vec<Arc<Vectors>>, catalogue: &Catalogue) -> Option<Self> {
        let width = known.first()?.width();
        let found: Vec<Option<&Vector>> = catalogue
            .pus()
            .iter()
            .map(|pu| find(&known, &pu.name))
            .collect();
        let names = Similarities::new(width, found.iter().copied());
        let has = found.iter().map(Option::is_some);
        let typical = less_mean(names.centre(), has.clone());
        let lacking = has.filter(|has| !has).count();
        Some(Self {
            typical,
            lacking,
            names,
            known,
        })
    }

    /// Replaces the vectors that are looked up last. The names stay as they are.
    pub fn renew_last(&mut self, vectors: Arc<Vectors>) {
        if let Some(last) = self.known.last_mut() {
            *last = vectors;
        }
    }

    /// The vectors that are looked up first.
    pub fn vectors(&self) -> &Vectors {
        &self.known[0]
    }

    /// Number of names without a vector: their value is 0 in both terms.
    pub fn lacking(&self) -> usize {
        self.lacking
    }

    /// Those of a user's texts that have no vector.
    pub(crate) fn without<'a>(&self, own: &'a [OwnText]) -> impl Iterator<Item = &'a str> {
        let texts = own.iter().map(|own| own.text.as_str());
        texts.filter(|text| find(&self.known, text).is_none())
    }

    /// How near each name is to all names, less the mean of that.
    pub fn typical(&self) -> Arc<[f32]> {
        Arc::clone(&self.typical)
    }

    /// Similarity of each name to a user's texts; `None` if none of them has a vector.
    ///
    /// A name of the user's own is compared with the user's other texts: that it is like itself says nothing, and
    /// whether it is bought again is said by `repeat`.
    pub fn similar(&self, own: &[OwnText]) -> Option<Arc<[f32]>> {
        let found = own
            .iter()
            .filter_map(|own| Some((own, find(&self.known, &own.text)?)));
        let found: Vec<(&OwnText, &Vector)> = found.collect();
        if found.is_empty() {
            return None;
        }
        let texts = found
            .iter()
            .map(|(own, vector)| (Some(*vector), own.weight));
        let mut values = self.names.to_user(texts);
        let all: f32 = found.iter().map(|(own, _)| own.weight).sum();
        for (own, _) in found {
            let place = own.pu.map_or(usize::MAX, |pu| pu as usize);
            if let (Some(value), Some(centre)) =
                (values.get_mut(place), self.names.centre().get(place))
            {
                let others = all - own.weight;
                let with_itself = (*value + centre) * all;
                *value = match others > 0.0 {
                    true => (with_itself - own.weight) / others - centre,
                    false => 0.0,
                };
            }
        }
        Some(values.into())
    }
}

fn find<'a>(known: &'a [Arc<Vectors>], text: &str) -> Option<&'a Vector> {
    known.iter().find_map(|vectors| vectors.get(text))
}

/// Numbers less the mean of those that count; 0 where they do not. The same for all names changes no order, so that a
/// name without a vector is neither better nor worse than the mean.
fn less_mean(numbers: &[f32], counts: impl Iterator<Item = bool> + Clone) -> Arc<[f32]> {
    let counted = numbers.iter().zip(counts.clone()).filter(|(_, is)| *is);
    let (sum, n) = counted.fold((0f64, 0usize), |(sum, n), (x, _)| {
        (sum + f64::from(*x), n + 1)
    });
    let mean = (sum / n.max(1) as f64) as f32;
    let of = numbers.iter().zip(counts);
    of.map(|(x, is)| if is { x - mean } else { 0.0 }).collect()
}

#[cfg(test)]
#[path = "texts_tests.rs"]
mod tests;
