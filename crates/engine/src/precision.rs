//! The precision of a model, and the instructions that compute it.
//!
//! Decides what can be configured: the [`Precision`] of the weights and the richest [`Isa`] to use. Invariant: a
//! precision changes how weights are stored and multiplied, never which names are permitted. It does not know layers or
//! kernels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use super::Place;

/// How weights are stored and multiplied on the CPU.
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
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats: the reference.
    F32,
    /// 16 bits with 32-bit sums, in the form that the machine multiplies fastest: half the memory, and the lists of
    /// `F32`.
    #[default]
    Bf16,
    /// 8-bit integers in groups of 64 with one scale per group: a quarter of the memory.
    Int8,
}

/// Vector instructions, in ascending order.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumString, VariantNames,
)]
#[strum(serialize_all = "lowercase")]
pub enum Isa {
    /// The instructions of every machine of the target.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX2 and FMA, with AVX-VNNI where a precision needs it.
    AvxVnni,
    /// AVX-512, with BF16 and VNNI where a precision needs them.
    Avx512,
}

/// Variable that caps the vector instructions of a process, as oneDNN has `ONEDNN_MAX_CPU_ISA`: what another machine
/// would do can be seen on this one, and processes on unlike machines give the same bits.
pub(crate) const MAX_ISA: &str = "NEARSHORE_MAX_ISA";

impl Isa {
    /// The cap that the environment sets; by default none.
    ///
    /// Errors: the variable's value names no instructions.
    pub fn cap() -> Result<Self, String> {
        match std::env::var(MAX_ISA) {
            Ok(name) => name.parse().map_err(|_| {
                let known = Self::VARIANTS.join(", ");
                format!("{MAX_ISA}={name} names no instructions; set one of {known}, or unset it")
            }),
            Err(std::env::VarError::NotPresent) => Ok(Self::Avx512),
            Err(error) => Err(format!("{MAX_ISA}: {error}")),
        }
    }
}

/// Options of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads of the engine; 0 counts as 1.
    pub threads: usize,
    /// Precision of the layers.
    pub precision: Precision,
    /// The richest instructions to use; all of the machine if `None`. For measuring what another machine would do.
    pub isa: Option<Isa>,
    /// Where the model is computed.
    pub place: Place,
    /// Groups of users that run in parallel, at most one per thread. `None`: one per thread on the CPU, one on a
    /// device.
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
