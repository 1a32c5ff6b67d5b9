//! `(state, record) -> state`: a function of the set of records folded.
//!
//! Invariant: any interleaving of partitions, any batch cut and any repetition give the same
//! canonical state. No clock, no catalogue, no policy but the window's length.
//!
//! Why it holds: the fence makes a record count once; the window is the greatest N by (time, position),
//! the profile the greatest, `erased_at` the greatest erase, and an erase drops a prefix by time, so that what
//! the window had already cut off would have been dropped as well.

use strum::{IntoStaticStr, VariantNames};

use crate::user::event::{Accepted, Change, Event, Profile};
use crate::user::record::Timestamp;
use crate::user::state::{Profiled, UserState, WindowEvent};

/// What a record did to the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
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
    if state.fences.contains(&record.position) {
        return Step::Duplicate;
    }
    state.fences.raise(&record.position);
    // An erase of that very time is the one that `erased_at` tells of: where another namespace folded it first, its
    // tombstone was seen before it. What follows from an erase still has to follow here.
    let told = record.time == state.erased_at && record.change == Change::Erase;
    if record.time <= state.erased_at && !told {
        return Step::Passed;
    }
    match &record.change {
        Change::Event(event) => see(state, record, event, window.max(1)),
        Change::Profile(profile) => become_known(state, record, profile),
        Change::Erase => {
            erase(state, record.time);
            Step::Erased
        }
    }
}

/// Drops everything with time <= `at` and raises `erased_at`; what is later stays. Fences stay: they guard
/// against repetition, and an erased user's old records must not be folded again either.
pub fn erase(state: &mut UserState, at: Timestamp) {
    state.erased_at = state.erased_at.max(at);
    let erased_at = state.erased_at;
    state.window.retain(|seen| seen.time > erased_at);
    state.profile = state.profile.take().filter(|known| known.time > erased_at);
}

fn see(state: &mut UserState, record: &Accepted, event: &Event, window: usize) -> Step {
    let at = (record.time, &record.position);
    let place = state
        .window
        .partition_point(|seen| (seen.time, &seen.position) < at);
    if place + window <= state.window.len() {
        return Step::Passed;
    }
    state.window.insert(
        place,
        WindowEvent {
            time: record.time,
            position: record.position.clone(),
            kind: event.kind,
            item: event.item.clone(),
            qty: event.qty,
            price: event.price,
        },
    );
    // More than one when the configured window has shrunk.
    let surplus = state.window.len().saturating_sub(window);
    state.window.drain(..surplus);
    Step::Folded
}

fn become_known(state: &mut UserState, record: &Accepted, profile: &Profile) -> Step {
    let stored = state.profile.as_ref();
    if stored.is_some_and(|known| (known.time, &known.position) > (record.time, &record.position)) {
        return Step::Passed;
    }
    let same = stored.is_some_and(|known| known.profile == *profile);
    state.profile = Some(Profiled {
        time: record.time,
        position: record.position.clone(),
        profile: profile.clone(),
    });
    if same {
        Step::Folded
    } else {
        Step::ProfileChanged
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
pub(crate) mod tests;
