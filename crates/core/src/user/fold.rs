//! Folds records into a user's state: `(state, record) -> state`, a function of the set of records folded.
//!
//! Invariant: any interleaving of partitions, any batching and any repetition give the same canonical state. The fold
//! reads no clock, no catalogue and no policy but the window's length.
//!
//! Why it holds: the fence makes each record count once. The window is the greatest N events by (time, position), the
//! profile is the greatest one, with the fields that it leaves open from the greatest one before it that has them, and
//! `erased_at` is the time of the latest erase. An erase drops a prefix by time, so it would also have dropped the events
//! that the window had already cut off. The register says itself why it is such a function
//! ([`Register`](crate::user::state::Register)).

use strum::{IntoStaticStr, VariantNames};

use crate::user::event::{Accepted, Change, Event, Item, Kind, Profile};
use crate::user::record::Timestamp;
use crate::user::state::{LIMITS, Profiled, UserState, WindowEvent};

/// Effect of one record on the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Step {
    /// Folded; the profile did not change.
    Folded,
    /// Folded; the profile changed.
    ProfileChanged,
    /// The user was erased as of the record's time.
    Erased,
    /// Ignored: at or before the user's erase, or older than the stored profile, or than window and register. Only the
    /// fence rose, and the register's floor may have.
    Passed,
    /// At or below the fence: folded before, nothing changed.
    Duplicate,
}

/// Folds one record into the state. `window`: how many events are kept, at least 1.
pub fn fold(state: &mut UserState, record: &Accepted, window: usize) -> Step {
    if state.fences.contains(&record.position) {
        return Step::Duplicate;
    }
    fold_again(state, record, window)
}

/// Folds a record that is above its fence, or a further one that the same record of the source made: all of these are
/// folded in one go, in their order, or none.
pub fn fold_again(state: &mut UserState, record: &Accepted, window: usize) -> Step {
    state.fences.raise(&record.position);
    // An erase at exactly `erased_at` is the erase that set it: another namespace folded it first, and its tombstone
    // arrived here before the record. The consequences of the erase are still due in this namespace.
    let is_latest_erase = record.time == state.erased_at && record.change == Change::Erase;
    if record.time <= state.erased_at && !is_latest_erase {
        return Step::Passed;
    }
    match &record.change {
        Change::Event(event) => insert_event(state, record, event, window.max(1)),
        Change::Profile(profile) => set_profile(state, record, profile),
        Change::Erase => {
            erase(state, record.time);
            Step::Erased
        }
    }
}

/// Drops everything with time <= `at` and raises `erased_at`; later events and a later profile stay. Fences stay too:
/// an erased user's old records must not be folded again.
pub fn erase(state: &mut UserState, at: Timestamp) {
    state.erased_at = state.erased_at.max(at);
    let erased_at = state.erased_at;
    state.window.retain(|event| event.time > erased_at);
    state.register.erase(erased_at);
    state.profile = state
        .profile
        .take()
        .filter(|profile| profile.time > erased_at);
    if let Some(profile) = &mut state.profile {
        profile.forget_kept(erased_at);
    }
}

fn insert_event(state: &mut UserState, record: &Accepted, event: &Event, window: usize) -> Step {
    let registered = match (event.kind, &event.item) {
        (Kind::Purchase, Item::Sku(sku)) => {
            let register = &mut state.register;
            register.insert(record.time, sku, &record.position, &LIMITS)
        }
        _ => false,
    };
    let at = (record.time, &record.position);
    let index = state
        .window
        // Equal only for records that one record of the source made: the later one is the greater.
        .partition_point(|kept| (kept.time, &kept.position) <= at);
    if index + window <= state.window.len() {
        return if registered {
            Step::Folded
        } else {
            Step::Passed
        };
    }
    state.window.insert(
        index,
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

fn set_profile(state: &mut UserState, record: &Accepted, profile: &Profile) -> Step {
    if let Some(stored) = &mut state.profile
        && (stored.time, &stored.position) > (record.time, &record.position)
    {
        return match stored.learn(record.time, &record.position, profile) {
            Some(true) => Step::ProfileChanged,
            Some(false) => Step::Folded,
            None => Step::Passed,
        };
    }
    let stored = state.profile.take();
    let new = Profiled::after(stored.as_ref(), record.time, &record.position, profile);
    let same = stored.is_some_and(|stored| stored.profile == new.profile);
    state.profile = Some(new);
    if same {
        Step::Folded
    } else {
        Step::ProfileChanged
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
pub(crate) mod tests;
