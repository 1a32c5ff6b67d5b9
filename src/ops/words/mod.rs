//! Free texts and products: fits and measures the matcher, and proposes products for titles.
//!
//! Decides how files become surfaces, labels and titles. Invariant: a row that cannot be used is named with file and
//! line; nothing is guessed. The work itself is done by [`nearshore_core::names::matcher`] and
//! [`nearshore_core::shop::naming`].

pub(crate) mod matching;
pub(crate) mod naming;
mod rows;

use std::path::PathBuf;

use crate::files;

/// Why files cannot be used; all of these are wrong arguments.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// A file's name does not say what it is.
    #[error("{0} ends in none of .jsonl, .ndjson, .csv; rename it, or convert it to one of them")]
    Ending(PathBuf),
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A row cannot be used.
    #[error("{path}:{line}: {what}")]
    Row {
        /// The file.
        path: String,
        /// The line.
        line: usize,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The files as a whole cannot be used.
    #[error("{0}")]
    Whole(String),
    /// Labels cannot be fitted to.
    #[error(transparent)]
    Unfit(#[from] nearshore_core::names::matcher::Unfit),
}
