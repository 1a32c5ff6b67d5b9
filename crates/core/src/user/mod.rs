//! What is known of a user, and when to ask for a list.

pub mod event;
pub mod fold;
pub mod namespace;
pub mod plan;
pub mod record;
pub mod state;
pub mod trigger;
