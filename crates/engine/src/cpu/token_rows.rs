//! The matrices that have a row for each token: the embedding and the output head.
//!
//! Decides in which form they stay in memory. A pass reads the rows of a few tokens, of a vocabulary that may have a
//! third of a small model's numbers; so the matrix stays as the file has it, and a row becomes `f32` when it is first
//! read. Invariant: a row has the same bits as if the whole matrix had been decoded. It does not know what rows are for.

use std::sync::OnceLock;

use crate::formats::tensor::Kind;

/// Rows that are decoded at a time while the whole matrix is read.
const PIECE: usize = 256;

/// A matrix `[tokens, width]`.
#[derive(Debug)]
pub(crate) struct TokenRows {
    width: usize,
    count: usize,
    encoded: Option<Encoded>,
    /// All rows: from the start if nothing is encoded, else when [`whole`](Self::whole) is first called.
    whole: OnceLock<Vec<f32>>,
}

#[derive(Debug)]
struct Encoded {
    kind: Kind,
    /// A copy: a file that is replaced while the model runs must not change it.
    bytes: Box<[u8]>,
    /// Bytes of a row.
    size: usize,
    rows: Box<[OnceLock<Box<[f32]>>]>,
}

impl TokenRows {
    /// A matrix whose numbers are decoded: `[tokens, width]`, row-major.
    pub(crate) fn new(numbers: Vec<f32>, width: usize) -> Self {
        assert!(width > 0, "a token has a row");
        Self {
            width,
            count: numbers.len() / width,
            encoded: None,
            whole: OnceLock::from(numbers),
        }
    }

    /// A matrix as a file has it, rows of `width` numbers of `kind`. The error says that the bytes cannot be decoded,
    /// or that a number is not finite.
    pub(crate) fn encoded(kind: Kind, bytes: &[u8], width: usize) -> Result<Self, String> {
        let size = kind.bytes(&[width])?;
        if size == 0 || !bytes.len().is_multiple_of(size) {
            return Err(format!(
                "{} bytes are not whole rows of {size}",
                bytes.len()
            ));
        }
        let count = bytes.len() / size;
        let mut whole = Vec::with_capacity(if kind == Kind::F32 { count * width } else { 0 });
        for piece in bytes.chunks(PIECE * size) {
            let numbers = kind.numbers(piece)?;
            if !numbers.iter().all(|number| number.is_finite()) {
                return Err("values that are not finite: the file is damaged".into());
            }
            // Nothing would be saved.
            if kind == Kind::F32 {
                whole.extend(numbers);
            }
        }
        if kind == Kind::F32 {
            return Ok(Self::new(whole, width));
        }
        let encoded = Encoded {
            kind,
            bytes: bytes.into(),
            size,
            rows: (0..count).map(|_| OnceLock::new()).collect(),
        };
        Ok(Self {
            width,
            count,
            encoded: Some(encoded),
            whole: OnceLock::new(),
        })
    }

    /// The row of a token; `None` if the vocabulary does not have it.
    pub(crate) fn row(&self, token: u32) -> Option<&[f32]> {
        let nth = token as usize;
        if nth >= self.count {
            return None;
        }
        match (self.whole.get(), &self.encoded) {
            (None, Some(encoded)) => Some(encoded.row(nth)),
            _ => Some(&self.whole()[nth * self.width..][..self.width]),
        }
    }

    /// All rows, `[tokens, width]`. They stay decoded from then on.
    pub(crate) fn whole(&self) -> &[f32] {
        self.whole.get_or_init(|| match &self.encoded {
            Some(encoded) => encoded.numbers(&encoded.bytes),
            None => Vec::new(),
        })
    }

    /// The rows of some tokens, one after the other; the error is the token that the vocabulary does not have.
    pub(crate) fn gather(&self, tokens: &[u32]) -> Result<Vec<f32>, u32> {
        let mut rows = Vec::with_capacity(tokens.len() * self.width);
        for token in tokens {
            rows.extend_from_slice(self.row(*token).ok_or(*token)?);
        }
        Ok(rows)
    }
}

impl Encoded {
    fn row(&self, nth: usize) -> &[f32] {
        let decode = || self.numbers(&self.bytes[nth * self.size..][..self.size]);
        self.rows[nth].get_or_init(|| decode().into_boxed_slice())
    }

    fn numbers(&self, bytes: &[u8]) -> Vec<f32> {
        let numbers = self.kind.numbers(bytes);
        numbers.expect("all rows were decoded when the matrix was made")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_bits_of_the_whole_in_every_type() {
        for kind in Kind::ALL {
            let (width, count) = (256, 300);
            let size = kind.bytes(&[width]).expect("whole blocks");
            // Bytes of 0 to 31: a scale of any type that they make is finite.
            let bytes: Vec<u8> = (0..count * size).map(|nth| (nth * 7 % 32) as u8).collect();
            let all = kind.numbers(&bytes).expect("whole blocks");
            let rows = TokenRows::encoded(kind, &bytes, width).expect("finite");
            let gathered = rows.gather(&[299, 0, 299]).expect("tokens");
            assert_eq!(gathered[..width], all[299 * width..], "{kind:?}");
            assert_eq!(gathered[width..2 * width], all[..width], "{kind:?}");
            assert_eq!(gathered[2 * width..], all[299 * width..], "{kind:?}");
            assert_eq!(rows.gather(&[1, 300]), Err(300), "{kind:?}");
            assert_eq!(rows.whole(), all, "{kind:?}");
            assert_eq!(rows.row(7), Some(&all[7 * width..][..width]), "{kind:?}");
        }
    }

    #[test]
    fn a_number_that_is_not_finite_and_half_a_row_are_refused() {
        let wrong = [f32::NAN, f32::INFINITY].map(half::f16::from_f32);
        for number in wrong {
            let mut bytes = vec![0u8; 2 * 4 * 600];
            bytes[2 * 4 * 599..][..2].copy_from_slice(&number.to_le_bytes());
            let error = TokenRows::encoded(Kind::F16, &bytes, 4).expect_err("not finite");
            assert!(error.contains("not finite"), "{error}");
        }
        assert!(TokenRows::encoded(Kind::F16, &[0; 12], 4).is_err());
        assert!(TokenRows::encoded(Kind::F16, &[], 0).is_err());
    }
}
