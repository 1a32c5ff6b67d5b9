//! A file of hidden states, mapped into memory: what a model computed once is not computed again.
//!
//! Rows are appended, each with its own sum, so a process that is killed loses the row that it was writing at most,
//! and the next one goes on. Invariant: a file has rows of one model in one precision and of one template, and a row
//! that is not what was written is never returned: a file of something else is refused, and one that ends within a
//! row, or has a damaged one, is cut back to the last good row before it. It does not know what prompts say: a row is
//! found by the hash of its prompt.
//!
//! Little endian: `NSHS`; version u32; type of the numbers u32 (1: f32); width u32; length u32 and bytes of the
//! model's revision, of its precision, and of the template's hash; the first 8 bytes of the SHA-256 of all before it.
//! Then rows: SHA-256 of the prompt, 32 bytes; `width` numbers; the first 8 bytes of the SHA-256 of both.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::Error;
use nearshore_core::names::scoring::Prompt;

const MAGIC: &[u8; 4] = b"NSHS";
const VERSION: u32 = 1;
/// The numbers are f32.
const F32: u32 = 1;
/// Bytes of a sum.
const SUM: usize = 8;
/// Bytes of a prompt's hash.
const KEY: usize = 32;

type Key = [u8; KEY];

/// Whose hidden states a file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Revision of the model.
    pub model: String,
    /// How it stores and multiplies weights.
    pub precision: String,
    /// Hash of the prompt template.
    pub template: String,
    /// Numbers of a hidden state.
    pub width: usize,
}

/// An open file of hidden states.
pub struct HiddenStates {
    path: PathBuf,
    file: File,
    width: usize,
    /// Place of each row, by prompt.
    rows: BTreeMap<Key, usize>,
    /// Bytes of the header and of all rows.
    len: usize,
    cut: usize,
    map: Option<Mmap>,
}

