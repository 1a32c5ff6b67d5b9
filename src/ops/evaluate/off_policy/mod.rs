//! What another policy of choosing SKUs would have earned, from the lists that were shown: [`off_policy`].
//!
//! Invariant: only lists whose audits have their candidates are used, and the report says how many there are, what counts
//! as shown, and what the estimates rest on. It does not know where lists and events came from.

mod shown;
#[cfg(test)]
mod tests;
mod updates;

use std::fmt::Write;
use std::time::Duration;

use nearshore_core::learn::bootstrap::{Interval, Resampling};
use nearshore_core::learn::off_policy::{Estimate, Found, Question, Refusal, Weighing, evaluate};
use nearshore_core::user::event::Accepted;
use schemars::JsonSchema;
use serde::Serialize;

use super::millis;
use super::result::moment;
use shown::{Shown, shown};
pub(crate) use updates::{Clock, Updates};

/// Values are given per so many names.
const NAMES: f64 = 1_000.0;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// No list has candidates.
    #[error(
        "none of the {read} lists of namespace {namespace} says which SKUs its names could have shown; set audit.candidates above 0 and wait until lists \
         with them were shown, or name another --namespace"
    )]
    NoCandidates {
        /// The namespace.
        namespace: String,
        /// Lists read.
        read: u64,
    },
    /// Impressions name lists, and none of them is known.
    #[error(
        "{impressions} impressions name lists by list_id, and none of these lists is among the {lists} with candidates; keep lists longer in \
         recall-updates (min.compaction.lag.ms), or give older ones with --updates"
    )]
    NotShown {
        /// Impressions of lists that are not known.
        impressions: u64,
        /// Lists with candidates.
        lists: usize,
    },
    /// The log does not suffice.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The policy to be judged.
    pub(crate) target: Weighing,
    /// Time after a showing in which purchases count.
    pub(crate) window: Duration,
    /// Places of a name that are judged.
    pub(crate) places: usize,
    /// How intervals are drawn.
    pub(crate) how: Resampling,
    /// The namespace, for messages.
    pub(crate) namespace: String,
}

/// The evaluation, with values per 1000 names.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct OffPolicy {
    /// The policy that is judged.
    pub(crate) target: Weighing,
    /// The policies by which the names were shown, with the number of names of each.
    pub(crate) logged_by: Vec<(Weighing, usize)>,
    /// Seconds after a showing in which purchases count.
    pub(crate) window_seconds: u64,
    /// `impressions` if they name their lists, else `published`.
    pub(crate) shown_by: &'static str,
    /// First and last time of a showing, RFC 3339.
    pub(crate) span: Option<(String, String)>,
    /// Lists of the namespace in the log.
    pub(crate) lists_read: u64,
    /// Lists with candidates.
    pub(crate) lists: usize,
    /// Updates that this release cannot read.
    pub(crate) refused: u64,
    /// Names left out, because their audits do not fit their candidates.
    pub(crate) unfit: u64,
    /// Impressions of lists without candidates or not in the log.
    pub(crate) of_other_lists: u64,
    /// Impressions of a SKU that is not in this place of the list that they name.
    pub(crate) misplaced: u64,
    /// The estimates, per 1000 names.
    #[serde(flatten)]
    pub(crate) found: Found,
}

/// Judges a policy by lists and what users did afterwards.
pub(crate) fn off_policy(
    updates: &Updates,
    records: &[Accepted],
    asked: &Asked,
) -> Result<OffPolicy, Problem> {
    let lists = updates.len();
    if lists == 0 {
        return Err(Problem::NoCandidates {
            namespace: asked.namespace.clone(),
            read: updates.read,
        });
    }
    let shown = shown(updates, records, asked.places);
    if shown.by_impressions && shown.names.is_empty() {
        return Err(Problem::NotShown {
            impressions: shown.of_other_lists,
            lists,
        });
    }
    let question = Question {
        target: asked.target,
        window: millis(asked.window),
        places: asked.places,
        how: asked.how,
    };
    let found = evaluate(&shown.names, &question)?;
    Ok(OffPolicy {
        target: asked.target,
        logged_by: logged_by(&shown),
        window_seconds: asked.window.as_secs(),
        shown_by: match shown.by_impressions {
            true => "impressions",
            false => "published",
        },
        span: shown
            .span
            .map(|(first, last)| (moment(first), moment(last))),
        lists_read: updates.read,
        lists,
        refused: updates.refused,
        unfit: updates.unfit,
        of_other_lists: shown.of_other_lists,
        misplaced: shown.misplaced,
        found: per_thousand(found),
    })
}

