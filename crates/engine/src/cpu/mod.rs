//! The forward pass on the CPU: packed weights, attention, keys and values.

#[doc(hidden)]
pub mod attention;
pub(crate) mod beside;
pub(crate) mod extras;
pub(crate) mod forward;
pub(crate) mod kernel;
#[doc(hidden)]
pub mod kv;
pub(crate) mod linear;
#[doc(hidden)]
pub mod packed;
pub(crate) mod reasons;
pub(crate) mod smooth;
pub(crate) mod token_rows;
mod vocabulary;
