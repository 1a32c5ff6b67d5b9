//! Decides whether a request still needs a generation: `(request, status of the user) -> Need`.
//!
//! Invariant: a request is skipped only if a list has seen the records that caused it. It does not know lanes nor time.

use crate::user::record::{Fences, Position};
use crate::user::state::Pending;
use crate::user::trigger::{Reason, Request};

/// Status of a user in the store, as far as this decision needs it.
#[derive(Clone, Debug, Default)]
pub struct UserStatus {
    /// Seen offsets of the list and epoch of its arm; `None` if there is no list, or only a fallback.
    pub list: Option<(Fences, u64)>,
    /// Fences of the state; empty if there is none.
    pub state: Fences,
    /// The pending request.
    pub pending: Option<Pending>,
    /// Whether a claim was made since the list, and no list of it is stored.
    pub open: bool,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Claim the user and generate a list.
    Claim,
    /// The list has seen it: publish the update again, because a crash may have lost it.
    Covered,
    /// Nothing is stored of this user: erased, or idle beyond the TTL.
    Gone,
}

/// Decides for one request, merged from records at `sources` (none for a sweep or a refresh). `epoch`: of the arm that
/// would make the list.
pub fn need(request: &Request, sources: &[Position], (status, epoch): (&UserStatus, u64)) -> Need {
    if status.state.is_empty() {
        return Need::Gone;
    }
    let Some((seen, list_epoch)) = &status.list else {
        return Need::Claim;
    };
    // With a pending request or an open claim, seen offsets do not suffice. The process that folded the pending record
    // may have died before it sent the request, and a process with an open claim may have died after it cleared
    // `pending`: if this request were skipped, no other would serve the user. A pending request whose records the list
    // has seen is left by a store that lost its last writes, and only a claim clears it.
    let nothing_open = status.pending.is_none() && !status.open;
    let covered = match request.reason {
        Reason::Refresh => false,
        Reason::Sweep => seen.contains_all(&status.state) && *list_epoch >= epoch,
        Reason::First | Reason::Activity | Reason::Profile | Reason::Overdue => {
            nothing_open && sources.iter().all(|source| seen.contains(source))
        }
    };
    if covered { Need::Covered } else { Need::Claim }
}
