//! Writes an artefact's folder: [`write_folder`].
//!
//! Invariant: a reader sees all of the folder or nothing. It does not know what is in the files.

use std::path::{Path, PathBuf};

use anyhow::Context;
use nearshore_core::list::terms::artefact::Files;

use super::AlignReport;

/// Writes an artefact's folder beside its place and renames it, so that a reader sees all of it or nothing.
pub(crate) fn write_folder(
    out: &Path,
    files: &Files,
    report: &AlignReport,
) -> anyhow::Result<PathBuf> {
    let folder = out.join(format!("artefact-{}", files.hash));
    if folder.is_dir() {
        // The name is the hash of the content: this folder has been written before.
        return Ok(folder);
    }
    let part = out.join(format!(".artefact-{}-{}", files.hash, std::process::id()));
    std::fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
    let report = serde_json::to_string_pretty(report)?;
    let all = files
        .content
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()));
    for (name, bytes) in all.chain([("report.json", report.as_bytes())]) {
        let path = part.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    std::fs::rename(&part, &folder)
        .with_context(|| format!("cannot rename {} to {}", part.display(), folder.display()))?;
    Ok(folder)
}
