//! Phi 3 and Phi 4 mini: q, k, v as one tensor, gate and up as one, positions in a part of each head.
//!
//! Its GGUF files are not read: their special tokens take the spaces after them, which the files do not say.

use super::{Family, PLAIN, Windowed};

pub(super) const PHI3: Family = Family {
    name: "phi3",
    model_type: "phi3",
    fused: true,
    windowed: Windowed::All,
    ..PLAIN
};
