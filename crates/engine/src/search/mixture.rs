//! Score requests to questions of the search: sets and terms by leaf of the trie instead of by product.
//!
//! Decides what is kept from one request to the next, because a catalogue may have a million names and requests differ
//! little: the last permitted set, of which only the differences are changed, and the sums of the last sets of shared
//! terms. Invariant: a question does not depend on what was kept. It does not know users.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use nearshore_core::names::scoring::ScoreRequest;
use nearshore_core::names::search::{Question, Terms};
use nearshore_core::names::sum::{dense_terms, finite, shared_sums, shared_terms, sparse_sums};
use nearshore_core::names::trie::{LogWeights, Own, Permitted, Trie};

/// The most sums kept, counted in leaves of all tables: 64 MiB. The last table is always kept.
const LEAVES_MAX: usize = 8 << 20;

/// The weighted sum of the shared terms of a request.
struct Table {
    /// Kept alive, so that no other table gets the same address.
    terms: Vec<(Arc<[f32]>, f32)>,
    weights: Arc<LogWeights>,
}

/// Turns score requests into questions about one trie.
pub(crate) struct Mixture {
    trie: Arc<Trie>,
    permitted: Option<(Arc<FixedBitSet>, Arc<Permitted>)>,
    /// Most recently used first.
    tables: Vec<Table>,
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
    pub(crate) fn question(&mut self, request: &ScoreRequest) -> Question {
        let permitted = request.permitted.as_ref().map(|pus| self.permitted(pus));
        Question {
            permitted,
            n: request.n,
            // The search is exact only if the model's edges can lower a score.
            weight: f64::from(request.weight).max(0.0),
            terms: self.terms(request),
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

    fn terms(&mut self, request: &ScoreRequest) -> Option<Terms> {
        let shared = shared_terms(&request.terms);
        let (dense, sparse) = (dense_terms(&request.terms), sparse_sums(&request.terms));
        if shared.is_empty() && dense.is_empty() && sparse.is_empty() {
            return None;
        }
        let trie = Arc::clone(&self.trie);
        let table = self.table(shared);
        let weights = if dense.is_empty() {
            Arc::clone(&table.weights)
        } else {
            // One term after another, as `names::sum` adds them.
            let add = |pu: u32, shared: f64| {
                let values = dense.iter().filter_map(|(values, weight)| {
                    Some(weight * finite(*values.get(pu as usize)?))
                });
                values.fold(shared, |sum, value| sum + value)
            };
            Arc::new(table.weights.map(&trie, add))
        };
        Some(Terms {
            weights,
            own: Own::new(&trie, sparse.into_iter()),
        })
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
        let sums = shared_sums(&terms, trie.leaves());
        Self {
            weights: Arc::new(LogWeights::new(trie, |pu| sums[pu as usize])),
            terms,
        }
    }
}

/// Number of products that are in one set only.
fn differences(a: &FixedBitSet, b: &FixedBitSet) -> usize {
    let (a, b) = (a.as_slice(), b.as_slice());
    let at = |set: &[usize], nth: usize| set.get(nth).copied().unwrap_or(0);
    let blocks = 0..a.len().max(b.len());
    let bits = blocks.map(|nth| (at(a, nth) ^ at(b, nth)).count_ones() as usize);
    bits.sum()
}
