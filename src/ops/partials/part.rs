//! The file of a part: its users by id, each with their records.
//!
//! A line that says what it is, a header in JSON, the users, and a hash of all of it. Invariant: it is there as a whole
//! or not at all, and equal logs and plans give equal bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::plan::unique;
use super::{Plan, Problem, create, files, remove, sync_folder};
use crate::ops::evaluate::records::Records;

/// The first line.
const MAGIC: &[u8] = b"nearshore part of a log, version 1\n";
/// Bytes of the hash at the end.
const HASH: u64 = 32;
/// Longest user id or header: a length beyond it is damage.
const TEXT_MAX: u64 = 1 << 20;
/// Missing parts that are named.
const NAMED: usize = 3;

/// What a part says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Id of the plan.
    plan: String,
    /// Number of the part, from 1.
    pub(crate) part: u32,
    /// Number of parts.
    pub(crate) of: u32,
    /// Users in it.
    pub(crate) users: u64,
    /// Bytes of their records.
    bytes: u64,
    /// Records that could not be used.
    pub(crate) refused: u64,
}

/// The file of a part.
pub(crate) fn path(folder: &Path, plan: &Plan, part: u32) -> PathBuf {
    let (run, of) = (&plan.run, plan.parts);
    folder.join(format!("part-{run}-{part:05}-of-{of:05}.users"))
}

/// The run whose part this file is, or was to become.
pub(super) fn run_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let rest = name.trim_start_matches('.').strip_prefix("part-")?;
    let (run, _) = rest.rsplit_once("-of-")?;
    let (run, _) = run.rsplit_once('-')?;
    Some(run.to_owned())
}

/// Writes the users of a part, who are sorted by id.
pub(crate) fn write_part(
    folder: &Path,
    (plan, part): (&Plan, u32),
    users: &[(UserId, Records)],
    refused: u64,
) -> Result<Header, Problem> {
    let to = path(folder, plan, part);
    let header = Header {
        plan: plan.id(),
        part,
        of: plan.parts,
        users: users.len() as u64,
        bytes: users.iter().map(|(_, it)| it.bytes().len() as u64).sum(),
        refused,
    };
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", unique()));
    let written = write(&temporary, &header, users);
    if let Err(problem) = written {
        remove(&temporary)?;
        return Err(problem);
    }
    std::fs::rename(&temporary, &to).map_err(Problem::io(&to))?;
    sync_folder(folder)?;
    // What a killed process left of this part.
    let left = format!(".{name}.");
    for path in files(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&left) {
            remove(&path)?;
        }
    }
    Ok(header)
}

fn write(path: &Path, header: &Header, users: &[(UserId, Records)]) -> Result<(), Problem> {
    let failed = Problem::io(path);
    let mut out = Hashed {
        inner: BufWriter::with_capacity(1 << 16, create(path)?),
        hash: Sha256::new(),
    };
    let mut all = || -> std::io::Result<()> {
        out.put(MAGIC)?;
        out.framed(&serde_json::to_vec(header)?)?;
        for (user, records) in users {
            out.framed(user.0.as_bytes())?;
            out.framed(records.bytes())?;
        }
        let hash = out.hash.finalize_reset();
        out.inner.write_all(&hash)?;
        out.inner.flush()?;
        out.inner.get_ref().sync_all()
    };
    all().map_err(failed)
}

/// Counts what is written or read into a hash.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl Hashed<BufWriter<File>> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.inner.write_all(bytes)
    }

    fn framed(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.put(&(bytes.len() as u64).to_le_bytes())?;
        self.put(bytes)
    }
}

/// A part being read.
struct Reading<'a> {
    path: &'a Path,
    inner: Hashed<BufReader<File>>,
    /// Bytes before the hash that have not been read.
    left: u64,
}

impl<'a> Reading<'a> {
    fn open(path: &'a Path) -> Result<(Self, Header), Problem> {
        let file = File::open(path).map_err(Problem::io(path))?;
        let len = file.metadata().map_err(Problem::io(path))?.len();
        let mut reading = Self {
            path,
            inner: Hashed {
                inner: BufReader::with_capacity(1 << 16, file),
                hash: Sha256::new(),
            },
            left: len.saturating_sub(HASH),
        };
        if reading.take(MAGIC.len() as u64)? != MAGIC {
            return Err(reading.damaged("its first line is not that of a part of this release"));
        }
        let header = reading.framed(TEXT_MAX)?;
        let header = serde_json::from_slice(&header)
            .map_err(|error| reading.damaged(&format!("its header does not decode ({error})")))?;
        Ok((reading, header))
    }

    fn damaged(&self, what: &str) -> Problem {
        Problem::Damaged {
            path: self.path.into(),
            what: what.into(),
        }
    }

