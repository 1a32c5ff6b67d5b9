//! Liveness: each loop that must not hang has a [`Heartbeat`] and beats it.
//!
//! Invariant: a heartbeat is stale only while its loop has work (a [`Heartbeat::beat`] without [`Heartbeat::rest`] for
//! longer than its limit). An idle loop is healthy, however long it is idle.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The loop is idle: a last beat in the far future, so that the heartbeat is never stale.
const IDLE: u64 = u64::MAX;

/// All heartbeats of the process.
#[derive(Clone, Debug)]
pub struct Health {
    start: Instant,
    // Heartbeats are created at start and read by probes under this mutex; a beat does not lock it.
    heartbeats: Arc<Mutex<BTreeMap<&'static str, (Heartbeat, Duration)>>>,
}

/// Shows that one loop makes progress. Cheap to clone and to beat.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    start: Instant,
    /// Milliseconds from `start` to the last beat, or [`IDLE`].
    last: Arc<AtomicU64>,
}

/// A heartbeat that is over its limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stale {
    /// Name of the loop.
    pub name: &'static str,
    /// Seconds since its last beat.
    pub silent_seconds: f64,
    /// Seconds without a beat that are allowed while the loop has work.
    pub limit_seconds: f64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            heartbeats: Arc::default(),
        }
    }
}

impl Health {
    /// A heartbeat that must beat at least every `limit` while its loop has work. It starts idle. The same name again
    /// gives the same heartbeat, with the new limit.
    pub fn heartbeat(&self, name: &'static str, limit: Duration) -> Heartbeat {
        let mut heartbeats = self
            .heartbeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = heartbeats.entry(name).or_insert_with(|| {
            let heartbeat = Heartbeat {
                start: self.start,
                last: Arc::new(AtomicU64::new(IDLE)),
            };
            (heartbeat, limit)
        });
        entry.1 = limit;
        entry.0.clone()
    }

    /// Beats the heartbeat of that name, if there is one.
    pub fn beat(&self, name: &str) {
        let heartbeats = self
            .heartbeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((heartbeat, _)) = heartbeats.get(name) {
            heartbeat.beat();
        }
    }

    /// Heartbeats that are over their limit now; empty means healthy.
    pub fn stale(&self) -> Vec<Stale> {
        self.stale_at(self.start.elapsed())
    }

    fn stale_at(&self, now: Duration) -> Vec<Stale> {
        let heartbeats = self
            .heartbeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let each = heartbeats.iter().filter_map(|(name, (heartbeat, limit))| {
            let last = heartbeat.last.load(Ordering::Relaxed);
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

impl Heartbeat {
    /// The loop has work and makes progress.
    pub fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(IDLE - 1);
        self.last.store(now, Ordering::Relaxed);
    }

    /// The loop has no work: no beat is expected until the next one comes.
    pub fn rest(&self) {
        self.last.store(IDLE, Ordering::Relaxed);
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
    fn a_heartbeat_is_stale_only_while_its_loop_has_work() {
        let health = Health::default();
        let limit = Duration::from_secs(30);
        let (poll, step) = (
            health.heartbeat("poll", limit),
            health.heartbeat("step", limit),
        );
        assert_eq!(stale(&health, 1000), [""; 0], "no loop has work yet");
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
    fn the_same_name_gives_the_same_heartbeat() {
        let health = Health::default();
        health.heartbeat("poll", Duration::from_secs(1));
        health.heartbeat("poll", Duration::from_secs(50)).beat();
        assert_eq!(stale(&health, 49), [""; 0]);
        assert_eq!(stale(&health, 51), ["poll"]);
    }
}
