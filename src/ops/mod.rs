//! Operations from outside the stream: backfill, sweep, promotion, erasure, inspection, dead letters.

pub mod arms;
pub mod backfill;
pub(crate) mod coverage;
pub mod dlq;
pub mod forget;
pub mod inspect;
pub mod namespace;
pub mod sweep;
pub(crate) mod visible;
