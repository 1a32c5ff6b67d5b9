//! The text in the bytes of a file that a person saved: [`decode`].
//!
//! Decides which encodings are read: UTF-8, with or without byte-order marks, with line ends of any system. Anything
//! else is refused with line and column, because a guess would put other letters into a name. Every line of the result
//! ends with a line feed or with the text. It does not know what the lines mean.

use std::fmt;

/// Byte-order mark, as some editors write it at the beginning of a file in UTF-8.
const MARK: char = '\u{feff}';

/// Why bytes are not a text. Its text says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    found: Found,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Utf16,
    Zero,
    Byte(u8),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = self.column;
        match self.found {
            Found::Utf16 => f.write_str(
                "the file is UTF-16; save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8",
            ),
            Found::Zero => write!(
                f,
                "a zero byte at column {column}: the file is UTF-16 or no text; save it as UTF-8, for example with \
                 iconv -f UTF-16LE -t UTF-8"
            ),
            Found::Byte(byte) => write!(
                f,
                "not UTF-8: byte 0x{byte:02x} at column {column}; save the file as UTF-8; if it is Latin-1 or \
                 Windows-1252, for example with iconv -f WINDOWS-1252 -t UTF-8"
            ),
        }
    }
}

impl std::error::Error for Damage {}

/// The text in the bytes of a file: without byte-order marks at the beginnings of lines (files that were joined have
/// several), and with a line feed for each line end.
pub fn decode(bytes: &[u8]) -> Result<String, Damage> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(damage("", Found::Utf16));
    }
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (good, bad) = bytes.split_at(error.valid_up_to());
            let good = str::from_utf8(good).unwrap_or_default();
            // A zero byte says more: text in UTF-16 is often partly UTF-8.
            let zero = good.find('\0').map(|at| damage(&good[..at], Found::Zero));
            let byte = bad.first().copied().unwrap_or_default();
            return Err(zero.unwrap_or_else(|| damage(good, Found::Byte(byte))));
        }
    };
    if let Some(at) = text.find('\0') {
        return Err(damage(&text[..at], Found::Zero));
    }
    if !text.contains(['\r', MARK]) {
        return Ok(text.to_owned());
    }
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines = text.split('\n').map(|line| line.trim_start_matches(MARK));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// The secret in the bytes of a file: its text without line ends at its end. An error does not quote the file.
pub fn decode_secret(bytes: &[u8]) -> Result<String, &'static str> {
    let text = decode(bytes).map_err(|_| "the file is not UTF-8 text; save it as UTF-8")?;
    match text.trim_end_matches('\n') {
        "" => Err("the file is empty; write the secret into it"),
        secret => Ok(secret.to_owned()),
    }
}

/// Damage behind this text.
fn damage(before: &str, found: Found) -> Damage {
    let before = before.replace("\r\n", "\n").replace('\r', "\n");
    let last = before.rsplit('\n').next().unwrap_or_default();
    Damage {
        line: before.matches('\n').count() + 1,
        column: last.trim_start_matches(MARK).chars().count() + 1,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_and_line_ends_of_any_system_are_read() {
        for (bytes, expected) in [
            (&b"a\nb\n"[..], "a\nb\n"),
            (b"\xef\xbb\xbfa\r\nb\r\n", "a\nb\n"),
            (b"a\rb", "a\nb"),
            (b"a\n\xef\xbb\xbfb", "a\nb"),
            (b"a\xef\xbb\xbfb", "a\u{feff}b"),
            (b"", ""),
            (b"\xef\xbb\xbf", ""),
        ] {
            assert_eq!(decode(bytes).as_deref(), Ok(expected), "{bytes:?}");
        }
    }

    #[test]
    fn a_secret_has_no_mark_and_no_line_end_and_an_error_does_not_quote_it() {
        assert_eq!(
            decode_secret(b"\xef\xbb\xbfhunter 2\r\n").as_deref(),
            Ok("hunter 2")
        );
        assert!(
            decode_secret(b"\r\n")
                .expect_err("empty")
                .contains("is empty")
        );
        for bytes in [&b"caf\xe9"[..], b"\xff\xfeh\0"] {
            let error = decode_secret(bytes).expect_err("no UTF-8");
            assert_eq!(error, "the file is not UTF-8 text; save it as UTF-8");
        }
    }

    #[test]
    fn other_encodings_are_refused_with_line_and_column() {
        let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(bytes).collect()
        };
        for (bytes, place, says) in [
            (
                b"TEA\r\nCAF\xc9\n".to_vec(),
                (2, 4),
                "byte 0xc9 at column 4",
            ),
            (b"\xef\xbb\xbf\xe9".to_vec(), (1, 1), "WINDOWS-1252"),
            (
                utf16("\u{feff}TEA\n", u16::to_le_bytes),
                (1, 1),
                "is UTF-16",
            ),
            (
                utf16("\u{feff}TEA\n", u16::to_be_bytes),
                (1, 1),
                "is UTF-16",
            ),
            (
                utf16("TEA", u16::to_le_bytes),
                (1, 2),
                "zero byte at column 2",
            ),
            (
                utf16("T\u{e9}", u16::to_le_bytes),
                (1, 2),
                "zero byte at column 2",
            ),
            (b"a\nb\0".to_vec(), (2, 2), "zero byte"),
            (b"\xe2\x82".to_vec(), (1, 1), "not UTF-8"),
        ] {
            let damage = decode(&bytes).expect_err(says);
            assert_eq!((damage.line, damage.column), place, "{bytes:?}");
            assert!(damage.to_string().contains(says), "{damage}");
            assert!(damage.to_string().contains("iconv -f"), "{damage}");
        }
    }
}
