//! One [`Problem`] of a configuration: where it is, what is wrong, what to do.

use std::fmt;

/// Where a key was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file as a whole: it cannot be read, or a key is missing.
    File(String),
    /// A line and column of the file, both from 1.
    At {
        /// The file, as it was named on the command line.
        file: String,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => f.write_str(file),
            Self::At { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// One problem, printed as `nearshore.toml:14:3 trigger.quiet_perod: unknown key; did you mean quiet_period?`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// Dotted key; empty if the problem is the file as a whole.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.place)?;
        if self.key.is_empty() {
            write!(f, ": {}", self.what)?;
        } else {
            write!(f, " {}: {}", self.key, self.what)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// The known word nearest to a written one, if it is near enough to be meant.
pub(super) fn nearest<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = match written.chars().count() {
        0..=4 => 1,
        length => (length / 3).max(2),
    };
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(written, word), word))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_if_one_is_near_enough() {
        let known = ["quiet_period", "pending_max", "claim_every"];
        assert_eq!(nearest("quiet_perod", known), Some("quiet_period"));
        assert_eq!(nearest("pendingmax", known), Some("pending_max"));
        assert_eq!(nearest("theta", known), None);
    }
}