/// The policies of the names, that of the most first.
fn logged_by(shown: &Shown) -> Vec<(Weighing, usize)> {
    let mut all: Vec<(Weighing, usize)> = Vec::new();
    for name in &shown.names {
        match all.iter_mut().find(|(policy, _)| *policy == name.logged) {
            Some((_, names)) => *names += 1,
            None => all.push((name.logged, 1)),
        }
    }
    all.sort_by_key(|(_, names)| std::cmp::Reverse(*names));
    all
}

fn per_thousand(found: Found) -> Found {
    let interval = |it: Interval| Interval {
        mean: it.mean * NAMES,
        low: it.low * NAMES,
        high: it.high * NAMES,
        ..it
    };
    let estimate = |it: Estimate| Estimate {
        value: interval(it.value),
        difference: interval(it.difference),
    };
    Found {
        logged: interval(found.logged),
        dr: estimate(found.dr),
        snips: estimate(found.snips),
        ips: estimate(found.ips),
        ..found
    }
}

fn policy(of: &Weighing) -> String {
    format!(
        "gamma {}, explore {}, epsilon {}",
        of.gamma, of.explore, of.epsilon
    )
}

impl OffPolicy {
    /// The evaluation as lines for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut out = format!("policy: {}\n", policy(&self.target));
        for (logged, names) in &self.logged_by {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "logged: {}, {names} names", policy(logged));
        }
        let found = &self.found;
        let (first, last) = self.span.clone().unwrap_or_default();
        let _ = writeln!(
            out,
            "{} names shown to {} users from {first} to {last}; {} SKUs bought within {} of it, worth {:.0} under the policy",
            found.names,
            found.users,
            found.rewards,
            humantime::format_duration(Duration::from_secs(self.window_seconds)),
            found.effective_rewards,
        );
        out += &self.notes();
        let _ = writeln!(
            out,
            "\n{:<28} {:>26} {:>28}",
            "SKUs bought per 1000 names", "value", "less the logged policy"
        );
        let figures = |it: &Interval| format!("{:.1} [{:.1}, {:.1}]", it.mean, it.low, it.high);
        let signed = |it: &Interval| format!("{:+.1} [{:+.1}, {:+.1}]", it.mean, it.low, it.high);
        let _ = writeln!(
            out,
            "{:<28} {:>26}",
            "logged policy",
            figures(&found.logged)
        );
        for (what, it) in [
            ("doubly robust", &found.dr),
            ("self-normalised", &found.snips),
            ("inverse propensities", &found.ips),
        ] {
            let (value, difference) = (figures(&it.value), signed(&it.difference));
            let _ = writeln!(out, "{what:<28} {value:>26} {difference:>28}");
        }
        let _ = writeln!(
            out,
            "\n{:<6} {:>9} {:>10} {:>12} {:>12} {:>14}",
            "place", "names", "effective", "mean weight", "most weight", "not supported"
        );
        for place in &found.places {
            let _ = writeln!(
                out,
                "{:<6} {:>9} {:>10.0} {:>12.3} {:>12.1} {:>13.1} %",
                place.place,
                place.names,
                place.effective,
                place.weight_mean,
                place.weight_max,
                place.unsupported * 100.0,
            );
        }
        out
    }

    /// What counts as shown, what was left out, and what the policy shows that nobody saw.
    fn notes(&self) -> String {
        let mut out = match self.shown_by {
            "impressions" => "shown is what impressions name by list_id\n".to_owned(),
            _ => "no impression names a list by list_id: every published list counts as shown, whether the user saw it or not\n".to_owned(),
        };
        let without = self.lists_read.saturating_sub(self.lists as u64);
        let unsupported: f64 = self.found.places.iter().map(|it| it.unsupported).sum();
        let share = unsupported * 100.0;
        let notes = [
            (
                without,
                "updates are left out: their audits have no candidates, or they were written again",
            ),
            (
                self.refused,
                "updates are left out: this release cannot read them",
            ),
            (
                self.unfit,
                "names are left out: their audits do not fit their candidates",
            ),
            (
                self.of_other_lists,
                "impressions are left out: their list has no candidates, or is not in the log",
            ),
            (
                self.misplaced,
                "impressions are left out: their SKU is not in this place of the list that they name",
            ),
        ];
        for (number, why) in notes.iter().filter(|(number, _)| *number > 0) {
            let _ = writeln!(out, "{number} {why}");
        }
        if share >= 0.05 {
            let _ = writeln!(
                out,
                "{share:.1} % of the policy's names have a SKU that could not have been shown there: all but doubly robust count it as never bought"
            );
        }
        out
    }
}
