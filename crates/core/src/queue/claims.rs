//! Whether a request still needs a generation: `(request, what is stored) -> Need`.
//!
//! Invariant: a record that no list covers is never skipped. It does not know lanes nor time.

use crate::user::record::{Fences, Position};
use crate::user::state::Pending;
use crate::user::trigger::{Reason, Request};

/// What is stored of the user, as far as this decision goes.
#[derive(Clone, Debug, Default)]
pub struct UserStatus {
    /// What the list has seen, and the epoch of its arm; `None` if there is none, or only a fallback.
    pub list: Option<(Fences, u64)>,
    /// Fences of the state; empty if there is none.
    pub state: Fences,
    /// What is pending.
    pub pending: Option<Pending>,
    /// A take was made since, and no list has come of it.
    pub open: bool,
}

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Take the user and generate.
    Claim,
    /// The list has seen it: tell the list again, for a crash may have lost its audit record.
    Covered,
    /// Nothing is stored of this user (erased, or idle beyond the TTL).
    Gone,
}

/// Decides for one request, merged from records at `sources` (none of a sweep or refresh).
/// `epoch`: of the arm that would make the list.
pub fn need(request: &Request, sources: &[Position], (status, epoch): (&UserStatus, u64)) -> Need {
    if status.state.is_empty() {
        return Need::Gone;
    }
    let Some((seen, made)) = &status.list else {
        return Need::Claim;
    };
    // What is pending may not have been asked for yet: whoever folded it may have died before it could. A take that is
    // still on its way would clear it, one that was made may have done so and died: a request that is passed over
    // here would have nobody left to serve it. And one that a list seems to cover was left by a store that lost its last
    // writes: only a take clears it.
    let idle = status.pending.is_none() && !status.open;
    let covered = match request.reason {
        Reason::Refresh => false,
        Reason::Sweep => seen.contains_all(&status.state) && *made >= epoch,
        Reason::First | Reason::Activity | Reason::Profile | Reason::Overdue => {
            idle && sources.iter().all(|source| seen.contains(source))
        }
    };
    if covered { Need::Covered } else { Need::Claim }
}
