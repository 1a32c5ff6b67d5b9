//! What the texts of users mean: clauses with their slots, each matched with a product or a need term, or with none.
//!
//! Decides what a text means by the fitted matcher alone: nothing below its theta is meant. Invariant: a reading is a
//! function of the text, the matcher's model, the names of the catalogue and the table of need terms; nothing of who
//! typed it, of when, or of what else was read is in it. A text is read to at most its first kilobyte. It does not know
//! lists, rules, nor what becomes of what is meant.

mod needs;
mod settings;
mod shared;
mod slots;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::names::matcher::{Form, Matcher, Memory, Model};

pub use needs::{NeedError, NeedProducts, NeedTable};
pub use settings::TextSettings;
pub use shared::SharedReadings;
use slots::{CLAUSES_MAX, clauses};
pub use slots::{Slots, Subject};

/// What is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// A name of the catalogue: the products that have it, ascending.
    Name(Arc<[u32]>),
    /// A need term, by its place in the table.
    Need(u32),
}

/// A part of a text: what is said of what.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Negation, subject and duration.
    pub slots: Slots,
    /// What is meant, with its probability; `None` if nothing is likely enough.
    pub meant: Option<(Meaning, f64)>,
}

/// What a text says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Its parts, in their order.
    pub said: Vec<Said>,
}

/// Reads texts by the names of one catalogue.
pub struct Reader {
    matcher: Matcher,
    model: Arc<Model>,
    /// What the products of the matcher mean.
    meanings: Vec<Meaning>,
    /// Words of all names and need terms: a text that is one of these has no slots ("no salt crackers").
    exact: BTreeSet<Vec<String>>,
}

impl Reader {
    /// A reader of the names of products, in the order of their indices, and of need terms. A name that is also said
    /// for a need term means the term.
    pub fn new(names: &[String], model: Arc<Model>, needs: &NeedTable) -> Self {
        let mut surfaces: Vec<(u32, &str)> = Vec::new();
        let mut meanings: Vec<Meaning> = Vec::new();
        let mut exact = BTreeSet::new();
        for (need, text) in needs.surfaces() {
            if need as usize == meanings.len() {
                meanings.push(Meaning::Need(need));
            }
            exact.insert(Form::of(text).words);
            surfaces.push((need, text));
        }
        let mut products: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (pu, name) in (0..).zip(names) {
            products.entry(name).or_default().push(pu);
        }
        for (name, pus) in products {
            if exact.contains(&Form::of(name).words) {
                continue;
            }
            surfaces.push((meanings.len() as u32, name));
            meanings.push(Meaning::Name(pus.into()));
        }
        exact.extend(names.iter().map(|name| Form::of(name).words));
        Self {
            matcher: Matcher::new(surfaces),
            model,
            meanings,
            exact,
        }
    }

    /// Reads a text.
    pub fn read(&self, text: &str, memory: &mut Memory) -> Reading {
        let form = Form::of(text);
        if form.words.is_empty() {
            return Reading::default();
        }
        if self.exact.contains(&form.words) {
            let meant = self.meaning(text, memory);
            let slots = Slots::default();
            return Reading {
                said: vec![Said { slots, meant }],
            };
        }
        let mut said: Vec<Said> = Vec::new();
        let clauses = clauses(text);
        for clause in &clauses {
            let slots = clause.slots;
            let meant = self.meaning(&clause.core, memory);
            let meant = meant.or_else(|| self.meaning(&clause.whole, memory));
            if meant.is_some() {
                said.push(Said { slots, meant });
                continue;
            }
            let parts = joined(&clause.core);
            let before = said.len();
            for part in parts {
                let meant = self.meaning(part, memory);
                let found = meant.is_some();
                said.extend(found.then_some(Said { slots, meant }));
            }
            if said.len() == before {
                let meant = None;
                said.push(Said { slots, meant });
            }
        }
        // A comma may be a part of a name.
        let is_plain = clauses.iter().all(|clause| !clause.slots.negated);
        if clauses.len() > 1 && is_plain && said.iter().all(|said| said.meant.is_none()) {
            let meant = self.meaning(text, memory);
            if meant.is_some()
                && let Some(first) = said.first_mut()
            {
                first.meant = meant;
                said.truncate(1);
            }
        }
        said.truncate(CLAUSES_MAX);
        Reading { said }
    }

    /// What a part of a text means, if it is likely enough.
    fn meaning(&self, text: &str, memory: &mut Memory) -> Option<(Meaning, f64)> {
        if text.is_empty() {
            return None;
        }
        let answer = self.matcher.answer(&self.model, (text, None), memory);
        let (place, probability) = self.model.accepts(&answer)?;
        let meaning = self.meanings.get(place as usize)?;
        Some((meaning.clone(), probability))
    }
}

/// The parts that are joined by words; none if there is one alone.
fn joined(core: &str) -> Vec<&str> {
    const JOINTS: [&str; 12] = [
        " and ", " or ", " nor ", " with ", " plus ", " & ", "、", "和", "还有", "或者", "或", "跟",
    ];
    let mut parts = vec![core];
    for joint in JOINTS {
        parts = parts.iter().flat_map(|part| part.split(joint)).collect();
    }
    parts.retain(|part| !part.trim().is_empty());
    match parts.len() {
        0 | 1 => Vec::new(),
        _ => parts,
    }
}
