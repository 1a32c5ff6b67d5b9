//! From asks to questions of the search: sets and terms by leaf instead of by PU.
//!
//! Decides what is kept from one ask to the next, for a catalogue may have a million names and users
//! differ little: the last permitted set, changed by what differs, and the masses of the last tables
//! of shared terms. Invariant: a question is the same whatever was kept. It does not know users.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use nearshore_core::names::scoring::{ScoreRequest, Term, Values};
use nearshore_core::names::search::{Prior, Question};
use nearshore_core::names::trie::{Masses, Own, Permitted, Trie};

/// Mass that stands for none: a term may discourage a name, never make its score undefined.
const MASS_MIN: f64 = 1e-30;

/// Masses kept, in leaves of all tables together: 64 MiB; at least the last table is kept.
const LEAVES_MAX: usize = 8 << 20;

/// The shared terms of an ask with their weights, mixed.
struct Table {
    /// Held, so that no other table can come to lie at its place.
    terms: Vec<(Arc<[f32]>, f32)>,
    masses: Arc<Masses>,
    /// Log of each term's sum over all names.
    totals: Vec<f64>,
}

/// Turns asks into questions about one trie.
pub(crate) struct Mixture {
    trie: Arc<Trie>,
    permitted: Option<(Arc<FixedBitSet>, Arc<Permitted>)>,
    /// Most recently used first.
    tables: Vec<Table>,
}

/// A question, and what its answer's terms are relative to.
pub(crate) struct Mixed {
    /// For the search.
    pub question: Question,
    /// Per term of the ask, the log of its sum over all names; 0 where it is no mass.
    pub totals: Vec<f64>,
}

impl Mixture {
    /// Nothing kept yet.
    pub(crate) fn new(trie: Arc<Trie>) -> Self {
        Self {
            trie,
            permitted: None,
            tables: Vec::new(),
        }
    }

    /// The trie that questions are about.
    pub(crate) fn trie(&self) -> &Arc<Trie> {
        &self.trie
    }

    /// What `ask` asks of the search.
    pub(crate) fn mix(&mut self, request: &ScoreRequest) -> Mixed {
        let permitted = request.permitted.as_ref().map(|pus| self.permitted(pus));
        let (prior, totals) = self.prior(request);
        Mixed {
            question: Question {
                permitted,
                n: request.n,
                weight: f64::from(request.weight),
                prior,
            },
            totals,
        }
    }

    fn permitted(&mut self, pus: &Arc<FixedBitSet>) -> Arc<Permitted> {
        let leaves = match self.permitted.take() {
            Some((last, leaves)) if Arc::ptr_eq(&last, pus) => leaves,
            Some((last, leaves)) if differ(&last, pus) < self.trie.leaves() / 16 => {
                let mut patched = leaves;
                Arc::make_mut(&mut patched).patch(&self.trie, &last, pus);
                patched
            }
            _ => Arc::new(Permitted::new(&self.trie, pus)),
        };
        self.permitted = Some((Arc::clone(pus), Arc::clone(&leaves)));
        leaves
    }

    fn prior(&mut self, request: &ScoreRequest) -> (Option<Prior>, Vec<f64>) {
        let trie = Arc::clone(&self.trie);
        let shared = request.terms.iter().filter_map(|term| match &term.values {
            Values::Mass(mass) => Some((Arc::clone(mass), term.weight)),
            Values::Sparse(_) | Values::Dense(_) => None,
        });
        let shared: Vec<(Arc<[f32]>, f32)> = shared.collect();
        let has_mass = shared.iter().any(|(_, weight)| *weight != 0.0);
        let table = self.table(shared);
        let mut own_totals = table.totals.iter();
        let totals = request.terms.iter().map(|term| match term.values {
            Values::Mass(_) => own_totals.next().copied().unwrap_or_default(),
            Values::Sparse(_) | Values::Dense(_) => 0.0,
        });
        let totals = totals.collect();
        let (sparse, dense) = (sparse(&request.terms), dense(&request.terms));
        if !has_mass && sparse.is_empty() && dense.is_empty() {
            return (None, totals);
        }
        let masses = if dense.is_empty() {
            Arc::clone(&table.masses)
        } else {
            let log = |pu: u32| {
                let values = dense.iter().map(|(values, weight)| {
                    f64::from(values.get(pu as usize).copied().unwrap_or_default()) * weight
                });
                values.sum()
            };
            Arc::new(table.masses.tilted(&trie, log))
        };
        let prior = Prior {
            masses,
            own: Own::new(&trie, sparse.into_iter()),
            sums: has_mass,
        };
        (Some(prior), totals)
    }

