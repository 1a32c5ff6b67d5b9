//! Requests in their lanes: which is served next, which is served already, and which offsets may be committed.

pub mod asking;
pub mod claims;
pub mod lanes;
pub mod offsets;
pub mod replay;
pub mod topics;
