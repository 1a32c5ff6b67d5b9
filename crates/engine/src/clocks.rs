//! The time of a batch by its parts, for measurements.
//!
//! Decides the parts. Invariant: parts do not overlap within a group of users, so with one group their sum is at most
//! the batch's time; the rest is packing, copying and admission. It does not know what a part computes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;

/// A part of a batch's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text to tokens.
    Tokens,
    /// Forward passes of prompts; on a device only their launches.
    Prompts,
    /// Waiting for the device after passes of prompts.
    PromptsWait,
    /// Forward passes of waves, or of tokens that are written; on a device only their launches.
    Waves,
    /// Waiting for the device after passes of waves.
    WavesWait,
    /// Logits; on a device also the wait for the passes before, unless that was timed, and the copy to the host.
    Logits,
    /// The search: choosing the next nodes and taking their scores; or choosing the next tokens.
    Search,
}

/// Seconds per [`Part`], summed over the groups of users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Spent {
    /// From text to tokens.
    pub tokens: f64,
    /// Forward passes of prompts.
    pub prompts: f64,
    /// Waiting for a device behind them.
    pub prompts_wait: f64,
    /// Forward passes of trie tokens.
    pub waves: f64,
    /// Waiting for a device behind them.
    pub waves_wait: f64,
    /// Logits of children from hidden states.
    pub logits: f64,
    /// Choosing nodes and taking their scores, on the host.
    pub search: f64,
}

/// Clocks that all groups of a batch share.
#[derive(Debug, Default)]
pub struct Clocks {
    nanos: [AtomicU64; 7],
    waits: AtomicBool,
}

impl Clocks {
    /// Runs `work` and adds its time to `part`.
    pub fn time<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos[part as usize].fetch_add(nanos, Ordering::Relaxed);
        result
    }

    /// Whether to wait for the device after each pass. This separates its time from the host's, but makes a batch
    /// slower.
    pub fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Sets whether to wait for the device after each pass.
    pub fn set_waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
    }

    /// Returns the seconds since the last call, and resets them.
    pub fn take(&self) -> Spent {
        let seconds =
            |part: Part| self.nanos[part as usize].swap(0, Ordering::Relaxed) as f64 / 1e9;
        Spent {
            tokens: seconds(Part::Tokens),
            prompts: seconds(Part::Prompts),
            prompts_wait: seconds(Part::PromptsWait),
            waves: seconds(Part::Waves),
            waves_wait: seconds(Part::WavesWait),
            logits: seconds(Part::Logits),
            search: seconds(Part::Search),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_its_own_time_which_is_returned_once() {
        let clocks = Clocks::default();
        assert_eq!(clocks.time(Part::Search, || 7), 7);
        let spent = clocks.take();
        assert!(spent.search > 0.0);
        let others = Spent {
            search: 0.0,
            ..spent
        };
        assert_eq!(others, Spent::default());
        assert_eq!(clocks.take(), Spent::default());
    }
}
