//! The header of a GGUF file: bytes -> keys and tensors.
//!
//! Pure. Decides what a well-formed header is. Invariant: for any bytes, no allocation is larger than the bytes,
//! nothing panics, and every [`Entry`] lies within the bytes. It does not know what keys and tensors mean. Source:
//! ggml's `docs/gguf.md`.

use std::collections::BTreeMap;

use crate::formats::tensor::{Entry, Kind};

/// The most dimensions of a tensor.
const DIMENSIONS_MAX: u32 = 4;

/// A decoded header.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Metadata by key.
    pub keys: BTreeMap<String, Value>,
    /// Tensors by name; offsets count from `data`.
    pub tensors: BTreeMap<String, Entry>,
    /// First byte of the tensors' data.
    pub data: usize,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer, and booleans.
    Integer(i128),
    /// Any floating-point number.
    Float(f64),
    /// A text.
    Text(String),
    /// Integers or booleans.
    Integers(Vec<i64>),
    /// Floating-point numbers.
    Floats(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
}

/// Decodes the header of a whole file.
pub fn decode(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { bytes, at: 0 };
    let magic = reader.take(4)?;
    if magic != b"GGUF" {
        return Err("it does not start with \"GGUF\": not a GGUF file".into());
    }
    let version = reader.u32()?;
    match version {
        2 | 3 => {}
        1 => return Err("GGUF version 1 is not supported; convert the model again".into()),
        _ if version.swap_bytes() <= 3 => {
            return Err("big-endian GGUF is not supported; convert the model again".into());
        }
        _ => {
            return Err(format!(
                "GGUF version {version} is not supported; 2 and 3 are"
            ));
        }
    }
    let (tensors, keys) = (reader.u64()?, reader.u64()?);
    let mut header = Header::default();
    for nth in 0..keys {
        let before = |e: String| format!("key {} of {keys}: {e}", nth + 1);
        let key = reader.text().map_err(before)?;
        let value = reader.value().map_err(|e| format!("key {key}: {e}"))?;
        if header.keys.insert(key.clone(), value).is_some() {
            return Err(format!("key {key} is there twice"));
        }
    }
    let mut found = Vec::new();
    for nth in 0..tensors {
        let before = |e: String| format!("tensor {} of {tensors}: {e}", nth + 1);
        let name = reader.text().map_err(before)?;
        let tensor = reader.tensor().map_err(|e| format!("tensor {name}: {e}"))?;
        found.push((name, tensor));
    }
    let alignment = alignment(&header.keys)?;
    header.data = reader
        .at
        .checked_next_multiple_of(alignment)
        .ok_or("the header ends beyond any file")?;
    // Without this check a tensor of 0 bytes would be accepted in a file that ends within its header.
    if !found.is_empty() && header.data > bytes.len() {
        return Err(
            "the file ends before its data begins: cut short, or damaged; download it again".into(),
        );
    }
    for (name, tensor) in found {
        let entry = tensor.entry(bytes.len().saturating_sub(header.data), alignment);
        let entry = entry.map_err(|e| format!("tensor {name}: {e}"))?;
        if header.tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    Ok(header)
}

fn alignment(keys: &BTreeMap<String, Value>) -> Result<usize, String> {
    match keys.get("general.alignment") {
        None => Ok(32),
        Some(Value::Integer(size)) if [8, 16, 32, 64, 128, 256, 4096].contains(size) => {
            Ok(*size as usize)
        }
        Some(other) => Err(format!(
            "key general.alignment: {other:?} is not a power of 2 from 8 to 256, or 4096"
        )),
    }
}

struct Tensor {
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl Tensor {
    fn entry(self, available: usize, alignment: usize) -> Result<Entry, String> {
        let kind = Kind::from_gguf(self.kind).map_err(|name| {
            format!(
                "{name} is not supported; {:?} are: quantise the model to one of them",
                Kind::ALL
            )
        })?;
        let size = kind.bytes(&self.shape)?;
        let within = usize::try_from(self.offset).ok().and_then(|from| {
            let to = from.checked_add(size)?;
            (to <= available).then_some((from, to))
        });
        let Some((from, to)) = within else {
            return Err(format!(
                "its {size} bytes at {} are beyond the {available} of the file: cut short, or \
                 damaged; download it again",
                self.offset
            ));
        };
        if !from.is_multiple_of(alignment) {
            return Err(format!(
                "its offset {from} is not a multiple of {alignment}"
            ));
        }
        Ok(Entry {
            kind,
            shape: self.shape,
            from,
            to,
        })
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let left = self.bytes.len() - self.at;
        if count > left {
            return Err(format!(
                "the file ends within the header ({count} bytes are needed at {}, {left} are left): cut short, \
                 or damaged; download it again",
                self.at
            ));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads the length of a list whose items have at least `least` bytes each; refuses one that the file cannot hold.
    fn length(&mut self, least: usize) -> Result<usize, String> {
        let (claimed, left) = (self.u64()?, self.bytes.len() - self.at);
        let fits = usize::try_from(claimed)
            .ok()
            .filter(|count| count.checked_mul(least).is_some_and(|bytes| bytes <= left));
        fits.ok_or_else(|| {
            format!("a length of {claimed}, but only {left} bytes are left: cut short, or damaged")
        })
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.length(1)?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text that is not UTF-8")?;
        // Some writers include C's terminating zero in the length.
        Ok(text.trim_end_matches('\0').to_owned())
    }

    fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        match kind {
            6 | 12 => Ok(Value::Float(self.float(kind)?)),
            8 => Ok(Value::Text(self.text()?)),
            9 => self.values(),
            _ => Ok(Value::Integer(self.integer(kind)?)),
        }
    }

    fn values(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        match kind {
            6 | 12 => {
                let length = self.length(if kind == 6 { 4 } else { 8 })?;
                let each = (0..length).map(|_| self.float(kind));
                each.collect::<Result<_, _>>().map(Value::Floats)
            }
            8 => {
                let length = self.length(8)?;
                let each = (0..length).map(|_| self.text());
                each.collect::<Result<_, _>>().map(Value::Texts)
            }
            9 => Err("a list of lists is not supported".into()),
            _ => {
                let length = self.length(1)?;
                let each = (0..length).map(|_| {
                    let value = self.integer(kind)?;
                    i64::try_from(value).map_err(|_| format!("{value} is too large"))
                });
                each.collect::<Result<_, _>>().map(Value::Integers)
            }
        }
    }

    fn float(&mut self, kind: u32) -> Result<f64, String> {
        match kind {
            6 => Ok(f32::from_le_bytes(self.array()?).into()),
            _ => Ok(f64::from_le_bytes(self.array()?)),
        }
    }

    fn integer(&mut self, kind: u32) -> Result<i128, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => u32::from_le_bytes(self.array()?).into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            7 => match u8::from_le_bytes(self.array()?) {
                one @ 0..=1 => one.into(),
                other => return Err(format!("{other} is neither true nor false")),
            },
            10 => u64::from_le_bytes(self.array()?).into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            other => return Err(format!("values of type {other} are unknown")),
        })
    }

    fn tensor(&mut self) -> Result<Tensor, String> {
        let dimensions = self.u32()?;
        if dimensions > DIMENSIONS_MAX {
            return Err(format!("{dimensions} dimensions; {DIMENSIONS_MAX} at most"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|_| format!("size {size} is too large"))?);
        }
        // GGUF has the innermost dimension first.
        shape.reverse();
        Ok(Tensor {
            shape,
            kind: self.u32()?,
            offset: self.u64()?,
        })
    }
}
