//! The bytes of a [`Head`].
//!
//! Invariant: `decode(encode(h)) == h`, bit by bit; any other bytes give a [`DecodeError`], never a panic, and no more
//! memory is allocated than a small multiple of the bytes. It does not know where the bytes are kept.
//!
//! Little endian: `NSHD`; version u32; rank u32; width u32; number of names u32; length u32 and bytes of the model's
//! revision, and of the template's hash; the projection of users, then that of names, each with its weights row by row
//! and its shift, f32; per name in ascending order its length u32, its bytes, and its key, f32; FNV-1a of all before
//! it, u64.

use std::collections::BTreeMap;

use super::{Head, Origin, Projection};
use crate::text::DecodeError;
use crate::text::bytes::{self, Rest};

const MAGIC: &[u8; 4] = b"NSHD";
const VERSION: u32 = 1;
/// What the bytes are, in errors.
const WHAT: &str = "a head";
/// The most numbers of a key.
const RANK_MAX: u32 = 1 << 10;
/// The most numbers of a hidden state.
const WIDTH_MAX: u32 = 1 << 16;

impl Head {
    /// The head as bytes; the same head gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let (rank, width) = (self.users.rank(), self.width());
        for number in [VERSION, rank as u32, width as u32, self.keys.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes::text(&mut bytes, &self.origin.model);
        bytes::text(&mut bytes, &self.origin.template);
        for projection in [&self.users, &self.names] {
            numbers(&mut bytes, &projection.weights);
            numbers(&mut bytes, &projection.shift);
        }
        for (name, key) in &self.keys {
            bytes::text(&mut bytes, name);
            numbers(&mut bytes, key);
        }
        bytes::end(&mut bytes);
        bytes
    }

    /// The head of bytes that [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Rest::new(bytes, WHAT);
        rest.header(MAGIC, VERSION)?;
        let rank = rest.number("the header")?;
        let width = rest.number("the header")?;
        if !(1..=RANK_MAX).contains(&rank) || !(1..=WIDTH_MAX).contains(&width) {
            return Err(rest.damaged("rank or width are out of their range"));
        }
        let count = rest.number("the header")?;
        let origin = Origin {
            model: rest.text("the header")?.to_owned(),
            template: rest.text("the header")?.to_owned(),
        };
        let (rank, width) = (rank as usize, width as usize);
        let users = projection(&mut rest, (rank, width))?;
        let names = projection(&mut rest, (rank, width))?;
        let mut keys = BTreeMap::new();
        for _ in 0..count {
            let name = rest.text("a name")?;
            let last = keys
                .last_key_value()
                .map(|(last, _): (&String, _)| &last[..]);
            if last >= Some(name) {
                return Err(rest.damaged("names are not in order"));
            }
            keys.insert(name.to_owned(), finite(&mut rest, rank, "a name")?);
        }
        rest.end()?;
        Ok(Self {
            origin,
            users,
            names,
            keys,
        })
    }
}

fn numbers(bytes: &mut Vec<u8>, numbers: &[f32]) {
    numbers
        .iter()
        .for_each(|number| bytes.extend(number.to_le_bytes()));
}

fn projection(
    rest: &mut Rest<'_>,
    (rank, width): (usize, usize),
) -> Result<Projection, DecodeError> {
    let weights = finite(rest, rank * width, "a projection")?;
    let shift = finite(rest, rank, "a projection")?;
    Ok(Projection::new(weights, shift))
}

fn finite(
    rest: &mut Rest<'_>,
    count: usize,
    within: &'static str,
) -> Result<Vec<f32>, DecodeError> {
    let bytes = rest.take(count * 4, within)?.chunks_exact(4);
    let number = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    let numbers: Vec<f32> = bytes.map(number).collect();
    match numbers.iter().all(|number| number.is_finite()) {
        true => Ok(numbers),
        false => Err(rest.damaged("a number is not finite")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn some() -> impl Strategy<Value = Head> {
        let names = prop::collection::btree_set("[a-z ]{0,8}", 0..6);
        (1usize..4, 1usize..9, names, any::<u64>()).prop_map(|(rank, width, names, seed)| {
            let number = |nth: usize| f32::from(seed.rotate_left(nth as u32 % 64) as i16) / 256.0;
            let projection = |from: usize| {
                let weights = (0..rank * width).map(|nth| number(nth + from)).collect();
                Projection::new(weights, (0..rank).map(number).collect())
            };
            let origin = Origin {
                model: "model".into(),
                template: format!("{seed}"),
            };
            let read = (0..).zip(names).map(|(nth, name)| {
                let hidden = (0..width).map(|x| number(x * 3 + nth)).collect();
                (name, hidden)
            });
            Head::new(origin, (projection(1), projection(7)), read)
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_bit_by_bit(head in some()) {
            let bytes = head.encode();
            let again = Head::decode(&bytes).expect("decodes");
            prop_assert_eq!(again.encode(), bytes);
            prop_assert_eq!(again, head);
        }

        #[test]
        fn bytes_that_are_cut_or_changed_are_an_error(
            head in some(), at in any::<prop::sample::Index>(), by in 1u8..=255,
        ) {
            let mut bytes = head.encode();
            let at = at.index(bytes.len());
            let error = Head::decode(&bytes[..at]).expect_err("cut");
            prop_assert!(error.to_string().contains("cut short"), "{}", error);
            bytes[at] ^= by;
            prop_assert!(Head::decode(&bytes).is_err());
        }
    }
}
