//! Where a model is computed.
//!
//! Decides how a place is written: `cpu`, `cuda:N`; `tensors` is the device's path on the CPU, for tests of
//! that path where no device is. It does not know what is computed.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use serde::{Deserialize, Serialize};

/// Where a model is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// The CPU, by kernels of our own.
    #[default]
    Cpu,
    /// A CUDA device, by number.
    Cuda(usize),
    /// The CPU, by the tensor operations that a CUDA device runs: slow, to hold the two together.
    Tensors,
}

impl Place {
    /// The device whose tensor operations compute the model; `None`: our own kernels on the CPU.
    pub(super) fn device(self) -> candle_core::Result<Option<Device>> {
        match self {
            Self::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => super::device::cuda_device(number).map(Some),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(number) => Device::new_cuda(number).map(Some),
            Self::Tensors => Ok(Some(Device::Cpu)),
        }
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
    fn a_place_is_read_as_it_is_written_and_others_are_refused() {
        for place in [Place::Cpu, Place::Cuda(0), Place::Cuda(7), Place::Tensors] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        for bad in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }
}
