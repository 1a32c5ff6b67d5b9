//! What a text says about what it names: clauses with negation, subject and duration.
//!
//! Decides which words name something, and which negate it or say about which person and for how long: "no cough", "for
//! my mother", "for three weeks". Invariant: any text has clauses, at most [`CLAUSES_MAX`] of at most its first
//! [`BYTES_MAX`] bytes; equal texts have equal clauses; what stands behind a negation is never in a clause that is not
//! negated. English and Chinese are read, and any other language as if nothing were said of a name. It does not know
//! products.

mod chinese;
mod english;

#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::normalise;

/// The most bytes of a text that are read, as many as the matcher reads.
const BYTES_MAX: usize = 1024;

/// The most clauses of a text.
pub(super) const CLAUSES_MAX: usize = 12;

/// The person that a text is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// The text does not say it.
    #[default]
    Unsaid,
    /// The user.
    User,
    /// Another person, or an animal.
    Other,
}

/// What is said of a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Whether it is said not to be so, or not to be wanted.
    pub negated: bool,
    /// Of whom.
    pub subject: Subject,
    /// For how many days; `None` if nothing is said.
    pub days: Option<u32>,
}

/// A part of a text that names one thing or several, with what is said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clause {
    /// The words that name something; never empty.
    pub(super) core: String,
    /// The same with the words of subject and duration, which may be a part of a name ("syrup for children"); empty if
    /// they are the same or the clause is negated.
    pub(super) whole: String,
    /// What is said of it.
    pub(super) slots: Slots,
}

/// A clause while it is read.
#[derive(Clone, Debug, Default, PartialEq)]
struct Part {
    core: String,
    whole: String,
    negated: bool,
}

/// What one stretch between two stops says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Stretch {
    parts: Vec<Part>,
    subject: Subject,
    /// Whether the subject also holds for what stands before ("cough, fever for my mother").
    subject_of_all: bool,
    days: Option<u32>,
    /// Whether it ends inside of a negation, which an enumeration goes on with.
    is_open: bool,
    /// Whether it enumerates with "or".
    is_or: bool,
}

/// The clauses of a text.
pub(super) fn clauses(text: &str) -> Vec<Clause> {
    let text = normalise(cut(text)).to_lowercase();
    let mut stretches: Vec<(Stretch, bool)> = Vec::new();
    for (stretch, is_listed) in stretches_of(&text) {
        let read = match stretch.chars().any(is_han) {
            true => chinese::read(stretch),
            false => english::read(stretch),
        };
        stretches.push((read, is_listed));
    }
    spread_negation(&mut stretches);
    let subjects = subjects(&stretches);
    let mut clauses = Vec::new();
    for ((stretch, _), subject) in stretches.iter().zip(subjects) {
        for part in &stretch.parts {
            clauses.push(Clause {
                core: part.core.clone(),
                whole: part.whole.clone(),
                slots: Slots {
                    negated: part.negated,
                    subject,
                    days: stretch.days,
                },
            });
        }
    }
    spread_days(&mut clauses, &stretches);
    clauses.truncate(CLAUSES_MAX);
    clauses
}

/// A duration that stands alone ("cough, for three weeks") is of what stands before it.
fn spread_days(clauses: &mut [Clause], stretches: &[(Stretch, bool)]) {
    let mut before = 0;
    for (stretch, _) in stretches {
        let next = before + stretch.parts.len();
        if stretch.parts.is_empty()
            && let (Some(days), Some(last)) = (stretch.days, before.checked_sub(1))
            && let Some(clause) = clauses.get_mut(last)
        {
            clause.slots.days = clause.slots.days.or(Some(days));
        }
        before = next;
    }
}

/// An enumeration behind a negation is negated up to its last "or": "no cough, fever, or chills".
fn spread_negation(stretches: &mut [(Stretch, bool)]) {
    let mut at = 0;
    while at < stretches.len() {
        if stretches[at].0.is_open {
            let listed = stretches[at + 1..].iter();
            let listed = listed.take_while(|(next, is_listed)| *is_listed && !next.is_open);
            let last = listed
                .enumerate()
                .filter(|(_, (next, _))| next.is_or)
                .map(|(nth, _)| nth)
                .last();
            for (next, _) in stretches[at + 1..]
                .iter_mut()
                .take(last.map_or(0, |last| last + 1))
            {
                for part in &mut next.parts {
                    part.negated = true;
                    part.whole.clear();
                }
            }
        }
        at += 1;
    }
}

/// The subject of each stretch: its own, else that of the one before, else that which a later one says of all.
fn subjects(stretches: &[(Stretch, bool)]) -> Vec<Subject> {
    let mut subjects: Vec<Subject> = Vec::with_capacity(stretches.len());
    for (stretch, _) in stretches {
        let before = subjects.last().copied().unwrap_or_default();
        subjects.push(match stretch.subject {
            Subject::Unsaid => before,
            said => said,
        });
        if stretch.subject_of_all {
            for subject in &mut subjects {
                if *subject == Subject::Unsaid {
                    *subject = stretch.subject;
                }
            }
        }
    }
    subjects
}

/// The stretches between stops, each with whether the stop before it is one of an enumeration.
fn stretches_of(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut listed = false;
    let pieces = text.split_inclusive(is_stop);
    pieces.map(move |piece| {
        let stop = piece.chars().next_back().filter(|c| is_stop(*c));
        let before = std::mem::replace(&mut listed, matches!(stop, Some(',')));
        (piece.trim_end_matches(is_stop), before)
    })
}

fn is_stop(c: char) -> bool {
    matches!(
        c,
        ',' | ';'
            | '.'
            | '!'
            | '?'
            | ':'
            | '('
            | ')'
            | '，'
            | '。'
            | '；'
            | '！'
            | '？'
            | '：'
            | '\n'
    )
}

/// The first [`BYTES_MAX`] bytes, or a few less where a character would be cut.
fn cut(text: &str) -> &str {
    let mut end = BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}
