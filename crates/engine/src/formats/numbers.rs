//! Bytes of a [`Kind`] as `f32`.
//!
//! Invariant: any bytes become numbers or an error, never a panic, and no memory is allocated beyond the numbers that
//! the bytes hold. It does not know tensors' names or meaning.

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use super::tensor::Kind;

impl Kind {
    /// Decodes whole blocks.
    pub fn numbers(self, data: &[u8]) -> Result<Vec<f32>, String> {
        let (numbers, size) = self.block();
        if !data.len().is_multiple_of(size) {
            return Err(format!(
                "{} bytes are not whole {self:?} blocks",
                data.len()
            ));
        }
        let pair = |bytes: &[u8]| [bytes[0], bytes[1]];
        let quantised = match self {
            Self::F32 => {
                let of = |bytes: &[u8]| [bytes[0], bytes[1], bytes[2], bytes[3]];
                let each = data.chunks_exact(4);
                return Ok(each.map(|bytes| f32::from_le_bytes(of(bytes))).collect());
            }
            Self::F16 => {
                let each = data.chunks_exact(2).map(pair);
                return Ok(each.map(|x| half::f16::from_le_bytes(x).to_f32()).collect());
            }
            Self::BF16 => {
                let each = data.chunks_exact(2).map(pair);
                return Ok(each
                    .map(|x| half::bf16::from_le_bytes(x).to_f32())
                    .collect());
            }
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2_K => GgmlDType::Q2K,
            Self::Q3_K => GgmlDType::Q3K,
            Self::Q4_K => GgmlDType::Q4K,
            Self::Q5_K => GgmlDType::Q5K,
            Self::Q6_K => GgmlDType::Q6K,
        };
        dequantised(quantised, numbers, size, data).map_err(|e| e.to_string())
    }
}

/// Decodes blocks of `numbers` numbers in `size` bytes each.
fn dequantised(
    kind: GgmlDType,
    numbers: usize,
    size: usize,
    data: &[u8],
) -> candle_core::Result<Vec<f32>> {
    let count = data.len() / size * numbers;
    if count == 0 {
        return Ok(Vec::new());
    }
    // candle reads blocks in place, so they must be aligned; a file may have a tensor at any address.
    let data = if data.as_ptr().addr().is_multiple_of(4) {
        Cow::Borrowed(data)
    } else {
        return dequantised(kind, numbers, size, &Aligned::copy(data));
    };
    let storage = QStorage::from_data(data, &Device::Cpu, kind)?;
    QTensor::new(storage, (count,))?
        .dequantize(&Device::Cpu)?
        .to_vec1()
}

/// A copy of bytes, aligned for blocks.
struct Aligned {
    words: Vec<u64>,
    length: usize,
}

impl Aligned {
    fn copy(data: &[u8]) -> Self {
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_ne_bytes(word)
        };
        Self {
            words: data.chunks(8).map(word).collect(),
            length: data.len(),
        }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `words` holds at least `length` initialised bytes: it was made from `length` bytes.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }
}
