//! Bytes of a file that a release writes and a later one reads: a mark, a version, the content, and a sum over all of it.
//!
//! Decides what is not such a file, and why. Invariant: any bytes give a value or a [`DecodeError`], never a panic, and
//! nothing is allocated before the bytes that fill it are there. It does not know what the content means.

use std::hash::Hasher;

/// Bytes of the sum at the end.
pub(crate) const SUM: usize = 8;

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are of something else.
    #[error("not a file of {what}; make it again")]
    Other {
        /// What should be in the file.
        what: &'static str,
    },
    /// Written by a later release.
    #[error(
        "version {found} of {what} is newer than {known}, the newest that this release reads; upgrade it"
    )]
    Newer {
        /// What is in the file.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Newest version known.
        known: u32,
    },
    /// The bytes end too early.
    #[error(
        "the file of {what} is cut short: its {found} bytes end within {within}; make it again"
    )]
    Short {
        /// What is in the file.
        what: &'static str,
        /// Number of bytes.
        found: usize,
        /// What is not complete.
        within: &'static str,
    },
    /// Bytes that no version writes.
    #[error("the file of {what} is damaged: {why}; make it again")]
    Damaged {
        /// What is in the file.
        what: &'static str,
        /// What is wrong.
        why: &'static str,
    },
}

/// Adds a text behind its length.
pub(crate) fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Adds the sum of all bytes, FNV-1a, as the last ones.
pub(crate) fn end(bytes: &mut Vec<u8>) {
    let sum = sum(bytes);
    bytes.extend(sum.to_le_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

/// Bytes that are not yet read.
pub(crate) struct Rest<'a> {
    all: &'a [u8],
    at: usize,
    what: &'static str,
}

impl<'a> Rest<'a> {
    /// All bytes of a file of `what`.
    pub(crate) fn new(all: &'a [u8], what: &'static str) -> Self {
        Self { all, at: 0, what }
    }

    /// Reads the mark and the version, which is the only one known.
    pub(crate) fn header(&mut self, mark: &[u8; 4], known: u32) -> Result<(), DecodeError> {
        let what = self.what;
        if !self.all.starts_with(mark) && !mark.starts_with(self.all) {
            return Err(DecodeError::Other { what });
        }
        self.take(mark.len(), "the header")?;
        match self.number("the header")? {
            0 => Err(self.damaged("version 0")),
            found if found > known => Err(DecodeError::Newer { what, found, known }),
            _ => Ok(()),
        }
    }

    /// The next bytes.
    pub(crate) fn take(
        &mut self,
        many: usize,
        within: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let taken = self.all[self.at..].get(..many);
        let taken = taken.ok_or(DecodeError::Short {
            what: self.what,
            found: self.all.len(),
            within,
        })?;
        self.at += many;
        Ok(taken)
    }

    /// The next bytes, so many as the array has.
    pub(crate) fn array<const N: usize>(
        &mut self,
        within: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, within)?);
        Ok(array)
    }

    /// A whole number.
    pub(crate) fn number(&mut self, within: &'static str) -> Result<u32, DecodeError> {
        self.array(within).map(u32::from_le_bytes)
    }

    /// A text behind its length.
    pub(crate) fn text(&mut self, within: &'static str) -> Result<&'a str, DecodeError> {
        let length = self.number(within)? as usize;
        let bytes = self.take(length, within)?;
        str::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    /// Reads the sum, which must be right, with nothing behind it.
    pub(crate) fn end(mut self) -> Result<(), DecodeError> {
        let summed = sum(&self.all[..self.at]);
        let found: [u8; SUM] = self.array("the sum")?;
        if self.at != self.all.len() {
            return Err(self.damaged("bytes after the end"));
        }
        match u64::from_le_bytes(found) == summed {
            true => Ok(()),
            false => Err(self.damaged("the sum is wrong")),
        }
    }

    /// An error of bytes that no version writes.
    pub(crate) fn damaged(&self, why: &'static str) -> DecodeError {
        let what = self.what;
        DecodeError::Damaged { what, why }
    }
}
