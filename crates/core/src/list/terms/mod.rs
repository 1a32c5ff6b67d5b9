//! Score terms beside the model's: each says a log-weight of every product, and the weighted sum ranks them.
//!
//! A new term is one file here and one line in [`SOURCES`]; its weight is a field of [`Arm`]. Invariant: a term is
//! present only if its weight is not 0, and terms keep the order of [`SOURCES`], in which answers list them.

mod demand;

use crate::list::prompt::Arm;
use crate::names::scoring::Term;
use crate::shop::snapshot::Snapshot;
use crate::user::state::UserState;

/// Computes a term for one user of one segment; `None` if the arm gives it no weight.
type TermSource = fn(&Arm, &UserState, &Snapshot, &str) -> Option<Term>;

/// All terms.
const SOURCES: &[TermSource] = &[demand::term];

/// The terms of a user's score request.
pub(crate) fn score_terms(
    arm: &Arm,
    user: &UserState,
    snapshot: &Snapshot,
    segment: &str,
) -> Vec<Term> {
    let terms = SOURCES.iter();
    terms
        .filter_map(|term| term(arm, user, snapshot, segment))
        .collect()
}
