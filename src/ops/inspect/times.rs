//! Times from event to published list: the moments, and the parts between them as a bar.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use nearshore_core::user::record::Timestamp;

/// When each step happened. `event` and `due` are record times; the others are by the worker's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Times {
    /// Time of the record that caused the request.
    pub event: Option<Timestamp>,
    /// When its request was due.
    pub due: Option<Timestamp>,
    /// When the user was claimed.
    pub taken: Option<Timestamp>,
    /// When the model answered.
    pub generated: Option<Timestamp>,
    /// When the list was stored in Redis.
    pub published: Option<Timestamp>,
}

/// One part of the time from event to list.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Part {
    /// `quiet`, `queue`, `generation`, `publish`.
    pub name: &'static str,
    /// How long it took, in words.
    pub took: String,
    /// Share of the whole, in percent.
    pub percent: f64,
}

impl Times {
    /// Times from a list's audit; all unknown if the audit has no source time.
    pub fn of(audit: &nearshore_core::list::document::Times) -> Self {
        if audit.source.0 == 0 {
            return Self::default();
        }
        let taken = audit.due.after(audit.queued);
        let generated = taken.after(audit.generated);
        Self {
            event: Some(audit.source),
            due: Some(audit.due),
            taken: Some(taken),
            generated: Some(generated),
            published: Some(generated.after(audit.published)),
        }
    }

    /// The parts between the known moments, in order. A part is zero where one clock is behind another.
    pub fn parts(&self) -> Vec<Part> {
        let moments = [
            ("", self.event),
            ("quiet", self.due),
            ("queue", self.taken),
            ("generation", self.generated),
            ("publish", self.published),
        ];
        let known: Vec<_> = moments
            .into_iter()
            .filter_map(|(name, time)| time.map(|time| (name, time)))
            .collect();
        let steps: Vec<_> = known
            .windows(2)
            .map(|pair| (pair[1].0, pair[1].1.since(pair[0].1)))
            .collect();
        let whole: Duration = steps.iter().map(|(_, took)| *took).sum();
        steps
            .into_iter()
            .map(|(name, took)| Part {
                name,
                took: words(took),
                percent: if whole.is_zero() {
                    0.0
                } else {
                    100.0 * took.as_secs_f64() / whole.as_secs_f64()
                },
            })
            .collect()
    }

    /// From event to published, in words.
    pub fn whole(&self) -> Option<String> {
        Some(words(self.published?.since(self.event?)))
    }
}

/// `340 ms`, `12.3 s`, `4 min 5 s`, `3 h 2 min`.
fn words(took: Duration) -> String {
    let (millis, seconds) = (took.as_millis(), took.as_secs());
    match seconds {
        0 => format!("{millis} ms"),
        1..=59 => format!("{:.1} s", took.as_secs_f64()),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}
