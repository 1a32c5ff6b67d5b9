//! `demand`: the log share of a product in the purchases of the user's segment.

use crate::list::prompt::Arm;
use crate::names::scoring::{Term, Values};
use crate::shop::snapshot::Snapshot;
use crate::user::state::UserState;

/// The term, weighted by [`Arm::demand_weight`].
pub(super) fn term(
    arm: &Arm,
    _user: &UserState,
    snapshot: &Snapshot,
    segment: &str,
) -> Option<Term> {
    (arm.demand_weight != 0.0).then(|| Term {
        name: "demand",
        weight: arm.demand_weight as f32,
        values: Values::Shared(snapshot.demand.log_shares(segment)),
    })
}
