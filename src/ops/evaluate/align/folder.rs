//! Writes an artefact's folder: [`write_folder`].
//!
//! Invariant: a reader sees all of the folder or nothing. It does not know what is in the files.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nearshore_core::list::terms::artefact::Files;

use super::AlignReport;

/// Writes an artefact's folder beside its place and renames it, so that a reader sees all of it or nothing. What killed
/// processes left of the same artefact is removed.
pub(crate) fn write_folder(
    out: &Path,
    files: &Files,
    report: &AlignReport,
) -> anyhow::Result<PathBuf> {
    let folder = out.join(format!("artefact-{}", files.hash));
    // The name is the hash of the content: a folder that is there has been written before, or by another process now.
    if !folder.is_dir() {
        let written = write_new(out, &folder, (files, report));
        written.or_else(|error| if folder.is_dir() { Ok(()) } else { Err(error) })?;
    }
    let left = format!(".artefact-{}-", files.hash);
    for entry in std::fs::read_dir(out).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&left) {
            // Another process may have removed it.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(folder)
}

fn write_new(
    out: &Path,
    folder: &Path,
    (files, report): (&Files, &AlignReport),
) -> anyhow::Result<()> {
    let part = out.join(format!(".artefact-{}-{}", files.hash, std::process::id()));
    std::fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
    let report = serde_json::to_string_pretty(report)?;
    let all = files
        .content
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()));
    for (name, bytes) in all.chain([("report.json", report.as_bytes())]) {
        let path = part.join(name);
        let mut file = std::fs::File::create(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    std::fs::rename(&part, folder)
        .with_context(|| format!("cannot rename {} to {}", part.display(), folder.display()))?;
    let names = std::fs::File::open(out).and_then(|out| out.sync_all());
    names.with_context(|| format!("cannot write {}", out.display()))
}
