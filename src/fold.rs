//! `(state, record) -> state`: a function of the set of records folded.
//!
//! Invariant: any interleaving of partitions, any batch cut and any repetition give the same
//! canonical state. No clock, no catalogue, no policy but the window's length.

use crate::event::Accepted;
use crate::record::Timestamp;
use crate::state::UserState;

/// What a record did to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Folded; the profile did not change.
    Folded,
    /// Folded, and the profile is another one now.
    ProfileChanged,
    /// The user was erased as of the record's time.
    Erased,
    /// At or before the user's erase, or older than the stored profile or the window: only the fence rose.
    Passed,
    /// At or below the fence: nothing changed.
    Duplicate,
}

/// Folds one record. `window`: how many events are kept, at least 1.
pub fn fold(state: &mut UserState, record: &Accepted, window: usize) -> Step {
    let _ = (state, record, window);
    Step::Duplicate
}

/// Drops everything with time <= `at` and raises `life`; what is later stays. Fences stay.
pub fn erase(state: &mut UserState, at: Timestamp) {
    let _ = (state, at);
}