impl HiddenStates {
    /// Opens a file, or makes it. No other process may have it open.
    pub fn open(path: &Path, origin: &Origin) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::load(path, e.to_string());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        {
            // What users did can be guessed from it.
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let file = options.open(path).map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Error::load(path, "another process is writing hidden states to it")
            }
            TryLockError::Error(error) => failed(error),
        })?;
        let mut states = Self {
            path: path.to_owned(),
            file,
            width: origin.width,
            rows: BTreeMap::new(),
            len: 0,
            cut: 0,
            map: None,
        };
        let found = states.file.metadata().map_err(failed)?.len() as usize;
        let header = header(origin);
        let begins = states.bytes(found)?.map_or(0, |bytes| {
            let same = bytes.iter().zip(&header);
            same.take_while(|(a, b)| a == b).count()
        });
        if begins < header.len() && begins < found {
            let bytes = states.bytes(found)?.unwrap_or_default();
            return Err(Error::load(path, other(bytes, origin)));
        }
        if begins < header.len() {
            // New, or its first process was killed within the header.
            states.cut = found;
            states.write_at(0, &header)?;
        }
        states.len = header.len();
        states.read_rows(found)?;
        Ok(states)
    }

    /// Bytes that were cut off when it was opened, because they were no whole rows.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Number of hidden states.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has the hidden state after a prompt.
    pub fn has(&self, prompt: &Prompt) -> bool {
        self.rows.contains_key(&key(prompt))
    }

    /// The hidden state after a prompt.
    pub fn get(&mut self, prompt: &Prompt) -> Result<Option<Vec<f32>>, Error> {
        let Some(at) = self.rows.get(&key(prompt)).copied() else {
            return Ok(None);
        };
        let (from, to) = (at + KEY, at + KEY + 4 * self.width);
        let row = self.bytes(self.len)?.and_then(|bytes| bytes.get(from..to));
        let number = |four: &[u8]| f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        Ok(row.map(|row| row.chunks_exact(4).map(number).collect()))
    }

    /// Appends hidden states; those of prompts that it has are left out.
    pub fn add(&mut self, states: &[(Prompt, Vec<f32>)]) -> Result<(), Error> {
        let mut bytes = Vec::new();
        let mut new = Vec::new();
        for (prompt, state) in states {
            let key = key(prompt);
            if state.len() != self.width {
                let what = format!(
                    "a hidden state has {} numbers, not {}",
                    state.len(),
                    self.width
                );
                return Err(Error::load(&self.path, what));
            }
            if self.rows.contains_key(&key) || new.iter().any(|(known, _)| *known == key) {
                continue;
            }
            let at = bytes.len();
            bytes.extend(key);
            state
                .iter()
                .for_each(|number| bytes.extend(number.to_le_bytes()));
            let sum = sum(&bytes[at..]);
            bytes.extend(sum);
            new.push((key, self.len + at));
        }
        self.write_at(self.len, &bytes)?;
        self.len += bytes.len();
        self.rows.extend(new);
        Ok(())
    }

    /// Writes bytes at a place and cuts off what is behind them.
    fn write_at(&mut self, at: usize, bytes: &[u8]) -> Result<(), Error> {
        // Nothing is mapped while the file changes.
        self.map = None;
        let written = self.file.set_len(at as u64).and_then(|()| {
            self.file.seek(SeekFrom::Start(at as u64))?;
            self.file.write_all(bytes)
        });
        written.map_err(|e| Error::load(&self.path, e.to_string()))
    }

    /// The first `len` bytes of the file; `None` of an empty one.
    fn bytes(&mut self, len: usize) -> Result<Option<&[u8]>, Error> {
        if len == 0 {
            return Ok(None);
        }
        if self.map.is_none() {
            // SAFETY: the file is locked, so no other process of ours changes it, and this one drops the map before it
            // writes. If someone else cuts it meanwhile, the process is killed by a signal and its rows are kept.
            let map = unsafe { Mmap::map(&self.file) };
            self.map = Some(map.map_err(|e| Error::load(&self.path, e.to_string()))?);
        }
        Ok(self.map.as_ref().and_then(|map| map.get(..len)))
    }

    /// Finds the rows behind the header of a file of `found` bytes, and cuts off what is behind the last good one.
    fn read_rows(&mut self, found: usize) -> Result<(), Error> {
        let (mut at, size) = (self.len, KEY + 4 * self.width + SUM);
        let mut rows = BTreeMap::new();
        if let Some(bytes) = self.bytes(found)? {
            while let Some(row) = bytes.get(at..at + size) {
                let (content, ends) = row.split_at(size - SUM);
                if sum(content) != ends {
                    break;
                }
                let mut key = [0; KEY];
                key.copy_from_slice(&content[..KEY]);
                rows.insert(key, at);
                at += size;
            }
        }
        (self.rows, self.len) = (rows, at);
        if found > at {
            self.cut = found - at;
            self.write_at(at, &[])?;
        }
        Ok(())
    }
}

fn header(origin: &Origin) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for number in [VERSION, F32, origin.width as u32] {
        bytes.extend(number.to_le_bytes());
    }
    for text in [&origin.model, &origin.precision, &origin.template] {
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    let sum = sum(&bytes);
    bytes.extend(sum);
    bytes
}

/// Why a file is not one of this origin.
fn other(bytes: &[u8], origin: &Origin) -> String {
    let number = |at: usize| {
        let four = bytes.get(at..at + 4)?;
        Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
    };
    let advice = "give another --head-cache, or delete it";
    if !bytes.starts_with(MAGIC) {
        return format!("is not a file of hidden states; {advice}");
    }
    match number(4) {
        Some(found) if found > VERSION => {
            return format!(
                "has version {found}, newer than {VERSION}; upgrade nearshore, or {advice}"
            );
        }
        _ => {}
    }
    let mut at = 16;
    let wanted = [
        ("model", &origin.model),
        ("precision", &origin.precision),
        ("template", &origin.template),
    ];
    for (what, wanted) in wanted {
        let text = number(at).and_then(|len| bytes.get(at + 4..at + 4 + len as usize));
        let Some(text) = text else { break };
        if text != wanted.as_bytes() {
            let found = String::from_utf8_lossy(text);
            return format!("has hidden states of the {what} {found}, not of {wanted}; {advice}");
        }
        at += 4 + text.len();
    }
    match number(12) {
        Some(found) if found as usize != origin.width => {
            format!(
                "has hidden states of {found} numbers, not of {}; {advice}",
                origin.width
            )
        }
        _ => format!("has a damaged header; {advice}"),
    }
}

