//! Where an arm's artefact is: its folder, or a file that points to it.
//!
//! Invariant: a pointer file is replaced as a whole, so that a reader finds the folder before or the one after. It does
//! not know what an artefact says.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use crate::config::Config;
use crate::files;
use nearshore_core::list::prompt::Arm;
use nearshore_core::list::terms::artefact::{Artefact, MANIFEST, Manifest};

/// The folder that `artefact` names: itself, or what the pointer file of that name holds. A relative path in a pointer
/// file is relative to the file's folder.
pub(super) fn folder_of(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_file() {
        return Ok(path.into());
    }
    let text = files::read_filled(
        path,
        "write the path of an artefact's folder into it, or make it with nearshore align --point",
    )?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let folder = lines.next().unwrap_or_default();
    anyhow::ensure!(
        lines.next().is_none(),
        "{}: a pointer file has one line, the path of an artefact's folder; make it with nearshore align --point",
        path.display()
    );
    let beside = path.parent().unwrap_or(Path::new(""));
    Ok(beside.join(folder))
}

/// Makes a pointer file point to a folder. The file is written beside its place and renamed.
pub(crate) fn point(file: &Path, folder: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", file.display());
    anyhow::ensure!(
        !file.is_dir(),
        "{} is a folder; --point needs a file",
        file.display()
    );
    let beside = match file.parent() {
        Some(beside) if beside != Path::new("") => beside,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(beside).with_context(what)?;
    let (folder, base) = (folder.canonicalize(), beside.canonicalize());
    let (folder, base) = (folder.with_context(what)?, base.with_context(what)?);
    // Relative where it can be: the volume is mounted elsewhere in other pods.
    let target = folder.strip_prefix(&base).unwrap_or(&folder);
    let text = target
        .to_str()
        .with_context(|| format!("{} is not UTF-8; give --out another name", target.display()))?;
    let name = file.file_name().with_context(what)?.to_string_lossy();
    let part = beside.join(format!(".{name}-{}", std::process::id()));
    let mut open = std::fs::File::create(&part).with_context(what)?;
    writeln!(open, "{text}").with_context(what)?;
    open.sync_all().with_context(what)?;
    std::fs::rename(&part, file).with_context(what)
}

/// Reads the arm's artefact; `None` if the arm names none.
pub(crate) fn artefact(config: &Config, arm: &Arm) -> anyhow::Result<Option<Arc<Artefact>>> {
    let Some(path) = &arm.artefact else {
        return Ok(None);
    };
    let path = config.resolve(path);
    let read = artefact_of(&path);
    let artefact = read.with_context(|| format!("artefact {}", path.display()))?;
    Ok(Some(Arc::new(artefact)))
}

/// The text of an artefact's manifest, and its folder.
pub(super) fn manifest_of(path: &Path) -> anyhow::Result<(String, PathBuf)> {
    let folder = folder_of(path)?;
    let text = files::read_filled(&folder.join(MANIFEST), "make it with nearshore align")?;
    Ok((text, folder))
}

/// Reads the artefact of a folder or a pointer file.
pub(crate) fn artefact_of(path: &Path) -> anyhow::Result<Artefact> {
    let (text, folder) = manifest_of(path)?;
    read(&text, &folder)
}

/// Reads the files that a manifest names.
pub(super) fn read(text: &str, folder: &Path) -> anyhow::Result<Artefact> {
    let manifest = Manifest::parse(text)?;
    let mut content = BTreeMap::new();
    for file in manifest.files() {
        // A file that is missing is refused as one that changed.
        if let Ok(bytes) = std::fs::read(folder.join(file)) {
            content.insert(file.to_owned(), bytes);
        }
    }
    Ok(Artefact::read(text, &content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_names_a_folder_wherever_the_volume_is_mounted() {
        let volume = tempfile::tempdir().expect("a folder");
        let folder = volume.path().join("artefact-0123456789ab");
        std::fs::create_dir(&folder).expect("made");
        let pointer = volume.path().join("current");
        point(&pointer, &folder).expect("written");
        let text = std::fs::read_to_string(&pointer).expect("it is there");
        assert_eq!(text, "artefact-0123456789ab\n");
        assert_eq!(folder_of(&pointer).expect("a pointer"), folder);
        assert_eq!(folder_of(&folder).expect("a folder"), folder);
        let elsewhere = tempfile::tempdir().expect("a folder");
        let pointer = elsewhere.path().join("new").join("current");
        point(&pointer, &folder).expect("written");
        let found = folder_of(&pointer).expect("a pointer");
        let whole = folder.canonicalize().expect("it is there");
        assert_eq!(found, whole);
    }

    #[test]
    fn a_pointer_that_names_no_folder_says_what_to_write() {
        let volume = tempfile::tempdir().expect("a folder");
        let pointer = volume.path().join("current");
        for (text, wanted) in [
            ("\n", "is empty; write the path of an artefact's folder"),
            ("one\ntwo\n", "a pointer file has one line"),
            ("gone\n", "gone/artefact.json cannot be read"),
        ] {
            std::fs::write(&pointer, text).expect("written");
            let error = artefact_of(&pointer).expect_err(text);
            let error = format!("{error:#}");
            assert!(error.contains(wanted), "{error}");
        }
        let error = point(volume.path(), volume.path()).expect_err("a folder");
        assert!(error.to_string().contains("--point needs a file"));
    }
}