    fn take(&mut self, len: u64) -> Result<Vec<u8>, Problem> {
        if len > self.left {
            return Err(self.damaged("it ends too early"));
        }
        self.left -= len;
        let mut bytes = vec![0; len as usize];
        let Hashed { inner, hash } = &mut self.inner;
        inner
            .read_exact(&mut bytes)
            .map_err(Problem::io(self.path))?;
        hash.update(&bytes);
        Ok(bytes)
    }

    fn framed(&mut self, most: u64) -> Result<Vec<u8>, Problem> {
        let len = self.take(8)?;
        let len = len.try_into().map_or(u64::MAX, u64::from_le_bytes);
        match len <= most {
            true => self.take(len),
            false => Err(self.damaged("a length in it is too large")),
        }
    }

    fn user(&mut self) -> Result<(UserId, Records), Problem> {
        let id = self.framed(TEXT_MAX)?;
        let id = String::from_utf8(id).map_err(|_| self.damaged("a user id is not UTF-8"))?;
        let records = self.framed(u64::MAX)?;
        let records =
            Records::checked(&records).ok_or_else(|| self.damaged("a record does not decode"))?;
        Ok((UserId(id.into()), records))
    }

    /// Checks the hash, after all has been read.
    fn close(mut self) -> Result<(), Problem> {
        let mut hash = [0; HASH as usize];
        let Hashed { inner, hash: found } = &mut self.inner;
        inner
            .read_exact(&mut hash)
            .map_err(Problem::io(self.path))?;
        let is_same = *found.finalize_reset() == hash;
        match is_same && self.left == 0 {
            true => Ok(()),
            false => Err(self.damaged("its content has another hash than the one at its end")),
        }
    }
}

/// The header of a part, if its file is there and belongs to the plan. The file was renamed when it was whole.
pub(crate) fn read_header(
    folder: &Path,
    (plan, part): (&Plan, u32),
) -> Result<Option<Header>, Problem> {
    let path = path(folder, plan, part);
    if !path.exists() {
        return Ok(None);
    }
    let (_, header) = Reading::open(&path)?;
    match header.plan == plan.id() {
        true => Ok(Some(header)),
        false => Err(Problem::Foreign {
            path,
            what: format!(
                "its plan is {}, and that of this run is {}",
                header.plan,
                plan.id()
            ),
        }),
    }
}

/// The same of a part that is whole, which takes reading it.
pub(crate) fn check_part(
    folder: &Path,
    (plan, part): (&Plan, u32),
) -> Result<Option<Header>, Problem> {
    let Some(header) = read_header(folder, (plan, part))? else {
        return Ok(None);
    };
    let path = path(folder, plan, part);
    let (mut reading, _) = Reading::open(&path)?;
    for _ in 0..header.users {
        reading.user()?;
    }
    reading.close()?;
    Ok(Some(header))
}

/// All users of all parts, by id, without what erased users did before their erase; with the number of records left out.
/// `progress` is called after each part.
pub(crate) fn joined(
    folder: &Path,
    plan: &Plan,
    erased: &BTreeMap<UserId, Timestamp>,
    progress: &dyn Fn(u32),
) -> Result<(Vec<(UserId, Records)>, usize), Problem> {
    let numbers = 1..=plan.parts;
    let missing: Vec<PathBuf> = numbers
        .clone()
        .map(|part| path(folder, plan, part))
        .filter(|path| !path.exists())
        .collect();
    if !missing.is_empty() {
        let named = missing
            .iter()
            .take(NAMED)
            .map(|path| path.display().to_string());
        return Err(Problem::Missing {
            missing: missing.len(),
            of: plan.parts,
            files: named.collect::<Vec<_>>().join(", "),
        });
    }
    let (mut all, mut left_out) = (Vec::new(), 0);
    for part in numbers {
        let path = path(folder, plan, part);
        read_header(folder, (plan, part))?;
        let (mut reading, header) = Reading::open(&path)?;
        let start = all.len();
        for _ in 0..header.users {
            let (user, mut records) = reading.user()?;
            if let Some(erased_at) = erased.get(&user) {
                let (left, gone) = records.after(&user, *erased_at);
                (records, left_out) = (left, left_out + gone);
            }
            all.push((user, records));
        }
        let is_sorted = all[start..].is_sorted_by(|a, b| a.0 < b.0);
        if !is_sorted {
            return Err(reading.damaged("its users are not sorted"));
        }
        reading.close()?;
        all.retain(|(_, records)| !records.is_empty());
        progress(part);
    }
    // The order of users, not that of parts: it does not depend on how many there are.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(twice) = all.windows(2).find(|two| two[0].0 == two[1].0) {
        return Err(Problem::Damaged {
            path: folder.into(),
            what: format!("a user of {} records is in two parts", twice.len()),
        });
    }
    Ok((all, left_out))
}