    fn table(&mut self, terms: Vec<(Arc<[f32]>, f32)>) -> &Table {
        let same = |table: &Table| {
            table.terms.len() == terms.len()
                && (table.terms.iter().zip(&terms))
                    .all(|(a, b)| Arc::ptr_eq(&a.0, &b.0) && a.1.to_bits() == b.1.to_bits())
        };
        match self.tables.iter().position(same) {
            Some(at) => self.tables[..=at].rotate_right(1),
            None => {
                let table = Table::new(&self.trie, terms);
                self.tables.insert(0, table);
                let most = LEAVES_MAX / self.trie.leaves().max(1);
                self.tables.truncate(most.clamp(1, 64));
            }
        }
        &self.tables[0]
    }
}

impl Table {
    fn new(trie: &Trie, terms: Vec<(Arc<[f32]>, f32)>) -> Self {
        let log_mass = |pu: u32| {
            let heard = terms.iter().filter(|(_, weight)| *weight != 0.0);
            heard
                .map(|(mass, weight)| f64::from(*weight) * log_of(mass, pu))
                .sum()
        };
        let total = |(mass, _): &(Arc<[f32]>, f32)| {
            let sum: f64 = mass.iter().map(|mass| f64::from(*mass)).sum();
            sum.max(MASS_MIN).ln()
        };
        Self {
            masses: Arc::new(Masses::new(trie, log_mass)),
            totals: terms.iter().map(total).collect(),
            terms,
        }
    }
}

/// What each term says of a PU, as an answer tells it; `totals` of [`Mixed`].
pub(crate) fn told(terms: &[Term], totals: &[f64], pu: u32) -> Vec<f32> {
    let value = |(term, total): (&Term, &f64)| match &term.values {
        Values::Mass(mass) => (log_of(mass, pu) - total) as f32,
        Values::Sparse(logs) => {
            let own = logs.iter().filter(|(of, _)| *of == pu);
            own.map(|(_, log)| log).sum()
        }
        Values::Dense(logs) => logs.get(pu as usize).copied().unwrap_or_default(),
    };
    terms.iter().zip(totals).map(value).collect()
}

fn log_of(mass: &[f32], pu: u32) -> f64 {
    let mass = mass.get(pu as usize).copied().unwrap_or_default();
    f64::from(mass).max(MASS_MIN).ln()
}

fn sparse(terms: &[Term]) -> Vec<(u32, f64)> {
    let lists = terms.iter().filter_map(|term| match &term.values {
        Values::Sparse(logs) if term.weight != 0.0 => Some((logs, f64::from(term.weight))),
        Values::Sparse(_) | Values::Mass(_) | Values::Dense(_) => None,
    });
    let weighted = |(logs, weight): (&Arc<[(u32, f32)]>, f64)| {
        let logs = logs.iter().map(|(pu, log)| (*pu, f64::from(*log) * weight));
        logs.collect::<Vec<_>>()
    };
    lists.flat_map(weighted).collect()
}

fn dense(terms: &[Term]) -> Vec<(&[f32], f64)> {
    let tables = terms.iter().filter_map(|term| match &term.values {
        Values::Dense(logs) if term.weight != 0.0 => Some((&logs[..], f64::from(term.weight))),
        Values::Dense(_) | Values::Mass(_) | Values::Sparse(_) => None,
    });
    tables.collect()
}

/// How many PUs are in one set and not in the other.
fn differ(a: &FixedBitSet, b: &FixedBitSet) -> usize {
    let (a, b) = (a.as_slice(), b.as_slice());
    let at = |set: &[usize], nth: usize| set.get(nth).copied().unwrap_or(0);
    let blocks = 0..a.len().max(b.len());
    let bits = blocks.map(|nth| (at(a, nth) ^ at(b, nth)).count_ones() as usize);
    bits.sum()
}
