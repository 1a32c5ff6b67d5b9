//! Decodes a user's stored state by the documented encoding (decision 7): a version byte, then postcard with
//! variable-length integers, texts, sequences, options and doubles only. The register is not read.
//!
//! It shares no code with the product.

use anyhow::{Context, bail, ensure};

use crate::topics::Place;

/// One event of the window.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowEvent {
    pub time: i64,
    pub place: Place,
    pub kind: &'static str,
    pub item: (&'static str, String),
    pub qty: u64,
    pub price: Option<f64>,
}

/// The contents of a blob.
#[derive(Debug, Default, PartialEq)]
pub struct Stored {
    pub window: Vec<WindowEvent>,
    pub fences: Vec<Place>,
}

/// The bytes that are not read yet.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> anyhow::Result<u8> {
        let (first, rest) = self.0.split_first().context("too short")?;
        self.0 = rest;
        Ok(*first)
    }

    /// An integer with seven bits in each byte, lowest first.
    fn number(&mut self) -> anyhow::Result<u64> {
        let mut number = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        bail!("a number without an end")
    }

    /// A signed integer: 0, -1, 1, -2 are stored as 0, 1, 2, 3.
    fn signed(&mut self) -> anyhow::Result<i64> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
    }

    fn text(&mut self) -> anyhow::Result<String> {
        let length = usize::try_from(self.number()?)?;
        ensure!(length <= self.0.len(), "a text of {length} bytes");
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        Ok(String::from_utf8(text.to_vec())?)
    }

    fn double(&mut self) -> anyhow::Result<f64> {
        let (bytes, rest) = self.0.split_at_checked(8).context("too short")?;
        self.0 = rest;
        Ok(f64::from_le_bytes(bytes.try_into()?))
    }

    fn many<T>(&mut self, one: impl Fn(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
        let many = self.number()?;
        ensure!(many <= self.0.len() as u64, "a sequence of {many}");
        (0..many).map(|_| one(self)).collect()
    }

    fn place(&mut self) -> anyhow::Result<Place> {
        let incarnation = self.number()?;
        ensure!(incarnation == 0, "incarnation {incarnation}");
        let topic = self.text()?;
        Ok(Place(topic, i32::try_from(self.signed()?)?, self.signed()?))
    }
}

fn kind(code: u8) -> anyhow::Result<&'static str> {
    let kinds = ["impression", "view", "click", "cart", "purchase", "search"];
    kinds.get(usize::from(code)).copied().context("event kind")
}

fn item(code: u8) -> anyhow::Result<&'static str> {
    ["sku", "pu", "query"]
        .get(usize::from(code))
        .copied()
        .context("item kind")
}

/// Reads a blob of any version; of version 4 up to the register.
pub fn read(blob: &[u8]) -> anyhow::Result<Stored> {
    let mut bytes = Bytes(blob);
    let stored = match bytes.byte()? {
        1 => version_1(&mut bytes)?,
        2 => version_2(&mut bytes)?,
        3 | 4 => {
            bytes.signed()?;
            version_2(&mut bytes)?
        }
        other => bail!("version {other}"),
    };
    let rest = if blob[0] < 4 { bytes.0.len() } else { 0 };
    ensure!(rest == 0, "{rest} bytes too many");
    Ok(stored)
}

fn version_1(bytes: &mut Bytes<'_>) -> anyhow::Result<Stored> {
    let window = bytes.many(|bytes| {
        Ok(WindowEvent {
            time: bytes.signed()?,
            place: bytes.place()?,
            kind: kind(bytes.byte()?)?,
            item: (item(bytes.byte()?)?, bytes.text()?),
            qty: bytes.number()?,
            price: match bytes.byte()? {
                0 => None,
                _ => Some(bytes.double()?),
            },
        })
    })?;
    let fences = bytes.many(Bytes::place)?;
    Ok(Stored { window, fences })
}

fn version_2(bytes: &mut Bytes<'_>) -> anyhow::Result<Stored> {
    let topics = bytes.many(Bytes::text)?;
    let mut partitions = bytes.many(|bytes| {
        ensure!(bytes.number()? == 0, "incarnation");
        let topic = topics.get(usize::try_from(bytes.number()?)?);
        let number = i32::try_from(bytes.signed()?)?;
        let fence = match bytes.byte()? {
            0 => None,
            _ => Some(bytes.signed()?),
        };
        Ok((topic.context("topic")?.clone(), number, fence))
    })?;
    let fences = partitions.iter();
    let fences =
        fences.filter_map(|(topic, number, fence)| Some(Place(topic.clone(), *number, (*fence)?)));
    let fences = fences.collect();
    let many = bytes.number()?;
    let (mut window, mut time) = (Vec::new(), 0_i64);
    for _ in 0..many {
        time = time.wrapping_add(bytes.signed()?);
        let nth = usize::try_from(bytes.number()?)?;
        let (topic, number, last) = partitions.get_mut(nth).context("partition")?;
        let offset = last.unwrap_or(0).wrapping_add(bytes.signed()?);
        *last = Some(offset);
        window.push(WindowEvent {
            time,
            place: Place(topic.clone(), *number, offset),
            kind: kind(bytes.byte()?)?,
            item: (item(bytes.byte()?)?, bytes.text()?),
            qty: bytes.number()?,
            price: match bytes.byte()? {
                0 => None,
                1 => Some(bytes.number()? as f64 / 100.0),
                _ => Some(bytes.double()?),
            },
        });
    }
    Ok(Stored { window, fences })
}
