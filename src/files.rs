//! Reads files of text that people and other programs saved: the only place of the binary that does.
//!
//! Decides what an error says: file, line, and what to do. What is read and what is refused is decided by
//! [`nearshore_core::text::decode`]. Invariant: a text that is returned is UTF-8 without byte-order marks at the
//! beginnings of lines, and each line ends with a line feed. It does not know what the lines mean.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use nearshore_core::text::{Damage, decode};

/// Why a file of text cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be opened or read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file, or `standard input`.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// It is not text in UTF-8.
    #[error("{path}:{line}: {damage}", line = damage.line)]
    Encoding {
        /// The file.
        path: String,
        /// Where and what.
        damage: Damage,
    },
    /// It has no text, or only blanks.
    #[error("{path} is empty; {wanted}")]
    Empty {
        /// The file.
        path: String,
        /// What to put into it.
        wanted: &'static str,
    },
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read {
        path: path.display().to_string(),
        source,
    })?;
    decode(&bytes).map_err(|damage| Error::Encoding {
        path: path.display().to_string(),
        damage,
    })
}

/// Reads a file that must have a text. `wanted` says what to put into an empty one.
pub(crate) fn read_filled(path: &Path, wanted: &'static str) -> Result<String, Error> {
    let text = read(path)?;
    if text.trim().is_empty() {
        let path = path.display().to_string();
        return Err(Error::Empty { path, wanted });
    }
    Ok(text)
}

/// The lines of a file that is too large to be held in memory, with their numbers from 1. After an error there are no
/// more lines. `path` names it in errors.
pub(crate) fn lines<R: BufRead>(reader: R, path: &Path) -> Lines<R> {
    Lines {
        reader,
        path: path.into(),
        read: 0,
    }
}

/// See [`lines`].
pub(crate) struct Lines<R> {
    reader: R,
    path: PathBuf,
    read: usize,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<(usize, String), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        let path = || self.path.display().to_string();
        match self.reader.read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(_) => self.read += 1,
            Err(source) => {
                let path = path();
                return Some(Err(Error::Read { path, source }));
            }
        }
        let line = decode(&bytes).map_err(|mut damage| {
            damage.line = self.read;
            let path = path();
            Error::Encoding { path, damage }
        });
        Some(line.map(|line| (self.read, line.trim_end_matches('\n').to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_file_and_line_and_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("names.txt");
        let error = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("written");
            let error = read_filled(&path, "give one name per line").expect_err("refused");
            error.to_string().replace(&path.display().to_string(), "F")
        };
        assert_eq!(error(b""), "F is empty; give one name per line");
        assert_eq!(
            error(b"\xef\xbb\xbf \r\n"),
            "F is empty; give one name per line"
        );
        let latin = error(b"TEA\r\nCAF\xc9\r\n");
        assert!(
            latin.starts_with("F:2: not UTF-8: byte 0xc9 at column 4; save"),
            "{latin}"
        );
        let wide = error(b"\xff\xfeT\0");
        assert!(
            wide.starts_with("F:1: the file is UTF-16; save it as UTF-8"),
            "{wide}"
        );
        let missing = read(&folder.path().join("missing"))
            .expect_err("missing")
            .to_string();
        assert!(
            missing.contains("missing cannot be read: No such file"),
            "{missing}"
        );
    }

    #[test]
    fn lines_are_numbered_and_decoded_as_the_whole_file_is() {
        let bytes = b"\xef\xbb\xbfa\r\n\nb\n\xef\xbb\xbfc";
        let read: Result<Vec<_>, _> = lines(&bytes[..], Path::new("F")).collect();
        let read = read.expect("text");
        let expected = [(1, "a"), (2, ""), (3, "b"), (4, "c")];
        assert_eq!(read, expected.map(|(nth, line)| (nth, line.to_owned())));
        let bad = lines(&b"a\n\xe9\n"[..], Path::new("F")).nth(1);
        let bad = bad.expect("a line").expect_err("Latin-1").to_string();
        assert!(
            bad.starts_with("F:2: not UTF-8: byte 0xe9 at column 1"),
            "{bad}"
        );
    }
}
