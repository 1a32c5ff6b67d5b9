//! How precisely a model computes, and with which instructions.
//!
//! Decides what can be asked for: the [`Precision`] of the weights, and the most that may be used of the
//! machine, an [`Isa`]. Invariant: a precision names how weights are kept and multiplied, never which
//! names are legal. It does not know layers or kernels.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use super::Place;

/// How weights are kept, and products computed, on the CPU.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    Display,
    EnumString,
    VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats: the reference.
    F32,
    /// 16-bit floats with 32-bit sums; half the memory. It keeps the lists of `F32`.
    #[default]
    Bf16,
    /// 8-bit integers in groups of 64 with a scale each; a quarter of the memory.
    Int8,
}

/// Vector instructions, poorer to richer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString, VariantNames,
)]
#[strum(serialize_all = "lowercase")]
pub enum Isa {
    /// What every machine of the target has.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512, with BF16 and VNNI where a precision needs them.
    Avx512,
}

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads of the engine; 0 counts as 1.
    pub threads: usize,
    /// Precision of the layers.
    pub precision: Precision,
    /// The richest instructions that may be used; those of the machine if `None`. For trying what
    /// another machine would do.
    pub isa: Option<Isa>,
    /// Where the model is computed.
    pub place: Place,
    /// Groups of users side by side, at most one per thread: one per thread on the CPU and one on a device if `None`.
    pub groups: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 1,
            precision: Precision::default(),
            isa: None,
            place: Place::default(),
            groups: None,
        }
    }
}
