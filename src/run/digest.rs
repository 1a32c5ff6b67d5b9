//! Compares the files of an arm's model with `sha256` of the configuration, before the model is loaded.
//!
//! Decides which files of a folder are compared: all that the engine may read. What a difference means is decided by
//! [`Digests`]. Invariant: a model whose arm has `sha256` is not loaded unless every file of it has the hash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::config::Config;
use nearshore_core::list::prompt::{Arm, Digests};

/// Endings of files that the engine reads from a model's folder.
const ENDINGS: [&str; 3] = ["json", "jinja", "safetensors"];

/// The only folder in a model's folder that the engine reads.
const TEMPLATES: &str = "additional_chat_templates";

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// What was compared.
pub(crate) struct Compared {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
}

/// Fails unless the files of the arm's model are those of its `sha256`; `None` if it has none.
pub(crate) fn compare(config: &Config, arm: &Arm) -> anyhow::Result<Option<Compared>> {
    let Some(digests) = &arm.sha256 else {
        return Ok(None);
    };
    let (path, since) = (config.resolve(&arm.model), std::time::Instant::now());
    let (mut found, mut bytes) = (BTreeMap::new(), 0);
    for (name, file) in files(&path, digests)? {
        let what = || format!("{} cannot be read", file.display());
        let (digest, size) = hash(&file).with_context(what)?;
        bytes += size;
        found.insert(name, digest);
    }
    match digests.refuse(&found) {
        Some(why) => anyhow::bail!("{} is not loaded: {why}", path.display()),
        None => Ok(Some(Compared {
            files: found.len(),
            bytes,
            took: since.elapsed(),
        })),
    }
}

/// The files to compare, by their name in `sha256`.
fn files(path: &Path, digests: &Digests) -> anyhow::Result<Vec<(String, PathBuf)>> {
    match (digests, path.is_dir()) {
        (Digests::File(_), false) => Ok(vec![(String::new(), path.into())]),
        (Digests::Folder(_), true) => {
            let mut all = inside(path, "")?;
            let templates = path.join(TEMPLATES);
            if templates.is_dir() {
                all.extend(inside(&templates, &format!("{TEMPLATES}/"))?);
            }
            Ok(all)
        }
        (Digests::File(_), true) => anyhow::bail!(
            "{} is a folder, and sha256 is one hash; write one by file: sha256 = {{ \"config.json\" = \"…\", … }}",
            path.display()
        ),
        (Digests::Folder(_), false) => anyhow::bail!(
            "{} is a file, and sha256 a table of files; write the one hash that sha256sum prints",
            path.display()
        ),
    }
}

fn inside(folder: &Path, prefix: &str) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let what = || format!("{} cannot be read", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(what)? {
        let file = entry.with_context(what)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if file.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending)) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            found.push((format!("{prefix}{name}"), file));
        }
    }
    Ok(found)
}

fn hash(path: &Path) -> std::io::Result<(String, u64)> {
    let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
    let (mut piece, mut size) = (vec![0; PIECE], 0);
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((hex::encode(hasher.finalize()), size));
        }
        hasher.update(&piece[..read]);
        size += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf abc | sha256sum`
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn arm(model: &Path, sha256: serde_json::Value) -> Arm {
        let arm = serde_json::json!({ "id": "a", "epoch": 1, "template": "t.j2", "model": model, "sha256": sha256,
            "weights": { "model": 1.0 } });
        serde_json::from_value(arm).expect("an arm")
    }

    fn refused(model: &Path, sha256: serde_json::Value) -> String {
        let config = Config {
            arms: vec![arm(model, sha256)],
            ..Config::default()
        };
        let alone = compare(&config, &config.arms[0]).err().expect("refused");
        // Loading says the same with the arm's id, before it looks at what the file is.
        let loaded = crate::run::load_arms(&config).err().expect("refused");
        assert_eq!(format!("{loaded:#}"), format!("arm a: {alone:#}"));
        format!("{loaded:#}")
    }

    #[test]
    fn a_model_with_another_hash_is_not_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("m.gguf");
        std::fs::write(&file, "abc").expect("written");
        let config = Config::default();
        let same = compare(&config, &arm(&file, ABC.into())).expect("the same");
        let same = same.expect("compared");
        assert_eq!((same.files, same.bytes), (1, 3));
        std::fs::write(&file, "abd").expect("written");
        let error = refused(&file, ABC.into());
        assert!(error.contains(&file.display().to_string()), "{error}");
        for part in [
            ABC,
            "a52d159f262b2c6ddb724a61840befc3",
            "raise the arm's epoch",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn every_file_of_a_folder_that_is_read_must_have_its_hash() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str| std::fs::write(folder.path().join(name), "abc").expect("written");
        write("config.json");
        write("README.md");
        let hashes = serde_json::json!({ "config.json": ABC });
        let config = Config::default();
        let same = compare(&config, &arm(folder.path(), hashes.clone()));
        assert_eq!(same.expect("the same").expect("compared").files, 1);
        std::fs::create_dir(folder.path().join(TEMPLATES)).expect("made");
        write("additional_chat_templates/tool.jinja");
        let error = refused(folder.path(), hashes.clone());
        assert!(
            error.contains("its file additional_chat_templates/tool.jinja has SHA-256 ba78"),
            "{error}"
        );
        let one = refused(folder.path(), ABC.into());
        assert!(one.contains("is a folder"), "{one}");
        let file = refused(&folder.path().join("config.json"), hashes);
        assert!(file.contains("is a file"), "{file}");
    }

    #[test]
    fn an_arm_without_sha256_compares_nothing() {
        let mut arm = arm(Path::new("/nowhere"), ABC.into());
        arm.sha256 = None;
        let compared = compare(&Config::default(), &arm).expect("nothing is read");
        assert!(compared.is_none());
    }
}
