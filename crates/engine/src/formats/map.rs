//! A weight file, mapped into memory.
//!
//! Invariant: only a regular file is mapped. It does not know what is in the file.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::misfit;
use crate::Error;

/// A mapped file; the system reads its bytes when they are first used.
#[derive(Debug)]
pub(crate) struct Map {
    path: PathBuf,
    bytes: Mmap,
}

impl Map {
    /// Maps a file, which must not change while it is mapped.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |e: std::io::Error| Error::load(path, e.to_string());
        // Checked before the file is opened: opening a pipe would wait for its writer.
        let about = std::fs::metadata(path).map_err(wrong)?;
        if !about.is_file() {
            return Err(Error::load(path, "is neither a file nor a folder"));
        }
        if let Some(what) = misfit::content(&[]).filter(|_| about.len() == 0) {
            return Err(Error::load(path, what));
        }
        let file = File::open(path).map_err(wrong)?;
        // SAFETY: model files are written before a worker starts and are not changed while it runs. If a file is
        // truncated meanwhile, the process is killed by a signal, as any program that maps the file is.
        let bytes = unsafe { Mmap::map(&file) }.map_err(wrong)?;
        if let Some(what) = misfit::content(&bytes) {
            return Err(Error::load(path, what));
        }
        let path = path.to_owned();
        Ok(Self { path, bytes })
    }

    /// Path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes of resident memory of this process without mapped files; 0 if the system does not report it.
pub(crate) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kilobytes
        .and_then(|number| number.trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}
