//! Which entries of a written list are products: the matcher with theta, then what the user may be offered.
//!
//! Invariant: an accepted product is permitted, was accepted by the matcher, and is accepted once. Equal lists and
//! matchers give equal answers. It does not know scores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fixedbitset::FixedBitSet;

use super::listed::{Entry, Listed};
use crate::names::matcher::{Matcher, Memory, Model};
use crate::names::written::{Accepted, Reject, Rejected, Written};

/// The names of a catalogue with the matcher that knows them.
pub struct Words {
    matcher: Matcher,
    model: Arc<Model>,
    /// Products of each name, because several may have the same one.
    products: Vec<Vec<u32>>,
    /// Number of products.
    len: usize,
}

/// Why an entry has no product, and the likeliest one with its probability.
type Judged = (Reject, Option<(u32, f64)>);

/// What an entry means: the products of the likeliest name, and its probability.
struct Meaning<'a> {
    products: &'a [u32],
    probability: f64,
    is_accepted: bool,
}

impl Words {
    /// The names of products in their order, matched by a fitted model.
    pub fn new(names: &[String], model: Arc<Model>) -> Self {
        let mut places: BTreeMap<&str, u32> = BTreeMap::new();
        let mut products: Vec<Vec<u32>> = Vec::new();
        for (pu, name) in names.iter().enumerate() {
            let place = *places.entry(name).or_insert(products.len() as u32);
            match products.get_mut(place as usize) {
                Some(known) => known.push(pu as u32),
                None => products.push(vec![pu as u32]),
            }
        }
        let surfaces = places.iter().map(|(name, place)| (*place, *name));
        Self {
            matcher: Matcher::new(surfaces),
            model,
            products,
            len: names.len(),
        }
    }

    /// Number of products.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no product.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Accepts entries of a written list; `None` permits all products.
    pub fn accept(
        &self,
        listed: &Listed,
        permitted: Option<&FixedBitSet>,
        memory: &mut Memory,
    ) -> Written {
        let mut written = Written {
            chatter: listed.chatter,
            is_cut: listed.is_cut,
            ..Written::default()
        };
        let (mut texts, mut names) = (BTreeSet::new(), BTreeSet::new());
        for entry in &listed.entries {
            let judged = if !texts.insert(entry.text.to_lowercase()) {
                Err((Reject::Repeat, None))
            } else {
                let one = self.judge(entry, permitted, memory);
                one.and_then(|(pu, probability)| match names.insert(pu) {
                    true => Ok((pu, probability)),
                    false => Err((Reject::Repeat, Some((pu, probability)))),
                })
            };
            let text = entry.text.clone();
            match judged {
                Ok((pu, probability)) => written.accepted.push(Accepted {
                    text,
                    pu,
                    probability,
                }),
                Err((why, nearest)) => written.rejected.push(Rejected { text, why, nearest }),
            }
        }
        written
    }

    /// The product of an entry with its probability, or why it has none.
    fn judge(
        &self,
        entry: &Entry,
        permitted: Option<&FixedBitSet>,
        memory: &mut Memory,
    ) -> Result<(u32, f64), Judged> {
        if !entry.text.chars().any(char::is_alphanumeric) {
            return Err((Reject::Empty, None));
        }
        if entry.too_long {
            return Err((Reject::TooLong, None));
        }
        let whole = self.meaning(&entry.text, memory);
        let meaning = match (&entry.head, whole) {
            // The rest may be an explanation: without it more may agree.
            (Some(head), whole) if !whole.as_ref().is_some_and(|it| it.is_accepted) => {
                let of_head = self.meaning(head, memory);
                of_head.filter(|it| it.is_accepted).or(whole)
            }
            (_, whole) => whole,
        };
        let Some(meaning) = meaning else {
            return Err((Reject::Theta, None));
        };
        let first = meaning.products.first().copied().unwrap_or_default();
        let nearest = Some((first, meaning.probability));
        if !meaning.is_accepted {
            return Err((Reject::Theta, nearest));
        }
        let may = |pu: &&u32| permitted.is_none_or(|permitted| permitted.contains(**pu as usize));
        let offered = meaning.products.iter().find(may);
        let offered = offered.ok_or((Reject::NotPermitted, nearest))?;
        Ok((*offered, meaning.probability))
    }

    fn meaning(&self, text: &str, memory: &mut Memory) -> Option<Meaning<'_>> {
        let answer = self.matcher.answer(&self.model, (text, None), memory);
        let (likeliest, _) = answer.ranked.first()?;
        Some(Meaning {
            products: self.products.get(*likeliest as usize)?,
            probability: answer.probability,
            is_accepted: self.model.accepts(&answer).is_some(),
        })
    }
}
