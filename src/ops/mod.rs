//! Operations from outside the stream: backfill, sweep, promotion, erasure, inspection, dead letters, evaluation.

pub mod arms;
pub mod backfill;
pub(crate) mod coverage;
pub mod dlq;
pub(crate) mod evaluate;
pub(crate) mod files;
pub mod forget;
pub(crate) mod import;
pub mod inspect;
pub(crate) mod lists;
pub mod namespace;
pub(crate) mod partials;
pub(crate) mod report;
pub(crate) mod simulate;
pub mod sweep;
pub mod tap;
pub mod top;
pub(crate) mod topics;
pub(crate) mod visible;
pub(crate) mod words;
