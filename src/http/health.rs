//! Progress: each loop that must not stand still has a [`Heart`] and beats it.
//!
//! Invariant: a heart is stale only while work is in hand ([`Heart::beat`] without [`Heart::rest`]
//! for longer than its limit). An idle loop is healthy, however long.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// At rest, no work in hand: a beat that lies in the future for ever, so never silent.
const RESTING: u64 = u64::MAX;

/// All hearts of the process.
#[derive(Clone, Debug)]
pub struct Health {
    start: Instant,
    // A mutex, for hearts are made once at start and read by probes; beating takes none.
    hearts: Arc<Mutex<BTreeMap<&'static str, (Heart, Duration)>>>,
}

/// One loop's sign of erased_at. Cheap to clone and to beat.
#[derive(Clone, Debug)]
pub struct Heart {
    start: Instant,
    /// Milliseconds from `start` to the last beat, or [`RESTING`].
    last: Arc<AtomicU64>,
}

/// A heart that has not beaten in time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stale {
    /// Whose.
    pub name: &'static str,
    /// Seconds since its last beat.
    pub silent_seconds: f64,
    /// Seconds it may be silent with work in hand.
    pub limit_seconds: f64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            hearts: Arc::default(),
        }
    }
}

impl Health {
    /// A heart that must beat at least every `limit` while work is in hand. It starts at rest. The
    /// same name again gives the same heart, with the new limit.
    pub fn heart(&self, name: &'static str, limit: Duration) -> Heart {
        let mut hearts = self.hearts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = hearts.entry(name).or_insert_with(|| {
            let heart = Heart {
                start: self.start,
                last: Arc::new(AtomicU64::new(RESTING)),
            };
            (heart, limit)
        });
        entry.1 = limit;
        entry.0.clone()
    }

    /// Beats the heart of that name, if there is one.
    pub fn beat(&self, name: &str) {
        let hearts = self.hearts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((heart, _)) = hearts.get(name) {
            heart.beat();
        }
    }

    /// Hearts that are over their limit now; empty is healthy.
    pub fn stale(&self) -> Vec<Stale> {
        self.stale_at(self.start.elapsed())
    }

    fn stale_at(&self, now: Duration) -> Vec<Stale> {
        let hearts = self.hearts.lock().unwrap_or_else(PoisonError::into_inner);
        let each = hearts.iter().filter_map(|(name, (heart, limit))| {
            let last = heart.last.load(Ordering::Relaxed);
            let silent = now.saturating_sub(Duration::from_millis(last));
            (silent > *limit).then_some(Stale {
                name,
                silent_seconds: silent.as_secs_f64(),
                limit_seconds: limit.as_secs_f64(),
            })
        });
        each.collect()
    }
}

impl Heart {
    /// Work is in hand, and goes on.
    pub fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(RESTING - 1);
        self.last.store(now, Ordering::Relaxed);
    }

    /// No work is in hand: silence is fine until the next beat.
    pub fn rest(&self) {
        self.last.store(RESTING, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stale(health: &Health, seconds: u64) -> Vec<&'static str> {
        let found = health.stale_at(health.start.elapsed() + Duration::from_secs(seconds));
        found.into_iter().map(|stale| stale.name).collect()
    }

    #[test]
    fn only_silence_with_work_in_hand_is_stale() {
        let health = Health::default();
        let limit = Duration::from_secs(30);
        let (poll, step) = (health.heart("poll", limit), health.heart("step", limit));
        assert_eq!(stale(&health, 1000), [""; 0], "nothing began");
        poll.beat();
        step.beat();
        assert_eq!(stale(&health, 29), [""; 0]);
        assert_eq!(stale(&health, 31), ["poll", "step"]);
        step.rest();
        assert_eq!(stale(&health, 31), ["poll"]);
        health.beat("step");
        assert_eq!(stale(&health, 31), ["poll", "step"]);
    }

    #[test]
    fn the_same_name_is_the_same_heart() {
        let health = Health::default();
        health.heart("poll", Duration::from_secs(1));
        health.heart("poll", Duration::from_secs(50)).beat();
        assert_eq!(stale(&health, 49), [""; 0]);
        assert_eq!(stale(&health, 51), ["poll"]);
    }
}
