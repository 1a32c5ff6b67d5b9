//! The bytes of [`Vectors`].
//!
//! Invariant: `decode(encode(v)) == v`, bit by bit; any other bytes give a [`DecodeError`], never a panic, and no more
//! memory is allocated than a small multiple of the bytes. It does not know where the bytes are kept.
//!
//! Little endian: `NSTV`; version u32; width u32; count u32; length u32 and bytes of the encoder's hash; per text in
//! ascending order its length u32, its bytes, scale f32, a signed byte per number; FNV-1a of all before it, u64.

use std::collections::BTreeMap;

use super::{Vector, Vectors, WIDTH_MAX};
use crate::text::bytes::{self, DecodeError, Rest, SUM};
use crate::text::is_normal;

const MAGIC: &[u8; 4] = b"NSTV";
const VERSION: u32 = 1;
/// What the bytes are, in errors.
const WHAT: &str = "text vectors";

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
        bytes::text(&mut bytes, &self.encoder);
        for (name, vector) in &self.by_text {
            bytes::text(&mut bytes, name);
            bytes.extend(vector.scale.to_le_bytes());
            bytes.extend(vector.values.iter().map(|x| *x as u8));
        }
        bytes::end(&mut bytes);
        bytes
    }

    /// The vectors of bytes that [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Rest::new(bytes, WHAT);
        rest.header(MAGIC, VERSION)?;
        let width = rest.number("the header")? as usize;
        if !(1..=WIDTH_MAX).contains(&width) {
            return Err(rest.damaged("the width is out of its range"));
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
                return Err(rest.damaged("texts are not in order"));
            }
            by_text.insert(name.to_owned(), vector(&mut rest, width)?);
        }
        rest.end()?;
        Ok(Self {
            encoder,
            width,
            by_text,
        })
    }
}

fn vector(rest: &mut Rest<'_>, width: usize) -> Result<Vector, DecodeError> {
    let scale = f32::from_le_bytes(rest.array("a vector")?);
    if !(scale >= 0.0 && scale.is_finite()) || scale.is_sign_negative() {
        return Err(rest.damaged("a scale is not finite and not under 0"));
    }
    let values = rest.take(width, "a vector")?;
    Ok(Vector {
        scale,
        values: values.iter().map(|x| *x as i8).collect(),
    })
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
            Err(DecodeError::Damaged {
                what: WHAT,
                why: "bytes after the end"
            })
        );
    }
}
