//! The bytes of a [`ProductTable`].
//!
//! Invariant: `decode(encode(t)) == t`, bit by bit; any other bytes give a [`DecodeError`], never a panic, and no more
//! memory is allocated than a small multiple of the bytes. It does not know where the bytes are kept.
//!
//! Little endian: `NSPT`; version u32; products u32; columns u32; length u32 and bytes of the model's revision; number
//! of wordings u32, each with its length u32; per product length u32 and bytes of its id; per column what is common,
//! f32; per product the value of the columns that are not kept, f32, number of those that are, u32, each in ascending
//! order with its column, u32, and value, f32; FNV-1a of all before it, u64.

use super::{Origin, ProductTable, Row};
use crate::text::DecodeError;
use crate::text::bytes::{self, Rest, SUM};

const MAGIC: &[u8; 4] = b"NSPT";
const VERSION: u32 = 1;
/// What the bytes are, in errors.
const WHAT: &str = "a product table";

impl ProductTable {
    /// The table as bytes; the same table gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let kept: usize = self.rows.iter().map(|row| 8 + 8 * row.kept.len()).sum();
        let ids: usize = self.products.iter().map(|id| 4 + id.len()).sum();
        let mut bytes = Vec::with_capacity(64 + ids + 4 * self.common.len() + kept + SUM);
        bytes.extend(MAGIC);
        for number in [VERSION, self.products.len() as u32, self.columns() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes::text(&mut bytes, &self.origin.model);
        bytes.extend((self.origin.wordings.len() as u32).to_le_bytes());
        for text in self.origin.wordings.iter().chain(&self.products) {
            bytes::text(&mut bytes, text);
        }
        for value in &self.common {
            bytes.extend(value.to_le_bytes());
        }
        for row in &self.rows {
            bytes.extend(row.rest.to_le_bytes());
            bytes.extend((row.kept.len() as u32).to_le_bytes());
            for (column, value) in &row.kept {
                bytes.extend(column.to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
        }
        bytes::end(&mut bytes);
        bytes
    }

    /// The table of bytes that [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = Rest::new(bytes, WHAT);
        rest.header(MAGIC, VERSION)?;
        let count = rest.number("the header")?;
        let columns = rest.number("the header")?;
        if columns > count {
            return Err(rest.damaged("it has more columns than products"));
        }
        let model = rest.text("the header")?.to_owned();
        let wordings = rest.number("the header")?;
        let wordings = texts(&mut rest, wordings, "a wording")?;
        let products = texts(&mut rest, count, "a product's id")?;
        let mut sorted: Vec<&String> = products.iter().collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|two| two[0] == two[1]) {
            return Err(rest.damaged("a product has two rows"));
        }
        let mut common = Vec::new();
        for _ in 0..columns {
            common.push(finite(&mut rest, "the columns")?);
        }
        let mut rows = Vec::new();
        for _ in 0..count {
            rows.push(row(&mut rest, columns)?);
        }
        rest.end()?;
        Ok(Self {
            origin: Origin { model, wordings },
            products,
            common,
            rows,
        })
    }
}

fn texts(
    rest: &mut Rest<'_>,
    count: u32,
    within: &'static str,
) -> Result<Vec<String>, DecodeError> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(rest.text(within)?.to_owned());
    }
    Ok(texts)
}

fn finite(rest: &mut Rest<'_>, within: &'static str) -> Result<f32, DecodeError> {
    let value = f32::from_le_bytes(rest.array(within)?);
    match value.is_finite() {
        true => Ok(value),
        false => Err(rest.damaged("a value is not finite")),
    }
}

fn row(rest: &mut Rest<'_>, columns: u32) -> Result<Row, DecodeError> {
    let value = finite(rest, "a row")?;
    let count = rest.number("a row")?;
    let mut kept: Vec<(u32, f32)> = Vec::new();
    for _ in 0..count {
        let column = rest.number("a row")?;
        if column >= columns || kept.last().is_some_and(|(last, _)| *last >= column) {
            return Err(rest.damaged("columns are not in order"));
        }
        kept.push((column, finite(rest, "a row")?));
    }
    Ok(Row { rest: value, kept })
}
