//! What is given as a model and is none: a pointer of Git LFS, a saved web page, a cache of Hugging Face.
//!
//! Decides by first bytes and by names of files, and says what to do. Invariant: nothing here refuses a model that can
//! be read. It does not know formats.

use std::path::{Path, PathBuf};

/// Bytes at the beginning of a file that are looked at.
const HEAD: usize = 512;

/// What a file's content is instead of a model's; `None` if it may be one.
pub(super) fn content(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(HEAD)];
    if head.is_empty() {
        return Some("is empty: its download did not finish; fetch it again".into());
    }
    if head.starts_with(b"version https://git-lfs.github.com/spec/") {
        let text = String::from_utf8_lossy(head);
        let size = text.lines().find_map(|line| line.strip_prefix("size "));
        return Some(format!(
            "is a pointer of Git LFS to a file of {} bytes, not the file: run `git lfs pull` in the repository \
             that was cloned, or download the file",
            size.unwrap_or("unknown")
        ));
    }
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    if ["<!doctype", "<html", "<?xml", "<head"]
        .iter()
        .any(|tag| lower.starts_with(tag))
    {
        return Some(
            "is a web page that was saved in place of the file: download it from the address with /resolve/ instead of \
             /blob/, and with a token if the model is gated"
                .into(),
        );
    }
    let refusals = [
        "{\"error\":",
        "invalid username or password",
        "entry not found",
        "repository not found",
        "access to model ",
    ];
    if refusals.iter().any(|refusal| lower.starts_with(refusal)) {
        let line = text.lines().next().unwrap_or_default();
        return Some(format!(
            "is the refusal of a server, saved in place of the file: {line:?}; download it again, with a token if the \
             model is gated"
        ));
    }
    let archives: [(&[u8], &str); 5] = [
        (b"PK\x03\x04", "a zip archive, as PyTorch's checkpoints are"),
        (b"\x1f\x8b", "compressed by gzip"),
        (b"\xfd7zXZ", "compressed by xz"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"BZh", "compressed by bzip2"),
    ];
    let found = archives.iter().find(|(magic, _)| head.starts_with(magic));
    found.map(|(_, what)| {
        format!("is {what}: unpack it, or save the model as safetensors (transformers: save_pretrained) or as a GGUF")
    })
}

/// What a path of a file is instead of a GGUF file's.
pub(super) fn file(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let is_part = name.ends_with(".safetensors")
        || name.ends_with(".index.json")
        || ["config.json", "tokenizer.json", "tokenizer_config.json"].contains(&name);
    if is_part && path.is_file() {
        return Some(format!(
            "is one file of a model's folder: give the folder, {}, which must also hold config.json, \
             tokenizer.json and tokenizer_config.json",
            folder.display()
        ));
    }
    let is_pickle = [".bin", ".pt", ".pth", ".ckpt"]
        .iter()
        .any(|ending| name.ends_with(ending));
    let is_gguf = || {
        let mut magic = [0; 4];
        let read = std::fs::File::open(path)
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
        read.is_ok() && &magic == b"GGUF"
    };
    (is_pickle && path.is_file() && !is_gguf()).then(|| {
        "is a pickle, which runs code when it is read: save the model as safetensors (transformers: \
         save_pretrained) and give its folder, or give a GGUF file"
            .into()
    })
}

/// What a folder without `config.json` is instead of a model's.
pub(super) fn folder(path: &Path) -> Option<String> {
    let found = inside(path)?;
    if path.join("snapshots").is_dir() {
        return Some(repository(path));
    }
    let repositories = found.iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("models--") && path.is_dir()
    });
    let repositories: Vec<&PathBuf> = repositories.collect();
    if !repositories.is_empty() {
        let snapshots = repositories.into_iter();
        let snapshots = snapshots.flat_map(|repository| models(&repository.join("snapshots")));
        return Some(format!(
            "is a cache of Hugging Face repositories, not a model's folder: give a snapshot of one: {}",
            listed(&snapshots.collect::<Vec<_>>())
        ));
    }
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "gguf");
    let ggufs: Vec<PathBuf> = found.into_iter().filter(is_gguf).collect();
    if !ggufs.is_empty() {
        return Some(format!(
            "is a folder of GGUF files: give one of the files: {}",
            listed(&ggufs)
        ));
    }
    let inside = models(path);
    if !inside.is_empty() {
        return Some(format!(
            "has no config.json, and models in it: give the folder of one: {}",
            listed(&inside)
        ));
    }
    Some(
        "has no config.json: give a GGUF file, or a folder with config.json, tokenizer.json, \
         tokenizer_config.json and *.safetensors"
            .into(),
    )
}

/// What to do with the cache of one Hugging Face repository: the snapshot of its branch, or any.
fn repository(path: &Path) -> String {
    let mut snapshots = models(&path.join("snapshots"));
    let main = std::fs::read_to_string(path.join("refs/main")).unwrap_or_default();
    let is_main = |one: &PathBuf| one.file_name() == Some(main.trim().as_ref());
    if snapshots.iter().any(is_main) {
        snapshots.retain(is_main);
    }
    if snapshots.is_empty() {
        return "is the cache of a Hugging Face repository without a complete snapshot: download the model again"
            .into();
    }
    format!(
        "is the cache of a Hugging Face repository, not a model's folder: give a snapshot in it: {}",
        listed(&snapshots)
    )
}

/// What is in a folder, in order; `None` if it cannot be read.
fn inside(path: &Path) -> Option<Vec<PathBuf>> {
    let entries = std::fs::read_dir(path).ok()?.flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    Some(paths)
}

/// The folders of models in a folder.
fn models(path: &Path) -> Vec<PathBuf> {
    let mut found = inside(path).unwrap_or_default();
    found.retain(|path| is_model(path));
    found
}

/// The first of some paths, for an error.
fn listed(paths: &[PathBuf]) -> String {
    let some = paths.iter().take(5).map(|path| path.display().to_string());
    some.collect::<Vec<_>>().join(", ")
}

fn is_model(path: &Path) -> bool {
    path.join("config.json").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_in_place_of_a_file_is_named() {
        let pointer =
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n";
        let cases: [(&[u8], &str); 9] = [
            (b"", "is empty"),
            (
                pointer.as_bytes(),
                "a pointer of Git LFS to a file of 269060552 bytes",
            ),
            (b"<!DOCTYPE html>\n<html>", "a web page"),
            (b"\xef\xbb\xbf \n<HTML lang=en>", "a web page"),
            (
                b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>",
                "a web page",
            ),
            (
                b"{\"error\":\"Repository not found\"}",
                "Repository not found",
            ),
            (
                b"Access to model meta-llama/Llama-3.2-1B is restricted.",
                "with a token",
            ),
            (b"PK\x03\x04\x00\x00", "a zip archive"),
            (b"\x1f\x8b\x08", "gzip"),
        ];
        for (bytes, expected) in cases {
            let what = content(bytes).expect(expected);
            assert!(what.contains(expected), "{what}");
        }
        for fine in [
            &b"GGUF\x03\0\0\0"[..],
            b"{\"model_type\":\"llama\"}",
            &[0; 600],
            b"{% for m in messages %}",
            b"<s>",
        ] {
            assert_eq!(content(fine), None);
        }
    }
}
