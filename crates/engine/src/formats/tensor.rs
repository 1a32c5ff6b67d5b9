//! The types of numbers in files, their sizes, and where a tensor lies.
//!
//! Pure: the decoders of headers need nothing else. Invariant: a size that a machine cannot hold is an error. It does
//! not know how bytes become numbers: [`numbers`](super::numbers) does.

/// A type of numbers that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)] // The names are GGUF's.
pub enum Kind {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Kind {
    /// Every type.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The type of this code in a GGUF header; the name of the type if it cannot be read.
    pub(super) fn from_gguf(code: u32) -> Result<Self, String> {
        let kind = match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            other => return Err(unreadable(other)),
        };
        Ok(kind)
    }

    /// The type of this name in a safetensors header.
    pub(super) fn from_safetensors(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::BF16),
            _ => None,
        }
    }

    /// How many numbers a block holds, and how many bytes it has.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of a tensor of this shape; the error says what is wrong with the shape.
    pub fn bytes(self, shape: &[usize]) -> Result<usize, String> {
        let (numbers, bytes) = self.block();
        let too_many = || format!("shape {shape:?} has more numbers than a machine can hold");
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(numbers) {
            return Err(format!(
                "rows of {row} numbers are not whole blocks of {numbers} ({self:?})"
            ));
        }
        let count = (shape.iter()).try_fold(1usize, |count, size| count.checked_mul(*size));
        let size = (count.ok_or_else(too_many)? / numbers).checked_mul(bytes);
        size.filter(|size| isize::try_from(*size).is_ok())
            .ok_or_else(too_many)
    }
}

/// A tensor as a file's header describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Type of its numbers.
    pub kind: Kind,
    /// Outermost size first.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the tensors' data.
    pub from: usize,
    /// One past the last byte.
    pub to: usize,
}

/// The name of a GGUF type that cannot be read.
fn unreadable(code: u32) -> String {
    let name = match code {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {code}"),
    };
    format!("type {name}")
}
