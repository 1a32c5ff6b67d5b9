//! The exact best names of the catalogue under a model: constrained search in batches.

pub(crate) mod admission;
pub(crate) mod backend;
pub(crate) mod calibration;
pub mod constrained;
pub(crate) mod explain;
pub(crate) mod group;
mod hidden;
pub mod index;
pub(crate) mod mixture;
pub(crate) mod prompts;
