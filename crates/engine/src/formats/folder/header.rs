//! The header of a safetensors file: bytes -> tensors.
//!
//! Pure. Decides what a well-formed header is. Invariant: for any bytes, no allocation is larger than the bytes,
//! nothing panics, and every [`Entry`] lies within the bytes. It does not know what tensors mean. Source: the page of
//! the format, huggingface/safetensors.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::formats::tensor::{Entry, Kind};

/// The most bytes of a header, as in the format's own library.
const HEADER_MAX: u64 = 100_000_000;

/// A decoded header.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Tensors by name; offsets count from `data`.
    pub tensors: BTreeMap<String, Entry>,
    /// First byte of the tensors' data.
    pub data: usize,
}

#[derive(Deserialize)]
struct Raw {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Tensors in the file's order: a map would hide a name that is there twice.
struct All(Vec<(String, Raw)>);

impl<'de> Deserialize<'de> for All {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = All;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<All, A::Error> {
                use serde::de::Error as _;
                let mut all = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let raw = map.next_value::<Raw>();
                    let raw = raw.map_err(|e| A::Error::custom(format!("tensor {name}: {e}")))?;
                    all.push((name, raw));
                }
                Ok(All(all))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// Decodes the header of a whole file.
pub fn decode(bytes: &[u8]) -> Result<Header, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let what = format!("{} bytes are too few for a safetensors file", bytes.len());
        return Err(what);
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_MAX {
        return Err(format!(
            "a header of {length} bytes is over {HEADER_MAX}: not a safetensors file, or damaged"
        ));
    }
    let length = length as usize;
    let Some(json) = rest.get(..length) else {
        return Err(format!(
            "a header of {length} bytes, but only {} are left: cut short, or damaged; download it again",
            rest.len()
        ));
    };
    let All(all) = serde_json::from_slice(json).map_err(|e| format!("header: {e}"))?;
    let mut header = Header {
        data: 8 + length,
        ..Header::default()
    };
    for (name, raw) in all {
        let entry = raw.entry(rest.len() - length);
        let entry = entry.map_err(|e| format!("tensor {name}: {e}"))?;
        if header.tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    Ok(header)
}

impl Raw {
    fn entry(self, available: usize) -> Result<Entry, String> {
        let kind = Kind::from_safetensors(&self.dtype).ok_or_else(|| {
            format!(
                "type {} is not supported; F32, F16 and BF16 are",
                self.dtype
            )
        })?;
        let (from, to) = self.data_offsets;
        if to < from || to > available {
            return Err(format!(
                "its bytes {from} to {to} are beyond the {available} of the file: cut short, or \
                 damaged; download it again"
            ));
        }
        let (size, shape) = (kind.bytes(&self.shape)?, self.shape);
        if to - from != size {
            return Err(format!(
                "{} bytes for shape {shape:?} of {}, not {size}",
                to - from,
                self.dtype
            ));
        }
        Ok(Entry {
            kind,
            shape,
            from,
            to,
        })
    }
}
