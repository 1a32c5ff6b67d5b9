//! The state of a user: how records change it, and when a list is requested.

pub mod event;
pub mod fold;
pub mod namespace;
pub mod plan;
pub mod record;
pub mod state;
pub mod trigger;
mod unavailable;
