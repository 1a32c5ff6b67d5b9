//! Who is next, which requests are already served, and which offsets may be committed.

pub mod claims;
pub mod lanes;
pub mod offsets;
pub mod replay;
pub mod topics;
