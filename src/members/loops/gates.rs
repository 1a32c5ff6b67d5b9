//! What the loops say on `/readyz` while they wait for something.
//!
//! Invariant: a gate is shut only while its role makes no progress with what the gate is named after.

use super::Member;
use crate::http::{Gate, Ready};
use crate::members::error::Error;

/// What a gate of the dlq says while it is open.
pub(super) const DLQ_OPEN: &str = "no dead letter waits";

/// What the gate of an ingest member's partitions says while it is open.
pub(super) const PARTITIONS_OPEN: &str = "no partition is stopped";

/// What the gate of the values that generate reads says while it is open.
pub(super) const VALUES_OPEN: &str = "the stored values can be read";

/// The gate of the dlq on `/readyz`, open while no dead letter waits.
pub(crate) fn dlq_gate(ready: &Ready, name: &'static str) -> Gate {
    let gate = ready.gate(name);
    gate.open(DLQ_OPEN);
    gate
}

/// Says on `/readyz` that dead letters wait, if that is the error. The role makes no progress until they are written.
pub(super) fn report_dlq(dlq: &Gate, error: &Error) {
    match error {
        Error::Dlq { .. } => dlq.shut(error.to_string()),
        Error::Log(_) | Error::Store(_) | Error::Map(_) | Error::FenceAboveEnd { .. } => {}
    }
}

/// Says on `/readyz` that the stored checkpoints cannot be used: nothing is committed then. Else the gate opens.
pub(super) fn report_checkpoints(member: &impl Member, gate: &Gate, open: &str) {
    match member.unusable_checkpoints() {
        Some(why) => gate.shut(why),
        None => gate.open(open),
    }
}
