//! The bytes of [`Vectors`].
//!
//! Invariant: `decode(encode(v)) == v`, bit by bit; any other bytes give a [`DecodeError`], never a panic, and no more
//! memory is allocated than a small multiple of the bytes. It does not know where the bytes are kept.
//!
//! Little endian: `NSTV`; version u32; width u32; count u32; length u32 and bytes of the encoder's hash; per text in
//! ascending order its length u32, its bytes, scale f32, a signed byte per number; FNV-1a of all before it, u64.

use std::collections::BTreeMap;
use std::hash::Hasher;

use super::{Vector, Vectors, WIDTH_MAX};
use crate::text::is_normal;

const MAGIC: &[u8; 4] = b"NSTV";
const VERSION: u32 = 1;
/// Bytes of the sum at the end.
const SUM: usize = 8;

/// Why bytes are not vectors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are of something else.
    #[error("not a file of text vectors; make it again")]
    Other,
    /// Written by a later release.
    #[error(
        "version {found} of text vectors is newer than {known}, the newest that this release reads; upgrade it"
    )]
    Newer {
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// The bytes end too early.
    #[error("text vectors are cut short: {found} bytes end within {within}; make the file again")]
    Short {
        /// Number of bytes.
        found: usize,
        /// What is not complete.
        within: &'static str,
    },
    /// Bytes that no version writes.
    #[error("text vectors are damaged: {0}; make the file again")]
    Damaged(&'static str),
}

impl Vectors {
    /// The vectors as bytes; the same vectors give the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let texts: usize = self.by_text.keys().map(String::len).sum();
        let each = 8 + self.width;
        let size = 20 + self.encoder.len() + texts + self.by_text.len() * each + SUM;
        let mut bytes = Vec::with_capacity(size);
        bytes.extend(MAGIC);
        for number in [VERSION, self.width as u32, self.by_text.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        text(&mut bytes, &self.encoder);
        for (name, vector) in &self.by_text {
            text(&mut bytes, name);
            bytes.extend(vector.scale.to_le_bytes());
            bytes.extend(vector.values.iter().map(|x| *x as u8));
        }
        let sum = sum(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    /// The vectors of bytes that [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Rest { all: bytes, at: 0 };
        if !bytes.starts_with(MAGIC) && !MAGIC.starts_with(bytes) {
            return Err(DecodeError::Other);
        }
        rest.take(MAGIC.len(), "the header")?;
        match rest.number("the header")? {
            0 => return Err(DecodeError::Damaged("version 0")),
            VERSION => {}
            found => {
                return Err(DecodeError::Newer {
                    found,
                    known: VERSION,
                });
            }
        }
        let width = rest.number("the header")? as usize;
        if !(1..=WIDTH_MAX).contains(&width) {
            return Err(DecodeError::Damaged("the width is out of its range"));
        }
        let count = rest.number("the header")?;
        let encoder = rest.text("the header")?.to_owned();
        let mut by_text = BTreeMap::new();
        for _ in 0..count {
            let name = rest.text("a text")?;
            let last = by_text
                .last_key_value()
                .map(|(last, _): (&String, _)| &last[..]);
            if last >= Some(name) || !is_normal(name) {
                return Err(DecodeError::Damaged("texts are not in order"));
            }
            by_text.insert(name.to_owned(), rest.vector(width)?);
        }
        let summed = sum(&bytes[..rest.at]);
        let found: [u8; SUM] = rest.array("the sum")?;
        if rest.at != bytes.len() {
            return Err(DecodeError::Damaged("bytes after the end"));
        }
        if u64::from_le_bytes(found) != summed {
            return Err(DecodeError::Damaged("the sum is wrong"));
        }
        Ok(Self {
            encoder,
            width,
            by_text,
        })
    }
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

/// Bytes that are not yet read.
struct Rest<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, many: usize, within: &'static str) -> Result<&'a [u8], DecodeError> {
        let taken = self.all[self.at..].get(..many);
        let taken = taken.ok_or(DecodeError::Short {
            found: self.all.len(),
            within,
        })?;
        self.at += many;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, within: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, within)?);
        Ok(array)
    }

    fn number(&mut self, within: &'static str) -> Result<u32, DecodeError> {
        self.array(within).map(u32::from_le_bytes)
    }

    fn text(&mut self, within: &'static str) -> Result<&'a str, DecodeError> {
        let length = self.number(within)? as usize;
        let bytes = self.take(length, within)?;
        str::from_utf8(bytes).map_err(|_| DecodeError::Damaged("a text is not UTF-8"))
    }

    fn vector(&mut self, width: usize) -> Result<Vector, DecodeError> {
        let scale = f32::from_le_bytes(self.array("a vector")?);
        if !(scale >= 0.0 && scale.is_finite()) || scale.is_sign_negative() {
            return Err(DecodeError::Damaged(
                "a scale is not finite and not under 0",
            ));
        }
        let values = self.take(width, "a vector")?;
        Ok(Vector {
            scale,
            values: values.iter().map(|x| *x as i8).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> impl Strategy<Value = Vectors> {
        let texts = prop::collection::btree_map(any::<String>(), any::<u64>(), 0..8);
        (1usize..20, "[0-9a-f]{0,16}", texts).prop_map(|(width, encoder, texts)| {
            let mut vectors = Vectors::new(&encoder, width);
            for (text, seed) in texts {
                let number = |nth: u64| (seed.rotate_left(nth as u32) as i16) as f32 / 4096.0;
                let numbers: Vec<f32> = (0..width as u64).map(number).collect();
                vectors.insert(&text, &numbers).expect("fits");
            }
            vectors
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_bit_by_bit(vectors in some()) {
            let bytes = vectors.encode();
            let again = Vectors::decode(&bytes).expect("decodes");
            prop_assert_eq!(again.encode(), bytes);
            prop_assert_eq!(again, vectors);
        }

        #[test]
        fn bytes_that_are_cut_anywhere_are_short(vectors in some(), cut in any::<prop::sample::Index>()) {
            let bytes = vectors.encode();
            let error = Vectors::decode(&bytes[..cut.index(bytes.len())]).expect_err("cut");
            prop_assert!(matches!(error, DecodeError::Short { .. }), "{}", error);
            prop_assert!(error.to_string().contains("cut short"), "{}", error);
        }

        #[test]
        fn any_changed_byte_is_an_error(vectors in some(), at in any::<prop::sample::Index>(), by in 1u8..=255) {
            let mut bytes = vectors.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(Vectors::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_decode_or_are_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..200), whole in any::<bool>(),
        ) {
            let mut bytes = bytes;
            if whole {
                bytes.splice(0..0, *b"NSTV\x01\0\0\0\x02\0\0\0");
            }
            let _ = Vectors::decode(&bytes);
        }
    }

    #[test]
    fn other_files_and_newer_versions_are_told_apart() {
        let mut vectors = Vectors::new("abc", 1);
        vectors.insert("tea", &[1.0]).expect("fits");
        let bytes = vectors.encode();
        let with = |at: usize, value: u32| {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            Vectors::decode(&bytes).expect_err("refused").to_string()
        };
        for (error, expected) in [
            (with(0, 7), "not a file of text vectors"),
            (with(4, 2), "version 2 of text vectors is newer than 1"),
            (with(4, 0), "version 0"),
            (with(8, 0), "the width is out of its range"),
            (with(8, u32::MAX), "the width is out of its range"),
            (with(12, u32::MAX), "cut short"),
            (with(16, u32::MAX), "cut short"),
        ] {
            assert!(error.contains(expected), "{error}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(
            Vectors::decode(&longer),
            Err(DecodeError::Damaged("bytes after the end"))
        );
    }
}
