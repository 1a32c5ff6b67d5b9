//! Where a model is computed.
//!
//! Decides how a place is written: `cpu`, `cuda:N`; `tensors` is the path of a device computed on the CPU, for tests of
//! that path without a device. It does not know what is computed.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Precision;

#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str = "this build is for the CPU only: build for CUDA with scripts/build-cuda, or an image with \
    Dockerfile.cuda; or use cpu";

/// Where a model is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// The CPU, by the engine's own kernels.
    #[default]
    Cpu,
    /// A CUDA device, by number.
    Cuda(usize),
    /// The CPU, by the tensor operations that a CUDA device runs: slow, for comparing the two paths.
    Tensors,
}

impl Place {
    /// The device whose tensor operations compute the model; `None` for the engine's own kernels on the CPU.
    pub(super) fn device(self) -> Result<Option<Device>, Box<dyn Error + Send + Sync>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => Ok(Some(super::device::cuda_device(number)?)),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => Err(NO_CUDA.into()),
            Self::Tensors => Ok(Some(Device::Cpu)),
        }
    }

    /// Why this place does not support `precision`; `None` if it does.
    pub fn refuses(self, precision: Precision) -> Option<String> {
        let is_unsupported = self != Self::Cpu && precision == Precision::Int8;
        is_unsupported.then(|| format!("int8 is for the CPU; on {self} use bf16 or f32"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Tensors => f.write_str("tensors"),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("cuda:").map(str::parse);
        match (text, number) {
            ("cpu", _) => Ok(Self::Cpu),
            ("tensors", _) => Ok(Self::Tensors),
            (_, Some(Ok(number))) => Ok(Self::Cuda(number)),
            _ => Err(format!("{text:?} is neither cpu nor cuda:N, as in cuda:0")),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        place.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn int8_is_refused_off_the_cpu() {
        assert_eq!(Place::Cpu.refuses(Precision::Int8), None);
        assert_eq!(Place::Cuda(1).refuses(Precision::Bf16), None);
        let reason = Place::Cuda(1).refuses(Precision::Int8);
        assert!(reason.is_some_and(|reason| reason.contains("cuda:1")));
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_one() {
        let wrong = Place::Cuda(0).device().expect_err("no CUDA here");
        assert!(wrong.to_string().contains("scripts/build-cuda"), "{wrong}");
    }

    #[test]
    fn a_place_is_parsed_as_it_is_written_and_other_texts_are_refused() {
        for place in [Place::Cpu, Place::Cuda(0), Place::Cuda(7), Place::Tensors] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for bad in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
