//! Parts of a log that several processes read for one alignment, and how one process joins them.
//!
//! A part is the users whose id's hash falls to it, with all that they did, sorted by id ([`part`]); what belongs
//! together is fixed by a plan that the first process writes ([`plan`]). Invariant: the parts of one plan, whatever their
//! number, are together the log that one process would have read. It does not know what is learned from them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

mod part;
mod plan;
#[cfg(test)]
mod tests;

pub(crate) use part::{check_part, joined, read_header, write_part};
pub(crate) use plan::{Extent, Plan, agree, hash_files, read_plan};

/// Why parts cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// Nothing was begun, or it is done and was removed.
    #[error(
        "{path} is not there: no part of this run has been begun, or its parts were removed after they were joined; run `nearshore align --part I/N` \
         with the same --partials and --run first"
    )]
    NoPlan {
        /// The plan's file.
        path: PathBuf,
    },
    /// A plan of something else.
    #[error(
        "{path} is of another alignment: {what}. Give every part the same log, configuration and N; or give --run another name, or remove the file"
    )]
    OtherPlan {
        /// The plan's file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// Parts are missing.
    #[error(
        "{missing} of {of} parts are missing: {files}; run them with `nearshore align --part I/{of}`, or wait for them with --wait"
    )]
    Missing {
        /// How many.
        missing: usize,
        /// The number of parts.
        of: u32,
        /// The first of them.
        files: String,
    },
    /// A part of another plan.
    #[error("{path} is a part of another alignment: {what}; remove it, and run the part again")]
    Foreign {
        /// The part's file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// A part that is not what was written.
    #[error("{path} is not whole: {what}; remove it, and run the part again")]
    Damaged {
        /// The part's file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file system error.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl Problem {
    /// An error of the file system about a file.
    fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        |source| Self::Io {
            path: path.into(),
            source,
        }
    }
}

/// Removes what a run left in a folder; its plan first, so that no later run goes on with old parts.
pub(crate) fn remove_run(folder: &Path, run: &str) -> Result<(), Problem> {
    let plan = plan::path(folder, run);
    remove(&plan)?;
    for path in files(folder)? {
        let of = part::run_of(&path).or_else(|| plan::run_of(&path));
        if of.as_deref() == Some(run) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Removes what other runs left: files of persons, which nobody reads any more.
fn remove_other_runs(folder: &Path, run: &str) -> Result<(), Problem> {
    for path in files(folder)? {
        let of = part::run_of(&path).or_else(|| plan::run_of(&path));
        if of.is_some_and(|of| of != run) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    let entries = std::fs::read_dir(folder).map_err(Problem::io(folder))?;
    let paths = entries.map(|entry| Ok(entry.map_err(Problem::io(folder))?.path()));
    let mut paths = paths.collect::<Result<Vec<_>, Problem>>()?;
    paths.sort();
    Ok(paths)
}

fn remove(path: &Path) -> Result<(), Problem> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Problem::io(path)(error)),
        _ => Ok(()),
    }
}

/// A new file that only this user may read: it has what persons did.
fn create(path: &Path) -> Result<std::fs::File, Problem> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path).map_err(Problem::io(path))
}

/// Makes names of a folder last through a loss of power.
fn sync_folder(folder: &Path) -> Result<(), Problem> {
    let open = std::fs::File::open(folder);
    open.and_then(|folder| folder.sync_all())
        .map_err(Problem::io(folder))
}
