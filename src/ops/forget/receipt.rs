//! Says what an erase left, place by place: a [`Receipt`], as text and as JSON.

use crate::ops::visible::visible;
use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;

use nearshore_core::user::record::Timestamp;

/// The state of one place after an erase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing is there.
    Gone,
    /// Something is there that is allowed: the tombstone, or data from after the erase.
    Kept,
    /// Something is there that is no longer used and that disappears by itself.
    Leaves,
    /// Something is there that should not be there.
    Left,
    /// The place could not be searched.
    Unknown,
}

/// One place that was searched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// The place: a Redis key, a topic, the memory of a role.
    pub place: String,
    /// Its state.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// The latest time at which what `leaves` is gone, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Timestamp>,
}

impl Finding {
    pub(super) fn new(
        place: impl Into<String>,
        verdict: Verdict,
        found: impl Into<String>,
    ) -> Self {
        Self {
            place: place.into(),
            verdict,
            found: found.into(),
            by: None,
        }
    }

    pub(super) fn by(mut self, by: Option<Timestamp>) -> Self {
        self.by = by;
        self
    }
}

/// The findings of one search for one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Receipt {
    /// The user's id.
    pub user: String,
    /// When the places were searched, by the clock of this machine.
    pub looked_at: Timestamp,
    /// Time of the user's last erase; none if never.
    pub erased_at: Option<Timestamp>,
    /// Whether nothing is left that should not be, and every place could be searched.
    pub clean: bool,
    /// In the order of the search.
    pub findings: Vec<Finding>,
}

impl Receipt {
    pub(super) fn of(user: &str, erased_at: Option<Timestamp>, findings: Vec<Finding>) -> Self {
        let bad = |finding: &Finding| matches!(finding.verdict, Verdict::Left | Verdict::Unknown);
        Self {
            user: user.into(),
            looked_at: crate::members::clock::wall_clock(),
            erased_at,
            clean: !findings.iter().any(bad),
            findings,
        }
    }

    /// The receipt as text for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        let _infallible = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let user = visible(&self.user);
        writeln!(
            out,
            "receipt for user {user}, searched at {}",
            moment(self.looked_at)
        )?;
        match self.erased_at {
            Some(at) => writeln!(out, "erased as of {}\n", moment(at))?,
            None => writeln!(out, "never erased\n")?,
        }
        for finding in &self.findings {
            let verdict = match finding.verdict {
                Verdict::Gone => "gone",
                Verdict::Kept => "kept",
                Verdict::Leaves => "leaves",
                Verdict::Left => "LEFT",
                Verdict::Unknown => "UNKNOWN",
            };
            let by = finding.by.map(|by| format!("; gone by {}", moment(by)));
            let place = visible(&finding.place);
            let (found, by) = (visible(&finding.found), by.unwrap_or_default());
            writeln!(out, "{verdict:<8}{place:<44} {found}{by}")?;
        }
        let count = |wanted: Verdict| {
            let all = self.findings.iter();
            all.filter(|finding| finding.verdict == wanted).count()
        };
        let (left, unknown) = (count(Verdict::Left), count(Verdict::Unknown));
        if self.clean {
            writeln!(out, "\nclean: nothing is left that should not be")
        } else {
            writeln!(
                out,
                "\nNOT CLEAN: {left} places with something left, {unknown} places not searched"
            )
        }
    }
}

pub(super) fn moment(time: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{} ms", time.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_with_something_left_or_not_searched_makes_a_receipt_unclean() {
        use Verdict::{Gone, Kept, Leaves, Left, Unknown};
        for (verdicts, clean) in [
            (vec![], true),
            (vec![Gone, Kept, Leaves], true),
            (vec![Gone, Left], false),
            (vec![Unknown, Kept], false),
        ] {
            let findings = verdicts.iter().map(|v| Finding::new("p", *v, "x"));
            let receipt = Receipt::of("u\n1", Some(Timestamp(0)), findings.collect());
            assert_eq!(receipt.clean, clean, "{verdicts:?}");
            let text = receipt.text();
            assert!(
                text.starts_with("receipt for user u\\n1, searched at "),
                "{text}"
            );
            assert!(text.contains("erased as of 1970-01-01T00:00:00Z"), "{text}");
            assert_eq!(text.contains("NOT CLEAN"), !clean, "{text}");
        }
    }
}
