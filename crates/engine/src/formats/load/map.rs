//! A weight file, mapped.
//!
//! Invariant: what is mapped is a regular file. It does not know what is in it.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::refuse;
use crate::Error;

/// The bytes of a file, read by the system when they are touched.
#[derive(Debug)]
pub struct Map {
    path: PathBuf,
    bytes: Mmap,
}

impl Map {
    /// Maps a file that stays as it is while this lives.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let wrong = |e: std::io::Error| refuse(path, e.to_string());
        // Asked before it is opened: opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(wrong)?.is_file() {
            return Err(refuse(path, "is neither a file nor a folder"));
        }
        let file = File::open(path).map_err(wrong)?;
        // SAFETY: model files are written before a worker starts and not changed under it; a file cut
        // short meanwhile kills the process by a signal, as it would any program that maps it.
        let bytes = unsafe { Mmap::map(&file) }.map_err(wrong)?;
        let path = path.to_owned();
        Ok(Self { path, bytes })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes of memory that are this process's own, mapped files aside; 0 where the system does not tell.
pub fn resident() -> u64 {
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
