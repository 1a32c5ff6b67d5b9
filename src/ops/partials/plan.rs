//! The plan of a run: what all its parts are parts of.
//!
//! The first process writes it, with the ends of the topics as it found them, and all others read it. Invariant: it is
//! there as a whole or not at all, and two processes that begin at once agree on one.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Problem, create, remove, remove_other_runs, sync_folder};
use crate::ops::files::{Decoding, LogsSource};

/// Version of plans and parts. A reader refuses another one.
const VERSION: u32 = 1;

/// Where the log ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Extent {
    /// Files by their place among the options, with the hash of their content.
    Files(BTreeMap<String, String>),
    /// One past the last record of each partition.
    Topics(BTreeMap<String, i64>),
}

/// What parts belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    version: u32,
    release: String,
    /// Name of the run.
    pub(crate) run: String,
    /// Number of parts.
    pub(crate) parts: u32,
    /// The log.
    pub(crate) log: Extent,
    /// Hash of what decides how records are decoded.
    decoding: String,
}

impl Plan {
    /// A plan by this release.
    pub(crate) fn new(run: &str, parts: u32, log: Extent, decoding: &Decoding) -> Self {
        Self {
            version: VERSION,
            release: env!("CARGO_PKG_VERSION").into(),
            run: run.into(),
            parts,
            log,
            decoding: decoding_hash(decoding),
        }
    }

    /// The name of its content, which is in each of its parts.
    pub(crate) fn id(&self) -> String {
        let json = serde_json::to_vec(self).expect("names and numbers");
        hex::encode(&Sha256::digest(json)[..8])
    }

    /// What keeps it from being the plan of a process that would have made `other`; ends of topics are those of the plan.
    pub(crate) fn differs(&self, other: &Self) -> Option<String> {
        let say = |what: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
            Some(format!("its {what} is {a}, and this process has {b}"))
        };
        if (self.version, &self.release) != (other.version, &other.release) {
            return say("release", &self.release, &other.release);
        }
        if self.parts != other.parts {
            return say("number of parts", &self.parts, &other.parts);
        }
        if self.decoding != other.decoding {
            return Some("its topics, mappings or limits are configured otherwise".into());
        }
        match (&self.log, &other.log) {
            (Extent::Files(a), Extent::Files(b)) => {
                let other = b.iter().find(|(name, hash)| a.get(*name) != Some(hash));
                let other = other.or_else(|| a.iter().find(|(name, _)| !b.contains_key(*name)));
                other.map(|(name, _)| format!("{name} has another content, or is not in both"))
            }
            (Extent::Topics(a), Extent::Topics(b)) if a.keys().eq(b.keys()) => None,
            (Extent::Topics(_), Extent::Topics(_)) => {
                Some("it has other topics or partitions".into())
            }
            _ => Some("one is of files, the other of topics".into()),
        }
    }
}

/// Hash of what decides how records are decoded.
fn decoding_hash(decoding: &Decoding) -> String {
    let topics = &decoding.topics;
    let text = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        topics.user_events,
        topics.profile_changes,
        topics.catalog,
        topics.profile_format,
        topics.inputs,
        decoding.limits,
        decoding.ignore
    );
    hex::encode(&Sha256::digest(text)[..8])
}

/// The hashes of the files of a log.
pub(crate) fn hash_files(source: &LogsSource) -> Result<Extent, Problem> {
    let mut hashes = BTreeMap::new();
    for (option, paths) in [
        ("--events", &source.events),
        ("--profiles", &source.profiles),
        ("--catalog", &source.catalog),
    ] {
        for (nth, path) in paths.iter().enumerate() {
            let mut hash = Sha256::new();
            let mut file = std::fs::File::open(path).map_err(Problem::io(path))?;
            std::io::copy(&mut file, &mut hash).map_err(Problem::io(path))?;
            hashes.insert(
                format!("{option} file {}", nth + 1),
                hex::encode(&hash.finalize()[..16]),
            );
        }
    }
    Ok(Extent::Files(hashes))
}

/// The file of a run's plan.
pub(super) fn path(folder: &Path, run: &str) -> PathBuf {
    folder.join(format!("plan-{run}.json"))
}

/// The run whose plan this file is.
pub(super) fn run_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if let Some(begun) = name.strip_prefix(".plan-") {
        // What a process left that was killed while it wrote a plan: its number and a random one follow.
        let (begun, _) = begun.rsplit_once('-')?;
        return Some(begun.rsplit_once('-')?.0.to_owned());
    }
    let run = name.strip_prefix("plan-")?.strip_suffix(".json")?;
    Some(run.to_owned())
}

/// The plan of a run.
pub(crate) fn read_plan(folder: &Path, run: &str) -> Result<Plan, Problem> {
    let path = path(folder, run);
    let text = std::fs::read(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Problem::NoPlan { path: path.clone() },
        _ => Problem::io(&path)(error),
    })?;
    serde_json::from_slice(&text).map_err(|error| Problem::OtherPlan {
        path,
        what: format!("it is not a plan of this release ({error})"),
    })
}

/// The plan of the run: the one that is there, if it fits, else `own`, from which on it is everyone's.
pub(crate) fn agree(folder: &Path, own: Plan) -> Result<Plan, Problem> {
    std::fs::create_dir_all(folder).map_err(Problem::io(folder))?;
    let path = path(folder, &own.run);
    if !path.exists() {
        remove_other_runs(folder, &own.run)?;
        let part = folder.join(format!(".plan-{}-{}", own.run, unique()));
        let mut open = create(&part)?;
        let json = serde_json::to_vec_pretty(&own).expect("names and numbers");
        let written = open.write_all(&json).and_then(|()| open.sync_all());
        written.map_err(Problem::io(&part))?;
        // A link is made only if the name is free: of two processes the second reads the plan of the first.
        let linked = std::fs::hard_link(&part, &path);
        remove(&part)?;
        match linked {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Problem::io(&path)(error));
            }
            _ => sync_folder(folder)?,
        }
    }
    let found = read_plan(folder, &own.run)?;
    match found.differs(&own) {
        Some(what) => Err(Problem::OtherPlan { path, what }),
        None => Ok(found),
    }
}

/// A name that no other process or pod uses now.
pub(super) fn unique() -> String {
    let random: u64 = rand::random();
    format!("{}-{random:016x}", std::process::id())
}
