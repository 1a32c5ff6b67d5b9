//! Score requests to questions of the search: sets and terms by leaf of the trie instead of by product.
//!
//! Decides what is kept from one request to the next, because a catalogue may have a million names and requests differ
//! little: the last permitted set, of which only the differences are changed, and the masses of the last tables of
//! shared terms. Invariant: a question does not depend on what was kept. It does not know users.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use nearshore_core::names::scoring::{ScoreRequest, Term, Values};
use nearshore_core::names::search::{Prior, Question};
use nearshore_core::names::trie::{Masses, Own, Permitted, Trie};

/// The least mass, in place of 0: a term may lower a name's score, but never make it undefined.
const MASS_MIN: f64 = 1e-30;

/// The most masses kept, counted in leaves of all tables: 64 MiB. The last table is always kept.
const LEAVES_MAX: usize = 8 << 20;

/// The mixed masses of the shared terms of a request, with their weights.
struct Table {
    /// Kept alive, so that no other table gets the same address.
    terms: Vec<(Arc<[f32]>, f32)>,
    masses: Arc<Masses>,
    /// Log of each term's sum over all names.
    totals: Vec<f64>,
}

/// Turns score requests into questions about one trie.
pub(crate) struct Mixture {
    trie: Arc<Trie>,
    permitted: Option<(Arc<FixedBitSet>, Arc<Permitted>)>,
    /// Most recently used first.
    tables: Vec<Table>,
}

/// A question, and the totals to which the terms of a response are relative.
pub(crate) struct Mixed {
    /// The question of the search.
    pub question: Question,
    /// Per term of the request: the log of its sum over all names; 0 if it is not a mass.
    pub totals: Vec<f64>,
}

impl Mixture {
    /// A mixture that has kept nothing.
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

    /// Returns the question of `request`.
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
            Some((last, leaves)) if differences(&last, pus) < self.trie.leaves() / 16 => {
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
        let mut mass_totals = table.totals.iter();
        let totals = request.terms.iter().map(|term| match term.values {
            Values::Mass(_) => mass_totals.next().copied().unwrap_or_default(),
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
                let tables_max = LEAVES_MAX / self.trie.leaves().max(1);
                self.tables.truncate(tables_max.clamp(1, 64));
            }
        }
        &self.tables[0]
    }
}

impl Table {
    fn new(trie: &Trie, terms: Vec<(Arc<[f32]>, f32)>) -> Self {
        let log_mass = |pu: u32| {
            let used = terms.iter().filter(|(_, weight)| *weight != 0.0);
            used.map(|(mass, weight)| f64::from(*weight) * log_of(mass, pu))
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

/// Value of each term for a product, as a response has it; `totals` as in [`Mixed`].
pub(crate) fn term_values(terms: &[Term], totals: &[f64], pu: u32) -> Vec<f32> {
    let value = |(term, total): (&Term, &f64)| match &term.values {
        Values::Mass(mass) => (log_of(mass, pu) - total) as f32,
        Values::Sparse(logs) => {
            let found = logs.iter().filter(|(of, _)| *of == pu);
            found.map(|(_, log)| log).sum()
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

/// Number of products that are in one set only.
fn differences(a: &FixedBitSet, b: &FixedBitSet) -> usize {
    let (a, b) = (a.as_slice(), b.as_slice());
    let at = |set: &[usize], nth: usize| set.get(nth).copied().unwrap_or(0);
    let blocks = 0..a.len().max(b.len());
    let bits = blocks.map(|nth| (at(a, nth) ^ at(b, nth)).count_ones() as usize);
    bits.sum()
}