fn key(prompt: &Prompt) -> Key {
    let mut hash = Sha256::new();
    // The length is the border of the turns, which no text can move.
    hash.update((prompt.user.len() as u64).to_le_bytes());
    hash.update(prompt.user.as_bytes());
    hash.update(prompt.assistant.as_bytes());
    hash.finalize().into()
}

fn sum(bytes: &[u8]) -> [u8; SUM] {
    let digest = Sha256::digest(bytes);
    let mut sum = [0; SUM];
    sum.copy_from_slice(&digest[..SUM]);
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        Origin {
            model: "abc".into(),
            precision: "f32".into(),
            template: "def".into(),
            width: 3,
        }
    }

    fn states() -> Vec<(Prompt, Vec<f32>)> {
        let state = |nth: u8| {
            (
                Prompt::from(format!("user {nth}").as_str()),
                vec![f32::from(nth), 0.5, -1e9],
            )
        };
        (0..5).map(state).collect()
    }

    /// A file with all states.
    fn written(path: &Path) -> Vec<u8> {
        let mut file = HiddenStates::open(path, &origin()).expect("made");
        file.add(&states()[..2]).expect("added");
        file.add(&states()).expect("added");
        assert_eq!((file.rows(), file.cut()), (5, 0));
        drop(file);
        std::fs::read(path).expect("it is there")
    }

    fn error(path: &Path, origin: &Origin) -> String {
        let opened = HiddenStates::open(path, origin);
        opened.map(drop).expect_err("refused").to_string()
    }

    #[test]
    fn rows_are_found_by_their_prompts_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hidden");
        written(&path);
        let mut file = HiddenStates::open(&path, &origin()).expect("opened");
        for (prompt, state) in states() {
            assert!(file.has(&prompt));
            assert_eq!(file.get(&prompt).expect("read"), Some(state));
        }
        let moved = Prompt {
            user: "user".into(),
            assistant: " 1".into(),
        };
        assert_eq!(file.get(&moved).expect("read"), None);
        assert!(error(&path, &origin()).contains("another process"));
    }

    #[test]
    fn files_of_something_else_are_refused_and_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hidden");
        let bytes = written(&path);
        for (origin, expected) in [
            (
                Origin {
                    model: "abd".into(),
                    ..origin()
                },
                "of the model abc, not of abd",
            ),
            (
                Origin {
                    precision: "int8".into(),
                    ..origin()
                },
                "of the precision f32, not of int8",
            ),
            (
                Origin {
                    template: "de".into(),
                    ..origin()
                },
                "of the template def, not of de",
            ),
            (
                Origin {
                    width: 4,
                    ..origin()
                },
                "of 3 numbers, not of 4",
            ),
        ] {
            let error = error(&path, &origin);
            assert!(
                error.contains(expected) && error.contains("--head-cache"),
                "{error}"
            );
        }
        let mut newer = bytes.clone();
        newer[4] = 2;
        for (content, expected) in [
            (newer, "version 2, newer than 1"),
            (b"GGUF and more".to_vec(), "not a file of hidden states"),
        ] {
            std::fs::write(&path, &content).expect("written");
            let error = error(&path, &origin());
            assert!(error.contains(expected), "{error}");
            assert_eq!(std::fs::read(&path).expect("it is there"), content);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_file_that_was_cut_or_damaged_anywhere_goes_on_to_the_same_bytes(
            at in any::<prop::sample::Index>(), by in 0u8..=255,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("hidden");
            let whole = written(&path);
            let header = header(&origin()).len();
            let mut bytes = whole.clone();
            let at = at.index(bytes.len());
            match by {
                0 => bytes.truncate(at),
                _ => bytes[at] ^= by,
            }
            std::fs::write(&path, &bytes).expect("written");
            match HiddenStates::open(&path, &origin()) {
                Ok(mut file) => {
                    prop_assert!(by == 0 || at >= header);
                    prop_assert!(file.rows() < 5);
                    file.add(&states()).expect("added");
                    drop(file);
                    prop_assert_eq!(std::fs::read(&path).expect("it is there"), whole);
                }
                Err(error) => prop_assert!(by != 0 && at < header, "{}", error),
            }
        }
    }
}
